"""MoCoMargins against loops over queries; the margins themselves are in test_margins."""

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
from sslsv.datasets.views import Batch
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.margins import MarginConfig
from sslsv.methods.moco import MoCo
from sslsv.methods.moco_margins import MoCoMargins, MoCoMarginsConfig

N, DIM, QUEUE = 4, 16, 8
SEEDS = st.integers(0, 1000)
NOTABLE = {"magface_l_a": 2, "magface_u_a": 6, "magface_lambda_g": 2.0}  # lengths of draw()


def make_method(prevent: bool = False, **loss: Any) -> MoCoMargins:
    config = MoCoMarginsConfig(
        type="moco_margins",
        enable_projector=False,
        queue_size=QUEUE,
        prevent_class_collisions=prevent,
        loss=MarginConfig(**loss),
    )
    method = MoCoMargins(config, Tiny()).double()
    method.queue.copy_(F.normalize(method.queue, dim=1))  # it was of unit length in float32
    return method


def draw(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, N, DIM, generator=generator, dtype=torch.float64)
    return dict(zip(("q1", "q2", "k1", "k2"), x, strict=True))


def make_batch() -> Batch:
    return Batch(torch.arange(N), torch.tensor([0, 1, 0, 3]), [])


def oracle(
    method: MoCoMargins, outputs: dict[str, Tensor], kind: str, m: float, scale: float
) -> float:
    """Each query with its key and the queue of that key's view, one cosine at a time."""
    x = {name: np.array(z.tolist(), dtype=np.float64) for name, z in outputs.items()}
    queue = np.array(method.queue.tolist())  # (2, D, K)
    own_labels = make_batch().labels.tolist()
    queued = getattr(method, "queue_labels", torch.full((QUEUE,), -1)).tolist()
    directions = [("q1", "k2", 1), ("q2", "k1", 0)]
    losses = []
    for q, k, view in directions if method.config.loss.symmetric else directions[:1]:
        cosines, left_out, lengths = [], [], []
        for query, key, label in zip(x[q], x[k], own_labels, strict=True):
            length = float(np.linalg.norm(query))
            keys = [key, *queue[view].T]
            cosines.append([query @ y / length / np.linalg.norm(y) for y in keys])
            left_out.append({1 + j for j in range(QUEUE) if queued[j] == label})
            lengths.append(length)
        losses.append(expected_loss(kind, cosines, [0] * N, left_out, lengths, m, scale, NOTABLE))
    return sum(losses) / len(losses)


def loss_of(method: MoCoMargins, outputs: dict[str, Tensor]) -> Tensor:
    return method.loss(outputs, make_batch())[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
@given(seed=SEEDS)
def test_loss_is_that_of_queries_keys_and_queues(kind, symmetric, seed):
    outputs = draw(seed)
    method = make_method(loss=kind, symmetric=symmetric, margin=0.2, scale=10.0, **NOTABLE)
    expected = oracle(method, outputs, kind, 0.2, 10.0)
    assert loss_of(method, outputs).item() == pytest.approx(expected, rel=1e-9)
    single = {name: z.float() for name, z in outputs.items()}
    loss = loss_of(method.float(), single)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_of_the_same_label_are_left_out(kind):
    """Not given a cosine of 0, which would still repel."""
    method = make_method(prevent=True, loss=kind, margin=0.2, scale=10.0, **NOTABLE)
    method.queue_labels.copy_(torch.tensor([0, 0, 1, -1, 3, 5, 1, 0]))
    outputs = {name: z.requires_grad_() for name, z in draw(1).items()}
    loss = loss_of(method, outputs)
    assert loss.item() == pytest.approx(oracle(method, outputs, kind, 0.2, 10.0), rel=1e-9)
    loss.backward()
    assert outputs["q1"].grad.isfinite().all()


def test_without_margin_it_is_moco_at_temperature_1_over_scale():
    outputs, method = draw(2), make_method(scale=5.0)
    assert method.config.temperature == 0.2
    plain, metrics = MoCo.loss(method, outputs, make_batch())
    loss, found = method.loss(outputs, make_batch())
    torch.testing.assert_close(loss, plain)
    assert found.keys() == metrics.keys() | {"train/margin"}
    for name in ("train/h", "train/std"):
        torch.testing.assert_close(found[name], metrics[name])


# Not of SphereFace and AdaFace, in which a part has no gradient by definition: see test_margins.
WHOLE = [k for k in KINDS if k not in ("nt-xent-sphereface", "nt-xent-adaface")]


@pytest.mark.parametrize("kind", WHOLE)
def test_gradient(kind):
    method = make_method(loss=kind, scale=3.0, **NOTABLE)
    outputs = draw(4)

    def loss(q1: Tensor, q2: Tensor) -> Tensor:
        return loss_of(method, outputs | {"q1": q1, "q2": q2})

    queries = (outputs["q1"].requires_grad_(), outputs["q2"].requires_grad_())
    assert torch.autograd.gradcheck(loss, queries)


def test_lengths_are_those_of_queries_before_they_are_normalised():
    """Normalised first, all would be 1: MagFace's margin the lower one, AdaFace's always equal."""
    outputs = draw(0)
    for kind in ("nt-xent-magface", "nt-xent-adaface"):
        method = make_method(loss=kind, scale=5.0, magface_l_a=1, magface_u_a=10)
        if kind == "nt-xent-adaface":
            method.margin.norm_mean.fill_(4)
            method.margin.norm_std.fill_(1)
        short = loss_of(method, outputs)
        longer = outputs | {q: 2 * outputs[q] for q in ("q1", "q2")}
        assert (loss_of(method, longer) - short).abs() > 1e-3
        keys = outputs | {k: 2 * outputs[k] for k in ("k1", "k2")}
        torch.testing.assert_close(loss_of(method, keys), short)


@pytest.mark.parametrize("symmetric", [True, False])
def test_running_statistics_are_of_the_queries(symmetric):
    outputs, on = draw(3), torch.zeros(())
    x = {name: z.numpy() for name, z in outputs.items()}
    unit = {name: z / np.linalg.norm(z, axis=1, keepdims=True) for name, z in x.items()}
    pairs = [("q1", "k2"), ("q2", "k1")][: 2 if symmetric else 1]
    cosines = np.concatenate([(unit[q] * unit[k]).sum(axis=1) for q, k in pairs])
    lengths = np.concatenate([np.linalg.norm(x[q], axis=1) for q, _ in pairs])

    curricular = make_method(loss="nt-xent-curricularface", symmetric=symmetric)
    curricular.on_step_end(outputs, make_batch(), on)
    assert curricular.margin.t.item() == pytest.approx(0.01 * cosines.mean())
    ada = make_method(loss="nt-xent-adaface", symmetric=symmetric)
    ada.on_step_end(outputs, make_batch(), on)
    assert ada.margin.norm_mean.item() == pytest.approx(0.99 * 20 + 0.01 * lengths.mean())
    assert ada.margin.norm_std.item() == pytest.approx(0.99 * 100 + 0.01 * lengths.std(ddof=1))


def test_a_step_still_moves_teacher_and_queue():
    method, outputs = make_method(loss="nt-xent-cosface"), draw(3)
    for p in method.encoder.parameters():
        p.data += 1
    teacher = [p.clone() for p in method.encoder_momentum.parameters()]
    method.on_step_end(outputs, make_batch(), torch.zeros(()))
    assert method.queue_ptr.item() == N
    torch.testing.assert_close(method.queue[1, :, :N], F.normalize(outputs["k2"], dim=1).T)
    for p, before in zip(method.encoder_momentum.parameters(), teacher, strict=True):
        torch.testing.assert_close(p, before + 0.001)


def test_a_learnt_margin_and_a_scheduled_one_reach_the_loss():
    outputs = draw(5)
    learnt = make_method(loss="nt-xent-arcface", margin=0.3, margin_learnable=True)
    loss, metrics = learnt.loss(outputs | learnt.margin.outputs(N), make_batch())
    loss.backward()
    assert learnt.margin.learnt.grad > 0
    assert metrics["train/margin"].item() == pytest.approx(0.3)
    wave = torch.randn(N, 800, dtype=torch.float64)
    assert learnt([wave, wave])["margin"].shape == (N, 1)

    scheduled = make_method(loss="nt-xent-arcface", margin=0.3, margin_scheduler=True)
    losses = []
    for step, margin in ((0, 0), (1, 0.15), (2, 0.3), (3, 0.3)):
        scheduled.progress = Progress(step, 4, 0, 1)
        loss, metrics = scheduled.loss(outputs, make_batch())
        assert metrics["train/margin"].item() == pytest.approx(margin, abs=1e-9)
        losses.append(loss.item())
    assert losses[0] < losses[1] < losses[2] == losses[3]


# ---------------------------------------------------------------------------- configuration


def config(**fields: Any) -> Any:
    section = {"type": "moco_margins", **fields}
    return from_dict({"encoder": {"type": "resnet34"}, "method": section}).method


def test_the_section_of_the_loss_must_be_given():
    with pytest.raises(ConfigError, match=r"method\.loss: missing; this section must be given"):
        config()


def test_defaults_are_those_of_moco():
    found = config(loss={"loss": "nt-xent-cosface"})
    assert (found.queue_size, found.start_tau, found.tau_scheduler) == (65536, 0.999, False)
    assert (found.projector_hidden_dim, found.projector_output_dim) == (2048, 128)
    assert found.loss == MarginConfig(loss="nt-xent-cosface")


def test_a_temperature_that_would_do_nothing_is_refused():
    assert config(temperature=0.03, loss={}).temperature == 0.03  # that of the default scale
    with pytest.raises(ConfigError, match=r"method\.temperature: 0\.1 .* loss\.scale to 10 "):
        config(temperature=0.1, loss={})


def test_a_queue_that_does_not_fit_the_batch_is_refused():
    data = {"encoder": {"type": "resnet34"}, "dataset": {"ssl": True}}
    data["method"] = {"type": "moco_margins", "queue_size": 100, "loss": {}}
    with pytest.raises(ConfigError, match=r"method\.queue_size: 100 .* trainer\.batch_size 256"):
        from_dict(data).check()
