"""Two gloo processes give the loss, gradients and weights of one process on the joined batch.

In float64 and with batch norm in evaluation mode: statistics of each process's own rows would be
others (and are, where a method says so: LOCAL).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import CASES, ROWS, Case
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslsv import distributed
from sslsv.methods.base import Progress

WORLD, STEPS = 2, 5
# Statistics of each process's own rows are part of the loss.
LOCAL = {"barlow_twins": "its batch norm is local by definition", "combiner": "has Barlow Twins"}


def train(case: Case, rank: int, world: int) -> dict[str, Any]:
    method = case.method().double().eval()
    network: nn.Module = method
    if world > 1:
        network = DistributedDataParallel(method, broadcast_buffers=False)
    optimizer = torch.optim.SGD(method.param_groups(), 0.01, momentum=0.9)
    losses, gradients = [], {}
    for number in range(STEPS):
        batch = case.batch(number, dtype=torch.float64)
        batch.rows, batch.labels = (x.chunk(world)[rank] for x in (batch.rows, batch.labels))
        batch.views = [view.chunk(world)[rank] for view in batch.views]
        method.progress = Progress(number, STEPS, 0, 1, seed=3)
        outputs = network(batch.views)
        loss, _ = method.loss(outputs, batch)
        optimizer.zero_grad()
        loss.backward()
        if number == STEPS - 1:  # when queues hold something
            gradients = {
                name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None
            }
        method.on_gradients()
        optimizer.step()
        detached = {name: x.detach() for name, x in outputs.items()}
        method.on_step_end(detached, batch, torch.zeros((), dtype=torch.float64))
        losses.append(loss.item())
    return {
        "losses": losses,
        "gradients": gradients,
        "state": {**method.state_dict(), **method.memories()},
    }


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD
    )
    found = {case.name: train(case, rank, WORLD) for case in CASES}
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (folder,), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        x, y = found[name].double(), tensor.double()
        error, size = (x - y).norm(), y.norm()
        assert error <= 1e-6 * size + 1e-12, name  # some gradients are 0 but for rounding


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_are_one(found, case):
    if case.type in LOCAL:
        pytest.skip(LOCAL[case.type])
    alone = train(case, 0, 1)
    means = np.mean([result[case.name]["losses"] for result in found], axis=0)
    np.testing.assert_allclose(means, alone["losses"], rtol=1e-6)
    assert np.ptp(alone["losses"]) > 1e-6  # it moves
    for result in found:
        assert_same(result[case.name]["gradients"], alone["gradients"])
        assert_same(result[case.name]["state"], alone["state"])  # weights, teachers, queues


def test_every_process_has_its_share():
    assert ROWS % WORLD == 0
