"""W-MSE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.siamese import Siamese, SiameseConfig, unit_std
from sslsv.methods.whitening import cholesky_whitening
from sslsv.randomness import generator
from sslsv.registry import register_method


@dataclass(kw_only=True)
class WMSEConfig(SiameseConfig):
    projector_hidden_dim: int = 1024
    projector_output_dim: int = 64
    projector_layers: int = 2
    whitening_iters: int = 1  # partitions of a batch, over which the loss is averaged
    whitening_size: int = 128  # rows that are whitened together
    whitening_eps: float = 0.0  # share of the identity in the covariance

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("whitening_iters", "whitening_size")
        if not 0 <= self.whitening_eps < 1:
            raise ConfigError(f"whitening_eps: must be from 0 to below 1, got {self.whitening_eps}")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size % self.whitening_size:
            raise ConfigError(
                f"method.whitening_size: trainer.batch_size {batch_size} is not a multiple of "
                f"{self.whitening_size}; change one of them"
            )
        name, dim = "method.projector_output_dim", self.projector_output_dim
        if not self.enable_projector:
            name, dim = "encoder.encoder_dim", encoder.encoder_dim
        if self.whitening_size <= dim:
            raise ConfigError(
                f"method.whitening_size: {self.whitening_size} rows cannot be whitened in the "
                f"{dim} dimensions of {name}; use more rows or fewer dimensions"
            )


def whitened_mse(z1: Tensor, z2: Tensor, groups: Tensor, eps: float = 0.0) -> Tensor:
    """``mean(2 - 2 cos(w1, w2))`` where w are the whitened rows (arXiv 2007.06346, eq. 4, with the
    distance of normalised vectors).

    z1, z2: (N, D); groups: (G, S), the rows that are whitened together, each view by itself.
    """
    w1, w2 = (cholesky_whitening(z[groups], eps) for z in (z1, z2))  # (G, S, D)
    return (2 - 2 * F.cosine_similarity(w1, w2, dim=-1)).mean()


@register_method("wmse", WMSEConfig)
class WMSE(Siamese):
    """Whitening for Self-Supervised Representation Learning (arXiv 2007.06346).

    Over the gathered batch, so that each process computes the same loss.
    """

    config: WMSEConfig

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        z1, z2 = distributed.gather(outputs["z1"]), distributed.gather(outputs["z2"])
        groups = self._groups(len(z1)).to(z1.device, non_blocking=True)
        loss = whitened_mse(z1, z2, groups, self.config.whitening_eps)
        return loss, {"train/loss": loss.detach(), "train/z_std": unit_std(z1)}

    def _groups(self, rows: int) -> Tensor:
        """Random partitions of the rows, one after the other: (iters · rows / size, size)."""
        rng = generator("w-mse", self.progress.seed, self.progress.step)
        orders = [
            torch.from_numpy(rng.permutation(rows)) for _ in range(self.config.whitening_iters)
        ]
        return torch.cat(orders).view(-1, self.config.whitening_size)
