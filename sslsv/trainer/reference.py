"""Checkpoints of the reference system: told apart, made readable, and what of them is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslsv.audio import SAMPLE_RATE
from sslsv.methods.base import Method

# All that the pickle of a numpy number names; best metric and learning rates may be such.
_scalar = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

# With ``pooling: false`` the reference makes the pooling of ecapatdnn as well, and does not use it.
IDLE = ("encoder.asp.", "encoder.asp_bn.")

_RENAMED = {"loss_fn.center": "center"}  # of DINO


def made(state: dict[str, Any]) -> bool:
    """Whether the reference wrote ``state``: it keeps no configuration with the weights."""
    return "config" not in state


def converted(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` with plain numbers, and names as they are without a wrapper around the model."""
    model = state["model"]
    if all(key.startswith("module.") for key in model):
        model = {key.removeprefix("module."): value for key, value in model.items()}
    model = {_RENAMED.get(key, key): value for key, value in model.items()}
    plain = {key: x.item() if isinstance(x, np.generic) else x for key, x in state.items()}
    return {**plain, "model": model}


class _Reads(TorchDispatchMode):
    """Notes the tensors that operations are given."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        self.ids.update(id(x) for x in given if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


def read_by_embed(method: Method) -> set[str]:
    """Names of the tensors of the state that an embedding is made of.

    They are found by embedding a second of silence, so a method need not declare them; the method
    is in evaluation mode afterwards.
    """
    state = method.state_dict(keep_vars=True)
    silence = torch.zeros(1, SAMPLE_RATE, device=next(iter(state.values())).device)
    method.eval()
    with torch.no_grad(), _Reads() as reads:
        method.embed(silence, [SAMPLE_RATE])
    return {name for name, tensor in state.items() if id(tensor) in reads.ids}


def optimizer_state(
    state: dict[str, Any], method: Method, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """The optimiser's state in the groups of ``optimizer``; None where it does not fit.

    The reference has a group for each module where there may be one here, so groups are joined:
    their parameters are in the order in which the file names the weights.
    """
    saved = state.get("optimizer", {})
    own = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [name for name, p in method.named_parameters() if p.requires_grad]
    if [name for name in state["model"] if name in set(trainable)] != trainable:
        return None
    groups = saved.get("param_groups", [])
    places = [place for group in groups for place in group["params"]]
    adam = "betas" in optimizer.param_groups[0]
    if len(places) != len(own) or any(("betas" in group) != adam for group in groups):
        return None
    moments = {i: saved["state"][at] for i, at in enumerate(places) if at in saved["state"]}
    for i, values in moments.items():
        tensors = (x for x in values.values() if isinstance(x, Tensor) and x.ndim)
        if any(x.shape != own[i].shape for x in tensors):
            return None
    return {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
