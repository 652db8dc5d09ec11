"""Frames -> one vector per utterance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.encoders import masking


class MeanPooling(nn.Module):
    """Mean over time."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, F) -> (B, C)
        return masking.mean(x)


class SelfAttentivePooling(nn.Module):
    """Weighted mean over time, ``w = softmax_t(tanh(W x + b) . a)`` (arXiv 1803.10963, eq. 2-4)."""

    def __init__(self, dim: int):
        super().__init__()
        self.sap_linear = nn.Linear(dim, dim)
        self.attention = nn.Parameter(torch.empty(dim, 1))
        nn.init.xavier_normal_(self.attention)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, F) -> (B, C)
        scores = torch.tanh(self.sap_linear(x.transpose(1, 2))) @ self.attention  # (B, F, 1)
        weights = masking.softmax(scores.transpose(1, 2))  # (B, 1, F)
        return (x * weights).sum(dim=2)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time.

    ``correction``: 0 for the biased variance, 1 for the unbiased one. ``floor``: least variance;
    the square root has no gradient at 0, where a constant channel would be.
    """

    def __init__(self, correction: int = 0, floor: float = 1e-5):
        super().__init__()
        self.correction = correction
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:  # (B, C, F) -> (B, 2C)
        std = masking.var(x, self.correction).clamp(min=self.floor).sqrt()
        return torch.cat((masking.mean(x), std), dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Weighted mean and standard deviation, a weight for each channel and frame:
    ``w = softmax_t(V g(W [x; mean; std] + b) + k)`` (arXiv 2005.07143, section 3.1).

    ``global_context`` false: W sees x alone. g is ReLU, batch norm and tanh.
    """

    def __init__(self, channels: int, attention_channels: int = 128, global_context: bool = True):
        super().__init__()
        self.context = StatisticsPooling(floor=1e-12) if global_context else None
        self.tdnn = nn.ModuleDict(
            {
                "conv": masking.ReflectConv1d(
                    3 * channels if global_context else channels, attention_channels
                ),
                "norm": nn.BatchNorm1d(attention_channels),
            }
        )
        self.conv = masking.ReflectConv1d(attention_channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, F) -> (B, 2C)
        hidden = self.tdnn["norm"](F.relu(self._first(x), inplace=True))
        weights = masking.softmax(self.conv(torch.tanh(hidden)))  # (B, C, F)
        mean = (weights * x).sum(dim=2, keepdim=True)
        var = (weights * (x - mean).square()).sum(dim=2)
        return torch.cat((mean.squeeze(2), var.clamp(min=1e-12).sqrt()), dim=1)

    def _first(self, x: Tensor) -> Tensor:
        """``self.tdnn.conv`` of [x; mean; std], of which the last two, the same in all frames, are
        neither repeated nor multiplied for each."""
        conv: nn.Conv1d = self.tdnn["conv"].conv  # type: ignore[assignment]
        if self.context is None:
            return conv(x)
        channels = x.shape[1]
        of_x, of_context = conv.weight.split((channels, 2 * channels), dim=1)
        context = self.context(x)[:, :, None]  # (B, 2C, 1)
        return F.conv1d(x, of_x, conv.bias) + F.conv1d(context, of_context)


class WeightedAveragePooling(nn.Module):
    """Mean over time of a weighted sum of layers, then a linear layer."""

    def __init__(self, layers: int, channels: int, dim: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(layers))
        self.fc = nn.Linear(channels, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, C, F) -> (B, D)
        means = masking.mean(x)  # (B, L, C); first, since it is the sum that shrinks x most
        return self.fc(self.weights.softmax(dim=0) @ means)


class MultiHeadFactorizedAttentivePooling(nn.Module):
    """MHFA, arXiv 2210.01273: keys and values are two weighted sums of layers, compressed; a head
    weights each frame's value as a whole, by a softmax over time of its score for the key."""

    def __init__(
        self, layers: int, channels: int, dim: int, heads: int = 64, compression: int = 128
    ):
        super().__init__()
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.weights_v = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.cmp_linear_v = nn.Linear(channels, compression)
        self.att_head = nn.Linear(compression, heads)
        self.pooling_fc = nn.Linear(heads * compression, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, C, F) -> (B, D)
        share = torch.stack((self.weights_k, self.weights_v)).softmax(dim=1)  # (2, L)
        mixed = (share @ x.flatten(2)).unflatten(2, x.shape[2:])  # both in one pass: (B, 2, C, F)
        keys, values = mixed.transpose(2, 3).unbind(dim=1)  # (B, F, C) each
        scores = self.att_head(self.cmp_linear_k(keys)).transpose(1, 2)  # (B, H, F)
        pooled = masking.softmax(scores) @ self.cmp_linear_v(values)  # (B, H, K)
        return self.pooling_fc(pooled.flatten(1))
