"""``sslsv doctor``."""

from __future__ import annotations

import argparse

from sslsv.cli.base import Command, add_config


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--full", action="store_true", help="also decode every file to its end")


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.doctor import examine

    examine(load_config(arguments.config, arguments.overrides), arguments.full)


COMMAND = Command(
    name="doctor",
    help="Look for what would stop or spoil a training; say how to mend it.",
    details="Looks through the configuration, lists, audio and disk before a long run. Ends\n"
    "with 2 where something would stop it.",
    example="sslsv doctor models/demo/simclr --full",
    add_arguments=_add_arguments,
    run=_run,
)
