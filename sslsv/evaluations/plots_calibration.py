"""Whether scores are log-likelihood ratios: calibration and Bayes-error plots; ratios to plot.

Systems are ``{name: (scores (T,), labels (T,))}``, the scores natural-log likelihood ratios.
"""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit

from sslsv.errors import DataError
from sslsv.evaluations import metrics
from sslsv.evaluations.calibration import Calibration, ScoredList, fit, read_list
from sslsv.evaluations.figures import COLOURS, SHAPES, legend_below, new_figure, save
from sslsv.evaluations.table import format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Systems = Mapping[str, tuple[np.ndarray, np.ndarray]]

FUSION = "fusion"
PRIORS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)  # that have a tick


def read_systems(
    files: Mapping[str, str], trials: str = ""
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores and labels of score files, by name.

    Args:
        files: paths by name; in them ``{list}`` stands for the name of the list of trials.
        trials: that name.

    Raises:
        DataError: a file cannot be read, or is of other trials than the first one.
    """
    together = _read(files, trials)
    return {
        name: (column, together.trials.labels)
        for name, column in zip(files, together.scores.T, strict=True)
    }


def calibrated(
    files: Mapping[str, str], fit_on: str, apply_to: str, prior: float = 0.5
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Calibration]]:
    """Ratios on one list of trials by calibrations that were fitted on another.

    Args:
        files: as of `read_systems`.
        fit_on, apply_to: names of the two lists.
        prior: of a target trial, that is fitted for.

    Returns:
        Each system calibrated alone and, of several, their ``fusion``; and the calibrations.

    Raises:
        DataError: a file cannot be read, or is of other trials than the first one of its list.
    """
    known, wanted = _read(files, fit_on), _read(files, apply_to)
    names = list(files)
    columns: dict[str, list[int]] = {name: [i] for i, name in enumerate(names)}
    if len(names) > 1:
        columns[FUSION] = list(range(len(names)))
    systems, fits = {}, {}
    for name, used in columns.items():
        inputs = [names[i] for i in used]
        fits[name] = fit(known.scores[:, used], known.trials.labels, prior, inputs)
        systems[name] = fits[name].apply(wanted.scores[:, used]), wanted.trials.labels
    return systems, fits


def weights_table(fits: Mapping[str, Calibration]) -> str:
    """Of each calibration: what a score counts, and what is added, in natural-log ratios."""
    rows = []
    for name, found in fits.items():
        offset = found.offset - float(found.weights @ found.centers)
        terms = [f"{w:+.2f} · {i}" for i, w in zip(found.inputs, found.weights, strict=True)]
        rows.append(f"{name}: llr = {' '.join(terms)} {offset:+.2f}")
    return "\n".join(rows)


def _read(files: Mapping[str, str], trials: str) -> ScoredList:
    if not files:
        raise DataError("no system: give at least one name with its score file")
    return read_list([Path(str(path).replace("{list}", trials)) for path in files.values()])


def metrics_table(systems: Systems, p_target: float = 0.05, ratios: bool = False) -> str:
    """A row of error rates and costs for each system; of ``ratios`` those that say how well they
    are calibrated, too."""
    found = {}
    for name, (scores, labels) in systems.items():
        row = {
            "eer": metrics.eer(scores, labels),
            "mindcf": metrics.min_dcf(scores, labels, p_target),
        }
        if ratios:
            row |= {
                "actdcf": metrics.act_dcf(scores, labels, p_target),
                "cllr": metrics.cllr(scores, labels),
                "mincllr": metrics.min_cllr(scores, labels),
            }
        place = f"P(target) {p_target:g}"
        found[name] = {f"{place}/{metric}": value for metric, value in row.items()}
    return format_table(found)


def calibration_plot(
    systems: Systems,
    path: str | os.PathLike | None = None,
    title: str | None = None,
    bins: int = 10,
) -> "Figure":
    """Draw how often trials are target ones where a ratio says so: on the diagonal, always.

    Both axes are for as many targets as non-targets, whatever the list has. A point is a bin of
    trials with near ratios; bins have about the same weight.

    Raises:
        DataError: there is no system, or the scores of one cannot be evaluated.
        UserError: matplotlib is not installed.
    """
    _check(systems)
    figure, axes = new_figure(5.2, 5.2, title)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(SHAPES))
    for (name, (scores, labels)), (colour, shape) in zip(systems.items(), looks, strict=False):
        stated, found = reliability(scores, labels, bins)
        bits = metrics.cllr(scores, labels)
        axes.plot(stated, found, shape + "-", color=colour, label=f"{name}: Cllr {bits:.3f}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(xlabel="probability of a target, as stated", ylabel="share of targets, as found")
    legend_below(axes)
    return save(figure, path)


def reliability(
    scores: np.ndarray, labels: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Of up to ``bins`` bins (B,): the mean probability that ratios (T,) state, and the share of
    targets, for as many targets as non-targets. Equal ratios are in one bin."""
    scores, labels = metrics.check(scores, labels)
    weights = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    _, group = np.unique(scores, return_inverse=True)
    size = np.bincount(group, weights)
    middle = size.cumsum() - size / 2  # of the weight that equal ratios take up in 0 to 1
    bin_of = (bins * middle).astype(int)[group]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(bin_of, values, minlength=bins)

    filled = total(weights) > 0
    weight = total(weights)[filled]
    stated = total(weights * expit(scores))[filled] / weight
    return stated, total(weights * labels)[filled] / weight


def bayes_error_plot(
    systems: Systems,
    path: str | os.PathLike | None = None,
    title: str | None = None,
    priors: tuple[float, float] = (0.001, 0.999),
    marked: float | None = None,
) -> "Figure":
    """Draw what decisions by the ratios cost for each prior of a target (line), and the least that
    a threshold could cost (dotted): the normalised Bayes error.

    Brümmer and de Villiers, "The BOSARIS toolkit" (2013).

    Args:
        priors: the lowest and the highest of the plot.
        marked: a prior to mark.

    Raises:
        DataError: there is no system, or the scores of one cannot be evaluated.
        UserError: matplotlib is not installed.
    """
    _check(systems)
    figure, axes = new_figure(6.4, 4.4, title)
    log_odds = np.linspace(logit(priors[0]), logit(priors[1]), 201)
    for (name, (scores, labels)), colour in zip(
        systems.items(), itertools.cycle(COLOURS), strict=False
    ):
        actual, least = bayes_errors(scores, labels, log_odds)
        axes.plot(log_odds, actual, color=colour, label=name)
        axes.plot(log_odds, least, ":", color=colour)
    if marked is not None:
        axes.axvline(float(logit(marked)), color="0.4", linewidth=0.8, linestyle="--")
    ticks = [p for p in PRIORS if priors[0] <= p <= priors[1]]
    axes.set_xticks(logit(ticks), [f"{p:g}" for p in ticks])
    axes.set(xlabel="prior of a target trial", ylabel="normalised Bayes error")
    axes.set(xlim=(log_odds[0], log_odds[-1]), ylim=(0, 1.25))
    legend_below(axes, title="—  at the Bayes threshold   ···  at the best threshold", ncols=2)
    return save(figure, path)


def bayes_errors(
    scores: np.ndarray, labels: np.ndarray, log_odds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised detection cost at the Bayes threshold and at the best one, each (P,), for priors
    of these log-odds (P,) and unit costs."""
    thresholds, fnr, fpr = metrics.operating_points(scores, labels)
    at = np.searchsorted(thresholds, -log_odds)
    priors = expit(log_odds)
    actual = [metrics.dcf(fnr[i], fpr[i], p) for i, p in zip(at, priors, strict=True)]
    least = [metrics.dcf(fnr, fpr, p).min() for p in priors]
    return np.array(actual), np.array(least)


def _check(systems: Systems) -> None:
    if not systems:
        raise DataError("no system to plot: give at least one name with its scores")
