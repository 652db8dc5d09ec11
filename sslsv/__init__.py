"""Self-supervised learning of speaker representations.

``sslsv.load`` gives a trained model: see `sslsv.model`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslsv.model import Model, Verdict, load

__version__ = "3.0.0.dev0"
__all__ = ["Model", "Verdict", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "Verdict", "load"):  # which import torch
        return getattr(importlib.import_module("sslsv.model"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
