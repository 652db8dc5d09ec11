"""What a person sees of a run: progress, training.json, timings.json, TensorBoard, wandb."""

from __future__ import annotations

import math
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from sslsv import distributed
from sslsv.errors import UserError
from sslsv.files import read_json, write_json
from sslsv.trainer.config import TrainerConfig

if TYPE_CHECKING:
    from sslsv.trainer.wandb_run import WandbRun


def progress_bar(total: int, description: str, unit: str = "batch") -> tqdm:
    """A bar on the main process's terminal; nothing where output goes to a file."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        dynamic_ncols=True,
        leave=False,
        disable=None if distributed.is_main() else True,  # None: only if stderr is a terminal
    )


def say(message: str) -> None:
    """Print a line once, whatever the number of processes, without breaking a bar."""
    if distributed.is_main():
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def status_line(
    loss: float,
    learning_rate: float,
    utterances: float,
    seconds: float,
    waited: float,
    memory_gb: float,
    eta: float | None = None,
) -> str:
    """How a training is doing.

    ``utterances`` were processed in ``seconds``, of which ``waited`` went by waiting for data;
    ``eta`` is the seconds up to the end of the run, if there is an estimate.
    """
    speed, share = (utterances / seconds, waited / seconds) if seconds > 0 else (0.0, 0.0)
    parts = [
        f"loss {loss:.4f}",
        f"lr {learning_rate:.2e}",
        f"{speed:.0f} utt/s",
        f"data-wait {100 * share:.0f} %",
        f"{memory_gb:.1f} GB",
    ]
    if eta is not None and math.isfinite(eta):
        parts.append(f"ETA {duration(eta)}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """The two largest units: 42 s, 5 min 30 s, 3 h 12 min, 2 d 4 h."""
    seconds = max(0.0, seconds)
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if round(seconds) < 3600:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    if round(seconds / 60) < 24 * 60:
        return "{} h {} min".format(*divmod(round(seconds / 60), 60))
    return "{} d {} h".format(*divmod(round(seconds / 3600), 24))


def time_left(elapsed: float, done: int, left: int) -> float | None:
    """Seconds for ``left`` more steps at the pace of ``done`` ones; None with no step to go by."""
    return elapsed / done * left if done > 0 and left > 0 else None


def peak_memory() -> dict[str, float]:
    """Most memory so far of this process, in 10⁹ bytes: resident, and allocated on its GPU."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    peak = {"host_memory_gb": used * unit / 1e9}
    if torch.cuda.is_initialized():
        peak["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return peak


def peak_memory_gb() -> float:
    """What a status line shows: of the GPU where one is used, else of the host."""
    peak = peak_memory()
    return peak.get("gpu_memory_gb", peak["host_memory_gb"])


class Clock:
    """Seconds of the parts of an epoch, for ``Tracker.log_timings``."""

    def __init__(self) -> None:
        self.seconds = {"seconds": 0.0}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What has passed since the lap before was spent on ``name``."""
        now = time.perf_counter()
        self.seconds[f"{name}_seconds"] = now - self._last
        self.seconds["seconds"] += now - self._last
        self._last = now


class Tracker:
    """Keeps the history of a run; acts on the main process only.

    ``config`` says whether and where wandb logs it too, with ``settings``, the resolved
    configuration; without ``config`` it does not.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainerConfig | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.path = run_dir / "training.json"
        self.timings_path = run_dir / "timings.json"
        self._run_dir, self._config, self._settings = run_dir, config, settings or {}
        self._tensorboard: Any = None
        self._wandb: WandbRun | None = None
        self._folder = run_dir / "tensorboard"

    @contextmanager
    def running(self, epoch: int, step: int) -> Iterator[None]:
        """Log what follows ``epoch`` epochs; what an earlier run logged beyond them is dropped."""
        if not distributed.is_main():
            yield
            return
        histories = {path: _up_to(epoch, path) for path in (self.path, self.timings_path)}
        for path, history in histories.items():
            if path == self.path or path.exists():
                write_json(path, history)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard's own, about protobuf and the like
            from torch.utils.tensorboard import SummaryWriter
        try:
            self._tensorboard = SummaryWriter(str(self._folder), purge_step=step)
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be written ({error.strerror})") from None
        failed = True
        try:
            self._wandb = self._start_wandb()
            yield
            failed = False
        finally:
            self._tensorboard.close()
            self._tensorboard = None
            if self._wandb:
                self._wandb.finish(failed)
                self._wandb = None

    def _start_wandb(self) -> WandbRun | None:
        if self._config is None:
            return None
        from sslsv.trainer import wandb_run

        return wandb_run.start(self._config, self._run_dir, self._settings)

    def log_step(self, step: int, values: dict[str, float]) -> None:
        named = {f"step/{name}": value for name, value in values.items()}
        self._add_scalars(step, named)
        if self._wandb:
            self._wandb.log(named | {"step": step}, "step")

    def log_epoch(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Add what ``epoch`` (from 1) gave to training.json, TensorBoard and wandb."""
        if not self._tensorboard:
            return
        write_json(self.path, read_json(self.path) | {str(epoch): metrics})
        self._add_scalars(step, metrics)
        self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(metrics | {"epoch": epoch, "step": step}, "epoch")

    def log_timings(self, epoch: int, timings: dict[str, float]) -> None:
        """Add how long ``epoch`` (from 1) took, and peak memory so far, to timings.json.

        They are kept apart from training.json, which is the same each time a run is repeated.
        """
        if not self._tensorboard:
            return
        found = timings | peak_memory()
        write_json(self.timings_path, read_json(self.timings_path) | {str(epoch): found})
        if self._wandb:
            named = {f"time/{name}": value for name, value in found.items()}
            self._wandb.log(named | {"epoch": epoch}, "epoch")

    def _add_scalars(self, step: int, values: dict[str, float]) -> None:
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)


def _up_to(epoch: int, path: Path) -> dict[str, Any]:
    """What ``path`` holds of the first ``epoch`` epochs."""
    try:
        return {key: value for key, value in read_json(path).items() if int(key) <= epoch}
    except ValueError:
        raise UserError(f"{path}: its keys are not numbers of epochs; move it away") from None
