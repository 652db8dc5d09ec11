"""Two processes on one machine do what one process does on the joined batch."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslsv import distributed, experiment
from sslsv.config import load_config
from sslsv.datasets.manifest import Manifest
from sslsv.datasets.preflight import preflight
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import DataError, UserError
from sslsv.methods.simclr import SimCLR, SimCLRConfig
from sslsv.trainer.guard import FiniteGuard
from sslsv.trainer.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
WORLD, ROWS, STEPS = 2, 3, 5  # processes, rows of each, optimiser steps
WEIGHTS = [[1.0, 10.0, 100.0, 1000.0], [2.0, 20.0, 200.0, 2000.0]]  # of a row in a rank's loss


# ---------------------------------------------------------------------------- in each process


def gather_rows(rank: int) -> dict[str, Any]:
    """x holds rows (1, 2) on rank 0 and (3, 4) on rank 1; the loss is a weighted sum of all."""
    x = torch.tensor([[1.0], [2.0]]) + 2 * rank
    x.requires_grad_()
    rows = distributed.gather(x)
    (rows[:, 0] * torch.tensor(WEIGHTS[rank])).sum().backward()
    return {"rows": rows.detach(), "grad": x.grad}


def small_talk(rank: int) -> dict[str, Any]:
    return {
        "rank": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "sum": distributed.reduce_sum(torch.tensor(1.0 + rank)),
        "max": distributed.reduce_max(torch.tensor(1.0 + rank)),
        "mean": distributed.reduce_mean(torch.tensor(1.0 + rank)),
        "broadcast": distributed.broadcast({"from": rank}),
        "broadcast_": distributed.broadcast_(torch.tensor(1.0 + rank)),
        "objects": distributed.gather_objects({"from": rank}),
    }


def made_by_the_main_process(rank: int) -> dict[str, Any]:
    """``calls`` counts what this process made itself."""
    calls = 0

    def make() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {"by": rank, "array": np.arange(3.0) + rank}

    def refuse() -> None:
        raise DataError(f"list{rank}.csv: of no use")

    made = distributed.from_main(make)
    nothing = distributed.from_main(lambda: None)
    try:
        distributed.from_main(refuse)
        refusal = None
    except UserError as error:
        refusal = error
    return {
        "made": {"by": made["by"], "array": made["array"].tolist()},
        "calls": calls,
        "nothing": nothing,
        "refusal": (type(refusal).__name__, str(refusal)),
        "after": distributed.from_main(lambda: f"from {rank}"),
    }


def guard_one_bad_rank(rank: int) -> dict[str, Any]:
    """Only rank 1 meets a NaN, at step 6."""
    guard = FiniteGuard(torch.device("cpu"))
    for step in range(5, 8):
        loss = torch.tensor(math.nan if (rank, step) == (1, 6) else 1.0)
        guard.watch(loss, [], step, torch.tensor([100 * rank + step]))
    failure = guard.failure()
    assert failure is not None
    return {"frozen": guard.frozen, "step": failure[0], "rows": failure[1]}


def preflight_where_a_file_is_missing(rank: int, folder: Path) -> str:
    """Each rank has a list of its own; what counts is that of rank 0."""
    manifest = Manifest(
        path=folder / f"list{rank}.csv",
        base_path=folder,
        files=np.array([b"gone.wav"]),
        labels=np.zeros(1, dtype=np.int64),
        label_names=["x"],
        lines=np.array([2]),
    )
    try:
        preflight(manifest, DatasetConfig())
    except DataError as error:
        return str(error)
    return ""


def train_simclr(rank: int, world: int) -> dict[str, Any]:
    """SGD in float64 on this rank's part of a batch; batch norm keeps the statistics of the whole.

    With statistics of each rank's own rows the ranks could not agree with one process.
    """
    torch.manual_seed(0)
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=8, mel_n_mels=8))
    config = SimCLRConfig(
        type="simclr", projector_hidden_dim=8, projector_output_dim=4, temperature=0.2
    )
    method = SimCLR(config, encoder).double()
    views = list(torch.randn(2, WORLD * ROWS, 3000, dtype=torch.float64))
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    method(views)
    method.eval()
    if world > 1:
        views = [view.chunk(world)[rank] for view in views]
    network: nn.Module = DistributedDataParallel(method) if world > 1 else method
    optimizer = torch.optim.SGD(method.parameters(), 1e-5, momentum=0.9)
    losses, first = [], {}
    for step in range(STEPS):
        batch = Batch(torch.arange(len(views[0])), torch.arange(len(views[0])), views)
        loss, _ = method.loss(network(views), batch)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first = {name: copy.deepcopy(p.grad) for name, p in method.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    weights = {name: p.detach() for name, p in method.named_parameters()}
    return {"losses": losses, "gradients": first, "weights": weights}


def work(rank: int, folder: Path) -> None:
    """What each of the two processes runs; its results go to a file."""
    torch.set_num_threads(1)
    init = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    results = {
        "gather": gather_rows(rank),
        "talk": small_talk(rank),
        "from_main": made_by_the_main_process(rank),
        "guard": guard_one_bad_rank(rank),
        "preflight": preflight_where_a_file_is_missing(rank, folder),
        "simclr": train_simclr(rank, WORLD),
    }
    torch.save(results, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of both processes."""
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (folder,), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


# ---------------------------------------------------------------------------- gather and friends


def test_gather_gives_all_rows_in_rank_order(found):
    for result in found:
        assert result["gather"]["rows"].tolist() == [[1.0], [2.0], [3.0], [4.0]]


def test_gradient_of_gather_is_the_sum_over_all_losses(found):
    assert found[0]["gather"]["grad"].tolist() == [[1.0 + 2], [10.0 + 20]]
    assert found[1]["gather"]["grad"].tolist() == [[100.0 + 200], [1000.0 + 2000]]


def test_reductions_and_objects(found):
    for rank, result in enumerate(found):
        talk = result["talk"]
        assert talk["rank"] == (rank, 2, rank == 0)
        assert (talk["sum"], talk["max"]) == (3.0, 2.0)
        assert talk["mean"] == 1.5
        assert talk["broadcast"] == {"from": 0}
        assert talk["broadcast_"] == 1
        assert talk["objects"] == [{"from": 0}, {"from": 1}]


def test_the_main_process_makes_a_thing_for_all(found):
    for rank, result in enumerate(found):
        shared = result["from_main"]
        assert shared["made"] == {"by": 0, "array": [0.0, 1.0, 2.0]}
        assert shared["calls"] == (1 if rank == 0 else 0)
        assert shared["nothing"] is None


def test_what_the_main_process_cannot_make_is_an_error_of_all(found):
    for result in found:
        assert result["from_main"]["refusal"] == ("DataError", "list0.csv: of no use")
        assert result["from_main"]["after"] == "from 0"  # processes are still in step


def test_alone_everything_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.reduce_sum(x) is x
    assert distributed.reduce_max(x) is x
    assert distributed.broadcast_(x) is x
    assert distributed.broadcast("a") == "a"
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.from_main(lambda: x) is x
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()


def test_a_session_without_other_processes_makes_no_group(monkeypatch):
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        with distributed.session():
            assert not dist.is_initialized()


def test_all_processes_freeze_when_one_meets_a_nan(found):
    for rank, result in enumerate(found):
        assert result["guard"]["frozen"] == 1
        assert result["guard"]["step"] == 6
        assert result["guard"]["rows"].tolist() == [100 * rank + 6]


def test_what_the_main_process_finds_missing_is_raised_by_all(found):
    for result in found:
        assert "list0.csv: 1 of 1 files not found below" in result["preflight"]


# ---------------------------------------------------------------------------- SimCLR


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train_simclr(0, 1)


def assert_equal_to_1e6(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).norm() / tensor.norm().clamp(min=1e-9)
        assert error < 1e-6, name


def test_loss_of_two_processes_is_that_of_the_joined_batch(found, alone):
    means = np.mean([result["simclr"]["losses"] for result in found], axis=0)
    np.testing.assert_allclose(means, alone["losses"], rtol=1e-6)
    assert alone["losses"][-1] < alone["losses"][0] - 0.5  # it does learn


def test_gradients_of_two_processes_are_those_of_the_joined_batch(found, alone):
    for result in found:
        assert_equal_to_1e6(result["simclr"]["gradients"], alone["gradients"])


def test_weights_of_two_processes_are_those_of_the_joined_batch(found, alone):
    for result in found:
        assert_equal_to_1e6(result["simclr"]["weights"], alone["weights"])


# ---------------------------------------------------------------------------- the real trainer

RECORDER = """\
# Runs sslsv/bin/train.py and notes which rows each step saw.
import json, os, runpy, sys
from pathlib import Path
from sslsv.trainer.tracking import Tracker
from sslsv.trainer.trainer import Trainer

steps, plain = [], Trainer.train_step

def train_step(self, batch):
    steps.append(batch.rows.tolist())
    return plain(self, batch)

seen, log_epoch = [], Tracker.log_epoch

def note_statistics(self, *args):
    seen.append({n: b.double().sum().item() for n, b in trainers[0].method.named_buffers()})
    log_epoch(self, *args)

trainers, fit = [], Trainer.fit

def note_trainer(self):
    trainers.append(self)
    fit(self)

Trainer.train_step, Trainer.fit, Tracker.log_epoch = train_step, note_trainer, note_statistics
folder = Path(sys.argv.pop(1))
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
finally:
    (folder / f"rows{os.environ['RANK']}.json").write_text(json.dumps(steps))
    (folder / f"seen{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""


def test_train_py_under_torchrun(config_file, tmp_path, monkeypatch):
    validation = "evaluation.validation=[{type: sv_cosine, num_frames: 1, trials: [trials]}]"
    metric = "trainer.tracked_metric=val/sv_cosine/trials/eer"
    overrides = ["dataset.max_samples=16", validation, metric]
    recorder = tmp_path / "recorder.py"
    recorder.write_text(RECORDER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(recorder), str(tmp_path), "sslsv/bin/train.py", str(config_file)]
    command += [*overrides, f"run_dir={tmp_path / 'two'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch 2/2") == 1  # one process speaks
    assert "2 process(es)" in done.stdout
    assert done.stdout.count("here batch norm sees the 4 rows of each process") == 1
    first, second = (json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # after an epoch, running statistics are those of the main process

    steps: list[list[int]] = []
    plain = Trainer.train_step

    def train_step(self: Trainer, batch: Batch) -> dict[str, Tensor]:
        steps.append(batch.rows.tolist())
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(distributed, "default_device", lambda: torch.device("cpu"))
    experiment.train(load_config(config_file, [*overrides, f"run_dir={tmp_path / 'one'}"]))

    first, second = (json.loads((tmp_path / f"rows{rank}.json").read_text()) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == steps
    assert len(steps) == 4

    def left(run: str) -> list[str]:
        paths = (tmp_path / run).rglob("*")
        files = [str(p.relative_to(tmp_path / run)) for p in paths if p.is_file()]
        return sorted("tensorboard/" if "tensorboard" in name else name for name in files)

    assert left("two") == left("one")
    one, two = (json.loads((tmp_path / n / "training.json").read_text()) for n in ("one", "two"))
    assert one.keys() == two.keys() == {"1", "2"}
    for epoch in one:  # batch norm sees 8 rows in place of 16
        assert two[epoch].keys() == one[epoch].keys()
        assert two[epoch]["train/loss"] == pytest.approx(one[epoch]["train/loss"], rel=0.2)
        assert two[epoch]["train/lr"] == one[epoch]["train/lr"]
