"""The folders of runs, read into what the page shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sslsv import config_files
from sslsv.errors import DataError
from sslsv.evaluations import metrics, plots
from sslsv.evaluations.compare import list_hash
from sslsv.evaluations.stress import MARK
from sslsv.evaluations.trials import Trials, read_scores
from sslsv.files import read_json

HARDEST = 10  # pairs of each class
RESOLUTION = 0.005  # of DET curves, normal deviates: about a pixel of the page
DECIMALS = 4  # of the coordinates of a DET curve
MAIN = "trained"  # score files of a run's own model begin with it; evaluation.json says "test"
_CONFIG = "resolved_config.yml"
_RESULTS = ("training.json", "evaluation.json")
_FIRST = ("loss", "lr", "effective_rank", "embedding_std", "alignment", "uniformity")
_ENDS = ("low", "high")

Missing = dict[str, list[str]]  # sentences on what is left out, by section of the page


@dataclass
class Run:
    """What the folder of a run holds."""

    path: Path
    name: str  # in the page
    config: dict[str, str]  # dotted key -> value as text
    training: dict[str, Any]  # of training.json
    evaluation: dict[str, Any]  # of evaluation.json
    starts: list[Any] = field(default_factory=list)  # of environment.json

    def about(self) -> dict[str, str]:
        """Facts for the head of the page."""
        epochs = [int(epoch) for epoch in self.training if epoch.isdigit()]
        start = self.starts[0] if self.starts and isinstance(self.starts[0], dict) else {}
        tested = self.evaluation.get("checkpoint")
        return {
            "folder": str(self.path),
            "method": self.config.get("method.type", ""),
            "encoder": self.config.get("encoder.type", ""),
            "epochs trained": str(max(epochs)) if epochs else "none",
            "tested": f"{tested}, epoch {self.evaluation.get('epoch')}" if tested else "not yet",
            "started": str(start.get("date", ""))[:16].replace("T", " "),
        }


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in ``folders``.

    Raises:
        DataError: one is no folder of a run, has no results, or is named twice.
        UserError: a file of one cannot be read.
    """
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(folders):
        if resolved.index(resolved[index]) < index:
            raise DataError(f"{folder}: the run is named twice; name it once")
    names = [folder.name for folder in resolved]
    return [
        _read_run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of a run")
    if not (folder / _CONFIG).is_file():
        raise DataError(f"{folder}: not the folder of a run (it has no {_CONFIG})")
    if not any((folder / file).is_file() for file in _RESULTS):
        raise DataError(
            f"{folder}: no results yet (neither {' nor '.join(_RESULTS)}); "
            "run 'sslsv train' or 'sslsv evaluate' on it first"
        )
    config, _ = config_files.read(folder / _CONFIG)
    training, evaluation = (read_json(folder / file) for file in _RESULTS)
    return Run(folder, name, dict(_flat(config)), training, evaluation, _starts(folder))


def _starts(folder: Path) -> list[Any]:
    """What environment.json says of each start; only for the head of the page."""
    try:
        value = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return value if isinstance(value, list) else []


# Configurations -----------------------------------------------------------------------------------


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of nested sections, lists of sections included, and values as text."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(below, f"{prefix}.{key}" if prefix else str(key))
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        yield prefix, text


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The keys that are not alike in all runs, with the value in each; None where it has none."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [run.config.get(key) for run in runs]
        if len(set(values)) > 1:
            rows.append({"key": key, "values": values})
    return rows


# Training -----------------------------------------------------------------------------------------


def signals(runs: Sequence[Run], missing: Missing) -> list[dict[str, Any]]:
    """What training.json has of each epoch, by name: one curve of each run that has it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for index, run in enumerate(runs):
        epochs = sorted((int(key), values) for key, values in run.training.items() if key.isdigit())
        curves: dict[str, tuple[list[int], list[float | None]]] = {}
        for epoch, values in epochs:
            for name, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, int | float) or value is None:
                    x, y = curves.setdefault(name, ([], []))
                    x.append(epoch)
                    y.append(number(value))
        if not curves:
            missing["training"].append(f"{run.name}: no training.json, so there are no curves.")
        for name, (x, y) in curves.items():
            found.setdefault(name, []).append({"run": index, "x": x, "y": y})
    return [{"name": name, "curves": found[name]} for name in sorted(found, key=_place)]


def _place(name: str) -> tuple[int, str]:
    """The signals that matter most come first."""
    part = name.removeprefix("train/")
    return (_FIRST.index(part) if part in _FIRST else len(_FIRST)), name


def number(value: Any) -> float | None:
    """``value`` where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


# Results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A system and what it was tested on, as evaluation.json names them."""

    group: str  # test, untrained or mfcc
    task: str  # sv_cosine, sv_cosine_as-norm@reverb
    list: str  # name of the list

    @property
    def system(self) -> str:
        return self.task if self.group == "test" else f"{self.group} {self.task}"

    @property
    def file(self) -> str:
        """Name of the score file."""
        group = MAIN if self.group == "test" else self.group
        return f"{group}_{self.task}_{self.list}.txt"

    @property
    def shown(self) -> bool:
        """Whether it is on when the page is opened: the model itself, on audio as it is."""
        return self.group == "test" and MARK not in self.task


def measured(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float | None]]]:
    """Where (``test/<task>/<list>``), metric, and ``[value, low, high]``, None where unknown."""
    ends = {f"{key}_{end}" for key in evaluation for end in _ENDS}
    for key, value in evaluation.items():
        where, _, metric = key.rpartition("/")
        if "/" not in where or key.startswith("lists/") or key in ends:
            continue
        limits = (evaluation.get(f"{key}_{end}") for end in _ENDS)
        yield where, metric, [number(x) for x in (value, *limits)]


def verifications(evaluation: Mapping[str, Any]) -> dict[Place, dict[str, list[float | None]]]:
    """Metrics of each list of trials under each system."""
    found: dict[Place, dict[str, list[float | None]]] = {}
    for where, metric, values in measured(evaluation):
        if f"{where}/eer" in evaluation:
            group, task, name = where.split("/", 2)
            found.setdefault(Place(group, task, name), {})[metric] = values
    return found


def others(run: Run) -> list[dict[str, Any]]:
    """Results that are not of trials, such as accuracies."""
    return [
        {"name": where.removeprefix("test/"), "metric": metric, "values": values}
        for where, metric, values in measured(run.evaluation)
        if f"{where}/eer" not in run.evaluation
    ]


def curves(trials: Trials, scores: np.ndarray) -> dict[str, Any]:
    """What the page draws of one score file.

    Raises:
        DataError: the scores cannot be evaluated.
    """
    scores, labels = metrics.check(scores, trials.labels)
    x, y = plots.det_coordinates(scores, labels, RESOLUTION)
    rarer = min(labels.sum(), (~labels).sum())
    edges = np.histogram_bin_edges(scores, bins=int(np.clip(2 * np.sqrt(rarer), 10, 80)))
    density = {
        name: np.histogram(scores[chosen], edges, density=True)[0]
        for name, chosen in (("target", labels), ("nontarget", ~labels))
    }
    return {
        "eer": metrics.eer(scores, labels) / 100,
        "eer_deviate": round(float(_eer_deviate(scores, labels)), DECIMALS),
        "threshold": metrics.eer_threshold(scores, labels),
        "targets": int(labels.sum()),
        "nontargets": int((~labels).sum()),
        "det": [np.round(x, DECIMALS).tolist(), np.round(y, DECIMALS).tolist()],
        "edges": [float(edges[0]), float(edges[-1])],
        "density": {name: [float(f"{v:.4g}") for v in values] for name, values in density.items()},
        "hardest": {
            "target": _hardest(trials, scores, labels, 1),
            "nontarget": _hardest(trials, scores, ~labels, -1),
        },
    }


def _eer_deviate(scores: np.ndarray, labels: np.ndarray) -> float:
    outside = -plots.probit(plots.LOWEST / 100) + 1
    return np.clip(plots.probit(metrics.eer(scores, labels) / 100), -outside, outside)


def _hardest(trials: Trials, scores: np.ndarray, chosen: np.ndarray, sign: int) -> list[list[Any]]:
    """``[score, enrol, test]`` of the pairs with the lowest ``sign * score``, worst first."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(sign * scores[rows], kind="stable")][:HARDEST]
    return [
        [float(scores[i]), trials.files[trials.enrol[i]], trials.files[trials.test[i]]]
        for i in rows
    ]


class Findings:
    """Systems, lists, results and curves of all runs, as lists that refer to each other by index.

    Attributes:
        systems: run, name, whether on at first, look (colour and dashes); the runs' first systems
            have the first looks, so that they differ in colour.
        lists: name, hash, trials, targets, speakers.
        results: system, list, metrics.
        scores: system, list, and what `curves` gives.
        others: run, name, metric, values.
    """

    def __init__(self, runs: Sequence[Run], missing: Missing):
        self.systems: list[dict[str, Any]] = []
        self.lists: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.others = [{"run": i, **row} for i, run in enumerate(runs) for row in others(run)]
        self._missing = missing
        for index, run in enumerate(runs):
            found = verifications(run.evaluation)
            if not found:
                text = f"{run.name}: evaluation.json has no results of trials."
                missing["results"].append(text)
            for place, values in found.items():
                self._add(index, run, place, values)
            self._say_unknown(run, {place.file for place in found})
        self._give_looks(len(runs))

    def _add(self, index: int, run: Run, place: Place, values: dict[str, Any]) -> None:
        system = self._system(index, place)
        facts = {
            key: run.evaluation.get(f"lists/{place.list}/{key}")
            for key in ("hash", "trials", "targets", "speakers")
        }
        where = self._list(place.list, facts)
        self.results.append({"system": system, "list": where, "metrics": values})
        path = run.path / "scores" / place.file
        if not path.is_file():
            self._missing["det"].append(f"{run.name}, {place.system}: no scores/{place.file}.")
            return
        try:
            trials, scores = read_scores(path)
            drawn = curves(trials, scores)
        except DataError as error:
            self._missing["det"].append(f"{run.name}, {place.system}: left out ({error}).")
            return
        targets = int(trials.labels.sum())
        facts = {"hash": list_hash(trials), "trials": len(trials), "targets": targets}
        scored = self._list(place.list, facts)
        if scored != where and self.lists[where]["hash"] is not None:
            self._missing["det"].append(
                f"{run.name}, {place.system}: scores/{place.file} is of another list than "
                "evaluation.json."
            )
        self.scores.append({"system": system, "list": scored, **drawn})

    def _system(self, run: int, place: Place) -> int:
        for i, system in enumerate(self.systems):
            if (system["run"], system["name"]) == (run, place.system):
                return i
        self.systems.append({"run": run, "name": place.system, "shown": place.shown})
        return len(self.systems) - 1

    def _list(self, name: str, facts: dict[str, Any]) -> int:
        """Lists of one name are one where their hashes are."""
        for i, known in enumerate(self.lists):
            if (known["name"], known["hash"]) == (name, facts["hash"]):
                return i
        self.lists.append({"name": name, "speakers": None, **facts})
        return len(self.lists) - 1

    def _say_unknown(self, run: Run, known: set[str]) -> None:
        there = sorted(path.name for path in (run.path / "scores").glob("*.txt"))
        if unknown := [name for name in there if name not in known]:
            shown = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
            self._missing["det"].append(
                f"{run.name}: {len(unknown)} score files without results in evaluation.json are "
                f"left out: {shown}."
            )

    def _give_looks(self, runs: int) -> None:
        """The first system of each run has the look of the run; those shown at first come next."""
        first: set[int] = set()
        rest = []
        for system in self.systems:
            if system["run"] in first:
                rest.append(system)
            else:
                first.add(system["run"])
                system["look"] = system["run"]
        for look, system in enumerate(sorted(rest, key=lambda s: not s["shown"]), runs):
            system["look"] = look
