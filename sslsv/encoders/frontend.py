"""Waveform -> normalised log-mel spectrogram, always in float32 and without gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.audio import torchaudio
from sslsv.encoders import masking
from sslsv.errors import ConfigError

if TYPE_CHECKING:
    from sslsv.encoders.base import EncoderConfig

_LOG_FLOOR = 1e-6  # added to mel energies before the logarithm


class LogInstanceNorm(nn.Module):
    """Natural log, then zero mean and unit variance over time for each band of each utterance."""

    def forward(self, mel: Tensor) -> Tensor:  # (B, M, F)
        log = (mel + _LOG_FLOOR).log()
        if masking.filled(mel.shape[-1]) is None:
            return F.instance_norm(log, eps=1e-5)
        return (log - masking.mean(log, keepdim=True)) * (masking.var(log) + 1e-5).rsqrt()[
            ..., None
        ]


class LogLevelNorm(nn.Module):
    """Natural log, then zero mean and unit variance over time and bands of each utterance.

    Takes loudness away and leaves the long-term spectrum, which names voice and channel alike.
    """

    def forward(self, mel: Tensor) -> Tensor:  # (B, M, F)
        log = (mel + _LOG_FLOOR).log()
        centred = log - masking.mean(log, dim=(1, 2), keepdim=True)
        return centred * (masking.mean(centred.square(), (1, 2), True) + 1e-5).rsqrt()


_NORMS: dict[str, type[nn.Module]] = {"instance": LogInstanceNorm, "level": LogLevelNorm}


@dataclass(kw_only=True)
class SpecAugmentConfig:
    """Section ``encoder.spec_augment``: bands and stretches that training does not see."""

    time_masks: int = 2  # how many
    time_width: int = 10  # frames, the widest; a width is drawn evenly from 0
    frequency_masks: int = 2  # how many
    frequency_width: int = 6  # mel bands, the widest

    def __post_init__(self) -> None:
        for name in ("time_masks", "time_width", "frequency_masks", "frequency_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")


class SpecAugment(nn.Module):
    """Sets random bands and stretches of features to zero, their mean, in training
    (arXiv 1904.08779, without time warping).

    Drawn on the CPU from torch's own generator, whose state is in the checkpoint, as dropout is
    there: a resumed training goes on with the masks that follow.
    """

    def __init__(self, config: SpecAugmentConfig):
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Tensor:  # (B, M, F)
        if not self.training:
            return features
        rows, bands, frames = features.shape
        c = self.config
        hidden = [
            _masks(rows, bands, c.frequency_masks, c.frequency_width)[:, :, None],
            _masks(rows, frames, c.time_masks, c.time_width)[:, None, :],
        ]
        across, along = (mask.to(features.device, non_blocking=True) for mask in hidden)
        return features.masked_fill(across | along, 0.0)


def _masks(rows: int, size: int, count: int, widest: int) -> Tensor:
    """Union of ``count`` intervals of 0 to ``widest`` places for each row, (rows, size) bool."""
    widths = torch.randint(min(widest, size) + 1, (rows, count, 1))
    starts = (torch.rand(rows, count, 1) * (size - widths + 1)).long()
    places = torch.arange(size)
    return ((places >= starts) & (places < starts + widths)).any(dim=1)


class MelSpectrogram(nn.Module):
    """torchaudio's ``MelSpectrogram`` for ``torch.compile``, at which the original's ``forward``
    breaks the graph (it asks TorchScript for a type): (B, T) -> (B, M, 1 + T // hop)."""

    def __init__(self, original: Any):
        super().__init__()
        self.n_fft: int = original.n_fft
        self.hop_length: int = original.hop_length
        self.spectrogram = original.spectrogram
        self.mel_scale = original.mel_scale

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave,
            self.n_fft,
            self.hop_length,
            self.spectrogram.win_length,
            self.spectrogram.window,
            return_complex=True,
        )
        return self.mel_scale(spectrum.abs().square())


class FrontEnd(nn.Sequential):
    """(B, T) waveform -> (B, mel, 1 + T // hop)."""

    @torch.no_grad()
    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):  # log and FFT need the precision
            spectrogram, *rest = self
            x = _spectrogram_of_each(spectrogram, wave)
            for module in rest:
                x = module(x)
            return x


def _spectrogram_of_each(spectrogram: Any, wave: Tensor) -> Tensor:
    """``spectrogram(wave)``, whose windows reach over the end of a row by half their length."""
    size, hop = wave.shape[-1], spectrogram.hop_length
    if masking.filled(size) is None:
        return spectrogram(wave)
    masking.resize(size, 1 + size // hop, lambda n: 1 + n // hop)
    return spectrogram(masking.reflect(wave, 0, spectrogram.n_fft // 2))[..., : 1 + size // hop]


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
    masks = [SpecAugment(config.spec_augment)] if config.spec_augment else []
    return FrontEnd(MelSpectrogram(mel), _NORMS[config.mel_norm](), *masks)
