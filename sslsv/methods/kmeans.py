"""Spherical k-means over the rows of all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv import distributed
from sslsv.errors import DataError
from sslsv.randomness import generator

CHUNK_BYTES = 256 * 2**20  # of similarities that exist at a time, whatever the number of rows


class Clusters(NamedTuple):
    """What ``spherical_kmeans`` found."""

    centroids: Tensor  # (K, D) float32 of unit length, the same in every process
    assignments: Tensor  # (n,) int64, nearest centroid of each of this process's rows
    cosines: Tensor  # (n,) float32, of each of this process's rows with its centroid
    similarity: Tensor  # scalar, mean cosine of all rows with their centroids


def spherical_kmeans(x: Tensor, count: int, iterations: int = 10, seed: int = 0) -> Clusters:
    """Lloyd's algorithm with cosines: maximises the sum of x_i . c_a(i) over |c_k| = 1.

    x: (n, D) this process's rows, of unit length, of any floating dtype; processes may have
    different numbers. Starts from ``count`` different rows drawn by ``seed`` (one pass over the
    data, where k-means++ needs ``count`` of them); a cluster that loses all its rows starts anew
    from the row that is farthest from its centroid. Beside ``x`` it needs 256 MB of similarities
    and two (K, D) matrices; on CPU the result is a function of the data and the seed.

    Raises DataError where there are fewer rows than clusters.
    """
    sizes = [int(n) for n in distributed.gather_objects(len(x))]
    if sum(sizes) < count:
        raise DataError(f"{count} clusters cannot be made of {sum(sizes)} rows")
    first = sum(sizes[: distributed.rank()])  # place of this process's rows among all
    drawn = generator("k-means", seed).choice(sum(sizes), count, replace=False)
    centroids = _rows(x, torch.from_numpy(drawn).to(x.device) - first)
    for _ in range(iterations):
        assignments, similarities = assign(x, centroids)
        centroids = _centroids(x, assignments, similarities, count, first)
    assignments, cosines = assign(x, centroids)
    total = distributed.reduce_sum(cosines.double().sum())
    return Clusters(centroids, assignments, cosines, total / sum(sizes))


def assign(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each row and their cosine: (n, D), (K, D) -> (n,) int64, (n,) float32."""
    rows = max(1, CHUNK_BYTES // (4 * len(centroids)))
    nearest = [(part.float() @ centroids.T).max(dim=1) for part in x.split(rows)]
    return torch.cat([n.indices for n in nearest]), torch.cat([n.values for n in nearest])


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """Rows at ``places`` of this process's ``x``, those outside it from the others: (K, D)."""
    mine = (places >= 0) & (places < len(x))
    rows = x.new_zeros((len(places), x.shape[1]), dtype=torch.float32)
    rows[mine] = x[places[mine]].float()
    return distributed.reduce_sum(rows)


def _centroids(
    x: Tensor, assignments: Tensor, similarities: Tensor, count: int, first: int
) -> Tensor:
    """Direction of the sum of each cluster's rows; an empty one takes a row that fits nowhere."""
    sums = x.new_zeros((count, x.shape[1]), dtype=torch.float32)
    rows = max(1, CHUNK_BYTES // (4 * x.shape[1]))
    for part, its in zip(x.split(rows), assignments.split(rows), strict=True):
        sums.index_add_(0, its, part.float())
    distributed.reduce_sum(sums)
    sizes = distributed.reduce_sum(torch.bincount(assignments, minlength=count))
    empty = (sizes == 0).nonzero().flatten()
    if len(empty):
        sums[empty] = _rows(x, _farthest(similarities, len(empty), first) - first)
    return F.normalize(sums, dim=1)


def _farthest(similarities: Tensor, count: int, first: int) -> Tensor:
    """Places among the rows of all processes of the ``count`` least similar ones, (count,)."""
    own = similarities.topk(min(count, len(similarities)), largest=False)
    found = distributed.gather_objects((own.values.cpu(), own.indices.cpu() + first))
    values, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    return places[values.argsort(stable=True)[:count]].to(similarities.device)
