"""A trainer on a linear model and a table in memory: an epoch takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sslsv.datasets.loader import Loader
from sslsv.datasets.samplers import Draw, ShuffledBatches
from sslsv.datasets.views import Batch
from sslsv.methods.base import Method, MethodConfig, Metrics, Outputs
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.trainer import Trainer

ROWS, INPUTS, HIDDEN, BATCH = 12, 5, 3, 4


class Table(Dataset):
    """Row i is fixed noise; its label is i."""

    def __init__(self) -> None:
        self.x = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(1))

    def __getitems__(self, draws: list[Draw]) -> Batch:
        rows = torch.tensor([draw.row for draw in draws])
        return Batch(rows, rows, [self.x[rows]])


class TwoLayers(Method):
    """Regression of label / ROWS; records what it is given."""

    views = "single"

    def __init__(self) -> None:
        super().__init__(MethodConfig(type="two"), nn.Linear(INPUTS, HIDDEN))  # type: ignore[arg-type]
        self.head = nn.Linear(HIDDEN, 1)
        self.batches: list[list[int]] = []  # rows of each step
        self.frozen: list[float] = []  # what on_step_end was told

    def forward(self, views: list[Tensor]) -> Outputs:
        return {"y": self.head(self.encoder(views[0])).squeeze(1)}

    def embed(self, wave: Tensor, lengths: Any = None) -> Tensor:
        return self.encoder(wave)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        self.batches.append(batch.rows.tolist())
        loss = (outputs["y"] - batch.labels / ROWS).square().mean()
        return loss, {"train/loss": loss.detach(), "train/rows": batch.rows.float().mean()}

    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        self.frozen.append(frozen.item())


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """``make_trainer(run, seed=…, settings=…, validate=…, method=…, **fields of TrainerConfig)``.

    Three steps an epoch; the same initial weights every time.
    """

    def make(
        run: str = "run",
        *,
        seed: int = 7,
        settings: dict[str, Any] | None = None,
        validate: Callable[[], dict[str, float]] | None = None,
        method: Method | None = None,
        **fields: Any,
    ) -> Trainer:
        torch.manual_seed(seed)
        sampler = ShuffledBatches(ROWS, BATCH, seed)
        return Trainer(
            TrainerConfig(**{"epochs": 4, "batch_size": BATCH, "learning_rate": 0.05} | fields),
            method or TwoLayers(),
            Loader(Table(), sampler, num_workers=0),
            sampler,
            tmp_path / run,
            settings or {},
            torch.device("cpu"),
            validate,
            lambda row: f"row{row:02d}.wav",
        )

    return make
