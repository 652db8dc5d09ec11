"""Scores -> log-likelihood ratios: logistic-regression calibration, quality measures and fusion.

The ratio of a trial is affine in its inputs, ``offset + Σ weight_i (x_i - center_i)``: the score of
one system (calibration) or of several (fusion), and measures of the quality of its two files. The
weights minimise, for a prior π of a target trial,

    C_π = π mean_targets log(1 + e^-(llr + logit π))
        + (1 - π) mean_non-targets log(1 + e^(llr + logit π))

which for π = 0.5 is Cllr (times log 2), and for other π weighs errors as an application with this
prior does. Brümmer and du Preez, "Application-independent evaluation of speaker detection",
Computer Speech & Language 20 (2006); quality measures: Thienpondt, Desplanques and Demuynck, "The
IDLab VoxSRC-20 submission", ICASSP 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from sslsv.errors import ConfigError, DataError, listing
from sslsv.evaluations import metrics
from sslsv.evaluations.quality import log_durations, read_measures
from sslsv.evaluations.table import format_table
from sslsv.evaluations.trials import Trials, read_enrolments, read_scores, write_scores
from sslsv.files import read_json, write_json

_ITERATIONS = 100
_SMALL_STEP = 1e-9  # of any trial's ratio in one iteration: the optimum is reached
_SAFE_STEP = 0.1  # below it Newton's step needs no control: the curvature hardly changes
_SAME = 1e-12  # share of the largest value below which a spread is rounding
_COLLINEAR = 1e-12  # eigenvalue of the inputs' correlations below which a direction is not there


@dataclass(frozen=True)
class Calibration:
    """A fitted map from K inputs of a trial to its natural-log likelihood ratio."""

    inputs: list[str]  # names of the K
    centers: np.ndarray  # (K,)
    weights: np.ndarray  # (K,)
    offset: float
    prior: float  # of a target trial, that it was fitted for
    remarks: list[str] = field(default_factory=list)  # what a user should know

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Log-likelihood ratios (T,) of inputs (T, K)."""
        if x.shape[1:] != self.weights.shape:
            raise DataError(
                f"the calibration has {len(self.inputs)} inputs ({', '.join(self.inputs)}); got "
                f"values of shape {x.shape}"
            )
        return (x - self.centers) @ self.weights + self.offset

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads back to the same numbers."""
        columns = zip(self.inputs, self.centers.tolist(), self.weights.tolist(), strict=True)
        write_json(
            path,
            {
                "inputs": [{"name": n, "center": c, "weight": w} for n, c, w in columns],
                "offset": self.offset,
                "prior": self.prior,
                "remarks": self.remarks,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote. Raises DataError if it is something else."""
        data: Any = read_json(path)
        if not data:
            raise DataError(f"{path}: file not found, or empty")
        try:
            return cls(
                inputs=[str(entry["name"]) for entry in data["inputs"]],
                centers=np.array([float(entry["center"]) for entry in data["inputs"]]),
                weights=np.array([float(entry["weight"]) for entry in data["inputs"]]),
                offset=float(data["offset"]),
                prior=float(data["prior"]),
                remarks=[str(remark) for remark in data["remarks"]],
            )
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}: not a calibration that this command has written") from None


# ---------------------------------------------------------------------------- fitting


def fit(
    x: np.ndarray, labels: np.ndarray, prior: float = 0.01, inputs: Sequence[str] | None = None
) -> Calibration:
    """The calibration with the smallest ``C_π`` on these trials; there is no other minimum.

    An affine change of an input changes no ratio. Inputs that are the same for all trials get no
    weight, and of inputs that repeat each other the weights are the smallest ones. On the same
    trials ``C_π``, which is Cllr where ``prior`` is 0.5, is never above that of an input itself.

    But where inputs tell the classes, or some trials of one class, apart without an error, there is
    no finite optimum: weights could grow for ever, and ratios with them. Then one trial of each
    class is taken to be spread over the trials of the other, so that ratios stay near what so many
    trials can tell: about log(non-targets) for targets and -log(targets) for non-targets, whatever
    the prior. ``remarks`` of the result say so.

    Args:
        x: (T, K) inputs.
        labels: (T,), 1 for a target trial and 0 for another.
        prior: π, of a target trial.
        inputs: names of the K inputs.

    Raises:
        ConfigError: the prior is not between 0 and 1.
        DataError: see `sslsv.evaluations.metrics.check`; or an input is not finite.
    """
    check_prior(prior)
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or not x.shape[1]:
        raise DataError(f"inputs must be (trials, inputs) and at least one, got shape {x.shape}")
    names = list(inputs or [f"input {i + 1}" for i in range(x.shape[1])])
    for name, column in zip(names, x.T, strict=True):
        check_finite(column, name)
    _, labels = metrics.check(x[:, 0], labels)

    centers, basis = _whitening(x, labels)
    remarks = [
        f"'{name}' is the same for all trials that the calibration is fitted on and gets no weight"
        for name, row in zip(names, basis, strict=True)
        if not row.any()
    ]
    z = np.column_stack(((x - centers) @ basis, np.ones(len(x))))  # (T, R + 1), the last: offset
    found = _newton(z, *_class_weights(labels, prior), float(logit(prior)), labels)
    if found is None:
        remarks.append(
            "the inputs tell trials of the two classes apart without an error, so that their ratios"
            f" have no finite optimum; they are kept to what {labels.sum()} targets and "
            f"{(~labels).sum()} non-targets can tell; fit on a larger or harder list"
        )
        found = _newton(z, *_class_weights(labels, prior, smooth=True), float(logit(prior)))
    if found is None:
        raise DataError(
            "the calibration does not converge; look for inputs with extreme values among "
            + ", ".join(names)
        )
    return Calibration(names, centers, basis @ found[:-1], float(found[-1]), prior, remarks)


def check_prior(prior: float) -> None:
    if not 0 < prior < 1:
        raise ConfigError(f"prior: must be between 0 and 1, got {prior}")


def check_finite(values: np.ndarray, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{name}: {len(bad)} of {len(values)} values are not finite numbers, the first "
            f"({values[bad[0]]}) is that of trial {bad[0] + 1}"
        )


def _whitening(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centers (K,) and basis (K, R): ``(x - centers) @ basis`` is uncorrelated of unit variance.

    Classes weigh the same. R is less than K where inputs are constant or repeat each other.
    """
    share = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    largest = np.abs(x).max(axis=0)
    centers = share @ x
    deviations = x - centers
    spread = np.abs(deviations).max(axis=0)
    spread[spread <= _SAME * largest] = np.inf  # constant but for rounding
    deviations /= spread
    std = np.sqrt(share @ deviations**2)
    std[std == 0] = np.inf
    deviations /= std
    values, vectors = np.linalg.eigh(deviations.T @ (share[:, None] * deviations))
    kept = values > _COLLINEAR * len(values)
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return centers, basis / (spread * std)[:, None]


def _class_weights(
    labels: np.ndarray, prior: float, smooth: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What each trial (T,) counts as a target, and as a non-target."""
    targets, others = int(labels.sum()), int((~labels).sum())
    as_target = np.where(labels, 1.0 / targets, 0.0)
    as_other = np.where(labels, 0.0, 1.0 / others)
    if smooth:  # one trial more of each class, spread over the other's
        spread = as_target, as_other
        as_target = (targets * spread[0] + spread[1]) / (targets + 1)
        as_other = (others * spread[1] + spread[0]) / (others + 1)
    return prior * as_target, (1 - prior) * as_other


def _newton(
    z: np.ndarray,
    as_target: np.ndarray,
    as_other: np.ndarray,
    log_odds: float,
    labels: np.ndarray | None = None,
) -> np.ndarray | None:
    """The v (R + 1,) with the smallest ``C_π`` of ratios ``z @ v``, by Newton's method.

    A step that goes past the lowest point on its line is halved until it does not: then it stops
    at half the way there or later, so that costs always fall and no ratio overshoots to where the
    curvature vanishes. None where there is no minimum: the ratios separate the classes of
    ``labels``, the curvature vanishes all the same, or steps do not end.
    """

    def slopes(f: np.ndarray) -> np.ndarray:
        return as_other * expit(f + log_odds) - as_target * expit(-f - log_odds)

    v = np.zeros(z.shape[1])
    for _ in range(_ITERATIONS):
        f = z @ v
        if labels is not None and _separates(f, labels):
            return None
        p = expit(f + log_odds)
        curvature = (z.T * ((as_target + as_other) * p * expit(-f - log_odds))) @ z
        try:
            step = -np.linalg.solve(curvature, z.T @ slopes(f))
        except np.linalg.LinAlgError:
            return None
        move = z @ step
        largest = np.abs(move).max()
        if not np.isfinite(largest):
            return None
        if largest <= _SMALL_STEP:
            return v + step
        while largest > _SAFE_STEP and move @ slopes(f + move) > 0:
            step, move, largest = step / 2, move / 2, largest / 2
        v += step
    return None


def _separates(f: np.ndarray, labels: np.ndarray) -> bool:
    """Whether no target is below a non-target, and not all are equal."""
    lowest = f[labels].min()
    return bool(lowest >= f[~labels].max() and f.min() < f.max())


# ---------------------------------------------------------------------------- score files


@dataclass(frozen=True)
class ScoredList:
    """One list of trials, scored by one system or several."""

    paths: list[Path]
    trials: Trials
    scores: np.ndarray  # (T, systems)

    def inputs(self, measures: dict[str, dict[str, float]]) -> tuple[list[str], np.ndarray]:
        """Names of the inputs and their values (T, K): scores, then each measure of enrolment and
        test file. Raises DataError where files have no value."""
        trials = self.trials
        names = [f"score {i + 1}" for i in range(len(self.paths))]
        columns = list(self.scores.T)
        for name, of_files in measures.items():
            missing = [file for file in trials.files if file not in of_files]
            if missing:
                raise DataError(
                    f"{self.paths[0]}: {len(missing)} of {len(trials.files)} files have no "
                    f"'{name}': {listing(missing)}"
                )
            values = np.array([of_files[file] for file in trials.files])
            names += [f"enrol {name}", f"test {name}"]
            columns += [values[trials.enrol], values[trials.test]]
        return names, np.column_stack(columns)


def read_list(paths: Sequence[Path]) -> ScoredList:
    """Score files of the same trials, of which each may have an order of its own; the first one's
    is kept. Raises DataError where trials or labels differ, or scores are not finite."""
    trials, scores = read_scores(paths[0])
    columns = [scores]
    for path in paths[1:]:
        other, scores = read_scores(path)
        columns.append(scores[_order(trials, other, paths[0], path)])
    for path, column in zip(paths, columns, strict=True):
        check_finite(column, str(path))
    return ScoredList(list(paths), trials, np.column_stack(columns))


def _order(trials: Trials, other: Trials, path: Path, other_path: Path) -> np.ndarray:
    """Where each trial stands in ``other``."""
    ours, theirs = _pairs(trials), _pairs(other)
    if ours == theirs:
        order = np.arange(len(ours))
    else:
        place = {pair: index for index, pair in enumerate(theirs)}
        missing = [" ".join(pair) for pair in ours if pair not in place]
        if missing or len(place) != len(set(ours)):
            what = f"no score of {listing(missing, 3)}" if missing else "other trials as well"
            raise DataError(f"{other_path}: not the trials of {path}: {what}")
        order = np.array([place[pair] for pair in ours])
    differ = np.flatnonzero(other.labels[order] != trials.labels)
    if len(differ):
        raise DataError(
            f"{other_path}: {len(differ)} trials have another label than in {path}, the first is "
            f"{' '.join(ours[differ[0]])}"
        )
    return order


def _pairs(trials: Trials) -> list[tuple[str, str]]:
    files = trials.files
    pairs = zip(trials.enrol.tolist(), trials.test.tolist(), strict=True)
    return [(files[enrol], files[test]) for enrol, test in pairs]


# ---------------------------------------------------------------------------- the command


def calibrate(
    apply_to: Sequence[Path],
    output: Path,
    fit_on: Sequence[Path] = (),
    model: Path | None = None,
    prior: float = 0.01,
    quality: Sequence[Path] = (),
    columns: Sequence[str] | None = None,
    durations: Path | None = None,
    enrolments: Sequence[Path] = (),
) -> tuple[Calibration, str]:
    """Fit on one list of trials, apply to another; or apply a ``model`` that was fitted before.

    Args:
        apply_to, fit_on: score files, one a system, of the same systems in the same order.
        output: score file of ratios; a fitted model goes beside it, as JSON.
        quality: CSVs with measures of files; ``columns`` of them, None: all.
        durations: folder below which files lie whose log duration is a measure too.
        enrolments: lists of the files of ids that score files hold in place of files.

    Returns:
        The calibration, and a table of metrics before and after.
    """
    check_prior(prior)
    beside = output.with_suffix(".json")
    written = {output.resolve(), beside.resolve()}
    for path in [*apply_to, *fit_on, *quality, *([model] if model else [])]:
        if path.resolve() in written:
            raise ConfigError(f"--output {output}: would overwrite {path}; give another name")
    if output == beside:
        raise ConfigError(f"--output {output}: the model takes this name; use .txt for scores")
    if fit_on and len(fit_on) != len(apply_to):
        raise ConfigError(
            f"--fit has {len(fit_on)} score files and --apply {len(apply_to)}; give one of each "
            "system, in the same order"
        )
    known = Calibration.load(model) if model else None
    wanted = read_list(apply_to)
    fitted = read_list(fit_on) if fit_on else None
    lists = [wanted, *([fitted] if fitted else [])]
    measures = read_measures(quality, columns)
    if durations:
        compared = dict.fromkeys(file for each in lists for file in each.trials.files)
        models = {id_: files for path in enrolments for id_, files in read_enrolments(path).items()}
        measures["log_duration"] = log_durations(list(compared), durations, models)
    names, x = wanted.inputs(measures)

    table: dict[str, dict[str, float]] = {}
    if fitted:
        fit_names, fit_x = fitted.inputs(measures)
        known = fit(fit_x, fitted.trials.labels, prior, fit_names)
        known.save(beside)
        ratios = known.apply(fit_x)
        _measure(table, f"fitted on {fit_on[0].name}", fitted, ratios, prior)
    assert known
    if known.inputs != names:
        raise DataError(
            f"{model}: was fitted on {', '.join(known.inputs)}, and is given {', '.join(names)}"
        )
    ratios = known.apply(x)
    write_scores(output, wanted.trials, ratios)
    _measure(table, f"applied to {apply_to[0].name}", wanted, ratios, prior)
    return known, format_table(table)


def _measure(
    table: dict[str, dict[str, float]],
    place: str,
    scored: ScoredList,
    ratios: np.ndarray,
    prior: float,
) -> None:
    labels = scored.trials.labels
    columns = {f"score {i + 1}": column for i, column in enumerate(scored.scores.T)}
    for system, scores in (columns | {"calibrated": ratios}).items():
        table.setdefault(system, {}).update(
            {
                f"{place}/eer": metrics.eer(scores, labels),
                f"{place}/mindcf": metrics.min_dcf(scores, labels, prior),
                f"{place}/actdcf": metrics.act_dcf(scores, labels, prior),
                f"{place}/cllr": metrics.cllr(scores, labels),
            }
        )
