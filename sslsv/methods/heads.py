"""Small networks on top of an encoder."""

from __future__ import annotations

from torch import nn


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
