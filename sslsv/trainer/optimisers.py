"""Optimisers, what they are given of a method, and clipping: nothing in a step waits for the
device.

An optimiser's attribute ``found_inf`` is a device scalar, 1.0 where a step is to change neither
weights nor moments; ``grad_scale`` is one that gradients are to be divided by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sslsv.methods.base import Method
from sslsv.trainer.config import TrainerConfig

MOMENTUM = 0.9  # of sgd and lars
TRUST = 0.001  # eta of LARS

Group = dict[str, Any]


class SGD(torch.optim.SGD):
    """Fused SGD whose momentum starts from zeros.

    As it comes, it fails where some tensors have their first gradient later than others (layers
    that are frozen at first), and a skipped first step leaves its momentum uninitialised.
    """

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return super().step(closure)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888, algorithm 1).

    A tensor w with gradient g and velocity v, learning rate lr, weight decay beta, trust
    coefficient eta and momentum m::

        rate = eta * |w| / (|g| + beta * |w|)      1 where that is 0 or 0 / 0
        v <- m * v + lr * rate * (g + beta * w)
        w <- w - v

    Tensors of one dimension, and those of groups with ``no_decay``, have rate 1 and beta 0 (as in
    arXiv 2006.07733, section 3.3).
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler gives found_inf and grad_scale

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = MOMENTUM,
        trust: float = TRUST,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            adapted = [] if group.get("no_decay") else [p for p in given if p.ndim > 1]
            others = given if group.get("no_decay") else [p for p in given if p.ndim <= 1]
            if adapted:
                self._move(adapted, self._adapted(adapted, group), group)
            if others:
                self._move(others, self._gradients(others), group)
        return loss

    def _gradients(self, params: list[Tensor]) -> list[Tensor]:
        """Zeros where the step is to be skipped, since 0 times NaN would be NaN."""
        grads = [p.grad for p in params if p.grad is not None]
        if (scale := getattr(self, "grad_scale", None)) is not None:
            grads = list(torch._foreach_div(grads, scale))
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            skip = found_inf > 0
            grads = [grad.masked_fill(skip, 0) for grad in grads]
        return grads

    def _adapted(self, params: list[Tensor], group: Group) -> list[Tensor]:
        """``rate * (g + beta * w)`` of each."""
        grads, decay = self._gradients(params), group["weight_decay"]
        size = norms(params)
        total = norms(grads) + decay * size
        rates = group["trust"] * size / total
        rates.masked_fill_((size == 0) | (total == 0), 1)
        updates = torch._foreach_add(grads, params, alpha=decay)
        torch._foreach_mul_(updates, list(rates.unbind()))
        return list(updates)

    def _move(self, params: list[Tensor], updates: list[Tensor], group: Group) -> None:
        for p in params:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocities = [self.state[p]["velocity"] for p in params]
        dtype = params[0].dtype
        torch._foreach_mul_(velocities, self._unless_skipped(group["momentum"], 1.0, dtype))
        lr = self._unless_skipped(group["lr"], 0.0, dtype)
        torch._foreach_add_(velocities, torch._foreach_mul(updates, lr))
        done = self._unless_skipped(1.0, 0.0, dtype)
        torch._foreach_sub_(params, torch._foreach_mul(velocities, done))

    def _unless_skipped(self, value: float, skipped: float, dtype: torch.dtype) -> Any:
        """A factor, on the device where only that knows whether the step is skipped."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            return value
        return torch.full_like(found_inf, value, dtype=dtype).masked_fill_(found_inf > 0, skipped)


def norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of each of L tensors: (L,)."""
    return torch.stack(torch._foreach_norm(tensors))


def make_optimizer(config: TrainerConfig, method: Method) -> torch.optim.Optimizer:
    """The groups of ``method``, which are split where biases and norms are not to be decayed."""
    groups = [
        {**group, "own_decay": True} if "weight_decay" in group else group
        for group in method.param_groups()
    ]
    if not config.weight_decay_all or config.optimizer == "lars":
        undecayed = _undecayed(method)
        groups = [part for group in groups for part in _split(group, undecayed)]
    lr, decay = config.peak_learning_rate, config.weight_decay
    if config.optimizer == "lars":
        return LARS(groups, lr, weight_decay=decay)
    if config.optimizer == "sgd":
        return SGD(groups, lr, momentum=MOMENTUM, weight_decay=decay, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr, weight_decay=decay, fused=True)


def _undecayed(method: nn.Module) -> set[int]:
    """Ids of tensors of at most one dimension, and of biases and parameters of norms of any."""
    found = {id(p) for p in method.parameters() if p.ndim <= 1}
    for module in method.modules():
        normalises = hasattr(module, "running_mean")
        for name, p in module.named_parameters(recurse=False):
            if normalises or name == "bias":
                found.add(id(p))
    return found


def _split(group: Group, undecayed: set[int]) -> list[Group]:
    """Those of ``group`` that are decayed, then the others; a group with a weight decay of its own
    stays as it is."""
    if group.get("own_decay"):
        return [group]
    params = list(group["params"])
    decayed = [p for p in params if id(p) not in undecayed]
    others = [p for p in params if id(p) in undecayed]
    parts = [
        {**group, "params": decayed},
        {**group, "params": others, "weight_decay": 0.0, "no_decay": True},
    ]
    return [part for part in parts if part["params"]]


def set_hyperparameters(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Of the groups that follow the schedules."""
    for group in optimizer.param_groups:
        if not group.get("fixed_lr"):
            group["lr"] = lr
        if not group.get("no_decay") and not group.get("own_decay"):
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], config: TrainerConfig) -> None:
    """Scale gradients down to the largest norm of each tensor, then to that of all together.

    Where a norm is NaN or infinite, what was so is NaN afterwards.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    if config.clip_grad_tensor_norm is not None:
        shares = (config.clip_grad_tensor_norm / norms(grads)).clamp(max=1)
        torch._foreach_mul_(grads, list(shares.unbind()))
    if config.clip_grad_norm is not None:
        share = (config.clip_grad_norm / torch.linalg.vector_norm(norms(grads))).clamp(max=1)
        torch._foreach_mul_(grads, share)
