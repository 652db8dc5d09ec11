"""Whitening: linear maps after which the rows of a batch are uncorrelated."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cholesky_whitening(x: Tensor, eps: float = 0.0) -> Tensor:
    """Rows with mean 0 and covariance I: (…, S, D) -> (…, S, D), S > D.

    The centred rows times L^-T, where ``L L^T = (1 - eps) C + eps I`` and C is their unbiased
    covariance (arXiv 2007.06346, section 3.1). NaN where that matrix has no such factor, since
    asking the device whether it has would make the host wait.
    """
    x = x - x.mean(dim=-2, keepdim=True)
    c = x.transpose(-2, -1) @ x / (x.shape[-2] - 1)  # (…, D, D)
    if eps:
        c = (1 - eps) * c + eps * torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    lower, failed = torch.linalg.cholesky_ex(c)  # what it leaves on failure may look like a factor
    lower = lower.masked_fill((failed > 0)[..., None, None], float("nan"))
    return torch.linalg.solve_triangular(lower, x.transpose(-2, -1), upper=False).transpose(-2, -1)


class IterNorm(nn.Module):
    """Iterative normalisation (arXiv 1904.03441, algorithm 1), of ``groups`` groups of dimensions.

    ZCA whitening by T steps of Newton's method for the inverse square root of the covariance.
    In training by the statistics of the batch, of which running means are kept for evaluation.
    """

    running_mean: Tensor
    running_wm: Tensor

    def __init__(
        self, dim: int, groups: int = 64, steps: int = 5, eps: float = 1e-5, momentum: float = 0.1
    ):
        super().__init__()
        self.groups, self.steps, self.eps, self.momentum = groups, steps, eps, momentum
        size = dim // groups  # C
        self.weight = nn.Parameter(torch.ones(1, dim))
        self.bias = nn.Parameter(torch.zeros(1, dim))
        self.register_buffer("running_mean", torch.zeros(groups, size, 1))
        self.register_buffer("running_wm", torch.eye(size).repeat(groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # (N, D)
        with torch.autocast(x.device.type, enabled=False):  # 8 bits are too few for the inverse
            return self._normalise(x.to(self.weight.dtype))

    def _normalise(self, x: Tensor) -> Tensor:
        z = x.T.reshape(self.groups, -1, len(x))  # (G, C, N)
        if self.training:
            mean = z.mean(dim=2, keepdim=True)
            matrix = self._whitening_matrix(z - mean)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_wm.lerp_(matrix, self.momentum)
        else:
            mean, matrix = self.running_mean, self.running_wm
        z = matrix @ (z - mean)
        return z.reshape(x.shape[1], len(x)).T * self.weight + self.bias

    def _whitening_matrix(self, centred: Tensor) -> Tensor:
        """(G, C, N) -> (G, C, C), close to the inverse square root of the covariance."""
        eye = torch.eye(centred.shape[1], dtype=centred.dtype, device=centred.device)
        c = centred @ centred.transpose(1, 2) / centred.shape[2] + self.eps * eye
        trace = c.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        c, p = c / trace, eye.expand_as(c)
        for _ in range(self.steps):
            p = 1.5 * p - 0.5 * torch.matrix_power(p, 3) @ c
        return p / trace.sqrt()
