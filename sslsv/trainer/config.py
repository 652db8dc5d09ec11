"""Settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslsv.errors import ConfigError
from sslsv.trainer.schedules import ScheduleName

Scaling = Literal["none", "linear", "sqrt"]


@dataclass(kw_only=True)
class TrainerConfig:
    """YAML section ``trainer``."""

    epochs: int = 100  # length of the training and of its schedules
    stop_at_epoch: int | None = None  # end after this many epochs, schedules unchanged
    batch_size: int = 256  # utterances of a step over all processes
    accumulation: int = 1  # parts of a batch that are computed one after the other, to save memory
    learning_rate: float = 0.001  # initial, or highest after a warm-up
    learning_rate_scaling: Scaling = "none"  # with batch_size / 256: none, linear or its sqrt
    learning_rate_sched: ScheduleName = "default"  # x 0.95 each 5 epochs, or half a cosine
    learning_rate_min: float = 1e-5  # where a cosine ends
    learning_rate_warmup: int = 10  # epochs, for warmup+cosine
    weight_decay: float = 0.0  # of the optimiser; at the start, where it has a schedule
    weight_decay_end: float | None = None  # where half a cosine from weight_decay ends
    weight_decay_all: bool = True  # false: biases and parameters of norms are not decayed
    optimizer: Literal["adam", "sgd", "adamw", "lars"] = "adam"  # sgd, lars have momentum 0.9
    clip_grad_norm: float | None = None  # largest norm of all gradients together
    clip_grad_tensor_norm: float | None = None  # largest norm of the gradient of each tensor
    patience: int = 100  # epochs without a better tracked metric before stopping
    tracked_metric: str = "val/sv_cosine/voxceleb1_test_O/eer"  # chooses model_best.pt
    tracked_mode: Literal["min", "max"] = "min"  # which values of it are better
    ddp_sync_batchnorm: bool = True  # batch norm statistics over all GPUs
    # Of the network, losses stay float32; true: bf16 where the device has instructions for it
    mixed_precision: Literal[True, False, "bf16", "fp16"] = False
    # Start from the weights of this checkpoint; of DINO's, from its teacher
    init_weights: Path | None = None
    last_checkpoint: Path | None = None  # go on from this checkpoint, optimiser and epoch too
    checkpoint_every_minutes: float | None = None  # model_latest.pt within an epoch too
    keep_last_n: int | None = None  # how many model_epoch-N.pt are kept; null: all
    avg_count: int = 0  # model_avg.pt: mean of the weights after each of the last so many epochs
    wandb_mode: Literal["online", "offline", "disabled"] | None = (
        None  # null: as `wandb online` set
    )
    wandb_id: str | None = None  # of a run of wandb to go on with
    wandb_project: str = "sslsv"  # its name there

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "accumulation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("stop_at_epoch", "keep_last_n"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
        for name in ("clip_grad_norm", "clip_grad_tensor_norm", "checkpoint_every_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}: must be positive, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate: must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name}: must be 0 or more, got {value}")
        if not 0 <= self.avg_count <= self.epochs:
            raise ConfigError(
                f"avg_count: must be from 0 to epochs {self.epochs}, got {self.avg_count}"
            )
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"accumulation: batch_size {self.batch_size} does not divide into "
                f"{self.accumulation} parts"
            )
        if self.learning_rate_sched != "default" and not (
            0 <= self.learning_rate_min <= self.peak_learning_rate
        ):
            raise ConfigError(
                f"learning_rate_min: must be between 0 and learning_rate "
                f"{self.peak_learning_rate}, got {self.learning_rate_min}"
            )
        if self.learning_rate_sched == "warmup+cosine" and not (
            0 <= self.learning_rate_warmup < self.epochs
        ):
            raise ConfigError(
                f"learning_rate_warmup: must be at least 0 and less than epochs {self.epochs}, "
                f"got {self.learning_rate_warmup}"
            )

    @property
    def peak_learning_rate(self) -> float:
        """``learning_rate``, scaled with the size of a batch where that is asked for."""
        ratio = self.batch_size / 256
        factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
        return self.learning_rate * factors[self.learning_rate_scaling]
