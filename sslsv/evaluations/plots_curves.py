"""Curves over a training, and over shares of the labels."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sslsv.errors import DataError
from sslsv.evaluations.figures import (
    COLOURS,
    LINE_STYLES,
    SHAPES,
    legend_below,
    new_figure,
    new_panels,
    save,
    share_legend,
)
from sslsv.evaluations.table import align
from sslsv.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> x, y


def read_training(run: str | os.PathLike) -> dict[str, tuple[list[int], list[float]]]:
    """Of each metric in ``training.json`` of a run: the epochs that have it, and its values.

    Raises:
        DataError: the run has none.
    """
    path = Path(run) / "training.json"
    saved = read_json(path)
    found: dict[str, tuple[list[int], list[float]]] = {}
    for epoch in sorted(map(int, filter(str.isdigit, saved))):
        for name, value in saved[str(epoch)].items():
            epochs, values = found.setdefault(name, ([], []))
            epochs.append(epoch)
            values.append(float("nan") if value is None else float(value))
    if not found:
        raise DataError(f"{path}: no epoch yet; train the run first, or name another folder")
    return found


def training_curves(
    runs: Mapping[str, str | os.PathLike],
    metrics: Mapping[str, str],
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw a panel for each of ``metrics``, ``{name in training.json: title}``, in it a line for
    each of ``runs`` that has the metric.

    Raises:
        DataError: no run has one of the metrics, or a run has no epochs.
        UserError: matplotlib is not installed.
    """
    read = {name: read_training(run) for name, run in runs.items()}
    panels: dict[str, Lines] = {}
    for metric, shown in metrics.items():
        panels[shown] = {name: found[metric] for name, found in read.items() if metric in found}
        if not panels[shown]:
            known = sorted(set().union(*read.values()))
            raise DataError(f"no run has '{metric}'; there are: {', '.join(known)}")
    return line_panels(panels, "epoch", path, title)


def line_panels(
    panels: Mapping[str, Lines],
    x_label: str,
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw panels side by side, ``{title: {name: (x, y)}}``; a name looks alike in all of them.

    Raises:
        DataError: there is no panel.
        UserError: matplotlib is not installed.
    """
    if not panels:
        raise DataError("no panel to plot: give at least one metric")
    figure, (row,) = new_panels(3.4 * len(panels) + 0.4, 3.4, columns=len(panels), title=title)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = dict(zip(names, itertools.cycle(zip(COLOURS, SHAPES, strict=True)), strict=False))
    for axes, (shown, lines) in zip(row, panels.items(), strict=True):
        for name, (x, y) in lines.items():
            colour, shape = looks[name]
            axes.plot(x, y, f"{shape}-", color=colour, markersize=5, label=name)
        axes.set_title(shown, fontsize=11)
        axes.set_xlabel(x_label)
        axes.locator_params(axis="x", integer=True)
    if len(names) > 1 and len(row) > 1:
        share_legend(figure, row, 4)
    elif len(names) > 1:
        legend_below(row[0], ncols=2)
    return save(figure, path)


def label_efficiency(
    studies: Mapping[str, str | os.PathLike],
    metric: str,
    path: str | os.PathLike | None = None,
    title: str | None = None,
    chance: float | None = None,
) -> "Figure":
    """Draw a metric against the number of labelled utterances: means and standard deviations over
    seeds (band), and each training (dot).

    Args:
        studies: name in the legend -> what ``tools/label_efficient.py`` has written.
        metric: such as ``sv_cosine/voxceleb1_test_O/eer``.
        chance: what guessing gives, to mark.

    Raises:
        DataError: a file cannot be used, or lacks the metric.
        UserError: matplotlib is not installed.
    """
    if not studies:
        raise DataError("no study to plot: give at least one name with its file")
    figure, axes = new_figure(6.0, 4.2, title)
    counts: set[int] = set()
    looks = itertools.cycle(zip(COLOURS, SHAPES, itertools.cycle(LINE_STYLES)))
    for (name, file), (colour, shape, style) in zip(studies.items(), looks, strict=False):
        study = read_study(file, metric)
        x, mean, std = study.x, study.mean, study.std
        axes.plot(x, mean, shape, linestyle=style, color=colour, label=name)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        for utterances, values in zip(x, study.values, strict=True):
            axes.plot([utterances] * len(values), values, ".", color=colour, alpha=0.6)
        counts |= {int(utterances) for utterances in x}
    if chance is not None:
        axes.axhline(chance, color="0.4", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(sorted(counts), [f"{count:,}" for count in sorted(counts)])
    axes.minorticks_off()
    axes.set(xlabel="labelled utterances", ylabel=metric)
    legend_below(axes, ncols=2)
    return save(figure, path)


def study_table(studies: Mapping[str, str | os.PathLike], metric: str) -> str:
    """Mean and standard deviation of a metric for each study and number of utterances."""
    rows = [["study", "metric", "utterances", "trainings", "mean", "std"]]
    for name, file in studies.items():
        found = read_study(file, metric)
        for x, mean, std, values in zip(found.x, found.mean, found.std, found.values, strict=True):
            spread = f"{std:.3f}" if len(values) > 1 else "-"
            rows.append([name, metric, f"{x:,}", f"{len(values)}", f"{mean:.3f}", spread])
    return align(rows)


class Study:
    """Fractions (F,) of a study: utterances, mean and standard deviation (0 of one seed) of a
    metric, and its values."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], metric: str):
        found = [entry["metrics"][metric] for entry in entries]
        self.x = np.array([entry["utterances"] for entry in entries])
        self.mean = np.array([each["mean"] for each in found])
        self.std = np.array([each["std"] or 0.0 for each in found])
        self.values: list[list[float]] = [each["values"] for each in found]


def read_study(path: str | os.PathLike, metric: str) -> Study:
    """What ``tools/label_efficient.py`` has written, of one metric, by rising number of utterances.

    Raises:
        DataError: the file is missing or of another kind, or lacks the metric.
    """
    entries = read_json(Path(path)).get("fractions")
    if not entries:
        raise DataError(f"{path}: not what tools/label_efficient.py writes, or not there")
    for entry in entries:
        if metric not in entry["metrics"]:
            known = ", ".join(entry["metrics"])
            raise DataError(f"{path}: has no metric '{metric}'; there are: {known}")
    return Study(sorted(entries, key=lambda entry: entry["utterances"]), metric)
