"""W-MSE against whitening by Gram-Schmidt and a sum over rows."""

import math

import numpy as np
import pytest
import torch
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.siamese import unit_std
from sslsv.methods.wmse import WMSE, WMSEConfig, whitened_mse

SEEDS = st.integers(0, 1000)
SMALL = {"projector_hidden_dim": 12, "projector_output_dim": 3, "whitening_size": 8}


def make_method(**fields: object) -> WMSE:
    return WMSE(WMSEConfig(type="wmse", **SMALL | fields), Tiny())  # type: ignore[arg-type]


def draw(seed: int, n: int = 16, dim: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return base + 0.5, base + 0.4 * noise


def whiten(rows: np.ndarray) -> np.ndarray:
    """Each centred column less what earlier ones explain, scaled to unbiased variance 1."""
    columns: list[np.ndarray] = []
    for column in (rows - rows.mean(axis=0)).T:
        for earlier in columns:
            column = column - (column @ earlier) / (earlier @ earlier) * earlier
        columns.append(column / math.sqrt(column @ column / (len(rows) - 1)))
    return np.stack(columns, axis=1)


def oracle(z1: Tensor, z2: Tensor, groups: Tensor) -> float:
    distances = []
    for group in groups.tolist():
        w1, w2 = whiten(z1[group].double().numpy()), whiten(z2[group].double().numpy())
        for a, b in zip(w1, w2, strict=True):
            unit_a, unit_b = a / math.sqrt(a @ a), b / math.sqrt(b @ b)
            distances.append(sum((unit_a - unit_b) ** 2))
    return sum(distances) / len(distances)


@given(seed=SEEDS, count=st.integers(1, 3), dim=st.integers(1, 4))
def test_equals_the_sum_over_rows(seed, count, dim):
    z1, z2 = draw(seed, 12 * count, dim)
    order = np.random.default_rng(seed).permutation(12 * count)
    groups = torch.from_numpy(order).view(count, 12)
    expected = oracle(z1, z2, groups)
    assert whitened_mse(z1, z2, groups).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=SEEDS)
def test_equals_the_sum_over_rows_in_float32(seed):
    z1, z2 = (z.float() for z in draw(seed, 64, 4))
    groups = torch.randperm(64).view(2, 32)
    loss = whitened_mse(z1, z2, groups)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(z1, z2, groups), rel=1e-5)


def test_equal_views_give_0_and_opposite_ones_4():
    z, groups = draw(0)[0], torch.arange(16).view(2, 8)
    assert whitened_mse(z, z, groups).item() == pytest.approx(0, abs=1e-12)
    # A mirrored view has the same covariance, so its whitened rows are mirrored too.
    assert whitened_mse(z, -z, groups).item() == pytest.approx(4, abs=1e-12)


@given(seed=SEEDS)
def test_triangular_maps_of_a_view_are_whitened_away(seed):
    z1, z2 = draw(seed)
    groups = torch.arange(16).view(1, 16)
    lower = torch.tensor([[2.0, 0, 0], [-1.0, 0.5, 0], [0.3, 4.0, 1.5]], dtype=torch.float64)
    moved = z2 @ lower.T + 3
    torch.testing.assert_close(whitened_mse(z1, moved, groups), whitened_mse(z1, z2, groups))


def test_gradient():
    z1, z2 = (z.requires_grad_() for z in draw(0, n=10))
    groups = torch.tensor([[0, 3, 5, 7, 9], [1, 2, 4, 6, 8]])
    assert torch.autograd.gradcheck(lambda a, b: whitened_mse(a, b, groups), (z1, z2))


def test_collapsed_dimensions_give_a_loss_that_the_trainer_refuses():
    z1, z2 = draw(0)
    z1[:, 1] = 2
    assert whitened_mse(z1, z2, torch.arange(16).view(2, 8)).isnan()


# ---------------------------------------------------------------------------- the method


@pytest.mark.parametrize("iterations", [1, 3])
def test_each_iteration_splits_the_batch_anew(iterations):
    groups = make_method(whitening_iters=iterations)._groups(24)
    assert groups.shape == (3 * iterations, 8)
    orders = groups.view(iterations, 24).tolist()
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == iterations


def test_groups_depend_on_seed_and_step_alone():
    method, other = make_method(), make_method()

    def groups(method: WMSE, step: int, seed: int) -> list[int]:
        method.progress = Progress(step, 10, step // 2, 5, seed)
        torch.rand(3)
        return method._groups(24).flatten().tolist()

    assert groups(method, 4, 7) == groups(other, 4, 7)
    found = {tuple(groups(method, step, seed)) for step in range(4) for seed in range(4)}
    assert len(found) == 16


@pytest.mark.parametrize("iterations", [1, 3])
def test_loss_is_the_mean_over_all_groups(iterations):
    z1, z2 = draw(0, 24)
    method = make_method(whitening_iters=iterations)
    method.progress = Progress(5, 10, 1, 2, seed=3)
    loss, metrics = method.loss({"z1": z1, "z2": z2}, None)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(oracle(z1, z2, method._groups(24)), rel=1e-9)
    assert metrics["train/z_std"] == unit_std(z1)
    assert metrics.keys() == {"train/loss", "train/z_std"}


def test_the_identity_has_its_share():
    z1, z2 = draw(0, 8)
    outputs = {"z1": 1e-3 * z1, "z2": 1e-3 * z2}  # next to which the identity is the covariance
    loss, _ = make_method(whitening_eps=0.9).loss(outputs, None)  # type: ignore[arg-type]
    centred = (z1 - z1.mean(dim=0)).numpy(), (z2 - z2.mean(dim=0)).numpy()
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(*centred, strict=True)]
    assert loss.item() == pytest.approx(2 - 2 * np.mean(cosines), rel=1e-4)


def test_projector_has_two_layers():
    projector = make_method().double().eval().projector
    s = projector.state_dict()
    assert {k for k in s if "running" not in k and "tracked" not in k} == {
        *("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    }
    s["1.running_mean"].normal_()
    s["1.running_var"].uniform_(0.5, 2)
    x = torch.randn(5, 16, dtype=torch.float64)
    h = (x @ s["0.weight"].T + s["0.bias"] - s["1.running_mean"]) / (
        s["1.running_var"] + 1e-5
    ).sqrt()
    torch.testing.assert_close(projector(x), h.clamp(min=0) @ s["3.weight"].T + s["3.bias"])


def test_defaults_are_those_of_the_reference():
    config = WMSEConfig(type="wmse")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (1024, 64)
    assert (config.whitening_iters, config.whitening_size, config.whitening_eps) == (1, 128, 0)


def test_parameter_count_of_the_published_table():
    method = WMSE(WMSEConfig(type="wmse"), ResNet34(ResNet34Config(type="resnet34")))
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(2.03e6, abs=5e3)


# ---------------------------------------------------------------------------- bad input


def refuse(batch_size: int, **fields: object) -> str:
    config = WMSEConfig(type="wmse", **fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        config.check(batch_size, ResNet34Config(type="resnet34"), DatasetConfig())
    return str(caught.value)


@pytest.mark.parametrize("batch_size", [64, 200])
def test_batch_must_be_a_multiple_of_the_whitening_size(batch_size):
    message = refuse(batch_size)
    assert message.startswith("method.whitening_size: ")
    assert f"trainer.batch_size {batch_size} is not a multiple of 128" in message


@pytest.mark.parametrize("size", [32, 64])
def test_whitening_size_must_exceed_the_dimensions(size):
    message = refuse(128, whitening_size=size)
    assert message.startswith(f"method.whitening_size: {size} rows")
    assert "64 dimensions of method.projector_output_dim" in message


def test_without_projector_the_dimensions_are_the_encoders():
    message = refuse(256, enable_projector=False)
    assert "128 rows cannot be whitened in the 512 dimensions of encoder.encoder_dim" in message


def test_sizes_that_fit_are_accepted():
    encoder = ResNet34Config(type="resnet34")
    for size, batch_size in ((128, 128), (128, 256), (65, 130)):
        config = WMSEConfig(type="wmse", whitening_size=size)
        config.check(batch_size, encoder, DatasetConfig())


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_share_of_the_identity_is_below_1(value):
    with pytest.raises(ConfigError, match=r"^whitening_eps: must be from 0 to below 1, got"):
        WMSEConfig(type="wmse", whitening_eps=value)


@pytest.mark.parametrize("name", ["whitening_iters", "whitening_size"])
def test_counts_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"^{name}: must be positive, got 0$"):
        WMSEConfig(type="wmse", **{name: 0})
