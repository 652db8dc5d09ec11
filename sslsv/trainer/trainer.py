"""The training loop."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sslsv import distributed
from sslsv.datasets.loader import Loader
from sslsv.datasets.samplers import Batches
from sslsv.datasets.views import Batch
from sslsv.errors import listing
from sslsv.interrupt import StopRequest, marker
from sslsv.methods.base import Method, Outputs, Progress
from sslsv.methods.base import Metrics as StepMetrics
from sslsv.methods.ssps import SSPS, reference_embeddings
from sslsv.trainer import checkpoint, environment, resume, saving
from sslsv.trainer.averaging import RunningAverage
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.guard import CHECK_EVERY, FiniteGuard, NonFiniteLoss
from sslsv.trainer.means import EpochMeans
from sslsv.trainer.memories import fill_memories
from sslsv.trainer.optimisers import clip, make_optimizer, set_hyperparameters
from sslsv.trainer.precision import TYPES, choose
from sslsv.trainer.prefetch import ahead
from sslsv.trainer.schedules import learning_rate, weight_decay
from sslsv.trainer.signals import collapse, embedding_signals
from sslsv.trainer.skipped import SkippedFiles
from sslsv.trainer.tracking import (
    Clock,
    Tracker,
    peak_memory_gb,
    progress_bar,
    say,
    status_line,
    time_left,
)

Metrics = dict[str, float]
MOST_OVERFLOWS = 40  # in a row: the scale has come down to 2^-24 by then


def _batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


class Trainer:
    """Trains ``method`` on ``loader`` and keeps the run in ``run_dir``; ``ssps`` changes positives.

    ``settings`` is the resolved configuration, kept in checkpoints. ``validate`` returns metrics
    of the method as it stands; ``name_row`` turns a row of the training list into a file name.
    """

    def __init__(
        self,
        config: TrainerConfig,
        method: Method,
        loader: Loader,
        sampler: Batches,
        run_dir: Path,
        settings: dict[str, Any],
        device: torch.device,
        validate: Callable[[], Metrics] | None = None,
        name_row: Callable[[int], str] = str,
        ssps: SSPS | None = None,
    ):
        self.config = config
        self.loader, self.sampler = loader, sampler
        self.run_dir, self.settings = run_dir, settings
        self.device = device
        self.validate, self.name_row = validate, name_row
        self.method = method.to(device)
        self.ssps = ssps and ssps.to(device)
        self.network = self._wrap(self.method)
        self.optimizer = make_optimizer(config, self.method)
        self.precision = choose(config.mixed_precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.overflows = torch.zeros((), device=device)  # steps in a row, in float16
        self.guard = FiniteGuard(device)
        self.check_every = 1 if device.type == "cpu" else CHECK_EVERY  # there it costs nothing
        self.tracker = Tracker(run_dir, config, settings)
        self.skipped = SkippedFiles(run_dir)
        self.stop_request = StopRequest()
        self.step = 0  # optimiser steps done
        self.epoch = 0  # epochs done
        self.means = EpochMeans()  # of the epoch at hand
        self.average = self.new_average()
        self.best_metric: float | None = None
        self.stale_epochs = 0  # epochs since best_metric
        self.waiting: dict[str, float] = {}  # for data, in the epoch at hand
        self.steps_per_epoch = len(loader)
        self.saved = time.monotonic()  # when a checkpoint was written
        self._started, self._first_step = time.perf_counter(), 0  # of this process

    # ------------------------------------------------------------------------ the run

    def resume(self) -> None:
        """Go on from this run's latest checkpoint, else start as the configuration says."""
        resume.resume(self)

    def fit(self) -> None:
        """Train up to the last epoch. Raises Interrupted where a signal has ended it early."""
        last = self.last_epoch
        if self.epoch >= last:
            say(
                f"{self.run_dir}: already trained for {self.epoch} of {last} epochs, nothing to do "
                "(raise trainer.epochs, or choose another run_dir to start anew)"
            )
            return
        if self._out_of_patience():
            return
        if distributed.is_main():
            checkpoint.clean(self.run_dir)
            marker(self.run_dir).unlink(missing_ok=True)
        environment.record(self.run_dir, self.settings, sys.argv)
        self._started, self._first_step = time.perf_counter(), self.step
        if self.config.mixed_precision and self.precision == "fp32":
            say(f"trainer.mixed_precision: {self.device} has no bfloat16, so float32 is used")
        if self.config.accumulation > 1:
            rows = self.config.batch_size // self.config.accumulation
            say(
                f"trainer.accumulation: a loss compares the {rows} utterances of a part with each "
                f"other, not all {self.config.batch_size} of a batch"
            )
        with self.stop_request.listening(), self.tracker.running(self.epoch, self.step):
            self.method.progress = self.progress
            self.method.on_train_start()
            while self.epoch < last:
                clock = Clock()
                metrics = self.train_epoch()
                clock.lap("training")
                found = self.validate() if self.validate else {}
                clock.lap("validation")
                improved = self._update_best(metrics | found)
                if found:
                    text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                    say(f"  {text}" + (" (best so far)" if improved else ""))
                self.tracker.log_epoch(self.epoch, self.step, metrics | found)
                saving.save_epoch(self, improved)
                clock.lap("save")
                self.tracker.log_timings(self.epoch, self.waiting | clock.seconds)
                if self._out_of_patience():
                    break
                if self.epoch < last and saving.stop_requested(self):
                    saving.stop(self)

    def train_epoch(self) -> Metrics:
        """What is left of a pass over the loader; returns the mean of each metric over steps and
        processes."""
        self.sampler.set_epoch(self.epoch, self.means.steps)
        self.method.train()
        self.method.progress = self.progress
        if not self.means.steps:
            fill_memories(self)
            self.method.on_epoch_start()
            if self.ssps:
                self.means.found = self.ssps.on_epoch_start(self.epoch, self.progress.seed)
        started, waited, before = time.perf_counter(), 0.0, self.means.steps
        bar = progress_bar(self.steps_per_epoch, f"Epoch {self.epoch + 1}/{self.config.epochs}")
        bar.update(before)
        fetched = time.perf_counter()
        for batch in ahead(self.loader, self.device):
            waited += time.perf_counter() - fetched
            self.skipped.add(batch)
            self.means.add(self.train_step(batch))
            if self.step % self.check_every == 0:
                self._stop_if_not_finite()
                status = self._status(self.means.own("train/loss"), before, started, waited)
                bar.set_postfix_str(status, refresh=False)
                if self.means.steps < self.steps_per_epoch:
                    saving.save_within_epoch(self)
            if self.step % CHECK_EVERY == 0:
                loss = self.means.own("train/loss")
                self.tracker.log_step(self.step, {"loss": loss, "lr": self.learning_rate})
            bar.update()
            fetched = time.perf_counter()
        bar.close()
        self._stop_if_not_finite()
        for buffer in self.statistics():
            distributed.broadcast_(buffer)
        self.epoch += 1
        metrics = self.means.over_processes(self.device)
        status = self._status(metrics["train/loss"], before, started, waited)
        say(f"Epoch {self.epoch}/{self.config.epochs}: {status}")
        self.skipped.report(self.name_row)
        self.start_epoch_anew()
        signals = self._signals(batch)
        if warning := collapse(signals):
            say(f"  warning: {warning}")
        return metrics | signals | {"train/lr": self.learning_rate}

    def start_epoch_anew(self) -> None:
        """Forget what an epoch has given so far."""
        self.means, self.skipped = EpochMeans(), SkippedFiles(self.run_dir)

    def new_average(self) -> RunningAverage:
        """Of the last ``avg_count`` epochs."""
        last = self.last_epoch
        return RunningAverage((last - self.config.avg_count + 1, last))

    # ------------------------------------------------------------------------ a step

    def train_step(self, batch: Batch) -> StepMetrics:
        """Forward, backward, update; nothing in it waits for the device."""
        batch = batch.to(self.device).augmented()
        self.method.progress = self.progress
        set_hyperparameters(self.optimizer, self._learning_rate_at(self.step), self._weight_decay)
        self.optimizer.zero_grad(set_to_none=True)
        parts = [self._backward(part, i) for i, part in enumerate(self._parts(batch))]
        losses, metrics, outputs = zip(*parts, strict=True)
        self._update(torch.stack(losses).sum(), batch.rows)
        self.step += 1
        joined = _joined(outputs)
        self.method.on_step_end(joined, batch, self.guard.frozen)
        return _mean(metrics)

    def _parts(self, batch: Batch) -> list[Batch]:
        count = self.config.accumulation
        return [batch] if count == 1 else batch.parts(count)

    def _backward(self, batch: Batch, part: int) -> tuple[Tensor, StepMetrics, Outputs]:
        """Gradients of a part of the batch, added to those of the parts before it."""
        count = self.config.accumulation
        views, reference_view = batch.views, None
        if self.ssps:
            *views, reference_view = views
        last = part == count - 1
        if isinstance(self.network, DistributedDataParallel):
            self.network.require_backward_grad_sync = last  # once for all parts
        with self.autocast():
            outputs = self.network(views)
        if self.precision != "fp32":
            outputs = {name: x.float() for name, x in outputs.items()}
        number = self.step * count + part
        compared, found = self._with_pseudo_positives(outputs, batch.rows, reference_view, number)
        loss, metrics = self.method.loss(compared, batch)
        loss = loss / count
        self.scaler.scale(loss).backward()
        detached = {name: x.detach() for name, x in outputs.items()}
        return loss.detach(), {**metrics, **found}, detached

    def _update(self, loss: Tensor, rows: Tensor) -> None:
        """An optimiser step, unless the loss or a gradient is not finite.

        In float16 gradients may overflow because the loss is scaled too much: that costs a step
        and lowers the scale, and is no failure until it has happened many times in a row.
        """
        parameters = self.parameters
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
            states = self.scaler._per_optimizer_states[id(self.optimizer)]
            overflow = next(iter(states["found_inf_per_device"].values()))
            self.overflows = (self.overflows + 1) * overflow
            hopeless = self.overflows > MOST_OVERFLOWS
            self.guard.watch(loss.masked_fill(hopeless, math.nan), [], self.step, rows)
            found_inf = torch.maximum(self.guard.frozen, overflow)
        else:
            self.guard.watch(loss, parameters, self.step, rows)
            found_inf = self.guard.frozen
        self.method.on_gradients()
        clip(parameters, self.config)
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()

    def _with_pseudo_positives(
        self, outputs: Outputs, rows: Tensor, reference_view: Tensor | None, number: int
    ) -> tuple[Outputs, StepMetrics]:
        """What the loss is to compare, and metrics of it; the batch is remembered for others."""
        if reference_view is None or not self.ssps or not self.ssps.watching_at(self.epoch):
            return outputs, {}
        with self.autocast():
            references = reference_embeddings(self.method.embedder, reference_view)
        rows = rows.to(self.device, non_blocking=True)
        compared: Outputs = outputs
        found: StepMetrics = {}
        if self.ssps.sampling_at(self.epoch):
            seed = self.progress.seed
            compared, found = self.ssps.replace(outputs, rows, references, number, seed)
        self.ssps.keep(outputs, rows, references, self.guard.frozen)
        return compared, found

    def autocast(self) -> torch.autocast:
        kind = self.precision
        return torch.autocast(self.device.type, TYPES[kind], enabled=kind != "fp32")

    # ------------------------------------------------------------------------ its parts

    @property
    def last_epoch(self) -> int:
        """With which this run ends."""
        return min(self.config.epochs, self.config.stop_at_epoch or self.config.epochs)

    @property
    def progress(self) -> Progress:
        steps = self.steps_per_epoch * self.config.epochs
        seed = self.settings.get("seed", 0)
        return Progress(self.step, steps, self.epoch, self.config.epochs, seed)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def memories(self) -> dict[str, Tensor]:
        """Of the method and of SSPS, by name."""
        own = self.ssps.memories() if self.ssps else {}
        return self.method.memories() | {f"ssps.{name}": x for name, x in own.items()}

    @property
    def learning_rate(self) -> float:
        """Of the latest step, for groups that follow the schedule."""
        return self._learning_rate_at(max(0, self.step - 1))

    def _learning_rate_at(self, step: int) -> float:
        c = self.config
        return learning_rate(
            c.learning_rate_sched,
            step,
            self.steps_per_epoch,
            c.epochs,
            c.peak_learning_rate,
            c.learning_rate_min,
            c.learning_rate_warmup,
        )

    @property
    def _weight_decay(self) -> float:
        c, steps = self.config, self.steps_per_epoch * self.config.epochs
        return weight_decay(self.step, steps, c.weight_decay, c.weight_decay_end)

    def _wrap(self, method: Method) -> nn.Module:
        if distributed.world_size() == 1:
            several = self.device.type == "cuda" and torch.cuda.device_count() > 1
            return DataParallel(method) if several else method
        if self.config.ddp_sync_batchnorm and self.device.type == "cuda":
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        elif self.config.ddp_sync_batchnorm and any(_batch_norms(method)):
            rows = self.config.batch_size // distributed.world_size() // self.config.accumulation
            say(
                "warning: trainer.ddp_sync_batchnorm needs GPUs; here batch norm sees the "
                f"{rows} rows of each process"
            )
        # Statistics of batch norm are made equal once an epoch; queues and the like are equal
        # anyway, or are meant to differ.
        return DistributedDataParallel(method, broadcast_buffers=False)

    def statistics(self) -> list[Tensor]:
        """Running statistics of batch norm. At the end of an epoch they become those of the main
        process, which saves them."""
        return [buffer for module in _batch_norms(self.method) for buffer in module.buffers()]

    @torch.no_grad()
    def _signals(self, batch: Batch) -> Metrics:
        """How spread out the embeddings of a batch are, over all processes."""
        views = batch.to(self.device).augmented().views[:2]
        self.method.eval()
        embeddings = [distributed.gather(self.method.embed(view)) for view in views]
        if len(embeddings[0]) < 2:
            return {}
        return {name: float(value) for name, value in embedding_signals(*embeddings).items()}

    def _status(self, loss: float, before: int, started: float, waited: float) -> str:
        """``before``: steps of the epoch that an earlier process has done."""
        seconds, now = time.perf_counter() - started, time.perf_counter()
        utterances = (self.means.steps - before) * self.config.batch_size
        left = self.steps_per_epoch * self.last_epoch - self.step
        eta = time_left(now - self._started, self.step - self._first_step, left)
        self.waiting = {"data_wait_seconds": waited, "utterances_per_second": utterances / seconds}
        memory = peak_memory_gb()
        return status_line(loss, self.learning_rate, utterances, seconds, waited, memory, eta)

    def _stop_if_not_finite(self) -> None:
        failure = self.guard.failure()
        if failure is None:
            return
        step, rows = failure
        files = [
            self.name_row(row) for part in distributed.gather_objects(rows.tolist()) for row in part
        ]
        raise NonFiniteLoss(
            f"loss or gradient not finite at step {step} (epoch {step // self.steps_per_epoch + 1})"
            "; no update was made from it and the last checkpoint is kept. Lower "
            "trainer.learning_rate or look at the batch's files: " + listing(files)
        )

    def _update_best(self, metrics: Metrics) -> bool:
        value = metrics.get(self.config.tracked_metric)
        if value is None:  # nothing is validated
            return False
        sign = 1 if self.config.tracked_mode == "min" else -1
        best = math.inf if self.best_metric is None else sign * self.best_metric
        if sign * value < best:  # never true of a NaN
            self.best_metric, self.stale_epochs = value, 0
            return True
        self.stale_epochs += 1
        return False

    def _out_of_patience(self) -> bool:
        """Decided by the main process."""
        if not distributed.broadcast(self.stale_epochs >= self.config.patience):
            return False
        say(
            f"{self.run_dir}: stopped early, {self.config.tracked_metric} did not improve for "
            f"{self.stale_epochs} epochs (trainer.patience)"
        )
        return True


def _joined(outputs: tuple[Outputs, ...]) -> Outputs:
    """Of the whole batch, from those of its parts."""
    if len(outputs) == 1:
        return outputs[0]
    return {name: torch.cat([part[name] for part in outputs]) for name in outputs[0]}


def _mean(metrics: tuple[StepMetrics, ...]) -> StepMetrics:
    if len(metrics) == 1:
        return metrics[0]
    names: Mapping[str, Any] = metrics[0]
    return {name: sum(part[name] for part in metrics) / len(metrics) for name in names}
