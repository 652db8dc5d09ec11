"""SimSiam against the cosine it is, and the stopped gradient that it stands on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import DIM, Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.simsiam import SimSiam, SimSiamConfig, negative_cosine

SEEDS = st.integers(0, 1000)
SMALL = {"projector_hidden_dim": 12, "projector_output_dim": 10, "pred_hidden_dim": 6}


def make_method(**fields: Any) -> SimSiam:
    return Case("simsiam", SMALL | fields).method()  # type: ignore[return-value]


def draw(seed: int, n: int = 4, dim: int = 5) -> dict[str, Tensor]:
    """What forward gives."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, n, dim, generator=random, dtype=torch.float64)
    return dict(zip(("z1", "z2", "p1", "p2"), rows, strict=True))


def oracle(outputs: dict[str, Tensor]) -> float:
    """Equations 1 and 2 of arXiv 2011.10566, term by term."""
    total = 0.0
    for prediction, target in (("p1", "z2"), ("p2", "z1")):
        pairs = zip(outputs[prediction].tolist(), outputs[target].tolist(), strict=True)
        for p, z in pairs:
            dot = sum(a * b for a, b in zip(p, z, strict=True))
            total -= dot / math.sqrt(sum(a * a for a in p) * sum(b * b for b in z)) / 2
    return total / len(outputs["p1"])


@given(seed=SEEDS, n=st.integers(2, 6), dim=st.integers(1, 6))
def test_loss_equals_the_paper(seed, n, dim):
    outputs = draw(seed, n, dim)
    loss, _ = make_method().loss(outputs, None)
    assert loss.item() == pytest.approx(oracle(outputs), rel=1e-9, abs=1e-9)
    loss, _ = make_method().loss({k: x.float() for k, x in outputs.items()}, None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(outputs), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "expected"), [([3.0, 0.0], -1), ([0.0, 0.1], 0), ([-2.0, 0.0], 1)]
)
def test_equal_orthogonal_and_opposite_vectors(prediction, expected):
    target = torch.tensor([[0.5, 0.0]])
    assert negative_cosine(torch.tensor([prediction]), target).item() == pytest.approx(expected)


def test_gradient_of_the_prediction():
    prediction, target = draw(0)["p1"].requires_grad_(), draw(0)["z2"]
    assert torch.autograd.gradcheck(lambda p: negative_cosine(p, target), prediction)


# ---------------------------------------------------------------------------- stopped gradient


def gradients(method: SimSiam, views: list[Tensor], targets: dict[str, Tensor]) -> Tensor:
    outputs = method(views) | targets
    cosines = [
        nn.functional.cosine_similarity(outputs[p], outputs[z])
        for p, z in (("p1", "z2"), ("p2", "z1"))
    ]
    loss = -torch.cat(cosines).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, method.encoder.parameters())])


def test_targets_are_constants():
    method, views = make_method().double(), Case("simsiam").batch(dtype=torch.float64).views
    constant = {name: x.detach() for name, x in method(views).items() if name.startswith("z")}
    expected = gradients(method, views, constant)
    method.loss(method(views), None)[0].backward()
    found = torch.cat([p.grad.flatten() for p in method.encoder.parameters()])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, gradients(method, views, {}), rtol=0.1)  # not stopped


def test_no_gradient_for_the_target():
    outputs = {name: x.requires_grad_() for name, x in draw(0).items()}
    make_method().loss(outputs, None)[0].backward()
    assert {name for name, x in outputs.items() if x.grad is not None} == {"p1", "p2"}


# ---------------------------------------------------------------------------- the networks


def test_each_view_goes_through_the_network_by_itself():
    method, views = make_method(), Case("simsiam").batch().views
    outputs = method(views)
    for i, view in enumerate(views, start=1):
        z = method.projector(method.encoder(view))
        torch.testing.assert_close(outputs[f"z{i}"], z)
        torch.testing.assert_close(outputs[f"p{i}"], method.predictor(z))


def normalised(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    return (x - s[f"{name}.running_mean"]) / (s[f"{name}.running_var"] + 1e-5).sqrt()


def test_projector_ends_in_a_batch_norm_without_parameters():
    method = make_method().eval()
    s = {k[10:]: v for k, v in method.state_dict().items() if k.startswith("projector.")}
    names = {"0", "1", "3", "4", "6"}
    assert {name for name in s if name.endswith("weight")} == {f"{n}.weight" for n in names}
    assert {name for name in s if name.endswith("bias")} == {"1.bias", "4.bias", "6.bias"}
    for name in ("1", "4", "7"):
        s[f"{name}.running_mean"].normal_()
        s[f"{name}.running_var"].uniform_(0.5, 2)
    x = torch.randn(5, DIM)
    expected = x
    for linear, norm in (("0", "1"), ("3", "4")):
        h = normalised(expected @ s[f"{linear}.weight"].T, s, norm)
        expected = (h * s[f"{norm}.weight"] + s[f"{norm}.bias"]).clamp(min=0)
    expected = normalised(expected @ s["6.weight"].T + s["6.bias"], s, "7")
    torch.testing.assert_close(method.projector(x), expected, rtol=1e-4, atol=1e-5)


def test_predictor_is_two_layers_with_batch_norm():
    method = make_method().eval()
    s = {k[10:]: v for k, v in method.state_dict().items() if k.startswith("predictor.")}
    assert {name for name in s if name.endswith("bias")} == {"1.bias", "3.bias"}
    s["1.running_mean"].normal_()
    s["1.running_var"].uniform_(0.5, 2)
    x = torch.randn(5, 10)
    h = normalised(x @ s["0.weight"].T, s, "1")
    h = (h * s["1.weight"] + s["1.bias"]).clamp(min=0)
    assert h.shape == (5, 6)
    expected = h @ s["3.weight"].T + s["3.bias"]
    torch.testing.assert_close(method.predictor(x), expected, rtol=1e-4, atol=1e-5)


def test_predictor_keeps_the_learning_rate():
    method = make_method()
    rest, predictor = method.param_groups()
    assert "fixed_lr" not in rest
    assert predictor["fixed_lr"] is True
    own = {id(p) for p in method.predictor.parameters()}
    assert {id(p) for p in predictor["params"]} == own
    others = [*method.encoder.parameters(), *method.projector.parameters()]
    frozen = id(method.projector[6].bias)
    assert {id(p) for p in rest["params"]} == {id(p) for p in others} - {frozen}


def test_without_projector_embeddings_are_predicted():
    outputs = make_method(enable_projector=False)(Case("simsiam").batch().views)
    assert outputs["p1"].shape == outputs["z1"].shape == (8, DIM)


def test_spread_of_targets_is_logged():
    outputs = draw(0)
    _, metrics = make_method().loss(outputs, None)
    assert metrics.keys() == {"train/loss", "train/z_std"}
    z = outputs["z1"].numpy()
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    assert metrics["train/z_std"].item() == pytest.approx(unit.std(axis=0, ddof=1).mean())


def test_defaults_are_those_of_the_reference():
    config = SimSiamConfig(type="simsiam")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (2048, 2048)
    assert (config.pred_hidden_dim, config.enable_projector) == (512, True)


def test_parameter_count_of_the_published_table():
    config = SimSiamConfig(type="simsiam", projector_output_dim=512)
    method = SimSiam(config, ResNet34(ResNet34Config(type="resnet34")))
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert trainable == pytest.approx(8.26e6, abs=5e3)


@pytest.mark.parametrize("field", ["pred_hidden_dim", "projector_output_dim"])
@pytest.mark.parametrize("value", [0, -1])
def test_fields_must_be_positive(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got {value}"):
        SimSiamConfig(type="simsiam", **{field: value})


def test_another_number_of_layers_is_refused():
    with pytest.raises(ConfigError, match="projector_layers: the projector of simsiam has 3, got"):
        SimSiamConfig(type="simsiam", projector_layers=2)
