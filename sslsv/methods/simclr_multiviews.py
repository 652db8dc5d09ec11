"""SimCLR with several crops of an utterance."""

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
from sslsv.methods.heads import by_length
from sslsv.methods.simclr_margins import SimCLRMargins, SimCLRMarginsConfig
from sslsv.registry import register_method

_GLOBALS = 2  # long crops of an utterance


@dataclass(kw_only=True)
class SimCLRMultiViewsConfig(SimCLRMarginsConfig):
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.loss.symmetric:
            raise ConfigError(
                "loss.symmetric: false has no meaning where short crops are the anchors; remove it"
            )

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        super().check(batch_size, encoder, dataset)
        if dataset.ssl_dino_global_count != _GLOBALS:
            raise ConfigError(
                f"dataset.ssl_dino_global_count: method.type {self.type} needs {_GLOBALS}, got "
                f"{dataset.ssl_dino_global_count}"
            )
        if not dataset.ssl_dino_local_count:
            raise ConfigError(
                f"dataset.ssl_dino_local_count: 0 leaves method.type {self.type} no anchors; use 1 "
                "or more"
            )


@register_method("simclr_multiviews", SimCLRMultiViewsConfig)
class SimCLRMultiViews(SimCLRMargins):
    """SimCLRMargins with the crops of DINO (arXiv 2104.14294, sec. 3.1): from short to long.

    Anchors are the short crops, keys the long ones of all utterances, of which an anchor's own
    utterance has two: each is its positive once, in a cross entropy over it and the long crops of
    other utterances, and the loss is the mean of the two. Crops of one length go through the
    encoder as one batch, and all crops through the projector.
    """

    views = "multicrop"
    positives = ("globals",)
    config: SimCLRMultiViewsConfig

    def forward(self, views: list[Tensor]) -> Outputs:
        y = torch.cat(by_length(self.encoder, views))  # (V·N, D)
        z = self.projector(y).unflatten(0, (len(views), -1)).transpose(0, 1)  # (N, V, D)
        keys, anchors = z[:, :_GLOBALS], z[:, _GLOBALS:]
        return {"globals": keys, "locals": anchors} | self.margin.outputs(len(z))

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        norms = self._norms(outputs)
        margin = self.margin.value(outputs, self.progress, norms)
        n, count = outputs["locals"].shape[:2]  # N, anchors of an utterance
        anchors = F.normalize(outputs["locals"], dim=-1).flatten(0, 1)  # (N·L, D)
        keys = distributed.gather(F.normalize(outputs["globals"], dim=-1)).flatten(0, 1)
        cosines = anchors @ keys.T  # (N·L, W·N·2)

        utterance = torch.arange(n, device=keys.device).repeat_interleave(count)
        first = _GLOBALS * (utterance + distributed.rank() * n)
        loss = self.margin.penalty(norms)
        for positive, other in ((first, first + 1), (first + 1, first)):
            logits = self.margin.logits(cosines, positive, margin, norms)
            logits = logits.scatter(1, other[:, None], float("-inf"))
            loss = loss + F.cross_entropy(logits, positive) / _GLOBALS
        return loss, {"train/loss": loss.detach(), "train/margin": margin.detach().mean()}

    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        anchors, keys = (F.normalize(outputs[name], dim=-1) for name in ("locals", "globals"))
        self.margin.update(anchors @ keys.mT, self._norms(outputs), frozen)  # (N, L, 2)

    def _norms(self, outputs: Outputs) -> Tensor:
        return outputs["locals"].flatten(0, 1).norm(dim=-1, keepdim=True)  # (N·L, 1)
