"""BYOL's regression against the sum it is, and the networks around it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import DIM, Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.byol import BYOL, BYOLConfig, regression

SEEDS = st.integers(0, 1000)
SMALL = {"projector_hidden_dim": 12, "projector_output_dim": 10, "predictor_hidden_dim": 14}


def make_method(**fields: Any) -> BYOL:
    return Case("byol", SMALL | fields).method()  # type: ignore[return-value]


def draw(seed: int, n: int = 4, dim: int = 5) -> dict[str, Tensor]:
    """What forward gives."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, n, dim, generator=random, dtype=torch.float64)
    return dict(zip(("p1", "p2", "z1", "z2"), rows, strict=True))


def distance(prediction: Tensor, target: Tensor) -> float:
    """Equation 2 of arXiv 2006.07733: the squared distance of the rows scaled to unit length."""
    total = 0.0
    for p, z in zip(prediction.tolist(), target.tolist(), strict=True):
        length_p, length_z = (math.sqrt(sum(x * x for x in row)) for row in (p, z))
        total += sum((a / length_p - b / length_z) ** 2 for a, b in zip(p, z, strict=True))
    return total / len(prediction)


@given(seed=SEEDS, n=st.integers(1, 6), dim=st.integers(1, 6))
def test_loss_equals_the_paper(seed, n, dim):
    outputs = draw(seed, n, dim)
    expected = distance(outputs["p1"], outputs["z2"]) + distance(outputs["p2"], outputs["z1"])
    loss, _ = make_method().loss(outputs, None)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    loss, _ = make_method().loss({k: x.float() for k, x in outputs.items()}, None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("prediction", "expected"), [([3.0, 0.0], 0), ([0.0, 0.1], 2), ([-2.0, 0.0], 4)]
)
def test_equal_orthogonal_and_opposite_vectors(prediction, expected):
    target = torch.tensor([[0.5, 0.0]])
    assert regression(torch.tensor([prediction]), target).item() == pytest.approx(expected)


def test_gradient_of_the_prediction():
    prediction, target = draw(0)["p1"].requires_grad_(), draw(0)["z2"]
    assert torch.autograd.gradcheck(lambda p: regression(p, target), prediction)


def test_no_gradient_for_the_target():
    prediction, target = (draw(0)[name].requires_grad_() for name in ("p1", "z2"))
    regression(prediction, target).backward()
    assert prediction.grad is not None
    assert target.grad is None


@given(seed=SEEDS, scales=st.lists(st.floats(0.01, 100), min_size=16, max_size=16))
def test_length_of_vectors_does_not_matter(seed, scales):
    outputs = draw(seed)
    factors = torch.tensor(scales, dtype=torch.float64).view(4, 4, 1)
    scaled = {name: f * x for f, (name, x) in zip(factors, outputs.items(), strict=True)}
    method = make_method()
    torch.testing.assert_close(method.loss(scaled, None)[0], method.loss(outputs, None)[0])


# ---------------------------------------------------------------------------- the networks


def test_student_predicts_what_the_teacher_makes_of_the_other_view():
    method, views = make_method(), Case("byol").batch().views
    for p in method.encoder.parameters():  # so that teacher and student differ
        p.data += 0.1
    outputs = method(views)
    for i, view in enumerate(views, start=1):  # each view by itself: batch norm of N rows
        p = method.predictor(method.projector(method.encoder(view)))
        z = method.projector_momentum(method.encoder_momentum(view))
        torch.testing.assert_close(outputs[f"p{i}"], p)
        torch.testing.assert_close(outputs[f"z{i}"], z)
    expected = distance(outputs["p1"], outputs["z2"]) + distance(outputs["p2"], outputs["z1"])
    assert method.loss(outputs, None)[0].item() == pytest.approx(expected, rel=1e-5)


def test_no_gradient_flows_into_the_teacher():
    method = make_method()
    outputs = method(Case("byol").batch().views)
    assert [name for name, x in outputs.items() if x.requires_grad] == ["p1", "p2"]
    method.loss(outputs, None)[0].backward()
    touched = {
        name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None
    }
    assert touched == {"encoder", "projector", "predictor"}


def test_predictor_is_two_layers_with_batch_norm():
    method = make_method().eval()
    s = {k[10:]: v for k, v in method.state_dict().items() if k.startswith("predictor.")}
    assert {name for name in s if name.endswith("weight")} == {"0.weight", "1.weight", "3.weight"}
    s["1.running_mean"].normal_()
    s["1.running_var"].uniform_(0.5, 2)
    x = torch.randn(5, 10)
    h = x @ s["0.weight"].T + s["0.bias"]
    h = (h - s["1.running_mean"]) / (s["1.running_var"] + 1e-5).sqrt()
    h = (h * s["1.weight"] + s["1.bias"]).clamp(min=0)
    expected = h @ s["3.weight"].T + s["3.bias"]
    assert h.shape == (5, 14)
    torch.testing.assert_close(method.predictor(x), expected, rtol=1e-4, atol=1e-5)


def test_without_projector_embeddings_are_predicted():
    method = make_method(enable_projector=False)
    assert isinstance(method.predictor[0], nn.Linear)
    assert method.predictor[0].in_features == DIM
    outputs = method(Case("byol").batch().views)
    assert outputs["p1"].shape == outputs["z1"].shape == (8, DIM)


def test_teacher_follows_and_its_schedule_is_logged():
    method = make_method(start_tau=0.6, end_tau=1.0)
    method.progress = Progress(1, 2, 0, 1)  # half way: tau = 0.8
    _, metrics = method.loss(draw(0), None)
    assert metrics.keys() == {"train/loss", "train/tau"}
    assert metrics["train/tau"] == pytest.approx(0.8)
    before = {name: x.clone() for name, x in method.named_parameters()}
    for name in ("encoder", "projector", "predictor"):
        for p in getattr(method, name).parameters():
            p.data += 1
    method.on_step_end({}, None, torch.zeros(()))
    for name in ("encoder_momentum.layers.0.weight", "projector_momentum.3.weight"):
        torch.testing.assert_close(method.get_parameter(name), before[name] + 0.2)


def test_defaults_are_those_of_the_reference():
    config = BYOLConfig(type="byol")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (4096, 256)
    assert (config.predictor_hidden_dim, config.enable_projector) == (4096, True)


def test_parameter_count_of_the_published_table():
    """byol_proj-2048-BN-R-2048-BN-R-512_pred-4096-BN-R-256: the 256 of the name is a projector's
    default; what is predicted is what a projector gives, 512 numbers."""
    fields = {"projector_hidden_dim": 2048, "projector_output_dim": 512}
    config = BYOLConfig(type="byol", predictor_hidden_dim=4096, **fields)
    method = BYOL(config, ResNet34(ResNet34Config(type="resnet34")))
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert trainable == pytest.approx(11.95e6, abs=5e3)


@pytest.mark.parametrize("field", ["predictor_hidden_dim", "projector_output_dim"])
@pytest.mark.parametrize("value", [0, -1])
def test_fields_must_be_positive(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got {value}"):
        BYOLConfig(type="byol", **{field: value})


def test_tau_must_be_a_share():
    with pytest.raises(ConfigError, match=r"start_tau: must be from 0 to 1, got 1\.5"):
        BYOLConfig(type="byol", start_tau=1.5)
