"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslsv import distributed
from sslsv.errors import CheckpointError, listing
from sslsv.files import atomic_write
from sslsv.methods.base import Method
from sslsv.trainer import reference
from sslsv.trainer.tracking import say

LABELS = "labels"  # beside the settings: what the outputs of a trained classifier stand for


def checkpoint_path(run_dir: Path, suffix: str) -> Path:
    """``checkpoints/model_<suffix>.pt``; suffixes are latest, previous, best, avg and
    epoch-<n>."""
    return run_dir / "checkpoints" / f"model_{suffix}.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, text); a full disk leaves the old file as it was."""
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's zip writer hides the OSError of a full disk
            raise OSError(str(error).splitlines()[0]) from None


def save_latest(run_dir: Path, state: dict[str, Any]) -> None:
    """Write ``model_latest.pt``; what had this name is ``model_previous.pt`` from then on. At no
    moment there is none."""
    latest, previous = checkpoint_path(run_dir, "latest"), checkpoint_path(run_dir, "previous")
    if latest.exists():
        spare = previous.with_suffix(".tmp")
        spare.unlink(missing_ok=True)
        try:
            os.link(latest, spare)
        except OSError:  # no hard links here
            shutil.copyfile(latest, spare)
        os.replace(spare, previous)
        spare.unlink(missing_ok=True)  # still there where both are links to one file
    save(latest, state)


def load_latest(run_dir: Path, device: torch.device | str = "cpu") -> tuple[dict, Path] | None:
    """``model_latest.pt``, or the one before it where that is damaged or missing, which is said;
    None where there is neither. A damaged one is kept as ``model_damaged.pt``."""
    latest, previous = checkpoint_path(run_dir, "latest"), checkpoint_path(run_dir, "previous")
    if not latest.exists() and not previous.exists():
        return None
    try:
        return load(latest, device), latest
    except CheckpointError as error:
        if not previous.exists():
            raise
        state = load(previous, device)
        say(f"warning: {error}; going on from {previous} instead")
        if distributed.is_main() and latest.exists():  # it must never take the other's place
            os.replace(latest, checkpoint_path(run_dir, "damaged"))
        return state, previous


def prune(run_dir: Path, keep: int, epoch: int) -> None:
    """Delete ``model_epoch-N.pt`` but for the ``keep`` latest."""
    folder = checkpoint_path(run_dir, "latest").parent
    for path in folder.glob("model_epoch-*.pt"):
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and int(number) <= epoch - keep:
            path.unlink(missing_ok=True)


def clean(run_dir: Path) -> None:
    """Delete unfinished files that a killed run left."""
    for pattern in (".model_*.tmp", "model_*.tmp"):
        for path in checkpoint_path(run_dir, "latest").parent.glob(pattern):
            path.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, also one of the reference system. CheckpointError where it is missing,
    damaged or not a checkpoint."""
    try:
        with torch.serialization.safe_globals(reference.NUMPY_NUMBERS):
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
    return reference.converted(state) if reference.made(state) else state


def load_weights(module: nn.Module, state: dict[str, Any], source: Path) -> None:
    """Load the entry ``model``; anything missing, left over or of another shape is refused."""
    if misfits := _misfits(state["model"], module.state_dict()):
        raise CheckpointError(
            f"{source}: does not fit this configuration's encoder and method; {misfits}"
        )
    module.load_state_dict(state["model"])


def load_to_embed(method: Method, state: dict[str, Any], source: Path) -> list[str]:
    """Load ``state`` for evaluation: one of ours as a whole, of the reference's what is needed.

    That is the encoder and what else ``method.embed`` uses: the file may be of another method.
    Returns remarks on the rest; ``method`` may be left in evaluation mode.
    """
    if reference.made(state):
        return load_encoder(method, state, source, reference.read_by_embed(method))
    load_weights(method, state, source)
    return []


def load_encoder(
    module: nn.Module, state: dict[str, Any], source: Path, needed: Collection[str] = ()
) -> list[str]:
    """Load what fits of the entry ``model``; the encoder and tensors ``needed`` must, exactly.

    A teacher that the file lacks becomes a copy of its student, as where a training begins.
    Returns remarks on what was not loaded or not used.
    """
    saved, own = state["model"], module.state_dict()
    must = {key: x for key, x in own.items() if key in needed or _owner(key) == "encoder"}
    owners = {_owner(key) for key in must}
    strange = {k for k in saved if k not in own and not k.startswith(reference.IDLE)}
    given = {k: x for k, x in saved.items() if k in must or (k in strange and _owner(k) in owners)}
    if misfits := _misfits(given, must) or _other_features(given, must):
        subject = "what this method embeds with" if owners - {"encoder"} else "this encoder"
        raise CheckpointError(
            f"{source}: does not hold {subject}; {misfits}; take the sections encoder and method "
            "from the config.yml of its training"
        )
    students = {key: key.replace("_momentum.", ".", 1) for key in own if key not in saved}
    twins = {key: saved[student] for key, student in students.items() if student in saved}
    fitting = {k: x for k, x in (saved | twins).items() if k in own and own[k].shape == x.shape}
    module.load_state_dict(fitting, strict=False)

    remarks = []
    if left := [key for key in own if key not in fitting]:
        remarks.append(f"not loaded: {listing(left, 3)}")
    if copied := [key for key in twins if key in fitting]:
        remarks.append(f"tensors copied from the student: {_counted(copied)}")
    if unused := [key for key in saved if key not in own]:
        remarks.append(f"tensors left out: {_counted(unused)}")
    return remarks


def load_memories(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], source: Path) -> None:
    """Fill ``own`` in place with what is there of it; a pass over the data fills the rest."""
    for name in own.keys() & saved.keys():
        if own[name].shape != saved[name].shape:
            raise CheckpointError(
                f"{source}: its {name} is {tuple(saved[name].shape)}, not "
                f"{tuple(own[name].shape)}: it is of another training list or of other settings"
            )
        own[name].copy_(saved[name])


def _owner(key: str) -> str:
    """The first part of a name: encoder, projector, …"""
    return key.partition(".")[0]


def _counted(keys: Iterable[str]) -> str:
    """``projector (16), ssps (4)``: whose tensors, and how many."""
    return ", ".join(f"{owner} ({n})" for owner, n in Counter(map(_owner, keys)).items())


def _misfits(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """How names and shapes of ``saved`` differ from those of ``own``; nothing where they agree."""
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
        problems.append(f"{len(shapes)} of its tensors differ in shape: {listing(shapes, 3)}")
    return "; ".join(problems)


def _other_features(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Which constants of the front-end differ: another window or filters would go unnoticed."""
    keys = [key for key in own if ".features_extractor." in key]
    differ = [key for key in keys if not _close(saved[key], own[key])]
    return f"its front-end is another one (encoder.mel_*): {listing(differ, 3)}" if differ else ""


def _close(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(x.to(y), y, atol=1e-4)  # builds of torchaudio differ by 1e-7
