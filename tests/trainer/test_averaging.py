"""The mean of the last epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslsv.errors import CheckpointError
from sslsv.trainer import checkpoint
from sslsv.trainer.averaging import average_epochs


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Epochs 1 to 12, whose weight is the square of the epoch."""
    for epoch in range(1, 13):
        model = {"w": torch.full((2,), float(epoch**2)), "steps": torch.tensor(epoch)}
        path = checkpoint.checkpoint_path(tmp_path, f"epoch-{epoch}")
        checkpoint.save(path, {"model": model, "epoch": epoch, "config": "{}"})
    return tmp_path


@pytest.mark.parametrize(
    ("count", "last", "expected", "steps"),
    [
        (10, None, sum(k * k for k in range(3, 13)) / 10, 12),
        (2, 10, (81 + 100) / 2, 10),
        (1, None, 144.0, 12),
    ],
)
def test_mean_of_the_last_weights(
    run_dir: Path, count: int, last: int | None, expected: float, steps: int
) -> None:
    state = checkpoint.load(average_epochs(run_dir, count, last))
    assert state["model"]["w"].tolist() == pytest.approx([expected] * 2)
    assert state["model"]["w"].dtype == torch.float32
    assert int(state["model"]["steps"]) == steps
    assert state["epoch"] == steps


@pytest.mark.parametrize(("count", "last"), [(13, None), (3, 2), (0, None)])
def test_not_so_many_epochs(run_dir: Path, count: int, last: int | None) -> None:
    with pytest.raises(CheckpointError, match="epochs are to be averaged and there are"):
        average_epochs(run_dir, count, last)
    assert not checkpoint.checkpoint_path(run_dir, "avg").exists()


def test_epochs_of_two_models(run_dir: Path) -> None:
    path = checkpoint.checkpoint_path(run_dir, "epoch-12")
    checkpoint.save(path, {"model": {"w": torch.zeros(3)}})
    with pytest.raises(CheckpointError, match=r"epoch-12\.pt: is of another model"):
        average_epochs(run_dir, 2)
