"""Each margin against the formula of its paper, written out for one anchor at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.config import from_dict
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.margins import Margin, MarginConfig, make_margin

KINDS = ["nt-xent"] + [
    f"nt-xent-{kind}"
    for kind in ("sphereface", "cosface", "arcface", "curricularface", "magface", "adaface")
]
ANGULAR = ["nt-xent-arcface", "nt-xent-curricularface", "nt-xent-magface", "nt-xent-adaface"]
ONE_MARGIN = [f"nt-xent-{kind}" for kind in ("cosface", "arcface", "curricularface", "adaface")]
SEEDS = st.integers(0, 1000)
MARGINS = st.floats(0.01, 0.6)
HALF_DONE = Progress(50, 100, 5, 10)  # where a schedule has ended


def expected_positive(
    kind: str, cosine: float, norm: float, m: float, fields: dict[str, Any], state: dict[str, float]
) -> float:
    """What a positive counts as, by the formulas of the papers."""
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    if kind == "nt-xent-sphereface":
        k = math.floor(m * theta / math.pi)
        return (-1) ** k * math.cos(m * theta) - 2 * k
    if kind == "nt-xent-cosface":
        return cosine - m
    if kind == "nt-xent-magface":
        low, high = fields.get("magface_l_a", 10), fields.get("magface_u_a", 110)
        a = min(max(norm, low), high)
        l_m, u_m = fields.get("magface_l_margin", 0.01), fields.get("magface_u_margin", 0.05)
        m = (u_m - l_m) / (high - low) * (a - low) + l_m
    if kind == "nt-xent-adaface":
        h = fields.get("adaface_h", 0.333)
        q = (min(max(norm, 1e-3), 100.0) - state["mean"]) / (state["std"] + 1e-3) * h
        q = min(max(q, -1.0), 1.0)
        return math.cos(min(max(theta - m * q, 0.0), math.pi)) - (m + m * q)
    if kind != "nt-xent":
        return math.cos(theta + m) if theta + m <= math.pi else cosine - m * math.sin(m)
    return cosine


def expected_loss(
    kind: str,
    cosines: Any,
    positives: list[int],
    left_out: list[set[int]],
    norms: list[float],
    m: float,
    scale: float,
    fields: dict[str, Any] | None = None,
    state: dict[str, float] | None = None,
) -> float:
    """Mean over anchors of -log softmax, one exponential at a time."""
    fields, state = fields or {}, {"t": 0.0, "mean": 20.0, "std": 100.0} | (state or {})
    total = 0.0
    for row, own, without, norm in zip(cosines, positives, left_out, norms, strict=True):
        target = expected_positive(kind, float(row[own]), norm, m, fields, state)
        shares = {own: scale * target}
        for k, cosine in enumerate(map(float, row)):
            if k == own or k in without:
                continue
            if kind == "nt-xent-curricularface" and cosine > target:
                cosine *= state["t"] + cosine
            shares[k] = scale * cosine
        top = max(shares.values())
        total -= shares[own] - top - math.log(sum(math.exp(x - top) for x in shares.values()))
        if kind == "nt-xent-magface":
            low, high = fields.get("magface_l_a", 10), fields.get("magface_u_a", 110)
            a = min(max(norm, low), high)
            total += fields.get("magface_lambda_g", 0.0) * (a / high**2 + 1 / a)
    return total / len(positives)


def make(kind: str, **fields: Any) -> Margin:
    return make_margin(MarginConfig(loss=kind, **fields)).double()  # type: ignore[arg-type]


def draw(seed: int, anchors: int = 5, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines (A, K) all over [-1, 1], columns of positives (A,), lengths (A, 1)."""
    rng = np.random.default_rng(seed)
    cosines = torch.from_numpy(np.cos(rng.uniform(0, np.pi, (anchors, keys))))
    norms = torch.from_numpy(rng.uniform(0.1, 150, (anchors, 1)))
    return cosines, torch.from_numpy(rng.integers(0, keys, anchors)), norms


def loss_of(margin: Margin, cosines: Tensor, positive: Tensor, norms: Tensor) -> Tensor:
    m = margin.value({}, HALF_DONE, norms)
    logits = margin.logits(cosines, positive, m, norms)
    return F.cross_entropy(logits, positive) + margin.penalty(norms)


STATE = {"t": 0.4, "mean": 60.0, "std": 30.0}
NOTABLE = {"magface_l_margin": 0.1, "magface_u_margin": 0.5, "magface_lambda_g": 3.0}


def with_state(margin: Margin) -> Margin:
    """Running statistics as after some training."""
    names = {"t": "t", "mean": "norm_mean", "std": "norm_std"}
    for name, buffer in names.items():
        if hasattr(margin, buffer):
            getattr(margin, buffer).fill_(STATE[name])
    return margin


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, m=MARGINS, scale=st.floats(1, 64))
def test_loss_is_that_of_the_paper(kind, seed, m, scale):
    cosines, positive, norms = draw(seed)
    margin = with_state(make(kind, margin=m, scale=scale, **NOTABLE))
    expected = expected_loss(
        kind,
        cosines,
        positive.tolist(),
        [set()] * len(cosines),
        norms.flatten().tolist(),
        m,
        scale,
        NOTABLE,
        STATE,
    )
    assert loss_of(margin, cosines, positive, norms).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, m=MARGINS)
def test_loss_is_that_of_the_paper_in_float32(kind, seed, m):
    cosines, positive, norms = draw(seed)
    cosines, norms = cosines.float(), norms.float()
    margin = with_state(make(kind, margin=m, scale=30.0, **NOTABLE)).float()
    loss = loss_of(margin, cosines, positive, norms)
    expected = expected_loss(
        kind,
        cosines,
        positive.tolist(),
        [set()] * len(cosines),
        norms.flatten().tolist(),
        m,
        30.0,
        NOTABLE,
        STATE,
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def positive_of(kind: str, degrees: float, norm: float = 1.0, **fields: Any) -> float:
    """What an anchor and its positive at this angle count as, at scale 1."""
    cosines = torch.tensor([[math.cos(math.radians(degrees)), 0.0]], dtype=torch.float64)
    norms = torch.tensor([[norm]], dtype=torch.float64)
    margin = make(kind, scale=1.0, **fields)
    m = margin.value({}, HALF_DONE, norms)
    return margin.logits(cosines, torch.tensor([0]), m, norms)[0, 0].item()


STRICT = {"margin": 0.3, "adaface_h": 9.0}  # every length is far from the mean


@pytest.mark.parametrize(
    ("kind", "degrees", "norm", "fields", "expected"),
    [
        ("nt-xent", 60, 1, {"margin": 0.3}, 0.5),
        ("nt-xent-cosface", 60, 1, {"margin": 0.3}, 0.2),
        ("nt-xent-arcface", 60, 1, {"margin": math.pi / 6}, 0.0),
        ("nt-xent-arcface", 170, 1, {"margin": 0.5}, math.cos(math.radians(170)) - 0.23971276930),
        ("nt-xent-sphereface", 30, 1, {"margin": 2.0}, 0.5),
        ("nt-xent-sphereface", 60, 1, {"margin": 4.0}, -1.5),
        ("nt-xent-sphereface", 180, 1, {"margin": 3.0}, -5.0),
        ("nt-xent-sphereface", 60, 1, {"margin": 1.0}, 0.5),
        ("nt-xent-magface", 60, 10, {"magface_u_margin": 0.3}, math.cos(math.pi / 3 + 0.01)),
        ("nt-xent-magface", 60, 1e3, {"magface_u_margin": 0.3}, math.cos(math.pi / 3 + 0.3)),
        ("nt-xent-magface", 60, 60, {"magface_u_margin": 0.31}, math.cos(math.pi / 3 + 0.16)),
        ("nt-xent-adaface", 60, 20, {"margin": 0.3}, 0.2),  # of mean length: CosFace
        ("nt-xent-adaface", 60, 1e-9, STRICT, math.cos(math.pi / 3 + 0.3)),  # short: ArcFace
        ("nt-xent-adaface", 60, 99, STRICT, math.cos(math.pi / 3 - 0.3) - 0.6),
        ("nt-xent-adaface", 5, 99, STRICT, 1 - 0.6),  # no angle is below 0
        ("nt-xent-adaface", 175, 1e-9, STRICT, -1.0),  # and none above pi
    ],
)
def test_known_positives(kind, degrees, norm, fields, expected):
    assert positive_of(kind, degrees, norm, **fields) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_farther_positive_never_counts_as_nearer(kind):
    margin = 3.3 if kind == "nt-xent-sphereface" else 0.4
    counts = [positive_of(kind, d, 30.0, margin=margin) for d in np.linspace(0, 180, 91)]
    assert max(np.diff(counts)) <= 1e-12
    assert counts[0] > counts[-1] + 1.9


def test_hard_negatives_of_curricularface_count_by_how_far_the_training_is():
    cosines = torch.tensor([[0.5, 0.9, -0.2]], dtype=torch.float64)
    margin = make("nt-xent-curricularface", scale=2.0)
    m, positive = torch.tensor(0.0), torch.tensor([0])
    for t in (0.0, 0.7):
        margin.t.fill_(t)  # type: ignore[operator]
        logits = margin.logits(cosines, positive, m, torch.ones(1, 1))
        expected = torch.tensor([[1.0, 2 * 0.9 * (t + 0.9), -0.4]], dtype=torch.float64)
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_only_curricularface_changes_negatives(kind):
    cosines, positive, norms = draw(3)
    margin = make(kind, scale=10.0)
    logits = margin.logits(cosines, positive, margin.value({}, HALF_DONE, norms), norms)
    negatives = torch.ones_like(cosines, dtype=torch.bool).scatter(1, positive[:, None], False)
    same = torch.equal(logits[negatives], 10 * cosines[negatives])
    assert same == (kind != "nt-xent-curricularface")


# ---------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", ["nt-xent", *ONE_MARGIN])
def test_gradient(kind):
    cosines, positive, norms = draw(1)
    margin = with_state(make(kind, margin=0.3, scale=2.0))
    cosines.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: loss_of(margin, c, positive, norms), cosines)


def test_gradient_of_magface_reaches_lengths():
    cosines, positive, norms = draw(1)
    margin = make("nt-xent-magface", scale=2.0, **NOTABLE)
    cosines.requires_grad_()
    norms = norms.clamp(11, 109).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, n: loss_of(margin, c, positive, n), (cosines, norms))
    (gradient,) = torch.autograd.grad(loss_of(margin, cosines, positive, norms), norms)
    assert gradient.abs().min() > 0


def test_gradient_of_adaface_does_not_reach_lengths():
    cosines, positive, norms = draw(1)
    norms.requires_grad_()
    assert not loss_of(make("nt-xent-adaface"), cosines, positive, norms).requires_grad


def test_gradient_of_sphereface_is_that_of_the_cosine_at_the_changed_logits():
    cosines, positive, norms = draw(2)
    margin = make("nt-xent-sphereface", margin=2.5, scale=3.0)
    cosines.requires_grad_()
    loss = loss_of(margin, cosines, positive, norms)
    (gradient,) = torch.autograd.grad(loss, cosines)
    logits = margin.logits(cosines, positive, torch.tensor(2.5), norms).detach()
    own = F.one_hot(positive, cosines.shape[1])
    torch.testing.assert_close(gradient, 3 * (logits.softmax(1) - own) / len(cosines))


@pytest.mark.parametrize("kind", ANGULAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cosine", [1.0, 1 + 1e-6, -1.0, -1 - 1e-6, 1 - 1e-7])
def test_views_in_one_direction_give_finite_gradients(kind, dtype, cosine):
    cosines = torch.tensor([[cosine, 0.3]], dtype=dtype, requires_grad=True)
    norms = torch.tensor([[50.0]], dtype=dtype)
    loss = loss_of(make(kind, margin=0.2).to(dtype), cosines, torch.tensor([0]), norms)
    loss.backward()
    assert loss.isfinite()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("kind", ONE_MARGIN)
def test_gradient_with_respect_to_a_learnt_margin(kind):
    cosines, positive, norms = draw(1)
    margin = with_state(make(kind, margin=0.3, scale=2.0, margin_learnable=True))

    def loss(m: Tensor) -> Tensor:
        value = margin.value({"margin": m.expand(5, 1)}, HALF_DONE, norms)
        return F.cross_entropy(margin.logits(cosines, positive, value, norms), positive)

    m = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, m)
    (gradient,) = torch.autograd.grad(loss(m), m)
    assert gradient > 0  # smaller margins, smaller loss


# ---------------------------------------------------------------------------- which margin


def value_at(margin: Margin, progress: Progress, norm: float = 1.0) -> float:
    norms = torch.full((1, 1), norm, dtype=torch.float64)
    return margin.value(margin.outputs(1), progress, norms).item()


@pytest.mark.parametrize("kind", ONE_MARGIN)
def test_a_fixed_margin_is_always_the_same(kind):
    for step in (0, 3, 10):
        assert value_at(make(kind, margin=0.3), Progress(step, 10, 0, 1)) == 0.3


@pytest.mark.parametrize("kind", ONE_MARGIN)
@pytest.mark.parametrize("epochs", [1, 2, 7, 100])
def test_a_scheduled_margin_grows_along_a_cosine_over_the_first_half(kind, epochs):
    margin, steps = make(kind, margin=0.3, margin_scheduler=True), 8 * epochs
    for step in range(steps + 1):
        done = min(1.0, step / (steps / 2))
        expected = 0.3 * (1 - math.cos(math.pi * done)) / 2
        found = value_at(margin, Progress(step, steps, step // 8, epochs))
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_schedule_lasts_a_training_of_one_step():
    assert value_at(make("nt-xent-cosface", margin_scheduler=True), Progress(0, 1, 0, 1)) == 0


def test_a_schedule_of_sphereface_starts_at_1_which_is_its_no_margin():
    margin = make("nt-xent-sphereface", margin=4.0, margin_scheduler=True)
    values = [value_at(margin, Progress(step, 100, 0, 1)) for step in (0, 25, 50, 99)]
    assert values == pytest.approx([1, 2.5, 4, 4])


def test_a_schedule_of_magface_holds_for_both_margins():
    margin = make("nt-xent-magface", margin_scheduler=True)
    for step, share in ((0, 0), (25, 0.5), (50, 1), (80, 1)):
        progress = Progress(step, 100, 0, 1)
        assert value_at(margin, progress, 1.0) == pytest.approx(share * 0.01)
        assert value_at(margin, progress, 1e3) == pytest.approx(share * 0.05)


@pytest.mark.parametrize("kind", ONE_MARGIN)
def test_a_simo_margin_follows_from_the_number_of_negatives(kind):
    margin = make(kind, margin_simo=True)
    assert value_at(margin, HALF_DONE) == pytest.approx(0.03 * 4.8559441633)  # ln(65536 / 510)
    learnt = make(kind, margin_simo=True, margin_simo_K=16, margin_simo_alpha=32, scale=2.0)
    assert value_at(learnt, HALF_DONE) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("kind", ONE_MARGIN)
def test_a_learnt_margin_is_a_parameter_that_starts_at_the_given_one(kind):
    margin = make(kind, margin=0.25, margin_learnable=True)
    assert [p.shape for p in margin.parameters()] == [()]
    assert margin.outputs(3)["margin"].shape == (3, 1)
    assert value_at(margin, Progress(0, 10, 0, 1)) == 0.25
    assert not list(make(kind, margin=0.25).parameters())
    assert make(kind).outputs(3) == {}


# ---------------------------------------------------------------------------- running statistics


def test_curricularface_follows_the_cosine_of_positives():
    margin, rng, t = make("nt-xent-curricularface"), np.random.default_rng(0), 0.0
    for _ in range(5):
        cosines = rng.uniform(-1, 1, 6)
        margin.update(torch.from_numpy(cosines), torch.ones(6, 1), torch.zeros(()))
        t = 0.01 * cosines.mean() + 0.99 * t
        assert margin.state_dict()["t"].item() == pytest.approx(t, rel=1e-12)


def test_adaface_follows_the_lengths():
    margin, rng, mean, std = make("nt-xent-adaface"), np.random.default_rng(0), 20.0, 100.0
    for _ in range(5):
        norms = rng.uniform(0, 130, (6, 1))
        margin.update(torch.ones(6), torch.from_numpy(norms), torch.zeros(()))
        plausible = norms.clip(1e-3, 100)
        mean = 0.01 * plausible.mean() + 0.99 * mean
        std = 0.01 * plausible.std(ddof=1) + 0.99 * std
        state = margin.state_dict()
        assert state["norm_mean"].item() == pytest.approx(mean, rel=1e-12)
        assert state["norm_std"].item() == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_update_changes_nothing_even_if_values_are_not_finite(kind):
    margin = make(kind)
    before = {name: x.clone() for name, x in margin.state_dict().items()}
    bad = torch.full((4, 1), math.nan, dtype=torch.float64)
    margin.update(bad, bad, torch.ones(()))
    assert all(torch.equal(x, before[name]) for name, x in margin.state_dict().items())


# ---------------------------------------------------------------------------- configuration


def test_defaults_are_those_of_the_reference():
    config = MarginConfig()
    assert (config.loss, config.symmetric, config.margin) == ("nt-xent", True, 0.1)
    assert config.scale == pytest.approx(33.3333, abs=1e-4)
    assert not any((config.margin_learnable, config.margin_scheduler, config.margin_simo))
    assert (config.margin_simo_K, config.margin_simo_alpha) == (510, 65536)
    assert (config.magface_l_margin, config.magface_u_margin) == (0.01, 0.05)
    assert (config.magface_l_a, config.magface_u_a, config.magface_lambda_g) == (10, 110, 0)
    assert config.adaface_h == 0.333


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0}, "scale: must be positive, got 0"),
        ({"adaface_h": -1}, "adaface_h: must be positive, got -1"),
        ({"margin": -0.1}, "margin: must be 0 or more, got -0.1"),
        ({"margin": math.nan}, "margin: must be 0 or more, got nan"),
        ({"magface_u_a": 5}, "magface_u_a: must be more than magface_l_a 10.0, got 5"),
        ({"magface_u_margin": 0}, "magface_u_margin: must be more than magface_l_margin 0.01"),
        ({"margin_simo_alpha": 9}, "margin_simo_alpha: must be more than margin_simo_K 510, got 9"),
        (
            {"loss": "nt-xent-cosface", "margin_learnable": True, "margin_scheduler": True},
            "margin_learnable: a margin cannot be learnt and follow margin_scheduler at once",
        ),
        ({"margin_learnable": True}, "margin_learnable: loss 'nt-xent' has no margin"),
        ({"margin_scheduler": True}, "margin_scheduler: loss 'nt-xent' has no margin"),
        ({"margin_simo": True}, "margin_simo: loss 'nt-xent' has no margin"),
        (
            {"loss": "nt-xent-magface", "margin_simo": True},
            "margin_simo: loss 'nt-xent-magface' takes its margin from magface_l_margin",
        ),
        (
            {"loss": "nt-xent-sphereface", "margin_learnable": True},
            "margin_learnable: loss 'nt-xent-sphereface' multiplies the angle",
        ),
        ({"loss": "nt-xent-sphereface", "margin": 0}, "margin: 0 makes every positive perfect"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        MarginConfig(**fields)


@pytest.mark.parametrize("method", ["simclr_margins", "moco_margins", "simclr_multiviews"])
def test_a_section_as_files_have_it_and_where_it_is_wrong(method):
    def config(**loss: Any) -> Any:
        section = {"type": method, "loss": loss}
        return from_dict({"encoder": {"type": "resnet34"}, "method": section}).method

    assert config(loss="nt-xent-magface", magface_l_a=10, magface_u_a=100).loss.magface_u_a == 100
    with pytest.raises(ConfigError, match=r"^method\.loss\.margn: .* did you mean 'margin'"):
        config(margn=0.2)
    with pytest.raises(ConfigError, match=r"^method\.loss\.scale: must be positive"):
        config(scale=0)
