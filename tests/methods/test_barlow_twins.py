"""Barlow Twins against a sum over pairs of dimensions, alone and over two processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.resnet34 import ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig, barlow_twins, off_diagonal

SEEDS = st.integers(0, 1000)
LAMBDAS = st.floats(0.001, 1)
WORLD, LAMBDA = 2, 0.05


def make_method(**fields: object) -> BarlowTwins:
    return BarlowTwins(BarlowTwinsConfig(type="barlow_twins", **fields), Tiny())  # type: ignore[arg-type]


def draw(seed: int, n: int = 6, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return 2 * base + 0.5, base + 0.5 * noise


def columns(z: Tensor) -> list[list[float]]:
    """Each column with mean 0 and variance 1, as batch norm makes it."""
    found = []
    for column in z.double().T.tolist():
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        found.append([(x - mean) / math.sqrt(variance + 1e-5) for x in column])
    return found


def cross_correlation(z1: Tensor, z2: Tensor) -> list[list[float]]:
    """c_ij of column i of the first view and column j of the second."""
    return [
        [sum(x * y for x, y in zip(a, b, strict=True)) / len(a) for b in columns(z2)]
        for a in columns(z1)
    ]


def from_correlation(c: list[list[float]], lamda: float) -> float:
    total = 0.0
    for i, row in enumerate(c):
        for j, value in enumerate(row):
            total += (1 - value) ** 2 if i == j else lamda * value**2
    return total


def oracle(z1: Tensor, z2: Tensor, lamda: float) -> float:
    """Equations 1 and 2 of arXiv 2103.03230, term by term."""
    return from_correlation(cross_correlation(z1, z2), lamda)


@given(seed=SEEDS, n=st.integers(2, 8), dim=st.integers(1, 6), lamda=LAMBDAS)
def test_equals_the_paper(seed, n, dim, lamda):
    z1, z2 = draw(seed, n, dim)
    expected = oracle(z1, z2, lamda)
    assert barlow_twins(z1, z2, lamda).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=SEEDS, lamda=LAMBDAS)
def test_equals_the_paper_in_float32(seed, lamda):
    z1, z2 = (z.float() for z in draw(seed, n=16, dim=8))
    loss = barlow_twins(z1, z2, lamda)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(z1, z2, lamda), rel=1e-5)


SIGNS = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)


def test_independent_columns_that_agree_cost_nothing():
    z = 30 * SIGNS  # next to whose variance that of batch norm's eps is none
    assert barlow_twins(z, z, 0.5).item() == pytest.approx(0, abs=1e-12)


def test_views_that_are_opposite_cost_4_for_each_dimension():
    z = 30 * SIGNS
    assert barlow_twins(z, -z, 0.5).item() == pytest.approx(4 * 2, rel=1e-6)


def test_columns_that_are_equal_cost_lambda_for_each_pair():
    z = (30 * SIGNS[:, :1]).expand(-1, 5)
    assert barlow_twins(z, z, 0.5).item() == pytest.approx(0.5 * 5 * 4, rel=1e-6)


def test_off_diagonal_is_all_but_the_diagonal_and_no_copy():
    x = torch.arange(16.0).view(4, 4)
    assert off_diagonal(x).flatten().tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]
    assert off_diagonal(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert off_diagonal(torch.ones(1, 1)).numel() == 0


def test_gradient():
    z1, z2 = (z.requires_grad_() for z in draw(0))
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins(a, b, 0.3), (z1, z2))


@given(seed=SEEDS, scale=st.floats(1, 50), offset=st.floats(-5, 5))
def test_scale_and_offset_of_a_view_do_not_matter(seed, scale, offset):
    z1, z2 = (10 * z for z in draw(seed, n=12))
    moved = barlow_twins(scale * z1 + offset, z2, 0.3)
    torch.testing.assert_close(moved, barlow_twins(z1, z2, 0.3), rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------- two processes


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD
    )
    z1, z2 = (z.chunk(WORLD)[rank].clone().requires_grad_() for z in draw(0, n=10))
    loss = barlow_twins(z1, z2, LAMBDA)
    loss.backward()
    torch.save({"loss": loss.item(), "gradient": [z1.grad, z2.grad]}, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


def test_over_processes_the_correlations_of_each_ones_rows_are_averaged(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    z1, z2 = draw(0, n=10)

    def by_hand(z1: Tensor, z2: Tensor) -> float:
        parts = [
            cross_correlation(a, b) for a, b in zip(z1.chunk(WORLD), z2.chunk(WORLD), strict=True)
        ]
        mean = [
            [(x + y) / 2 for x, y in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)
        ]
        return from_correlation(mean, LAMBDA)

    expected = by_hand(z1, z2)
    assert abs(expected - oracle(z1, z2, LAMBDA)) > 1e-3  # statistics of all rows are others
    for result in found:
        assert result["loss"] == pytest.approx(expected, rel=1e-9)

    # Processes average the gradients of parameters, so W times that of the loss is expected here.
    step = 1e-6
    for view in range(2):
        gradient = torch.cat([result["gradient"][view] for result in found])
        for i in range(10):
            for j in range(4):
                moved = []
                for sign in (1, -1):
                    views = [z1.clone(), z2.clone()]
                    views[view][i, j] += sign * step
                    moved.append(by_hand(*views))
                slope = (moved[0] - moved[1]) / (2 * step)
                assert gradient[i, j].item() == pytest.approx(WORLD * slope, rel=1e-5, abs=1e-7)


# ---------------------------------------------------------------------------- the method


@pytest.mark.parametrize(("fields", "scale"), [({}, 0.025), ({"scale": 1.0}, 1)])
def test_loss_is_scaled_as_the_reference_does_or_as_the_paper(fields, scale):
    z1, z2 = draw(0)
    method = make_method(enable_projector=False, lamda=0.3, **fields)
    loss, metrics = method.loss({"z1": z1, "z2": z2}, None)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(scale * oracle(z1, z2, 0.3), rel=1e-9)
    assert metrics.keys() == {"train/loss"}


def test_defaults_are_those_of_the_reference():
    config = BarlowTwinsConfig(type="barlow_twins")
    assert (config.lamda, config.scale) == (0.005, 0.025)


@pytest.mark.parametrize("name", ["lamda", "scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_fields_must_be_positive(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: must be positive, got {value}$"):
        BarlowTwinsConfig(type="barlow_twins", **{name: value})


def test_a_batch_of_one_has_no_correlation():
    config = BarlowTwinsConfig(type="barlow_twins")
    config.check(2, ResNet34Config(type="resnet34"), DatasetConfig())
    with pytest.raises(ConfigError, match=r"^trainer\.batch_size: barlow_twins correlates"):
        config.check(1, ResNet34Config(type="resnet34"), DatasetConfig())
