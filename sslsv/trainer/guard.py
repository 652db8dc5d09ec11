"""A loss that is not finite must never reach the weights."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from sslsv import distributed
from sslsv.errors import UserError

CHECK_EVERY = 25  # steps between two looks at the flag, each of which waits for the device


class NonFiniteLoss(UserError):
    """Training stopped since the loss or a gradient was NaN or infinite."""


class FiniteGuard:
    """Keeps a flag on the device that, once up, turns every later update into nothing.

    Asking the host at each step would stall a GPU. The flag is given to the optimiser as
    ``found_inf``, with which fused optimisers skip their update, and to the method's own updates;
    the host looks at it every few tens of steps and before anything is saved.
    """

    def __init__(self, device: torch.device):
        self.frozen = torch.zeros((), device=device)  # 1.0 once something was not finite
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=CHECK_EVERY + 1)

    def watch(self, loss: Tensor, parameters: list[nn.Parameter], step: int, rows: Tensor) -> None:
        """After the backward pass of ``step`` on the samples ``rows`` (host tensor)."""
        self._recent.append((step, rows))
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, foreach=True)
        bad = distributed.reduce_max((~(loss.detach() + norm).isfinite()).float())
        first = (bad > 0) & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self.frozen = torch.maximum(self.frozen, bad)

    def failure(self) -> tuple[int, Tensor] | None:
        """The first bad step and this process's rows in it, or None. Waits for the device."""
        step = int(self._bad_step)
        if step < 0:
            return None
        return step, next((rows for s, rows in self._recent if s == step), torch.empty(0).long())
