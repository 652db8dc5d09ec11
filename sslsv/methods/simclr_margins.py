"""SimCLR with margins."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.margins import MarginConfig, check_temperature, make_margin
from sslsv.methods.simclr import SimCLR, SimCLRConfig, all_pairs
from sslsv.registry import register_method


@dataclass(kw_only=True)
class SimCLRMarginsConfig(SimCLRConfig):
    loss: MarginConfig = field(default_factory=MarginConfig)  # its scale replaces temperature

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature, SimCLRConfig.temperature, self.loss)


@register_method("simclr_margins", SimCLRMarginsConfig)
class SimCLRMargins(SimCLR):
    """Additive Margin in Contrastive Self-Supervised Frameworks to Learn Discriminative Speaker
    Representations (arXiv 2404.14913), with other margins (margins.py) as well.

    Symmetric: NT-Xent of SimCLR, where both views are anchors and all other rows are negatives.
    Not symmetric: anchors are first views, and keys are second views. In both, logits of positives
    carry the margin.
    """

    config: SimCLRMarginsConfig

    def __init__(self, config: SimCLRMarginsConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.margin = make_margin(config.loss)

    def forward(self, views: list[Tensor]) -> Outputs:
        return super().forward(views) | self.margin.outputs(len(views[0]))

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        z1, z2 = outputs["z1"], outputs["z2"]
        norms = self._norms(outputs)
        margin = self.margin.value(outputs, self.progress, norms)
        if self.config.loss.symmetric:
            cosines, itself, positive = all_pairs(z1, z2)  # (2N, 2·W·N)
            logits = self.margin.logits(cosines, positive, margin, norms)
            logits = logits.scatter(1, itself[:, None], float("-inf"))
        else:
            keys = distributed.gather(F.normalize(z2, dim=-1))  # (W·N, D)
            cosines = F.normalize(z1, dim=-1) @ keys.T  # (N, W·N)
            positive = torch.arange(len(z1), device=z1.device) + distributed.rank() * len(z1)
            logits = self.margin.logits(cosines, positive, margin, norms)
        loss = F.cross_entropy(logits, positive) + self.margin.penalty(norms)
        return loss, {"train/loss": loss.detach(), "train/margin": margin.detach().mean()}

    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        cosines = F.cosine_similarity(outputs["z1"], outputs["z2"])
        self.margin.update(cosines, self._norms(outputs), frozen)

    def _norms(self, outputs: Outputs) -> Tensor:
        """Lengths of anchors, (2N, 1) or (N, 1)."""
        views = ("z1", "z2") if self.config.loss.symmetric else ("z1",)
        return torch.cat([outputs[view] for view in views]).norm(dim=-1, keepdim=True)
