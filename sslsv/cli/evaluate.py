"""``sslsv evaluate``."""

from __future__ import annotations

import argparse

from sslsv.cli.base import Command, add_config, add_model_suffix


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_model_suffix(parser)
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score the untrained encoder and MFCC statistics",
    )
    parser.add_argument(
        "--plots",
        action="store_true",
        help="also draw DET curves, score histograms, maps of embeddings, confusion matrices "
        "(extra 'plots')",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv import distributed
    from sslsv.config import load_config
    from sslsv.experiment import evaluate

    with distributed.session():
        config = load_config(arguments.config, arguments.overrides)
        evaluate(config, arguments.model_suffix, arguments.baselines, arguments.plots)


COMMAND = Command(
    name="evaluate",
    help="Test a trained model as evaluation.test of its configuration says.",
    details="Prints a table; figures go to evaluation.json and scores to scores/, in the\n"
    "folder of the run.",
    example="sslsv evaluate models/demo/simclr --baselines --plots",
    add_arguments=_add_arguments,
    run=_run,
)
