"""``sslsv compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslsv.cli.base import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="score file, or the folder of a run")
    parser.add_argument("b", metavar="B", type=Path, help="another, with the same trials")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="eer",
        help="eer, eer_rocch, mindcf, actdcf, cllr or mincllr",
    )
    parser.add_argument(
        "--speakers",
        type=Path,
        metavar="FILE.csv",
        help="columns File and Speaker; where none is given, files that target trials join are "
        "one speaker",
    )
    parser.add_argument(
        "--resamples", metavar="N", type=int, default=1000, help="draws of the speakers"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the draws")
    parser.add_argument(
        "--p_target",
        metavar="P",
        type=float,
        default=0.01,
        help="prior of a target trial, for mindcf and actdcf",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.evaluations.compare import compare, format_report

    print(format_report(compare(**vars(arguments))))


COMMAND = Command(
    name="compare",
    help="Say whether two systems differ on the same trials, with error bars.",
    details="Of two runs, all lists that both have scores of are compared.",
    example="sslsv compare runs/simclr runs/moco --metric eer",
    add_arguments=_add_arguments,
    run=_run,
)
