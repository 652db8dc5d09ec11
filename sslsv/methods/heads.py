"""Small networks on top of an encoder."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projector(in_dim: int, hidden_dim: int, out_dim: int, layers: int = 3) -> nn.Sequential:
    """``layers - 1`` times Linear-BN-ReLU, then Linear: (N, in_dim) -> (N, out_dim)."""
    sizes = [in_dim] + [hidden_dim] * (layers - 1)
    hidden: list[nn.Module] = []
    for size in sizes[:-1]:
        hidden += [
            nn.Linear(size, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], out_dim))


class Prototypes(nn.Module):
    """Scalar products with unit vectors that are learned: (…, D) -> (…, K)."""

    weight_g: Tensor

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight_v = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())
        self.register_buffer("weight_g", torch.ones(count, 1))  # lengths: fixed

    @property
    def weight(self) -> Tensor:
        """(K, D)"""
        return self.weight_g * F.normalize(self.weight_v, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def by_length(network: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """What ``network`` gives for each view, those of one length that follow each other as one
    batch: V x (N, T_v) -> V x (N, …)."""
    found: list[Tensor] = []
    for _, group in groupby(views, key=lambda view: view.shape[1]):
        same = list(group)
        found += network(torch.cat(same)).chunk(len(same))
    return found
