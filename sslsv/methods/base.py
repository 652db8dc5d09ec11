"""The contract of a method: views of utterances in, loss out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder, EncoderConfig

Sampling = Literal["single", "siamese", "multicrop"]
Outputs = dict[str, Tensor]


@dataclass(kw_only=True)
class MethodConfig:
    """A method's own dataclass adds its fields."""

    type: str  # which method

    def check(self, batch_size: int, encoder: EncoderConfig) -> None:
        """Refuse sizes that do not fit together: ConfigError("section.field: what is wrong").

        ``batch_size`` counts utterances over all processes.
        """


@dataclass(frozen=True)
class Progress:
    """How far the training is; schedules are pure functions of it."""

    step: int  # optimiser steps done
    steps: int  # optimiser steps in all
    epoch: int  # epochs done
    epochs: int  # epochs in all


class Method(nn.Module):
    """An encoder, what is trained on top of it, and a loss.

    A subclass states which sampling it needs (``views``) and which of its outputs are positives
    (``positives``), implements ``forward`` and ``loss``, and overrides hooks where it must.
    It knows neither the trainer nor any other section of the configuration.
    """

    views: ClassVar[Sampling]
    positives: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: MethodConfig, encoder: Encoder):
        super().__init__()
        self.config = config
        self.encoder = encoder

    def forward(self, views: list[Tensor]) -> Outputs:
        """Views, each (N, T_v), -> named batch-first tensors (N, …).

        Must use every trainable parameter, so that wrappers such as DistributedDataParallel and
        ``torch.compile`` see them all.
        """
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of this process's rows and metrics to log, all scalars left on the device."""
        raise NotImplementedError

    def embed(self, wave: Tensor) -> Tensor:
        """The representation to evaluate: (B, T) -> (B, D)."""
        return self.encoder(wave)

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups. A group with ``fixed_lr: True`` keeps the initial learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def on_train_start(self, progress: Progress) -> None:
        """Before the first epoch of a run or of a resumed run."""

    def on_epoch_start(self, progress: Progress) -> None:
        """Before each epoch."""

    def on_step_end(self, progress: Progress, frozen: Tensor) -> None:
        """After each optimiser step. ``frozen`` is a device scalar, 1.0 once a loss was not
        finite: whatever is updated here must then stay as it is, without asking the host."""
