"""The command line: ``sslsv COMMAND``, and the scripts in ``sslsv/bin`` that call it.

A command is a file here, named as it is (``sslsv list`` is ``listing.py``): its arguments, and what
they are handed to. Importing the package is instant; a command imports what it needs as it runs.

Exit codes: 0 done, 2 bad input (one sentence says what), 130 interrupted; a training that was asked
to stop and has saved ends with 143 (SIGTERM) or 130 (SIGINT).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from sslsv.cli import (
    average,
    calibrate,
    compare,
    doctor,
    embed,
    evaluate,
    export,
    listing,
    profile,
    report,
    results,
    train,
    verify,
)
from sslsv.cli.base import print_whole
from sslsv.errors import UserError
from sslsv.interrupt import Interrupted

GROUPS = {
    "Train and evaluate": (train, evaluate, average, calibrate),
    "Use a model": (verify, embed, export),
    "Look and compare": (listing, results, compare, report),
    "Check and measure": (doctor, profile),
}
COMMANDS = {module.COMMAND.name: module.COMMAND for group in GROUPS.values() for module in group}


def main(argv: Sequence[str] | None = None, prog: str = "sslsv") -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print_whole(_overview(prog))
        return 0
    if argv[0] == "--version":
        from sslsv import __version__

        print(f"{prog} {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(COMMANDS)}"
        print(f"error: unknown command '{name}'; {hint}", file=sys.stderr)
        return 2
    return run_command(name, rest, f"{prog} {name}")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse ``argv`` for command ``name`` and run it; errors a user can mend are one line."""
    command = COMMANDS[name]
    arguments = command.parser(prog).parse_intermixed_args(argv)
    try:
        command.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:  # which has been said
        return interrupted.code
    except KeyboardInterrupt:
        hint = "; the same command goes on from the last checkpoint" if name == "train" else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _overview(prog: str) -> str:
    """Of at most 80 columns."""
    lines = [f"usage: {prog} COMMAND ...", "", "Speaker representations learned without labels."]
    for title, group in GROUPS.items():
        lines += ["", title]
        for command in (module.COMMAND for module in group):
            lines += [f"  {command.name:11s}{command.help}", f"{'':13s}$ {command.example}"]
    lines += [
        "",
        "Exit codes: 0 done; 2 bad input, and one sentence says what; 130 interrupted",
        "(Ctrl-C); 143 a training that was asked to stop (SIGTERM) and has saved.",
        "",
        f"'{prog} COMMAND --help' lists the arguments of a command; '{prog} --version'.",
    ]
    return "\n".join(lines)
