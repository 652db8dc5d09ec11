"""From a configuration to objects that run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslsv import distributed
from sslsv.config import Config, save_resolved, to_dict
from sslsv.datasets.loader import Loader
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.preflight import preflight
from sslsv.datasets.samplers import make_batches, rows_in_use
from sslsv.datasets.views import SpeechDataset
from sslsv.encoders.base import Encoder
from sslsv.errors import ConfigError
from sslsv.evaluations import results as report
from sslsv.evaluations.base import Embed, Result, Task, TaskConfig
from sslsv.evaluations.baselines import mfcc_statistics
from sslsv.evaluations.cache import cached
from sslsv.evaluations.classification import (
    Classification,
    ClassificationConfig,
    refuse_missing_head,
    saved_labels,
)
from sslsv.evaluations.split import hold_out, split_of
from sslsv.evaluations.stress import Stress, Stressable, prepare, run_under_all
from sslsv.evaluations.trials import Trials
from sslsv.evaluations.verification import Verification
from sslsv.files import read_json
from sslsv.methods.base import Method
from sslsv.methods.ssps import SSPS
from sslsv.methods.supervised import SupervisedConfig
from sslsv.registry import ENCODERS, EVALUATIONS, METHODS
from sslsv.trainer import checkpoint
from sslsv.trainer.tracking import say
from sslsv.trainer.trainer import Trainer


def build_method(config: Config) -> Method:
    """The untrained method that ``config`` describes; the same weights for the same seed."""
    torch.manual_seed(config.seed)
    encoder = ENCODERS.get(config.encoder.type).cls(config.encoder)
    method = METHODS.get(config.method.type).cls(config.method, encoder)
    if config.encoder.compile:
        for module in method.modules():  # a momentum method has two
            if isinstance(module, Encoder):
                module.compile()
    return method


def build_trainer(config: Config) -> Trainer:
    """Everything that a training needs; lists and audio headers are checked on the way."""
    assert config.run_dir is not None
    _set_determinism(config)
    dataset = config.dataset
    ssps = config.method.ssps
    manifest = read_manifest(
        dataset.train,
        dataset.base_path,
        dataset.label_key,
        dataset.max_samples,
        ssps.metric_columns if ssps else (),
    )
    preflight(manifest, dataset)
    held_out = None
    if split := split_of(config.evaluation.validation):
        manifest, held_out = hold_out(manifest, split, config.seed)
        say(
            f"{split.speakers} speakers are held out for validation; {len(manifest):,} utterances "
            f"of {len(manifest.label_names):,} others are left to train on"
        )
    config.method.check_labels(len(manifest.label_names))
    labels = manifest.label_names if isinstance(config.method, SupervisedConfig) else None
    tasks = _build_tasks(config, config.evaluation.validation, held_out, manifest)
    _check_tracked_classifier(config, tasks)
    for task in _of_head(tasks):
        task.set_labels(manifest.label_names)
    sampler = make_batches(
        dataset.sampler,
        manifest.labels,
        config.trainer.batch_size,
        config.seed,
        distributed.rank(),
        distributed.world_size(),
    )
    device = distributed.default_device()
    speech = SpeechDataset(manifest, dataset, config.seed, augment_later=device.type == "cuda")
    method = build_method(config)
    method.on_data(len(manifest))
    positives = None
    if ssps:
        shapes = positive_shapes(config, method.to(device))
        dim = config.encoder.encoder_dim
        positives = SSPS(ssps, len(manifest), dim, shapes, manifest.columns)

    def validate() -> dict[str, float]:
        found = _run_tasks(tasks, method.eval().embed, device, method)
        return {f"val/{name}": value for name, value in found.metrics.items()}

    return Trainer(
        config.trainer,
        method,
        Loader(speech, sampler, dataset.num_workers, dataset.pin_memory),
        sampler,
        config.run_dir,
        to_dict(config) | ({checkpoint.LABELS: labels} if labels else {}),
        device,
        validate if tasks else None,
        manifest.file,
        positives,
    )


def positive_shapes(config: Config, method: Method) -> dict[str, torch.Size]:
    """Of a row of each output that is a positive: seen on two crops of silence, on the method's
    device, where its processes can talk."""
    device = next(method.parameters()).device
    views = config.dataset.views()
    if config.dataset.ssps:
        views.pop()  # the reference, which the method does not see
    method.eval()
    with torch.no_grad():
        outputs = method([torch.zeros(2, view.samples, device=device) for view in views])
    return {name: outputs[name].shape[1:] for name in method.positives}


def train(config: Config) -> None:
    """Train, or go on training, in ``config.run_dir``."""
    trainer = build_trainer(config)
    trainer.resume()  # before anything is written: it may refuse
    if distributed.is_main():
        save_resolved(config)
    say(_summary(config, trainer))
    if name := _chosen_on_a_test_list(config):
        say(
            f"warning: the best model is chosen on {name}, which is also tested: its test result "
            "will be too good (docs/training.md, Choosing a model)"
        )
    trainer.fit()


def evaluate(
    config: Config, suffix: str = "latest", baselines: bool = False, plots: bool = False
) -> dict[str, dict[str, float]]:
    """Run ``evaluation.test`` on a checkpoint; returns metrics of each system by name.

    ``baselines`` adds the same encoder untrained, and MFCC statistics. Each system is also measured
    under ``evaluation.conditions``. Results are printed and merged into ``evaluation.json``, scores
    go to ``scores/``, pictures to ``plots/``, and embeddings are kept in ``cache/``.
    """
    assert config.run_dir is not None
    run_dir = config.run_dir
    if not config.evaluation.test:
        raise ConfigError("evaluation.test: is empty, so there is nothing to evaluate; add a task")
    tasks = _build_tasks(config, config.evaluation.test)
    stresses = prepare(config.evaluation, tasks, config.dataset.base_path, config.dataset.resample)
    trials = [t for task in tasks if isinstance(task, Verification) for t in task.lists.values()]
    lists = report.Lists(trials, config.evaluation, config.dataset.base_path)
    for task in tasks:
        if isinstance(task, Verification):
            task.speakers = lists.known
    earlier = read_json(run_dir / "evaluation.json")
    device = distributed.default_device()
    path = checkpoint.checkpoint_path(run_dir, suffix)
    state = checkpoint.load(path, device)
    method = build_method(config).to(device)
    remarks = checkpoint.load_to_embed(method, state, path)
    for task in _of_head(tasks):
        refuse_missing_head(method, state, path)
        task.set_labels(saved_labels(state) or _listed_labels(config, path))

    systems: dict[str, Callable[[], Embed]] = {"trained": lambda: cached(method.eval(), config)}
    if baselines:
        systems["untrained"] = lambda: cached(build_method(config).to(device).eval(), config)
        systems["mfcc"] = lambda: mfcc_statistics
    results = {}
    for name, embedder in systems.items():
        say(f"Evaluating {'; '.join([str(path), *remarks]) if name == 'trained' else name}")
        head = method if name == "trained" else None
        results[name] = _run_tasks(tasks, embedder(), device, head, stresses)
    if distributed.is_main():
        bars = {name: lists.bars(result) for name, result in results.items()}
        about = {"checkpoint": path.name, "epoch": state.get("epoch")}
        report.save(run_dir, results, bars, lists, about, earlier)
        say(report.summary(results, bars, lists))
        if plots:
            report.plot(run_dir, results)
    return {name: result.metrics for name, result in results.items()}


def check_tests(config: Config, labels: list[str]) -> None:
    """Refuse what ``evaluate`` would refuse of ``evaluation.test`` after a training; ``labels``
    are those that a trained head would know."""
    for task in _of_head(_build_tasks(config, config.evaluation.test)):
        task.set_labels(labels)


def _chosen_on_a_test_list(config: Config) -> str | None:
    """The trials list of ``trainer.tracked_metric`` if it is among those of the test."""
    kind, _, rest = config.trainer.tracked_metric.partition("/")
    name = rest.partition("/")[2].rpartition("/")[0]
    lists = {x for task in config.evaluation.test for x in getattr(task, "trials", [])}
    return name if kind == "val" and config.evaluation.validation and name in lists else None


def _build_tasks(
    config: Config,
    tasks: list[TaskConfig],
    held_out: Trials | None = None,
    manifest: Manifest | None = None,
) -> list[Task]:
    """``held_out`` is for a task with a section ``split``; ``manifest``, for those that need what
    was trained on, is the training list without them (None: it is read)."""
    built = []
    for task in tasks:
        more: dict[str, Any] = {}
        if split_of([task]):
            more["held_out"] = held_out
        if task.needs_train:
            more["train"] = _trained_on(config, manifest)
        if isinstance(task, ClassificationConfig):
            more["has_head"] = isinstance(config.method, SupervisedConfig)
        built.append(EVALUATIONS.get(task.type).cls(task, config.dataset, **more))
    return built


def _trained_on(config: Config, manifest: Manifest | None) -> Manifest:
    """The rows that a training uses: without held-out speakers, and what the sampler leaves."""
    dataset = config.dataset
    if manifest is None:
        manifest = _training_list(config)
    used = np.zeros(len(manifest), dtype=bool)
    used[rows_in_use(dataset.sampler, manifest.labels, config.seed)] = True
    return manifest if used.all() else manifest.select(used)


def _training_list(config: Config) -> Manifest:
    """Without held-out speakers."""
    dataset = config.dataset
    manifest = read_manifest(
        dataset.train, dataset.base_path, dataset.label_key, dataset.max_samples
    )
    if split := split_of(config.evaluation.validation):
        manifest, _ = hold_out(manifest, split, config.seed)
    return manifest


def _of_head(tasks: list[Task]) -> list[Classification]:
    """Those that need what the outputs of a trained head stand for."""
    return [task for task in tasks if isinstance(task, Classification) and task.by_head]


def _listed_labels(config: Config, source: Path) -> list[str]:
    """The labels of the training list, for a checkpoint ``source`` that holds none."""
    manifest = _training_list(config)
    config.method.check_labels(len(manifest.label_names))
    say(
        f"{source}: does not say which labels it was trained on; taken from {manifest.path}, in "
        "order of first appearance"
    )
    return manifest.label_names


def _check_tracked_classifier(config: Config, tasks: list[Task]) -> None:
    """Refuse a tracked metric of a classifier that the method leaves out."""
    tracked = config.trainer.tracked_metric
    for task in tasks:
        if isinstance(task, Classification):
            reported = [f"val/{name}" for name in task.config.names_of(task.classifiers)]
            possible = [f"val/{name}" for name in task.config.metric_names()]
            if tracked in possible and tracked not in reported:
                raise ConfigError(
                    f"trainer.tracked_metric: '{tracked}' is not among what this method is "
                    f"validated by: {', '.join(reported)}; list it in classifiers, or choose one "
                    "of these"
                )


def _run_tasks(
    tasks: list[Task],
    embed: Embed,
    device: torch.device,
    method: Method | None = None,
    stresses: Sequence[Stress] = (),
) -> Result:
    """``method``: that of ``embed``, where it is trained."""
    found = Result()
    for task in tasks:
        result = task.run(embed, device, method)
        found.metrics |= result.metrics
        found.scores |= {f"{task.config.type}/{k}": v for k, v in result.scores.items()}
        found.measures |= {f"{task.config.type}/{k}": v for k, v in result.measures.items()}
        found.predictions |= {f"{task.config.type}/{k}": v for k, v in result.predictions.items()}
        found.backends |= {f"{task.config.type}/{k}": v for k, v in result.backends.items()}
        found.maps |= {f"{task.config.type}/{k}": v for k, v in result.maps.items()}
        if isinstance(task, Stressable):
            kind = task.config.type
            metrics, scores = run_under_all(task, kind, stresses, result, embed, device)
            found.metrics |= metrics
            found.scores |= scores
    return found


def _set_determinism(config: Config) -> None:
    if config.reproducibility:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = not config.reproducibility


def _summary(config: Config, trainer: Trainer) -> str:
    millions = sum(p.numel() for p in trainer.parameters) / 1e6
    return (
        f"{config.method.type} with {config.encoder.type}, {millions:.2f} M parameters, on "
        f"{len(trainer.loader) * config.trainer.batch_size} utterances an epoch, "
        f"{trainer.device}, {distributed.world_size()} process(es) -> {config.run_dir}"
    )
