"""``sslsv list``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sslsv.cli.base import Command, print_whole
from sslsv.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=["methods", "encoders", "configs"],
        help="what to list",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        nargs="?",
        help="where to look for configs, in it and below; models/ here or in the clone where "
        "none is given",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(arguments: argparse.Namespace) -> None:
    from sslsv import catalogue

    a = arguments
    if a.folder is not None and a.kind != "configs":
        raise UserError(f"{a.folder}: only 'sslsv list configs' takes a folder; leave it out")
    found: Sequence[catalogue.Part | catalogue.Experiment]
    if a.kind == "configs":
        found = catalogue.configs(a.folder)
    else:
        found = catalogue.methods() if a.kind == "methods" else catalogue.encoders()
    print_whole(catalogue.as_json(found) if a.json else catalogue.as_text(found))


COMMAND = Command(
    name="list",
    help="List the methods, the encoders or the configurations there are.",
    details="Methods and encoders go by the names that 'type' has in a configuration. Of a\n"
    "configuration: method, encoder, published EER in % where there is one, path.",
    example="sslsv list configs models/ssl",
    add_arguments=_add_arguments,
    run=_run,
)
