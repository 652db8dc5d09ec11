"""SimCLR."""

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
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.registry import register_method


@dataclass(kw_only=True)
class SimCLRConfig(SiameseConfig):
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    temperature: float = 0.5  # tau

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size < 2:
            raise ConfigError(
                f"trainer.batch_size: 1 leaves {self.type} no negatives; use 2 or more"
            )


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (arXiv 2002.05709, eq. 1), a scalar.

    z1, z2: (N, D), row i of each from the same utterance. Every one of this process's 2N rows is
    an anchor; its positive is the other view, its negatives all other rows of all processes.
    """
    cosines, itself, positive = all_pairs(z1, z2)
    logits = (cosines / temperature).scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, positive)


def all_pairs(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of this process's 2N rows, both views, to the rows of all processes, (2N, 2·W·N);
    in which column each row finds itself, and in which its other view, (2N,) each."""
    n = len(z1)
    z = F.normalize(torch.stack((z1, z2)), dim=-1)  # (2, N, D)
    keys = torch.cat([distributed.gather(view) for view in z])  # (2·W·N, D), view-major
    first = torch.arange(n, device=z.device) + distributed.rank() * n
    second = first + distributed.world_size() * n
    itself, positive = torch.cat((first, second)), torch.cat((second, first))
    return z.flatten(0, 1) @ keys.T, itself, positive


@register_method("simclr", SimCLRConfig)
class SimCLR(Siamese):
    """A Simple Framework for Contrastive Learning of Visual Representations (arXiv 2002.05709)."""

    config: SimCLRConfig

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = nt_xent(outputs["z1"], outputs["z2"], self.config.temperature)
        return loss, {"train/loss": loss.detach()}
