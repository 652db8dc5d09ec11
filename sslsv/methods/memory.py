"""An embedding of each row of the training list."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslsv import distributed
from sslsv.methods.kmeans import spherical_kmeans


def last_of_same(rows: Tensor) -> Tensor:
    """For each of ``rows`` (N,) the place of the last that is equal to it: (N,). A row may stand
    twice in a batch, and then what is written to it must not be left to chance."""
    places = torch.arange(len(rows), device=rows.device)
    return torch.where(rows[:, None] == rows, places, -1).amax(dim=1)


class MemoryClusters(NamedTuple):
    """Clusters of all rows, the same in every process."""

    centroids: Tensor  # (K, D) float32 of unit length
    cluster: Tensor  # (R,) int64, -1: not seen yet
    cosine: Tensor  # (R,) float32, with the centroid; -2: not seen yet
    similarity: Tensor  # scalar, mean cosine of rows that have been seen


class RowMemory(nn.Module):
    """The last embeddings of rows, the same in every process.

    values: (R, D) float16, 1.1 GB for VoxCeleb2 with D = 512; filled: (R,) which rows have been
    seen. They are by row and not by process, so that a run may go on with other processes.
    """

    values: Tensor
    filled: Tensor

    def __init__(self, rows: int, dim: int):
        super().__init__()
        # Not among the weights, which are used without the training list too.
        values = torch.zeros(rows, dim, dtype=torch.float16)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("filled", torch.zeros(rows, dtype=torch.bool), persistent=False)

    @torch.no_grad()
    def write(self, rows: Tensor, x: Tensor, frozen: Tensor) -> None:
        """Keep ``x`` (N, D) of this process's ``rows`` (N,), and those of all others.

        Nothing is kept where the device scalar ``frozen`` is above 0.
        """
        rows, x = distributed.gather(rows), distributed.gather(x.to(self.values.dtype))
        x, kept = x[last_of_same(rows)], frozen > 0
        self.values[rows] = torch.where(kept, self.values[rows], x)
        self.filled[rows] = self.filled[rows] | ~kept

    @torch.no_grad()
    def cluster(self, count: int, iterations: int, seed: int) -> MemoryClusters:
        """Spherical k-means of all rows that are filled, shared by the processes. Waits for the
        device. DataError where fewer than ``count`` are filled."""
        share = self.filled.nonzero().flatten()
        share = share.tensor_split(distributed.world_size())[distributed.rank()]
        found = spherical_kmeans(self.values[share], count, iterations, seed)
        cluster = self.filled.new_full((len(self.filled),), -1, dtype=torch.int64)
        cosine = self.filled.new_full((len(self.filled),), -2, dtype=torch.float32)
        cluster[share], cosine[share] = found.assignments, found.cosines
        distributed.reduce_max(cluster)
        return MemoryClusters(
            found.centroids, cluster, distributed.reduce_max(cosine), found.similarity
        )
