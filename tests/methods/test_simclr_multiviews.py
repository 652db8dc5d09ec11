"""SimCLRMultiViews against loops over crops; the margins themselves are in test_margins."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from test_margins import KINDS, expected_loss
from torch import Tensor

from sslsv.config import from_dict
from sslsv.errors import ConfigError
from sslsv.methods.margins import MarginConfig
from sslsv.methods.simclr_multiviews import SimCLRMultiViews, SimCLRMultiViewsConfig

SEEDS = st.integers(0, 1000)
NOTABLE = {"magface_l_a": 1, "magface_u_a": 3, "magface_lambda_g": 2.0}  # lengths of draw()


def parts(z: Tensor) -> dict[str, Tensor]:
    """(N, V, D), the two long crops first, as the method's outputs."""
    return {"globals": z[:, :2], "locals": z[:, 2:]}


def joined(outputs: dict[str, Tensor]) -> Tensor:
    return torch.cat((outputs["globals"], outputs["locals"]), dim=1)


def make_method(projector: bool = False, **loss: Any) -> SimCLRMultiViews:
    config = SimCLRMultiViewsConfig(
        type="simclr_multiviews",
        enable_projector=projector,
        projector_hidden_dim=12,
        projector_output_dim=10,
        loss=MarginConfig(**loss),
    )
    return SimCLRMultiViews(config, Tiny()).double()


def draw(seed: int, n: int = 4, crops: int = 5, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, crops, dim, generator=generator, dtype=torch.float64)


def oracle(z: Tensor, kind: str, m: float, scale: float) -> float:
    """Each short crop with each long crop of its own utterance, against those of the others."""
    crops = np.array(z.tolist(), dtype=np.float64)  # (N, V, D)
    n, count = crops.shape[:2]
    keys = [crops[i, v] for i in range(n) for v in (0, 1)]
    cosines, positives, left_out, lengths = [], [], [], []
    for i in range(n):
        for v in range(2, count):
            anchor = crops[i, v]
            length = np.linalg.norm(anchor)
            for own, other in ((2 * i, 2 * i + 1), (2 * i + 1, 2 * i)):
                cosines.append([anchor @ key / length / np.linalg.norm(key) for key in keys])
                positives.append(own)
                left_out.append({other})
                lengths.append(float(length))
    return expected_loss(kind, cosines, positives, left_out, lengths, m, scale, NOTABLE)


def loss_of(method: SimCLRMultiViews, z: Tensor) -> Tensor:
    return method.loss(parts(z), None)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, n=st.integers(2, 5), crops=st.integers(3, 6))
def test_loss_is_that_of_short_crops_against_long_ones(kind, seed, n, crops):
    z = draw(seed, n, crops)
    method = make_method(loss=kind, margin=0.2, scale=10.0, **NOTABLE)
    expected = oracle(z, kind, 0.2, 10.0)
    assert loss_of(method, z).item() == pytest.approx(expected, rel=1e-9)
    loss = loss_of(method.float(), z.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(z.float(), kind, 0.2, 10.0), rel=1e-5, abs=1e-6)


def test_orthogonal_utterances_whose_crops_are_equal():
    """The other positive is no negative: 2 (N - 1) keys have cosine 0."""
    z = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 6, 4)
    expected = np.log(1 + 6 * np.exp(-5.0))
    assert loss_of(make_method(scale=5.0), z).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["nt-xent", "nt-xent-arcface", "nt-xent-magface"])
def test_gradient(kind):
    method, z = make_method(loss=kind, scale=3.0, **NOTABLE), draw(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(method, x), z)
    (gradient,) = torch.autograd.grad(loss_of(method, z), z)
    assert (gradient.norm(dim=-1) > 0).all()  # of short and of long crops


@given(seed=SEEDS, order=st.permutations(range(3)))
def test_order_of_short_and_of_long_crops_does_not_matter(seed, order):
    z, method = draw(seed), make_method(loss="nt-xent-cosface")
    other = z[:, [1, 0, *(2 + i for i in order)]]
    torch.testing.assert_close(loss_of(method, other), loss_of(method, z))


def test_running_statistics_are_of_short_crops():
    z, on = draw(3), torch.zeros(())
    x = z.numpy()
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    pairs = [unit[i, v] @ unit[i, k] for i in range(4) for v in (2, 3, 4) for k in (0, 1)]
    curricular = make_method(loss="nt-xent-curricularface")
    curricular.on_step_end(parts(z), None, on)  # type: ignore[arg-type]
    assert curricular.margin.t.item() == pytest.approx(0.01 * np.mean(pairs))
    lengths = [np.linalg.norm(x[i, v]) for i in range(4) for v in (2, 3, 4)]
    ada = make_method(loss="nt-xent-adaface")
    ada.on_step_end(parts(z), None, on)  # type: ignore[arg-type]
    assert ada.margin.norm_mean.item() == pytest.approx(0.99 * 20 + 0.01 * np.mean(lengths))
    assert ada.margin.norm_std.item() == pytest.approx(0.99 * 100 + 0.01 * np.std(lengths, ddof=1))


# ---------------------------------------------------------------------------- crops


def crops(*samples: int, rows: int = 3) -> list[Tensor]:
    return [torch.randn(rows, n, dtype=torch.float64) for n in samples]


def test_outputs_hold_the_crops_of_an_utterance_in_order():
    method = make_method(projector=True).eval()
    views = crops(800, 800, 400, 400, 400)
    z = joined(method(views))
    assert z.shape == (3, 5, 10)
    for v, view in enumerate(views):
        torch.testing.assert_close(z[:, v], method.projector(method.encoder(view)))


def test_every_crop_is_seen_in_its_full_length():
    method = make_method().eval()
    views = crops(800, 800, 400)
    before = joined(method(views))
    views[2][:, -1] += 100.0
    after = joined(method(views))
    assert not torch.allclose(before[:, 2], after[:, 2])
    assert torch.equal(before[:, :2], after[:, :2])


@pytest.mark.parametrize(
    ("samples", "passes"), [((800, 800, 400, 400), [(6, 800), (6, 400)]), ((800,) * 4, [(12, 800)])]
)
def test_crops_of_one_length_go_through_the_encoder_as_one_batch(samples, passes):
    method, seen = make_method(), []
    method.encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    method(crops(*samples))
    assert seen == passes


def test_all_crops_go_through_the_projector_as_one_batch():
    method, seen = make_method(projector=True), []
    method.projector.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    method(crops(800, 800, 400, 400))
    assert seen == [(12, 16)]


# ---------------------------------------------------------------------------- configuration


def config(method: dict[str, Any] | None = None, **dataset: Any) -> Any:
    return from_dict(
        {
            "encoder": {"type": "resnet34"},
            "method": {"type": "simclr_multiviews", **(method or {})},
            "dataset": {"ssl": True, "frame_sampling": "dino", **dataset},
        }
    )


def test_crops_of_dino_are_accepted():
    config().check()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"ssl_dino_global_count": 3}, r"dataset\.ssl_dino_global_count: method\.type .* 2, got 3"),
        ({"ssl_dino_local_count": 0}, r"dataset\.ssl_dino_local_count: 0 leaves method\.type"),
    ],
)
def test_crops_that_do_not_fit_are_refused(dataset, message):
    with pytest.raises(ConfigError, match=message):
        config(**dataset).check()


def test_only_short_crops_can_be_anchors():
    with pytest.raises(ConfigError, match=r"method\.loss\.symmetric: false has no meaning"):
        config({"loss": {"symmetric": False}})
