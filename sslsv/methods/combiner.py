"""Combiner: several losses, on representations and on projections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.barlow_twins import barlow_twins
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.methods.vicreg import vicreg
from sslsv.registry import register_method

# Hyper-parameters of each loss, and what they are where the configuration does not say.
_DEFAULTS: dict[str, dict[str, float]] = {
    "infonce": {"temperature": 0.2},
    "vicreg": {"inv_weight": 1.0, "var_weight": 1.0, "cov_weight": 0.04},
    "barlowtwins": {"lamda": 0.05, "scale": 0.025},
}


@dataclass(kw_only=True)
class LossConfig:
    """An entry of ``Y_losses`` or ``Z_losses``; hyper-parameters belong to one type each."""

    type: Literal["infonce", "vicreg", "barlowtwins"]  # which loss
    weight: float = 1.0  # in the sum of losses
    temperature: float | None = None  # infonce: 0.2 where not given
    inv_weight: float | None = None  # vicreg: 1
    var_weight: float | None = None  # vicreg: 1
    cov_weight: float | None = None  # vicreg: 0.04
    lamda: float | None = None  # barlowtwins: 0.05
    scale: float | None = None  # barlowtwins: 0.025

    def __post_init__(self) -> None:
        for name in [name for names in _DEFAULTS.values() for name in names]:
            if getattr(self, name) is not None and name not in _DEFAULTS[self.type]:
                own = ", ".join(_DEFAULTS[self.type])
                raise ConfigError(f"{name}: is not of '{self.type}', which has {own}")
        for name, value in {"weight": self.weight, **self.parameters()}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}: must be 0 or more, got {value}")
            if value == 0 and name in ("weight", "temperature", "scale"):
                raise ConfigError(f"{name}: must be positive, got 0")

    def parameters(self) -> dict[str, float]:
        """Hyper-parameters of the loss, given or by default."""
        given = {name: getattr(self, name) for name in _DEFAULTS[self.type]}
        return _DEFAULTS[self.type] | {k: v for k, v in given.items() if v is not None}


@dataclass(kw_only=True)
class CombinerConfig(SiameseConfig):
    Y_losses: list[LossConfig] = field(default_factory=list)  # on the encoder's embeddings
    Z_losses: list[LossConfig] = field(default_factory=list)  # on what the projector gives

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.Y_losses or self.Z_losses):
            raise ConfigError("Y_losses: give at least one entry here or in Z_losses")
        if self.Z_losses and not self.enable_projector:
            raise ConfigError(
                "Z_losses: there are no projections with enable_projector: false; set it to true "
                "or move these losses to Y_losses"
            )

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size < 2:
            raise ConfigError("trainer.batch_size: combiner compares utterances; use 2 or more")


def info_nce(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """``-mean log(exp(z1_i . z2_i / tau) / sum_j exp(z1_i . z2_j / tau))`` with unit vectors
    (arXiv 2207.05506, eq. 1); z1, z2: (N, D), keys of all processes."""
    logits = _similarities(z1, z2) / temperature
    return F.cross_entropy(logits, _own(z1))


def accuracy(z1: Tensor, z2: Tensor) -> Tensor:
    """Share of this process's rows that are closest to their own other view."""
    return (_similarities(z1.detach(), z2.detach()).argmax(dim=1) == _own(z1)).float().mean()


def _similarities(z1: Tensor, z2: Tensor) -> Tensor:
    return F.normalize(z1, dim=-1) @ distributed.gather(F.normalize(z2, dim=-1)).T  # (N, W·N)


def _own(z: Tensor) -> Tensor:
    """Column of each row's positive."""
    return torch.arange(len(z), device=z.device) + distributed.rank() * len(z)


def _barlow_twins(z1: Tensor, z2: Tensor, lamda: float, scale: float) -> Tensor:
    return scale * barlow_twins(z1, z2, lamda)


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "infonce": info_nce,
    "vicreg": vicreg,
    "barlowtwins": _barlow_twins,
}


@register_method("combiner", CombinerConfig)
class Combiner(Siamese):
    """Label-Efficient Self-Supervised Speaker Verification With Information Maximization and
    Contrastive Learning (arXiv 2207.05506): weighted sums of losses on the embeddings Y and on
    their projections Z."""

    positives = ("y2", "z2")
    config: CombinerConfig

    def make_projector(self) -> nn.Module:  # one that no loss sees would not be trained
        return super().make_projector() if self.config.Z_losses else nn.Identity()

    def forward(self, views: list[Tensor]) -> Outputs:
        y = self.encoder(torch.cat(views))
        names, parts = ("y1", "y2", "z1", "z2"), (*y.chunk(2), *self.projector(y).chunk(2))
        return dict(zip(names, parts, strict=True))  # (N, D) each

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        total = outputs["y1"].new_zeros(())
        metrics: dict[str, Tensor] = {}
        for name, losses in (("Y", self.config.Y_losses), ("Z", self.config.Z_losses)):
            if not losses:
                continue
            z1, z2 = outputs[f"{name.lower()}1"], outputs[f"{name.lower()}2"]
            terms = [its.weight * _LOSSES[its.type](z1, z2, **its.parameters()) for its in losses]
            part = torch.stack(terms).sum()
            total = total + part
            metrics[f"train/{name}_loss"] = part.detach()
            metrics[f"train/{name}_accuracy"] = accuracy(z1, z2)
        return total, {"train/loss": total.detach(), **metrics}
