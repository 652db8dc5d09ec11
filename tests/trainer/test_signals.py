"""Signals of a collapse against loops over rows and pairs, and against what is known of them."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.trainer.signals import collapse, embedding_signals

NAMES = {f"train/{n}" for n in ("embedding_std", "effective_rank", "alignment", "uniformity")}
HEALTHY = {"train/embedding_std": 0.9, "train/effective_rank": 40.0, "train/uniformity": -3.0}


def draw(seed: int, n: int = 6, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return z1, z2


def found(z1: Tensor, z2: Tensor | None = None) -> dict[str, float]:
    return {name: float(value) for name, value in embedding_signals(z1, z2).items()}


def oracle(z1: Tensor, z2: Tensor | None) -> dict[str, float]:
    """The definitions, term by term."""
    views = [[np.array(row) for row in z.double().tolist()] for z in (z1, z2) if z is not None]
    unit = [[row / math.sqrt(sum(x * x for x in row)) for row in view] for view in views]
    rows = [row for view in unit for row in view]
    dim = len(rows[0])

    stds = []
    for d in range(dim):
        mean = sum(row[d] for row in rows) / len(rows)
        stds.append(math.sqrt(sum((row[d] - mean) ** 2 for row in rows) / len(rows)))

    raw = np.array([row for view in views for row in view])
    squares = np.linalg.eigvalsh(raw.T @ raw if dim <= len(raw) else raw @ raw.T)
    values = [math.sqrt(max(0.0, x)) for x in squares]
    shares = [value / sum(values) for value in values]
    entropy = -sum(p * math.log(p) for p in shares if p > 0)

    uniformities = []
    for view in unit:
        pairs = [(a, b) for i, a in enumerate(view) for b in view[:i]]
        kernel = [math.exp(-2 * sum((a - b) ** 2)) for a, b in pairs]
        uniformities.append(math.log(sum(kernel) / len(pairs)))

    signals = {
        "train/embedding_std": sum(stds) / dim * math.sqrt(dim),
        "train/effective_rank": math.exp(entropy),
        "train/uniformity": sum(uniformities) / len(uniformities),
    }
    if z2 is not None:
        distances = [sum((a - b) ** 2) for a, b in zip(*unit, strict=True)]
        signals["train/alignment"] = sum(distances) / len(distances)
    return signals


@given(seed=st.integers(0, 1000), n=st.integers(2, 9), dim=st.integers(1, 9), both=st.booleans())
def test_equal_their_definitions(seed, n, dim, both):
    z1, z2 = draw(seed, n, dim)
    other = z2 if both else None
    assert found(z1, other) == pytest.approx(oracle(z1, other), rel=1e-7, abs=1e-9)


@given(seed=st.integers(0, 1000))
def test_equal_their_definitions_in_float32(seed):
    z1, z2 = (z.float() for z in draw(seed, 32, 8))
    signals = embedding_signals(z1, z2)
    assert {value.dtype for value in signals.values()} == {torch.float32}
    assert found(z1, z2) == pytest.approx(oracle(z1, z2), rel=1e-5)


def test_names_with_two_views_and_with_one():
    z1, z2 = draw(0)
    assert embedding_signals(z1, z2).keys() == NAMES
    assert embedding_signals(z1).keys() == NAMES - {"train/alignment"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_all_equal(dtype):
    z = torch.randn(1, 512, dtype=dtype).expand(256, -1)
    signals = found(z, z)
    assert signals["train/embedding_std"] == pytest.approx(0, abs=1e-6)
    assert signals["train/effective_rank"] == pytest.approx(1, abs=1e-3)
    assert signals["train/alignment"] == 0
    assert signals["train/uniformity"] == pytest.approx(0, abs=1e-6)
    assert collapse(signals)


def test_rows_that_are_all_zero_are_a_collapse_and_not_a_nan():
    signals = found(torch.zeros(4, 3))
    assert (signals["train/embedding_std"], signals["train/effective_rank"]) == (0, 1)
    assert collapse(signals)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_rows_at_right_angles_have_their_number_as_rank(n):
    z = 3 * torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q[:n]
    signals = found(z, z)
    assert signals["train/effective_rank"] == pytest.approx(n, rel=1e-12)
    assert signals["train/uniformity"] == pytest.approx(-4, rel=1e-12)  # all |a - b|^2 are 2


def test_opposite_rows_lie_on_one_line_at_the_largest_distance():
    z = torch.tensor([[2.0, 0.0, 0.0, 0.0], [-3.0, 0.0, 0.0, 0.0]])
    signals = found(z, z.flip(0))
    assert signals["train/effective_rank"] == pytest.approx(1)
    assert signals["train/alignment"] == pytest.approx(4)
    assert signals["train/uniformity"] == pytest.approx(-8)
    assert signals["train/embedding_std"] == pytest.approx(0.5)  # 1 of 4 dimensions, x sqrt(4)


def test_a_gaussian_cloud_is_spread_evenly():
    signals = found(torch.randn(4096, 64))
    assert signals["train/embedding_std"] == pytest.approx(1, abs=0.02)
    assert 62 < signals["train/effective_rank"] < 64
    # E exp(-2 (2 - 2c)) for c ~ N(0, 1/64) is exp(-4 + 16 / 128)
    assert signals["train/uniformity"] == pytest.approx(-4 + 1 / 8, abs=0.01)
    assert collapse(signals) is None


@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
def test_neither_rotation_nor_size_of_the_embeddings_matters_to_rank_and_distances(seed, factor):
    z1, z2 = draw(seed)
    turn = torch.linalg.qr(draw(seed + 1, 4, 4)[0]).Q
    before, after = found(z1, z2), found(factor * z1 @ turn, factor * z2 @ turn)
    for name in NAMES - {"train/embedding_std"}:
        assert after[name] == pytest.approx(before[name], rel=1e-9)


def test_no_graph_is_kept():
    z1, z2 = (z.requires_grad_() for z in draw(0))
    assert not any(value.requires_grad for value in embedding_signals(z1, z2).values())


# ---------------------------------------------------------------------------- the warning


def test_healthy_embeddings_are_not_warned_of():
    assert collapse(HEALTHY) is None
    assert collapse({}) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train/effective_rank", 1.25, r"along 1\.25 directions \(train/effective_rank, below 2"),
        ("train/embedding_std", 0.0123, r"hardly differ \(train/embedding_std 0\.012, below 0\.1"),
    ],
)
def test_the_warning_names_what_collapsed(name, value, message):
    text = collapse(HEALTHY | {name: value})
    assert text is not None
    assert re.search(message, text)
    assert " and " not in text


def test_the_warning_names_both():
    text = collapse({"train/effective_rank": 1.0, "train/embedding_std": 0.0})
    assert text is not None
    assert "effective_rank" in text
    assert "embedding_std" in text


@pytest.mark.parametrize(("name", "limit"), [("effective_rank", 2.0), ("embedding_std", 0.1)])
def test_the_limits_themselves_are_fine(name, limit):
    assert collapse(HEALTHY | {f"train/{name}": limit}) is None
