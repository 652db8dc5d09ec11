"""What every registered method keeps to, whatever its loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, ROWS, Case, Tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sslsv.methods.base import Method, Progress
from sslsv.registry import METHODS
from sslsv.trainer import checkpoint

STEPS = 4


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def trainable(method: Method) -> dict[str, nn.Parameter]:
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


def step(method: Method, optimizer: torch.optim.Optimizer, case: Case, number: int) -> Tensor:
    """One step as the trainer makes it, on a batch of its own."""
    batch = case.batch(number)
    method.progress = Progress(number, STEPS, number // 2, STEPS // 2, seed=3)
    if number % 2 == 0:
        method.on_epoch_start()
    outputs = method(batch.views)
    loss, _ = method.loss(outputs, batch)
    optimizer.zero_grad()
    loss.backward()
    method.on_gradients()
    optimizer.step()
    method.on_step_end({k: v.detach() for k, v in outputs.items()}, batch, torch.zeros(()))
    return loss.detach()


def state_of(method: Method) -> dict[str, Tensor]:
    return copy.deepcopy({**method.state_dict(), **method.memories()})


def make_optimizer(method: Method) -> torch.optim.Optimizer:
    return torch.optim.SGD(method.param_groups(), 0.01, momentum=0.9)


def test_every_method_has_a_case():
    assert {case.type for case in CASES} == set(METHODS.names())


def test_outputs_are_named_tensors_with_the_batch_first(case):
    method = case.method()
    outputs = method(case.batch().views)
    assert outputs
    assert all(isinstance(x, Tensor) and len(x) == ROWS for x in outputs.values())
    assert set(method.positives) <= outputs.keys()


def test_forward_uses_every_trainable_parameter(case):
    method = case.method()
    outputs = method(case.batch().views)
    sum(x.square().sum() for x in outputs.values() if x.requires_grad).backward()
    assert [name for name, p in trainable(method).items() if p.grad is None] == []


def test_gradient_of_the_loss_reaches_every_parameter(case):
    method, batch = case.method(), case.batch()
    if case.type.startswith("moco"):  # its negatives: a queue that has seen something
        step(method, make_optimizer(method), case, 0)
        method.zero_grad()
    loss, _ = method.loss(method(batch.views), batch)
    loss.backward()
    lost = [
        n for n, p in trainable(method).items() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert lost == []
    # A bias before batch norm, or one that all logits share, has no gradient by construction.
    zero = [n for n, p in trainable(method).items() if not p.grad.any() and "bias" not in n]
    assert zero == []


def test_loss_is_a_finite_scalar_that_is_logged_without_its_graph(case):
    method, batch = case.method(), case.batch()
    loss, metrics = method.loss(method(batch.views), batch)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert loss.requires_grad
    assert loss.isfinite()
    assert metrics["train/loss"] == loss
    for name, value in metrics.items():
        assert name.startswith("train/")
        assert isinstance(value, float) or (value.shape == () and not value.requires_grad), name


def test_loss_has_no_parameters_of_its_own(case):
    method, batch = case.method(), case.batch()
    outputs = {name: x.detach() for name, x in method(batch.views).items()}
    assert not method.loss(outputs, batch)[0].requires_grad


def test_forward_and_loss_change_no_state_but_batch_norm(case):
    method, batch = case.method().eval(), case.batch()
    before = state_of(method)
    for _ in range(2):
        first = method.loss(method(batch.views), batch)[0]
    assert torch.equal(first, method.loss(method(batch.views), batch)[0])
    assert all(torch.equal(x, before[name]) for name, x in state_of(method).items())


def test_embeddings_are_one_vector_an_utterance(case):
    method = case.method().eval()
    embedding = method.embed(torch.randn(3, 900))
    assert embedding.ndim == 2
    assert len(embedding) == 3


def test_embeddings_of_a_padded_batch_are_those_of_each_row_alone(case):
    method, wave, lengths = case.method().eval(), torch.randn(3, 900), [900, 501, 733]
    alone = [method.embed(wave[i : i + 1, :n]) for i, n in enumerate(lengths)]
    torch.testing.assert_close(method.embed(wave, lengths), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_replicas_that_share_a_batch_give_the_outputs_of_the_whole(case):
    """What DataParallel does; batch norm must not see the batch for that."""
    views, method = case.batch().views, case.method().eval()
    whole = method(views)
    parts = [method([view[rows] for view in views]) for rows in (slice(0, 3), slice(3, ROWS))]
    for name, x in whole.items():
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, x, rtol=1e-4, atol=1e-5)


def test_gradients_through_replicas_are_those_of_the_whole(case):
    """Outputs of the replicas joined, one loss: as DataParallel trains."""
    method, batch = case.method().double().eval(), case.batch(dtype=torch.float64)
    found: list[dict[str, Tensor]] = []
    for pieces in ([slice(0, ROWS)], [slice(0, 3), slice(3, ROWS)]):
        parts = [method([view[rows] for view in batch.views]) for rows in pieces]
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        loss, _ = method.loss(outputs, batch)
        method.zero_grad()
        loss.backward()
        found.append(
            {n: p.grad.clone() for n, p in trainable(method).items()} | {"": loss.detach()}
        )
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-9, atol=1e-12)


def test_optimiser_groups_hold_every_trainable_parameter_once(case):
    method = case.method()
    grouped = [id(p) for group in method.param_groups() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in trainable(method).values()}


def test_the_encoder_keeps_its_names(case):
    own = case.method().state_dict()
    assert {f"encoder.{name}" for name in Tiny().state_dict()} <= own.keys()


def test_the_step_after_a_restart_is_bit_identical(case):
    method = case.method()
    optimizer = make_optimizer(method)
    for number in range(STEPS - 1):
        step(method, optimizer, case, number)
    saved = copy.deepcopy({"model": method.state_dict(), "optimizer": optimizer.state_dict()})
    memories = copy.deepcopy(method.memories())

    other = case.method()
    other_optimizer = make_optimizer(other)
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    checkpoint.load_memories(other.memories(), memories, Path("model_latest.pt"))
    assert torch.equal(
        step(method, optimizer, case, STEPS - 1), step(other, other_optimizer, case, STEPS - 1)
    )
    theirs = state_of(other)
    assert all(torch.equal(x, theirs[name]) for name, x in state_of(method).items())


def test_a_frozen_step_changes_no_teacher_and_no_queue(case):
    method, batch = case.method(), case.batch()
    for parameter in trainable(method).values():  # so that a teacher has something to follow
        parameter.data += 0.1
    outputs = {name: x.detach() for name, x in method(batch.views).items()}
    before = state_of(method)
    method.on_step_end(outputs, batch, torch.ones(()))
    assert all(torch.equal(x, before[name]) for name, x in state_of(method).items())


def test_no_step_waits_for_the_device(case):
    """Fake tensors have no values: whatever asks the host for one raises, as it would wait on a
    GPU. The finite guard's flag is such a tensor too."""
    method, batch = case.method(), case.batch()

    def run(fake: FakeTensorMode) -> None:
        to_fake: Any = fake.from_tensor
        for module in method.modules():
            for name, p in list(module._parameters.items()):
                if p is not None:
                    module._parameters[name] = to_fake(p)
            for name, b in list(module._buffers.items()):
                if b is not None:
                    module._buffers[name] = to_fake(b)
        fake_batch = copy.copy(batch)
        fake_batch.views = [to_fake(view) for view in batch.views]
        fake_batch.labels = to_fake(batch.labels)
        outputs = method(fake_batch.views)
        loss, _ = method.loss(outputs, fake_batch)
        loss.backward()
        detached = {name: x.detach() for name, x in outputs.items()}
        method.on_step_end(detached, fake_batch, to_fake(torch.zeros(())))

    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        run(fake)
