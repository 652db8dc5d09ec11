"""The teacher against the recurrence it is, and what may and may not change it."""

import math

import pytest
import torch
from cases import Case, Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.momentum import Momentum, MomentumConfig

STEPS = 7
TEACHER, STUDENT = "encoder_momentum.", "encoder."


class Follower(Momentum):
    """A teacher of the encoder, and a head that has none."""

    def __init__(self, **fields: object) -> None:
        super().__init__(MomentumConfig(type="follower", **fields), Tiny())  # type: ignore[arg-type]
        self.head = nn.Linear(16, 3)
        self.add_teachers("encoder")

    def update(self, step: int = 0, frozen: float = 0.0) -> None:
        self.progress = Progress(step, STEPS, 0, 1)
        self.on_step_end({}, None, torch.tensor(frozen))  # type: ignore[arg-type]


def numbers(module: nn.Module) -> list[float]:
    return [x for p in module.parameters() for x in p.detach().flatten().tolist()]


def move_student(method: Follower, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p += torch.randn(p.shape, generator=generator, dtype=p.dtype)


def paper_tau(step: int, start: float, end: float) -> float:
    """1 - (1 - tau_base) (cos(pi k / K) + 1) / 2 of arXiv 2006.07733, for any end."""
    return end - (end - start) * (math.cos(math.pi * step / STEPS) + 1) / 2


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_teacher_is_the_moving_average_of_the_student(scheduled, dtype):
    method = Follower(start_tau=0.9, end_tau=0.98, tau_scheduler=scheduled).to(dtype)
    teacher = numbers(method.encoder)
    for step in range(STEPS):
        move_student(method, step)
        method.update(step)
        tau = paper_tau(step, 0.9, 0.98) if scheduled else 0.9
        teacher = [
            tau * t + (1 - tau) * s for t, s in zip(teacher, numbers(method.encoder), strict=True)
        ]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    found = numbers(method.encoder_momentum)
    assert found == pytest.approx(teacher, rel=tolerance, abs=tolerance)


def test_a_tau_of_0_copies_and_of_1_keeps():
    method = Follower(start_tau=0, end_tau=1)
    move_student(method, 0)
    method.update(step=0)
    copied = numbers(method.encoder)
    assert numbers(method.encoder_momentum) == pytest.approx(copied, rel=1e-6, abs=1e-7)
    move_student(method, 1)
    before = numbers(method.encoder_momentum)
    method.update(step=STEPS)
    assert numbers(method.encoder_momentum) == before


@given(
    start=st.floats(0, 1), end=st.floats(0, 1), steps=st.integers(1, 10**6), part=st.floats(0, 1)
)
def test_tau_is_a_function_of_progress(start, end, steps, part):
    method = Follower.__new__(Follower)  # no network is needed
    nn.Module.__init__(method)
    method.config = MomentumConfig(type="follower", start_tau=start, end_tau=end)
    step = int(part * steps)
    method.progress = Progress(step, steps, 0, 1)
    expected = end - (end - start) * (math.cos(math.pi * step / steps) + 1) / 2
    assert method.tau == pytest.approx(expected, abs=1e-12)
    method.progress = Progress(0, steps, 0, 1)
    assert method.tau == pytest.approx(start, abs=1e-12)
    method.config.tau_scheduler = False
    method.progress = Progress(step, steps, 0, 1)
    assert method.tau == start


def test_at_first_the_teacher_is_the_student_with_storage_of_its_own():
    method = Follower()
    state = method.state_dict()
    names = [name.removeprefix(STUDENT) for name in state if name.startswith(STUDENT)]
    assert any("running_mean" in name for name in names)
    for name in names:
        student, teacher = state[STUDENT + name], state[TEACHER + name]
        assert torch.equal(student, teacher)
        assert student.data_ptr() != teacher.data_ptr()


def test_only_modules_named_have_a_teacher():
    owners = {name.partition(".")[0] for name in Follower().state_dict()}
    assert owners == {"encoder", "encoder_momentum", "head"}


def test_no_gradient_and_no_optimiser_reaches_the_teacher():
    method = Follower()
    assert not any(p.requires_grad for p in method.encoder_momentum.parameters())
    assert all(p.requires_grad for p in method.encoder.parameters())
    grouped = {id(p) for group in method.param_groups() for p in group["params"]}
    assert not grouped & {id(p) for p in method.encoder_momentum.parameters()}


def test_an_update_leaves_the_student_and_where_the_teacher_is_stored():
    method = Follower(start_tau=0.5, tau_scheduler=False)
    move_student(method, 0)
    student = numbers(method.encoder)
    places = [p.data_ptr() for p in method.encoder_momentum.parameters()]
    method.update()
    assert numbers(method.encoder) == student
    assert [p.data_ptr() for p in method.encoder_momentum.parameters()] == places


def test_a_frozen_update_changes_nothing():
    method = Follower(start_tau=0.5, tau_scheduler=False)
    move_student(method, 0)
    before = numbers(method.encoder_momentum)
    method.update(frozen=1.0)
    assert numbers(method.encoder_momentum) == before
    method.update(frozen=0.0)
    assert numbers(method.encoder_momentum) != before


def statistics(module: nn.Module) -> Tensor:
    return torch.cat([m.running_mean for m in module.modules() if isinstance(m, nn.BatchNorm1d)])


def test_statistics_of_the_teacher_are_of_its_own_forward_passes():
    method = Follower(start_tau=0.0, tau_scheduler=False)
    method.encoder(torch.randn(4, 800) + 3)
    before = statistics(method.encoder_momentum)
    method.update()
    assert torch.equal(statistics(method.encoder_momentum), before)
    assert not torch.equal(statistics(method.encoder), before)
    method.encoder_momentum(torch.randn(4, 800))
    assert not torch.equal(statistics(method.encoder_momentum), before)


@pytest.mark.parametrize("kind", ["moco", "byol"])
def test_names_and_defaults_of_the_methods_that_have_one(kind):
    case = Case(kind)
    config = case.config()
    assert (config.start_tau, config.end_tau, config.tau_scheduler) == {
        "moco": (0.999, 1.0, False),
        "byol": (0.996, 1.0, True),
    }[kind]
    small = Case(kind, {"projector_hidden_dim": 12, "projector_output_dim": 10})
    owned: dict[str, set[str]] = {}
    for name in small.method().state_dict():
        owner, _, rest = name.partition(".")
        owned.setdefault(owner, set()).add(rest)
    for student in ("encoder", "projector"):
        assert owned[f"{student}_momentum"] == owned[student]


@pytest.mark.parametrize("field", ["start_tau", "end_tau"])
@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan])
def test_tau_must_be_a_share(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be from 0 to 1, got {value}"):
        MomentumConfig(type="follower", **{field: value})
