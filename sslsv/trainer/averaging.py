"""The mean of a run's last weights: less noise than those of any one epoch."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sslsv.errors import CheckpointError
from sslsv.trainer import checkpoint


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
    sums: dict[str, Tensor] = {}
    for epoch in epochs[-count:]:
        path = checkpoint.checkpoint_path(run_dir, f"epoch-{epoch}")
        state = checkpoint.load(path)
        model = state["model"]
        if sums and {k: v.shape for k, v in sums.items()} != {k: v.shape for k, v in model.items()}:
            raise CheckpointError(f"{path}: is of another model than the epochs before it")
        for name, value in model.items():
            if value.is_floating_point():
                sums[name] = sums.get(name, 0.0) + value.double() / count
            else:
                sums[name] = value
    mean = {name: sums[name].to(value.dtype) for name, value in model.items()}
    target = checkpoint.checkpoint_path(run_dir, "avg")
    checkpoint.save(target, {**state, "model": mean})
    return target
