"""What a training with ``dataset.on_error: skip`` went without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sslsv import distributed
from sslsv.datasets.views import Batch, Skipped
from sslsv.files import atomic_write
from sslsv.trainer.tracking import say


class SkippedFiles:
    """Counts what ``dataset.on_error: skip`` replaced, and lists each file of it once."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "skipped_files.txt"
        self._met: list[Skipped] = []  # in this epoch

    def add(self, batch: Batch) -> None:
        self._met += batch.skipped

    def state_dict(self) -> list[list[Any]]:
        """Of this epoch so far."""
        return [[row, reason] for row, reason in self._met]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        self._met += [Skipped(row, reason) for row, reason in state]

    def report(self, name_row: Callable[[int], str]) -> None:
        """At the end of an epoch, in every process: say what was skipped and add it to the list."""
        parts = distributed.gather_objects(self._met)
        self._met = []
        reasons = {name_row(row): reason for part in parts for row, reason in part}
        if not reasons or not distributed.is_main():
            return
        count = sum(map(len, parts))
        say(f"  unusable files: {len(reasons)}, replaced {count} times by others; see {self.path}")
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        known = {line.partition("\t")[0] for line in lines}
        lines += [f"{name}\t{reasons[name]}" for name in sorted(reasons) if name not in known]
        with atomic_write(self.path, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
