"""When a run is saved, and how a signal ends it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import torch

from sslsv import distributed
from sslsv.interrupt import Interrupted, marker
from sslsv.trainer import checkpoint, resume
from sslsv.trainer.tracking import say

if TYPE_CHECKING:
    from sslsv.trainer.trainer import Trainer


def save_epoch(trainer: Trainer, improved: bool) -> None:
    """The state after an epoch, its weights, and the best and averaged ones where they changed."""
    if trainer.epoch > trainer.last_epoch - trainer.config.avg_count:
        trainer.average.add(trainer.method.state_dict())
    state = resume.state_of(trainer)
    trainer.saved = time.monotonic()
    if not distributed.is_main():
        return
    weights = {key: state[key] for key in ("epoch", "best_metric", "model", "config")}
    files = {f"epoch-{trainer.epoch}": weights}
    if improved:
        files["best"] = weights
    if trainer.average.count:
        files["avg"] = weights | {"model": trainer.average.mean(state["model"])}
    for suffix, content in files.items():
        checkpoint.save(checkpoint.checkpoint_path(trainer.run_dir, suffix), content)
    checkpoint.save_latest(trainer.run_dir, state)
    if trainer.config.keep_last_n:
        checkpoint.prune(trainer.run_dir, trainer.config.keep_last_n, trainer.epoch)


def save_within_epoch(trainer: Trainer) -> None:
    """Where the time for it has come, or the training is to stop."""
    minutes = trainer.config.checkpoint_every_minutes
    due = minutes is not None and time.monotonic() - trainer.saved > 60 * minutes
    to_stop, due = _any(trainer, trainer.stop_request.signal is not None, due)
    if not to_stop and not due:
        return
    state = resume.state_of(trainer)
    if distributed.is_main():
        checkpoint.save_latest(trainer.run_dir, state)
    trainer.saved = time.monotonic()
    if to_stop:
        stop(trainer)


def stop_requested(trainer: Trainer) -> bool:
    """Whether any process was sent a signal."""
    return _any(trainer, trainer.stop_request.signal is not None)[0]


def _any(trainer: Trainer, *values: bool) -> list[bool]:
    """For each, whether it is true in any process."""
    if distributed.world_size() == 1:
        return list(values)
    flags = torch.tensor(values, dtype=torch.float32, device=trainer.device)
    return [bool(flag) for flag in distributed.reduce_max(flags).tolist()]


def stop(trainer: Trainer) -> None:
    """Raise Interrupted, once the state is there for all processes."""
    kind = signal.Signals(trainer.stop_request.signal or signal.SIGTERM)
    within = f" and {trainer.means.steps} steps" if trainer.means.steps else ""
    message = (
        f"{trainer.run_dir}: stopped by {kind.name} after epoch {trainer.epoch}{within}, saved; "
        "the same command goes on from there"
    )
    distributed.barrier()  # nobody leaves before the file is there
    if distributed.is_main():
        marker(trainer.run_dir).write_text(message + "\n", encoding="utf-8")
    say(message)
    raise Interrupted(message, 128 + kind.value)
