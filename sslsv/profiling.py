"""``sslsv profile``: how long each stage of a training step takes, and a trace of a few steps.

The steps are those of ``Trainer.train_step`` on what the real loader gives. On a GPU the host waits
for the device before and after each stage, so that its work counts where it was asked for; that
costs the overlap of stages, and a step takes a little longer than in a training. The steps of the
trace come after the measured ones and do not wait.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.profiler import ProfilerActivity, record_function

from sslsv.config import Config
from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.errors import UserError
from sslsv.experiment import build_trainer
from sslsv.files import atomic_write, write_json
from sslsv.trainer.tracking import peak_memory, say
from sslsv.trainer.trainer import Trainer

STAGES = {
    "data": "waiting for the loader",
    "transfer": "batch to the device",
    "augment": "on a GPU; else the loader does it",
    "front-end": "log-mel features, of teachers too",
    "encoder": "without front-end, of teachers too",
    "head": "the rest of the forward pass",
    "positives": "SSPS",
    "loss": "",
    "backward": "",
    "optimiser": "norm of gradients, clipping, update",
    "bookkeeping": "on_step_end: teachers, queues",
    "other": "",
}
RESULTS = "profile.json"  # beside the trace
_TRACED = 3  # steps in the trace


def profile(config: Config, steps: int = 20, warmup: int = 5, trace: Path | None = None) -> None:
    """Print how long the stages of ``steps`` steps take, after ``warmup`` others.

    The model is new and in its first epoch; it is thrown away afterwards. All that is written is
    ``trace``, where none is given ``profile/trace.json`` in the run's folder, for a browser
    (compressed if its name ends in .gz), and the numbers as ``profile.json`` beside it.
    """
    assert config.run_dir is not None
    trace = trace or config.run_dir / "profile" / "trace.json"
    if steps < 1:
        raise UserError(f"--steps: must be at least 1, got {steps}")
    if warmup < 0:
        raise UserError(f"--warmup: must be 0 or more, got {warmup}")
    if trace.name == RESULTS:
        raise UserError(f"--trace: {RESULTS} is where the numbers go; choose another name")
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"WORLD_SIZE is {processes}, but only one process can be profiled; start it without "
            "torchrun, with trainer.batch_size as large as that of one process"
        )
    trainer = build_trainer(config)
    if isinstance(trainer.network, DataParallel):
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible, but only one can be profiled; set "
            "CUDA_VISIBLE_DEVICES=0"
        )
    measured = measure(trainer, steps, warmup)
    about = _about(config, trainer) | {"warmup": warmup, "steps": steps}
    results = about | measured.summary(config.trainer.batch_size)
    say(_table(results, trainer))
    _save_trace(measured.recording, trace)
    write_json(trace.with_name(RESULTS), results)
    say(f"Trace of {_TRACED} more steps, for ui.perfetto.dev: {trace}")
    say(f"Numbers of each step: {trace.with_name(RESULTS)}")


# ---------------------------------------------------------------------------- measuring


class Stopwatch:
    """Shares out the time between ``start`` and ``stop`` among stages, each without those within
    it; what is in none goes to ``other``. Stages are also spans of a trace, ``sslsv/<stage>``.

    ``wait`` returns once the device has done all it was asked for; ``clock`` gives seconds.
    """

    def __init__(
        self,
        wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.wait, self.clock = wait, clock
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._started = self._last = 0.0

    def start(self) -> None:
        self.wait()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._started = self._last = self.clock()

    def stop(self) -> Step:
        self._lap()
        return Step(self._last - self._started, self.seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._lap()
        self._open.append(name)
        try:
            with record_function(f"sslsv/{name}"):
                yield
        finally:
            self._lap()
            self._open.pop()

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose calls are the stage."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return function(*args, **kwargs)

        return timed

    def _lap(self) -> None:
        self.wait()
        now = self.clock()
        if self.seconds:  # it has been started
            self.seconds[self._open[-1] if self._open else "other"] += now - self._last
        self._last = now


@dataclass(frozen=True)
class Step:
    """Seconds of a step, waiting for its batch included, and of its stages."""

    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What the steps took."""

    steps: list[Step]
    memory: dict[str, float]  # see peak_memory
    recording: torch.profiler.profile  # of steps that came after

    def summary(self, batch_size: int) -> dict[str, Any]:
        """Medians, shares of the total time and all single values."""
        total = sum(step.seconds for step in self.steps)
        stages = {}
        for name in STAGES:
            seconds = [step.stages[name] for step in self.steps]
            stages[name] = {"share_percent": 100 * sum(seconds) / total} | _times(seconds)
        return {
            "stages": stages,
            "step": _times([step.seconds for step in self.steps]),
            "utterances_per_second": batch_size * len(self.steps) / total,
            "data_wait_percent": stages["data"]["share_percent"],
            **self.memory,
        }


def _times(seconds: list[float]) -> dict[str, Any]:
    ms = [1000 * x for x in seconds]
    return {"median_ms": statistics.median(ms), "ms": ms}


def measure(
    trainer: Trainer, steps: int, warmup: int, clock: Callable[[], float] = time.perf_counter
) -> Measured:
    """Train ``trainer`` for some steps, always of its first epoch, and write nothing.

    Batches go on with those of later epochs where an epoch is too short. No memories are filled
    and nothing is clustered beforehand: that takes an epoch, and changes no step's duration.
    """
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(trainer.device)
    wait = functools.partial(torch.cuda.synchronize, trainer.device) if on_gpu else lambda: None
    watch = Stopwatch(wait, clock)
    timed, batches = _timed_batch(watch), endless(trainer)

    def step() -> Step:
        watch.start()
        with record_function("sslsv/step"):
            with watch.stage("data"):
                batch = next(batches)
            trainer.train_step(timed(**vars(batch)))
        return watch.stop()

    with _watched(trainer, watch):
        method, ssps = trainer.method, trainer.ssps
        method.train()
        method.progress = trainer.progress
        method.on_train_start()
        if not method.wants_pass() and not (ssps and ssps.wants_pass(trainer.epoch)):
            method.on_epoch_start()
        for _ in range(warmup):
            step()
        taken = [step() for _ in range(steps)]
        memory = peak_memory()
        watch.wait = lambda: None
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it calls a missing GPU an error
        with torch.profiler.profile(activities=activities, acc_events=True) as recording:
            for _ in range(_TRACED):
                step()
    return Measured(taken, memory, recording)


def endless(trainer: Trainer) -> Iterator[Batch]:
    """Of one epoch after the other; the trainer's steps begin anew with each."""
    epoch = trainer.epoch
    while True:
        trainer.sampler.set_epoch(epoch)
        trainer.step = trainer.epoch * trainer.steps_per_epoch
        yield from trainer.loader
        epoch += 1


def _timed_batch(watch: Stopwatch) -> type[Batch]:
    class Timed(Batch):
        def to(self, device: torch.device) -> Batch:
            with watch.stage("transfer"):
                return super().to(device)

        def augmented(self) -> Batch:
            with watch.stage("augment"):
                return super().augmented()

    return Timed


@contextmanager
def _watched(trainer: Trainer, watch: Stopwatch) -> Iterator[None]:
    """What a step calls is timed as long as the block lasts."""
    method, optimizer = trainer.method, trainer.optimizer
    places: list[tuple[Any, str, str]] = [
        (method, "forward", "head"),
        (method, "loss", "loss"),
        (torch.Tensor, "backward", "backward"),
        (optimizer, "zero_grad", "optimiser"),
        (trainer, "_update", "optimiser"),
        (method, "on_step_end", "bookkeeping"),
    ]
    for encoder in _encoders(method):
        places.append((encoder, _call_of(encoder), "encoder"))
        if not _compiled(encoder):  # else there is but one graph
            places.append((encoder.features_extractor, "forward", "front-end"))
    if trainer.ssps:
        places += [(trainer.ssps, name, "positives") for name in ("replace", "keep")]
    with ExitStack() as stack:
        for owner, name, stage in places:
            timed = watch.around(stage, getattr(owner, name))
            stack.enter_context(_replaced(owner, name, timed))
        yield


def _encoders(method: nn.Module) -> list[Encoder]:
    """Students and teachers, without encoders that are part of another."""
    found = [module for module in method.modules() if isinstance(module, Encoder)]
    inner = {part for encoder in found for part in encoder.modules() if part is not encoder}
    return [encoder for encoder in found if encoder not in inner]


def _compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


def _call_of(module: nn.Module) -> str:
    """Name of what a call of ``module`` runs; a ``forward`` that is timed could not be compiled."""
    return "_compiled_call_impl" if _compiled(module) else "forward"


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` as long as the block lasts."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:  # it was the class's
            delattr(owner, name)
        else:
            setattr(owner, name, before)


# ---------------------------------------------------------------------------- results


def _about(config: Config, trainer: Trainer) -> dict[str, Any]:
    on_gpu = trainer.device.type == "cuda"
    return {
        "method": config.method.type,
        "encoder": config.encoder.type,
        "compiled": config.encoder.compile,
        "device": torch.cuda.get_device_name(trainer.device) if on_gpu else "cpu",
        "precision": trainer.precision,
        "batch_size": config.trainer.batch_size,
        "accumulation": config.trainer.accumulation,
        "num_workers": config.dataset.num_workers,
    }


def _table(results: dict[str, Any], trainer: Trainer) -> str:
    about = dict(STAGES)
    if results["compiled"]:
        about["front-end"] = "part of encoder, which is compiled"
    if trainer.ssps is None:
        del about["positives"]
    lines = [
        f"{results['method']} with {results['encoder']} on {results['device']}, "
        f"{results['precision']}, {results['batch_size']} utterances a step; {results['steps']} "
        f"steps after {results['warmup']} to warm up",
        "",
        f"  {'stage':12s}{'median ms':>12s}{'share':>10s}",
    ]
    rows = {name: results["stages"][name] for name in about}
    rows["step"] = results["step"] | {"share_percent": 100.0}
    for name, row in rows.items():
        share, remark = f"{row['share_percent']:.1f} %", about.get(name, "")
        lines.append(f"  {name:12s}{row['median_ms']:12.2f}{share:>10s}  {remark}".rstrip())
    memory = [
        f"{results[key]:.1f} GB {where}"
        for key, where in (("gpu_memory_gb", "on the GPU"), ("host_memory_gb", "on the host"))
        if key in results
    ]
    lines += [
        "",
        f"  {results['utterances_per_second']:.1f} utterances/s, data-wait "
        f"{results['data_wait_percent']:.1f} %, peak memory {', '.join(memory)}",
    ]
    return "\n".join(lines)


def _save_trace(recording: torch.profiler.profile, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, path.name)  # whose ending decides whether it is compressed
        recording.export_chrome_trace(str(exported))
        with open(exported, "rb") as source, atomic_write(path) as file:
            shutil.copyfileobj(source, file)
