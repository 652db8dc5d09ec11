"""VIbCReg."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.errors import ConfigError
from sslsv.methods.barlow_twins import off_diagonal
from sslsv.methods.vicreg import VICReg, VICRegConfig
from sslsv.methods.whitening import IterNorm
from sslsv.registry import register_method

_GROUPS = 64  # of dimensions that IterNorm whitens by themselves


@dataclass(kw_only=True)
class VIbCRegConfig(VICRegConfig):
    cov_weight: float = 8.0  # nu, of the covariance term

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.enable_projector:
            raise ConfigError(
                "enable_projector: vibcreg whitens what its projector gives; set it to true"
            )
        if self.projector_output_dim % _GROUPS:
            raise ConfigError(
                f"projector_output_dim: must be a multiple of the {_GROUPS} groups that vibcreg "
                f"whitens, got {self.projector_output_dim}"
            )


def correlation(z: Tensor) -> Tensor:
    """``1/D^2 sum_{i != j} R_ij^2`` with the correlations R of the columns (arXiv 2109.00783):
    the covariance term made independent of scale and of D; z: (N, D)."""
    z = F.normalize(z - z.mean(dim=0), dim=0)
    r = z.T @ z  # (D, D)
    return off_diagonal(r).square().sum() / r.numel()


@register_method("vibcreg", VIbCRegConfig)
class VIbCReg(VICReg):
    """Variance-Invariance-better-Covariance Regularization (Computer Vision Self-supervised
    Learning Methods on Time Series, arXiv 2109.00783): VICReg with correlations in place of
    covariances, and IterNorm at the end of the projector (by statistics of each process)."""

    config: VIbCRegConfig
    redundancy = staticmethod(correlation)

    def make_projector(self) -> nn.Module:
        return nn.Sequential(
            *super().make_projector().children(),
            IterNorm(self.config.projector_output_dim, _GROUPS),
        )
