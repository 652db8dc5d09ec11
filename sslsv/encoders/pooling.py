"""Frames -> one vector per utterance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslsv.encoders import masking


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
    """Mean and standard deviation over time (biased, variance floored at 1e-5)."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, F) -> (B, 2C)
        std = masking.var(x).clamp(min=1e-5).sqrt()
        return torch.cat((masking.mean(x), std), dim=1)
