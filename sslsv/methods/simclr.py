"""SimCLR."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Method, MethodConfig, Metrics, Outputs
from sslsv.methods.heads import projector
from sslsv.registry import register_method


@dataclass(kw_only=True)
class SimCLRConfig(MethodConfig):
    enable_projector: bool = True  # false: the loss sees the embeddings themselves
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    temperature: float = 0.5  # tau

    def __post_init__(self) -> None:
        for name in ("projector_hidden_dim", "projector_output_dim", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size < 2:
            raise ConfigError("trainer.batch_size: 1 leaves simclr no negatives; use 2 or more")


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (arXiv 2002.05709, eq. 1), a scalar.

    z1, z2: (N, D), row i of each from the same utterance. Every one of this process's 2N rows is
    an anchor; its positive is the other view, its negatives all other rows of all processes.
    """
    n = len(z1)
    z = F.normalize(torch.stack((z1, z2)), dim=-1)  # (2, N, D)
    keys = torch.cat([distributed.gather(view) for view in z])  # (2·W·N, D), view-major
    logits = z.flatten(0, 1) @ keys.T / temperature  # (2N, 2·W·N)

    first = torch.arange(n, device=z.device) + distributed.rank() * n
    second = first + distributed.world_size() * n
    itself, positive = torch.cat((first, second)), torch.cat((second, first))
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, positive)


@register_method("simclr", SimCLRConfig)
class SimCLR(Method):
    """A Simple Framework for Contrastive Learning of Visual Representations (arXiv 2002.05709).

    Both views go through the network as one batch, so batch norm sees 2N rows, as in the paper.
    """

    views = "siamese"
    positives = ("z2",)
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector: nn.Module = nn.Identity()
        if config.enable_projector:
            self.projector = projector(
                encoder.encoder_dim, config.projector_hidden_dim, config.projector_output_dim
            )

    def forward(self, views: list[Tensor]) -> Outputs:
        z1, z2 = self.projector(self.encoder(torch.cat(views))).chunk(2)
        return {"z1": z1, "z2": z2}  # (N, D) each

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = nt_xent(outputs["z1"], outputs["z2"], self.config.temperature)
        return loss, {"train/loss": loss.detach()}
