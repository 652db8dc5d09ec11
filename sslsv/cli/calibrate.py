"""``sslsv calibrate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sslsv.cli.base import Command
from sslsv.errors import ConfigError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--fit",
        type=Path,
        nargs="+",
        default=[],
        metavar="SCORES",
        help="score file to fit on; several, one a system, are fused",
    )
    source.add_argument(
        "--model", type=Path, metavar="JSON", help="use what an earlier call fitted"
    )
    parser.add_argument(
        "--apply",
        type=Path,
        nargs="+",
        required=True,
        metavar="SCORES",
        help="score file to calibrate; of several systems, in the order of --fit",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="score file to write; what was fitted goes beside it, as .json",
    )
    parser.add_argument(
        "--prior",
        metavar="P",
        type=float,
        default=0.01,
        help="of a target trial, to fit and measure for",
    )
    parser.add_argument(
        "--quality",
        type=Path,
        nargs="+",
        default=[],
        metavar="CSV",
        help="measures of files, as columns beside File, of which those of both files of a trial "
        "are used as they are (scores/*_cohort.csv has some, where score_norm is set)",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME",
        help="columns of --quality to use; all of them where none is given",
    )
    parser.add_argument(
        "--durations",
        type=Path,
        metavar="FOLDER",
        help="also use the logarithms of both files' durations; paths in lists are below FOLDER",
    )
    parser.add_argument(
        "--enrolments",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="for --durations, where score files hold ids: the <list>.enrol with their files",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.evaluations.calibration import calibrate

    a = arguments
    if a.enrolments and not a.durations:
        raise ConfigError("--enrolments: is used by --durations only; give --durations as well")
    calibration, table = calibrate(
        a.apply,
        a.output,
        a.fit,
        a.model,
        a.prior,
        a.quality,
        a.columns,
        a.durations,
        a.enrolments,
    )
    for remark in calibration.remarks:
        print(f"warning: {remark}", file=sys.stderr)
    print(table)


COMMAND = Command(
    name="calibrate",
    help="Turn scores into log-likelihood ratios; fuse several systems.",
    details="Score files are those of 'sslsv evaluate', lines of 'enrol test score label'.",
    example="sslsv calibrate --fit dev.txt --apply test.txt --output llr.txt",
    add_arguments=_add_arguments,
    run=_run,
)
