"""VICReg."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.barlow_twins import off_diagonal
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.registry import register_method

_EPS = 1e-4  # added to a variance before its root


@dataclass(kw_only=True)
class VICRegConfig(SiameseConfig):
    inv_weight: float = 1.0  # lambda, of the invariance term
    var_weight: float = 1.0  # mu, of the variance term
    cov_weight: float = 0.04  # nu, of the covariance term
    halve_variance: bool = False  # mean over the views of the variance term, as the paper's code

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inv_weight", "var_weight", "cov_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size < 2:
            raise ConfigError(
                f"trainer.batch_size: {self.type} takes variances over a batch; use 2 or more, "
                "got 1"
            )


def variance(z: Tensor) -> Tensor:
    """``1/D sum_j max(0, 1 - sqrt(Var(z_j) + eps))`` (arXiv 2105.04906, eq. 1-2); z: (N, D)."""
    return F.relu(1 - (z.var(dim=0) + _EPS).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """``1/D sum_{i != j} C_ij^2`` with the unbiased covariance C (eq. 3-4); z: (N, D)."""
    z = z - z.mean(dim=0)
    c = z.T @ z / (len(z) - 1)  # (D, D)
    return off_diagonal(c).square().sum() / len(c)


def vicreg(
    z1: Tensor,
    z2: Tensor,
    inv_weight: float,
    var_weight: float,
    cov_weight: float,
    redundancy: Callable[[Tensor], Tensor] = covariance,
) -> Tensor:
    """Invariance of this process's rows, variance and redundancy of all, summed over the views
    (eq. 6); z1, z2: (N, D)."""
    all1, all2 = distributed.gather(z1), distributed.gather(z2)
    return (
        inv_weight * F.mse_loss(z1, z2)  # mean over D too, as in the paper's code
        + var_weight * (variance(all1) + variance(all2))
        + cov_weight * (redundancy(all1) + redundancy(all2))
    )


@register_method("vicreg", VICRegConfig)
class VICReg(Siamese):
    """Variance-Invariance-Covariance Regularization (arXiv 2105.04906)."""

    config: VICRegConfig
    redundancy = staticmethod(covariance)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        c, z1, z2 = self.config, outputs["z1"], outputs["z2"]
        var_weight = c.var_weight / 2 if c.halve_variance else c.var_weight
        loss = vicreg(z1, z2, c.inv_weight, var_weight, c.cov_weight, self.redundancy)
        return loss, {"train/loss": loss.detach()}
