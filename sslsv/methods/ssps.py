"""Self-supervised positive sampling: positives from other utterances, for any method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import distributed
from sslsv.errors import ConfigError
from sslsv.methods.kmeans import CHUNK_BYTES
from sslsv.methods.memory import RowMemory, last_of_same
from sslsv.randomness import generator

Law = Literal["uniform", "exp"]


@dataclass(kw_only=True)
class SSPSConfig:
    """Section ``method.ssps``; needs ``dataset.ssps: true`` for the reference view."""

    start_epoch: int = 100  # epochs with ordinary positives before
    sampling: Literal["knn", "kmeans", "kmeans-repr"] = "kmeans-repr"  # see SSPS
    pos_queue_size: int = 50000  # Q, latest utterances whose positives are kept
    kmeans_nb_prototypes: int = 50000  # K
    kmeans_nb_iters: int = 10  # of each clustering
    inter_sampling_size: int = 0  # M, nearest other clusters to draw from; 0: the own cluster
    inter_sampling_prob_fn: Law = "uniform"  # exp: weight e^(-lambda · rank), nearest first
    inter_sampling_prob_exp_lambda: float = 0.7  # of exp
    intra_sampling_size: int = 10_000_000  # closest utterances (of a cluster) to draw from
    intra_sampling_prob_fn: Law = "uniform"  # likewise, closest first
    intra_sampling_prob_exp_lambda: float = 0.7  # of exp
    metric_columns: list[str] = field(default_factory=list)  # of the list, such as Speaker, Video
    verbose: bool = False  # say each epoch how well the clusters fit

    def __post_init__(self) -> None:
        least = {"start_epoch": 0, "inter_sampling_size": 0, "kmeans_nb_iters": 1}
        least |= {"pos_queue_size": 1, "kmeans_nb_prototypes": 1, "intra_sampling_size": 1}
        for name, at_least in least.items():
            if getattr(self, name) < at_least:
                raise ConfigError(f"{name}: must be at least {at_least}, got {getattr(self, name)}")
        for name in ("inter_sampling_prob_exp_lambda", "intra_sampling_prob_exp_lambda"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}")
        if self.clusters and self.inter_sampling_size >= self.kmeans_nb_prototypes:
            raise ConfigError(
                f"inter_sampling_size: a cluster has {self.kmeans_nb_prototypes - 1} others "
                f"(kmeans_nb_prototypes {self.kmeans_nb_prototypes}), got "
                f"{self.inter_sampling_size}"
            )

    @property
    def clusters(self) -> bool:
        return self.sampling != "knn"


class SSPS(nn.Module):
    """Self-Supervised Positive Sampling (arXiv 2505.14561, 2501.17772).

    Every utterance has a *reference*, the unit-length embedding of a clean crop. Once training
    has come to ``start_epoch``, the positive of an utterance is replaced, without gradient, by

    - ``kmeans``: the centroid of its cluster of references, or of one of the M nearest clusters;
    - ``kmeans-repr``: what an utterance of that cluster had as its positive when it was last seen;
    - ``knn``: the same of one of the utterances whose references are closest to its own.

    An utterance is never its own pseudo-positive; where none is found the ordinary one stays.
    References are clustered at the start of each epoch. Memory: references (R, D) in float16, or
    (Q, D) in float32 for ``knn``, and what the queue keeps, Q times a row of positives in float32.

    ``rows``: R of the training list. ``shapes``: of a row of each output that is a positive.
    ``columns``: for metrics, codes (R,) by name.
    """

    queue_rows: Tensor  # (Q,) which row an entry is of, -1: none yet
    queue_positives: Tensor  # (Q, P) all its positives, side by side
    queue_references: Tensor  # (Q, D), for knn
    queue_ptr: Tensor  # (1,) the oldest entry
    latest_entry: Tensor  # (R,) of a row, if it is still there; earlier ones are stale
    cluster: Tensor  # (R,) of a row, -1: not seen
    place: Tensor  # (R,) of a row where rows are sorted by cluster, then by similarity to it
    row_at: Tensor  # (R,) which row stands at a place
    first_place: Tensor  # (K + 1,) of a cluster, and behind the last one
    neighbours: Tensor  # (K, M) most similar clusters, the most similar first
    centroids: Tensor  # (K, D)

    def __init__(
        self,
        config: SSPSConfig,
        rows: int,
        dim: int,
        shapes: Mapping[str, torch.Size],
        columns: Mapping[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.config, self.shapes = config, shapes
        self.columns = columns or {}
        if config.clusters and config.kmeans_nb_prototypes > rows:
            raise ConfigError(
                f"method.ssps.kmeans_nb_prototypes: {config.kmeans_nb_prototypes} clusters cannot "
                f"be made of the {rows} rows of dataset.train; use fewer"
            )
        if config.sampling == "kmeans":
            for name, shape in shapes.items():
                if shape[-1] != dim:
                    raise ConfigError(
                        "method.ssps.sampling: kmeans takes centroids of embeddings as positives, "
                        f"but the loss compares {shape[-1]}-dimensional outputs ({name}), not the "
                        f"{dim} dimensions of encoder.encoder_dim; use kmeans-repr or set "
                        "method.enable_projector: false"
                    )
        size, count = config.pos_queue_size, config.kmeans_nb_prototypes
        self.widths = [shape.numel() for shape in shapes.values()]

        def integers(*shape: int) -> Tensor:
            return torch.full(shape, -1)

        state: dict[str, Tensor] = {}
        if config.sampling != "kmeans":
            state["queue_rows"] = integers(size)
            state["queue_positives"] = torch.zeros(size, sum(self.widths))
            state["queue_ptr"] = torch.zeros(1, dtype=torch.int64)
            state["latest_entry"] = integers(rows)
        if config.sampling == "knn":
            state["queue_references"] = torch.zeros(size, dim)
        else:
            state["cluster"] = integers(rows)
            state["place"] = torch.zeros(rows, dtype=torch.int64)
            state["row_at"] = torch.zeros(rows, dtype=torch.int64)
            state["first_place"] = torch.zeros(count + 1, dtype=torch.int64)
            state["neighbours"] = integers(count, max(1, config.inter_sampling_size))
            state["centroids"] = torch.zeros(count, dim)
        for name, tensor in state.items():
            self.register_buffer(name, tensor)
        self.memory = RowMemory(rows, dim) if config.clusters else None
        for i, codes in enumerate(self.columns.values()):
            self.register_buffer(f"codes{i}", torch.from_numpy(codes), persistent=False)

    def memories(self) -> dict[str, Tensor]:
        """All that has to survive a restart; see ``Method.memories``."""
        return {name: x for name, x in self.named_buffers() if not name.startswith("codes")}

    # ------------------------------------------------------------------------ when

    def sampling_at(self, epoch: int) -> bool:
        """Whether positives are replaced in the epoch after ``epoch`` ones."""
        return epoch >= self.config.start_epoch

    def watching_at(self, epoch: int) -> bool:
        """Whether references are needed: from the epoch before on."""
        return epoch >= self.config.start_epoch - 1

    def wants_pass(self, epoch: int) -> bool:
        """Whether ``epoch`` is to sample, but nothing has been seen."""
        seen = self.memory.filled if self.memory else self.queue_rows >= 0
        return self.sampling_at(epoch) and not bool(seen.any())

    # ------------------------------------------------------------------------ clusters

    @torch.no_grad()
    def on_epoch_start(self, epoch: int, seed: int) -> dict[str, float]:
        """Cluster the references; returns metrics."""
        if self.memory is None or not self.sampling_at(epoch):
            return {}
        c = self.config
        seed = int(generator("ssps clusters", seed, epoch).integers(2**62))
        clusters = self.memory.cluster(c.kmeans_nb_prototypes, c.kmeans_nb_iters, seed)
        self.centroids, self.cluster = clusters.centroids, clusters.cluster
        order = clusters.cosine.argsort(descending=True, stable=True)
        order = order[self.cluster[order].argsort(stable=True)]  # unseen rows, cluster 0, 1, …
        self.row_at = order
        self.place[order] = torch.arange(len(order), device=order.device)
        sizes = torch.bincount(self.cluster + 1, minlength=c.kmeans_nb_prototypes + 1)
        self.first_place = sizes.cumsum(0)
        if c.inter_sampling_size:
            self.neighbours = nearest(self.centroids, c.inter_sampling_size)
        metrics = {"train/ssps_kmeans_cosine": float(clusters.similarity)}
        return metrics | self._agreement()

    def _agreement(self) -> dict[str, float]:
        """Normalised mutual information of clusters and each column, over the rows seen."""
        if not self.columns:
            return {}
        from sklearn.metrics import normalized_mutual_info_score as nmi

        found = self.cluster.cpu().numpy()
        seen = found >= 0
        return {
            f"train/ssps_kmeans_nmi_{name.lower()}": float(nmi(codes[seen], found[seen]))
            for name, codes in self.columns.items()
        }

    # ------------------------------------------------------------------------ positives

    @torch.no_grad()
    def replace(
        self, outputs: dict[str, Tensor], rows: Tensor, references: Tensor, step: int, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``outputs`` with pseudo-positives, and metrics.

        rows: (N,), references: (N, D), both of this process. Draws are functions of (seed, step)
        and of the place in the batch of all processes.
        """
        draws = generator("ssps", seed, step).random((2, len(rows) * distributed.world_size()))
        mine = slice(distributed.rank() * len(rows), (distributed.rank() + 1) * len(rows))
        between, within = torch.from_numpy(draws[:, mine]).to(rows.device, non_blocking=True)
        if self.config.sampling == "kmeans":
            near = self._near(rows, between)
            found, positives = near >= 0, self._as_outputs(self.centroids[near])
            metrics: dict[str, Tensor] = {}
        else:
            if self.config.sampling == "knn":
                entries, pool = self._closest(rows, references, within)
            else:
                entries, pool = self._representative(rows, self._near(rows, between), within)
            found, positives = entries >= 0, self._stored(entries)
            metrics = self._metrics(rows, entries, pool)
        metrics["train/ssps_coverage"] = found.float().mean()
        swapped = {}
        for name, x in positives.items():
            here = found.view(-1, *[1] * (x.ndim - 1))
            with torch.enable_grad():  # through the ordinary positives that stay
                swapped[name] = torch.where(here, x.to(outputs[name].dtype), outputs[name])
        return outputs | swapped, metrics

    def _near(self, rows: Tensor, draws: Tensor) -> Tensor:
        """The cluster to take a positive from, (N,); -1 for rows that are in none."""
        own = self.cluster[rows]
        c = self.config
        if not c.inter_sampling_size:
            return own
        sizes = torch.full_like(own, c.inter_sampling_size)
        rank = draw_rank(draws, sizes, c.inter_sampling_prob_fn, c.inter_sampling_prob_exp_lambda)
        return torch.where(own >= 0, self.neighbours[own, rank], -1)

    def _rank(self, draws: Tensor, sizes: Tensor) -> Tensor:
        c = self.config
        return draw_rank(draws, sizes, c.intra_sampling_prob_fn, c.intra_sampling_prob_exp_lambda)

    def _representative(self, rows: Tensor, near: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """An entry of the queue that is in cluster ``near``, (N,), -1 where there is none; and
        among how many it was drawn.

        Rows stand by cluster, in each the closest to the centroid first. Counting along this line
        those that are in the queue tells how many a cluster has, and where its r-th one stands.
        """
        size = len(self.place)
        queued = self.place.new_zeros(size + 1, dtype=torch.int32)
        queued[torch.where(self.queue_rows >= 0, self.place[self.queue_rows], size)] = 1
        counts = queued[:size].cumsum(0, dtype=torch.int32)  # up to and with each place
        before = F.pad(counts, (1, 0))
        low, high = before[self.first_place[near]], before[self.first_place[near + 1]]
        mine = self.place[rows]
        own = before[mine]
        itself = (self.cluster[rows] == near) & (queued[mine] > 0)
        pool = (high - low - itself.int()).clamp(max=self.config.intra_sampling_size)
        pool = pool.masked_fill(near < 0, 0)
        rank = low + self._rank(draws, pool)
        rank = rank + (itself & (rank >= own)).int()
        found = torch.searchsorted(counts, (rank + 1).int()).clamp(max=size - 1)
        return torch.where(pool > 0, self.latest_entry[self.row_at[found]], -1), pool

    def _closest(self, rows: Tensor, references: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """An entry of the queue among those closest to the references, likewise."""
        cosines = references.float() @ self.queue_references.T  # (N, Q)
        entries = torch.arange(len(self.queue_rows), device=rows.device)
        usable = (self.queue_rows >= 0) & (self.latest_entry[self.queue_rows] == entries)
        usable = usable & (self.queue_rows != rows[:, None])
        cosines = cosines.masked_fill(~usable, -torch.inf)
        most = min(self.config.intra_sampling_size, len(self.queue_rows))
        size = usable.sum(dim=1).clamp(max=most)
        rank = self._rank(draws, size)
        found = cosines.topk(most, dim=1).indices.gather(1, rank[:, None]).squeeze(1)
        return torch.where(size > 0, found, -1), size

    def _stored(self, entries: Tensor) -> dict[str, Tensor]:
        parts = self.queue_positives[entries].split(self.widths, dim=1)
        return {
            name: part.view(-1, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _as_outputs(self, centroids: Tensor) -> dict[str, Tensor]:
        n = len(centroids)
        return {
            name: centroids.view(n, *[1] * (len(shape) - 1), -1).expand(n, *shape)
            for name, shape in self.shapes.items()
        }

    def _metrics(self, rows: Tensor, entries: Tensor, pool: Tensor) -> dict[str, Tensor]:
        found = entries >= 0
        name = "ssps_sampling_pool" if self.memory is None else "ssps_intra_sampling_pool"
        metrics = {f"train/{name}": pool.float().mean()}
        for i, column in enumerate(self.columns):
            codes = getattr(self, f"codes{i}")
            same = found & (codes[rows] == codes[self.queue_rows[entries]])
            share = same.sum() / found.sum().clamp(min=1)
            metrics[f"train/ssps_{column.lower()}_acc"] = share
        return metrics

    # ------------------------------------------------------------------------ memory

    @torch.no_grad()
    def keep(
        self, outputs: dict[str, Tensor], rows: Tensor, references: Tensor, frozen: Tensor
    ) -> None:
        """Remember a batch: its references and its own positives, of all processes."""
        if self.memory is not None:
            self.memory.write(rows, references, frozen)
        if self.config.sampling == "kmeans":
            return
        positives = [outputs[name].flatten(1).to(self.queue_positives) for name in self.shapes]
        rows, x = distributed.gather(rows), distributed.gather(torch.cat(positives, dim=1))
        size, kept = len(self.queue_rows), frozen > 0
        entries = (self.queue_ptr + torch.arange(len(rows), device=rows.device)) % size

        def write(buffer: Tensor, places: Tensor, new: Tensor) -> None:
            buffer[places] = torch.where(kept, buffer[places], new)

        if self.memory is None:
            write(self.queue_references, entries, distributed.gather(references.float()))
        write(self.queue_rows, entries, rows)
        write(self.queue_positives, entries, x)
        write(self.latest_entry, rows, entries[last_of_same(rows)])
        moved = (self.queue_ptr + len(rows)) % size
        self.queue_ptr.copy_(torch.where(kept, self.queue_ptr, moved))


def draw_rank(draws: Tensor, sizes: Tensor, law: Law, decay: float) -> Tensor:
    """Ranks from 0 to size - 1 from uniform ``draws`` in [0, 1), each of its own size; (N,) int64.

    uniform: all alike; exp: rank r with weight ``e^(-decay · r)``, by the inverse of its
    cumulative distribution. 0 where the size is 0.
    """
    if law == "uniform":
        ranks = draws * sizes
    else:
        ranks = -torch.log1p(draws * torch.expm1(-decay * sizes)) / decay
    return ranks.long().clamp(max=sizes - 1).clamp(min=0)


def nearest(centroids: Tensor, count: int) -> Tensor:
    """The ``count`` most similar others of each centroid, most similar first: (K, D) -> (K, M).

    Needs 256 MB of cosines at a time, whatever K.
    """
    rows = max(1, CHUNK_BYTES // (4 * len(centroids)))
    found = []
    for part in torch.arange(len(centroids), device=centroids.device).split(rows):
        cosines = centroids[part] @ centroids.T
        cosines.scatter_(1, part[:, None], -torch.inf)
        found.append(cosines.topk(count, dim=1).indices)
    return torch.cat(found)


def reference_embeddings(encoder: nn.Module, view: Tensor) -> Tensor:
    """Unit-length embeddings in evaluation mode, without gradient: (N, T) -> (N, D)."""
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        x = F.normalize(encoder(view).float(), dim=-1)
    encoder.train(training)
    return x
