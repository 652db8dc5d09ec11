"""SimSiam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.siamese import Siamese, SiameseConfig, unit_std
from sslsv.registry import register_method


@dataclass(kw_only=True)
class SimSiamConfig(SiameseConfig):
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 2048  # d
    pred_hidden_dim: int = 512  # of the predictor, a bottleneck

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("pred_hidden_dim")
        if self.projector_layers != 3:
            raise ConfigError(
                f"projector_layers: the projector of simsiam has 3, got {self.projector_layers}"
            )


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """``D(p, stopgrad(z))`` (arXiv 2011.10566, eq. 1 and 3), mean over rows; p, z: (N, D)."""
    return -F.cosine_similarity(p, z.detach(), dim=-1).mean()


@register_method("simsiam", SimSiamConfig)
class SimSiam(Siamese):
    """Exploring Simple Siamese Representation Learning (arXiv 2011.10566): from one view the
    network predicts what it makes of the other, through which no gradient flows.

    Each view goes through the network by itself, and the predictor keeps the initial learning
    rate, as in the paper.
    """

    positives = ("z1", "z2")
    config: SimSiamConfig

    def __init__(self, config: SimSiamConfig, encoder: Encoder):
        super().__init__(config, encoder)
        dim = config.projector_output_dim if config.enable_projector else encoder.encoder_dim
        self.predictor = nn.Sequential(
            nn.Linear(dim, config.pred_hidden_dim, bias=False),
            nn.BatchNorm1d(config.pred_hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(config.pred_hidden_dim, dim),
        )

    def make_projector(self) -> nn.Module:
        hidden, out = self.config.projector_hidden_dim, self.config.projector_output_dim
        last = nn.Linear(hidden, out)
        last.bias.requires_grad_(False)  # the batch norm after it takes any bias away
        return nn.Sequential(
            nn.Linear(self.encoder.encoder_dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            last,
            nn.BatchNorm1d(out, affine=False),
        )

    def forward(self, views: list[Tensor]) -> Outputs:
        z1, z2 = (self.projector(self.encoder(view)) for view in views)
        return {"z1": z1, "z2": z2, "p1": self.predictor(z1), "p2": self.predictor(z2)}  # (N, D)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = (
            negative_cosine(outputs["p1"], outputs["z2"]) / 2
            + negative_cosine(outputs["p2"], outputs["z1"]) / 2
        )
        return loss, {"train/loss": loss.detach(), "train/z_std": unit_std(outputs["z1"])}

    def param_groups(self) -> list[dict[str, Any]]:
        predictor = list(self.predictor.parameters())
        own = {id(p) for p in predictor}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        return [{"params": rest}, {"params": predictor, "fixed_lr": True}]
