"""Bounds of the mutual information against the sums they are, and LIM around them."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.config import from_dict
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.lim import LIM, LIMConfig, bce, draw_negatives, mine, nce

SEEDS = st.integers(0, 1000)
ROWS = st.integers(2, 9)
LOSSES = {"bce": bce, "nce": nce, "mine": mine}


def make_method(**fields: object) -> LIM:
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=16))
    return LIM(LIMConfig(type="lim", **fields), encoder)  # type: ignore[arg-type]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def oracle(kind: str, positives: list[float], negatives: list[float]) -> float:
    """The three bounds, term by term, over one batch."""
    n = len(positives)

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    if kind == "bce":
        right = sum(math.log(logistic(p)) for p in positives) / n
        return -(right + sum(math.log(1 - logistic(q)) for q in negatives) / n)
    if kind == "nce":
        total = sum(math.exp(q) for q in negatives)
        return -sum(p - math.log(math.exp(p) + total) for p in positives) / n
    return -(sum(positives) / n - math.log(sum(math.exp(q) for q in negatives) / n))


@pytest.mark.parametrize("kind", LOSSES)
@given(seed=SEEDS, rows=ROWS)
def test_bounds_equal_their_definitions(kind, seed, rows):
    positive, negative = draw(seed, 2, rows)
    expected = oracle(kind, positive.tolist(), negative.tolist())
    assert LOSSES[kind](positive, negative).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", LOSSES)
@given(seed=SEEDS)
def test_bounds_equal_their_definitions_in_float32(kind, seed):
    positive, negative = draw(seed, 2, 16).tanh().float()
    loss = LOSSES[kind](positive, negative)
    assert loss.dtype == torch.float32
    expected = oracle(kind, positive.tolist(), negative.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"), [("bce", 2 * math.log(2)), ("nce", math.log(8)), ("mine", 0.0)]
)
def test_scores_that_tell_nothing(kind, expected):
    zero = torch.zeros(7, dtype=torch.float64)
    assert LOSSES[kind](zero, zero).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_of_the_bounds(kind):
    positive, negative = (x.requires_grad_() for x in draw(0, 2, 5))
    assert torch.autograd.gradcheck(LOSSES[kind], (positive, negative))


# ---------------------------------------------------------------------------- the negatives


@given(rows=ROWS, seed=SEEDS, step=st.integers(0, 10**6))
def test_a_negative_is_always_another_row(rows, seed, step):
    drawn = draw_negatives(rows, seed, step).tolist()
    assert len(drawn) == rows
    assert all(0 <= other < rows and other != row for row, other in enumerate(drawn))


def test_all_other_rows_have_the_same_chance():
    steps, rows = 3000, 4
    counts = Counter(pair for step in range(steps) for pair in enumerate(_list(rows, step)))
    assert len(counts) == rows * (rows - 1)
    deviation = math.sqrt(steps * (1 / 3) * (2 / 3))
    assert all(abs(count - steps / 3) < 5 * deviation for count in counts.values())


def _list(rows: int, step: int) -> list[int]:
    return draw_negatives(rows, 0, step).tolist()


def test_negatives_are_a_function_of_seed_and_step():
    first = draw_negatives(64, 1, 2).tolist()
    assert draw_negatives(64, 1, 2).tolist() == first
    assert draw_negatives(64, 1, 3).tolist() != first
    assert draw_negatives(64, 2, 2).tolist() != first


# ---------------------------------------------------------------------------- the method


@pytest.mark.parametrize("kind", LOSSES)
@given(seed=SEEDS, rows=ROWS, step=st.integers(0, 99))
def test_loss_is_that_of_cosines_with_the_drawn_rows(kind, seed, rows, step):
    z1, z2 = (z.numpy() for z in draw(seed, 2, rows, 4))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    others = draw_negatives(rows, 3, step).tolist()
    positives = [cosine(a, b) for a, b in zip(z1, z2, strict=True)]
    negatives = [cosine(a, z2[other]) for a, other in zip(z1, others, strict=True)]

    method = METHODS[kind]
    method.progress = Progress(step, 100, 0, 1, seed=3)
    outputs = {"z1": torch.from_numpy(z1), "z2": torch.from_numpy(z2)}
    loss, metrics = method.loss(outputs, None)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(oracle(kind, positives, negatives), rel=1e-9, abs=1e-9)
    assert metrics.keys() == {"train/loss"}


METHODS = {kind: make_method(enable_projector=False, loss=kind) for kind in LOSSES}


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_of_the_loss(kind):
    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        return METHODS[kind].loss({"z1": z1, "z2": z2}, None)[0]  # type: ignore[arg-type]

    z1, z2 = (z.requires_grad_() for z in draw(0, 2, 5, 3))
    assert torch.autograd.gradcheck(loss, (z1, z2))


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_pulls_views_together_and_other_utterances_apart(kind):
    z1 = draw(0, 2, 4).requires_grad_()  # two rows: the negative of each is the other
    z2 = draw(1, 2, 4)
    METHODS[kind].loss({"z1": z1, "z2": z2}, None)[0].backward()  # type: ignore[arg-type]
    with torch.no_grad():
        moved = z1 - 0.01 * z1.grad
        before, after = (F.cosine_similarity(z[:, None], z2[None], dim=-1) for z in (z1, moved))
    change = after - before
    assert (change.diagonal() > change.fliplr().diagonal()).all()


def test_names_and_sizes_of_the_projector():
    method = make_method(projector_hidden_dim=24, projector_output_dim=8)
    names = {n for n in method.state_dict() if n.startswith("projector.") and "weight" in n}
    assert names == {f"projector.{i}.weight" for i in (0, 1, 3, 4, 6)}
    outputs = method([torch.randn(2, 8000), torch.randn(2, 8000)])
    assert {name: x.shape for name, x in outputs.items()} == {"z1": (2, 8), "z2": (2, 8)}


def test_parameter_count_with_the_projector_of_the_published_table():
    encoder = ResNet34(ResNet34Config(type="resnet34"))
    config = LIMConfig(type="lim", projector_hidden_dim=2048, projector_output_dim=512)
    count = sum(p.numel() for p in LIM(config, encoder).parameters())
    assert count == pytest.approx(7.74e6, abs=5e3)


# ---------------------------------------------------------------------------- configuration


def test_defaults_are_those_of_the_reference():
    config = LIMConfig(type="lim")
    assert (config.enable_projector, config.loss) == (True, "bce")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (8192, 8192)


def test_a_batch_without_negatives_is_refused():
    data = {
        "encoder": {"type": "resnet34"},
        "method": {"type": "lim"},
        "trainer": {"batch_size": 2},
        "dataset": {"ssl": True},
    }
    config = from_dict(data)
    config.check()
    config.trainer.batch_size = 1
    with pytest.raises(ConfigError, match=r"trainer\.batch_size: 1 leaves lim no negatives"):
        config.check()


def test_an_unknown_bound_is_refused():
    data = {"encoder": {"type": "resnet34"}, "method": {"type": "lim", "loss": "infonce"}}
    with pytest.raises(ConfigError, match=r"method\.loss: .*infonce"):
        from_dict(data)
