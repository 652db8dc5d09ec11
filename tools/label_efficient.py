"""Train a classifier on fractions of the labelled utterances, several times each.

    python tools/label_efficient.py CONFIG --fractions 0.01 0.1 1.0 --seeds 1 2 3 [key=value ...]

CONFIG is that of a 'supervised' training with tests in evaluation.test. An encoder that was trained
before is given by its checkpoint, and --frozen leaves it as it is:

    python tools/label_efficient.py CONFIG --frozen
        trainer.init_weights=models/simclr/checkpoints/model_avg.pt

Utterances are drawn at random; every label keeps at least one, and the others are shared out in
proportion to what the labels have. A seed draws utterances (first those that a smaller fraction
has), initial weights and the training. With trainer.init_weights the learning rate of CONFIG is
divided by ten, unless trainer.learning_rate=... is given here. All fractions train for the same
number of epochs.

Each training has a folder, <run_dir>_label-efficient-<fraction>[-frozen]/seed-<seed>, and the means
and standard deviations over seeds are printed and written to
<run_dir>_label-efficient[-frozen].json. The same command goes on where it was interrupted: what is
finished is not done again. Several processes (torchrun) share the work.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installing

from sslsv import distributed
from sslsv.config import Config, differences, load_config, to_dict
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.errors import ConfigError, UserError
from sslsv.experiment import check_tests, evaluate, train
from sslsv.files import atomic_write, read_json, write_json
from sslsv.interrupt import Interrupted
from sslsv.methods.supervised import SupervisedConfig
from sslsv.randomness import generator
from sslsv.trainer import checkpoint
from sslsv.trainer.tracking import say

FINISHED = "label_efficient.json"  # in the folder of a training, once it is evaluated
LIST = "train.csv"  # there too: the utterances it has
FREE_KEYS = {f"dataset.{key}" for key in ("num_workers", "pin_memory", "base_path", "train")}
FREE_KEYS |= {"run_dir"}  # of which, as of dataset.train, the folder's place is a part


@dataclass(frozen=True)
class Run:
    """A training on ``rows`` of the list."""

    fraction: float
    seed: int
    config: Config
    rows: np.ndarray

    @property
    def folder(self) -> Path:
        assert self.config.run_dir is not None
        return self.config.run_dir


def study(options: argparse.Namespace) -> None:
    check_options(options)
    config = load_config(options.config, options.overrides)
    check_config(config, options)
    dataset = config.dataset
    manifest = read_manifest(
        dataset.train, dataset.base_path, dataset.label_key, dataset.max_samples
    )
    config.method.check_labels(len(manifest.label_names))
    check_tests(config, manifest.label_names)
    runs = [
        make_run(config, manifest, fraction, seed, options)
        for fraction in options.fractions
        for seed in options.seeds
    ]
    for run in runs:
        check_list(run, manifest)
    known = [finished(run, options.model_suffix) for run in runs]
    results = []
    for number, (run, metrics) in enumerate(zip(runs, known, strict=True), start=1):
        name = f"{run.fraction:g} of the utterances ({len(run.rows):,}), seed {run.seed}"
        say(f"[{number}/{len(runs)}] {name}: {'finished earlier' if metrics else run.folder}")
        results.append(metrics or carry_out(run, manifest, options.model_suffix))
    if distributed.is_main():
        summary = summarise(runs, results)
        path = output_path(config, options.frozen)
        write_json(path, {"model_suffix": options.model_suffix, "fractions": summary})
        print(format_summary(summary))
        print(f"{path}: means, standard deviations and the values of each seed")


# What is checked before any long work ------------------------------------------------------------


def check_options(options: argparse.Namespace) -> None:
    for fraction in options.fractions:
        if not 0 < fraction <= 1:
            raise UserError(f"--fractions {fraction:g}: must be above 0 and at most 1")
    for seed in options.seeds:
        if seed < 0:
            raise UserError(f"--seeds {seed}: must be at least 0")
    for name in ("fractions", "seeds"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise UserError(f"--{name}: one is given twice")


def check_config(config: Config, options: argparse.Namespace) -> None:
    if not isinstance(config.method, SupervisedConfig):
        raise ConfigError(
            f"method.type: '{config.method.type}' learns from no labels; give the configuration of "
            "a 'supervised' training, and an encoder trained by this method as trainer.init_weights"
        )
    if not config.evaluation.test:
        raise ConfigError("evaluation.test: is empty, so nothing would be measured; add a task")
    if config.trainer.last_checkpoint:
        raise ConfigError(
            "trainer.last_checkpoint: would go on with a training of other utterances; give the "
            "checkpoint as trainer.init_weights"
        )
    weights = config.trainer.init_weights
    if options.frozen and not weights:
        raise ConfigError(
            "--frozen: an encoder that is not trained has to be trained before; give its "
            "checkpoint as trainer.init_weights=PATH"
        )
    if weights:
        checkpoint.load(weights)  # or refuse it


def make_run(
    config: Config, manifest: Manifest, fraction: float, seed: int, options: argparse.Namespace
) -> Run:
    """What is to be trained on; refused where that is less than a batch."""
    rows = draw(manifest.labels, fraction, seed)
    batch = config.trainer.batch_size
    if len(rows) < batch:
        raise UserError(
            f"--fractions {fraction:g}: takes {len(rows)} of the {len(manifest)} rows of "
            f"{manifest.path}, fewer than trainer.batch_size, {batch}; lower it, or leave this "
            "fraction out"
        )
    assert config.run_dir is not None
    frozen = "-frozen" if options.frozen else ""
    name = f"{config.run_dir.resolve().name}_label-efficient-{fraction}{frozen}"
    folder = config.run_dir.resolve().with_name(name) / f"seed-{seed}"
    changes = {"run_dir": str(folder), "dataset.train": str(folder / LIST), "seed": seed}
    if options.frozen:
        changes["method.freeze_encoder"] = True
    given = any(o.startswith("trainer.learning_rate=") for o in options.overrides)
    if config.trainer.init_weights and not given:
        changes["trainer.learning_rate"] = config.trainer.learning_rate / 10
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return Run(fraction, seed, load_config(options.config, [*options.overrides, *overrides]), rows)


def draw(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows, in order, of a ``fraction`` (at least one for each label) of ``labels`` (R,) codes."""
    rng = generator("label-efficient", seed)
    order = rng.permutation(len(labels))
    by_label = order[np.argsort(labels[order], kind="stable")]  # of each label in turn
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    shares = share_out(sizes, round(fraction * len(labels)), rng.random(len(sizes)))
    place = np.arange(len(labels)) - np.repeat(starts, sizes)  # among those of its label
    return np.sort(by_label[place < np.repeat(shares, sizes)])


def share_out(sizes: np.ndarray, count: int, luck: np.ndarray) -> np.ndarray:
    """How many of ``sizes`` (C,) each label gives: one, and of the others in proportion to what
    it has left, by largest remainder (the luckier of equals). ``count`` in all, or C."""
    more = max(0, count - len(sizes))
    exact = more * (sizes - 1) / max(1, sizes.sum() - len(sizes))
    shares = np.floor(exact).astype(np.int64)
    order = np.lexsort((-luck, -(exact - shares).round(9)))
    shares[order[: more - shares.sum()]] += 1
    return 1 + shares


def check_list(run: Run, manifest: Manifest) -> None:
    """Refuse a folder that is there already, of other utterances."""
    path = run.folder / LIST
    if path.exists() and path.read_text(encoding="utf-8") != list_text(manifest, run.rows):
        raise UserError(
            f"{path}: has other utterances than are now drawn from {manifest.path}, which has "
            "changed; restore it, or give another run_dir"
        )


def finished(run: Run, suffix: str) -> dict[str, float] | None:
    """The metrics of a run that was carried out earlier; refused where it was another one."""
    path = run.folder / FINISHED
    saved = read_json(path)
    if not saved:
        return None
    now = settings(run, suffix)
    changes = {k: v for k, v in differences(saved["settings"], now).items() if k not in FREE_KEYS}
    if changes:
        text = ", ".join(f"{key} {change}" for key, change in changes.items())
        raise UserError(
            f"{path}: was made with other settings ({text}); undo the change, or give another "
            "run_dir"
        )
    return saved["metrics"]


def settings(run: Run, suffix: str) -> dict[str, Any]:
    about = {"utterances": len(run.rows), "model_suffix": suffix}
    return json.loads(json.dumps(to_dict(run.config) | about))


# The work ----------------------------------------------------------------------------------------


def carry_out(run: Run, manifest: Manifest, suffix: str) -> dict[str, float]:
    """Train and test; returns the metrics."""
    if distributed.is_main():
        with atomic_write(run.folder / LIST, "w") as file:
            file.write(list_text(manifest, run.rows))
    distributed.barrier()
    train(run.config)
    metrics = evaluate(run.config, suffix)["trained"]
    if distributed.is_main():
        about = {"fraction": run.fraction, "seed": run.seed, "utterances": len(run.rows)}
        done = {**about, "metrics": metrics, "settings": settings(run, suffix)}
        write_json(run.folder / FINISHED, done)
    return metrics


def list_text(manifest: Manifest, rows: np.ndarray) -> str:
    """A CSV of these rows of the training list, with all their columns as they are."""
    table = pd.read_csv(
        manifest.path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
    )
    kept = table.iloc[[0, *(manifest.lines[rows] - 1)]]
    return kept.to_csv(None, header=False, index=False, lineterminator="\n")


# What is printed ---------------------------------------------------------------------------------


def summarise(runs: Sequence[Run], results: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Of each fraction: how many utterances, and each metric's mean, standard deviation over seeds
    (n - 1; none of a single seed) and values."""
    summary = []
    for fraction in dict.fromkeys(run.fraction for run in runs):
        own = [i for i, run in enumerate(runs) if run.fraction == fraction]
        metrics = {}
        for name in results[own[0]]:
            values = [results[i][name] for i in own]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            metrics[name] = {"mean": float(np.mean(values)), "std": spread, "values": values}
        summary.append(
            {
                "fraction": fraction,
                "utterances": len(runs[own[0]].rows),
                "seeds": [runs[i].seed for i in own],
                "metrics": metrics,
            }
        )
    return summary


def format_summary(summary: Iterable[dict[str, Any]]) -> str:
    """A row for each fraction and metric."""
    table = [["fraction", "utterances", "seeds", "metric", "mean", "std"]]
    for entry in summary:
        about = [f"{entry['fraction']:g}", str(entry["utterances"]), str(len(entry["seeds"]))]
        for name, found in entry["metrics"].items():
            spread = "-" if found["std"] is None else f"{found['std']:.4f}"
            table.append([*about, name, f"{found['mean']:.4f}", spread])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    table.insert(1, ["-" * width for width in widths])
    lines = []
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[3] = row[3].ljust(widths[3])
        lines.append("  ".join(cells))
    return "\n".join(lines)


def output_path(config: Config, frozen: bool) -> Path:
    assert config.run_dir is not None
    folder = config.run_dir.resolve()
    return folder.with_name(f"{folder.name}_label-efficient{'-frozen' if frozen else ''}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and act; returns the exit code. What a user can mend is one sentence and code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of a supervised training, or its folder")
    add("overrides", metavar="key=value", nargs="*", default=[], help="settings to change")
    add(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
        metavar="F",
        help="of the utterances (default: 0.01 0.02 0.05 0.1 0.2 0.5 1.0)",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[1, 2, 3],
        metavar="S",
        help="each is a training of every fraction (default: 1 2 3)",
    )
    add("--frozen", action="store_true", help="train the classifier only")
    add(
        "--model_suffix",
        default="latest",
        help="which checkpoint to test: latest, best, avg or epoch-N (default: latest)",
    )
    words = list(sys.argv[1:] if arguments is None else arguments)
    # An option with several values would take the settings that follow it.
    changes = [word for word in words if re.match(r"\w+(\.\w+)*=", word)]
    options = parser.parse_intermixed_args([word for word in words if word not in changes])
    options.overrides += changes
    try:
        with distributed.session():
            study(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        return error.code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
