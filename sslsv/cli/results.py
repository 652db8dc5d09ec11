"""``sslsv results``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslsv.cli.base import Command
from sslsv.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        nargs="?",
        default=Path("models"),
        help="runs are looked for in it and below",
    )
    parser.add_argument(
        "--list",
        nargs="+",
        default=[],
        dest="lists",
        metavar="NAME",
        help="lists of trials to show; where none is given, of each run the first one it was "
        "tested on",
    )
    parser.add_argument(
        "--format", choices=["markdown", "json"], default="markdown", help="of the table"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="instead write the tables of FOLDER/published.yml between the markers "
        "'results:begin NAME' and 'results:end' of this file",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --readme: write nothing, and end with 2 where something would change",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.results_table import results, update_readme

    a = arguments
    if a.check and a.readme is None:
        raise UserError("--check: needs --readme FILE, the file to check")
    if a.readme is not None:
        print(update_readme(a.readme, a.folder, a.check))
    else:
        print(results(a.folder, a.lists, a.format))


COMMAND = Command(
    name="results",
    help="Make a table of all runs below a folder, and of published figures.",
    details="FOLDER comes first: what follows --list are lists. Measured and published\n"
    "figures never share a column.",
    example="sslsv results models --format json",
    add_arguments=_add_arguments,
    run=_run,
)
