"""Whitening against Gram-Schmidt, a Cholesky factor by hand and Newton's steps in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.methods.whitening import IterNorm, cholesky_whitening

SEEDS = st.integers(0, 1000)


def draw(seed: int, *shape: int) -> Tensor:
    """Rows with a mean and with correlated columns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    dim = shape[-1]
    mix = torch.eye(dim, dtype=torch.float64) + 0.3 * torch.ones(dim, dim, dtype=torch.float64)
    return 2 * x @ mix + 0.5


# ---------------------------------------------------------------------------- Cholesky


def gram_schmidt(x: Tensor) -> np.ndarray:
    """Whitening by a lower triangular map: each centred column less what earlier ones explain."""
    rows = np.array(x.tolist())
    size, dim = rows.shape
    columns: list[np.ndarray] = []
    for j in range(dim):
        column = rows[:, j] - sum(rows[:, j]) / size
        for earlier in columns:
            column = column - sum(column * earlier) / sum(earlier * earlier) * earlier
        columns.append(column / np.sqrt(sum(column * column) / (size - 1)))
    return np.stack(columns, axis=1)


@given(seed=SEEDS, dim=st.integers(1, 5), times=st.integers(2, 4))
def test_cholesky_is_gram_schmidt(seed, dim, times):
    x = draw(seed, dim * times + 1, dim)
    np.testing.assert_allclose(cholesky_whitening(x), gram_schmidt(x), rtol=1e-9, atol=1e-9)


@given(seed=SEEDS)
def test_cholesky_is_gram_schmidt_in_float32(seed):
    x = draw(seed, 64, 6).float()
    w = cholesky_whitening(x)
    assert w.dtype == torch.float32
    np.testing.assert_allclose(w, gram_schmidt(x.double()), rtol=1e-5, atol=1e-5)


@given(seed=SEEDS)
def test_whitened_rows_have_mean_0_and_covariance_1(seed):
    w = cholesky_whitening(draw(seed, 3, 12, 4))  # three groups, each by itself
    for group in w:
        np.testing.assert_allclose(group.mean(dim=0), np.zeros(4), atol=1e-9)
        np.testing.assert_allclose(np.cov(group.numpy().T), np.eye(4), atol=1e-9)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
def test_identity_is_mixed_into_the_covariance(eps):
    """Two columns, so that the factor and its inverse can be written down."""
    x = draw(0, 9, 2)
    (a, b), (_, d) = ((1 - eps) * np.cov(x.numpy().T) + eps * np.eye(2)).tolist()
    first = np.sqrt(a)
    second = np.sqrt(d - b * b / a)
    centred = x.numpy() - x.numpy().mean(axis=0)
    w1 = centred[:, 0] / first
    w2 = (centred[:, 1] - b / first * w1) / second
    np.testing.assert_allclose(cholesky_whitening(x, eps), np.stack([w1, w2], axis=1), rtol=1e-9)


def test_groups_are_whitened_each_by_itself():
    x = draw(0, 3, 10, 4)
    w = cholesky_whitening(x)
    for group, expected in zip(w, x, strict=True):
        torch.testing.assert_close(group, cholesky_whitening(expected))


def test_a_group_that_cannot_be_whitened_is_nan_and_the_others_are_not():
    x = draw(0, 3, 10, 4)
    x[1, :, 2] = 7  # a dimension that has collapsed
    w = cholesky_whitening(x)
    assert w[1, :, 2:].isnan().all()
    assert w[[0, 2]].isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_fewer_rows_than_dimensions_are_nan(seed):
    """What the failed factorisation leaves behind is mostly finite, and would pass for a result."""
    assert cholesky_whitening(draw(seed, 4, 8)).isnan().any()


def test_a_share_of_the_identity_whitens_what_has_collapsed():
    x = draw(0, 10, 4)
    x[:, 2] = 7
    assert cholesky_whitening(x, 0.1).isfinite().all()


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_gradient_of_cholesky(eps):
    x = draw(0, 2, 7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cholesky_whitening(x, eps), (x,))


# ---------------------------------------------------------------------------- IterNorm


def newton(x: np.ndarray, steps: int, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of arXiv 1904.03441 on one group (N, C): its mean and whitening matrix."""
    size, dim = x.shape
    mean = x.sum(axis=0) / size
    covariance = eps * np.eye(dim)
    for row in x:
        covariance += np.outer(row - mean, row - mean) / size
    scaled = covariance / np.trace(covariance)
    root = np.eye(dim)
    for _ in range(steps):
        root = (3 * root - root @ root @ root @ scaled) / 2
    return mean, root / np.sqrt(np.trace(covariance))


def grouped(x: Tensor, groups: int) -> list[np.ndarray]:
    return np.split(x.double().numpy(), groups, axis=1)  # neighbours are in one group


def iter_norm(x: Tensor, groups: int, steps: int = 5) -> np.ndarray:
    parts = []
    for part in grouped(x, groups):
        mean, matrix = newton(part, steps)
        parts.append(np.stack([matrix @ (row - mean) for row in part]))
    return np.concatenate(parts, axis=1)


@given(seed=SEEDS, groups=st.integers(1, 3), size=st.integers(1, 4), steps=st.integers(0, 6))
def test_iter_norm_is_the_paper(seed, groups, size, steps):
    x = draw(seed, 12, groups * size)
    layer = IterNorm(groups * size, groups, steps).double()
    expected = iter_norm(x, groups, steps)
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-9, atol=1e-9)


@given(seed=SEEDS)
def test_iter_norm_is_the_paper_in_float32(seed):
    x = draw(seed, 32, 8).float()
    z = IterNorm(8, groups=2)(x)
    assert z.dtype == torch.float32
    expected = iter_norm(x, 2)
    assert np.linalg.norm(z.detach() - expected) < 1e-5 * np.linalg.norm(expected)


def test_steps_end_at_the_inverse_square_root():
    """Eight suffice here; each step after that makes the rounding of the earlier ones larger."""
    x = draw(0, 40, 4)
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T, bias=True) + 1e-5 * np.eye(4))
    centred = x.numpy() - x.numpy().mean(axis=0)
    expected = centred @ vectors @ np.diag(values**-0.5) @ vectors.T
    z = IterNorm(4, groups=1, steps=8).double()(x)
    np.testing.assert_allclose(z.detach(), expected, rtol=1e-9, atol=1e-9)


def test_running_statistics_are_what_evaluation_uses():
    layer = IterNorm(6, groups=2).double()
    batches = [draw(seed, 10, 6) for seed in range(3)]
    means, matrices = [np.zeros(3)] * 2, [np.eye(3)] * 2
    for x in batches:
        layer(x)
        for g, part in enumerate(grouped(x, 2)):
            mean, matrix = newton(part, 5)
            means[g] = 0.9 * means[g] + 0.1 * mean
            matrices[g] = 0.9 * matrices[g] + 0.1 * matrix
    np.testing.assert_allclose(layer.running_mean[..., 0], means, rtol=1e-9)
    np.testing.assert_allclose(layer.running_wm, matrices, rtol=1e-9)

    before = layer.eval().running_wm.clone()
    x = draw(9, 4, 6)
    expected = [
        (part - mean) @ matrix.T
        for part, mean, matrix in zip(grouped(x, 2), means, matrices, strict=True)
    ]
    np.testing.assert_allclose(layer(x).detach(), np.concatenate(expected, axis=1), rtol=1e-9)
    assert torch.equal(layer.running_wm, before)


def test_each_dimension_has_a_gain_and_an_offset():
    layer, x = IterNorm(6, groups=2).double(), draw(0, 10, 6)
    gain, offset = torch.arange(1.0, 7.0), torch.arange(6.0) - 2
    plain = layer(x)
    layer.weight.data.copy_(gain[None])
    layer.bias.data.copy_(offset[None])
    torch.testing.assert_close(layer(x), plain * gain.double() + offset.double())


def test_groups_do_not_see_each_other():
    layer, x = IterNorm(6, groups=2).double(), draw(0, 10, 6)
    other = torch.cat((x[:, :3], draw(1, 10, 3)), dim=1)
    torch.testing.assert_close(layer(other)[:, :3], layer(x)[:, :3])


def test_autocast_does_not_touch_it():
    layer, x = IterNorm(8, groups=2), draw(0, 32, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
    assert torch.equal(z, layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_iter_norm(training):
    layer = IterNorm(4, groups=2, steps=3).double().train(training)
    x = draw(0, 6, 4).requires_grad_()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_names_and_shapes_of_weights():
    shapes = {name: tuple(x.shape) for name, x in IterNorm(128, groups=64).state_dict().items()}
    assert shapes == {
        "weight": (1, 128),
        "bias": (1, 128),
        "running_mean": (64, 2, 1),
        "running_wm": (64, 2, 2),
    }
