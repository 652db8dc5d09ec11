"""From a configuration to objects that run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sslsv import distributed
from sslsv.config import Config, save_resolved, to_dict
from sslsv.datasets.loader import Loader
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.preflight import preflight
from sslsv.datasets.samplers import make_batches
from sslsv.datasets.views import SpeechDataset
from sslsv.encoders.base import Encoder
from sslsv.errors import ConfigError
from sslsv.evaluations.base import Embed, Result, Task, TaskConfig
from sslsv.evaluations.baselines import mfcc_statistics
from sslsv.evaluations.split import hold_out, split_of
from sslsv.evaluations.trials import Trials, write_scores
from sslsv.files import read_json, write_json
from sslsv.methods.base import Method
from sslsv.methods.ssps import SSPS
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
    tasks = _build_tasks(config, config.evaluation.validation, held_out)
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

    def validate() -> dict[str, float]:
        found = _run_tasks(tasks, method.eval().embed, device)
        return {f"val/{name}": value for name, value in found.metrics.items()}

    return Trainer(
        config.trainer,
        method,
        Loader(speech, sampler, dataset.num_workers, dataset.pin_memory),
        sampler,
        config.run_dir,
        to_dict(config),
        device,
        validate if tasks else None,
        manifest.file,
        _build_ssps(config, method, manifest) if ssps else None,
    )


def _build_ssps(config: Config, method: Method, manifest: Manifest) -> SSPS:
    """With buffers for what the method gives as positives, seen on two crops of silence."""
    assert config.method.ssps
    views = [torch.zeros(2, view.samples) for view in config.dataset.views()[:-1]]
    method.eval()
    with torch.no_grad():
        outputs = method(views)
    shapes = {name: outputs[name].shape[1:] for name in method.positives}
    dim = config.encoder.encoder_dim
    return SSPS(config.method.ssps, len(manifest), dim, shapes, manifest.columns)


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

    ``baselines`` adds the same encoder untrained, and MFCC statistics. Results are merged into
    ``evaluation.json``, scores go to ``scores/`` and DET curves to ``plots/``.
    """
    assert config.run_dir is not None
    run_dir = config.run_dir
    if not config.evaluation.test:
        raise ConfigError("evaluation.test: is empty, so there is nothing to evaluate; add a task")
    tasks = _build_tasks(config, config.evaluation.test)
    earlier = read_json(run_dir / "evaluation.json")
    device = distributed.default_device()
    path = checkpoint.checkpoint_path(run_dir, suffix)
    state = checkpoint.load(path, device)
    method = build_method(config).to(device)
    remarks = checkpoint.load_to_embed(method, state, path)

    systems: dict[str, Callable[[], Embed]] = {"trained": lambda: method.eval().embed}
    if baselines:
        systems["untrained"] = lambda: build_method(config).to(device).eval().embed
        systems["mfcc"] = lambda: mfcc_statistics
    results = {}
    for name, embedder in systems.items():
        say(f"Evaluating {'; '.join([str(path), *remarks]) if name == 'trained' else name}")
        results[name] = _run_tasks(tasks, embedder(), device)
    if distributed.is_main():
        about = {"checkpoint": path.name, "epoch": state.get("epoch")}
        _save_results(run_dir, results, earlier | about)
        if plots:
            _plot(run_dir, results)
    return {name: result.metrics for name, result in results.items()}


def _chosen_on_a_test_list(config: Config) -> str | None:
    """The trials list of ``trainer.tracked_metric`` if it is among those of the test."""
    kind, _, rest = config.trainer.tracked_metric.partition("/")
    name = rest.partition("/")[2].rpartition("/")[0]
    lists = {x for task in config.evaluation.test for x in getattr(task, "trials", [])}
    return name if kind == "val" and config.evaluation.validation and name in lists else None


def _build_tasks(
    config: Config, tasks: list[TaskConfig], held_out: Trials | None = None
) -> list[Task]:
    """``held_out`` is for a task with a section ``split``."""
    built = []
    for task in tasks:
        trials = [held_out] if split_of([task]) else []
        built.append(EVALUATIONS.get(task.type).cls(task, config.dataset, *trials))
    return built


def _run_tasks(tasks: list[Task], embed: Embed, device: torch.device) -> Result:
    found = Result()
    for task in tasks:
        result = task.run(embed, device)
        found.metrics |= result.metrics
        found.scores |= {f"{task.config.type}/{k}": v for k, v in result.scores.items()}
    return found


def _save_results(run_dir: Path, results: dict[str, Result], known: dict[str, Any]) -> None:
    """Scores to ``scores/``, and metrics to ``evaluation.json`` beside what is known already."""
    flat = {
        f"{'test' if system == 'trained' else system}/{name}": value
        for system, result in results.items()
        for name, value in result.metrics.items()
    }
    write_json(run_dir / "evaluation.json", known | flat)
    for system, result in results.items():
        for name, scored in result.scores.items():
            file = f"{system}_{_file_name(name)}.txt"
            write_scores(run_dir / "scores" / file, scored.trials, scored.scores)


def _plot(run_dir: Path, results: dict[str, Result]) -> None:
    from sslsv.evaluations import plots

    for name in results["trained"].scores:
        found = {system: result.scores[name] for system, result in results.items()}
        curves = {system: (s.scores, s.trials.labels) for system, s in found.items()}
        path = run_dir / "plots" / f"det_{_file_name(name)}.png"
        plots.det_curve(curves, path, title=name.partition("/")[2])
        say(f"DET curves: {path}")


def _file_name(name: str) -> str:
    return name.replace("/", "_")


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
