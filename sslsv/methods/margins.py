"""Margins of a softmax over cosines: one family for contrastive and for supervised losses.

A margin makes the positive of an anchor count as less similar than it is, so that it must not only
be nearer than the negatives, but nearer by so much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sslsv import distributed
from sslsv.errors import ConfigError
from sslsv.methods.base import Outputs, Progress
from sslsv.trainer.schedules import anneal

_RATE = 0.01  # of the running statistics of CurricularFace and AdaFace
_WITHOUT = {  # options that a loss cannot have, and why
    "nt-xent": ({"margin_learnable", "margin_scheduler", "margin_simo"}, "has no margin"),
    "nt-xent-magface": (
        {"margin_learnable", "margin_simo"},
        "takes its margin from magface_l_margin, magface_u_margin and the length of embeddings",
    ),
    "nt-xent-sphereface": (
        {"margin_learnable", "margin_simo"},
        "multiplies the angle, and has no gradient with respect to its margin",
    ),
}


@dataclass(kw_only=True)
class MarginConfig:
    """YAML section ``method.loss``."""

    loss: Literal[
        "nt-xent",
        "nt-xent-sphereface",
        "nt-xent-cosface",
        "nt-xent-arcface",
        "nt-xent-curricularface",
        "nt-xent-magface",
        "nt-xent-adaface",
    ] = "nt-xent"  # which margin there is, if any
    symmetric: bool = True  # both views are anchors; false: only the first
    scale: float = 1 / 0.03  # s, inverse of a temperature
    margin: float = 0.1  # m: of a cosine (CosFace), in radians, or times the angle (SphereFace)
    margin_learnable: bool = False  # margin is where a parameter starts
    margin_scheduler: bool = False  # the margin grows over the first half of the training
    margin_simo: bool = False  # margin is log(alpha / K) / s
    margin_simo_K: int = 2 * 255  # K, negatives of an anchor
    margin_simo_alpha: int = 65536  # alpha
    magface_l_margin: float = 0.01  # l_m, radians, of the shortest embeddings
    magface_u_margin: float = 0.05  # u_m, radians, of the longest embeddings
    magface_l_a: float = 10.0  # l_a, length below which the margin is l_m
    magface_u_a: float = 110.0  # u_a, length above which the margin is u_m
    magface_lambda_g: float = 0.0  # lambda_g, weight of the term that favours long embeddings
    adaface_h: float = 0.333  # h, how much the margin depends on the length of embeddings

    def __post_init__(self) -> None:
        for name in ("scale", "adaface_h", "magface_l_a", "margin_simo_K"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}")
        for name in ("margin", "magface_l_margin", "magface_lambda_g"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        for low, high in (
            ("magface_l_margin", "magface_u_margin"),
            ("magface_l_a", "magface_u_a"),
            ("margin_simo_K", "margin_simo_alpha"),
        ):
            least, value = getattr(self, low), getattr(self, high)
            if not least < value < math.inf:
                raise ConfigError(f"{high}: must be more than {low} {least}, got {value}")
        if self.margin_learnable and self.margin_scheduler:
            raise ConfigError(
                "margin_learnable: a margin cannot be learnt and follow margin_scheduler at once; "
                "set one of them to false"
            )
        impossible, reason = _WITHOUT.get(self.loss, ((), ""))
        for name in sorted(impossible):
            if getattr(self, name):
                raise ConfigError(f"{name}: loss '{self.loss}' {reason}; set it to false")
        if self.loss == "nt-xent-sphereface" and self.margin == 0:
            raise ConfigError(
                "margin: 0 makes every positive perfect for nt-xent-sphereface, which multiplies "
                "the angle; 1 is no margin"
            )

    @property
    def full_margin(self) -> float:
        """m where it is not learnt, once a schedule is over."""
        if self.loss == "nt-xent":
            return 0.0
        if self.margin_simo:
            return math.log(self.margin_simo_alpha / self.margin_simo_K) / self.scale
        return self.margin


def check_temperature(temperature: float, default: float, loss: MarginConfig) -> None:
    """Refuse a temperature that somebody expects to matter beside ``loss.scale``."""
    if temperature != default and not math.isclose(temperature, 1 / loss.scale, rel_tol=1e-3):
        raise ConfigError(
            f"temperature: {temperature} has no effect beside loss.scale {loss.scale:g}; set "
            f"loss.scale to {1 / temperature:g} for this temperature"
        )


class Margin(nn.Module):
    """No margin, as in NT-Xent; the others override what they change.

    Shapes: A anchors, K keys; ``norms`` are the lengths of anchors before normalisation, (A, 1).
    A margin is a scalar, or (A, 1) where each anchor has its own.
    """

    neutral: ClassVar[float] = 0.0  # the margin that changes nothing, where a schedule starts

    def __init__(self, config: MarginConfig):
        super().__init__()
        self.config = config
        self.learnt: nn.Parameter | None = None
        if config.margin_learnable:
            self.learnt = nn.Parameter(torch.tensor(config.full_margin))

    def outputs(self, rows: int) -> Outputs:
        """What a method's forward adds to its outputs: a margin that is learnt, (rows, 1)."""
        return {} if self.learnt is None else {"margin": self.learnt.expand(rows, 1)}

    def grown(self, progress: Progress) -> float:
        """From 0 to 1 over the first half of the training, along a cosine."""
        if not self.config.margin_scheduler:
            return 1.0
        return anneal(0.0, 1.0, min(1.0, 2 * progress.step / progress.steps))

    def value(self, outputs: Outputs, progress: Progress, norms: Tensor) -> Tensor:
        """The margin in force."""
        if "margin" in outputs:
            return outputs["margin"].mean()  # all rows are equal
        full, grown = self.config.full_margin, self.grown(progress)
        return norms.new_full((), self.neutral + (full - self.neutral) * grown)

    def logits(self, cosines: Tensor, own: Tensor, margin: Tensor, norms: Tensor) -> Tensor:
        """Cosines of anchors to keys, (A, K), scaled and with the margin in the column of each
        anchor's positive, which ``own`` (A,) holds.

        Keys to be left out are set to -inf in the result, by the caller: -inf in the cosines would
        make the gradient of CurricularFace NaN.
        """
        column = own[:, None]
        target = self.positive(cosines.gather(1, column), margin, norms)  # (A, 1)
        return self.config.scale * self.negatives(cosines, target).scatter(1, column, target)

    def positive(self, cosine: Tensor, margin: Tensor, norms: Tensor) -> Tensor:
        """What the cosine of a positive, (A, 1), counts as."""
        return cosine

    def negatives(self, cosines: Tensor, target: Tensor) -> Tensor:
        """What cosines of negatives, (A, K), count as where the positive counts as ``target``."""
        return cosines

    def penalty(self, norms: Tensor) -> Tensor:
        """What is added to the cross entropy."""
        return norms.new_zeros(())

    def update(self, cosines: Tensor, norms: Tensor, frozen: Tensor) -> None:
        """After a step: running statistics of cosines of positive pairs and of lengths."""


class SphereFace(Margin):
    """psi(theta) = (-1)^k cos(m theta) - 2k, k = floor(m theta / pi) (arXiv 1704.08063, eq. 7).

    Its gradient is passed straight through, as that of the cosine, and m need not be whole.
    """

    neutral = 1.0

    def positive(self, cosine: Tensor, margin: Tensor, norms: Tensor) -> Tensor:
        angle = margin * cosine.detach().clamp(-1, 1).acos()
        k = (angle / math.pi).floor()
        psi = (1 - 2 * (k % 2)) * angle.cos() - 2 * k
        return cosine + (psi - cosine).detach()


class CosFace(Margin):
    """cos(theta) - m (arXiv 1801.09414, eq. 4); NT-Xent-AM (arXiv 2404.14913)."""

    def positive(self, cosine: Tensor, margin: Tensor, norms: Tensor) -> Tensor:
        return cosine - margin


class ArcFace(Margin):
    """cos(theta + m) (arXiv 1801.07698, eq. 3), and cos(theta) - m sin(m) where theta + m > pi:
    there cos(theta + m) would rise again."""

    def positive(self, cosine: Tensor, margin: Tensor, norms: Tensor) -> Tensor:
        shifted, angle = _add_angle(cosine, margin)
        return torch.where(angle > math.pi, cosine - margin * margin.sin(), shifted)


class CurricularFace(ArcFace):
    """ArcFace where a negative harder than the positive, c > cos(theta + m), counts as c (t + c);
    t is the running mean of the cosine of positives (arXiv 2004.00288, sec. 3)."""

    t: Tensor

    def __init__(self, config: MarginConfig):
        super().__init__(config)
        self.register_buffer("t", torch.zeros(()))

    def negatives(self, cosines: Tensor, target: Tensor) -> Tensor:
        return torch.where(cosines > target, cosines * (self.t + cosines), cosines)

    def update(self, cosines: Tensor, norms: Tensor, frozen: Tensor) -> None:
        _follow(self.t, distributed.reduce_mean(cosines.mean()), frozen)


class MagFace(ArcFace):
    """ArcFace whose margin grows with the length a of an embedding, in [l_a, u_a], from l_m to u_m,
    plus lambda_g (a / u_a^2 + 1 / a), which favours long ones (arXiv 2103.06627, sec. 3).
    """

    def _length(self, norms: Tensor) -> Tensor:
        return norms.clamp(self.config.magface_l_a, self.config.magface_u_a)

    def value(self, outputs: Outputs, progress: Progress, norms: Tensor) -> Tensor:
        c = self.config
        slope = (c.magface_u_margin - c.magface_l_margin) / (c.magface_u_a - c.magface_l_a)
        margin = c.magface_l_margin + slope * (self._length(norms) - c.magface_l_a)  # (A, 1)
        return self.grown(progress) * margin

    def penalty(self, norms: Tensor) -> Tensor:
        a = self._length(norms)
        g = a / self.config.magface_u_a**2 + 1 / a
        return self.config.magface_lambda_g * g.mean()


class AdaFace(Margin):
    """cos(theta - m q) - m (1 + q), the angle kept in [0, pi] (arXiv 2204.00964, sec. 3).

    q is the length of an embedding, standardised with running statistics, times h, in [-1, 1]: a
    long one, of good quality, gets a margin on the cosine and a short one on the angle. No
    gradient flows through q.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(self, config: MarginConfig):
        super().__init__(config)
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_std", torch.tensor(100.0))

    def positive(self, cosine: Tensor, margin: Tensor, norms: Tensor) -> Tensor:
        q = (_plausible(norms.detach()) - self.norm_mean) / (self.norm_std + 1e-3)
        q = (q * self.config.adaface_h).clamp(-1, 1)  # (A, 1)
        shifted, angle = _add_angle(cosine, -margin * q)
        shifted = shifted.where(angle < math.pi, -1.0).where(angle > 0, 1.0)
        return shifted - margin * (1 + q)

    def update(self, cosines: Tensor, norms: Tensor, frozen: Tensor) -> None:
        norms = distributed.gather(_plausible(norms))
        _follow(self.norm_mean, norms.mean(), frozen)
        _follow(self.norm_std, norms.std(), frozen)


def make_margin(config: MarginConfig) -> Margin:
    """The margin that ``config.loss`` names."""
    kinds: dict[str, type[Margin]] = {
        "nt-xent": Margin,
        "nt-xent-sphereface": SphereFace,
        "nt-xent-cosface": CosFace,
        "nt-xent-arcface": ArcFace,
        "nt-xent-curricularface": CurricularFace,
        "nt-xent-magface": MagFace,
        "nt-xent-adaface": AdaFace,
    }
    return kinds[config.loss](config)


def _add_angle(cosine: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """cos(theta + m) and, without gradient, theta + m."""
    # The root of 0 has an infinite slope; rounding may make the square of a cosine exceed 1.
    tiny = torch.finfo(cosine.dtype).tiny
    sine = (1 - cosine.square()).clamp(min=tiny).sqrt()
    angle = cosine.detach().clamp(-1, 1).acos() + margin.detach()
    return cosine * margin.cos() - sine * margin.sin(), angle


def _plausible(norms: Tensor) -> Tensor:
    """Lengths as AdaFace takes them: a single enormous one would spoil the statistics."""
    return norms.clamp(1e-3, 100)


def _follow(statistic: Tensor, found: Tensor, frozen: Tensor) -> None:
    moved = statistic.lerp(found.to(statistic), _RATE)
    statistic.copy_(statistic.where(frozen > 0, moved))
