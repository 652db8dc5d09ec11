"""The loop: updates, schedules, history, what a restart gives, what is refused."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslsv import distributed, experiment
from sslsv.config import load_config
from sslsv.datasets.views import SpeechDataset
from sslsv.errors import CheckpointError, ConfigError
from sslsv.trainer import checkpoint
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.trainer import Trainer

ROWS, STEPS_PER_EPOCH = 12, 3  # of make_trainer
HIGH, LOW = 0.05, 1e-5


def history(trainer: Trainer) -> dict[str, dict[str, float]]:
    return json.loads((trainer.run_dir / "training.json").read_text())


def saved(run_dir: Path, suffix: str = "latest") -> dict[str, Any]:
    return checkpoint.load(checkpoint.checkpoint_path(run_dir, suffix))


def files(run_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """The same tensors to the last bit, and the same anything else."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_training(one: Path, other: Path) -> None:
    assert (one / "training.json").read_bytes() == (other / "training.json").read_bytes()
    a, b = saved(one), saved(other)
    del a["config"], b["config"]  # they differ in run_dir
    assert_identical(a, b)


# ---------------------------------------------------------------------------- updates


def rates(schedule: str, epochs: int) -> list[float]:
    """Learning rate of every step; two epochs of warm-up."""
    steps, warmup = STEPS_PER_EPOCH * epochs, STEPS_PER_EPOCH * 2
    if schedule == "default":
        return [HIGH * 0.95 ** (step // STEPS_PER_EPOCH // 5) for step in range(steps)]
    first = warmup if schedule == "warmup+cosine" else 0
    done = [(step - first) / (steps - first) for step in range(steps)]
    return [
        HIGH * step / warmup if d < 0 else LOW + (HIGH - LOW) * (1 + math.cos(math.pi * d)) / 2
        for step, d in enumerate(done)
    ]


def gradients(w: dict[str, np.ndarray], x: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean squared error of two linear layers, by hand."""
    hidden = x @ w["encoder.weight"].T + w["encoder.bias"]
    y = hidden @ w["head.weight"].T + w["head.bias"]
    error = 2 * (y - rows[:, None] / ROWS) / len(rows)
    back = error @ w["head.weight"]
    return {
        "encoder.weight": back.T @ x,
        "encoder.bias": back.sum(axis=0),
        "head.weight": error.T @ hidden,
        "head.bias": error.sum(axis=0),
    }


def textbook(
    optimizer: str,
    w: dict[str, np.ndarray],
    x: np.ndarray,
    batches: list[list[int]],
    lrs: list[float],
    decay: float,
) -> dict[str, np.ndarray]:
    """The weights after a step on each of ``batches``, which are rows of x."""
    m = {name: np.zeros_like(p) for name, p in w.items()}
    v = {name: np.zeros_like(p) for name, p in w.items()}
    for step, (rows, lr) in enumerate(zip(batches, lrs, strict=True)):
        for name, g in gradients(w, x[rows], np.array(rows)).items():
            if optimizer == "adamw":
                w[name] = w[name] * (1 - lr * decay)
            else:
                g = g + decay * w[name]
            if optimizer == "sgd":
                m[name] = 0.9 * m[name] + g
                w[name] = w[name] - lr * m[name]
            else:
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
                m_hat = m[name] / (1 - 0.9 ** (step + 1))
                v_hat = v[name] / (1 - 0.999 ** (step + 1))
                w[name] = w[name] - lr * m_hat / (np.sqrt(v_hat) + 1e-8)
    return w


@pytest.mark.parametrize("schedule", ["default", "cosine", "warmup+cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("decay", [0, 0.1])
def test_updates_are_those_of_the_textbook(make_trainer, optimizer, schedule, decay):
    trainer = make_trainer(
        epochs=6,
        optimizer=optimizer,
        learning_rate_sched=schedule,
        learning_rate_warmup=2,
        weight_decay=decay,
    )
    x = trainer.loader._loader.dataset.x.double().numpy()
    w = {name: p.double().numpy() for name, p in trainer.method.state_dict().items()}
    trainer.fit()
    expected = textbook(optimizer, w, x, trainer.method.batches, rates(schedule, 6), decay)
    for name, p in trainer.method.state_dict().items():
        np.testing.assert_allclose(p.numpy(), expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def record_rates(trainer: Trainer) -> list[list[float]]:
    """Filled by training: the learning rate of each group at each step."""
    found: list[list[float]] = []
    plain = trainer.optimizer.step

    def step() -> None:
        found.append([group["lr"] for group in trainer.optimizer.param_groups])
        plain()

    trainer.optimizer.step = step
    return found


@pytest.mark.parametrize("schedule", ["default", "cosine", "warmup+cosine"])
def test_learning_rate_follows_the_schedule_step_by_step(make_trainer, schedule):
    trainer = make_trainer(epochs=6, learning_rate_sched=schedule, learning_rate_warmup=2)
    found = record_rates(trainer)
    trainer.fit()
    expected = rates(schedule, 6)
    assert [group for (group,) in found] == pytest.approx(expected, rel=1e-12)
    logged = [metrics["train/lr"] for metrics in history(trainer).values()]
    assert logged == pytest.approx(expected[2::3], rel=1e-12)  # of the last step of each epoch


def test_stopping_early_does_not_change_the_schedule(make_trainer):
    trainer = make_trainer(epochs=6, stop_at_epoch=2, learning_rate_sched="cosine")
    found = record_rates(trainer)
    trainer.fit()
    assert [group for (group,) in found] == pytest.approx(rates("cosine", 6)[:6], rel=1e-12)


def test_a_group_with_fixed_lr_keeps_the_initial_rate(make_trainer):
    method = make_trainer("unused").method
    method.param_groups = lambda: [
        {"params": list(method.encoder.parameters())},
        {"params": list(method.head.parameters()), "fixed_lr": True},
    ]
    trainer = make_trainer(method=method, learning_rate_sched="cosine")
    found = record_rates(trainer)
    trainer.fit()
    assert [fixed for _, fixed in found] == [HIGH] * 12
    assert [free for free, _ in found] == pytest.approx(rates("cosine", 4), rel=1e-12)


SIGNALS = {"train/embedding_std", "train/effective_rank", "train/uniformity"}  # of one view


def test_signals_are_those_of_the_last_batch_in_evaluation_mode(make_trainer):
    trainer = make_trainer(epochs=1)
    trainer.fit()
    encoder, table = trainer.method.encoder, trainer.loader._loader.dataset
    rows = trainer.method.batches[-1]
    with torch.no_grad():
        z = encoder(table.x[rows]).double().numpy()
    p = np.linalg.svd(z, compute_uv=False)
    p /= p.sum()
    rank = history(trainer)["1"]["train/effective_rank"]
    assert rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_a_collapse_is_said(make_trainer, capsys):
    trainer = make_trainer(epochs=2, learning_rate=1e-9)
    trainer.method.encoder.weight.data[1:] = 0  # embeddings on one line ...
    trainer.method.encoder.bias.data.zero_()
    trainer.method.encoder.bias.data[0] = 50  # ... and nearly one point
    trainer.fit()
    said = capsys.readouterr().out
    assert said.count("warning: the embeddings look collapsed: they lie along 1.00 directions") == 2
    assert "they hardly differ" in said


def test_metrics_are_means_over_the_steps_of_an_epoch(make_trainer):
    trainer = make_trainer()
    losses: list[float] = []
    plain = trainer.method.loss

    def loss(outputs, batch):
        value, metrics = plain(outputs, batch)
        losses.append(value.item())
        return value, metrics

    trainer.method.loss = loss
    trainer.fit()
    epochs = history(trainer)
    assert list(epochs) == ["1", "2", "3", "4"]
    for epoch, metrics in enumerate(epochs.values()):
        assert metrics.keys() == {"train/loss", "train/rows", "train/lr", *SIGNALS}
        assert metrics["train/loss"] == pytest.approx(np.mean(losses[3 * epoch : 3 * epoch + 3]))
        assert metrics["train/rows"] == pytest.approx(5.5)  # every row of 0 … 11 once


def test_mixed_precision_computes_losses_in_float32(make_trainer):
    trainer = make_trainer(mixed_precision="bf16", stop_at_epoch=1)
    types = set()
    plain, forward = trainer.method.loss, trainer.method.forward

    def loss(outputs, batch):
        types.add(outputs["y"].dtype)
        return plain(outputs, batch)

    def seen(views):
        outputs = forward(views)
        types.add(("network", outputs["y"].dtype))
        return outputs

    trainer.method.loss, trainer.method.forward = loss, seen
    trainer.fit()
    assert types == {("network", torch.bfloat16), torch.float32}
    assert {p.dtype for p in trainer.parameters} == {torch.float32}


def test_the_network_learns(make_trainer):
    trainer = make_trainer(epochs=30, learning_rate=0.02)
    trainer.fit()
    losses = [metrics["train/loss"] for metrics in history(trainer).values()]
    assert losses[-1] < 0.3 * losses[0]


# ---------------------------------------------------------------------------- going on


def test_a_resumed_run_is_the_straight_one(make_trainer):
    make_trainer("straight").fit()
    make_trainer("parts", stop_at_epoch=2).fit()
    second = make_trainer("parts")
    second.resume()
    assert (second.epoch, second.step) == (2, 6)
    second.fit()
    assert_same_training(make_trainer("straight").run_dir, second.run_dir)


def add_random_draws(trainer: Trainer) -> Trainer:
    """A method that draws from the global generator, as dropout does."""
    plain = trainer.method.loss

    def loss(outputs, batch):
        value, metrics = plain(outputs, batch)
        return value * torch.rand(()), metrics

    trainer.method.loss = loss
    return trainer


def test_a_resumed_run_goes_on_with_the_random_numbers(make_trainer):
    straight = add_random_draws(make_trainer("straight"))
    straight.fit()
    add_random_draws(make_trainer("parts", stop_at_epoch=2)).fit()
    second = add_random_draws(make_trainer("parts"))
    second.resume()
    torch.rand(5)
    second.resume()  # whatever was drawn before
    second.fit()
    assert_same_training(straight.run_dir, second.run_dir)


def test_a_crash_costs_the_epoch_it_happened_in(make_trainer):
    straight = make_trainer("straight")
    straight.fit()
    crashing = make_trainer("crashed")
    plain = crashing.method.loss

    def loss(outputs, batch):
        if len(crashing.method.batches) == 7:  # second step of the third epoch
            raise KeyboardInterrupt
        return plain(outputs, batch)

    crashing.method.loss = loss
    with pytest.raises(KeyboardInterrupt):
        crashing.fit()
    again = make_trainer("crashed")
    again.resume()
    assert again.epoch == 2
    again.fit()
    assert_same_training(straight.run_dir, again.run_dir)


def test_epochs_beyond_the_checkpoint_are_dropped_from_the_history(make_trainer):
    """The process died after writing training.json and before writing the checkpoint."""
    trainer = make_trainer(stop_at_epoch=2)
    trainer.fit()
    path = trainer.run_dir / "training.json"
    path.write_text(json.dumps(history(trainer) | {"3": {}, "4": {}}))
    again = make_trainer(stop_at_epoch=3)
    again.resume()
    again.fit()
    assert list(history(again)) == ["1", "2", "3"]
    assert history(again)["3"]["train/loss"] > 0


def test_a_finished_run_says_so_and_changes_nothing(make_trainer, capsys):
    trainer = make_trainer(stop_at_epoch=2)
    trainer.fit()
    before = files(trainer.run_dir)
    capsys.readouterr()
    again = make_trainer(stop_at_epoch=2)
    again.resume()
    again.fit()
    assert "already trained for 2 of 2 epochs, nothing to do" in capsys.readouterr().out
    assert files(trainer.run_dir) == before


SETTINGS: dict[str, Any] = {
    "encoder": {"type": "resnet34", "base_dim": 16},
    "method": {"type": "simclr", "temperature": 0.5},
    "dataset": {"frame_length": 32000, "num_workers": 8, "base_path": "a", "augmentation": None},
    "trainer": {"batch_size": 4, "epochs": 4, "optimizer": "adam", "patience": 100},
    "evaluation": {"test": []},
    "seed": 1717,
}


def changed(key: str, value: Any) -> dict[str, Any]:
    settings = json.loads(json.dumps(SETTINGS))
    *sections, name = key.split(".")
    node = settings
    for section in sections:
        node = node[section]
    node[name] = value
    return settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.base_dim", 8, "encoder.base_dim 16 -> 8"),
        ("method.temperature", 0.07, "method.temperature 0.5 -> 0.07"),
        ("method.type", "moco", "method.type simclr -> moco"),
        ("dataset.frame_length", 48000, "dataset.frame_length 32000 -> 48000"),
        ("dataset.augmentation", {"enable": True}, "dataset.augmentation null -> a section"),
        ("seed", 3, "seed 1717 -> 3"),
        ("trainer.batch_size", 8, "trainer.batch_size 4 -> 8"),
        ("trainer.optimizer", "sgd", "trainer.optimizer adam -> sgd"),
    ],
)
def test_resuming_with_other_settings_is_refused(make_trainer, key, value, message):
    make_trainer(stop_at_epoch=1, settings=SETTINGS).fit()
    again = make_trainer(settings=changed(key, value))
    before = files(again.run_dir)
    with pytest.raises(CheckpointError) as caught:
        again.resume()
    text = str(caught.value)
    assert f"({message})" in text  # that key alone
    assert "model_latest.pt: was trained with other settings" in text
    assert "run_dir" in text
    assert files(again.run_dir) == before


def test_every_changed_key_is_named(make_trainer):
    make_trainer(stop_at_epoch=1, settings=SETTINGS).fit()
    settings = changed("seed", 3) | {"encoder": {"type": "tdnn", "base_dim": 8}}
    with pytest.raises(
        CheckpointError, match=r"resnet34 -> tdnn, encoder\.base_dim 16 -> 8, seed 1717 -> 3"
    ):
        make_trainer(settings=settings).resume()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.num_workers", 0),
        ("dataset.base_path", "b"),
        ("trainer.epochs", 9),
        ("trainer.patience", 3),
        ("evaluation.test", [{"type": "sv_cosine"}]),
    ],
)
def test_resuming_elsewhere_longer_or_with_other_evaluations_is_allowed(make_trainer, key, value):
    make_trainer(stop_at_epoch=1, settings=SETTINGS).fit()
    again = make_trainer(settings=changed(key, value))
    again.resume()
    assert again.epoch == 1


def test_weight_decay_and_learning_rate_of_the_new_configuration_count(make_trainer):
    make_trainer(stop_at_epoch=1).fit()
    again = make_trainer(weight_decay=0.3, learning_rate=0.02)
    again.resume()
    found = record_rates(again)
    again.fit()
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.3
    assert found == [[0.02]] * 9


# ---------------------------------------------------------------------------- other starts


def test_init_weights_takes_the_weights_and_nothing_else(make_trainer):
    source = make_trainer("source")
    source.fit()
    path = checkpoint.checkpoint_path(source.run_dir, "latest")
    trainer = make_trainer("new", seed=8, init_weights=path)
    trainer.resume()
    assert_identical(dict(trainer.method.state_dict()), dict(source.method.state_dict()))
    assert (trainer.epoch, trainer.step, trainer.best_metric) == (0, 0, None)
    assert not trainer.optimizer.state_dict()["state"]


def test_init_weights_says_what_it_left(make_trainer, capsys):
    source = make_trainer("source", stop_at_epoch=1)
    source.fit()
    method = make_trainer("unused").method
    method.head = torch.nn.Linear(3, 2)
    before = method.head.weight.clone()
    path = checkpoint.checkpoint_path(source.run_dir, "latest")
    make_trainer("new", method=method, init_weights=path).resume()
    assert f"weights from {path}; not loaded: head.weight, head.bias" in capsys.readouterr().out
    assert torch.equal(method.encoder.weight, source.method.encoder.weight)
    assert torch.equal(method.head.weight, before)


@pytest.mark.parametrize("kind", ["dino", "byol", "not one of ours"])
@pytest.mark.parametrize("follows", [False, True])
def test_init_weights_takes_the_encoder_that_was_evaluated(
    make_trainer, tmp_path, capsys, kind, follows
):
    """DINO's is its teacher; a method with a teacher takes student and teacher as they are."""
    method = make_trainer("unused").method
    student = {k: x + 1 for k, x in method.state_dict().items()}
    of_teacher = {k: x + 2 for k, x in student.items() if k.startswith("encoder.")}
    saved = student | {k.replace("encoder.", "encoder_momentum."): x for k, x in of_teacher.items()}
    path = tmp_path / "old.pt"
    checkpoint.save(path, {"model": saved, "config": json.dumps({"method": {"type": kind}})})
    if follows:
        method.encoder_momentum = copy.deepcopy(method.encoder).requires_grad_(False)
    make_trainer("new", method=method, init_weights=path).resume()
    replaced = kind == "dino" and not follows
    for key, x in of_teacher.items():
        expected = x if replaced else student[key]
        torch.testing.assert_close(method.state_dict()[key], expected)
        if follows:
            own = method.state_dict()[key.replace("encoder.", "encoder_momentum.")]
            torch.testing.assert_close(own, x)
    torch.testing.assert_close(method.head.weight, student["head.weight"])
    said = capsys.readouterr().out
    assert ("the encoder is encoder_momentum, by which dino is evaluated" in said) == replaced


def test_init_weights_of_another_encoder_is_refused(make_trainer):
    source = make_trainer("source", stop_at_epoch=1)
    source.fit()
    method = make_trainer("unused").method
    method.encoder = torch.nn.Linear(5, 4)
    method.head = torch.nn.Linear(4, 1)
    path = checkpoint.checkpoint_path(source.run_dir, "latest")
    with pytest.raises(CheckpointError, match="does not hold this encoder; 2 of its tensors"):
        make_trainer("new", method=method, init_weights=path).resume()


def test_last_checkpoint_goes_on_in_another_folder(make_trainer):
    straight = make_trainer("straight")
    straight.fit()
    first = make_trainer("first", stop_at_epoch=2)
    first.fit()
    path = checkpoint.checkpoint_path(first.run_dir, "latest")
    second = make_trainer("second", last_checkpoint=path)
    second.resume()
    assert (second.epoch, second.step) == (2, 6)
    second.fit()
    a, b = saved(straight.run_dir), saved(second.run_dir)
    assert_identical(a, b)
    assert list(history(second)) == ["3", "4"]


def test_own_checkpoint_comes_before_last_checkpoint_and_init_weights(make_trainer, tmp_path):
    make_trainer(stop_at_epoch=2).fit()
    nowhere = tmp_path / "nowhere.pt"
    again = make_trainer(last_checkpoint=nowhere, init_weights=nowhere)
    again.resume()
    assert again.epoch == 2
    with pytest.raises(CheckpointError, match=r"nowhere.pt: no such checkpoint"):
        make_trainer("new", last_checkpoint=nowhere).resume()


@pytest.mark.parametrize("pair", [("adam", "sgd"), ("sgd", "adamw")])
def test_state_of_another_optimizer_is_refused(make_trainer, pair):
    first = make_trainer("first", stop_at_epoch=1, optimizer=pair[0])
    first.fit()
    path = checkpoint.checkpoint_path(first.run_dir, "latest")
    with pytest.raises(CheckpointError, match="not the state of a training of this kind"):
        make_trainer("second", last_checkpoint=path, optimizer=pair[1]).resume()


def test_a_checkpoint_of_weights_alone_cannot_be_gone_on_from(make_trainer):
    first = make_trainer("first", stop_at_epoch=1)
    first.fit()
    path = checkpoint.checkpoint_path(first.run_dir, "epoch-1")
    with pytest.raises(CheckpointError, match=r"give it as trainer\.init_weights"):
        make_trainer("second", last_checkpoint=path).resume()


# ---------------------------------------------------------------------------- best and patience


def validate_as(values: list[float]) -> Any:
    """A validation that gives ``values`` one after the other."""
    left = iter(values)
    return lambda: {"val/x": next(left)}


def tracked(mode: str = "min", **fields: Any) -> dict[str, Any]:
    return {"tracked_metric": "val/x", "tracked_mode": mode} | fields


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3, 1, 2, 1], 2),  # the first of equals
        ("max", [3, 1, 4, 2], 3),
        ("min", [4, 3, 2, 1], 4),
        ("max", [4, 3, 2, 1], 1),
        ("min", [math.nan, 5, 6, math.nan], 2),
        ("max", [-3, math.nan, -2, -4], 3),
    ],
)
def test_best_checkpoint_is_that_of_the_best_epoch(make_trainer, mode, values, best):
    trainer = make_trainer(validate=validate_as(values), **tracked(mode))
    trainer.fit()
    state = saved(trainer.run_dir, "best")
    assert state["epoch"] == best
    assert state["best_metric"] == trainer.best_metric == values[best - 1]
    assert_identical(state["model"], saved(trainer.run_dir, f"epoch-{best}")["model"])
    recorded = [metrics["val/x"] for metrics in history(trainer).values()]
    assert recorded == [None if math.isnan(value) else value for value in values]


def test_without_validation_there_is_no_best(make_trainer):
    trainer = make_trainer(patience=1)
    trainer.fit()
    names = {path.name for path in (trainer.run_dir / "checkpoints").iterdir()}
    latest = {"model_latest.pt", "model_previous.pt"}
    assert names == {*latest, *(f"model_epoch-{k}.pt" for k in range(1, 5))}


def test_training_loss_can_be_tracked(make_trainer):
    trainer = make_trainer(tracked_metric="train/loss")
    trainer.fit()
    losses = {int(epoch): m["train/loss"] for epoch, m in history(trainer).items()}
    assert saved(trainer.run_dir, "best")["epoch"] == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([5, 4, 6, 6, 1], 2, 4),
        ([5, 4, 6, 3, 4, 4], 2, 6),
        ([1, 2], 1, 2),
        ([math.nan] * 3, 3, 3),
    ],
)
def test_training_stops_when_patience_runs_out(make_trainer, values, patience, epochs, capsys):
    fields = tracked(epochs=9, patience=patience)
    trainer = make_trainer(validate=validate_as(values), **fields)
    trainer.fit()
    assert list(history(trainer)) == [str(k) for k in range(1, epochs + 1)]
    assert f"stopped early, val/x did not improve for {patience}" in capsys.readouterr().out

    before = files(trainer.run_dir)
    again = make_trainer(validate=validate_as([]), **fields)  # a second run trains nothing
    again.resume()
    again.fit()
    assert "stopped early" in capsys.readouterr().out
    assert files(trainer.run_dir) == before


def test_patience_goes_on_counting_after_a_restart(make_trainer):
    fields = tracked(epochs=9, patience=3)
    make_trainer(validate=validate_as([1, 2, 2]), stop_at_epoch=3, **fields).fit()
    again = make_trainer(validate=validate_as([2, 0]), **fields)
    again.resume()
    again.fit()
    assert again.epoch == 4
    assert (again.best_metric, again.stale_epochs) == (1, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"patience": 0}, "patience: must be at least 1"),
        ({"stop_at_epoch": 0}, "stop_at_epoch: must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: must be positive"),
        ({"learning_rate": math.nan}, "learning_rate: must be positive"),
        ({"weight_decay": -1.0}, "weight_decay: must be 0 or more"),
        (
            {"learning_rate_sched": "cosine", "learning_rate": 1e-6},
            "learning_rate_min: must be between 0 and learning_rate 1e-06, got 1e-05",
        ),
        (
            {"learning_rate_sched": "warmup+cosine", "epochs": 10},
            "learning_rate_warmup: .* less than epochs 10, got 10",
        ),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**fields)


# ---------------------------------------------------------------------------- the real thing

CONFIG = """\
encoder: {{type: resnet34, base_dim: 8, encoder_dim: 32}}
method: {{type: simclr, enable_projector: false, temperature: 0.1}}
trainer: {{epochs: 4, batch_size: 8, tracked_metric: val/sv_cosine/trials/eer}}
dataset:
  base_path: {corpus}
  train: train.csv
  ssl: true
  frame_length: 8000
  num_workers: 0
  max_samples: 16
  augmentation: {{strategy: all}}
"""
VALIDATION = "evaluation.validation=[{type: sv_cosine, num_frames: 1, trials: [trials]}]"


class Runs:
    """Trains the same experiment in folders of its own."""

    def __init__(self, corpus: Path, folder: Path):
        self.folder = folder
        self.config = folder / "config.yml"
        self.config.write_text(CONFIG.format(corpus=corpus))

    def load(self, name: str, *overrides: str) -> Any:
        return load_config(self.config, [f"run_dir={self.folder / name}", *overrides])

    def train(self, name: str, *overrides: str) -> Path:
        experiment.train(self.load(name, *overrides))
        return self.folder / name


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # kernels of a GPU may differ from run to run
        patch.setattr(distributed, "default_device", lambda: torch.device("cpu"))
        yield Runs(corpus, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(runs) -> Path:
    return runs.train("straight")


def test_simclr_resumed_is_simclr_straight(runs, straight):
    runs.train("parts", "trainer.stop_at_epoch=2")
    runs.train("parts", "dataset.num_workers=1")
    assert_same_training(straight, runs.folder / "parts")


def test_augmentation_on_the_device_changes_nothing(runs, straight, monkeypatch):
    """As on a GPU, where the workers only read; here the device is the CPU."""

    def later(*arguments: Any, augment_later: bool) -> SpeechDataset:
        assert not augment_later
        return SpeechDataset(*arguments, augment_later=True)

    monkeypatch.setattr(experiment, "SpeechDataset", later)
    runs.train("later", "dataset.num_workers=1")
    assert_same_training(straight, runs.folder / "later")


def test_seed_decides_everything(runs, straight):
    runs.train("again")
    assert_same_training(straight, runs.folder / "again")
    other = runs.train("other", "seed=3", "trainer.stop_at_epoch=1")
    losses = [
        json.loads((run / "training.json").read_text())["1"]["train/loss"]
        for run in (straight, other)
    ]
    assert losses[0] != losses[1]


def test_validation_changes_nothing_of_the_training(runs, straight):
    validated = runs.train("validated", VALIDATION, "trainer.stop_at_epoch=2")
    a, b = (saved(run, "epoch-2")["model"] for run in (straight, validated))
    assert_identical(a, b)
    epoch = json.loads((validated / "training.json").read_text())["2"]
    assert 0 <= epoch["val/sv_cosine/trials/eer"] <= 100
    assert (
        epoch["train/loss"]
        == (json.loads((straight / "training.json").read_text())["2"]["train/loss"])
    )
    assert saved(validated, "best")["best_metric"] is not None


def test_what_a_run_leaves(straight):
    names = set(files(straight))
    board = {name for name in names if name.startswith("tensorboard/")}
    assert len(board) == 1
    assert names - board == {
        "training.json",
        "timings.json",
        "environment.json",
        "resolved_config.yml",
        "checkpoints/model_latest.pt",
        "checkpoints/model_previous.pt",
        *(f"checkpoints/model_epoch-{k}.pt" for k in range(1, 5)),
    }


def test_a_second_command_on_a_finished_folder_changes_nothing(runs, straight, capsys):
    before = files(straight)
    runs.train("straight")
    assert "already trained for 4 of 4 epochs" in capsys.readouterr().out
    assert files(straight) == before


def test_real_settings_are_compared(runs, straight):
    shutil.copytree(straight, runs.folder / "copy")
    before = files(runs.folder / "copy")
    changes = {
        "encoder.base_dim=16": "encoder.base_dim 8 -> 16",
        "dataset.augmentation.aug_prob=0.5": "dataset.augmentation.aug_prob 1.0 -> 0.5",
        "seed=3": "seed 1717 -> 3",
    }
    for override, message in changes.items():
        with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
            runs.train("copy", override)
    assert files(runs.folder / "copy") == before
