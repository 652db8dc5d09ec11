"""What every encoder has: its configuration, and waveform in, embedding out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from sslsv.encoders import masking
from sslsv.encoders.frontend import SpecAugmentConfig, log_mel
from sslsv.errors import ConfigError, DataError


@dataclass(kw_only=True)
class EncoderConfig:
    """Fields that all encoders share; an encoder's own dataclass adds to them."""

    type: str  # which encoder
    encoder_dim: int = 512  # D, size of an embedding
    extract_mel_features: bool = True  # log-mel front-end; false: the encoder sees the waveform
    mel_n_mels: int = 40  # mel bands
    mel_n_fft: int = 512  # samples of one Fourier transform
    mel_win_fn: Literal["hamming", "hann"] = "hamming"  # window of the spectrogram
    mel_win_length: int = 400  # samples of one analysis window
    mel_hop_length: int = 160  # samples from one frame to the next
    mel_sample_rate: int = 16000  # Hz
    # Mean 0 and variance 1 of each band, or of all together: "level" leaves the long-term spectrum
    mel_norm: Literal["instance", "level"] = "instance"
    spec_augment: SpecAugmentConfig | None = None  # masks on log-mel features in training
    compile: bool = False  # torch.compile: minutes at the start, then faster steps

    def __post_init__(self) -> None:
        for name in ("encoder_dim", "mel_n_mels", "mel_n_fft", "mel_win_length", "mel_hop_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.mel_win_length > self.mel_n_fft:
            raise ConfigError(
                f"mel_win_length: {self.mel_win_length} is longer than mel_n_fft {self.mel_n_fft}"
            )
        if self.extract_mel_features:
            self._check_bands()
        if self.spec_augment and not self.extract_mel_features:
            raise ConfigError(
                "spec_augment: masks log-mel features, of which there are none where "
                "extract_mel_features is false; remove one of the two"
            )

    def _check_bands(self) -> None:
        """A mel band narrower than the distance of two Fourier bins may hold none of them."""
        edges = np.linspace(
            0, 2595 * np.log10(1 + self.mel_sample_rate / 2 / 700), self.mel_n_mels + 2
        )
        edges = 700 * (10 ** (edges / 2595) - 1)  # Hz
        bins = np.arange(self.mel_n_fft // 2 + 1) * self.mel_sample_rate / self.mel_n_fft
        inside = (bins > edges[:-2, None]) & (bins < edges[2:, None])
        if empty := int((~inside.any(axis=1)).sum()):
            raise ConfigError(
                f"mel_n_mels: {self.mel_n_mels} bands are too narrow for mel_n_fft "
                f"{self.mel_n_fft}, {empty} of them are empty; use fewer bands"
            )

    @property
    def min_samples(self) -> int:
        """The shortest waveform that the encoder takes, in samples (one Fourier window)."""
        return self.mel_n_fft if self.extract_mel_features else 1

    @property
    def gives_sequence(self) -> bool:
        """Whether the encoder does not pool over time."""
        return False

    def frames(self, samples: int) -> int | None:
        """Frames of the sequence that so many samples give; None: not known before it is tried."""
        return None


class Encoder(nn.Module):
    """``forward(wave (B, T)) -> (B, D)``, or ``(B, D, F)`` where pooling is off."""

    # Rows of different lengths may share a batch: what pads, or sums over time, is of masking.py.
    ragged: ClassVar[bool] = False

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.encoder_dim = config.encoder_dim
        self.features_extractor = log_mel(config) if config.extract_mel_features else nn.Identity()

    def forward(self, wave: Tensor) -> Tensor:
        raise NotImplementedError

    def embed(self, wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """What ``forward`` gives for each waveform alone, for evaluation: (B, T) -> (B, D).

        ``lengths`` counts the samples of each row where they differ. Raises DataError where a
        waveform has another shape, is too short or is not finite.
        """
        self.check_wave(wave, lengths)
        if self.config.gives_sequence and len(set(lengths or [])) > 1:
            raise DataError(
                "an encoder without pooling gives rows of different lengths sequences of different "
                "lengths, which do not fit one tensor; pass rows of one length"
            )
        return masking.run(self.forward if lengths else self, wave, lengths, self.ragged)

    def check_wave(self, wave: Tensor, lengths: Sequence[int] | None = None) -> None:
        """Refuse what cannot be embedded. Waits for the device."""
        if wave.ndim != 2 or not wave.numel():
            raise DataError(
                f"expected waveforms of shape (batch, samples), both at least 1, got "
                f"{tuple(wave.shape)}"
            )
        shortest = min(lengths) if lengths else wave.shape[1]
        if shortest < self.config.min_samples:
            raise DataError(
                f"a waveform of {shortest} samples is shorter than the encoder can take "
                f"({self.config.min_samples})"
            )
        bad = (~wave.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise DataError(f"waveforms {bad} of the batch hold samples that are not finite")
