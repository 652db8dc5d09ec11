"""What every encoder has: its configuration, and waveform in, embedding out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sslsv.encoders.frontend import SpecAugmentConfig, log_mel
from sslsv.errors import ConfigError


@dataclass(kw_only=True)
class EncoderConfig:
    """Fields that all encoders share; an encoder's own dataclass adds to them."""

    type: str  # which encoder
    encoder_dim: int = 512  # D, size of an embedding
    extract_mel_features: bool = True  # log-mel front-end; false: the encoder sees the waveform
    mel_n_mels: int = 40  # mel bands
    mel_n_fft: int = 512  # samples of one Fourier transform
    mel_win_fn: Literal["hamming", "hann"] = "hamming"
    mel_win_length: int = 400  # samples of one analysis window
    mel_hop_length: int = 160  # samples from one frame to the next
    mel_sample_rate: int = 16000  # Hz
    spec_augment: SpecAugmentConfig | None = None  # masks on log-mel features in training

    def __post_init__(self) -> None:
        for name in ("encoder_dim", "mel_n_mels", "mel_n_fft", "mel_win_length", "mel_hop_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.mel_win_length > self.mel_n_fft:
            raise ConfigError(
                f"mel_win_length: {self.mel_win_length} is longer than mel_n_fft {self.mel_n_fft}"
            )

        if self.spec_augment and not self.extract_mel_features:
            raise ConfigError(
                "spec_augment: masks log-mel features, of which there are none where "
                "extract_mel_features is false; remove one of the two"
            )

    @property
    def min_samples(self) -> int:
        """The shortest waveform that the encoder takes, in samples (one Fourier window)."""
        return self.mel_n_fft if self.extract_mel_features else 1


class Encoder(nn.Module):
    """``forward(wave (B, T)) -> (B, D)``, or ``(B, D, F)`` where pooling is off."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.encoder_dim = config.encoder_dim
        self.features_extractor = log_mel(config) if config.extract_mel_features else nn.Identity()

    def forward(self, wave: Tensor) -> Tensor:
        raise NotImplementedError
