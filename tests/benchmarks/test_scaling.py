"""The model of communication against numbers worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
import torch
from scaling import Links
from torch import nn

LINKS = Links(inside=100.0, between=10.0, latency=1.0, node=4)


def test_a_ring_moves_each_byte_nearly_twice() -> None:
    # 2 hops of 1 s, then 2 * 200 * 3 / 4 = 300 bytes at 100 a second
    assert LINKS.reduce(200, 4) == 2 + 3
    # 3 hops, 2 * 200 * 7 / 8 = 350 bytes at 10 a second
    assert LINKS.reduce(200, 8) == 3 + 35
    assert LINKS.gather(200, 8) == 3 + 140


def test_what_a_step_has_to_tell() -> None:
    encoder = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))  # 18 and 6 weights
    encoder.encoder_dim = 3  # type: ignore[assignment]
    method = nn.Module()
    method.encoder = encoder
    said = scaling.talk(method, 10, 2, LINKS)  # type: ignore[arg-type]
    assert said.gradients == 1 + 24 * 4 / 100
    # two views of 10 x 3 numbers from each; the gradients of all 20 rows back
    assert said.embeddings == pytest.approx(1 + 240 / 100 + 1 + 480 / 100)
    assert said.batch_norm == pytest.approx(1 + 28 / 100 + 1 + 24 / 100)
    assert said.queue == 0
    method.register_buffer("queue", torch.zeros(2, 3, 8))
    assert scaling.talk(method, 10, 2, LINKS).queue == 1 + 240 / 100  # type: ignore[arg-type]
    assert scaling.talk(method, 10, 1, LINKS).total == 0  # type: ignore[arg-type]


def test_flop_of_an_utterance_do_not_depend_on_how_many_there_are() -> None:
    method = scaling.make_method("simclr", "tiny")
    assert scaling.flop_of(method, 1) == scaling.flop_of(method, 2) > 1e9


def test_the_table_is_made_of_what_was_measured(tmp_path: Path) -> None:
    forms = {"fp32": {"utterances_per_second": 10.0}, "bf16": {"utterances_per_second": 500.0}}
    plans = {"simclr/tiny/memory": {"forms": forms}, "simclr/tiny/disk": {"forms": forms}}
    (tmp_path / "m.json").write_text(json.dumps({"plans": plans}))
    command = [sys.executable, scaling.__file__, "--measured", str(tmp_path / "m.json")]
    done = subprocess.run(
        [*command, "--gpus", "1", "8"], capture_output=True, text=True, check=True
    )
    one, eight = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert one[1:5] == ["1", "500", "100 %", "36.4 min"]  # 1 092 009 / 500 s
    assert eight[1] == "8"
    assert 3000 < int(eight[2].replace(",", "")) < 4000
