"""Evaluations under the conditions of `conditions`: what is run, and how its results are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from sslsv import audio
from sslsv.errors import ConfigError, DataError, listing
from sslsv.evaluations.conditions import CLEAN, Condition, Duration, make_condition
from sslsv.evaluations.table import align
from sslsv.trainer.tracking import say

if TYPE_CHECKING:
    import torch

    from sslsv.evaluations.base import Embed, EvaluationConfig, Result, Scores
    from sslsv.evaluations.trials import Trials

MARK = "@"  # between the name of a task and that of a condition


@dataclass(frozen=True)
class Stress:
    """A condition, and to which side of a trial it is applied."""

    condition: Condition
    both: bool = False  # sides; else to the test side only

    @property
    def name(self) -> str:
        """What stands in the names of results."""
        return f"{self.condition.name}-both" if self.both else self.condition.name


@runtime_checkable
class Stressable(Protocol):
    """A task that compares files and can do so under a condition."""

    lists: dict[str, Trials]

    def run_under(self, stress: Stress, embed: Embed, device: torch.device) -> Result:
        """As ``run``, with the same names of metrics and scores."""
        ...


def prepare(
    config: EvaluationConfig, tasks: Iterable[object], base_path: Path, resample: bool = False
) -> list[Stress]:
    """What ``config.conditions`` lists, for ``tasks``; says how many files a duration leaves whole.

    Raises ConfigError where no task can be stressed, DataError where no file is longer than a
    duration, and as `make_condition`.
    """
    both = config.conditions_on == "both"
    lists = [x for task in tasks if isinstance(task, Stressable) for x in task.lists.values()]
    if config.conditions and not lists:
        raise ConfigError(
            "evaluation.conditions: only verification is measured under conditions, and "
            "evaluation.test has none; add a task such as sv_cosine, or remove them"
        )
    stresses = [
        Stress(make_condition(name, base_path, resample), both) for name in config.conditions
    ]
    wanted = [(s, d) for s in stresses for d in s.condition.steps if isinstance(d, Duration)]
    if wanted:
        files = _stressed_files(lists, both)
        lengths = np.array([audio.probe(base_path / file, resample=resample) for file in files])
        for stress, duration in wanted:
            _check_duration(stress.condition.name, duration, files, lengths)
    return stresses


def _stressed_files(lists: Iterable[Trials], both: bool) -> list[str]:
    files: dict[str, None] = {}
    for trials in lists:
        names = trials.files if both else [trials.files[i] for i in np.unique(trials.test)]
        files.update(dict.fromkeys(x for name in names for x in trials.parts(name)))
    return list(files)


def _check_duration(name: str, duration: Duration, files: list[str], lengths: np.ndarray) -> None:
    short = [file for file, n in zip(files, lengths, strict=True) if n <= duration.samples]
    if len(short) == len(files):
        longest = lengths.max() / audio.SAMPLE_RATE
        raise DataError(
            f"evaluation.conditions: '{name}' would change nothing, since none of the "
            f"{len(files)} files is longer than {duration.seconds:g} s (the longest has "
            f"{longest:.2f} s); give a shorter duration"
        )
    if short:
        say(
            f"warning: {name}: {len(short)} of {len(files)} files are not longer than "
            f"{duration.seconds:g} s and stay whole: {listing(short, 3)}"
        )


def run_under_all(
    task: Stressable,
    kind: str,
    stresses: Iterable[Stress],
    plain: Result,
    embed: Embed,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, Scores]]:
    """Metrics ``<task>@<condition>/<list>/<metric>`` and scores ``<task>@<condition>/<list>`` of a
    task of type ``kind`` that gave ``plain`` without a condition."""
    metrics: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    for stress in stresses:
        mark = f"{MARK}{stress.name}"
        if not stress.condition.steps:  # clean
            metrics |= {_marked(name, mark): value for name, value in plain.metrics.items()}
            continue
        say(f"  {kind} under {stress.name}")
        result = task.run_under(stress, embed, device)
        metrics |= {_marked(name, mark): value for name, value in result.metrics.items()}
        scores |= {_marked(found.prefix, mark): found for found in result.scores.values()}
    return metrics, scores


def _marked(name: str, mark: str) -> str:
    task, slash, rest = name.partition("/")
    return f"{task}{mark}{slash}{rest}"


def split_conditions(
    metrics: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics without a condition, and ``{condition: {name without it: value}}``."""
    plain: dict[str, float] = {}
    stressed: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        task, _, rest = name.partition("/")
        task, mark, condition = task.partition(MARK)
        if mark:
            stressed.setdefault(condition, {})[f"{task}/{rest}"] = value
        else:
            plain[name] = value
    return plain, stressed


def format_conditions(results: Mapping[str, Mapping[str, float]], metric: str = "eer") -> str:
    """``{system: metrics}`` -> EER in %, a row for each list and system, a column for each
    condition; empty where nothing was measured under conditions."""
    rows: dict[tuple[str, str], dict[str, float]] = {}  # by list and system, then condition
    conditions = [CLEAN]
    for system, metrics in results.items():
        plain, stressed = split_conditions(metrics)
        for condition, values in {CLEAN: plain, **stressed}.items():
            if condition not in conditions:
                conditions.append(condition)
            for name, value in values.items():
                place, _, kind = name.rpartition("/")
                if kind == metric and any(name in measured for measured in stressed.values()):
                    rows.setdefault((place, system), {})[condition] = value
    if not rows:
        return ""
    table = [["EER (%)", "system", *conditions]]
    for (place, system), found in rows.items():
        cells = [f"{found[name]:.2f}" if name in found else "-" for name in conditions]
        table.append([place, system, *cells])
    return align(table)
