"""Pieces that the oracles of several encoders are made of; none of them calls the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]


def randomise_norms(module: nn.Module) -> None:
    """Batch norms that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2.0)


def state_of(module: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def batch_norm(s: State, name: str, x: Tensor, train: bool) -> Tensor:
    """(B, C) or (B, C, F)."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    mean = x.mean(axes) if train else s[f"{name}.running_mean"]
    var = x.var(axes, correction=0) if train else s[f"{name}.running_var"]
    gain = s[f"{name}.weight"] / (var + 1e-5).sqrt()
    return (x - mean.view(shape)) * gain.view(shape) + s[f"{name}.bias"].view(shape)


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def mirrored_conv(s: State, name: str, x: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
    """As many frames out as in; frame -t is frame t, and so at the other end."""
    weight, frames = s[f"{name}.weight"], x.shape[2]
    reach = dilation * (weight.shape[2] - 1) // 2
    places = [abs(t) for t in range(-reach, frames + reach)]
    places = [t if t < frames else 2 * (frames - 1) - t for t in places]
    return F.conv1d(x[:, :, places], weight, s[f"{name}.bias"], dilation=dilation, groups=groups)


def norm_keys(name: str) -> set[str]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.{part}" for part in parts}


def linear_keys(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


FRONTEND_KEYS = {f"features_extractor.0.{x}" for x in ("spectrogram.window", "mel_scale.fb")}


def without_gradient(module: nn.Module) -> list[str]:
    """Names of parameters that have none, or nothing but zeros."""
    return [
        name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def backward_of_all(module: nn.Module, wave: Tensor) -> None:
    """A loss to which every output contributes in a way of its own."""
    out = module(wave)
    (out * torch.randn_like(out)).sum().backward()
