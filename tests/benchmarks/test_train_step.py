"""That the benchmark runs and says what it should, and that its plain step is the same training."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import plain_step
import pytest
import torch
import train_step
from torch import Tensor, nn

from sslsv.config import from_dict
from sslsv.methods.dino import distillation
from sslsv.methods.momentum import Momentum
from sslsv.registry import ENCODERS, METHODS


def test_it_reports_each_form_of_a_plan() -> None:
    sizes = ["--batch_size=4", "--steps=1", "--repeats=1", "--files=8", "--workers=0"]
    command = [sys.executable, train_step.__file__, "simclr/tiny/memory", *sizes]
    done = subprocess.run(
        [*command, "--forms", "baseline", "fp32"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["machine"]["flops_fp32"] > 1e9
    assert report["machine"]["bytes"] > 1e8
    plan = report["plans"]["simclr/tiny/memory"]
    assert plan["flop"] > plan["bytes"] > 1e7
    plain, fast = plan["forms"]["baseline"], plan["forms"]["fp32"]
    assert fast["ratio"] == fast["utterances_per_second"] / plain["utterances_per_second"]
    assert fast["stages_ms"]["encoder"] > 0
    assert plain["stages_ms"] is None
    rows = [line for line in done.stderr.splitlines() if line.startswith("| simclr")]
    assert len(rows) == 2 + 1


def test_flop_are_those_of_the_layers() -> None:
    layer = nn.Linear(30, 20)
    with train_step.FlopCounterMode(display=False) as flops:
        layer(torch.ones(8, 30)).sum().backward()
    assert flops.get_total_flops() == 2 * (2 * 8 * 30 * 20)  # no gradient of the input


def test_bytes_are_what_operators_read_and_write() -> None:
    x = torch.ones(100)
    with train_step.Bytes() as traffic:
        (x + x).view(10, 10)  # a view moves nothing
    assert traffic.total == 3 * 400
    with train_step.Bytes() as traffic:
        torch.ones(1).expand(1000).clone()
    assert traffic.total == 4 + 4000 + 4  # ``ones`` writes, ``clone`` reads one number


@pytest.fixture
def byol() -> Momentum:
    config = from_dict({"encoder": {"type": "resnet34", "base_dim": 8}, "method": {"type": "byol"}})
    torch.manual_seed(0)
    config.method.projector_hidden_dim = config.method.projector_output_dim = 16  # type: ignore[attr-defined]
    method = METHODS.get("byol").cls(config.method, ENCODERS.get("resnet34").cls(config.encoder))
    for p in method.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return method


def test_the_plain_teacher_follows_as_the_other(byol: Momentum) -> None:
    other = copy.deepcopy(byol)
    plain_step.follow(byol, {}, None, torch.zeros(()))  # type: ignore[arg-type]
    Momentum.on_step_end(other, {}, None, torch.zeros(()))  # type: ignore[arg-type]
    for a, b in zip(byol.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_plain_loss_of_dino_is_the_same() -> None:
    student = torch.randn(5, 6, 40, requires_grad=True)
    teacher = torch.randn(5, 2, 40).softmax(dim=-1)
    losses: list[Tensor] = [
        f(student, teacher, 0.1) for f in (plain_step.distillation, distillation)
    ]
    grads = [torch.autograd.grad(loss, student)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_views_one_by_one_and_in_the_default_layout(byol: Momentum) -> None:
    encoder = byol.encoder.eval()
    wave = torch.randn(4, 8000)
    expected = encoder(wave)
    layouts = []
    encoder.block1[0].conv1.register_forward_hook(  # type: ignore[index, union-attr]
        lambda _, given, out: layouts.append(out.is_contiguous())
    )
    plain_step.default_layout(encoder)
    plain_step.one_by_one(encoder, 2)
    scale = expected.abs().max()
    torch.testing.assert_close(encoder(wave) / scale, expected / scale, atol=1e-4, rtol=0)
    assert layouts == [True, True]
