"""LIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv import distributed, randomness
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.registry import register_method


@dataclass(kw_only=True)
class LIMConfig(SiameseConfig):
    loss: Literal["bce", "nce", "mine"] = "bce"  # which bound of the mutual information

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        super().check(batch_size, encoder, dataset)
        if batch_size < 2:
            raise ConfigError("trainer.batch_size: 1 leaves lim no negatives; use 2 or more")


def draw_negatives(rows: int, seed: int, step: int) -> Tensor:
    """For each of ``rows`` utterances the row of another one, all others with equal chance."""
    offsets = randomness.generator("lim negatives", seed, step).integers(1, rows, rows)
    return torch.from_numpy((np.arange(rows) + offsets) % rows)


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """``-(mean log s(pos) + mean log(1 - s(neg)))`` with the logistic function s."""
    return -(F.logsigmoid(positive).mean() + F.logsigmoid(-negative).mean())


def nce(positive: Tensor, negative: Tensor) -> Tensor:
    """``-mean(pos - log(e^pos + sum e^neg))``, the sum over the negatives of all processes."""
    others = distributed.gather(negative).logsumexp(dim=0)
    return (torch.logaddexp(positive, others) - positive).mean()


def mine(positive: Tensor, negative: Tensor) -> Tensor:
    """``-(mean pos - log mean e^neg)``, the inner mean over the negatives of all processes."""
    return distributed.gather(negative).exp().mean().log() - positive.mean()


_LOSSES = {"bce": bce, "nce": nce, "mine": mine}


@register_method("lim", LIMConfig)
class LIM(Siamese):
    """Learning Speaker Representations with Mutual Information (arXiv 1812.00271, section 2).

    Tells two crops of one utterance from crops of two, one random other utterance for each. The
    score of a pair is the cosine of its embeddings; the paper trains a network for it.
    """

    config: LIMConfig

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        z1, z2 = (F.normalize(outputs[name], dim=-1) for name in ("z1", "z2"))  # (N, D)
        candidates = distributed.gather(z2)  # (W·N, D)
        other = draw_negatives(len(candidates), self.progress.seed, self.progress.step)
        other = other.chunk(distributed.world_size())[distributed.rank()]  # of this process's rows
        other = other.to(z1.device, non_blocking=True)
        positive = (z1 * z2).sum(dim=-1)  # (N,)
        negative = (z1 * candidates[other]).sum(dim=-1)  # (N,)
        loss = _LOSSES[self.config.loss](positive, negative)
        return loss, {"train/loss": loss.detach()}
