"""MoCo with margins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.margins import MarginConfig, check_temperature, make_margin
from sslsv.methods.moco import MoCo, MoCoConfig
from sslsv.registry import register_method

_PAIRS = (("q1", "k2"), ("q2", "k1"))  # queries, and the keys that are their positives


@dataclass(kw_only=True)
class MoCoMarginsConfig(MoCoConfig):
    loss: MarginConfig  # its scale replaces temperature

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature, MoCoConfig.temperature, self.loss)


@register_method("moco_margins", MoCoMarginsConfig)
class MoCoMargins(MoCo):
    """Additive Margin in Contrastive Self-Supervised Frameworks to Learn Discriminative Speaker
    Representations (arXiv 2404.14913), with other margins (margins.py) as well.

    The loss of MoCo where logits of positives carry the margin. Symmetric: both views are queries;
    not symmetric: first views only. Lengths of embeddings are those of queries as the network
    gives them, before they are normalised.
    """

    config: MoCoMarginsConfig

    def __init__(self, config: MoCoMarginsConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.margin = make_margin(config.loss)

    def forward(self, views: list[Tensor]) -> Outputs:
        return super().forward(views) | self.margin.outputs(len(views[0]))

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        norms, labels = self._norms(outputs), batch.labels
        margins = [self.margin.value(outputs, self.progress, x) for x in norms]
        positive = torch.zeros_like(labels)  # the first column
        logits = [
            self.without_collisions(self.margin.logits(cosines, positive, m, x), labels)
            for cosines, m, x in zip(
                self.cosines(outputs)[: len(norms)], margins, norms, strict=True
            )
        ]
        losses = [
            F.cross_entropy(y, positive) + self.margin.penalty(x)
            for y, x in zip(logits, norms, strict=True)
        ]
        loss, margin = torch.stack(losses).mean(), torch.stack(margins).detach().mean()
        metrics = self.diagnostics(outputs, logits)
        return loss, {"train/loss": loss.detach(), "train/margin": margin, **metrics}

    @torch.no_grad()
    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        super().on_step_end(outputs, batch, frozen)
        norms = self._norms(outputs)
        pairs = [(outputs[q], outputs[k]) for q, k in _PAIRS[: len(norms)]]
        cosines = torch.cat([F.cosine_similarity(q, k) for q, k in pairs])
        self.margin.update(cosines, torch.cat(norms), frozen)

    def _norms(self, outputs: Outputs) -> list[Tensor]:
        """Lengths of the queries of each view that has any, (N, 1) each."""
        queries = [q for q, _ in _PAIRS] if self.config.loss.symmetric else ["q1"]
        return [outputs[q].norm(dim=-1, keepdim=True) for q in queries]
