"""VICReg against sums over pairs of dimensions."""

import math

import pytest
import torch
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.vicreg import VICReg, VICRegConfig, covariance, variance, vicreg

SEEDS = st.integers(0, 1000)
WEIGHTS = st.floats(0, 30)


def make_method(**fields: object) -> VICReg:
    return VICReg(VICRegConfig(type="vicreg", **fields), Tiny())  # type: ignore[arg-type]


def draw(seed: int, n: int = 6, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Columns with standard deviations on both sides of 1, where the variance term bends."""
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    scales = torch.linspace(0.3, 1.9, dim, dtype=torch.float64)
    return base * scales + 0.5, (base + 0.5 * noise) * scales


def cov(z: Tensor, i: int, j: int) -> float:
    """Unbiased covariance of two columns."""
    a, b = z[:, i].tolist(), z[:, j].tolist()
    n = len(a)
    return sum((x - sum(a) / n) * (y - sum(b) / n) for x, y in zip(a, b, strict=True)) / (n - 1)


def variance_oracle(z: Tensor) -> float:
    dim = z.shape[1]
    return sum(max(0.0, 1 - math.sqrt(cov(z, j, j) + 1e-4)) for j in range(dim)) / dim


def covariance_oracle(z: Tensor) -> float:
    dim = z.shape[1]
    return sum(cov(z, i, j) ** 2 for i in range(dim) for j in range(dim) if i != j) / dim


def oracle(z1: Tensor, z2: Tensor, inv: float, var: float, cov: float) -> float:
    pairs = list(zip(z1.flatten().tolist(), z2.flatten().tolist(), strict=True))
    return (
        inv * sum((a - b) ** 2 for a, b in pairs) / len(pairs)
        + var * (variance_oracle(z1) + variance_oracle(z2))
        + cov * (covariance_oracle(z1) + covariance_oracle(z2))
    )


@given(seed=SEEDS, n=st.integers(2, 8), dim=st.integers(1, 6), inv=WEIGHTS, var=WEIGHTS, nu=WEIGHTS)
def test_equals_the_paper(seed, n, dim, inv, var, nu):
    z1, z2 = draw(seed, n, dim)
    expected = oracle(z1, z2, inv, var, nu)
    assert vicreg(z1, z2, inv, var, nu).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=SEEDS)
def test_equals_the_paper_in_float32(seed):
    z1, z2 = (z.float() for z in draw(seed, n=32, dim=8))
    loss = vicreg(z1, z2, 1, 1, 0.04)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(z1.double(), z2.double(), 1, 1, 0.04), rel=1e-5)


def test_collapsed_rows_cost_the_whole_variance_and_nothing_else():
    z = torch.full((5, 3), 2.5, dtype=torch.float64)
    assert vicreg(z, z, 1, 1, 1).item() == pytest.approx(2 * (1 - math.sqrt(1e-4)), rel=1e-12)


def test_independent_columns_with_large_variance_cost_nothing():
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert vicreg(2 * signs, 2 * signs, 1, 1, 1).item() == 0


def test_columns_that_are_equal_cost_their_squared_variance():
    z = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 3)  # unbiased variance 2
    assert covariance(z).item() == pytest.approx(6 * 2**2 / 3, rel=1e-12)
    assert variance(z).item() == 0


def test_gradient():
    z1, z2 = (z.requires_grad_() for z in draw(0))
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b, 1.5, 0.7, 0.3), (z1, z2))


@given(seed=SEEDS, order=st.permutations(range(6)))
def test_neither_order_nor_offset_of_the_rows_matters(seed, order):
    z1, z2 = draw(seed)
    moved = vicreg(z1[order] + 3, z2[order] + 3, 1, 1, 0.04)
    torch.testing.assert_close(moved, vicreg(z1, z2, 1, 1, 0.04))


# ---------------------------------------------------------------------------- the method


def test_loss_uses_the_weights_of_the_configuration():
    z1, z2 = draw(0)
    method = make_method(inv_weight=2.0, var_weight=3.0, cov_weight=0.5, enable_projector=False)
    loss, metrics = method.loss({"z1": z1, "z2": z2}, None)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(oracle(z1, z2, 2, 3, 0.5), rel=1e-9)
    assert metrics.keys() == {"train/loss"}


def test_variance_can_be_the_mean_over_the_views():
    z1, z2 = draw(0)
    method = make_method(var_weight=3.0, halve_variance=True, enable_projector=False)
    loss, _ = method.loss({"z1": z1, "z2": z2}, None)  # type: ignore[arg-type]
    both = variance_oracle(z1) + variance_oracle(z2)
    assert both > 0.1
    expected = oracle(z1, z2, 1, 0, 0.04) + 3 * both / 2
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_defaults_are_those_of_the_reference():
    config = VICRegConfig(type="vicreg")
    assert (config.inv_weight, config.var_weight, config.cov_weight) == (1.0, 1.0, 0.04)
    assert not config.halve_variance


def test_parameter_count_with_the_projector_of_the_published_table():
    config = VICRegConfig(type="vicreg", projector_hidden_dim=2048, projector_output_dim=512)
    method = VICReg(config, ResNet34(ResNet34Config(type="resnet34")))
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(7.74e6, abs=5e3)


@pytest.mark.parametrize("name", ["inv_weight", "var_weight", "cov_weight"])
def test_weights_must_not_be_negative(name):
    VICRegConfig(type="vicreg", **{name: 0.0})
    for value in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"^{name}: must be 0 or more, got {value}"):
            VICRegConfig(type="vicreg", **{name: value})


def test_a_batch_of_one_has_no_variance():
    config, encoder = VICRegConfig(type="vicreg"), ResNet34Config(type="resnet34")
    config.check(2, encoder, DatasetConfig())
    with pytest.raises(ConfigError, match=r"^trainer\.batch_size: vicreg takes variances"):
        config.check(1, encoder, DatasetConfig())
