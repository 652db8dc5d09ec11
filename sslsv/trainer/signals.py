"""How spread out embeddings are: numbers that show a collapse, which the loss may not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# Below these, embeddings hold next to nothing of the utterances.
MIN_STD, MIN_RANK = 0.1, 2.0
_STD, _RANK = "train/embedding_std", "train/effective_rank"


@torch.no_grad()
def embedding_signals(z1: Tensor, z2: Tensor | None = None) -> dict[str, Tensor]:
    """Spread of embeddings (N, D), finite and at least two: scalars on their device.

    Row i of ``z2`` is the other view of row i of ``z1``; without it there is no alignment. The
    caller gathers the rows of all processes. On a GPU the host waits for the singular values, so
    this is for a batch an epoch, not for each step.
    """
    views = [z1] if z2 is None else [z1, z2]
    unit = [F.normalize(view, dim=-1) for view in views]
    signals = {
        _STD: spread(torch.cat(unit)),
        _RANK: effective_rank(torch.cat(views)),
        "train/uniformity": torch.stack([uniformity(view) for view in unit]).mean(),
    }
    if z2 is not None:
        signals["train/alignment"] = (unit[0] - unit[1]).square().sum(dim=-1).mean()
    return signals


def spread(z: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over rows of unit length, times sqrt(D):
    1 for points all over the sphere, 0 for one point (the signal of arXiv 2011.10566, section 4.1).
    """
    return z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


def effective_rank(z: Tensor) -> Tensor:
    """RankMe (arXiv 2210.02885): ``exp(-sum_k p_k log p_k)``, ``p_k = s_k / sum_j s_j`` with the
    singular values s of z (N, D). From 1, all rows on one line, to min(N, D)."""
    values = torch.linalg.svdvals(z)
    p = values / values.sum().clamp(min=torch.finfo(z.dtype).tiny)  # all zero: rank 1
    return torch.special.entr(p).sum().exp()


def uniformity(z: Tensor) -> Tensor:
    """``log mean exp(-2 |z_i - z_j|^2)`` over pairs of rows of unit length (arXiv 2005.10242, with
    t = 2): 0 for one point, towards -4 for points all over the sphere of many dimensions."""
    return F.pdist(z).square().mul(-2).exp().mean().log()


def collapse(metrics: Mapping[str, float]) -> str | None:
    """What of an epoch's signals looks collapsed, in one sentence; None: nothing does."""
    found = []
    if metrics.get(_RANK, MIN_RANK) < MIN_RANK:
        found.append(f"they lie along {metrics[_RANK]:.2f} directions ({_RANK}, below {MIN_RANK})")
    if metrics.get(_STD, MIN_STD) < MIN_STD:
        found.append(f"they hardly differ ({_STD} {metrics[_STD]:.3f}, below {MIN_STD})")
    return f"the embeddings look collapsed: {' and '.join(found)}" if found else None
