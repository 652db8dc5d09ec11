"""Waveforms of different lengths in one batch, each embedded as if it were alone.

Three things let a row see what lies beyond its end: padding of convolutions, sums over time, and
the window of the first spectrogram frame after it. The layers and functions here are the ordinary
ones in an ordinary batch; while ``run`` is at work on rows of different lengths they use the end of
each row in place of the end of the batch. An architecture is written with them and never mentions
lengths. Time is the last axis throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.errors import DataError

# While rows of different lengths run: size of the time axis -> how much of it each row fills (B,).
# A layer that changes the size adds an entry (``resize``). All rows shrink by one rule, so two
# layers of one size agree.
_filled: dict[int, Tensor] | None = None


def run(
    embed: Callable[[Tensor], Tensor],
    wave: Tensor,
    lengths: Sequence[int] | None,
    together: bool = True,
) -> Tensor:
    """``embed(wave)`` where row i of ``wave`` (B, T) has ``lengths[i]`` samples and then anything.

    Every row of the result is that of ``embed(wave[i : i + 1, : lengths[i]])``. ``together``:
    ``embed`` is made of what this file offers; else rows of one length run by themselves.
    """
    global _filled
    if lengths is None:
        return embed(wave)
    if len(lengths) != len(wave) or not all(0 < n <= wave.shape[1] for n in lengths):
        raise DataError(
            f"lengths {list(lengths)} do not fit waveforms of shape {tuple(wave.shape)}: each row "
            f"needs one from 1 to {wave.shape[1]}"
        )
    if min(lengths) == wave.shape[1]:
        return embed(wave)
    if together:
        _filled = {wave.shape[1]: torch.tensor(lengths, device=wave.device)}
        try:
            # What is there now may grow to infinity, which no weight of 0 removes.
            return embed(zero_beyond(wave))
        finally:
            _filled = None
    found: list[Tensor] = [wave.new_empty(0)] * len(wave)
    for length in sorted(set(lengths)):
        rows = [i for i, n in enumerate(lengths) if n == length]
        for i, vector in zip(rows, embed(wave[rows, :length]), strict=True):
            found[i] = vector
    return torch.stack(found)


def filled(size: int) -> Tensor | None:
    """How much of a time axis of ``size`` each row fills (B,); None: all of it."""
    return None if _filled is None else _filled[size]


def resize(before: int, after: int, rule: Callable[[Tensor], Tensor]) -> None:
    """A layer made a time axis of size ``after`` of one of ``before``; a row's by ``rule``."""
    if _filled is not None:
        _filled[after] = rule(_filled[before])


def _by_row(lengths: Tensor, x: Tensor) -> Tensor:
    """(B,) in the shape in which it meets ``x`` (B, …)."""
    return lengths.view(-1, *[1] * (x.ndim - 1))


def _beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """Marks what lies beyond the end of each row of ``x`` (B, …, F)."""
    return torch.arange(x.shape[-1], device=x.device) >= _by_row(lengths, x)


def zero_beyond(x: Tensor) -> Tensor:
    """(B, …, F) with zeros beyond the end of each row."""
    lengths = filled(x.shape[-1])
    return x if lengths is None else x.masked_fill(_beyond(x, lengths), 0.0)


def mean(x: Tensor, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Tensor:
    """Mean over ``dim``, of which the last axis is one."""
    lengths = filled(x.shape[-1])
    if lengths is None:
        return x.mean(dim=dim, keepdim=keepdim)
    means = zero_beyond(x).mean(dim=dim, keepdim=keepdim)
    return means / (_by_row(lengths, means).to(means) / x.shape[-1])


def var(x: Tensor, correction: int = 0) -> Tensor:
    """Variance over time: (B, …, F) -> (B, …)."""
    lengths = filled(x.shape[-1])
    if lengths is None:
        return x.var(dim=-1, correction=correction)
    squares = mean((x - mean(x, keepdim=True)).square())
    counts = _by_row(lengths, squares).to(squares)
    return squares * (counts / (counts - correction))


def softmax(x: Tensor) -> Tensor:
    """Softmax over time."""
    lengths = filled(x.shape[-1])
    if lengths is not None:
        x = x.masked_fill(_beyond(x, lengths), float("-inf"))
    return x.softmax(dim=-1)


def last(x: Tensor) -> Tensor:
    """The last frame of each row: (B, …, F) -> (B, …)."""
    lengths = filled(x.shape[-1])
    if lengths is None:
        return x[..., -1]
    place = _by_row(lengths - 1, x).expand(*x.shape[:-1], 1)
    return x.gather(-1, place).squeeze(-1)


def reflect(x: Tensor, before: int, after: int) -> Tensor:
    """Pad time by mirroring at the start and at the end of each row: (…, F) -> (…, F + b + a).

    What follows the ``after`` frames of a row that ends earlier has no meaning.
    """
    padded = F.pad(x, (before, after), mode="reflect")
    lengths = filled(x.shape[-1])
    if lengths is None:
        return padded
    ends = _by_row(lengths, x)
    steps = torch.arange(after, device=x.device)
    mirrored = x.gather(-1, (ends - 2 - steps).expand(*x.shape[:-1], -1))
    mirrored = mirrored.to(padded)  # on the CPU autocast pads in float32
    return padded.scatter_(-1, (before + ends + steps).expand_as(mirrored), mirrored)


class _Padded:
    """Mixin for convolutions."""

    def _pad(self, x: Tensor) -> Tensor:
        """``x`` as the convolution should see it."""
        size, stride = self.kernel_size[-1], self.stride[-1]  # type: ignore[attr-defined]
        reach, pad = self.dilation[-1] * (size - 1), self.padding[-1]  # type: ignore[attr-defined]

        def after(n):
            return (n + 2 * pad - reach - 1) // stride + 1

        seen = zero_beyond(x) if pad else x  # first, since the new size may be the old one
        resize(x.shape[-1], after(x.shape[-1]), after)
        return seen


class Conv1d(_Padded, nn.Conv1d):
    """``nn.Conv1d`` (zero padding given as a number)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if _filled is None else self._pad(x))


class Conv2d(_Padded, nn.Conv2d):
    """``nn.Conv2d`` (likewise), (B, C, bands, F)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if _filled is None else self._pad(x))


class ReflectConv1d(nn.Module):
    """Convolution that keeps the length by mirroring at both ends; ``dilation * (kernel_size - 1)``
    must be even and less than twice the length."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.reach = dilation * (kernel_size - 1) // 2  # to either side
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, dilation=dilation, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(reflect(x, self.reach, self.reach) if self.reach else x)
