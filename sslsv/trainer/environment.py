"""What a run was started with: command, code, versions, machine, in environment.json."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import sslsv
from sslsv import distributed
from sslsv.files import write_json
from sslsv.trainer.tracking import say

_SECRET = re.compile(r"password|token|secret|api[_-]?key", re.IGNORECASE)
_MASK = "***"
_GIT_SECONDS = 20  # after which git, on a slow disk, is no longer waited for


def record(run_dir: Path, settings: dict[str, Any], argv: Sequence[str]) -> None:
    """Add this start to the list in ``environment.json``; acts on the main process only.

    ``settings`` is the resolved configuration, ``argv`` the command line.
    """
    if not distributed.is_main():
        return
    path = run_dir / "environment.json"
    write_json(path, [*_earlier(path), describe(settings, argv)])


def describe(settings: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """One start. Neither the name of the machine nor a word that looks secret is in it."""
    commit, dirty = git_state(Path(sslsv.__file__).resolve().parents[1])
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(mask_words(argv)),
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchaudio": _version("torchaudio"),
        "numpy": _version("numpy"),
        "sslsv": sslsv.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _cudnn_version(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "world_size": distributed.world_size(),
        "seed": settings.get("seed"),
    }


def mask_words(words: Sequence[str]) -> list[str]:
    """Command-line words without the values of keys such as password, token, secret, api_key."""
    masked: list[str] = []
    value_follows = False  # of an option such as --token
    for word in words:
        key, equals, _ = word.partition("=")
        secret = bool(_SECRET.search(key))
        if value_follows:
            masked.append(_MASK)
        elif secret and equals:
            masked.append(f"{key}={_MASK}")
        else:
            masked.append(word)
        value_follows = secret and not equals and word.startswith("-") and not value_follows
    return masked


def mask_settings(value: Any) -> Any:
    """Settings without texts whose key looks secret."""
    if isinstance(value, dict):
        return {
            key: _MASK if isinstance(v, str) and _SECRET.search(str(key)) else mask_settings(v)
            for key, v in value.items()
        }
    return [mask_settings(v) for v in value] if isinstance(value, list | tuple) else value


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """Commit that is checked out in ``root``, and whether a file of it was changed since.

    Nothing is known where ``root`` is not the top of a checkout, as for an installed package.
    """
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or nothing if it is missing or refuses."""
    # GIT_DIR and the like, as set within a hook, would point to another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _earlier(path: Path) -> list[Any]:
    """Starts that ``path`` lists; none, with a warning, where it is damaged."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(starts, list):
            return starts
        problem = "holds no list"
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        problem = f"not readable as JSON ({error})"
    say(f"warning: {path}: {problem}; it is written anew")
    return []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cudnn_version() -> int | None:
    with suppress(RuntimeError):  # its libraries do not fit each other
        return torch.backends.cudnn.version()
    return None


def _cpu_model() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or None


def _memory_gb() -> float | None:
    """Of the machine, in 10⁹ bytes."""
    with suppress(OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return None
