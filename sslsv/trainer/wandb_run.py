"""Logging to Weights & Biases: off unless asked for, and never in the way of a training."""

from __future__ import annotations

import configparser
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sslsv.files import atomic_write
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.environment import mask_settings
from sslsv.trainer.tracking import say

Mode = Literal["online", "offline", "disabled"]
Axis = Literal["epoch", "step"]

_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",  # older names, which wandb still takes
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# Seconds that wandb waits for its server, unless the user set them: without a network it would
# keep a training from starting for minutes, and one that has ended from leaving the machine.
_TIMEOUTS = {"WANDB_INIT_TIMEOUT": "30", "WANDB_FINISH_TIMEOUT": "120"}


def folder_mode() -> Mode:
    """What ``WANDB_MODE``, or else ``wandb online|offline|disabled|enabled`` in this folder, says.

    Those commands write ``mode`` to the file ``wandb/settings``; ``wandb online`` only takes it
    out of there, so that a file without it means online. Where nothing was ever set: disabled. That
    includes ``wandb online`` as the very first command in a folder, which leaves no trace.
    """
    if asked := os.environ.get("WANDB_MODE"):
        return _MODES.get(asked, "disabled")
    root = Path(os.environ.get("WANDB_DIR") or Path.cwd())
    local = root / (".wandb" if (root / ".wandb").exists() else "wandb") / "settings"
    shared = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb", "settings")
    for path in (local, Path(os.path.expanduser(shared))):
        if mode := _read_mode(path):
            return _MODES.get(mode, "disabled")
    return "online" if local.is_file() else "disabled"


def _read_mode(path: Path) -> str | None:
    parser = configparser.ConfigParser()
    try:
        parser.read(path)
        return parser.get("default", "mode", fallback=None)
    except (OSError, ValueError, configparser.Error):
        return "disabled"  # damaged


def run_id(run_dir: Path, asked: str | None = None) -> str:
    """``asked``, else what ``wandb_id.txt`` holds, else a new one; it is kept in that file."""
    path = run_dir / "wandb_id.txt"
    try:
        known = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        known = ""
    if not known.isprintable():  # damaged
        known = ""
    wanted = asked or known or secrets.token_hex(5)
    if wanted != known:
        with atomic_write(path, "w") as file:
            file.write(wanted + "\n")
    return wanted


def start(config: TrainerConfig, run_dir: Path, settings: dict[str, Any]) -> WandbRun | None:
    """Start a run, or go on with this folder's; nothing where wandb is disabled or fails.

    A run that cannot be online, for want of a login or of a network, is logged offline.
    """
    mode = config.wandb_mode or folder_mode()
    if mode == "disabled":
        return None
    problem = ""
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            with _unattended():
                import wandb

                if problem:
                    wandb.teardown()  # it still holds the id of the attempt that failed
                run = wandb.init(
                    project=config.wandb_project,
                    id=run_id(run_dir, config.wandb_id),
                    name=run_dir.resolve().name,
                    dir=str(run_dir),
                    config=mask_settings(settings),
                    allow_val_change=True,  # a resumed run may have changed settings
                    resume="allow",
                    mode=attempt,
                )
        except Exception as error:
            problem = problem or _reason(error)
            continue
        if problem:
            later = f"`wandb sync {run_dir}/wandb/offline-run-*` sends it later"
            say(f"warning: wandb: {problem}; logging offline ({later})")
        return WandbRun(run)
    say(f"warning: wandb: {problem}; training goes on without it")
    return None


class WandbRun:
    """A run that ``start`` began; with its first error it falls silent.

    The steps of wandb itself, which may only grow, are left to it: values are drawn over the
    numbers ``epoch`` and ``step`` that are logged with them, so that a resumed training may go
    over an epoch again.
    """

    def __init__(self, run: Any):
        self._run = run
        self._broken = False
        self._defined: set[str] = set()

    def log(self, values: dict[str, float], axis: Axis) -> None:
        """Add ``values``, of which ``axis`` is one, to be drawn over it."""
        if self._broken:
            return
        try:
            for name in (axis, *values):
                if name not in self._defined:
                    over = {} if name in ("epoch", "step") else {"step_metric": axis}
                    self._run.define_metric(name, **over)
                    self._defined.add(name)
            self._run.log(values)
        except Exception as error:
            self._warn(error)

    def finish(self, failed: bool) -> None:
        """Send what is left, and say how the training ended."""
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._broken:
            say(f"warning: wandb: {_reason(error)}; nothing more is logged to it")
        self._broken = True


def _reason(error: Exception) -> str:
    """First line of what ``error`` says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


@contextmanager
def _unattended() -> Iterator[None]:
    """Within it wandb finds nobody to ask for a login, and limits to its patience."""
    changed = {name: value for name, value in _TIMEOUTS.items() if name not in os.environ}
    changed["TERM"] = "dumb"  # it would ask in a notebook, whatever the standard input
    before, stdin = {name: os.environ.get(name) for name in changed}, sys.stdin
    os.environ.update(changed)
    try:
        with open(os.devnull) as sys.stdin:
            yield
    finally:
        sys.stdin = stdin
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
