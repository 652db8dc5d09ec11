"""Fast ResNet-34."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.encoders import masking
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.pooling import SelfAttentivePooling, StatisticsPooling
from sslsv.errors import ConfigError
from sslsv.registry import register_encoder

_BLOCKS = (3, 4, 6, 3)
_STRIDES = (1, 2, 2, 1)
_SE_REDUCTION = 8


@dataclass(kw_only=True)
class ResNet34Config(EncoderConfig):
    pooling: bool = True  # false: a sequence (B, D, F) for methods such as CPC
    pooling_mode: Literal["sap", "stats"] | None = "sap"  # null is the same as pooling: false
    base_dim: int = 16  # channels of the first stage; the last has 8 times as many
    enable_last_bn: bool = False  # batch norm on the embedding

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_dim < _SE_REDUCTION:
            raise ConfigError(
                f"base_dim: must be at least {_SE_REDUCTION} (squeeze-and-excitation divides the "
                f"channels by {_SE_REDUCTION}), got {self.base_dim}"
            )
        if not self.extract_mel_features:
            raise ConfigError("extract_mel_features: resnet34 needs the mel front-end, set true")
        if self.mel_n_mels < 8:
            raise ConfigError(
                f"mel_n_mels: resnet34 halves the frequency axis three times and needs at least "
                f"8 bands, got {self.mel_n_mels}"
            )
        if not self.pooling:
            self.pooling_mode = None

    @property
    def gives_sequence(self) -> bool:
        return self.pooling_mode is None

    def frames(self, samples: int) -> int | None:
        frames = 1 + samples // self.mel_hop_length
        for stride in _STRIDES:
            frames = -(-frames // stride)
        return frames


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean of each channel (arXiv 1709.01507)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // _SE_REDUCTION),
            nn.ReLU(inplace=True),
            nn.Linear(channels // _SE_REDUCTION, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return x * self.fc(masking.mean(x, dim=(2, 3)))[:, :, None, None]


class BasicBlock(nn.Module):
    """conv -> ReLU -> BN -> conv -> BN -> SE, plus the shortcut.

    ReLU before the first BN is unusual, but published checkpoints were trained so.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = masking.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = masking.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcitation(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                masking.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(F.relu(self.conv1(x), inplace=True))
        out = self.se(self.bn2(self.conv2(out)))
        return F.relu(out + self.downsample(x), inplace=True)


@register_encoder("resnet34", ResNet34Config)
class ResNet34(Encoder):
    """ResNet-34 with a quarter of the usual channels (Chung et al., arXiv 1806.05622; thin form of
    arXiv 2003.11982) and squeeze-and-excitation, on log-mel features.

    (B, T) -> (B, D); with ``pooling: false`` (B, D, F), F = frames / 4.
    """

    ragged = True
    config: ResNet34Config
    block1: nn.Sequential
    block2: nn.Sequential
    block3: nn.Sequential
    block4: nn.Sequential

    def __init__(self, config: ResNet34Config):
        super().__init__(config)
        base = config.base_dim
        self.conv = masking.Conv2d(1, base, 7, stride=(2, 1), padding=3, bias=False)
        self.bn = nn.BatchNorm2d(base)
        channels = base
        for stage, (blocks, stride) in enumerate(zip(_BLOCKS, _STRIDES, strict=True)):
            out = base * 2**stage
            layers = [BasicBlock(channels, out, stride)]
            layers += [BasicBlock(out, out, 1) for _ in range(blocks - 1)]
            setattr(self, f"block{stage + 1}", nn.Sequential(*layers))
            channels = out

        bands = config.mel_n_mels
        for _ in range(3):  # three strides of 2 along frequency
            bands = (bands + 1) // 2
        if config.pooling_mode == "sap":
            self.pooling: nn.Module = SelfAttentivePooling(channels)
            features = channels
        elif config.pooling_mode == "stats":
            self.pooling = StatisticsPooling()
            features = 2 * channels * bands
        else:
            features = channels * bands
        self.fc = nn.Linear(features, config.encoder_dim)
        self.last_bn = nn.BatchNorm1d(config.encoder_dim) if config.enable_last_bn else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                # The layout in which convolutions are fastest, also on CPU.
                module.weight.data = module.weight.to(memory_format=torch.channels_last)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.features_extractor(wave).unsqueeze(1)  # (B, 1, M, F)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.bn(self.conv(x)).relu()
        x = self.block4(self.block3(self.block2(self.block1(x))))  # (B, 8·base, M/8, F/4)
        if self.config.pooling_mode == "sap":
            x = self.fc(self.pooling(x.mean(dim=2)))
        elif self.config.pooling_mode == "stats":
            x = self.fc(self.pooling(x.flatten(1, 2)))
        else:
            x = self.fc(x.flatten(1, 2).transpose(1, 2)).transpose(1, 2)  # (B, D, F)
        return self.last_bn(x) if self.last_bn is not None else x
