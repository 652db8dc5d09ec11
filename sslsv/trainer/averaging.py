"""The mean of a run's last weights: less noise than those of any one epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sslsv.errors import CheckpointError
from sslsv.trainer import checkpoint


class RunningAverage:
    """The mean of weights that are added one after the other, without their files.

    ``epochs``: the first and the last one whose weights are meant. Sums that were meant for others
    are of no use.
    """

    def __init__(self, epochs: Sequence[int] = (0, 0)) -> None:
        self.epochs = list(epochs)
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, model: Mapping[str, Tensor]) -> None:
        """Counters and other whole numbers are those of the latest."""
        self.count += 1
        for name, value in model.items():
            if value.is_floating_point():
                value = value.double() + self.sums.get(name, 0.0)
            self.sums[name] = value

    def mean(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In the types of ``like``."""
        return {
            name: (total / self.count).to(like[name].dtype) if total.is_floating_point() else total
            for name, total in self.sums.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "count": self.count, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["epochs"] == self.epochs:
            self.count, self.sums = state["count"], state["sums"]


def average_epochs(run_dir: Path, count: int = 10, last: int | None = None) -> Path:
    """Write ``model_avg.pt``, the mean of the ``count`` latest ``model_epoch-N.pt`` (N <= last).

    Counters and other whole numbers are those of the latest. Raises CheckpointError where there
    are not as many, or where they are not of one model.
    """
    folder = checkpoint.checkpoint_path(run_dir, "latest").parent
    names = (path.stem.rpartition("-")[2] for path in folder.glob("model_epoch-*.pt"))
    epochs = sorted(int(name) for name in names if name.isdecimal())
    epochs = [epoch for epoch in epochs if last is None or epoch <= last]
    if count < 1 or len(epochs) < count:
        raise CheckpointError(
            f"{folder}: {count} epochs are to be averaged and there are {len(epochs)}; give "
            "--count from 1 to that number"
        )
    average = RunningAverage()
    for epoch in epochs[-count:]:
        path = checkpoint.checkpoint_path(run_dir, f"epoch-{epoch}")
        state = checkpoint.load(path)
        model = state["model"]
        shapes = {name: x.shape for name, x in average.sums.items()}
        if shapes and shapes != {name: x.shape for name, x in model.items()}:
            raise CheckpointError(f"{path}: is of another model than the epochs before it")
        average.add(model)
    target = checkpoint.checkpoint_path(run_dir, "avg")
    checkpoint.save(target, {**state, "model": average.mean(model)})
    return target
