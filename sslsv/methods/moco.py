"""MoCo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.momentum import Momentum, MomentumConfig
from sslsv.methods.siamese import Siamese, SiameseConfig, unit_std
from sslsv.randomness import generator
from sslsv.registry import register_method


@dataclass(kw_only=True)
class MoCoConfig(MomentumConfig, SiameseConfig):
    start_tau: float = 0.999  # m of the paper
    tau_scheduler: bool = False  # half a cosine from start_tau to end_tau
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    temperature: float = 0.2  # tau of the paper
    queue_size: int = 65536  # K, keys of each view that serve as negatives
    prevent_class_collisions: bool = False  # no negatives with the label of the query

    def __post_init__(self) -> None:
        MomentumConfig.__post_init__(self)
        SiameseConfig.__post_init__(self)
        self.require_positive("temperature", "queue_size")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if self.queue_size % batch_size:
            raise ConfigError(
                f"method.queue_size: {self.queue_size} is not a multiple of trainer.batch_size "
                f"{batch_size}; use {-(-self.queue_size // batch_size) * batch_size} or another one"
            )


def info_nce(logits: Tensor) -> Tensor:
    """-log softmax of the first column (arXiv 1911.05722, eq. 1): (N, 1 + K) -> scalar."""
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax over each row, in nats, its mean: (N, C) -> scalar. 0 · log 0 is 0."""
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1).mean()


@register_method("moco", MoCoConfig)
class MoCo(Momentum, Siamese):
    """Momentum Contrast v2 (arXiv 1911.05722, 2003.04297), symmetric: both views are queries.

    The positive of a query is the key of the other view; negatives are that view's keys of earlier
    batches. Each view goes through the networks by itself. Keys are computed in batches composed
    otherwise than those of queries (1911.05722, sec. 3.3), as statistics of the same utterances in
    batch norm would tell a positive from the queue: rows are dealt out anew over processes. There
    is nothing to deal out in one process, nor where batch norm is synchronised.
    """

    positives = ("k1", "k2")
    config: MoCoConfig
    encoder_momentum: nn.Module
    projector_momentum: nn.Module
    queue: Tensor
    queue_ptr: Tensor
    queue_labels: Tensor

    def __init__(self, config: MoCoConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.add_teachers("encoder", "projector")
        dim = config.projector_output_dim if config.enable_projector else encoder.encoder_dim
        noise = torch.randn(2, dim, config.queue_size)
        self.register_buffer("queue", F.normalize(noise, dim=1))  # (2, D, K), keys of each view
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))  # the oldest key
        if config.prevent_class_collisions:
            unknown = torch.full((config.queue_size,), -1)
            self.register_buffer("queue_labels", unknown)

    def forward(self, views: list[Tensor]) -> Outputs:
        q1, q2 = (self.projector(self.encoder(view)) for view in views)
        k1, k2 = self._keys(views)
        return {"q1": q1, "q2": q2, "k1": k1, "k2": k2}  # (N, D) each

    @torch.no_grad()
    def _keys(self, views: list[Tensor]) -> list[Tensor]:
        shuffled = distributed.world_size() > 1 and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, nn.SyncBatchNorm)
            for m in self.modules()
        )
        if shuffled:
            rows = len(views[0]) * distributed.world_size()
            draw = generator("moco shuffle", self.progress.seed, self.progress.step)
            order = draw.permutation(rows)
            views = [exchange(view, order) for view in views]
        keys = [self.projector_momentum(self.encoder_momentum(view)) for view in views]
        return [exchange(k, np.argsort(order)) for k in keys] if shuffled else keys

    def cosines(self, outputs: Outputs) -> list[Tensor]:
        """For queries of each view, their cosine with the key of the other view, then those with
        that view's queue: twice (N, 1 + K)."""
        q1, q2, k1, k2 = (F.normalize(outputs[n], dim=-1) for n in ("q1", "q2", "k1", "k2"))
        return [
            torch.cat(((q * k).sum(dim=-1, keepdim=True), q @ queue), dim=1)
            for q, k, queue in ((q1, k2, self.queue[1]), (q2, k1, self.queue[0]))
        ]

    def without_collisions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, 1 + K) logits, -inf for negatives of the query's label if these are to be left out.

        labels: (N,), of the queries.
        """
        if not self.config.prevent_class_collisions:
            return logits
        collides = labels[:, None] == self.queue_labels  # (N, K)
        return logits.masked_fill(F.pad(collides, (1, 0)), float("-inf"))

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        logits = [
            self.without_collisions(cosines / self.config.temperature, batch.labels)
            for cosines in self.cosines(outputs)
        ]
        loss = torch.stack([info_nce(x) for x in logits]).mean()
        return loss, {"train/loss": loss.detach(), **self.diagnostics(outputs, logits)}

    def diagnostics(self, outputs: Outputs, logits: list[Tensor]) -> Metrics:
        """tau; of first views' queries, the entropy of the softmax over keys and the spread."""
        h = entropy(logits[0].detach())
        return {"train/tau": self.tau, "train/h": h, "train/std": unit_std(outputs["q1"])}

    @torch.no_grad()
    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        """The teacher follows, and the keys of all processes take the place of the oldest."""
        super().on_step_end(outputs, batch, frozen)
        keys = distributed.gather(torch.stack((outputs["k1"], outputs["k2"]), dim=1))
        keys = F.normalize(keys, dim=-1).permute(1, 2, 0)  # (2, D, W·N)
        places = self.queue_ptr + torch.arange(keys.shape[2], device=keys.device)
        places = places % self.config.queue_size  # a run before may have had other batches

        def replace(kept: Tensor, new: Tensor) -> None:
            new = torch.where(frozen > 0, kept.index_select(-1, places), new)
            kept.index_copy_(-1, places, new)

        replace(self.queue, keys.to(self.queue))
        if self.config.prevent_class_collisions:
            replace(self.queue_labels, distributed.gather(batch.labels))
        moved = (self.queue_ptr + len(places)) % self.config.queue_size
        self.queue_ptr.copy_(torch.where(frozen > 0, self.queue_ptr, moved))


def exchange(rows: Tensor, order: np.ndarray) -> Tensor:
    """Deal rows out anew over processes: row ``order[i]`` of all comes to place i.

    rows: (N, …) of this process, as is the result; order: a permutation of W·N, the same on every
    process. Each process sends N rows and receives N.
    """
    rank, world, n = distributed.rank(), distributed.world_size(), len(rows)
    owners, wanted = (x.reshape(world, n) for x in np.divmod(order, n))  # of each process's places
    outgoing = [wanted[to][owners[to] == rank] for to in range(world)]
    incoming = np.bincount(owners[rank], minlength=world)
    arrival = np.argsort(owners[rank], kind="stable")  # to which place the rows come, in turn

    def index(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(rows.device, non_blocking=True)

    arrived = torch.empty_like(rows, memory_format=torch.contiguous_format)
    sent = rows[index(np.concatenate(outgoing))]
    dist.all_to_all_single(arrived, sent, incoming.tolist(), [len(x) for x in outgoing])
    return arrived[index(np.argsort(arrival))]
