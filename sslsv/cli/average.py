"""``sslsv average``."""

from __future__ import annotations

import argparse

from sslsv.cli.base import Command, add_config


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--count", metavar="N", type=int, default=10, help="how many epochs to average"
    )
    parser.add_argument(
        "--limit_nb_epochs",
        metavar="N",
        type=int,
        help="the last epoch to use; that of the run where none is given",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.trainer.averaging import average_epochs

    config = load_config(arguments.config, arguments.overrides)
    assert config.run_dir is not None
    path = average_epochs(config.run_dir, arguments.count, arguments.limit_nb_epochs)
    print(f"{path}: mean of {arguments.count} epochs; evaluate it with --model_suffix avg")


COMMAND = Command(
    name="average",
    help="Average the weights of a run's last epochs.",
    details="Writes checkpoints/model_avg.pt of the run; the other commands take it as\n"
    "--model_suffix avg.",
    example="sslsv average models/demo/simclr --count 3",
    add_arguments=_add_arguments,
    run=_run,
)
