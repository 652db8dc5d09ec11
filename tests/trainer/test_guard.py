"""A loss or gradient that is not finite never reaches the weights, nor a file."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslsv.trainer import checkpoint
from sslsv.trainer.guard import CHECK_EVERY, FiniteGuard, NonFiniteLoss
from sslsv.trainer.trainer import Trainer

STEPS_PER_EPOCH = 3  # of make_trainer
OPTIMIZERS = ["adam", "adamw", "sgd"]


def poison(trainer: Trainer, bad_step: int, kind: str) -> None:
    """From now on step ``bad_step`` has a NaN loss, or a finite one with infinite gradients."""
    method, plain = trainer.method, trainer.method.loss

    def loss(outputs: dict[str, Tensor], batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = plain(outputs, batch)
        if len(method.batches) == bad_step + 1:
            if kind == "loss":
                value = value * math.nan
            else:
                outputs["y"].register_hook(lambda grad: torch.full_like(grad, math.inf))
                assert value.isfinite()
        return value, metrics

    method.loss = loss


def run_steps(trainer: Trainer, first: int, last: int) -> None:
    """Steps without the checks between them, as on a GPU."""
    for step in range(first, last):
        trainer.sampler.set_epoch(step // STEPS_PER_EPOCH, step % STEPS_PER_EPOCH)
        trainer.train_step(next(iter(trainer.loader)))


def contents(trainer: Trainer) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of weights and of all tensors of the optimiser."""
    state = trainer.optimizer.state_dict()["state"]
    moments = [value for p in state.values() for value in p.values()]
    return copy.deepcopy([p.detach() for p in trainer.parameters]), copy.deepcopy(moments)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_moments_stay_as_before_the_bad_step(make_trainer, optimizer, kind):
    trainer = make_trainer(optimizer=optimizer, weight_decay=0.1)
    poison(trainer, bad_step=4, kind=kind)
    run_steps(trainer, 0, 4)
    weights, moments = contents(trainer)
    assert moments
    run_steps(trainer, 4, 9)  # the steps after it are finite again
    assert same(contents(trainer)[0], weights)
    assert same(contents(trainer)[1], moments)
    assert trainer.method.frozen == [0.0] * 4 + [1.0] * 5
    step, rows = trainer.guard.failure()
    assert step == 4
    assert rows.tolist() == trainer.method.batches[4]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_stay_as_they_were_made_where_the_first_step_is_bad(make_trainer, optimizer):
    trainer = make_trainer(optimizer=optimizer, weight_decay=0.1)
    poison(trainer, bad_step=0, kind="loss")
    weights, _ = contents(trainer)
    run_steps(trainer, 0, 5)
    assert same(contents(trainer)[0], weights)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_stops_and_the_last_checkpoint_is_kept(make_trainer, optimizer, kind):
    healthy = make_trainer("healthy", optimizer=optimizer)
    run_steps(healthy, 0, 4)

    trainer = make_trainer(optimizer=optimizer)
    poison(trainer, bad_step=4, kind=kind)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 4 \(epoch 2\)") as caught:
        trainer.fit()
    rows = trainer.method.batches[4]
    assert str(caught.value).endswith("files: " + ", ".join(f"row{row:02d}.wav" for row in rows))
    assert same(contents(trainer)[0], contents(healthy)[0])

    folder = trainer.run_dir
    saved = {path.name for path in (folder / "checkpoints").iterdir()}
    assert saved == {"model_latest.pt", "model_epoch-1.pt"}
    assert json.loads((folder / "training.json").read_text()).keys() == {"1"}
    first_epoch = make_trainer("first", optimizer=optimizer, stop_at_epoch=1)
    first_epoch.fit()
    resumed = make_trainer(optimizer=optimizer)
    resumed.resume()
    assert (resumed.epoch, resumed.step) == (1, 3)
    assert same(contents(resumed)[0], contents(first_epoch)[0])
    assert same(contents(resumed)[1], contents(first_epoch)[1])
    assert checkpoint.load(folder / "checkpoints/model_epoch-1.pt")["epoch"] == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_saved_where_the_flag_is_seen_late(make_trainer, optimizer):
    """On a GPU the host looks every 25 steps, and at the end of an epoch."""
    healthy = make_trainer("healthy", optimizer=optimizer)
    run_steps(healthy, 0, 3)
    trainer = make_trainer(optimizer=optimizer)
    trainer.check_every = CHECK_EVERY
    poison(trainer, bad_step=3, kind="loss")
    with pytest.raises(NonFiniteLoss, match=r"step 3 \(epoch 2\)"):
        trainer.fit()
    assert trainer.step == 6  # all of the second epoch
    assert same(contents(trainer)[0], contents(healthy)[0])
    saved = {path.name for path in (trainer.run_dir / "checkpoints").iterdir()}
    assert saved == {"model_latest.pt", "model_epoch-1.pt"}


def test_bad_audio_stops_training_and_is_named(make_trainer):
    trainer = make_trainer()
    trainer.loader._loader.dataset.x[5, 2] = math.nan
    with pytest.raises(NonFiniteLoss, match=r"row05\.wav"):
        trainer.fit()
    assert all(p.isfinite().all() for p in trainer.parameters)


# ---------------------------------------------------------------------------- the guard alone


def watch(guard: FiniteGuard, step: int, loss: float, grad: float = 0.0) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.0, grad])
    unused = nn.Parameter(torch.zeros(1))
    rows = torch.tensor([10 * step, 10 * step + 1])
    guard.watch(torch.tensor(loss), [parameter, unused], step, rows)


@pytest.mark.parametrize(
    ("loss", "grad"),
    [(math.nan, 0.0), (math.inf, 0.0), (-math.inf, math.inf), (1.0, math.nan), (1.0, -math.inf)],
)
def test_flag_goes_up_and_stays_up(loss, grad):
    guard = FiniteGuard(torch.device("cpu"))
    watch(guard, 0, 1.0, 2.0)
    assert guard.frozen == 0
    assert guard.failure() is None
    watch(guard, 1, loss, grad)
    watch(guard, 2, 1.0, 2.0)
    assert guard.frozen == 1
    step, rows = guard.failure()
    assert (step, rows.tolist()) == (1, [10, 11])


def test_the_first_of_several_bad_steps_is_the_one_reported():
    guard = FiniteGuard(torch.device("cpu"))
    for step in range(3 + CHECK_EVERY):  # the longest that a bad step can stay unseen
        watch(guard, step, math.nan if step >= 3 else 1.0)
    step, rows = guard.failure()
    assert (step, rows.tolist()) == (3, [30, 31])
