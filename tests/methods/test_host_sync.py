"""No training step of any method makes the host wait for the device.

On the CPU the operators are watched whose results, on a GPU, the host would have to read: that
finds a wait without a GPU. With one, CUDA itself refuses to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, ROWS, Case
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.trainer import Trainer

# Their results, or the sizes of these, are values that only the device knows.
WAITING = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "linalg_cholesky",
    "linalg_inv",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}


class Waits(TorchDispatchMode):
    """Names of operators that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put", "index_put_") and _by_mask(args[1])):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _by_mask(indices: Any) -> bool:
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in indices)


@contextmanager
def refusing() -> Iterator[None]:
    """CUDA calls that wait raise."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make(case: Case, tmp_path: Path, device: str, **fields: Any) -> Trainer:
    config = TrainerConfig(epochs=2, batch_size=ROWS, **fields)
    loader: Any = [None] * 10  # steps of an epoch; the batches are given to train_step
    return Trainer(config, case.method(), loader, loader, tmp_path, {}, torch.device(device))


SETTINGS = [
    {"mixed_precision": False},
    {"mixed_precision": "bf16", "clip_grad_norm": 1.0, "optimizer": "lars"},
    {"mixed_precision": False, "accumulation": 2, "optimizer": "sgd", "clip_grad_tensor_norm": 1.0},
]
IDS = ["fp32", "bf16-lars-clipped", "fp32-sgd-in-parts"]


@pytest.mark.parametrize("fields", SETTINGS, ids=IDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_asks_for_nothing_the_device_knows(case, fields, tmp_path):
    if case.type == "wmse":  # half a batch is too few rows to whiten
        fields = fields | {"accumulation": 1}
    trainer = make(case, tmp_path, "cpu", **fields)
    trainer.method.train()
    for seed in range(2):
        trainer.train_step(case.batch(seed))
    with Waits() as waits:
        trainer.train_step(case.batch(2))
    assert waits.found == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fields", SETTINGS[:2], ids=IDS[:2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_does_not_wait_for_the_gpu(case, fields, tmp_path):
    trainer = make(case, tmp_path, "cuda", **fields)
    trainer.method.train()
    for seed in range(2):
        trainer.train_step(case.batch(seed).pin_memory())
    batch = case.batch(2).pin_memory()
    with refusing():
        trainer.train_step(batch)


WAITERS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "truth": lambda x: bool((x > 0).all()),
    "mask": lambda x: x[x > 0],
    "assignment by mask": lambda x: x.index_put_((x > 0,), torch.tensor(0.0)),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "where": lambda x: torch.where(x > 0),
    "list": lambda x: [float(v) for v in x],
    "cholesky": lambda x: torch.linalg.cholesky(torch.eye(3)),
}


@pytest.mark.parametrize("call", WAITERS.values(), ids=WAITERS.keys())
def test_what_waits_is_noticed(call):
    with Waits() as waits:
        call(torch.randn(5))
    assert waits.found


def test_what_does_not_wait_is_not():
    x, layer = torch.randn(5, 4), nn.Linear(4, 3)
    with Waits() as waits:
        layer(x).square().mean().backward()
        x.masked_fill_(x > 0, 0).gather(0, torch.zeros(1, 4, dtype=torch.long))
        x[torch.tensor([1, 2])].softmax(dim=-1).argmax(dim=-1)
    assert waits.found == []
