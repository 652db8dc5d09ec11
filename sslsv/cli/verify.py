"""``sslsv verify``."""

from __future__ import annotations

import argparse
import sys

from sslsv.cli.base import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="audio file")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help=".safetensors or .onnx file of 'sslsv export', folder of a run, or its config.yml",
    )
    parser.add_argument(
        "--model_suffix",
        metavar="NAME",
        help="checkpoint, where PATH is a run: latest, best, avg or epoch-N; latest where none is "
        "given",
    )
    parser.add_argument(
        "--prior",
        metavar="P",
        type=float,
        default=0.5,
        help="share of pairs that are of one speaker, for the probability of a calibrated model",
    )
    parser.add_argument(
        "--threshold",
        metavar="COSINE",
        type=float,
        help="cosine from which on to decide for one speaker; a calibrated model needs none",
    )
    parser.add_argument(
        "--resample",
        action="store_true",
        default=None,
        help="convert audio of another sample rate, whatever dataset.resample was",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(arguments: argparse.Namespace) -> None:
    import json

    from sslsv.model import format_verdict, load, verify

    a = arguments
    model = load(a.model, a.model_suffix, a.resample)
    found = verify(a.a, a.b, model, a.prior, a.threshold)
    for remark in (*model.remarks, *(model.calibration.remarks if model.calibration else ())):
        print(f"warning: {remark}", file=sys.stderr)
    print(json.dumps(found, indent=2) if a.json else format_verdict(found))


COMMAND = Command(
    name="verify",
    help="Say whether two files are of one speaker.",
    details="Prints the cosine of the embeddings; for a model that was exported with\n"
    "--calibrate also the probability of one speaker and the decision. Ends with 0\n"
    "whatever is decided.",
    example="sslsv verify a.wav b.wav --model model_latest.safetensors",
    add_arguments=_add_arguments,
    run=_run,
)
