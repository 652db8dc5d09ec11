"""SimCLRMargins against loops over pairs; the margins themselves are in test_margins."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from test_margins import KINDS, expected_loss
from torch import Tensor

from sslsv.config import from_dict
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.margins import MarginConfig
from sslsv.methods.simclr_margins import SimCLRMargins, SimCLRMarginsConfig

SEEDS = st.integers(0, 1000)
NOTABLE = {"magface_l_a": 1, "magface_u_a": 3, "magface_lambda_g": 2.0}  # lengths of draw()


def make_method(**loss: Any) -> SimCLRMargins:
    config = SimCLRMarginsConfig(
        type="simclr_margins", enable_projector=False, loss=MarginConfig(**loss)
    )
    return SimCLRMargins(config, Tiny()).double()


def draw(seed: int, n: int = 5, dim: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return {"z1": z1, "z2": z2}


def oracle(outputs: dict[str, Tensor], kind: str, symmetric: bool, m: float, scale: float) -> float:
    """Anchors, keys, and their cosines one by one."""
    first, second = ([np.array(x, np.float64) for x in z.tolist()] for z in outputs.values())
    n = len(first)
    anchors, keys = (first + second, first + second) if symmetric else (first, second)
    lengths = [float(np.linalg.norm(x)) for x in anchors]
    cosines = [[a @ k / np.linalg.norm(a) / np.linalg.norm(k) for k in keys] for a in anchors]
    positives = [(i + n) % (2 * n) if symmetric else i for i in range(len(anchors))]
    left_out: list[set[int]] = [{i} if symmetric else set() for i in range(len(anchors))]
    return expected_loss(kind, cosines, positives, left_out, lengths, m, scale, NOTABLE)


def loss_of(method: SimCLRMargins, outputs: dict[str, Tensor]) -> Tensor:
    return method.loss(outputs, None)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
@given(seed=SEEDS, n=st.integers(2, 7))
def test_loss_is_that_of_all_pairs(kind, symmetric, seed, n):
    outputs = draw(seed, n)
    method = make_method(loss=kind, symmetric=symmetric, margin=0.2, scale=10.0, **NOTABLE)
    expected = oracle(outputs, kind, symmetric, 0.2, 10.0)
    assert loss_of(method, outputs).item() == pytest.approx(expected, rel=1e-9)
    single = {name: z.float() for name, z in outputs.items()}
    loss = loss_of(method.float(), single)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        oracle(single, kind, symmetric, 0.2, 10.0), rel=1e-5, abs=1e-6
    )


@given(seed=SEEDS, temperature=st.floats(0.03, 1))
def test_without_margin_it_is_the_loss_of_simclr_at_temperature_1_over_scale(seed, temperature):
    outputs = draw(seed)
    rows = F.normalize(torch.cat((outputs["z1"], outputs["z2"])), dim=-1).tolist()
    total = 0.0
    for i, anchor in enumerate(rows):  # equation 1 of arXiv 2002.05709
        similar = {
            k: math.exp(sum(a * b for a, b in zip(anchor, row, strict=True)) / temperature)
            for k, row in enumerate(rows)
            if k != i
        }
        total -= math.log(similar[(i + 5) % 10] / sum(similar.values()))
    loss = loss_of(make_method(scale=1 / temperature), outputs)
    assert loss.item() == pytest.approx(total / 10, rel=1e-9)


# Not of SphereFace and AdaFace, in which a part has no gradient by definition: see test_margins.
WHOLE = [k for k in KINDS if k not in ("nt-xent-sphereface", "nt-xent-adaface")]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradient(kind, symmetric):
    method = make_method(loss=kind, symmetric=symmetric, scale=3.0, **NOTABLE)
    z1, z2 = (z.requires_grad_() for z in draw(4).values())
    assert torch.autograd.gradcheck(lambda a, b: loss_of(method, {"z1": a, "z2": b}), (z1, z2))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_keys_do_not_matter(kind):
    outputs, method = draw(0), make_method(loss=kind, symmetric=False)
    before = loss_of(method, outputs)
    outputs["z2"] = outputs["z2"] * 7
    torch.testing.assert_close(loss_of(method, outputs), before)


def test_margin_that_is_logged_is_the_one_in_force():
    outputs, batch = draw(0), None

    def logged(progress: Progress, **loss: Any) -> float:
        method = make_method(**loss)
        method.progress = progress
        extra = method.margin.outputs(5)
        metrics = method.loss(outputs | extra, batch)[1]  # type: ignore[arg-type]
        return float(metrics["train/margin"])

    start, quarter, end = (Progress(step, 100, 0, 1) for step in (0, 25, 99))
    fixed = {"loss": "nt-xent-cosface", "margin": 0.2}
    assert logged(start) == 0
    assert logged(start, **fixed) == pytest.approx(0.2)
    assert logged(quarter, margin_scheduler=True, **fixed) == pytest.approx(0.1)
    assert logged(end, margin_scheduler=True, **fixed) == pytest.approx(0.2)
    assert logged(start, margin_learnable=True, **fixed) == pytest.approx(0.2)
    of_lengths = logged(start, loss="nt-xent-magface", magface_l_a=1, magface_u_a=3)
    assert 0.01 < of_lengths < 0.05


def test_a_learnt_margin_reaches_the_loss_and_gets_its_gradient():
    method, outputs = make_method(loss="nt-xent-cosface", margin_learnable=True), draw(0)
    wave = torch.randn(5, 800, dtype=torch.float64)
    assert method([wave, wave])["margin"].shape == (5, 1)
    loss_of(method, outputs | method.margin.outputs(5)).backward()
    rows = F.normalize(torch.cat((outputs["z1"], outputs["z2"])), dim=-1)
    scale = method.config.loss.scale
    logits = scale * (rows @ rows.T)
    own = torch.arange(10).roll(5)
    logits[range(10), own] -= scale * 0.1
    logits.fill_diagonal_(-math.inf)
    expected = scale * (1 - logits.softmax(1)[range(10), own]).mean()
    torch.testing.assert_close(method.margin.learnt.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_running_statistics_are_of_the_anchors(symmetric):
    outputs, on = draw(3), torch.zeros(())
    curricular = make_method(loss="nt-xent-curricularface", symmetric=symmetric)
    curricular.on_step_end(outputs, None, on)  # type: ignore[arg-type]
    z1, z2 = outputs["z1"].numpy(), outputs["z2"].numpy()
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(z1, z2, strict=True)]
    assert curricular.margin.t.item() == pytest.approx(0.01 * np.mean(cosines))

    ada = make_method(loss="nt-xent-adaface", symmetric=symmetric)
    ada.on_step_end(outputs, None, on)  # type: ignore[arg-type]
    lengths = [np.linalg.norm(a) for a in [*z1, *z2][: 10 if symmetric else 5]]
    assert ada.margin.norm_mean.item() == pytest.approx(0.99 * 20 + 0.01 * np.mean(lengths))
    assert ada.margin.norm_std.item() == pytest.approx(0.99 * 100 + 0.01 * np.std(lengths, ddof=1))


def test_lengths_are_those_that_the_network_gives():
    """MagFace and AdaFace would have nothing to go by if they were 1."""
    method = make_method(loss="nt-xent-magface").eval()
    views = [torch.randn(3, 800, dtype=torch.float64) for _ in range(2)]
    outputs = method(views)
    torch.testing.assert_close(outputs["z1"], method.encoder(views[0]))
    assert (outputs["z1"].norm(dim=-1) - 1).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["nt-xent-curricularface", "nt-xent-adaface"])
def test_running_statistics_are_part_of_the_state(kind):
    method, outputs = make_method(loss=kind, scale=5.0), draw(3)
    for _ in range(50):
        method.on_step_end(outputs, None, torch.zeros(()))  # type: ignore[arg-type]
    other = make_method(loss=kind, scale=5.0)
    assert not torch.equal(loss_of(other, outputs), loss_of(method, outputs))
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(loss_of(other, outputs), loss_of(method, outputs))


def test_names_of_the_state_are_those_of_simclr():
    config = SimCLRMarginsConfig(
        type="simclr_margins", projector_hidden_dim=6, projector_output_dim=4
    )
    names = {name.partition(".")[0] for name in SimCLRMargins(config, Tiny()).state_dict()}
    assert names == {"encoder", "projector"}
    assert (SimCLRMarginsConfig.projector_hidden_dim, config.enable_projector) == (2048, True)


def test_a_temperature_that_would_do_nothing_is_refused():
    def config(**fields: Any) -> Any:
        section = {"type": "simclr_margins", **fields}
        return from_dict({"encoder": {"type": "resnet34"}, "method": section}).method

    assert config(temperature=0.03).loss == MarginConfig()  # the default scale
    assert config(temperature=0.1, loss={"scale": 10}).loss.scale == 10
    with pytest.raises(ConfigError, match=r"method\.temperature: 0\.1 .* loss\.scale to 10 "):
        config(temperature=0.1)


def test_a_single_utterance_is_refused():
    data = {"encoder": {"type": "resnet34"}, "method": {"type": "simclr_margins"}}
    data |= {"trainer": {"batch_size": 1}, "dataset": {"ssl": True}}
    with pytest.raises(ConfigError, match=r"trainer\.batch_size: 1 leaves simclr_margins no neg"):
        from_dict(data).check()
