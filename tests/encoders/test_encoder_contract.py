"""What every encoder keeps to: how many frames it announces, and what ``embed`` refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslsv.encoders.base import Encoder
from sslsv.errors import DataError
from sslsv.registry import ENCODERS

SEQUENCES: dict[str, dict[str, Any]] = {
    "resnet34": {"pooling": False, "base_dim": 8, "mel_n_mels": 8},
    "ecapatdnn": {"pooling": False, "channels": [16, 16, 16], "kernel_sizes": [5, 3, 1]}
    | {"dilations": [1, 2, 1], "groups": [1, 1, 1]},
    "simpleaudiocnn": {},
}


def make_encoder(kind: str, **fields: Any) -> Encoder:
    entry = ENCODERS.get(kind)
    return entry.cls(entry.config(type=kind, encoder_dim=16, **fields)).eval()


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("samples", [2000, 2559, 2560, 8001])
def test_as_many_frames_come_as_are_announced(kind, samples):
    encoder = make_encoder(kind, **SEQUENCES[kind])
    assert encoder.config.gives_sequence
    with torch.no_grad():
        assert encoder(torch.randn(1, samples)).shape[2] == encoder.config.frames(samples)


def test_sequences_of_different_lengths_are_refused():
    encoder = make_encoder("simpleaudiocnn")
    wave = torch.randn(2, 2000)
    assert encoder.embed(wave, [1500, 1500]).shape[:2] == (2, 16)
    with pytest.raises(DataError, match="pass rows of one length"):
        encoder.embed(wave, [2000, 1500])


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.randn(2000), r"shape \(batch, samples\), both at least 1, got \(2000,\)"),
        (torch.randn(1, 1, 2000), r"got \(1, 1, 2000\)"),
        (torch.randn(0, 2000), r"got \(0, 2000\)"),
        (torch.randn(1, 0), r"got \(1, 0\)"),
        (torch.randn(1, 511), r"511 samples is shorter than the encoder can take \(512\)"),
        (torch.tensor([[0.0] * 600, [float("nan")] * 600]), r"waveforms \[1\] .* not finite"),
    ],
)
def test_waveforms_that_cannot_be_embedded(wave, message):
    encoder = make_encoder("resnet34", base_dim=8, mel_n_mels=8)
    with pytest.raises(DataError, match=message):
        encoder.embed(wave)


@pytest.mark.parametrize("lengths", [[600], [600, 0], [600, 601], [600, 600, 600]])
def test_lengths_that_do_not_fit(lengths):
    encoder = make_encoder("resnet34", base_dim=8, mel_n_mels=8)
    with pytest.raises(DataError):
        encoder.embed(torch.randn(2, 600), lengths)
