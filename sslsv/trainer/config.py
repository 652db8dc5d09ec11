"""Settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslsv.errors import ConfigError
from sslsv.trainer.schedules import ScheduleName


@dataclass(kw_only=True)
class TrainerConfig:
    """YAML section ``trainer``."""

    epochs: int = 100  # length of the training and of its schedules
    stop_at_epoch: int | None = None  # end after this many epochs, schedules unchanged
    batch_size: int = 256  # utterances of a step over all processes
    learning_rate: float = 0.001  # initial, or highest after a warm-up
    learning_rate_sched: ScheduleName = "default"  # x 0.95 each 5 epochs, or half a cosine
    learning_rate_min: float = 1e-5  # where a cosine ends
    learning_rate_warmup: int = 10  # epochs, for warmup+cosine
    weight_decay: float = 0.0
    optimizer: Literal["adam", "sgd", "adamw"] = "adam"  # sgd has momentum 0.9
    patience: int = 100  # epochs without a better tracked metric before stopping
    tracked_metric: str = "val/sv_cosine/voxceleb1_test_O/eer"  # chooses model_best.pt
    tracked_mode: Literal["min", "max"] = "min"  # which values of it are better
    ddp_sync_batchnorm: bool = True  # batch norm statistics over all GPUs
    mixed_precision: bool = False  # bfloat16 autocast of the network; losses stay float32
    init_weights: Path | None = None  # start from the weights of this checkpoint
    last_checkpoint: Path | None = None  # go on from this checkpoint, optimiser and epoch too
    wandb_id: str | None = None
    wandb_project: str = "sslsv"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.stop_at_epoch is not None and self.stop_at_epoch < 1:
            raise ConfigError(f"stop_at_epoch: must be at least 1, got {self.stop_at_epoch}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate: must be positive, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay: must be 0 or more, got {self.weight_decay}")
        if self.learning_rate_sched != "default" and not (
            0 <= self.learning_rate_min <= self.learning_rate
        ):
            raise ConfigError(
                f"learning_rate_min: must be between 0 and learning_rate {self.learning_rate}, "
                f"got {self.learning_rate_min}"
            )
        if self.learning_rate_sched == "warmup+cosine" and not (
            0 <= self.learning_rate_warmup < self.epochs
        ):
            raise ConfigError(
                f"learning_rate_warmup: must be at least 0 and less than epochs {self.epochs}, "
                f"got {self.learning_rate_warmup}"
            )
        if self.wandb_id is not None:
            raise ConfigError("wandb_id: logging to wandb is not available yet; remove the key")
