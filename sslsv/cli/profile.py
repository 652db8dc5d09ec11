"""``sslsv profile``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslsv.cli.base import Command, add_config


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=20, help="how many steps to measure"
    )
    parser.add_argument(
        "--warmup", metavar="N", type=int, default=5, help="steps before, not measured"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="trace to write, with profile.json beside it; profile/trace.json in the run's folder "
        "where none is given",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.profiling import profile

    config = load_config(arguments.config, arguments.overrides)
    profile(config, arguments.steps, arguments.warmup, arguments.trace)


COMMAND = Command(
    name="profile",
    help="Time the stages of a training step, and write a trace of a few.",
    details="The model is new, and thrown away afterwards.",
    example="sslsv profile models/demo/simclr --steps 50",
    add_arguments=_add_arguments,
    run=_run,
)
