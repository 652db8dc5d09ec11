"""What commands are made of: the class of a command, and arguments that several of them have."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: what it says of itself, its arguments, what it does."""

    name: str
    help: str  # one line: in the overview 67 characters fit
    details: str = ""  # further lines of its own --help, of at most 79 characters
    example: str  # one line, of at most 65 characters
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]

    def parser(self, prog: str | None = None) -> argparse.ArgumentParser:
        """Its parser; ``prog`` is what the command is called by, else the script's name."""
        description = f"{self.help}\n\n{self.details}" if self.details else self.help
        parser = argparse.ArgumentParser(
            prog,
            description=description,
            epilog=f"example:\n  {self.example}",
            formatter_class=_Help,
        )
        self.add_arguments(parser)
        return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names the defaults there are: not None, an empty list or a switch that is off."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, [], argparse.SUPPRESS) or action.default is False
        return action.help if silent else f"{action.help} (default: %(default)s)"


def print_whole(text: str) -> None:
    """Print; a reader such as ``| head`` may leave before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG, and the settings to change."""
    parser.add_argument(
        "config", metavar="CONFIG", help="YAML file, or the folder that holds config.yml"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings to change, such as trainer.epochs=10, run_dir=PATH (where the results go) "
        "or evaluation.test.0.trials=[a,b]",
    )


def add_model_suffix(parser: argparse.ArgumentParser) -> None:
    """--model_suffix: the checkpoint of a run."""
    parser.add_argument(
        "--model_suffix",
        metavar="NAME",
        default="latest",
        help="checkpoint of the run: latest, best, avg or epoch-N",
    )
