"""In which precision a network runs."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(mixed: bool | Precision, device: torch.device) -> Precision:
    """For ``trainer.mixed_precision``; true is bfloat16 where ``device`` has instructions for it.

    A device without them computes convolutions in bfloat16 several times slower than in float32.
    """
    if isinstance(mixed, bool):
        return "bf16" if mixed and has_bfloat16(device) else "fp32"
    return mixed


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are done by the hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
