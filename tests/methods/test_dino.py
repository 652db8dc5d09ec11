"""DINO: its loss from the paper's equation, and what the teacher does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor

from sslsv.config import from_dict
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.dino import DINO, distillation

FIELDS = {"head_hidden_dim": 12, "head_bottleneck_dim": 8, "head_output_dim": 20}
N, K = 3, 5


def make(**fields: Any) -> DINO:
    method = Case("dino", {**FIELDS, **fields}).method()
    assert isinstance(method, DINO)
    return method


def at_epoch(method: DINO, epoch: int, step: int = 0) -> DINO:
    method.progress = Progress(step, 100, epoch, 20)
    return method


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(student: Tensor, p: Tensor, temperature: float) -> float:
    """Loops over rows, over the teacher's views and over the student's other ones."""
    terms = []
    for n in range(len(student)):
        for t in range(p.shape[1]):
            for v in range(student.shape[1]):
                if v == t:
                    continue
                x = [s / temperature for s in student[n, v].tolist()]
                log_sum = math.log(sum(math.exp(y) for y in x))
                terms.append(
                    -sum(float(q) * (y - log_sum) for q, y in zip(p[n, t], x, strict=True))
                )
    return float(np.mean(terms))


@pytest.mark.parametrize(("views", "long"), [(2, 2), (6, 2), (3, 3), (5, 3)])
def test_loss_is_the_mean_cross_entropy_of_pairs_of_different_views(views, long):
    student, p = scores(N, views, K), scores(N, long, K, seed=1).softmax(dim=-1)
    expected = naive(student, p, 0.3)
    assert distillation(student, p, 0.3).item() == pytest.approx(expected, rel=1e-9)
    single = distillation(student.float(), p.float(), 0.3).item()
    assert single == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_loss():
    p = scores(N, 2, K, seed=1).softmax(dim=-1)
    student = scores(N, 4, K).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distillation(x, p, 0.3), student)


def test_scores_that_would_overflow_an_exponential_give_a_finite_loss():
    student = (100 * scores(N, 4, K)).float().requires_grad_()
    loss = distillation(student, scores(N, 2, K).float().softmax(dim=-1), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_loss_is_the_entropy_of_the_teacher_where_the_student_agrees():
    p = scores(N, 1, K).softmax(dim=-1).expand(N, 2, K)
    student = (0.1 * p.log())[:, :1].expand(N, 6, K)
    entropy = -(p * p.log()).sum(dim=-1).mean()
    torch.testing.assert_close(distillation(student, p, 0.1), entropy)


def by_hand(method: DINO, views: list[Tensor]) -> float:
    """Equation 3 on what encoder and head give each view by itself."""
    c = method.config
    student = [method.head(method.encoder(view)) for view in views]
    teacher = [method.head_momentum(method.encoder_momentum(v)) for v in views[: c.global_count]]
    p = [
        torch.exp((x - method.center) / method.teacher_temperature)
        / torch.exp((x - method.center) / method.teacher_temperature).sum(dim=-1, keepdim=True)
        for x in teacher
    ]
    return naive(torch.stack(student, 1), torch.stack(p, 1), c.student_temperature)


@pytest.mark.parametrize("fields", [{}, {"enable_projector": False}, {"local_count": 2}], ids=str)
def test_the_whole_method_by_hand(fields):
    method = make(**fields).double().eval()
    at_epoch(method, 3).center.uniform_(-0.3, 0.3)
    for p in method.encoder_momentum.parameters():
        p.mul_(1.1)
    batch = Case("dino").batch(dtype=torch.float64)
    views = batch.views[: 2 + method.config.local_count]
    loss, metrics = method.loss(method(views), batch)
    assert loss.item() == pytest.approx(by_hand(method, views), rel=1e-9)
    assert metrics["train/loss"] == loss


def test_crops_of_any_lengths_and_counts_are_each_encoded_as_they_are():
    method = make(global_count=3, local_count=2).double().eval()
    views = [scores(N, length, seed=length) for length in (900, 800, 800, 410, 500)]
    outputs = method(views)
    assert outputs["student"].shape == (N, 5, 20)
    assert outputs["teacher"].shape == (N, 3, 8)
    for v, view in enumerate(views):
        torch.testing.assert_close(outputs["student"][:, v], method.head(method.encoder(view)))
    batch = Case("dino").batch(rows=N, dtype=torch.float64)
    loss, _ = method.loss(outputs, batch)
    assert loss.item() == pytest.approx(by_hand(method, views), rel=1e-9)


def test_no_gradient_flows_through_the_teacher():
    method = make()
    outputs = method(Case("dino").batch().views)
    assert not outputs["teacher"].requires_grad
    teachers = (*method.encoder_momentum.parameters(), *method.head_momentum.parameters())
    assert not any(p.requires_grad for p in teachers)


def test_center_is_a_moving_mean_of_the_teachers_scores():
    """Of the teacher as it was when it gave them, before it follows the student."""
    method = make().double()
    for p in method.head.parameters():
        p.data += 0.1
    batch = Case("dino").batch(dtype=torch.float64)
    expected = torch.zeros(1, 20, dtype=torch.float64)
    for _ in range(3):
        outputs = {name: x.detach() for name, x in method(batch.views).items()}
        given = method.head_momentum.last_layer(outputs["teacher"])
        expected = 0.9 * expected + 0.1 * given.flatten(0, 1).mean(dim=0, keepdim=True)
        method.on_step_end(outputs, batch, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(method.center, expected)


def test_center_stays_where_it_is_off():
    method, batch = make(centering=False), Case("dino").batch()
    method.on_step_end(method(batch.views), batch, torch.zeros(()))
    assert not method.center.any()


def test_teacher_temperature_rises_evenly_over_the_first_epochs():
    method = make(
        teacher_temperature_warmup=0.04,
        teacher_temperature=0.07,
        teacher_temperature_warmup_epochs=4,
    )
    found = [at_epoch(method, epoch).teacher_temperature for epoch in range(6)]
    np.testing.assert_allclose(found, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


@pytest.mark.parametrize("epochs", [0, 1])
def test_no_warm_up_means_the_final_temperature_at_once(epochs):
    method = make(
        teacher_temperature_warmup=0.04,
        teacher_temperature=0.07,
        teacher_temperature_warmup_epochs=epochs,
    )
    assert at_epoch(method, 0).teacher_temperature == 0.07


def backward(method: DINO, scale: float = 1.0) -> dict[str, Tensor]:
    batch = Case("dino").batch()
    loss, _ = method.loss(method(batch.views), batch)
    method.zero_grad()
    (scale * loss).backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def test_each_tensors_gradient_is_clipped_by_itself():
    method = at_epoch(make(clip_grad=0.05), 5)
    before = backward(method)
    method.on_gradients()
    clipped = 0
    for name, p in method.named_parameters():
        if name not in before:
            continue
        norm = float(before[name].norm())
        clipped += norm > 0.05
        expected = before[name] * min(1.0, 0.05 / (norm + 1e-6))
        torch.testing.assert_close(p.grad, expected)
    assert 0 < clipped < len(before)


def test_last_layer_is_frozen_in_the_first_epochs():
    method = make(freeze_last_layer=2)
    frozen = method.head.last_layer.weight_v
    for epoch, there in ((0, False), (1, False), (2, True)):
        backward(at_epoch(method, epoch))
        method.on_gradients()
        assert (frozen.grad is not None) is there
        assert method.head.mlp[0].weight.grad is not None


def test_biases_and_batch_norm_have_no_weight_decay():
    method = make()
    decayed, free = method.param_groups()
    names = {id(p): name for name, p in method.named_parameters()}
    assert free["weight_decay"] == 0
    assert "weight_decay" not in decayed
    assert all(names[id(p)].endswith(".bias") or p.ndim == 1 for p in free["params"])
    assert all(p.ndim > 1 for p in decayed["params"])


def test_embeddings_are_the_teachers():
    method = make().eval()
    for p in method.encoder_momentum.parameters():
        p.mul_(1.5)
    wave = torch.randn(2, 900)
    torch.testing.assert_close(method.embed(wave), method.encoder_momentum(wave))
    assert not torch.allclose(method.embed(wave), method.encoder(wave))


def test_diagnostics_are_those_of_the_distributions_and_rare():
    method, batch = at_epoch(make(), 0).double().eval(), Case("dino").batch(dtype=torch.float64)
    outputs = method(batch.views)
    p = ((method.head_momentum.last_layer(outputs["teacher"]) - method.center) / 0.04).softmax(-1)
    _, metrics = method.loss(outputs, batch)
    entropy = -(p * p.log()).sum(dim=-1).mean()
    torch.testing.assert_close(metrics["train/teacher_h"], entropy)
    q = (outputs["student"].detach() / 0.1).log_softmax(dim=-1)
    pairs = [(t, v) for t in range(2) for v in range(6) if v != t]
    kl = [F.kl_div(q[:, v], p[:, t], reduction="batchmean") for t, v in pairs]
    torch.testing.assert_close(metrics["train/kl_div"], torch.stack(kl).mean())
    assert "train/teacher_h" not in at_epoch(method, 0, step=1).loss(outputs, batch)[1]
    assert "train/teacher_h" in at_epoch(method, 0, step=25).loss(outputs, batch)[1]


def test_head_has_the_names_and_the_start_of_the_published_one():
    state = make(head_hidden_dim=500, head_bottleneck_dim=100).state_dict()
    wanted = {f"mlp.{i}.{kind}" for i in (0, 1, 3, 4, 6) for kind in ("weight", "bias")}
    wanted |= {"last_layer.weight_g", "last_layer.weight_v"}
    running = ("running_mean", "running_var", "num_batches_tracked")
    for owner in ("head", "head_momentum"):
        its = {n.removeprefix(f"{owner}.") for n in state if n.startswith(f"{owner}.")}
        assert {n for n in its if not n.endswith(running)} == wanted
    assert state["head.last_layer.weight_g"].shape == (20, 1)
    assert (state["head.last_layer.weight_g"] == 1).all()
    assert state["head.mlp.3.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert not state["head.mlp.3.bias"].any()


def test_scores_are_cosines_with_the_prototypes():
    method = make().eval()
    found = method.head(torch.randn(4, 16))
    features = method.head.features(torch.randn(4, 16))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
    assert found.abs().max() <= 1 + 1e-6


def settings(**overrides: Any) -> dict[str, Any]:
    dataset = {"ssl": True, "frame_sampling": "dino", **overrides.pop("dataset", {})}
    return {
        "encoder": {"type": "resnet34"},
        "method": {"type": "dino", **overrides},
        "dataset": dataset,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (settings(local_count=3), r"method.local_count: 3 but dataset.ssl_dino_local_count is 4"),
        (
            settings(dataset={"ssl_dino_global_count": 3}),
            r"method.global_count: 2 but dataset.ssl_dino_global_count is 3",
        ),
        (settings(dataset={"frame_sampling": "default"}), "'dino' needs multicrop views"),
        (settings(global_count=1), "method.global_count: must be at least 2"),
        (settings(head_output_dim=0), "method.head_output_dim: must be positive"),
        (settings(student_temperature=0), "method.student_temperature: must be positive"),
        (settings(clip_grad=-1.0), "method.clip_grad: must be 0 or more"),
        (settings(freeze_last_layer=-1), "method.freeze_last_layer: must be 0 or more"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_settings_are_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(data).check()
