"""Schedules: pure functions of how far the training is."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["default", "cosine", "warmup+cosine"]

_DECAY, _DECAY_EPOCHS = 0.95, 5


def anneal(start: float, end: float, done: float) -> float:
    """Half a cosine from ``start`` (done = 0) to ``end`` (done = 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def learning_rate(
    schedule: ScheduleName,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    initial: float,
    minimum: float,
    warmup_epochs: int,
) -> float:
    """Learning rate of optimiser step ``step`` (from 0).

    ``default``: initial · 0.95^⌊epoch / 5⌋. ``cosine``: from initial down to minimum.
    ``warmup+cosine``: linear from 0 to initial, then the cosine over the steps that remain.
    """
    if schedule == "default":
        return initial * _DECAY ** (step // steps_per_epoch // _DECAY_EPOCHS)
    steps = steps_per_epoch * epochs
    warmup = warmup_epochs * steps_per_epoch if schedule == "warmup+cosine" else 0
    if step < warmup:
        return initial * step / warmup
    return anneal(initial, minimum, (step - warmup) / max(1, steps - warmup))


def weight_decay(step: int, steps: int, start: float, end: float | None) -> float:
    """Weight decay of optimiser step ``step`` (from 0) of ``steps``: half a cosine from ``start``
    to ``end``, or ``start`` throughout where there is no ``end``."""
    return start if end is None else anneal(start, end, step / max(1, steps))
