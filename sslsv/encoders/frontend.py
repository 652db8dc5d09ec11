"""Waveform -> normalised log-mel spectrogram, always in float32 and without gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.audio import torchaudio

if TYPE_CHECKING:
    from sslsv.encoders.base import EncoderConfig

_LOG_FLOOR = 1e-6  # added to mel energies before the logarithm


class LogInstanceNorm(nn.Module):
    """Natural log, then zero mean and unit variance over time for each band of each utterance."""

    def forward(self, mel: Tensor) -> Tensor:  # (B, M, F)
        return F.instance_norm((mel + _LOG_FLOOR).log(), eps=1e-5)


class FrontEnd(nn.Sequential):
    """(B, T) waveform -> (B, mel, 1 + T // hop)."""

    @torch.no_grad()
    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):  # log and FFT need the precision
            return super().forward(wave)


def log_mel(config: EncoderConfig) -> FrontEnd:
    """The front-end that ``config`` describes: power spectrogram, HTK mel filters 0 Hz to 8 kHz."""
    windows = {"hamming": torch.hamming_window, "hann": torch.hann_window}
    mel = torchaudio().transforms.MelSpectrogram(
        sample_rate=config.mel_sample_rate,
        n_fft=config.mel_n_fft,
        win_length=config.mel_win_length,
        hop_length=config.mel_hop_length,
        n_mels=config.mel_n_mels,
        window_fn=windows[config.mel_win_fn],
    )
    return FrontEnd(mel, LogInstanceNorm())
