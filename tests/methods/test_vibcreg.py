"""VIbCReg: its covariance term against a sum over pairs, its projector and what is refused."""

import math

import pytest
import torch
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.vibcreg import VIbCReg, VIbCRegConfig, correlation
from sslsv.methods.whitening import IterNorm

SEEDS = st.integers(0, 1000)
SMALL = {"projector_hidden_dim": 12, "projector_output_dim": 128}


def make_method(**fields: object) -> VIbCReg:
    return VIbCReg(VIbCRegConfig(type="vibcreg", **SMALL | fields), Tiny())  # type: ignore[arg-type]


def draw(seed: int, n: int = 6, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    scales = torch.linspace(0.3, 1.9, dim, dtype=torch.float64)
    return base * scales + 0.5, (base + 0.5 * noise) * scales


def centred(z: Tensor) -> list[list[float]]:
    """Columns without their means."""
    columns = z.double().T.tolist()
    return [[x - sum(column) / len(column) for x in column] for column in columns]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def correlation_oracle(z: Tensor) -> float:
    columns = centred(z)
    total = 0.0
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            if i != j:
                total += dot(a, b) ** 2 / (dot(a, a) * dot(b, b))
    return total / len(columns) ** 2


def variance_oracle(z: Tensor) -> float:
    stds = [math.sqrt(dot(c, c) / (len(c) - 1) + 1e-4) for c in centred(z)]
    return sum(max(0.0, 1 - std) for std in stds) / len(stds)


def oracle(z1: Tensor, z2: Tensor, inv: float, var: float, cov: float) -> float:
    difference = (z1 - z2).flatten().tolist()
    return (
        inv * dot(difference, difference) / len(difference)
        + var * (variance_oracle(z1) + variance_oracle(z2))
        + cov * (correlation_oracle(z1) + correlation_oracle(z2))
    )


@given(seed=SEEDS, n=st.integers(2, 8), dim=st.integers(1, 6))
def test_correlation_equals_the_paper(seed, n, dim):
    z, _ = draw(seed, n, dim)
    assert correlation(z).item() == pytest.approx(correlation_oracle(z), rel=1e-9, abs=1e-9)


@given(seed=SEEDS)
def test_correlation_equals_the_paper_in_float32(seed):
    z = draw(seed, n=32, dim=8)[0].float()
    assert correlation(z).dtype == torch.float32
    assert correlation(z).item() == pytest.approx(correlation_oracle(z), rel=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_columns_that_are_equal_or_opposite_give_the_share_of_pairs(dim):
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)[:dim]
    z = torch.randn(7, 1, dtype=torch.float64) * signs
    assert correlation(z).item() == pytest.approx((dim - 1) / dim, rel=1e-12)


@given(seed=SEEDS, scales=st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_scale_of_a_column_does_not_matter(seed, scales):
    z, _ = draw(seed)
    scaled = z * torch.tensor(scales, dtype=torch.float64)
    torch.testing.assert_close(correlation(scaled), correlation(z))


def test_collapsed_columns_have_no_correlation():
    z, _ = draw(0)
    z[:, 1:] = 3
    assert correlation(z).item() == 0


def test_gradient():
    z = draw(0)[0].requires_grad_()
    assert torch.autograd.gradcheck(correlation, (z,))


# ---------------------------------------------------------------------------- the method


@pytest.mark.parametrize(("halve", "share"), [(False, 1), (True, 0.5)])
def test_loss_is_vicreg_with_correlations(halve, share):
    z1, z2 = draw(0)
    weights = {"inv_weight": 2.0, "var_weight": 3.0, "cov_weight": 0.5}
    loss, metrics = make_method(**weights, halve_variance=halve).loss({"z1": z1, "z2": z2}, None)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(oracle(z1, z2, 2, 3 * share, 0.5), rel=1e-9)
    assert metrics.keys() == {"train/loss"}


def test_projector_ends_with_iterative_normalisation():
    projector = make_method().projector
    assert isinstance(projector, nn.Sequential)
    *first, last = projector
    assert isinstance(last, IterNorm)
    assert (last.groups, last.steps) == (64, 5)
    x = torch.randn(20, 16)
    torch.testing.assert_close(projector(x), last(nn.Sequential(*first)(x)))


def test_names_of_the_projectors_weights():
    names = {k.removeprefix("projector.") for k in make_method().state_dict()}
    expected = {f"{layer}.{name}" for layer in "036" for name in ("weight", "bias")}
    expected |= {f"7.{name}" for name in ("weight", "bias", "running_mean", "running_wm")}
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    expected |= {f"{layer}.{name}" for layer in "14" for name in norm}
    assert {name for name in names if not name.startswith("encoder.")} == expected


def test_defaults_are_those_of_the_reference():
    config = VIbCRegConfig(type="vibcreg")
    assert (config.inv_weight, config.var_weight, config.cov_weight) == (1.0, 1.0, 8.0)


def test_parameter_count_with_a_projector_of_2048_and_512():
    config = VIbCRegConfig(type="vibcreg", projector_hidden_dim=2048, projector_output_dim=512)
    method = VIbCReg(config, ResNet34(ResNet34Config(type="resnet34")))
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(7.74e6, abs=5e3)


def test_output_must_divide_into_groups():
    with pytest.raises(ConfigError, match=r"^projector_output_dim: .* the 64 groups .* got 100$"):
        VIbCRegConfig(type="vibcreg", projector_output_dim=100)


def test_projector_cannot_be_left_out():
    with pytest.raises(ConfigError, match=r"^enable_projector: vibcreg whitens .* set it to true"):
        VIbCRegConfig(type="vibcreg", enable_projector=False)
