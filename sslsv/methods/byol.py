"""BYOL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.momentum import Momentum, MomentumConfig
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.registry import register_method


@dataclass(kw_only=True)
class BYOLConfig(MomentumConfig, SiameseConfig):
    start_tau: float = 0.996  # tau_base of the paper
    projector_hidden_dim: int = 4096
    projector_output_dim: int = 256
    predictor_hidden_dim: int = 4096  # width of the predictor

    def __post_init__(self) -> None:
        MomentumConfig.__post_init__(self)
        SiameseConfig.__post_init__(self)
        self.require_positive("predictor_hidden_dim")


def regression(p: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors, ``2 - 2 cos`` (arXiv 2006.07733, eq. 2), mean over rows.

    p, target: (N, D); no gradient flows into the target.
    """
    return 2 - 2 * F.cosine_similarity(p, target.detach(), dim=-1).mean()


@register_method("byol", BYOLConfig)
class BYOL(Momentum, Siamese):
    """Bootstrap Your Own Latent (arXiv 2006.07733): from one view the student predicts what the
    teacher makes of the other.

    Each view goes through the networks by itself, as in the paper. The projector has a hidden
    layer more than the paper's.
    """

    positives = ("z1", "z2")
    config: BYOLConfig
    encoder_momentum: nn.Module
    projector_momentum: nn.Module

    def __init__(self, config: BYOLConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.add_teachers("encoder", "projector")
        dim = config.projector_output_dim if config.enable_projector else encoder.encoder_dim
        self.predictor = nn.Sequential(
            nn.Linear(dim, config.predictor_hidden_dim),
            nn.BatchNorm1d(config.predictor_hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(config.predictor_hidden_dim, dim),
        )

    def forward(self, views: list[Tensor]) -> Outputs:
        p1, p2 = (self.predictor(self.projector(self.encoder(view))) for view in views)
        with torch.no_grad():
            z1, z2 = (self.projector_momentum(self.encoder_momentum(view)) for view in views)
        return {"p1": p1, "p2": p2, "z1": z1, "z2": z2}  # (N, D) each

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = regression(outputs["p1"], outputs["z2"]) + regression(outputs["p2"], outputs["z1"])
        return loss, {"train/loss": loss.detach(), "train/tau": self.tau}
