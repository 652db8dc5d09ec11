"""TDNN, the x-vector network."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.encoders import masking
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.pooling import StatisticsPooling
from sslsv.errors import ConfigError
from sslsv.registry import register_encoder

_HIDDEN = 512  # units between the two linear layers


def check_layers(**lists: list[int]) -> None:
    """Refuse lists of one number a layer that differ in length or hold one below 1."""
    first, wanted = next((name, len(values)) for name, values in lists.items())
    for name, values in lists.items():
        if not values or min(values) < 1:
            raise ConfigError(f"{name}: needs numbers of at least 1, one a layer, got {values}")
        if len(values) != wanted:
            raise ConfigError(
                f"{name}: describes {len(values)} layers but {first} {wanted}; give both the same"
            )


@dataclass(kw_only=True)
class TDNNConfig(EncoderConfig):
    channels: list[int] = field(default_factory=lambda: [512, 512, 512, 512, 1500])  # by layer
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 3, 3, 1, 1])  # frames
    dilations: list[int] = field(default_factory=lambda: [1, 2, 3, 1, 1])  # frames

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(
            channels=self.channels, kernel_sizes=self.kernel_sizes, dilations=self.dilations
        )
        if not self.extract_mel_features:
            raise ConfigError("extract_mel_features: tdnn needs the mel front-end, set true")

    @property
    def min_samples(self) -> int:
        """Two frames must be left by the convolutions, of which there is a deviation."""
        lost = sum(d * (k - 1) for k, d in zip(self.kernel_sizes, self.dilations, strict=True))
        return max(super().min_samples, (lost + 1) * self.mel_hop_length)


class TDNNBlock(nn.Module):
    """conv -> LeakyReLU -> BN; without padding, so the sequence becomes shorter."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.conv = masking.Conv1d(in_channels, channels, kernel_size, dilation=dilation)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.leaky_relu(self.conv(x), 0.01, inplace=True))


@register_encoder("tdnn", TDNNConfig)
class TDNN(Encoder):
    """x-vector (Snyder et al., ICASSP 2018) on log-mel features, (B, T) -> (B, D).

    The embedding is the output of the last linear layer, without batch norm or ReLU after it.
    """

    ragged = True
    config: TDNNConfig

    def __init__(self, config: TDNNConfig):
        super().__init__(config)
        sizes = [config.mel_n_mels, *config.channels]
        self.blocks = nn.Sequential(
            *map(TDNNBlock, sizes, config.channels, config.kernel_sizes, config.dilations)
        )
        self.pooling = StatisticsPooling(correction=1, floor=1e-12)
        self.linear1 = nn.Linear(2 * config.channels[-1], _HIDDEN)
        self.bn1 = nn.BatchNorm1d(_HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, config.encoder_dim)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.blocks(self.features_extractor(wave))  # (B, 1500, F - 14)
        x = F.relu(self.linear1(self.pooling(x)), inplace=True)
        return self.linear2(self.bn1(x))
