"""Learning-rate schedules against their formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslsv.trainer.schedules import anneal, learning_rate, weight_decay

HIGH, LOW = 0.2, 1e-5


def rate(schedule: str, step: int, per_epoch: int = 10, epochs: int = 100, warmup: int = 10):
    return learning_rate(schedule, step, per_epoch, epochs, HIGH, LOW, warmup)  # type: ignore[arg-type]


@given(st.integers(0, 1000), st.integers(1, 50))
def test_default_is_a_staircase_of_five_epochs(step, per_epoch):
    epoch = step // per_epoch
    assert rate("default", step, per_epoch) == pytest.approx(HIGH * 0.95 ** (epoch // 5))


def test_default_known_values():
    assert [rate("default", step) for step in (0, 49, 50, 99)] == pytest.approx(
        [0.2, 0.2, 0.19, 0.19]
    )
    assert rate("default", 999) == pytest.approx(0.2 * 0.95**19)


@given(st.integers(0, 1000))
def test_cosine(step):
    expected = LOW + 0.5 * (HIGH - LOW) * (1 + math.cos(math.pi * step / 1000))
    assert rate("cosine", step) == pytest.approx(expected)


@given(st.integers(0, 1000))
def test_warmup_then_cosine_over_what_remains(step):
    done = (step - 100) / 900
    cosine = LOW + 0.5 * (HIGH - LOW) * (1 + math.cos(math.pi * done))
    expected = HIGH * step / 100 if step < 100 else cosine
    assert rate("warmup+cosine", step) == pytest.approx(expected)


def test_known_values_of_warmup_and_cosine():
    middle = (HIGH + LOW) / 2
    assert rate("warmup+cosine", 0) == 0
    assert rate("warmup+cosine", 50) == pytest.approx(HIGH / 2)
    assert rate("warmup+cosine", 100) == HIGH
    assert rate("warmup+cosine", 550) == pytest.approx(middle)
    assert rate("cosine", 500) == pytest.approx(middle)


@pytest.mark.parametrize("schedule", ["cosine", "warmup+cosine"])
@pytest.mark.parametrize("epochs", [11, 80, 100])
def test_a_cosine_ends_exactly_at_the_minimum(schedule, epochs):
    assert rate(schedule, 10 * epochs, epochs=epochs) == LOW
    last = rate(schedule, 10 * epochs - 1, epochs=epochs)
    assert LOW < last < LOW + 0.1 * (HIGH - LOW)


def test_no_warmup_is_the_cosine():
    for step in (0, 3, 999):
        assert rate("warmup+cosine", step, warmup=0) == rate("cosine", step)


@given(st.integers(0, 999))
def test_never_rises_after_the_warmup(step):
    for schedule in ("default", "cosine"):
        assert rate(schedule, step + 1) <= rate(schedule, step)
    if step >= 100:
        assert rate("warmup+cosine", step + 1) <= rate("warmup+cosine", step)


def test_anneal_goes_either_way():
    assert anneal(0.99, 1.0, 0) == pytest.approx(0.99)
    assert anneal(0.99, 1.0, 0.5) == pytest.approx(0.995)
    assert anneal(0.99, 1.0, 1) == 1.0


def test_weight_decay_is_constant_without_an_end():
    assert [weight_decay(step, 10, 0.04, None) for step in range(11)] == [0.04] * 11


def test_weight_decay_known_values():
    steps = (0, 25, 50, 100)
    expected = [0.04, 0.4 - 0.36 * (2 + math.sqrt(2)) / 4, 0.22, 0.4]
    assert [weight_decay(step, 100, 0.04, 0.4) for step in steps] == pytest.approx(expected)
    assert weight_decay(100, 100, 0.04, 0.4) == 0.4
    assert weight_decay(50, 100, 1e-4, 0.0) == pytest.approx(5e-5)


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_weight_decay_is_half_a_cosine(step, start, end):
    share = (1 - math.cos(math.pi * step / 1000)) / 2  # of the way
    found = weight_decay(step, 1000, start, end)
    assert found == pytest.approx(start + share * (end - start), rel=1e-12, abs=1e-12)


def test_a_training_of_no_steps_has_a_weight_decay():
    assert weight_decay(0, 0, 0.1, 0.2) == pytest.approx(0.1)
