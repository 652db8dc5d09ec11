"""``sslsv export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslsv.cli.base import Command, add_config, add_model_suffix


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--format", required=True, metavar="FORMAT", help="onnx (a graph) or safetensors (weights)"
    )
    add_model_suffix(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="file to write; model_NAME.FORMAT in the run's folder where none is given",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="SCORES",
        help="score file of this checkpoint to calibrate on, in this or the run's folder, such as "
        "scores/trained_sv_cosine_LIST.txt",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.export import export

    config = load_config(arguments.config, arguments.overrides)
    a = arguments
    export(config, a.format, a.model_suffix, a.output, a.calibrate)


COMMAND = Command(
    name="export",
    help="Write a trained model as one file, with a model card beside it.",
    details="The file is compared with the model before it is kept. Needs the extra\n'export'.",
    example="sslsv export models/demo/simclr --format onnx",
    add_arguments=_add_arguments,
    run=_run,
)
