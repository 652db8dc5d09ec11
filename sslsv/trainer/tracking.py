"""What a person sees of a run: progress bars, one line an epoch, training.json, TensorBoard."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sslsv import distributed
from sslsv.errors import UserError
from sslsv.files import read_json, write_json


def progress_bar(total: int, description: str, unit: str = "batch") -> tqdm:
    """A bar on the main process's terminal; nothing where output goes to a file."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        dynamic_ncols=True,
        leave=False,
        disable=None if distributed.is_main() else True,  # None: only if stderr is a terminal
    )


def say(message: str) -> None:
    """Print a line once, whatever the number of processes, without breaking a bar."""
    if distributed.is_main():
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


class Tracker:
    """Keeps the history of a run; acts on the main process only."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "training.json"
        self._tensorboard: Any = None
        self._folder = run_dir / "tensorboard"

    @contextmanager
    def running(self, epoch: int, step: int) -> Iterator[None]:
        """Log what follows ``epoch`` epochs; what an earlier run logged beyond them is dropped."""
        if not distributed.is_main():
            yield
            return
        history = {k: v for k, v in read_json(self.path).items() if int(k) <= epoch}
        write_json(self.path, history)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard's own, about protobuf and the like
            from torch.utils.tensorboard import SummaryWriter
        try:
            self._tensorboard = SummaryWriter(str(self._folder), purge_step=step)
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            self._tensorboard.close()
            self._tensorboard = None

    def log_step(self, step: int, values: dict[str, float]) -> None:
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(f"step/{name}", value, step)

    def log_epoch(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Add what ``epoch`` (from 1) gave to training.json and TensorBoard."""
        if not self._tensorboard:
            return
        write_json(self.path, read_json(self.path) | {str(epoch): metrics})
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()
