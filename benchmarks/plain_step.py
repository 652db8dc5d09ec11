"""A training step as one writes it first: what benchmarks/train_step.py measures against.

Eager float32, views encoded one after the other, the default layout of convolutions, an optimiser
and a teacher that are updated tensor by tensor, the loss read by the host at every step, and for
DINO a loss that loops over pairs of views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.methods import dino
from sslsv.methods.momentum import Momentum
from sslsv.trainer.optimisers import MOMENTUM
from sslsv.trainer.trainer import Trainer


def plain_step(trainer: Trainer) -> Callable[[Batch], float]:
    """The step of ``trainer``'s method; changes the method and, for this process, its classes."""
    method = trainer.method
    Momentum.on_step_end = follow  # type: ignore[method-assign]
    dino.distillation = distillation  # type: ignore[assignment]
    for module in method.modules():
        if isinstance(module, Encoder):
            default_layout(module)
            one_by_one(module, trainer.config.batch_size)
    groups = [{"params": list(group["params"])} for group in trainer.optimizer.param_groups]
    rate = trainer.config.learning_rate
    if trainer.config.optimizer == "adam":
        optimizer: Any = torch.optim.Adam(groups, rate, foreach=False)
    else:
        optimizer = torch.optim.SGD(groups, rate, MOMENTUM, foreach=False)

    def step(batch: Batch) -> float:
        batch = batch.to(trainer.device)
        method.progress = trainer.progress
        optimizer.zero_grad()
        outputs = method(batch.views)
        loss, _ = method.loss(outputs, batch)
        loss.backward()
        method.on_gradients()
        optimizer.step()
        detached = {name: x.detach() for name, x in outputs.items()}
        method.on_step_end(detached, batch, torch.zeros((), device=trainer.device))
        return loss.item()

    return step


def default_layout(encoder: nn.Module) -> None:
    """Of images: rows, channels, bands, frames."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(
                lambda _, given: (
                    (given[0].clone(memory_format=torch.contiguous_format),)
                    if not given[0].is_contiguous() or given[0].shape[1] == 1
                    else None
                )
            )


def one_by_one(encoder: Encoder, rows: int) -> None:
    """Views of ``rows`` utterances, one after the other."""
    together = encoder.forward
    encoder.forward = lambda wave: torch.cat([together(view) for view in wave.split(rows)])  # type: ignore[method-assign]


@torch.no_grad()
def follow(self: Momentum, outputs: Any, batch: Batch, frozen: Tensor) -> None:
    """teacher <- tau · teacher + (1 - tau) · student, a tensor at a time."""
    for name in self._followed:
        student, teacher = getattr(self, name), getattr(self, f"{name}_momentum")
        for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
            own.copy_(self.tau * own + (1 - self.tau) * other)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``sslsv.methods.dino.distillation`` with a loop over pairs of views."""
    scores = [x / temperature for x in student.unbind(1)]
    losses = [
        -(p * x.log_softmax(dim=-1)).sum(dim=-1).mean()
        for t, p in enumerate(teacher.unbind(1))
        for v, x in enumerate(scores)
        if v != t
    ]
    return torch.stack(losses).mean()
