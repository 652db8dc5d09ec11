"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslsv import distributed
from sslsv.datasets.loader import Loader
from sslsv.datasets.samplers import Batches
from sslsv.datasets.views import Batch
from sslsv.errors import CheckpointError, listing
from sslsv.methods.base import Method, Outputs, Progress
from sslsv.methods.base import Metrics as StepMetrics
from sslsv.methods.ssps import SSPS, reference_embeddings
from sslsv.trainer import checkpoint, reference
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.guard import CHECK_EVERY, FiniteGuard, NonFiniteLoss
from sslsv.trainer.schedules import learning_rate
from sslsv.trainer.signals import collapse, embedding_signals
from sslsv.trainer.skipped import SkippedFiles
from sslsv.trainer.tracking import Tracker, progress_bar, say

Metrics = dict[str, float]


def _batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


# Keys that a resumed run may change: they alter where or how fast it runs, or how long.
_FREE_KEYS = {f"dataset.{k}" for k in ("num_workers", "pin_memory", "base_path", "on_error")}
_FIXED_SECTIONS = ("encoder.", "method.", "dataset.", "seed")
_FIXED_KEYS = {"trainer.optimizer", "trainer.batch_size"}


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
        self.optimizer = self._make_optimizer()
        self.guard = FiniteGuard(device)
        self.check_every = 1 if device.type == "cpu" else CHECK_EVERY  # there it costs nothing
        self.tracker = Tracker(run_dir)
        self.skipped = SkippedFiles(run_dir)
        self.step = 0  # optimiser steps done
        self.epoch = 0  # epochs done
        self.best_metric: float | None = None
        self.stale_epochs = 0  # epochs since best_metric
        self.steps_per_epoch = len(loader)

    # ------------------------------------------------------------------------ the run

    def fit(self) -> None:
        """Train up to the last epoch."""
        last = min(self.config.epochs, self.config.stop_at_epoch or self.config.epochs)
        if self.epoch >= last:
            say(
                f"{self.run_dir}: already trained for {self.epoch} of {last} epochs, nothing to do "
                "(raise trainer.epochs, or choose another run_dir to start anew)"
            )
            return
        if self._out_of_patience():
            return
        with self.tracker.running(self.epoch, self.step):
            self.method.progress = self.progress
            self.method.on_train_start()
            while self.epoch < last:
                metrics = self.train_epoch()
                found = self.validate() if self.validate else {}
                improved = self._update_best(metrics | found)
                if found:
                    text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                    say(f"  {text}" + (" (best so far)" if improved else ""))
                self.tracker.log_epoch(self.epoch, self.step, metrics | found)
                self._save(improved)
                if self._out_of_patience():
                    break

    def train_epoch(self) -> Metrics:
        """One pass over the loader; returns the mean of each metric over steps and processes."""
        self.sampler.set_epoch(self.epoch)
        self.method.train()
        self.method.progress = self.progress
        self._observe()
        self.method.on_epoch_start()
        found = self.ssps.on_epoch_start(self.epoch, self.progress.seed) if self.ssps else {}
        sums: dict[str, Tensor | float] = {}
        counts: Counter[str] = Counter()  # of steps that gave a metric
        started, waited, loss = time.perf_counter(), 0.0, math.nan
        bar = progress_bar(self.steps_per_epoch, f"Epoch {self.epoch + 1}/{self.config.epochs}")
        fetched = time.perf_counter()
        for done, batch in enumerate(self.loader, start=1):
            waited += time.perf_counter() - fetched
            self.skipped.add(batch)
            for name, value in self.train_step(batch).items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] += 1
            if self.step % self.check_every == 0:
                self._stop_if_not_finite()
                loss = float(sums["train/loss"]) / done
                bar.set_postfix_str(self._status(loss, done, started, waited), refresh=False)
            if self.step % CHECK_EVERY == 0:
                self.tracker.log_step(self.step, {"loss": loss, "lr": self.learning_rate})
            bar.update()
            fetched = time.perf_counter()
        bar.close()
        self._stop_if_not_finite()
        self._synchronise_statistics()
        self.epoch += 1
        metrics = {
            name: float(distributed.reduce_mean(self._as_double(total) / counts[name]))
            for name, total in sums.items()
        }
        status = self._status(metrics["train/loss"], self.steps_per_epoch, started, waited)
        say(f"Epoch {self.epoch}/{self.config.epochs}: {status}")
        self.skipped.report(self.name_row)
        signals = self._signals(batch)
        if warning := collapse(signals):
            say(f"  warning: {warning}")
        return metrics | found | signals | {"train/lr": self.learning_rate}

    def _observe(self) -> None:
        """Where memories are empty that the epoch needs: a pass over its batches that trains
        nothing."""
        method, ssps = self.method.wants_pass(), self.ssps and self.ssps.wants_pass(self.epoch)
        if not method and not ssps:
            return
        with progress_bar(self.steps_per_epoch, "Filling memories") as bar:
            for batch in self.loader:
                batch = batch.to(self.device).augmented()
                with self._autocast():
                    if method:
                        self.method.observe(batch)
                    if ssps:
                        self._observe_positives(batch)
                bar.update()

    @torch.no_grad()
    def _observe_positives(self, batch: Batch) -> None:
        assert self.ssps
        *views, reference_view = batch.views
        references = reference_embeddings(self.method.embedder, reference_view)
        self.method.eval()
        outputs = self.method(views)
        self.method.train()
        self.ssps.keep(outputs, batch.rows.to(self.device), references, self.guard.frozen)

    @torch.no_grad()
    def _signals(self, batch: Batch) -> Metrics:
        """How spread out the embeddings of a batch are, over all processes."""
        views = batch.to(self.device).augmented().views[:2]
        self.method.eval()
        embeddings = [distributed.gather(self.method.embed(view)) for view in views]
        if len(embeddings[0]) < 2:
            return {}
        return {name: float(value) for name, value in embedding_signals(*embeddings).items()}

    def _as_double(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)

    def train_step(self, batch: Batch) -> StepMetrics:
        """Forward, backward, update; nothing in it waits for the device."""
        rows, batch = batch.rows, batch.to(self.device).augmented()
        reference_view = batch.views.pop() if self.ssps else None
        self._set_learning_rate()
        self.method.progress = self.progress
        with self._autocast():
            outputs = self.network(batch.views)
        if self.config.mixed_precision:
            outputs = {name: x.float() for name, x in outputs.items()}
        compared, found = self._with_pseudo_positives(outputs, rows, reference_view)
        loss, metrics = self.method.loss(compared, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.guard.watch(loss, self.parameters, self.step, rows)
        self.method.on_gradients()
        self.optimizer.found_inf = self.guard.frozen  # type: ignore[attr-defined]
        self.optimizer.step()
        self.step += 1
        detached = {name: x.detach() for name, x in outputs.items()}
        self.method.on_step_end(detached, batch, self.guard.frozen)
        return {**metrics, **found}

    def _with_pseudo_positives(
        self, outputs: Outputs, rows: Tensor, reference_view: Tensor | None
    ) -> tuple[Outputs, StepMetrics]:
        """What the loss is to compare, and metrics of it; the batch is remembered for others."""
        if reference_view is None or not self.ssps or not self.ssps.watching_at(self.epoch):
            return outputs, {}
        with self._autocast():
            references = reference_embeddings(self.method.embedder, reference_view)
        rows = rows.to(self.device, non_blocking=True)
        compared: Outputs = outputs
        found: StepMetrics = {}
        if self.ssps.sampling_at(self.epoch):
            compared, found = self.ssps.replace(
                outputs, rows, references, self.step, self.progress.seed
            )
        self.ssps.keep(outputs, rows, references, self.guard.frozen)
        return compared, found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, self.config.mixed_precision)

    # ------------------------------------------------------------------------ its parts

    @property
    def progress(self) -> Progress:
        steps = self.steps_per_epoch * self.config.epochs
        seed = self.settings.get("seed", 0)
        return Progress(self.step, steps, self.epoch, self.config.epochs, seed)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

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
            c.learning_rate,
            c.learning_rate_min,
            c.learning_rate_warmup,
        )

    def _set_learning_rate(self) -> None:
        value = self._learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            if not group.get("fixed_lr"):
                group["lr"] = value

    def _wrap(self, method: Method) -> nn.Module:
        if distributed.world_size() == 1:
            return method
        if self.config.ddp_sync_batchnorm and self.device.type == "cuda":
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        elif self.config.ddp_sync_batchnorm and any(_batch_norms(method)):
            say(
                "warning: trainer.ddp_sync_batchnorm needs GPUs; here batch norm sees the "
                f"{self.config.batch_size // distributed.world_size()} rows of each process"
            )
        # Statistics of batch norm are made equal once an epoch, in _synchronise_statistics; queues
        # and the like are equal anyway, or are meant to differ.
        return DistributedDataParallel(method, broadcast_buffers=False)

    def _synchronise_statistics(self) -> None:
        """Running statistics of batch norm become those of the main process, which saves them."""
        for module in _batch_norms(self.method):
            for buffer in module.buffers():
                distributed.broadcast_(buffer)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        groups = self.method.param_groups()
        if c.optimizer == "sgd":
            return torch.optim.SGD(
                groups, c.learning_rate, momentum=0.9, weight_decay=c.weight_decay, fused=True
            )
        kind = torch.optim.Adam if c.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, c.learning_rate, weight_decay=c.weight_decay, fused=True)

    def _status(self, loss: float, steps: int, started: float, waited: float) -> str:
        seconds = time.perf_counter() - started
        speed = steps * self.config.batch_size / seconds
        text = f"loss {loss:.4f}, lr {self.learning_rate:.2e}, {speed:.0f} utt/s"
        return f"{text}, data-wait {100 * waited / seconds:.0f} %"

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
        if self.stale_epochs < self.config.patience:
            return False
        say(
            f"{self.run_dir}: stopped early, {self.config.tracked_metric} did not improve for "
            f"{self.stale_epochs} epochs (trainer.patience)"
        )
        return True

    # ------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best_metric": self.best_metric,
            "stale_epochs": self.stale_epochs,
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "memories": self.memories,
            "config": json.dumps(self.settings),
        }

    @property
    def memories(self) -> dict[str, Tensor]:
        """Of the method and of SSPS, by name."""
        own = self.ssps.memories() if self.ssps else {}
        return self.method.memories() | {f"ssps.{name}": x for name, x in own.items()}

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        checkpoint.load_weights(self.method, state, source)
        try:
            self._load_optimizer(state["optimizer"])
            self.epoch = state["epoch"]
            self.step = state["step"]
            self.best_metric = state["best_metric"]
            self.stale_epochs = state["stale_epochs"]
            torch.set_rng_state(state["rng"].cpu())
            checkpoint.load_memories(self.memories, state.get("memories", {}), source)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{source}: holds weights but not the state of a training of this kind ({error}); "
                "give it as trainer.init_weights to start from its weights"
            ) from None

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Moments from ``state``; weight decay and the like from this configuration."""
        groups = self.optimizer.param_groups
        if any(("betas" in saved) != ("betas" in groups[0]) for saved in state["param_groups"]):
            raise ValueError("it is of another optimizer")
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.optimizer.load_state_dict(state)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def resume(self) -> None:
        """Go on from this run's latest checkpoint, else start as the configuration says."""
        latest = checkpoint.checkpoint_path(self.run_dir, "latest")
        if latest.exists():
            state = checkpoint.load(latest, self.device)
            if reference.made(state):
                self._go_on_from(state, latest)
                return
            self._refuse_changed_settings(json.loads(state["config"]), latest)
            self.load_state_dict(state, latest)
            say(f"{self.run_dir}: going on after epoch {self.epoch} of {self.config.epochs}")
        elif self.config.last_checkpoint:
            path = self.config.last_checkpoint
            self._go_on_from(checkpoint.load(path, self.device), path)
        elif self.config.init_weights:
            path = self.config.init_weights
            remarks = checkpoint.load_encoder(self.method, checkpoint.load(path, self.device), path)
            say("; ".join([f"{self.run_dir}: weights from {path}", *remarks]))

    def _go_on_from(self, state: dict[str, Any], source: Path) -> None:
        """Go on with the epoch after ``state``, of another run or of the reference system."""
        remarks: list[str] = []
        if reference.made(state):
            remarks = self._load_reference(state, source)
        else:
            self.load_state_dict(state, source)
        # Another run's steps and best value need not be comparable with this one's.
        self.step = self.epoch * self.steps_per_epoch
        self.best_metric, self.stale_epochs = None, 0
        where = f"{self.run_dir}: going on from {source} after epoch {self.epoch}"
        say("; ".join([where, *remarks]))

    def _load_reference(self, state: dict[str, Any], source: Path) -> list[str]:
        """Epoch, weights and, where it fits, the optimiser's state; returns remarks."""
        if "epoch" not in state:
            raise CheckpointError(
                f"{source}: holds weights but not the epoch that they are of; give it as "
                "trainer.init_weights to start from its weights"
            )
        remarks = checkpoint.load_encoder(self.method, state, source)
        self.epoch = state["epoch"]
        moments = reference.optimizer_state(state, self.method, self.optimizer)
        if moments is None:
            return [*remarks, "its optimizer's state does not fit this one, which starts anew"]
        self._load_optimizer(moments)
        return [*remarks, "with its optimizer's state"]

    def _refuse_changed_settings(self, saved: dict[str, Any], source: Path) -> None:
        from sslsv.config import differences

        changed = {
            key: change
            for key, change in (differences(saved, self.settings) if saved else {}).items()
            if key not in _FREE_KEYS and (key.startswith(_FIXED_SECTIONS) or key in _FIXED_KEYS)
        }
        if changed:
            text = ", ".join(f"{key} {change}" for key, change in changed.items())
            raise CheckpointError(
                f"{source}: was trained with other settings ({text}); undo the change, or give "
                "another run_dir to start anew"
            )

    def _save(self, improved: bool) -> None:
        if not distributed.is_main():
            return
        state = self.state_dict()
        weights = {key: state[key] for key in ("epoch", "best_metric", "model", "config")}
        for suffix, content in [
            ("latest", state),
            (f"epoch-{self.epoch}", weights),
            *([("best", weights)] if improved else []),
        ]:
            checkpoint.save(checkpoint.checkpoint_path(self.run_dir, suffix), content)
