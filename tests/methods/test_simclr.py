"""NT-Xent against the sum it is, and SimCLR around it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.simclr import SimCLR, SimCLRConfig, nt_xent

SEEDS = st.integers(0, 1000)
TEMPERATURES = st.floats(0.03, 2)


def make_method(**fields: object) -> SimCLR:
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=16))
    return SimCLR(SimCLRConfig(type="simclr", **fields), encoder)  # type: ignore[arg-type]


def draw(seed: int, n: int = 5, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return z1, z2


def oracle(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Equation 1 of arXiv 2002.05709, term by term."""
    rows = [np.array(row, dtype=np.float64) for row in [*z1.tolist(), *z2.tolist()]]
    n = len(z1)
    total = 0.0
    for i, anchor in enumerate(rows):
        similar = {}
        for k, other in enumerate(rows):
            if k != i:
                cosine = anchor @ other / np.linalg.norm(anchor) / np.linalg.norm(other)
                similar[k] = math.exp(cosine / temperature)
        total -= math.log(similar[(i + n) % (2 * n)] / sum(similar.values()))
    return total / (2 * n)


@given(seed=SEEDS, n=st.integers(1, 9), dim=st.integers(1, 6), temperature=TEMPERATURES)
def test_equals_the_paper(seed, n, dim, temperature):
    z1, z2 = draw(seed, n, dim)
    expected = oracle(z1, z2, temperature)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=SEEDS, temperature=TEMPERATURES)
def test_equals_the_paper_in_float32(seed, temperature):
    z1, z2 = draw(seed, n=16, dim=8)
    loss = nt_xent(z1.float(), z2.float(), temperature)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(z1, z2, temperature), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_embeddings_that_are_all_equal_give_the_log_of_their_number(n, temperature):
    z = torch.full((n, 3), 2.5, dtype=torch.float64)
    loss = nt_xent(z, z, temperature)
    assert loss.item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1])
def test_orthogonal_utterances_with_equal_views(temperature):
    n, z = 4, torch.eye(4, dtype=torch.float64)
    positive = math.exp(1 / temperature)
    expected = -math.log(positive / (positive + 2 * n - 2))  # all negatives have cosine 0
    assert nt_xent(z, z, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_gradient():
    z1, z2 = (z.requires_grad_() for z in draw(0))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.2), (z1, z2))


@given(seed=SEEDS, order=st.permutations(range(5)))
def test_order_of_the_batch_does_not_matter(seed, order):
    z1, z2 = draw(seed)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.2), nt_xent(z1, z2, 0.2))


@given(seed=SEEDS)
def test_which_view_comes_first_does_not_matter(seed):
    z1, z2 = draw(seed)
    torch.testing.assert_close(nt_xent(z2, z1, 0.2), nt_xent(z1, z2, 0.2))


@given(seed=SEEDS, scales=st.lists(st.floats(0.01, 100), min_size=10, max_size=10))
def test_length_of_embeddings_does_not_matter(seed, scales):
    z1, z2 = draw(seed)
    s1, s2 = torch.tensor(scales, dtype=torch.float64)[:, None].chunk(2)
    torch.testing.assert_close(nt_xent(s1 * z1, s2 * z2, 0.2), nt_xent(z1, z2, 0.2))


# ---------------------------------------------------------------------------- the method


def test_both_views_go_through_the_network_as_one_batch():
    """Batch norm must see 2N rows; two passes of N rows give other statistics."""
    method = make_method(projector_hidden_dim=16, projector_output_dim=8)
    views = [torch.randn(3, 8000), torch.randn(3, 8000)]
    outputs = method(views)
    joined = method.projector(method.encoder(torch.cat(views)))
    torch.testing.assert_close(torch.cat((outputs["z1"], outputs["z2"])), joined)


def test_projector_is_three_layers_with_batch_norm():
    method = make_method(projector_hidden_dim=24, projector_output_dim=8).eval()
    s = {k[10:]: v for k, v in method.state_dict().items() if k.startswith("projector.")}
    for name in ("1", "4"):
        s[f"{name}.running_mean"].normal_()
        s[f"{name}.running_var"].uniform_(0.5, 2)
    x = torch.randn(5, 16)
    expected = x
    for linear, norm in (("0", "1"), ("3", "4")):
        h = expected @ s[f"{linear}.weight"].T + s[f"{linear}.bias"]
        gain = s[f"{norm}.weight"] / (s[f"{norm}.running_var"] + 1e-5).sqrt()
        expected = ((h - s[f"{norm}.running_mean"]) * gain + s[f"{norm}.bias"]).clamp(min=0)
    expected = expected @ s["6.weight"].T + s["6.bias"]
    torch.testing.assert_close(method.projector(x), expected, rtol=1e-4, atol=1e-5)


def test_defaults_are_those_of_the_reference():
    config = SimCLRConfig(type="simclr")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (2048, 128)
    assert (config.temperature, config.enable_projector) == (0.5, True)


def test_parameter_count_with_the_projector_of_the_published_table():
    encoder = ResNet34(ResNet34Config(type="resnet34"))
    method = SimCLR(SimCLRConfig(type="simclr", projector_output_dim=512), encoder)
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(7.74e6, abs=5e3)


def test_without_projector_the_loss_sees_embeddings():
    method = make_method(enable_projector=False).eval()
    views = [torch.randn(2, 8000), torch.randn(2, 8000)]
    outputs = method(views)
    torch.testing.assert_close(outputs["z2"], method.encoder(views[1]), rtol=1e-4, atol=1e-5)
    assert not [name for name in method.state_dict() if name.startswith("projector")]


def test_with_projector_embeddings_are_still_the_encoders():
    method = make_method(projector_hidden_dim=16, projector_output_dim=8).eval()
    wave = torch.randn(2, 8000)
    assert torch.equal(method.embed(wave), method.encoder(wave))


def test_loss_uses_the_temperature_of_the_configuration():
    z1, z2 = draw(0)
    method = make_method(enable_projector=False, temperature=0.07)
    loss, metrics = method.loss({"z1": z1, "z2": z2}, None)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(oracle(z1, z2, 0.07))
    assert metrics.keys() == {"train/loss"}


@pytest.mark.parametrize("field", ["projector_hidden_dim", "projector_output_dim", "temperature"])
@pytest.mark.parametrize("value", [0, -1])
def test_fields_must_be_positive(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got {value}"):
        SimCLRConfig(type="simclr", **{field: value})
