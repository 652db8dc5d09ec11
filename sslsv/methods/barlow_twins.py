"""Barlow Twins."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.registry import register_method

_EPS = 1e-5  # of the batch norm, under the root


@dataclass(kw_only=True)
class BarlowTwinsConfig(SiameseConfig):
    lamda: float = 0.005  # lambda, weight of the redundancy term
    scale: float = 0.025  # of the whole loss; the paper's equation has 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("lamda", "scale")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size < 2:
            raise ConfigError(
                "trainer.batch_size: barlow_twins correlates over a batch; use 2 or more, got 1"
            )


def off_diagonal(x: Tensor) -> Tensor:
    """All elements of (D, D) that are not on its diagonal, (D - 1, D), without a copy."""
    d = len(x)
    return x.flatten()[:-1].view(d - 1, d + 1)[:, 1:]


def standardise(z: Tensor) -> Tensor:
    """(N, D) with mean 0 and variance 1 of each column: batch norm without parameters."""
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + _EPS).sqrt()


def barlow_twins(z1: Tensor, z2: Tensor, lamda: float) -> Tensor:
    """``sum_i (1 - c_ii)^2 + lambda sum_i sum_{j != i} c_ij^2`` (arXiv 2103.03230, eq. 1-2).

    z1, z2: (N, D). c is the mean over processes of their cross-correlations, each standardised by
    the process's own rows, as in the paper's code.
    """
    c = distributed.mean_over_processes(standardise(z1).T @ standardise(z2) / len(z1))  # (D, D)
    return (1 - c.diagonal()).square().sum() + lamda * off_diagonal(c).square().sum()


@register_method("barlow_twins", BarlowTwinsConfig)
class BarlowTwins(Siamese):
    """Self-Supervised Learning via Redundancy Reduction (arXiv 2103.03230)."""

    config: BarlowTwinsConfig

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = barlow_twins(outputs["z1"], outputs["z2"], self.config.lamda) * self.config.scale
        return loss, {"train/loss": loss.detach()}
