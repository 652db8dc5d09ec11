"""Equal shares: soft assignments of samples to prototypes that use all prototypes alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sslsv import distributed


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float, iterations: int, valid: Tensor | None = None
) -> Tensor:
    """Sinkhorn-Knopp (arXiv 2006.09882, eq. 3-5, from arXiv 1306.0895) over rows of all processes.

    scores: (N, K) of this process's rows with the prototypes. Rows of the result, (N, K) float32,
    sum to 1 exactly, its columns to the same number up to what so few iterations leave. Rows where
    ``valid`` (N,) is false do not count. In the log domain, so that no exponential overflows.
    """
    x = scores.float() / epsilon if scores.dtype != torch.float64 else scores / epsilon
    rows = x.new_zeros(len(x), 1)  # log of the factor of each row; a last one is applied at the end
    if valid is not None:
        x = torch.where(valid[:, None], x, 0.0)
    for _ in range(iterations):
        used = rows if valid is None else rows.masked_fill(~valid[:, None], -torch.inf)
        columns = -_logsumexp_of_all(x + used)  # (1, K)
        rows = -(x + columns).logsumexp(dim=1, keepdim=True)
    return (x + columns + rows).exp()


def _logsumexp_of_all(x: Tensor) -> Tensor:
    """Over rows of all processes: (N, K) -> (1, K)."""
    if distributed.world_size() == 1:
        return x.logsumexp(dim=0, keepdim=True)
    largest = distributed.reduce_max(x.amax(dim=0, keepdim=True))
    total = distributed.reduce_sum((x - largest).exp().sum(dim=0, keepdim=True))
    return total.log() + largest
