"""Strided convolutions on the waveform, without pooling."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.encoders import masking
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.registry import register_encoder

_HIDDEN = 512  # channels of all layers but the last
_KERNEL_SIZES = (10, 8, 4, 4, 4)
_STRIDES = (5, 4, 2, 2, 2)
_PADDINGS = (3, 2, 1, 1, 1)


@dataclass(kw_only=True)
class SimpleAudioCNNConfig(EncoderConfig):
    """``encoder_dim`` is the number of channels of the last layer."""

    extract_mel_features: bool = False  # must be: the encoder sees the waveform

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extract_mel_features:
            raise ConfigError("extract_mel_features: simpleaudiocnn sees the waveform, set false")

    @property
    def min_samples(self) -> int:
        """What the convolutions make one frame of."""
        length = 1
        for size, stride, padding in zip(
            reversed(_KERNEL_SIZES), reversed(_STRIDES), reversed(_PADDINGS), strict=True
        ):
            length = (length - 1) * stride + size - 2 * padding
        return length

    @property
    def gives_sequence(self) -> bool:
        return True

    def frames(self, samples: int) -> int | None:
        for size, stride, padding in zip(_KERNEL_SIZES, _STRIDES, _PADDINGS, strict=True):
            samples = (samples + 2 * padding - size) // stride + 1
        return samples


class ConvBlock(nn.Module):
    """conv -> BN -> ReLU."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int, padding: int):
        super().__init__()
        self.conv = masking.Conv1d(in_channels, channels, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


@register_encoder("simpleaudiocnn", SimpleAudioCNNConfig)
class SimpleAudioCNN(Encoder):
    """The encoder of CPC (arXiv 1807.03748, section 3.1) with batch norm: (B, T) -> (B, D, F), a
    frame for every 160 samples."""

    ragged = True
    config: SimpleAudioCNNConfig

    def __init__(self, config: SimpleAudioCNNConfig):
        super().__init__(config)
        channels = [1, *[_HIDDEN] * 4, config.encoder_dim]
        self.blocks = nn.Sequential(
            *map(ConvBlock, channels, channels[1:], _KERNEL_SIZES, _STRIDES, _PADDINGS)
        )

    def forward(self, wave: Tensor) -> Tensor:
        return self.blocks(self.features_extractor(wave)[:, None])
