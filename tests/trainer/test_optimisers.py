"""Optimisers against their formulas, the groups that they are given, and clipping."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sslsv.config import from_dict
from sslsv.methods.base import Method, MethodConfig
from sslsv.methods.whitening import IterNorm
from sslsv.registry import ENCODERS, METHODS
from sslsv.trainer import reference
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.optimisers import LARS, clip, make_optimizer, set_hyperparameters

OPTIMIZERS = ["sgd", "adam", "adamw", "lars"]
STEPS = 6
LATE = "predictor.weight"  # has no gradient in these steps
WITHOUT = (0, 1, 4)
Grads = dict[str, Tensor | None]


class Parts(Method):
    """One of each kind of group and tensor."""

    def __init__(self) -> None:
        super().__init__(MethodConfig(type="parts"), nn.Linear(5, 3))  # type: ignore[arg-type]
        self.conv = nn.Conv1d(2, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.whiten = IterNorm(4, groups=2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.predictor = nn.Linear(3, 1)
        self.margin = nn.Parameter(torch.tensor(0.3))
        self.free = nn.Linear(2, 2)

    def param_groups(self) -> list[dict[str, Any]]:
        rest = [self.encoder, self.conv, self.norm, self.whiten, self.frozen]
        return [
            {"params": [p for m in rest for p in m.parameters() if p.requires_grad]},
            {"params": [*self.predictor.parameters(), self.margin], "fixed_lr": True},
            {"params": list(self.free.parameters()), "weight_decay": 0.25},
        ]


MATRICES = {"encoder.weight", "conv.weight", "predictor.weight", "free.weight"}
OWN_DECAY, FIXED_LR = ("free.",), ("predictor.", "margin")


def parts(dtype: torch.dtype = torch.float64) -> Parts:
    """The same weights each time; those of the encoder are zero."""
    torch.manual_seed(1)
    method = Parts().to(dtype)
    nn.init.zeros_(method.encoder.weight)
    return method


def config(optimizer: str = "sgd", **fields: Any) -> TrainerConfig:
    return TrainerConfig(optimizer=optimizer, **{"learning_rate": 0.1, **fields})  # type: ignore[arg-type]


def trainable(method: Method) -> dict[str, nn.Parameter]:
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


def group_names(optimizer: torch.optim.Optimizer, method: Method) -> list[list[str]]:
    names = {id(p): name for name, p in method.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def gradients(method: Method, step: int) -> Grads:
    """Of a step: none for one tensor in some, zero for one in others."""
    generator = torch.Generator().manual_seed(step)
    grads: Grads = {}
    for name, p in trainable(method).items():
        grads[name] = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    if step in WITHOUT:
        grads[LATE] = None
    if step == 3:
        grads["conv.weight"] = torch.zeros_like(method.conv.weight)
    return grads


def put(method: Method, grads: Grads) -> None:
    for name, p in trainable(method).items():
        grad = grads[name]
        p.grad = None if grad is None else grad.clone()


def rates(step: int) -> tuple[float, float]:
    """Learning rate and weight decay, other ones at each step."""
    return 0.1 / (1 + step), 0.05 * (1 + step)


def train(method: Method, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        put(method, gradients(method, step))
        set_hyperparameters(optimizer, *rates(step))
        optimizer.step()


def contents(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all weights and moments."""
    found: dict[str, Tensor] = {n: p.detach().clone() for n, p in method.named_parameters()}
    for name, p in method.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            found[f"{name} {key}"] = value.clone()
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit by bit; a moment that is not there yet is zero."""
    for name in a.keys() | b.keys():
        x, y = a.get(name), b.get(name)
        x, y = (torch.zeros_like(y) if x is None else x), (torch.zeros_like(x) if y is None else y)
        assert torch.equal(x, y), name


# ---------------------------------------------------------------------------- formulas


def textbook(optimizer: str, split: bool) -> dict[str, np.ndarray]:
    """Weights after all steps, tensor by tensor."""
    method = parts()
    result = {}
    for name, p in trainable(method).items():
        w = p.detach().numpy().copy()
        m, v, t = np.zeros_like(w), np.zeros_like(w), 0
        for step in range(STEPS):
            grad = gradients(method, step)[name]
            if grad is None:
                continue
            g, t = grad.numpy(), t + 1
            lr, decay = rates(step)
            if name.startswith(FIXED_LR):
                lr = 0.1
            if name.startswith(OWN_DECAY):
                decay = 0.25
            elif split and name not in MATRICES:
                decay = 0.0
            if optimizer == "sgd":
                m = 0.9 * m + (g + decay * w)
                w = w - lr * m
            elif optimizer == "lars":
                rate = 1.0
                if name in MATRICES:
                    length = math.sqrt(sum(x * x for x in w.flat))
                    below = math.sqrt(sum(x * x for x in g.flat)) + decay * length
                    if length > 0 and below > 0:
                        rate = 0.001 * length / below
                else:
                    decay = 0.0
                m = 0.9 * m + lr * rate * (g + decay * w)
                w = w - m
            else:
                if optimizer == "adam":
                    g = g + decay * w
                else:
                    w = w - lr * decay * w
                m = 0.9 * m + 0.1 * g
                v = 0.999 * v + 0.001 * g * g
                w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        result[name] = w
    return result


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_updates_are_those_of_the_textbook(optimizer, every, dtype, tolerance):
    method = parts(dtype)
    made = make_optimizer(config(optimizer, weight_decay_all=every), method)
    made.found_inf = torch.zeros(())  # as the trainer gives it
    train(method, made, 0, STEPS)
    expected = textbook(optimizer, split=not every)
    for name, p in trainable(method).items():
        w = p.detach().numpy()
        np.testing.assert_allclose(w, expected[name], tolerance, tolerance, err_msg=name)


def test_lars_known_answer():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = LARS([w], lr=0.1, weight_decay=0.1)
    w.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    optimizer.step()
    v = np.array([6e-5, 4.8e-4])  # 0.1 * 0.002 * [0.3, 2.4], 0.002 = 0.001 * 5 / (2 + 0.5)
    np.testing.assert_allclose(w.detach().numpy()[0], [3, 4] - v, rtol=1e-12)
    w.grad.zero_()
    optimizer.param_groups[0]["lr"] = 0.0  # what was gathered moves it still
    optimizer.step()
    np.testing.assert_allclose(w.detach().numpy()[0], [3, 4] - 1.9 * v, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_starts_from_zero_weights_and_stands_zero_gradients(decay):
    zero_w, zero_g = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([zero_w, zero_g], lr=0.5, weight_decay=decay)
    zero_w.grad, zero_g.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(zero_w, torch.full((2, 2), -0.5))
    # Weight decay alone: eta * lr of the weights.
    expected = torch.full((2, 2), 1 - 0.0005 if decay else 1.0)
    torch.testing.assert_close(zero_g.detach(), expected)


def test_lars_with_several_groups_without_any_gradient_does_nothing():
    method = parts()
    optimizer = make_optimizer(config("lars"), method)
    before = contents(method, optimizer)
    optimizer.step()
    assert contents(method, optimizer).keys() == before.keys()
    assert_same(contents(method, optimizer), before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_stay_as_they_are(optimizer):
    """Metrics of gradients may be taken after the step."""
    method = parts()
    made = make_optimizer(config(optimizer, weight_decay=0.1), method)
    train(method, made, 0, 1)
    for name, grad in gradients(method, 0).items():
        p = trainable(method)[name]
        assert p.grad is None if grad is None else torch.equal(p.grad, grad), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_closure_gives_gradients_and_its_loss(optimizer):
    method, plain = parts(), parts()
    made = make_optimizer(config(optimizer), method)

    def closure() -> float:
        assert torch.is_grad_enabled()
        put(method, gradients(method, 2))
        return 1.5

    assert made.step(closure) == 1.5
    other = make_optimizer(config(optimizer), plain)
    put(plain, gradients(plain, 2))
    other.step()
    assert_same(contents(method, made), contents(plain, other))


# ---------------------------------------------------------------------------- skipped and scaled


@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_with_found_inf_leaves_no_trace(optimizer, value, bad):
    method, plain = parts(torch.float32), parts(torch.float32)
    settings = config(optimizer, weight_decay=0.1, weight_decay_all=False)
    made, other = make_optimizer(settings, method), make_optimizer(settings, plain)
    made.found_inf = torch.zeros(())
    train(method, made, 0, bad)
    before = contents(method, made)
    assert (bad > 0) == any(" " in name for name in before)  # moments

    put(method, {name: torch.full_like(p, value) for name, p in trainable(method).items()})
    made.found_inf = torch.ones(())
    made.step()
    assert_same(contents(method, made), before)

    made.found_inf = torch.zeros(())
    train(method, made, bad, STEPS)
    train(plain, other, 0, STEPS)
    assert_same(contents(method, made), contents(plain, other))


def test_lars_without_found_inf_lets_a_nan_through():
    """So that the test above shows something."""
    method = parts()
    optimizer = make_optimizer(config("lars"), method)
    put(method, {name: torch.full_like(p, math.nan) for name, p in trainable(method).items()})
    optimizer.step()
    assert all(p.isnan().all() for p in trainable(method).values())


@pytest.mark.parametrize("skip", [None, 0.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_are_divided_by_grad_scale(optimizer, skip):
    method, plain = parts(torch.float32), parts(torch.float32)
    made, other = (make_optimizer(config(optimizer), m) for m in (method, plain))
    train(plain, other, 0, STEPS)
    for step in range(STEPS):
        scale = 2.0 ** (10 - step)
        grads = gradients(method, step)
        put(method, {name: None if g is None else scale * g for name, g in grads.items()})
        set_hyperparameters(made, *rates(step))
        made.grad_scale = torch.tensor(scale)
        made.found_inf = None if skip is None else torch.tensor(skip)
        made.step()
    assert_same(contents(method, made), contents(plain, other))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_scaler_of_half_precision_works_with_it(optimizer, monkeypatch):
    """Without asking the host whether a gradient is infinite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    monkeypatch.setattr(scaler, "_maybe_opt_step", None)  # which asks
    method, plain = parts(torch.float32), parts(torch.float32)
    made, other = (make_optimizer(config(optimizer), m) for m in (method, plain))
    for factor in (math.inf, 1.0, 1.0):
        made.zero_grad()
        other.zero_grad()
        for m in (method, plain):
            loss = factor * sum(p.square().sum() for p in trainable(m).values())
            (scaler.scale(loss) if m is method else loss).backward()
        scaler.step(made)
        scaler.update()
        if factor == 1:
            other.step()
    assert scaler.get_scale() == 4
    assert_same(contents(method, made), contents(plain, other))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_for_the_device(optimizer, scaled):
    """Fake tensors have no values: whatever asks the host for one raises."""
    with FakeTensorMode():
        method = Parts()
        settings = config(optimizer, clip_grad_norm=1.0, clip_grad_tensor_norm=1.0)
        made = make_optimizer(settings, method)
        made.found_inf = torch.zeros(())
        if scaled:
            made.grad_scale = torch.ones(())
        for _ in range(2):
            for p in trainable(method).values():
                p.grad = torch.ones_like(p)
            clip(trainable(method).values(), settings)
            set_hyperparameters(made, 0.1, 0.1)
            made.step()


# ---------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("done", [1, 3])  # before and after the late tensor's first gradient
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_step_after_a_restart_is_bit_identical(optimizer, done):
    method = parts(torch.float32)
    settings = config(optimizer, weight_decay_all=False)
    made = make_optimizer(settings, method)
    train(method, made, 0, done)
    file = io.BytesIO()
    torch.save({"model": method.state_dict(), "optimizer": made.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Parts()
    again.load_state_dict(saved["model"])
    loaded = make_optimizer(settings, again)
    loaded.load_state_dict(saved["optimizer"])
    marks = ("fixed_lr", "no_decay", "own_decay", "weight_decay", "lr")
    for a, b in zip(made.param_groups, loaded.param_groups, strict=True):
        assert [a.get(mark) for mark in marks] == [b.get(mark) for mark in marks]
    train(method, made, done, STEPS)
    train(again, loaded, done, STEPS)
    assert_same(contents(method, made), contents(again, loaded))


@pytest.mark.parametrize(("optimizer", "other"), [("lars", "sgd"), ("sgd", "lars")])
def test_velocities_of_lars_and_momentum_of_sgd_are_not_taken_for_each_other(optimizer, other):
    """The one holds the learning rate, the other does not."""
    first, second, plain = parts(), parts(), parts()
    made = make_optimizer(config(optimizer, weight_decay_all=False), first)
    train(first, made, 0, 2)
    loaded = make_optimizer(config(other, weight_decay_all=False), second)
    settings = [{k: v for k, v in g.items() if k != "params"} for g in loaded.param_groups]
    loaded.load_state_dict(made.state_dict())
    for group, own in zip(loaded.param_groups, settings, strict=True):
        group.update(own)
    fresh = make_optimizer(config(other, weight_decay_all=False), plain)
    train(second, loaded, 2, 4)
    train(plain, fresh, 2, 4)
    for name, p in trainable(second).items():
        assert torch.equal(p, trainable(plain)[name]), name


def reference_state(kind: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """As the reference writes it, a group for each module; and its moments by name."""
    method = parts()
    groups = [{"params": [p for p in m.parameters() if p.requires_grad]} for m in method.children()]
    groups = [{"params": [method.margin]}, *(group for group in groups if group["params"])]
    made = torch.optim.Adam(groups) if kind == "adam" else torch.optim.SGD(groups, momentum=0.9)
    put(method, gradients(method, 2))
    made.step()
    state = {"model": method.state_dict(), "optimizer": made.state_dict()}
    return state, {name: made.state[p] for name, p in trainable(method).items()}


class InOrder(Parts):
    """One group, as most methods have."""

    def param_groups(self) -> list[dict[str, Any]]:
        return Method.param_groups(self)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_moments_of_the_reference_find_their_tensors_where_groups_are_not_split(optimizer):
    state, expected = reference_state("sgd" if optimizer == "sgd" else "adam")
    method = InOrder().double()
    made = make_optimizer(config(optimizer), method)
    found = reference.optimizer_state(state, method, made)
    assert found
    made.load_state_dict(found)
    for name, p in trainable(method).items():
        assert made.state[p].keys() == expected[name].keys()
        assert all(torch.equal(x, expected[name][key]) for key, x in made.state[p].items()), name


@pytest.mark.parametrize(("optimizer", "every"), [("adam", False), ("sgd", False), ("lars", True)])
def test_moments_of_the_reference_are_not_taken_where_groups_are_split(optimizer, every):
    state, _ = reference_state("adam" if optimizer == "adam" else "sgd")
    method = InOrder().double()
    made = make_optimizer(config(optimizer, weight_decay_all=every), method)
    assert reference.optimizer_state(state, method, made) is None


# ---------------------------------------------------------------------------- groups


def large(type: str) -> Method:
    """With the default settings; all but the encoder on the device that holds no values."""
    method: dict[str, Any] = {"type": type}
    if type.endswith("_margins"):
        method["loss"] = {"loss": "nt-xent-cosface", "margin_learnable": True}
    if type == "combiner":
        method["Z_losses"] = [{"type": "vicreg"}]
    encoder = {"type": "resnet34", "base_dim": 8, "pooling": type != "cpc"}
    tree = from_dict({"encoder": encoder, "method": method})
    made = ENCODERS.get("resnet34").cls(tree.encoder)
    with torch.device("meta"):
        return METHODS.get(type).cls(tree.method, made)


def is_bias_or_norm(method: Method, name: str) -> bool:
    """By what it is a part of, or a scalar."""
    owner, _, leaf = name.rpartition(".")
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, IterNorm)
    scalar = method.get_parameter(name).ndim == 0
    return leaf.startswith("bias") or isinstance(method.get_submodule(owner), norms) or scalar


@pytest.mark.parametrize("type", METHODS.names())
def test_every_trainable_parameter_of_a_method_is_in_one_group(type):
    method = large(type)
    own = trainable(method)
    plain = [[id(p) for p in group["params"]] for group in method.param_groups()]
    for optimizer in OPTIMIZERS:
        for every in (True, False):
            made = make_optimizer(config(optimizer, weight_decay_all=every), method)
            groups = group_names(made, method)
            names = [name for group in groups for name in group]
            assert sorted(names) == sorted(own)
            assert all(groups)
            if every and optimizer != "lars":
                assert [[id(own[n]) for n in group] for group in groups] == plain
                continue
            for group, members in zip(made.param_groups, groups, strict=True):
                if group.get("own_decay"):
                    continue
                marked = group.get("no_decay", False)
                assert [name for name in members if is_bias_or_norm(method, name) != marked] == []


def test_groups_are_those_of_the_method_where_everything_is_decayed():
    method = parts()
    made = make_optimizer(config(weight_decay=0.1), method)
    plain = [[id(p) for p in group["params"]] for group in method.param_groups()]
    assert [[id(p) for p in group["params"]] for group in made.param_groups] == plain
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.1, 0.25]
    assert not any("no_decay" in group for group in made.param_groups)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_biases_and_parameters_of_norms_are_in_groups_of_their_own(optimizer):
    method = parts()
    made = make_optimizer(config(optimizer, weight_decay=0.1, weight_decay_all=False), method)
    assert group_names(made, method) == [
        ["encoder.weight", "conv.weight"],
        [
            *("encoder.bias", "conv.bias", "norm.weight", "norm.bias"),
            *("whiten.weight", "whiten.bias"),
        ],
        ["predictor.weight"],
        ["predictor.bias", "margin"],
        ["free.weight", "free.bias"],
    ]
    groups = made.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0.1, 0, 0.25]
    assert [group.get("no_decay", False) for group in groups] == [False, True] * 2 + [False]
    assert [group.get("own_decay", False) for group in groups] == [False] * 4 + [True]
    assert [group.get("fixed_lr", False) for group in groups] == [False, False, True, True, False]
    assert [group["lr"] for group in groups] == [0.1] * 5


def test_lars_neither_adapts_nor_decays_norms_of_two_dimensions():
    """Whatever ``weight_decay_all``: the affine map of IterNorm is (1, D)."""
    method = parts()
    made = make_optimizer(config("lars", weight_decay=0.5), method)
    before = method.whiten.weight.detach().clone()
    put(method, gradients(method, 2))
    made.step()
    moved = before - 0.1 * method.whiten.weight.grad
    torch.testing.assert_close(method.whiten.weight.detach(), moved, rtol=1e-12, atol=0)


def test_a_group_of_dino_without_weight_decay_stays_without():
    method = large("dino")
    for every in (True, False):
        made = make_optimizer(config(weight_decay=0.1, weight_decay_all=every), method)
        set_hyperparameters(made, 0.1, 0.4)
        assert [group["weight_decay"] for group in made.param_groups] == [0.4, 0]
        matrices, vectors = (group["params"] for group in made.param_groups)
        assert {p.ndim for p in vectors} == {1}
        assert {p.ndim for p in matrices} == {2, 4}


def test_hyperparameters_are_set_where_groups_follow_the_schedules():
    made = make_optimizer(config(weight_decay=0.1, weight_decay_all=False), parts())
    set_hyperparameters(made, 0.01, 0.02)
    assert [group["lr"] for group in made.param_groups] == [0.01, 0.01, 0.1, 0.1, 0.01]
    assert [group["weight_decay"] for group in made.param_groups] == [0.02, 0, 0.02, 0, 0.25]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_learning_rate_is_scaled_with_the_batch(optimizer):
    settings = config(optimizer, learning_rate_scaling="linear", batch_size=1024)
    made = make_optimizer(settings, parts())
    set_hyperparameters(made, 0.3, 0.0)
    assert [group["lr"] for group in made.param_groups if group.get("fixed_lr")] == pytest.approx(
        [0.4] * (2 if optimizer == "lars" else 1)
    )


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_optimisers_of_torch_are_fused(optimizer, kind):
    made = make_optimizer(config(optimizer), parts())
    assert isinstance(made, kind)
    assert all(group["fused"] for group in made.param_groups)
    assert isinstance(make_optimizer(config("lars"), parts()), LARS)


# ---------------------------------------------------------------------------- clipping


def clipped(grads: list[list[float] | None], **fields: float) -> list[list[float] | None]:
    parameters = []
    for grad in grads:
        p = nn.Parameter(torch.zeros(len(grad or [0]), dtype=torch.float64))
        p.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
        parameters.append(p)
    clip(iter(parameters), config(**fields))
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


GRADS = [[3.0, 4.0], None, [0.0, 12.0], [0.0]]  # norms 5, 12 and 0, together 13


def test_norm_of_all_gradients_together():
    assert clipped(GRADS, clip_grad_norm=6.5) == [[1.5, 2.0], None, [0.0, 6.0], [0.0]]


def test_norm_of_each_gradient():
    assert clipped(GRADS, clip_grad_tensor_norm=6) == [[3.0, 4.0], None, [0.0, 6.0], [0.0]]
    assert clipped(GRADS, clip_grad_tensor_norm=2.5) == [[1.5, 2.0], None, [0.0, 2.5], [0.0]]


def test_each_gradient_is_clipped_before_all_together_are():
    first, none, second, zero = clipped(GRADS, clip_grad_tensor_norm=6, clip_grad_norm=1)
    total = math.sqrt(25 + 36)
    assert first == pytest.approx([3 / total, 4 / total])
    assert second == pytest.approx([0, 6 / total])
    assert (none, zero) == (None, [0.0])


@pytest.mark.parametrize("limits", [{}, {"clip_grad_norm": 13.0, "clip_grad_tensor_norm": 12.0}])
def test_gradients_within_the_limits_stay_bit_by_bit(limits):
    assert clipped(GRADS, **limits) == GRADS


def test_clipping_stands_gradients_that_are_all_zero_or_not_there():
    limits = {"clip_grad_norm": 1.0, "clip_grad_tensor_norm": 1.0}
    assert clipped([[0.0, 0.0], [0.0]], **limits) == [[0.0, 0.0], [0.0]]
    assert clipped([None, None], **limits) == [None, None]
    assert clipped([], **limits) == []


@pytest.mark.parametrize("name", ["clip_grad_norm", "clip_grad_tensor_norm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_so_afterwards(name, bad):
    first, second = clipped([[1.0, bad], [1.0, 2.0]], **{name: 1.0})
    assert math.isnan(first[1])
    if name == "clip_grad_tensor_norm":
        assert second == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4), min_size=1, max_size=4),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
)
def test_clipping_against_loops(grads, tensor_limit, limit):
    expected = []
    for grad in grads:
        norm = math.sqrt(math.fsum(x * x for x in grad))
        expected.append([x * tensor_limit / norm if norm > tensor_limit else x for x in grad])
    total = math.sqrt(math.fsum(x * x for grad in expected for x in grad))
    if total > limit:
        expected = [[x * limit / total for x in grad] for grad in expected]
    found = clipped(grads, clip_grad_tensor_norm=tensor_limit, clip_grad_norm=limit)
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)


def test_clipping_leaves_weights_alone():
    method = parts()
    before = copy.deepcopy(method.state_dict())
    put(method, gradients(method, 2))
    clip(method.parameters(), config(clip_grad_norm=0.1, clip_grad_tensor_norm=0.1))
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
