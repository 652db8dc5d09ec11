"""ECAPA-TDNN."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.encoders import masking
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.masking import ReflectConv1d
from sslsv.encoders.pooling import AttentiveStatisticsPooling
from sslsv.encoders.tdnn import check_layers
from sslsv.errors import ConfigError
from sslsv.registry import register_encoder


@dataclass(kw_only=True)
class ECAPATDNNConfig(EncoderConfig):
    """Of the lists the first number is for the first convolution, the last one for that on the
    joined outputs (MFA), and each between for an SE-Res2Net block."""

    pooling: bool = True  # false: a sequence (B, D, F) for methods such as CPC
    channels: list[int] = field(  # of each convolution, the last one before pooling
        default_factory=lambda: [512, 512, 512, 512, 1536]
    )
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 3, 3, 3, 1])  # frames
    dilations: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 1])  # frames
    groups: list[int] = field(default_factory=lambda: [1, 1, 1, 1, 1])  # not of the Res2Net part
    attention_channels: int = 128  # hidden units of attentive pooling
    res2net_scale: int = 8  # parts into which a Res2Net layer divides its channels
    se_channels: int = 128  # hidden units of squeeze-and-excitation
    global_context: bool = True  # attention sees mean and deviation of the whole utterance

    def __post_init__(self) -> None:
        super().__post_init__()
        lists = ("channels", "kernel_sizes", "dilations", "groups")
        check_layers(**{name: getattr(self, name) for name in lists})
        if not self.extract_mel_features:
            raise ConfigError("extract_mel_features: ecapatdnn needs the mel front-end, set true")
        if len(self.channels) < 3:
            raise ConfigError(
                f"channels: needs at least 3 numbers (first convolution, one SE-Res2Net block, "
                f"MFA), got {self.channels}"
            )
        for name, least in (("res2net_scale", 2), ("se_channels", 1), ("attention_channels", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        for channels in self.channels[1:-1]:
            if channels % self.res2net_scale:
                raise ConfigError(
                    f"channels: {channels} of an SE-Res2Net block is not a multiple of "
                    f"res2net_scale {self.res2net_scale}"
                )
        self._check_groups()
        for size, dilation in zip(self.kernel_sizes, self.dilations, strict=True):
            if dilation * (size - 1) % 2:
                raise ConfigError(
                    f"kernel_sizes: {size} with a dilation of {dilation} cannot be centred on a "
                    f"frame; use an odd number"
                )

    def _check_groups(self) -> None:
        inputs = [self.mel_n_mels, *self.channels[:-2], sum(self.channels[1:-1])]
        for layer, (groups, *sizes) in enumerate(
            zip(self.groups, inputs, self.channels, strict=True)
        ):
            for size in sizes:
                if size % groups:
                    source = "mel_n_mels" if (layer, size) == (0, self.mel_n_mels) else "channels"
                    raise ConfigError(
                        f"groups: {groups} of layer {layer} does not divide its {size} channels "
                        f"({source})"
                    )

    @property
    def min_samples(self) -> int:
        """Mirroring takes more frames than it adds to one side."""
        reach = max(
            d * (k - 1) // 2 for k, d in zip(self.kernel_sizes, self.dilations, strict=True)
        )
        return max(super().min_samples, reach * self.mel_hop_length)

    @property
    def gives_sequence(self) -> bool:
        return not self.pooling

    def frames(self, samples: int) -> int | None:
        return 1 + samples // self.mel_hop_length


class TDNNUnit(nn.Module):
    """conv -> ReLU -> BN."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.conv = ReflectConv1d(in_channels, channels, kernel_size, dilation, groups)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x), inplace=True))


class Res2Net(nn.Module):
    """Channels in ``scale`` parts; each but the first is convolved, from the third on after the
    result of the one before has been added to it (arXiv 1904.01169, eq. 1)."""

    def __init__(self, channels: int, scale: int, kernel_size: int, dilation: int):
        super().__init__()
        part = channels // scale
        self.blocks = nn.ModuleList(
            TDNNUnit(part, part, kernel_size, dilation) for _ in range(scale - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(len(self.blocks) + 1, dim=1)
        done: list[Tensor] = []
        for block, part in zip(self.blocks, rest, strict=True):
            done.append(block(part + done[-1] if done else part))
        return torch.cat((first, *done), dim=1)


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean of each channel (arXiv 1709.01507): (B, C, F) -> (B, C, 1)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv1 = ReflectConv1d(channels, hidden)
        self.conv2 = ReflectConv1d(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.conv1(masking.mean(x, keepdim=True)), inplace=True)
        return self.conv2(hidden).sigmoid()


class SERes2NetBlock(nn.Module):
    """conv -> Res2Net -> conv, gated (SE), plus the shortcut."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        dilation: int,
        groups: int,
        config: ECAPATDNNConfig,
    ):
        super().__init__()
        self.tdnn1 = TDNNUnit(in_channels, channels, groups=groups)
        self.res2net_block = Res2Net(channels, config.res2net_scale, kernel_size, dilation)
        self.tdnn2 = TDNNUnit(channels, channels, groups=groups)
        self.se_block = SqueezeExcitation(channels, config.se_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut = ReflectConv1d(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.tdnn2(self.res2net_block(self.tdnn1(x)))
        return torch.addcmul(self.shortcut(x), out, self.se_block(out))


@register_encoder("ecapatdnn", ECAPATDNNConfig)
class ECAPATDNN(Encoder):
    """ECAPA-TDNN (arXiv 2005.07143) on log-mel features, with batch norm after each ReLU and none
    on the embedding.

    (B, T) -> (B, D); with ``pooling: false`` (B, D, F), a frame for each of the front-end.
    """

    ragged = True
    config: ECAPATDNNConfig

    def __init__(self, config: ECAPATDNNConfig):
        super().__init__(config)
        sizes = list(
            zip(config.channels, config.kernel_sizes, config.dilations, config.groups, strict=True)
        )
        self.blocks = nn.ModuleList([TDNNUnit(config.mel_n_mels, *sizes[0])])
        for before, layer in zip(config.channels, sizes[1:-1], strict=False):
            self.blocks.append(SERes2NetBlock(before, *layer, config))
        self.mfa = TDNNUnit(sum(config.channels[1:-1]), *sizes[-1])

        features = config.channels[-1]
        if config.pooling:
            self.asp = AttentiveStatisticsPooling(
                features, config.attention_channels, config.global_context
            )
            features = 2 * features
            self.asp_bn = nn.BatchNorm1d(features)
        self.fc = ReflectConv1d(features, config.encoder_dim)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.features_extractor(wave)  # (B, M, F)
        outputs = []
        for block in self.blocks:
            x = block(x)  # (B, C, F)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs[1:], dim=1))
        if not self.config.pooling:
            return self.fc(x)  # (B, D, F)
        x = self.asp_bn(self.asp(x))  # (B, 2C)
        return self.fc(x[:, :, None]).squeeze(2)
