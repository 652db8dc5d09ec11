"""The contract of a method: views of utterances in, loss out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.ssps import SSPSConfig

Sampling = Literal["single", "siamese", "multicrop"]
Outputs = dict[str, Tensor]
Metrics = Mapping[str, Tensor | float]


@dataclass(kw_only=True)
class MethodConfig:
    """A method's own dataclass adds its fields."""

    type: str  # which method
    ssps: SSPSConfig | None = None  # positives of other utterances, where the method has any

    needs_sequence: ClassVar[bool] = False  # of an encoder without pooling, (B, D, F)

    def require_positive(self, *names: str) -> None:
        """Refuse fields that are not finite and above 0."""
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        """Refuse sizes that do not fit together: ConfigError("section.field: what is wrong").

        ``batch_size`` counts utterances over all processes.
        """

    def check_labels(self, count: int) -> None:
        """Refuse a training list with this many different labels, likewise."""


@dataclass(frozen=True)
class Progress:
    """How far the training is; schedules and a method's own draws are pure functions of it."""

    step: int  # optimiser steps done
    steps: int  # optimiser steps in all
    epoch: int  # epochs done
    epochs: int  # epochs in all
    seed: int = 0  # of the run


class Method(nn.Module):
    """An encoder, what is trained on top of it, and a loss.

    A subclass states which sampling it needs (``views``) and which of its outputs are positives
    (``positives``), implements ``forward`` and ``loss``, and overrides hooks where it must.
    It knows neither the trainer nor any other section of the configuration. ``forward`` and
    ``loss`` change no state (but running statistics of batch norm); ``on_step_end`` does.
    """

    views: ClassVar[Sampling]
    also_views: ClassVar[tuple[Sampling, ...]] = ()  # other samplings that it takes
    positives: ClassVar[tuple[str, ...]] = ()
    embeds_with: ClassVar[str] = "encoder"  # the encoder that gives the representation

    def __init__(self, config: MethodConfig, encoder: Encoder):
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.progress = Progress(0, 1, 0, 1)  # kept up by the trainer: of the step at hand

    def forward(self, views: list[Tensor]) -> Outputs:
        """Views, each (N, T_v), -> named batch-first tensors (N, …).

        Must use every trainable parameter, so that wrappers such as DistributedDataParallel and
        ``torch.compile`` see them all; what ``loss`` needs of them is an output. Each row depends
        on its own utterance only (but for batch norm), so that DataParallel may split a batch.
        """
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss of this process's rows and metrics to log: ``train/loss`` and others, device
        scalars without gradient or numbers that the host knows anyway."""
        raise NotImplementedError

    def embed(self, wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """The representation to evaluate: (B, T) -> (B, D); see ``Encoder.embed``."""
        return self.embedder.embed(wave, lengths)

    @property
    def embedder(self) -> Encoder:
        """The encoder that gives the representation."""
        return getattr(self, self.embeds_with)

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups. A group with ``fixed_lr: True`` keeps the initial learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def on_data(self, rows: int) -> None:
        """Once, before a checkpoint is loaded: how many rows the training list has."""

    def memories(self) -> dict[str, Tensor]:
        """What only a training needs beside the weights, such as an embedding of each row: kept in
        model_latest.pt, and loaded in place. Empty before ``on_data``."""
        return {}

    def wants_pass(self) -> bool:
        """Whether ``observe`` must see each batch of the coming epoch before it is trained on."""
        return False

    def observe(self, batch: Batch) -> None:
        """Fill memories from a batch, without gradient."""

    def on_train_start(self) -> None:
        """Before the first epoch of a run or of a resumed run."""

    def on_epoch_start(self) -> None:
        """Before each epoch."""

    def on_gradients(self) -> None:
        """Between the backward pass and the optimiser step: clip or drop gradients here."""

    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        """After each optimiser step: where teachers and queues are updated from what ``forward``
        gave. ``frozen`` is a device scalar, 1.0 once a loss was not finite: whatever is updated
        here must then stay as it is, without asking the host."""
