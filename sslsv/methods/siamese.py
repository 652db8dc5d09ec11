"""What methods on two views of an utterance share: an encoder and a projector on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.encoders.base import Encoder
from sslsv.methods.base import Method, MethodConfig, Outputs, Sampling
from sslsv.methods.heads import projector


@dataclass(kw_only=True)
class SiameseConfig(MethodConfig):
    enable_projector: bool = True  # false: the loss sees the embeddings themselves
    projector_hidden_dim: int = 8192  # width of the projector
    projector_output_dim: int = 8192  # of what the loss compares
    projector_layers: int = 3  # linear ones; SimCLR, MoCo v2 and BYOL have 2 in their papers

    def __post_init__(self) -> None:
        self.require_positive("projector_hidden_dim", "projector_output_dim", "projector_layers")


class Siamese(Method):
    """Both views go through the network as one batch, so that batch norm sees 2N rows."""

    views: ClassVar[Sampling] = "siamese"
    positives: ClassVar[tuple[str, ...]] = ("z2",)
    config: SiameseConfig

    def __init__(self, config: SiameseConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.projector = self.make_projector() if config.enable_projector else nn.Identity()

    def make_projector(self) -> nn.Module:
        """From an embedding to what the loss compares."""
        return projector(
            self.encoder.encoder_dim,
            self.config.projector_hidden_dim,
            self.config.projector_output_dim,
            self.config.projector_layers,
        )

    def forward(self, views: list[Tensor]) -> Outputs:
        z1, z2 = self.projector(self.encoder(torch.cat(views))).chunk(2)
        return {"z1": z1, "z2": z2}  # (N, D) each


def unit_std(z: Tensor) -> Tensor:
    """Standard deviation over rows of unit length, mean over dimensions, of (N, D): 1 / sqrt(D)
    where they are spread evenly, 0 where they have collapsed."""
    return F.normalize(z.detach(), dim=-1).std(dim=0).mean()
