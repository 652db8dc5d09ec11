"""Teachers that follow a student."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sslsv.datasets.views import Batch
from sslsv.errors import ConfigError
from sslsv.methods.base import Method, MethodConfig, Outputs
from sslsv.trainer.schedules import anneal


@dataclass(kw_only=True)
class MomentumConfig(MethodConfig):
    start_tau: float = 0.99  # tau, share of the teacher that an update keeps, at the first step
    end_tau: float = 1.0  # tau at the end of the training, where it is scheduled
    tau_scheduler: bool = True  # half a cosine from start_tau to end_tau; false: always start_tau

    def __post_init__(self) -> None:
        for name in ("start_tau", "end_tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: must be from 0 to 1, got {getattr(self, name)}")


class Momentum(Method):
    """A teacher: an exponential moving average of the student's weights (arXiv 1911.05722, eq. 2),
    with the schedule of arXiv 2006.07733, sec. 3.3.

    Buffers are copied once; from then on the teacher's batch norms keep statistics of what they
    saw themselves, since those of the student belong to the student's weights.
    """

    config: MomentumConfig

    def add_teachers(self, *names: str) -> None:
        """Make ``<name>_momentum``, the teacher of module ``<name>``: a copy without gradient."""
        self._followed = names
        for name in names:
            teacher = copy.deepcopy(getattr(self, name)).requires_grad_(False)
            self.add_module(f"{name}_momentum", teacher)

    @property
    def tau(self) -> float:
        """Of the step at hand."""
        c, p = self.config, self.progress
        return anneal(c.start_tau, c.end_tau, p.step / p.steps) if c.tau_scheduler else c.start_tau

    @torch.no_grad()
    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        """teacher <- tau · teacher + (1 - tau) · student"""

        def weights(suffix: str = "") -> list[Tensor]:
            modules = (getattr(self, name + suffix) for name in self._followed)
            return [p for module in modules for p in module.parameters()]

        teachers = weights("_momentum")
        moves = torch._foreach_sub(weights(), teachers)
        torch._foreach_mul_(moves, (1 - self.tau) * (1 - frozen.to(moves[0])))
        torch._foreach_add_(teachers, moves)
