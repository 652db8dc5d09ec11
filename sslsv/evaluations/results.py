"""What `evaluate` leaves in the folder of a run, and says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslsv.errors import DataError
from sslsv.evaluations import bootstrap, metrics
from sslsv.evaluations.base import EvaluationConfig, Result
from sslsv.evaluations.bootstrap import Interval
from sslsv.evaluations.classification import write_predictions
from sslsv.evaluations.compare import FEW, list_hash, read_speakers
from sslsv.evaluations.quality import write_measures
from sslsv.evaluations.stress import MARK, format_conditions, split_conditions
from sslsv.evaluations.table import format_table
from sslsv.evaluations.trials import Trials, write_scores
from sslsv.files import write_json
from sslsv.trainer.tracking import say

Bars = dict[str, Interval]  # 95 % intervals by name of the metric


@dataclass(frozen=True)
class ListFacts:
    """What tells a list of trials from another."""

    hash: str  # see `compare.list_hash`
    trials: int
    targets: int
    speakers: int | None  # None: target trials contradict each other


class Lists:
    """The lists of trials that are evaluated, and who speaks in them.

    Speakers are those of the CSV ``config.speakers``, else what target trials join
    (`bootstrap.speaker_codes`); ``known`` is what the CSV says.

    Raises:
        DataError: of a CSV that cannot be read, lacks files or contradicts labels. Without a CSV a
            list whose trials contradict each other has no error bars, which is said.
    """

    def __init__(self, lists: Iterable[Trials], config: EvaluationConfig, base_path: Path):
        self.resamples = config.resamples
        self.known = read_speakers(base_path / config.speakers) if config.speakers else None
        self.facts: dict[str, ListFacts] = {}
        self._speakers: dict[str, np.ndarray] = {}
        for trials in lists:
            name = trials.name
            try:
                self._speakers[name] = bootstrap.speaker_codes(trials, self.known)
            except DataError as error:
                if self.known is not None:
                    raise
                say(f"warning: no error bars for {name}: {error}")
            count = len(np.unique(self._speakers[name])) if name in self._speakers else None
            targets = int(trials.labels.sum())
            self.facts[name] = ListFacts(list_hash(trials), len(trials), targets, count)

    def bars(self, result: Result) -> Bars:
        """Error bars of all metrics that the bootstrap knows, conditions left out."""
        found: Bars = {}
        for key, scored in result.scores.items():
            speakers = self._speakers.get(scored.trials.name)
            names = [name for name in scored.metrics if name in bootstrap.METRICS]
            stressed = MARK in key.partition("/")[0]  # the name of the list may hold it, too
            if not self.resamples or speakers is None or not names or stressed:
                continue
            try:
                intervals = bootstrap.intervals(
                    scored.scores,
                    scored.trials.labels,
                    speakers,
                    names,
                    resamples=self.resamples,
                    costs=scored.costs,
                )
            except DataError as error:
                say(f"warning: no error bars for {scored.prefix}: {error}")
                continue
            found |= {f"{scored.prefix}/{name}": bar for name, bar in intervals.items()}
        return found


def save(
    run_dir: Path,
    results: Mapping[str, Result],
    bars: Mapping[str, Bars],
    lists: Lists,
    about: dict[str, Any],
    earlier: dict[str, Any],
) -> None:
    """Scores to ``scores/``, what was fitted to ``backends/``, and metrics to ``evaluation.json``.

    ``about`` says which checkpoint was tested. Of what was there ``earlier``, results of another
    one are left out: the file speaks of one model.
    """
    if any(earlier.get(key, value) != value for key, value in about.items()):
        earlier = {key: x for key, x in earlier.items() if not key.startswith("test/")}
    flat = dict(about)
    for system, result in results.items():
        group = "test" if system == "trained" else system
        for name, value in result.metrics.items():
            flat[f"{group}/{name}"] = value
            for end, limit in zip(
                ("low", "high"), bars[system].get(name, (None, None)), strict=True
            ):
                earlier.pop(f"{group}/{name}_{end}", None)  # of another value
                if limit is not None:
                    flat[f"{group}/{name}_{end}"] = limit
    for name, facts in lists.facts.items():
        flat |= {f"lists/{name}/{key}": value for key, value in asdict(facts).items()}
    write_json(run_dir / "evaluation.json", earlier | flat)
    for system, result in results.items():
        for name, scored in result.scores.items():
            file = f"{system}_{_file_name(name)}.txt"
            write_scores(run_dir / "scores" / file, scored.trials, scored.scores)
        for name, measures in result.measures.items():
            write_measures(run_dir / "scores" / f"{system}_{_file_name(name)}.csv", measures)
        for name, predictions in result.predictions.items():
            file = f"{system}_{_file_name(name)}.csv"
            write_predictions(run_dir / "scores" / file, predictions)
        for name, backend in result.backends.items():
            backend.save(run_dir / "backends" / f"{system}_{_file_name(name)}.npz")


def summary(results: Mapping[str, Result], bars: Mapping[str, Bars], lists: Lists) -> str:
    """Tables for a terminal."""
    values = {system: result.metrics for system, result in results.items()}
    plain = {system: split_conditions(found)[0] for system, found in values.items()}
    parts = [format_table(plain, bars)]
    if table := format_conditions(values):
        parts.append(table)
    notes = []
    for name, facts in lists.facts.items():
        speakers = "" if facts.speakers is None else f", {facts.speakers} speakers"
        notes.append(
            f"{name}: {facts.trials:,} trials, {facts.targets:,} of them targets{speakers}; "
            f"list {facts.hash}"
        )
    if any(bars.values()):
        notes.append(f"[...]: 95 % intervals by {lists.resamples} resamples of the speakers")
        few = [n for n, f in lists.facts.items() if f.speakers is not None and f.speakers < FEW]
        if few:
            notes.append(f"fewer than {FEW} speakers make them too narrow: {', '.join(few)}")
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def plot(run_dir: Path, results: Mapping[str, Result]) -> None:
    """DET curves of all systems for each list, and of the trained one histograms of scores, maps of
    embeddings and confusion matrices, to ``plots/``."""
    from sslsv.evaluations import plots

    folder, trained = run_dir / "plots", results["trained"]
    for name in trained.scores:
        found = {system: result.scores[name] for system, result in results.items()}
        curves = {system: (s.scores, s.trials.labels) for system, s in found.items()}
        title, file = name.partition("/")[2], f"{_file_name(name)}.png"
        plots.det_curve(curves, folder / f"det_{file}", title=title)
        scored = trained.scores[name]
        threshold = metrics.eer_threshold(scored.scores, scored.trials.labels)
        histogram = folder / f"scores_{file}"
        plots.score_histogram(scored.scores, scored.trials.labels, histogram, threshold, title)
    for name, points in trained.maps.items():
        if len(points.embeddings) < plots.LEAST_OF_A_MAP:
            continue
        path = folder / f"map_{_file_name(name)}.png"
        plots.embedding_map(points.embeddings, points.groups, path, title=name.partition("/")[2])
    for name, p in trained.predictions.items():
        path = folder / f"confusion_{_file_name(name)}.png"
        title = name.partition("/")[2]
        plots.confusion(p.true, p.predicted, p.names, path, title=title)
    say(f"Plots: {folder}")


def _file_name(name: str) -> str:
    return name.replace("/", "_")
