"""Equal shares: soft assignments of samples to prototypes that use all prototypes alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sslsv import distributed

_LEAST = 1e-30  # of a row's first weight, relative to the largest


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float, iterations: int, valid: Tensor | None = None
) -> Tensor:
    """Sinkhorn-Knopp (arXiv 2006.09882, eq. 3-5, from arXiv 1306.0895) over rows of all processes.

    scores: (N, K) of this process's rows with the prototypes. Rows of the result, (N, K) float32,
    sum to 1 exactly, its columns to the same number up to what so few iterations leave. Rows where
    ``valid`` (N,) is false do not count, and are 0 in the result.

    ``exp(scores / epsilon)`` is scaled in the log domain such that the largest element of each row
    and of each column is 1, so that none over- or underflows as a whole in any precision. What is
    left are products of the matrix with a vector, which is read twice an iteration.
    """
    x = (scores if scores.dtype == torch.float64 else scores.float()) / epsilon
    if valid is not None:
        x = x.masked_fill(~valid[:, None], -torch.inf)
    heights = x.amax(dim=1, keepdim=True)
    top = distributed.reduce_max(heights.amax(dim=0))
    rows = (heights - top).exp().clamp(min=_LEAST)  # (N, 1), all 1 but for the scaling
    x = x - heights.nan_to_num(neginf=0.0)
    x = (x - distributed.reduce_max(x.amax(dim=0))).exp_()
    if valid is not None:
        rows = rows.masked_fill(~valid[:, None], 0)
    counted = (rows > 0).sum(dim=0, keepdim=True).to(x)
    share = distributed.reduce_sum(counted) / x.shape[1]  # of a prototype
    columns = x.new_ones(x.shape[1], 1)
    for _ in range(iterations):
        columns = share / distributed.reduce_sum(x.T @ rows)
        rows = 1 / (x @ columns)
        if valid is not None:
            rows = rows.masked_fill(~valid[:, None], 0)
    return x.mul_(columns.T).mul_(rows)
