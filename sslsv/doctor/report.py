"""What ``sslsv doctor`` prints."""

from __future__ import annotations

from dataclasses import dataclass

from sslsv.errors import DataError
from sslsv.trainer.tracking import say


@dataclass
class Report:
    """What is printed, and how much of it is bad."""

    problems: int = 0  # would stop a run
    warnings: int = 0  # may spoil it

    def title(self, text: str) -> None:
        say(f"\n{text}")

    def note(self, text: str) -> None:
        say(f"  {text}")

    def warn(self, text: str, fix: str) -> None:
        self.warnings += 1
        say(f"  warning: {text}\n    -> {fix}")

    def problem(self, text: str, fix: str = "") -> None:
        self.problems += 1
        say(f"  PROBLEM: {text}" + (f"\n    -> {fix}" if fix else ""))

    def fault(self, text: str, fix: str, stops: bool) -> None:
        """A problem if it stops a run, else a warning."""
        (self.problem if stops else self.warn)(text, fix)

    def close(self) -> None:
        warnings = f"{self.warnings} warning{'s' * (self.warnings != 1)}"
        if self.problems:
            raise DataError(
                f"{self.problems} problem{'s' * (self.problems != 1)} would stop a run and are to "
                f"be mended first (see the report); {warnings}"
            )
        say(f"\nReady to train; {warnings}.")
