"""The engine of the loop: accumulation, half precision, checkpoints within an epoch, signals."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_trainer import assert_identical, assert_same_training, history, saved
from torch import Tensor, nn
from torch.utils.data import Dataset

from sslsv import distributed, experiment, interrupt
from sslsv.config import from_dict, load_config
from sslsv.datasets.loader import Loader
from sslsv.datasets.samplers import Draw, ShuffledBatches
from sslsv.datasets.views import Batch, Skipped
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import CheckpointError, ConfigError
from sslsv.interrupt import Interrupted, StopRequest, marker
from sslsv.methods.base import Method
from sslsv.methods.memory import RowMemory
from sslsv.registry import METHODS
from sslsv.trainer import checkpoint, precision, saving
from sslsv.trainer import trainer as engine
from sslsv.trainer.averaging import average_epochs
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.guard import NonFiniteLoss
from sslsv.trainer.trainer import Trainer

ROWS, SAMPLES, BATCH, WORLD = 24, 12, 8, 2
STEPS = ROWS // BATCH  # of an epoch
CPU = torch.device("cpu")


class Died(BaseException):
    """As a kill: nothing that runs catches it."""


# ---------------------------------------------------------------------------- a table to train on


class Small(Encoder):
    """A batch norm, which has seen something, and a linear layer."""

    def __init__(self) -> None:
        super().__init__(EncoderConfig(type="small", encoder_dim=8, extract_mel_features=False))
        self.norm = nn.BatchNorm1d(SAMPLES)
        self.layer = nn.Linear(SAMPLES, 8)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, wave: Tensor) -> Tensor:
        return self.layer(self.norm(wave))


class Table(Dataset):
    """Row i is fixed noise, other noise in each view; its label is i modulo 4."""

    def __init__(self, views: int):
        generator = torch.Generator().manual_seed(1)

        def noise() -> Tensor:
            return torch.randn(ROWS, SAMPLES, generator=generator, dtype=torch.float64)

        base = noise()
        self.views = [base + 0.3 * noise() for _ in range(views)]

    def __getitems__(self, draws: list[Draw]) -> Batch:
        rows = torch.tensor([draw.row for draw in draws])
        return Batch(rows, rows % 4, [view[rows] for view in self.views])


def method_of(type: str, **fields: Any) -> Method:
    """In float64, and in evaluation mode whatever the trainer says: the same weights each time."""
    torch.manual_seed(1)
    data = {"encoder": {"type": "resnet34"}, "method": {"type": type, **fields}}
    method = METHODS.get(type).cls(from_dict(data).method, Small()).double()
    method.train = lambda mode=True: nn.Module.train(method, False)  # type: ignore[method-assign]
    return method.eval()


def build(run_dir: Path, method: Method, validate: Any = None, **fields: Any) -> Trainer:
    torch.manual_seed(7)
    fields = {"epochs": 2, "batch_size": BATCH, "learning_rate": 0.05, "optimizer": "sgd"} | fields
    sampler = ShuffledBatches(
        ROWS, fields["batch_size"], 7, distributed.rank(), distributed.world_size()
    )
    loader = Loader(Table(1 if method.views == "single" else 2), sampler, num_workers=0)
    config = TrainerConfig(**fields)
    return Trainer(config, method, loader, sampler, run_dir, {}, CPU, validate)


def batch_of(trainer: Trainer) -> Batch:
    trainer.sampler.set_epoch(0)
    return next(iter(trainer.loader))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, y in expected.items():
        x, y = found[name].double(), y.double()
        assert (x - y).norm() <= tolerance * (1 + y.norm()), name


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in state.items()}


# ---------------------------------------------------------------------------- accumulation

PROJECTOR = {"projector_hidden_dim": 12, "projector_output_dim": 10}
MOCO = {**PROJECTOR, "queue_size": 16, "prevent_class_collisions": True}
# Methods that compare no utterance with others of its batch: the parts' mean is the whole's.
ROW_BY_ROW: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("supervised", {"nb_classes": 4, "classifier": "linear"}),
    "aam": ("supervised", {"nb_classes": 4, "aam_scale": 8.0, "aam_margin_scheduler": True}),
    "moco": ("moco", MOCO),
}


def trained(run_dir: Path, case: str, **fields: Any) -> dict[str, Any]:
    """What a short training of a case gives."""
    type, section = ROW_BY_ROW[case]
    trainer = build(run_dir, method_of(type, **section), weight_decay=0.01, **fields)
    trainer.fit()
    return {"state": copied(trainer.method.state_dict()), "history": history(trainer)}


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("case", ROW_BY_ROW)
def test_parts_give_the_updates_of_the_whole_batch(tmp_path, case, optimizer, accumulation):
    whole = trained(tmp_path / "whole", case, optimizer=optimizer)
    parts = trained(tmp_path / "parts", case, optimizer=optimizer, accumulation=accumulation)
    assert_close(parts["state"], whole["state"], 1e-9)
    first = method_of(*ROW_BY_ROW[case][:1], **ROW_BY_ROW[case][1]).state_dict()
    assert not torch.allclose(whole["state"]["encoder.layer.weight"], first["encoder.layer.weight"])
    for epoch, metrics in whole["history"].items():
        if case != "moco":  # which logs statistics of a batch
            assert parts["history"][epoch] == pytest.approx(metrics, rel=1e-9)
        assert parts["history"][epoch]["train/loss"] == pytest.approx(metrics["train/loss"])


def test_metrics_of_a_step_are_means_over_its_parts(tmp_path):
    trainer = build(tmp_path, method_of("simclr", **PROJECTOR), accumulation=4)
    found: list[dict[str, float]] = []
    plain = trainer.method.loss

    def loss(outputs, batch):
        value, metrics = plain(outputs, batch)
        found.append({"train/loss": value.item(), "train/row": batch.rows.float().mean().item()})
        return value, metrics | {"train/row": found[-1]["train/row"]}

    trainer.method.loss = loss
    metrics = trainer.train_step(batch_of(trainer))
    assert len(found) == 4
    for name in ("train/loss", "train/row"):
        assert float(metrics[name]) == pytest.approx(np.mean([part[name] for part in found]))


def test_a_contrastive_loss_compares_the_utterances_of_a_part_and_gradients_are_of_their_mean(
    tmp_path,
):
    trainer = build(tmp_path, method_of("simclr", **PROJECTOR), accumulation=2)
    alone = copy.deepcopy(trainer.method)
    batch = batch_of(trainer)
    losses = []
    for rows in (slice(0, 4), slice(4, 8)):
        part = Batch(batch.rows[rows], batch.labels[rows], [view[rows] for view in batch.views])
        losses.append(alone.loss(alone(part.views), part)[0])
    (sum(losses) / 2).backward()
    metrics = trainer.train_step(batch)
    assert float(metrics["train/loss"]) == pytest.approx(sum(losses).item() / 2, rel=1e-12)
    for p, q in zip(trainer.method.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_queue_of_moco_takes_in_the_whole_batch_at_once(tmp_path):
    trainer = build(tmp_path, method_of("moco", **MOCO), accumulation=4)
    before = trainer.method.queue.clone()
    seen, plain = [], trainer.method.loss

    def loss(outputs, batch):
        seen.append((trainer.method.queue.clone(), outputs["k1"].detach()))
        return plain(outputs, batch)

    trainer.method.loss = loss
    batch = batch_of(trainer)
    trainer.train_step(batch)
    assert all(torch.equal(queue, before) for queue, _ in seen)  # none meets its own batch's keys
    assert trainer.method.queue_ptr.item() == BATCH
    keys = torch.cat([k for _, k in seen])
    keys = keys / keys.norm(dim=1, keepdim=True)
    torch.testing.assert_close(trainer.method.queue[0, :, :BATCH].T, keys)
    assert torch.equal(trainer.method.queue[:, :, BATCH:], before[:, :, BATCH:])
    assert trainer.method.queue_labels[:BATCH].tolist() == batch.labels.tolist()


def test_what_accumulation_means_for_a_loss_is_said(tmp_path, capsys):
    method = method_of("simclr", **PROJECTOR)
    build(tmp_path / "parts", method, accumulation=4, stop_at_epoch=1).fit()
    said = "a loss compares the 2 utterances of a part with each other, not all 8 of a batch"
    assert f"trainer.accumulation: {said}" in capsys.readouterr().out
    build(tmp_path / "whole", method, stop_at_epoch=1).fit()
    assert "trainer.accumulation" not in capsys.readouterr().out


def test_a_batch_that_does_not_divide_into_parts_is_refused():
    with pytest.raises(ConfigError, match="accumulation: batch_size 8 does not divide into 3 part"):
        TrainerConfig(batch_size=8, accumulation=3)
    with pytest.raises(ConfigError, match="accumulation: must be at least 1, got 0"):
        TrainerConfig(accumulation=0)


SUPERVISED = ["method={type: supervised, nb_classes: 8}", "dataset.ssl=false"]  # batch_size 8


@pytest.mark.parametrize(("world", "accumulation"), [(2, 8), (4, 4), (8, 2), (3, 2)])
def test_a_batch_that_does_not_divide_over_processes_and_parts_is_refused(
    config_file, world, accumulation
):
    config = load_config(config_file, [*SUPERVISED, f"trainer.accumulation={accumulation}"])
    config.check(1)
    message = (
        f"batch_size: 8 does not divide over {world} processes in {accumulation} parts "
        rf"\(trainer.accumulation\); use a multiple of {world * accumulation}"
    )
    with pytest.raises(ConfigError, match=message):
        config.check(world)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_batch_that_divides_over_processes_and_parts_is_taken(config_file, world, accumulation):
    load_config(config_file, [*SUPERVISED, f"trainer.accumulation={accumulation}"]).check(world)


def test_sizes_of_a_loss_are_checked_for_a_part(config_file):
    sections = ["method={type: wmse, whitening_size: 8, projector_output_dim: 4}"]
    load_config(config_file, sections)
    with pytest.raises(ConfigError, match=r"whitening_size"):
        load_config(config_file, [*sections, "trainer.accumulation=2"])


def test_a_queue_smaller_than_a_batch_is_refused_with_accumulation_too(config_file):
    words = ["method={type: moco, queue_size: 4}"]
    with pytest.raises(ConfigError, match="queue_size"):
        load_config(config_file, words)
    with pytest.raises(ConfigError, match="queue_size"):
        load_config(config_file, [*words, "trainer.accumulation=2"])


# ---------------------------------------------------------------------------- two processes

STALE, BETTER = [5.0, 6.0, 7.0, 8.0, 9.0], [5.0, 4.0, 3.0, 2.0, 1.0]
PATIENCE = {"tracked_metric": "val/x", "patience": 2, "epochs": 5}


def epochs_until_stop(run_dir: Path, values: list[float]) -> int:
    left = iter(values)
    method = method_of("supervised", nb_classes=4)
    trainer = build(run_dir, method, lambda: {"val/x": next(left)}, **PATIENCE)
    trainer.fit()
    return trainer.epoch


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=600),
    )
    found: dict[str, Any] = {}
    for case in ROW_BY_ROW:
        found[case] = trained_by_all(folder / case, case)
    for name, values in {"stale": (STALE, BETTER), "better": (BETTER, STALE)}.items():
        found[name] = epochs_until_stop(folder / name, values[rank])
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


def trained_by_all(run_dir: Path, case: str) -> dict[str, Any]:
    type, section = ROW_BY_ROW[case]
    method = method_of(type, **section)
    trainer = build(run_dir, method, weight_decay=0.01, accumulation=2)
    trainer.fit()
    return copied(method.state_dict())


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (folder,), WORLD)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", ROW_BY_ROW)
def test_two_processes_with_two_parts_each_are_one_process(processes, tmp_path, case):
    folder, results = processes
    alone = trained(tmp_path, case)
    for found in results:
        assert_close(found[case], alone["state"], 1e-9)
    together = json.loads((folder / case / "training.json").read_text())
    for epoch, metrics in alone["history"].items():
        assert together[epoch]["train/loss"] == pytest.approx(metrics["train/loss"], rel=1e-9)


def test_the_main_process_decides_on_stopping_early(processes):
    """The other one has seen better values, or worse ones."""
    _, results = processes
    assert [found["stale"] for found in results] == [3, 3]
    assert [found["better"] for found in results] == [5, 5]


# ---------------------------------------------------------------------------- half precision


def watch_types(trainer: Trainer) -> dict[str, set[torch.dtype]]:
    """Filled by training."""
    types: dict[str, set[torch.dtype]] = {"network": set(), "outputs": set(), "loss": set()}
    plain = trainer.method.loss

    def hook(module: nn.Module, x: Any, y: Tensor) -> None:
        if module.training:  # signals of an epoch are in full precision
            types["network"].add(y.dtype)

    trainer.method.encoder.register_forward_hook(hook)

    def loss(outputs, batch):
        types["outputs"].add(outputs["y"].dtype)
        value, metrics = plain(outputs, batch)
        types["loss"].add(value.dtype)
        return value, metrics

    trainer.method.loss = loss
    return types


def steps_of(trainer: Trainer, count: int) -> None:
    """Steps without the checks between them."""
    for _ in range(count):
        trainer.sampler.set_epoch(trainer.step // STEPS, trainer.step % STEPS)
        trainer.train_step(next(iter(trainer.loader)))


def weights_of(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.parameters]


def moments_of(trainer: Trainer) -> list[Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return [x.clone() for p in state.values() for x in p.values()]


def overflow(trainer: Trainer, steps: set[int], factor: float = math.inf) -> None:
    """Gradients of the network's output are infinite in these steps, and only then."""
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    plain = trainer.method.loss

    def loss(outputs, batch):
        if trainer.step in steps:
            assert outputs["y"].requires_grad
            outputs["y"].register_hook(lambda grad: grad * factor)
        return plain(outputs, batch)

    trainer.method.loss = loss


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_the_network_runs_in_half_precision_and_the_loss_does_not(make_trainer, setting, dtype):
    trainer = make_trainer(mixed_precision=setting, stop_at_epoch=1)
    types = watch_types(trainer)
    trainer.fit()
    full = {torch.float32}
    assert types == {"network": {dtype}, "outputs": full, "loss": full}
    assert {p.dtype for p in trainer.parameters} == full
    assert trainer.scaler.is_enabled() == (setting == "fp16")


@pytest.mark.parametrize("has", [True, False])
def test_true_means_bf16_where_the_device_has_it(make_trainer, monkeypatch, capsys, has):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
    for run, setting in (("yes", True), ("bf16", "bf16"), ("full", False)):
        make_trainer(run, mixed_precision=setting).fit()
    yes, half, full = (make_trainer(run).run_dir for run in ("yes", "bf16", "full"))
    same, other = (half, full) if has else (full, half)
    assert_same_training(yes, same)
    a, b = saved(yes)["model"], saved(other)["model"]
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert capsys.readouterr().out.count("cpu has no bfloat16") == (not has)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_unscaled_before_anything_looks_at_them(
    make_trainer, monkeypatch, accumulation
):
    fields = {"optimizer": "sgd", "accumulation": accumulation}
    full = make_trainer("full", **fields)
    steps_of(full, 1)
    expected = [p.grad.clone() for p in full.parameters]

    trainer = make_trainer("half", mixed_precision="fp16", clip_grad_norm=1e-3, **fields)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    found: dict[str, list[Tensor]] = {}
    plain = engine.clip

    def grads() -> list[Tensor]:
        return [p.grad.clone() for p in trainer.parameters]

    def clip(parameters, config):
        found["clip"] = grads()
        plain(parameters, config)

    monkeypatch.setattr(engine, "clip", clip)
    trainer.method.on_gradients = lambda: found.update(hook=grads())
    before = weights_of(trainer)
    steps_of(trainer, 1)
    assert trainer.scaler.get_scale() == 2.0**10
    for name in ("hook", "clip"):
        for x, y in zip(found[name], expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0.02, atol=2e-3)  # 11 bits
    moved = [(b - a).square().sum() for a, b in zip(before, weights_of(trainer), strict=True)]
    assert math.sqrt(sum(moved)) == pytest.approx(0.05 * 1e-3, rel=1e-3)  # learning rate x norm


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_an_overflow_costs_a_step_and_lowers_the_scale(make_trainer, optimizer, accumulation):
    trainer = make_trainer(
        mixed_precision="fp16",
        optimizer=optimizer,
        accumulation=accumulation,
        clip_grad_norm=1.0,
        weight_decay=0.1,
    )
    overflow(trainer, {2})
    steps_of(trainer, 2)
    weights, moments = weights_of(trainer), moments_of(trainer)
    steps_of(trainer, 1)
    assert_identical(weights_of(trainer), weights)
    assert_identical(moments_of(trainer), moments)
    assert trainer.scaler.get_scale() == 2.0**9
    assert trainer.guard.failure() is None
    assert set(trainer.method.frozen) == {0.0}
    steps_of(trainer, 1)
    assert all(not torch.equal(a, b) for a, b in zip(weights_of(trainer), weights, strict=True))
    assert trainer.step == 4


def test_a_scale_that_is_too_large_comes_down_by_itself(make_trainer):
    """Float16 holds no more than 65504."""
    trainer = make_trainer(mixed_precision="fp16", optimizer="sgd")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = weights_of(trainer)
    updated = []
    for _ in range(30):
        steps_of(trainer, 1)
        after = weights_of(trainer)
        updated.append(not torch.equal(after[0], before[0]))
        before = after
    skipped = 30 - sum(updated)
    assert skipped >= 10
    assert updated[:skipped] == [False] * skipped
    assert trainer.scaler.get_scale() == 2.0 ** (30 - skipped)
    assert trainer.guard.failure() is None


@pytest.mark.parametrize("setting", ["fp16", "bf16"])
def test_a_loss_that_is_nan_stops_the_training_in_half_precision_too(make_trainer, setting):
    trainer = make_trainer(mixed_precision=setting)
    plain = trainer.method.loss

    def loss(outputs, batch):
        value, metrics = plain(outputs, batch)
        return value * (math.nan if trainer.step == 4 else 1), metrics

    trainer.method.loss = loss
    healthy = make_trainer("healthy", mixed_precision=setting)
    steps_of(healthy, 4)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 4 \(epoch 2\)"):
        trainer.fit()
    assert_identical(weights_of(trainer), weights_of(healthy))
    assert saved(trainer.run_dir)["epoch"] == 1


def test_gradients_that_are_never_finite_stop_a_training_in_float16(make_trainer):
    trainer = make_trainer(mixed_precision="fp16", epochs=70)  # the scale comes down to 2^-194
    overflow(trainer, set(range(1000)), math.nan)
    with pytest.raises(NonFiniteLoss):
        trainer.fit()


def lively(trainer: Trainer) -> Trainer:
    """Whose scale rises often, and falls in its third step."""
    overflow(trainer, {2})
    return trainer


@pytest.mark.parametrize("last_step", [4, 6])
def test_the_scaler_goes_on_after_a_restart(make_trainer, last_step):
    lively(make_trainer("straight", mixed_precision="fp16")).fit()
    first = lively(make_trainer("parts", mixed_precision="fp16"))
    stop_after(first, last_step)
    with pytest.raises(Interrupted):
        first.fit()
    state = saved(first.run_dir)["scaler"]
    assert state["scale"] == 2.0**9
    assert state["_growth_tracker"] == last_step - 3
    second = make_trainer("parts", mixed_precision="fp16")  # as a new process makes it
    second.resume()
    second.fit()
    assert_same_training(make_trainer("straight").run_dir, second.run_dir)
    assert saved(second.run_dir)["scaler"]["scale"] == 2.0**11


# ---------------------------------------------------------------------------- what a step applies


def spy(trainer: Trainer) -> list[SimpleNamespace]:
    """Filled by training: what the optimiser is given in each step, and gradients before."""
    found: list[SimpleNamespace] = []
    step, raw = trainer.optimizer.step, []

    def grads() -> list[np.ndarray]:
        return [p.grad.double().numpy().copy() for p in trainer.parameters]

    def taken() -> None:
        groups = trainer.optimizer.param_groups
        found.append(
            SimpleNamespace(
                lr=[group["lr"] for group in groups],
                decay=[group["weight_decay"] for group in groups],
                raw=raw[-1],
                clipped=grads(),
            )
        )
        step()

    trainer.method.on_gradients = lambda: raw.append(grads())
    trainer.optimizer.step = taken
    return found


def cosine(start: float, end: float, step: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


@pytest.mark.parametrize("every", [True, False])
def test_weight_decay_follows_its_schedule_step_by_step(make_trainer, every):
    fields = {"weight_decay": 0.04, "weight_decay_end": 0.4, "weight_decay_all": every}
    first = make_trainer(**fields, stop_at_epoch=2, optimizer="adamw")
    found = spy(first)
    first.fit()
    second = make_trainer(**fields, optimizer="adamw")
    second.resume()
    rest = spy(second)
    second.fit()
    expected = [cosine(0.04, 0.4, step, 12) for step in range(12)]
    assert [step.decay[0] for step in found + rest] == pytest.approx(expected, rel=1e-12)
    others = [step.decay[1:] for step in found + rest]
    assert others == [[] if every else [0.0]] * 12


def test_weight_decay_stays_where_no_end_is_given(make_trainer):
    trainer = make_trainer(weight_decay=0.3)
    found = spy(trainer)
    trainer.fit()
    assert [step.decay for step in found] == [[0.3]] * 12


@pytest.mark.parametrize(
    ("scaling", "factor"), [("none", 1), ("linear", 4 / 256), ("sqrt", math.sqrt(4 / 256))]
)
def test_the_learning_rate_is_scaled_and_then_follows_its_schedule(make_trainer, scaling, factor):
    trainer = make_trainer(learning_rate_scaling=scaling, learning_rate_sched="cosine")
    found = spy(trainer)
    trainer.fit()
    expected = [cosine(0.05 * factor, 1e-5, step, 12) for step in range(12)]
    assert [step.lr[0] for step in found] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_clipped_once_for_the_whole_batch(make_trainer, accumulation):
    trainer = make_trainer(
        accumulation=accumulation,
        clip_grad_tensor_norm=0.05,
        clip_grad_norm=0.08,
        optimizer="sgd",
        epochs=1,
    )
    found = spy(trainer)
    trainer.fit()
    assert len(found) == 3
    for step in found:
        limited = [g * min(1, 0.05 / np.linalg.norm(g)) for g in step.raw]
        total = math.sqrt(sum(np.square(g).sum() for g in limited))
        assert total > 0.08
        assert any(np.linalg.norm(g) > 0.05 for g in step.raw)
        for g, clipped in zip(limited, step.clipped, strict=True):
            np.testing.assert_allclose(clipped, g * 0.08 / total, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------------- within an epoch


def before_step(trainer: Trainer, step: int, action: Callable[[], None]) -> None:
    """``action`` happens when so many steps are done."""
    plain = trainer.train_step

    def train_step(batch: Batch) -> Any:
        if trainer.step == step:
            action()
        return plain(batch)

    trainer.train_step = train_step  # type: ignore[method-assign]


def stop_after(trainer: Trainer, step: int, kind: int = signal.SIGTERM) -> None:
    """A signal comes in the midst of the step with which so many are done."""
    before_step(trainer, step - 1, lambda: setattr(trainer.stop_request, "signal", kind))


def die(*arguments: Any) -> None:
    raise Died


def die_after(trainer: Trainer, step: int) -> None:
    before_step(trainer, step, die)


def rows_of(trainer: Trainer) -> list[list[int]]:
    """Filled by training: the rows of each step."""
    found: list[list[int]] = []
    plain = trainer.train_step

    def train_step(batch: Batch) -> Any:
        found.append(batch.rows.tolist())
        return plain(batch)

    trainer.train_step = train_step  # type: ignore[method-assign]
    return found


EACH_STEP = {"checkpoint_every_minutes": 1e-9}
CORPUS_CONFIG = """\
encoder: {{type: resnet34, base_dim: 8, encoder_dim: 16, spec_augment: {{}}}}
method: {{type: simclr, enable_projector: false, temperature: 0.1}}
trainer: {{epochs: 3, batch_size: 8, optimizer: adamw, mixed_precision: false}}
dataset:
  base_path: {corpus}
  train: train.csv
  ssl: true
  frame_length: 6000
  num_workers: 0
"""
SSPS = (
    "method={type: simclr, enable_projector: false, ssps: {start_epoch: 1, sampling: %s, "
    "pos_queue_size: 24, kmeans_nb_prototypes: 4, kmeans_nb_iters: 3, metric_columns: [Speaker]}}"
)
WITH_REFERENCE = ["dataset.ssps=true", "dataset.ssps_frame_length=6000"]
KINDS: dict[str, list[str]] = {
    "simclr": [],
    "supervised": SUPERVISED,
    "moco": [
        "method={type: moco, projector_hidden_dim: 16, projector_output_dim: 8, queue_size: 16}",
        "trainer.accumulation=2",
    ],
    "deepcluster": [
        "method={type: deepcluster, projector_hidden_dim: 16, projector_output_dim: 8, "
        "nb_prototypes: [4, 3], kmeans_nb_iters: 3}"
    ],
    "dino": [
        "method={type: dino, head_hidden_dim: 16, head_bottleneck_dim: 8, head_output_dim: 12}",
        "dataset={ssl_dino_global_length: 6000, ssl_dino_local_length: 3000, "
        "frame_sampling: dino, base_path: CORPUS, train: train.csv, ssl: true, num_workers: 0}",
    ],
    "ssps": [SSPS % "kmeans-repr", *WITH_REFERENCE],
    "ssps-knn": [SSPS % "knn", *WITH_REFERENCE],
}
CORPUS_STEPS = 4  # of an epoch: 32 files in batches of 8


class Runs:
    """Trainings of one experiment on the corpus, in folders of their own."""

    def __init__(self, corpus: Path, folder: Path):
        self.corpus, self.folder = corpus, folder
        self.config = folder / "config.yml"
        self.config.write_text(CORPUS_CONFIG.format(corpus=corpus))
        self.straight: dict[str, tuple[Path, list[list[int]]]] = {}

    def trainer(self, name: str, kind: str, *overrides: str) -> Trainer:
        words = [word.replace("CORPUS", str(self.corpus)) for word in KINDS[kind]]
        words += [f"run_dir={self.folder / name}", *overrides]
        trainer = experiment.build_trainer(load_config(self.config, words))
        trainer.resume()
        return trainer

    def without_a_stop(self, kind: str) -> tuple[Path, list[list[int]]]:
        """The run's folder, and the rows of each step."""
        if kind not in self.straight:
            trainer = self.trainer(f"straight-{kind}", kind)
            rows = rows_of(trainer)
            trainer.fit()
            self.straight[kind] = trainer.run_dir, rows
        return self.straight[kind]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # kernels of a GPU may differ from run to run
        patch.setattr(distributed, "default_device", lambda: CPU)
        yield Runs(corpus, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_dies_within_an_epoch_goes_on_there(runs, kind):
    straight, rows = runs.without_a_stop(kind)
    minutes = "trainer.checkpoint_every_minutes=1e-9"
    first = runs.trainer(kind, kind, minutes)
    die_after(first, CORPUS_STEPS + 2)  # in the second epoch
    done = rows_of(first)
    with pytest.raises(Died):
        first.fit()
    state = saved(first.run_dir)
    assert (state["epoch"], state["step"]) == (1, CORPUS_STEPS + 2)
    second = runs.trainer(kind, kind, minutes)
    assert (second.epoch, second.step, second.means.steps) == (1, CORPUS_STEPS + 2, 2)
    rest = rows_of(second)
    second.fit()
    assert done[: CORPUS_STEPS + 2] + rest == rows  # the rest of the batches, and no other
    assert len(rest) == 2 * CORPUS_STEPS - 2
    assert_same_training(straight, second.run_dir)


@pytest.mark.parametrize("kind", ["simclr", "ssps", "deepcluster"])
def test_a_run_that_is_asked_to_stop_within_an_epoch_goes_on_there(runs, kind):
    straight, rows = runs.without_a_stop(kind)
    name = f"stopped-{kind}"
    done: list[list[int]] = []
    for step in (1, CORPUS_STEPS + 3, 2 * CORPUS_STEPS + 1):
        trainer = runs.trainer(name, kind)
        stop_after(trainer, step)
        seen = rows_of(trainer)
        with pytest.raises(Interrupted, match=f"and {step % CORPUS_STEPS} steps, saved"):
            trainer.fit()
        done += seen
    last = runs.trainer(name, kind, "dataset.num_workers=1")
    seen = rows_of(last)
    try:
        last.fit()
    finally:
        last.loader._loader._iterator = None  # ends its worker, which no signal ends
    assert done + seen == rows
    assert_same_training(straight, last.run_dir)


@pytest.mark.parametrize(("kind", "sets"), [("deepcluster", 2), ("ssps", 1)])
def test_clusters_are_made_at_the_start_of_an_epoch_only(runs, kind, sets, monkeypatch):
    calls: list[int] = []
    plain = RowMemory.cluster

    def cluster(self: RowMemory, count: int, iterations: int, seed: int) -> Any:
        calls.append(count)
        return plain(self, count, iterations, seed)

    monkeypatch.setattr(RowMemory, "cluster", cluster)
    name = f"clusters-{kind}"
    first = runs.trainer(name, kind)
    stop_after(first, 2 * CORPUS_STEPS - 1)  # one step of the second epoch is left
    with pytest.raises(Interrupted):
        first.fit()
    epochs = 2 if kind == "deepcluster" else 1  # ssps starts with the second
    assert len(calls) == sets * epochs
    calls.clear()
    second = runs.trainer(name, kind)
    before_step(second, 2 * CORPUS_STEPS - 1, lambda: calls.append(-1))
    second.fit()
    assert calls[0] == -1  # none before the step that was left
    assert len(calls) == 1 + sets


def test_random_numbers_go_on_within_an_epoch(make_trainer):
    """As dropout draws them, from torch's own generator."""

    def make(run: str) -> Trainer:
        trainer = make_trainer(run, **EACH_STEP)
        trainer.method.encoder = nn.Sequential(trainer.method.encoder, nn.Dropout(0.5))
        return trainer

    straight = make("straight")
    straight.fit()
    first = make("parts")
    die_after(first, 5)
    with pytest.raises(Died):
        first.fit()
    second = make("parts")
    second.resume()
    torch.rand(5)
    second.resume()  # whatever was drawn before
    second.fit()
    assert_same_training(straight.run_dir, second.run_dir)


def test_checkpoints_within_an_epoch_come_when_their_time_has_come(make_trainer, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    for module in (engine, saving):
        monkeypatch.setattr(module, "time", clock)
    trainer = make_trainer(epochs=2, checkpoint_every_minutes=1.5)
    written: list[int] = []
    plain = checkpoint.save_latest

    def save_latest(run_dir: Path, state: dict[str, Any]) -> None:
        written.append(state["step"])
        plain(run_dir, state)

    monkeypatch.setattr(engine.checkpoint, "save_latest", save_latest)
    plain_step = trainer.train_step

    def train_step(batch: Batch) -> Any:
        now[0] += 60.0  # seconds
        return plain_step(batch)

    trainer.train_step = train_step
    trainer.fit()
    # After 2 of 3 minutes, at the end of the epoch, after 2 minutes more, at the end.
    assert written == [2, 3, 5, 6]


def test_without_a_time_nothing_is_saved_within_an_epoch(make_trainer):
    trainer = make_trainer()
    die_after(trainer, 5)
    with pytest.raises(Died):
        trainer.fit()
    assert (saved(trainer.run_dir)["epoch"], saved(trainer.run_dir)["step"]) == (1, 3)


class Spoilt(Dataset):
    """The table of ``make_trainer``, where one row was taken in place of another."""

    def __init__(self, plain: Any):
        self.plain = plain

    def __getitems__(self, draws: list[Draw]) -> Batch:
        batch = self.plain.__getitems__(draws)
        batch.skipped = [Skipped(draw.row, "broken") for draw in draws if draw.row == 3]
        return batch


def test_files_skipped_before_a_restart_within_an_epoch_are_listed(make_trainer):
    def make() -> Trainer:
        trainer = make_trainer(stop_at_epoch=1)
        table = trainer.loader._loader.dataset
        trainer.loader = Loader(Spoilt(table), trainer.sampler, num_workers=0)
        return trainer

    first = make()
    seen = rows_of(first)
    make_again = make_trainer("unused")
    make_again.sampler.set_epoch(0)
    batches = [[draw.row for draw in batch] for batch in make_again.sampler]
    step = next(i for i, rows in enumerate(batches) if 3 in rows) + 1
    assert step < STEPS  # else it would not be before the restart
    stop_after(first, step)
    with pytest.raises(Interrupted):
        first.fit()
    assert seen == batches[:step]
    second = make()
    second.resume()
    second.fit()
    assert second.skipped.path.read_text().startswith("row03.wav\t")


def test_files_that_another_run_has_skipped_are_not_listed(make_trainer):
    first = make_trainer("first")
    first.loader = Loader(Spoilt(first.loader._loader.dataset), first.sampler, num_workers=0)
    stop_after(first, 3 - 1)
    with pytest.raises(Interrupted):
        first.fit()
    path = path_of(first.run_dir, "latest")
    assert saved(first.run_dir)["processes"][0]["skipped"] == [[3, "broken"]]
    second = make_trainer("second", last_checkpoint=path, stop_at_epoch=1)
    second.resume()
    second.fit()
    assert not second.skipped.path.exists()


def test_means_of_all_processes_go_on_in_another_number_of_them(make_trainer):
    first = make_trainer()
    stop_after(first, 2)
    with pytest.raises(Interrupted):
        first.fit()
    state = saved(first.run_dir)
    other = copy.deepcopy(state["processes"][0])
    loss = float(other["means"]["sums"]["train/loss"])
    other["means"]["sums"]["train/loss"] += 2 * loss  # three times as much
    state["processes"].append(other)
    checkpoint.save(checkpoint.checkpoint_path(first.run_dir, "latest"), state)
    second = make_trainer()
    second.resume()
    assert second.means.own("train/loss") == pytest.approx(2 * loss / 2)


# ---------------------------------------------------------------------------- damaged checkpoints


def path_of(run_dir: Path, suffix: str) -> Path:
    return checkpoint.checkpoint_path(run_dir, suffix)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garble(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def empty(path: Path) -> None:
    path.write_bytes(b"")


Damage = Callable[[Path], None]
DAMAGES: list[Damage] = [truncate, garble, empty, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(make_trainer, damage, capsys):
    straight = make_trainer("straight")
    straight.fit()
    trainer = make_trainer(stop_at_epoch=3)
    trainer.fit()
    latest, previous = (path_of(trainer.run_dir, name) for name in ("latest", "previous"))
    damage(latest)
    capsys.readouterr()
    again = make_trainer()
    again.resume()
    said = capsys.readouterr().out
    assert f"warning: {latest}: " in said
    assert f"going on from {previous} instead" in said
    assert (again.epoch, again.step) == (2, 6)
    assert path_of(trainer.run_dir, "damaged").exists() == (damage != Path.unlink)
    again.fit()
    assert_same_training(straight.run_dir, again.run_dir)


@pytest.mark.parametrize("first", DAMAGES[:3], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("second", DAMAGES, ids=lambda damage: damage.__name__)
def test_where_both_are_damaged_that_is_the_error(make_trainer, first, second):
    trainer = make_trainer(stop_at_epoch=2)
    trainer.fit()
    first(path_of(trainer.run_dir, "latest"))
    second(path_of(trainer.run_dir, "previous"))
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        make_trainer().resume()


def test_a_first_checkpoint_that_is_damaged_has_none_before_it(make_trainer):
    trainer = make_trainer(stop_at_epoch=1)
    trainer.fit()
    assert not path_of(trainer.run_dir, "previous").exists()
    truncate(path_of(trainer.run_dir, "latest"))
    with pytest.raises(CheckpointError, match=r"model_latest\.pt: damaged"):
        make_trainer().resume()


def state(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((100,), float(step))}, "step": step}


class Death:
    """Ends the process at the n-th file operation, before or after it is done."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, done: bool):
        self.at, self.done, self.count = at, done, 0
        for module, name in (
            (os, "link"),
            (os, "replace"),
            (os, "fsync"),
            (shutil, "copyfile"),
            (Path, "unlink"),
            (torch, "save"),
        ):
            patch.setattr(module, name, self._deadly(getattr(module, name)))

    def _deadly(self, plain: Any) -> Any:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at and not self.done:
                raise Died
            result = plain(*arguments, **named)
            if self.count == self.at:
                raise Died
            return result

        return operation


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("done", [True, False])
def test_at_no_moment_there_is_no_readable_checkpoint(tmp_path, monkeypatch, done, links):
    """Whichever operation on files is the last one of a process."""

    def no_links(*arguments: Any, **named: Any) -> None:
        raise OSError("not here")

    deaths = 0
    for before in (0, 1, 2):  # checkpoints that are there already
        for at in range(1, 20):
            run_dir = tmp_path / f"{before}-{at}"
            for step in range(1, before + 1):
                checkpoint.save_latest(run_dir, state(step))
            with monkeypatch.context() as patch:
                if not links:
                    patch.setattr(os, "link", no_links)
                death = Death(patch, at, done)
                try:
                    checkpoint.save_latest(run_dir, state(before + 1))
                except Died:
                    deaths += 1
            found = checkpoint.load_latest(run_dir)
            if death.count < at:  # it came to its end
                assert found is not None
                assert found[0]["step"] == before + 1
                break
            if before:
                assert found is not None
                assert found[0]["step"] in (before, before + 1)
                assert torch.equal(found[0]["model"]["w"], state(found[0]["step"])["model"]["w"])
            checkpoint.save_latest(run_dir, state(before + 2))  # what it left is not in the way
            found = checkpoint.load_latest(run_dir)
            assert found is not None
            assert found[0]["step"] == before + 2
        else:
            pytest.fail("it never came to its end")
    assert deaths >= 12


def test_a_killed_process_leaves_nothing_beside_checkpoints_for_long(tmp_path, monkeypatch):
    checkpoint.save_latest(tmp_path, state(1))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(Died):
            checkpoint.save_latest(tmp_path, state(2))
    checkpoint.clean(tmp_path)
    checkpoint.save_latest(tmp_path, state(2))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"model_latest.pt", "model_previous.pt"}


def test_a_full_disk_leaves_a_checkpoint(tmp_path, monkeypatch):
    checkpoint.save_latest(tmp_path, state(1))
    checkpoint.save_latest(tmp_path, state(2))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Exception, match="No space left"):
        checkpoint.save_latest(tmp_path, state(3))
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found[0]["step"] == 2


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path, monkeypatch):
    checkpoint.save_latest(tmp_path, state(1))
    checkpoint.save_latest(tmp_path, state(2))
    truncate(path_of(tmp_path, "latest"))
    found = checkpoint.load_latest(tmp_path)  # a run goes on from it ...
    assert found is not None
    assert found[0]["step"] == 1

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(Died):  # ... and is killed while it writes its next one
        checkpoint.save_latest(tmp_path, state(2))
    monkeypatch.undo()
    assert checkpoint.load_latest(tmp_path) is not None


# ---------------------------------------------------------------------------- which files are kept


def epoch_files(trainer: Trainer) -> set[str]:
    return {p.stem.rpartition("_")[2] for p in trainer.run_dir.glob("checkpoints/model_epoch-*")}


def test_the_latest_epochs_are_kept(make_trainer):
    trainer = make_trainer(epochs=5, keep_last_n=2, tracked_metric="train/loss")
    most: list[int] = []
    before_step(trainer, 12, lambda: most.append(len(epoch_files(trainer))))
    trainer.fit()
    assert most == [2]
    assert epoch_files(trainer) == {"epoch-4", "epoch-5"}
    assert saved(trainer.run_dir, "best")["epoch"] >= 1
    assert saved(trainer.run_dir)["epoch"] == 5
    assert saved(trainer.run_dir, "previous")["epoch"] == 4


def test_more_than_there_are_keeps_all(make_trainer):
    trainer = make_trainer(keep_last_n=9)
    trainer.fit()
    assert epoch_files(trainer) == {f"epoch-{k}" for k in range(1, 5)}


def test_fewer_than_before_are_kept_after_a_restart(make_trainer):
    make_trainer(stop_at_epoch=3).fit()
    again = make_trainer(keep_last_n=1)
    strangers = [path_of(again.run_dir, name) for name in ("epoch-x", "epoch-2b")]
    for path in strangers:
        path.write_bytes(b"of somebody else")
    again.resume()
    assert len(epoch_files(again)) == 5
    again.fit()
    assert epoch_files(again) == {"epoch-4", "epoch-x", "epoch-2b"}


# ---------------------------------------------------------------------------- running average


def with_batch_norm(run_dir: Path, **fields: Any) -> Trainer:
    """Trains in float32 and in training mode: statistics and a counter change."""
    torch.manual_seed(1)
    data = {
        "encoder": {"type": "resnet34"},
        "method": {"type": "supervised", "nb_classes": 4, "classifier": "linear"},
    }
    method = METHODS.get("supervised").cls(from_dict(data).method, Small())
    trainer = build(run_dir, method, **{"epochs": 6, "avg_count": 3} | fields)
    table = trainer.loader._loader.dataset
    table.views = [view.float() for view in table.views]
    return trainer


def average_of(run_dir: Path, *epochs: int) -> dict[str, Tensor]:
    """In float64, by hand; counters are those of the last."""
    models = [saved(run_dir, f"epoch-{epoch}")["model"] for epoch in epochs]
    found = {}
    for name, last in models[-1].items():
        mean = sum(model[name].double() for model in models) / len(models)
        found[name] = mean.to(last.dtype) if last.is_floating_point() else last
    return found


def test_the_running_average_is_that_of_the_files(tmp_path):
    trainer = with_batch_norm(tmp_path)
    trainer.fit()
    running = saved(tmp_path, "avg")
    assert running["epoch"] == 6
    assert_identical(running["model"], average_of(tmp_path, 4, 5, 6))
    counter = "encoder.norm.num_batches_tracked"
    assert running["model"][counter].item() == 6 * STEPS
    average_epochs(tmp_path, 3)
    assert_identical(saved(tmp_path, "avg")["model"], running["model"])
    assert saved(tmp_path, "avg").keys() == running.keys()
    assert not torch.equal(
        running["model"]["classifier.weight"], saved(tmp_path)["model"]["classifier.weight"]
    )


@pytest.mark.parametrize("step", [12, 13, 15, 17])  # between epochs and within them
def test_the_running_average_goes_on_after_a_restart(tmp_path, step):
    with_batch_norm(tmp_path / "straight").fit()
    fields = {"keep_last_n": 1}  # its files would not do
    first = with_batch_norm(tmp_path / "parts", **fields)
    stop_after(first, step)
    with pytest.raises(Interrupted):
        first.fit()
    second = with_batch_norm(tmp_path / "parts", **fields)
    second.resume()
    second.fit()
    a, b = (saved(tmp_path / run, "avg") for run in ("straight", "parts"))
    assert_identical(a["model"], b["model"])
    assert_same_training(tmp_path / "straight", tmp_path / "parts")


def test_the_average_is_of_the_epochs_before_the_one_to_stop_at(tmp_path):
    with_batch_norm(tmp_path, stop_at_epoch=4).fit()
    assert_identical(saved(tmp_path, "avg")["model"], average_of(tmp_path, 2, 3, 4))


def test_no_average_is_written_before_its_first_epoch(tmp_path):
    trainer = with_batch_norm(tmp_path)
    die_after(trainer, 9)  # three epochs are done
    with pytest.raises(Died):
        trainer.fit()
    assert not path_of(tmp_path, "avg").exists()
    again = with_batch_norm(tmp_path)
    again.resume()
    die_after(again, 12)
    with pytest.raises(Died):
        again.fit()
    assert_identical(saved(tmp_path, "avg")["model"], average_of(tmp_path, 4))


def test_an_average_of_a_run_that_is_made_longer_is_of_its_last_epochs(tmp_path):
    with_batch_norm(tmp_path, epochs=3, avg_count=2).fit()
    again = with_batch_norm(tmp_path, epochs=6, avg_count=2)
    again.resume()
    again.fit()
    assert_identical(saved(tmp_path, "avg")["model"], average_of(tmp_path, 5, 6))


def test_an_average_of_a_run_that_stops_later_is_of_its_last_epochs(tmp_path):
    with_batch_norm(tmp_path, stop_at_epoch=2, avg_count=2).fit()
    again = with_batch_norm(tmp_path, stop_at_epoch=4, avg_count=2)
    again.resume()
    again.fit()
    assert_identical(saved(tmp_path, "avg")["model"], average_of(tmp_path, 3, 4))


def test_an_average_holds_nothing_of_the_run_that_was_gone_on_from(tmp_path):
    with_batch_norm(tmp_path / "first", epochs=2, avg_count=2).fit()
    path = path_of(tmp_path / "first", "latest")
    second = with_batch_norm(tmp_path / "second", epochs=5, avg_count=2, last_checkpoint=path)
    second.resume()
    second.fit()
    found = saved(tmp_path / "second", "avg")["model"]
    assert_identical(found, average_of(tmp_path / "second", 4, 5))


def test_a_smaller_window_after_a_restart_drops_the_epochs_before_it(tmp_path):
    first = with_batch_norm(tmp_path, avg_count=4)
    stop_after(first, 4 * STEPS)
    with pytest.raises(Interrupted):
        first.fit()
    again = with_batch_norm(tmp_path, avg_count=2)
    again.resume()
    again.fit()
    assert_identical(saved(tmp_path, "avg")["model"], average_of(tmp_path, 5, 6))


# ---------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [2, 3])  # within an epoch, at its end
def test_a_signal_ends_a_training_that_can_go_on(make_trainer, kind, code, step, capsys):
    straight = make_trainer("straight")
    straight.fit()
    assert not marker(straight.run_dir).exists()
    trainer = make_trainer()
    before = signal.getsignal(kind)
    before_step(trainer, step - 1, lambda: signal.raise_signal(kind))
    with pytest.raises(Interrupted) as caught:
        trainer.fit()
    assert caught.value.code == code
    assert signal.getsignal(kind) is before
    where = "after epoch 0 and 2 steps" if step == 2 else "after epoch 1"
    text = f"{trainer.run_dir}: stopped by {kind.name} {where}, saved; the same command goes on"
    assert str(caught.value).startswith(text)
    assert str(caught.value) in capsys.readouterr().out
    assert marker(trainer.run_dir).read_text() == f"{caught.value}\n"
    assert trainer.step == step
    again = make_trainer()
    again.resume()
    assert again.step == step
    before_step(again, step, lambda: pytest.fail("still there") if there() else None)

    def there() -> bool:
        return marker(again.run_dir).exists()

    again.fit()
    assert not there()
    assert_same_training(straight.run_dir, again.run_dir)


def test_a_signal_in_the_last_step_lets_the_training_end(make_trainer):
    trainer = make_trainer()
    stop_after(trainer, 12)
    trainer.fit()
    assert trainer.epoch == 4
    assert not marker(trainer.run_dir).exists()


def test_a_signal_does_not_hide_that_the_loss_is_not_finite(make_trainer):
    trainer = make_trainer()
    plain = trainer.method.loss
    trainer.method.loss = lambda outputs, batch: (
        plain(outputs, batch)[0] * (math.nan if trainer.step == 4 else 1),
        plain(outputs, batch)[1],
    )
    stop_after(trainer, 5)
    with pytest.raises(NonFiniteLoss):
        trainer.fit()
    assert saved(trainer.run_dir)["step"] == 3
    assert not marker(trainer.run_dir).exists()


@pytest.fixture
def clock(monkeypatch) -> Iterator[list[float]]:
    """What time it is for the module of signals."""
    now = [100.0]
    # A shell's background jobs ignore it, and tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(interrupt, "time", SimpleNamespace(monotonic=lambda: now[0]))
    yield now
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_stops_at_once_where_it_comes_later(clock):
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGINT)
        clock[0] += 1.9  # what torchrun passes on of the same Ctrl-C
        signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
        clock[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_signals_that_come_later_change_nothing(clock):
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGINT)
        clock[0] += 60
        signal.raise_signal(signal.SIGTERM)
    assert request.signal == signal.SIGINT


def test_an_impatient_second_interrupt_leaves_what_was_saved(make_trainer, clock):
    trainer = make_trainer()
    before_step(trainer, 4, lambda: signal.raise_signal(signal.SIGINT))
    plain = trainer.method.on_step_end

    def impatient(*arguments: Any) -> None:
        if trainer.stop_request.signal:
            clock[0] += 3
            signal.raise_signal(signal.SIGINT)
        plain(*arguments)

    trainer.method.on_step_end = impatient
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert saved(trainer.run_dir)["step"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


FAILS_UNFORESEEN = """
import sys
from sslsv import cli
from sslsv.trainer.trainer import Trainer
plain = Trainer.train_step
def train_step(self, batch):
    if self.step == 2:
        raise RuntimeError("CUDA out of memory")
    return plain(self, batch)
Trainer.train_step = train_step
sys.exit(cli.run_command("train", sys.argv[1:]))
"""


def test_a_training_that_fails_unforeseen_ends(config_file):
    words = [str(config_file), "dataset.num_workers=1"]
    with subprocess.Popen(
        [sys.executable, "-c", FAILS_UNFORESEEN, *words],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            while "RuntimeError: CUDA out of memory" not in (line := process.stderr.readline()):
                assert line, "it ended without its error"
            assert process.wait(timeout=300) == 1
        finally:
            process.kill()  # its worker ends with it


# ---------------------------------------------------------------------------- several GPUs


class TwoDevices(nn.Module):
    """``nn.DataParallel`` for a CPU: replicas with buffers of their own, each on half a batch."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.sizes: list[int] = []

    def forward(self, views: list[Tensor]) -> dict[str, Tensor]:
        shared = {id(p): p for p in self.module.parameters()}
        parts = []
        for half in range(2):
            replica = copy.deepcopy(self.module, dict(shared))
            parts.append(replica([view.chunk(2)[half] for view in views]))
            self.sizes.append(len(views[0].chunk(2)[half]))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(
    ("device", "count", "world", "expected"),
    [
        ("cuda", 2, 1, "TwoDevices"),
        ("cuda", 1, 1, "Supervised"),
        ("cpu", 2, 1, "Supervised"),
        ("cuda", 2, 2, "Processes"),  # each of which has its own
        ("cpu", 0, 2, "Processes"),
    ],
)
def test_which_network_is_split_over_devices(tmp_path, monkeypatch, device, count, world, expected):
    class Processes(nn.Module):
        def __init__(self, module: nn.Module, broadcast_buffers: bool):
            super().__init__()
            assert not broadcast_buffers

    trainer = build(tmp_path, method_of("supervised", nb_classes=4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(engine, "DataParallel", TwoDevices)
    monkeypatch.setattr(engine, "DistributedDataParallel", Processes)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    trainer.device = torch.device(device)
    assert type(trainer._wrap(trainer.method)).__name__ == expected


SPLIT_OVER_DEVICES = {
    **ROW_BY_ROW,
    "simclr": ("simclr", PROJECTOR),
    "byol": ("byol", {**PROJECTOR, "predictor_hidden_dim": 12}),
    "vicreg": ("vicreg", PROJECTOR),
    "swav": ("swav", {**PROJECTOR, "nb_prototypes": 6, "queue_size": 16, "queue_start_epoch": 0}),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", SPLIT_OVER_DEVICES)
def test_two_devices_give_the_loss_gradients_and_weights_of_one(tmp_path, case, accumulation):
    type, section = SPLIT_OVER_DEVICES[case]
    one, two = (
        build(tmp_path / name, method_of(type, **section), accumulation=accumulation)
        for name in ("one", "two")
    )
    two.network = TwoDevices(two.method)
    for step in range(4):
        for trainer in (one, two):
            trainer.sampler.set_epoch(step // STEPS, step % STEPS)
        batch = next(iter(one.loader))
        losses = [float(trainer.train_step(batch)["train/loss"]) for trainer in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
        for p, q in zip(one.method.parameters(), two.method.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    assert two.network.sizes == [BATCH // accumulation // 2] * (8 * accumulation)
    assert_close(two.method.state_dict(), one.method.state_dict(), 1e-9)


# ---------------------------------------------------------------------------- what is refused

SPLIT = (
    "evaluation.validation=[{type: sv_cosine, trials: [split], num_frames: 1, "
    "split: {speakers: %d, trials: %d}}]"
)
TRACKED = "trainer.tracked_metric=val/sv_cosine/split/eer"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainer.optimizer=adam"], "trainer.optimizer adamw -> adam)"),
        (["trainer.weight_decay_all=false"], "trainer.weight_decay_all True -> False)"),
        (["trainer.accumulation=2"], "trainer.accumulation 1 -> 2)"),
        ([SPLIT % (2, 4), TRACKED], "evaluation.validation split [] -> [{"),
    ],
)
def test_a_run_is_not_gone_on_with_other_parts_optimisers_or_speakers(
    runs, tmp_path, overrides, key
):
    straight, _ = runs.without_a_stop("simclr")
    shutil.copytree(straight, tmp_path / "run")
    words = [f"run_dir={tmp_path / 'run'}", "trainer.epochs=5", *overrides]
    with pytest.raises(CheckpointError) as caught:
        runs.trainer("unused", "simclr", *words)
    assert f"was trained with other settings ({key}" in str(caught.value)  # that key alone


def test_a_run_with_held_out_speakers_goes_on_with_the_same_ones_only(runs):
    words = ("held-out", "supervised", TRACKED)
    first = runs.trainer(*words, SPLIT % (2, 4), "trainer.stop_at_epoch=1")
    first.fit()
    again = runs.trainer(*words, SPLIT % (2, 4))
    assert again.epoch == 1
    for changed in (SPLIT % (3, 4), SPLIT % (2, 6), "evaluation.validation=[]"):
        with pytest.raises(CheckpointError, match=r"\(evaluation\.validation split "):
            runs.trainer(*words, changed)


def test_a_split_that_is_not_of_the_first_task_is_not_removed_unseen(make_trainer):
    other, own = {"type": "another"}, {"type": "sv_cosine", "split": {"speakers": 2, "trials": 4}}
    tasks = {"evaluation": {"validation": [other, own]}}
    make_trainer(stop_at_epoch=1, settings=tasks).fit()
    with pytest.raises(CheckpointError, match="split"):
        make_trainer(settings={"evaluation": {"validation": [other]}}).resume()
