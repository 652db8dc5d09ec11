"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslsv.errors import CheckpointError, listing
from sslsv.files import atomic_write


def checkpoint_path(run_dir: Path, suffix: str) -> Path:
    """``checkpoints/model_<suffix>.pt``; suffixes are latest, best, avg and epoch-<n>."""
    return run_dir / "checkpoints" / f"model_{suffix}.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, text); a full disk leaves the old file as it was."""
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's zip writer hides the OSError of a full disk
            raise OSError(str(error).splitlines()[0]) from None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint. CheckpointError where it is missing, damaged or not a checkpoint."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        there = sorted(p.stem.removeprefix("model_") for p in path.parent.glob("model_*.pt"))
        hint = f"there are: {', '.join(there)}" if there else "train first, or check the path"
        raise CheckpointError(f"{path}: no such checkpoint ({hint})") from None
    except Exception as error:  # damaged bytes raise anything, from UnicodeDecodeError on
        reason = str(error).strip().splitlines() or ["empty file"]
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint ({reason[0].split('. ')[0]}); "
            "use another one from the same folder or delete it"
        ) from None
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not all(isinstance(v, Tensor) for v in model.values()):
        raise CheckpointError(
            f"{path}: not a checkpoint of a training (no entry 'model' that holds tensors)"
        )
    return state


def load_weights(module: nn.Module, state: dict[str, Any], source: Path) -> None:
    """Load the entry ``model``; anything missing, left over or of another shape is refused."""
    saved, own = state["model"], module.state_dict()
    problems = []
    if missing := [key for key in own if key not in saved]:
        problems.append(f"it lacks {len(missing)} tensors: {listing(missing, 3)}")
    if unexpected := [key for key in saved if key not in own]:
        problems.append(f"it has {len(unexpected)} unknown tensors: {listing(unexpected, 3)}")
    shapes = [
        f"{key} is {tuple(saved[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in saved and saved[key].shape != own[key].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} tensors differ in shape: {listing(shapes, 3)}")
    if problems:
        raise CheckpointError(
            f"{source}: does not fit this configuration's encoder and method; "
            + "; ".join(problems)
        )
    module.load_state_dict(saved)


def load_encoder(module: nn.Module, state: dict[str, Any], source: Path) -> str:
    """Load what fits of the entry ``model``; every tensor of the encoder must.

    Returns the names of the other tensors that stay as they were, for a message.
    """
    saved, own = state["model"], module.state_dict()
    fitting = {k: v for k, v in saved.items() if k in own and own[k].shape == v.shape}
    left = [key for key in own if key not in fitting]
    if lost := [key for key in left if key.startswith("encoder.")]:
        raise CheckpointError(
            f"{source}: does not hold this encoder; {len(lost)} of its tensors are missing or of "
            f"another shape: {listing(lost, 3)}"
        )
    module.load_state_dict(fitting, strict=False)
    return listing(left, 3)
