"""Error bars of metrics, and a paired test of two systems, by a bootstrap of the speakers.

Trials that share a speaker go well or badly together, so a bootstrap that draws trials one by one
gives intervals far too narrow. Here a resample draws as many speakers as there are, with
replacement. Where speaker s was drawn n_s times, a target trial of s counts n_s times and a
non-target trial of s and t n_s n_t times. (Bolle, Ratha and Pankanti, "Error analysis of pattern
recognition systems: the subsets bootstrap", 2004; of products of weights: Owen, "The pigeonhole
bootstrap", 2007, which finds them a little too wide rather than too narrow.)

Few speakers tell little of all others. Of simulated lists with strong differences between speakers,
95 % intervals of the EER held the true value in 94 % with 60 speakers, 91 % with 40, 84 % with 20
and 70 % with 10.

Scores are sorted once. A resample only weights the sorted trials and adds up, a few resamples at a
time, so memory does not grow with their number, and how they are divided changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sslsv.errors import ConfigError, DataError, listing
from sslsv.evaluations import metrics
from sslsv.evaluations.trials import Trials
from sslsv.randomness import generator

Costs = tuple[float, float, float]  # p_target, c_miss, c_fa
Interval = tuple[float, float]  # low, high
COSTS: Costs = (0.01, 1.0, 1.0)
_CELLS = 2**19  # weights held at once: few enough to stay in the processor's cache
_LOST = 0.1  # share of resamples that may lack a class


def speaker_codes(trials: Trials, speakers: Mapping[str, str] | None = None) -> np.ndarray:
    """Who speaks in each trial: (2, T) integers from 0, of the enrolment and the test side.

    Args:
        speakers: see `codes_of_files`. Where it is None and the trials do not join all files of a
            speaker, intervals are too narrow.

    Raises:
        DataError: files have no speaker, or labels contradict the speakers.
    """
    pairs = codes_of_files(trials, speakers)[np.stack([trials.enrol, trials.test])]
    wrong = np.flatnonzero((pairs[0] == pairs[1]) != trials.labels)
    if len(wrong):
        enrol, test = trials.enrol[wrong].tolist(), trials.test[wrong].tolist()
        named = zip(trials.labels[wrong], enrol, test, strict=True)
        if speakers is None:
            source, mend = "target trials", "name the speakers of the files (--speakers FILE.csv)"
        else:
            source, mend = "speakers", "correct the list or the speakers"
        raise DataError(
            f"{trials.name}: {len(wrong)} of {len(trials)} labels contradict the {source}; {mend}: "
            + listing([f"'{label:d} {trials.files[a]} {trials.files[b]}'" for label, a, b in named])
        )
    return pairs


def codes_of_files(trials: Trials, speakers: Mapping[str, str] | None = None) -> np.ndarray:
    """Who speaks in each of ``trials.files``: (files,) integers from 0.

    Args:
        speakers: speaker of each file; an enrolment id that is not in it is of the speaker of its
            first file. None: files that target trials join, directly or over other files, are one
            speaker, and a file without a target trial is one of its own.

    Raises:
        DataError: files have no speaker.
    """
    if speakers is None:
        a, b = trials.enrol[trials.labels], trials.test[trials.labels]
        size = len(trials.files)
        graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(size, size))
        return connected_components(graph, directed=False)[1]
    files = [
        trials.models[file][0] if file in trials.models and file not in speakers else file
        for file in trials.files
    ]
    if missing := [x for x, file in zip(trials.files, files, strict=True) if file not in speakers]:
        raise DataError(
            f"{trials.name}: {len(missing)} of {len(files)} files have no speaker: "
            f"{listing(missing)}"
        )
    return np.unique([speakers[file] for file in files], return_inverse=True)[1]


def intervals(
    scores: Any,
    labels: Any,
    speakers: np.ndarray,
    names: Sequence[str] = ("eer",),
    *,
    resamples: int = 1000,
    seed: int = 0,
    costs: Costs = COSTS,
) -> dict[str, Interval]:
    """95 % intervals ``(low, high)`` of metrics by name, see `METRICS`: percentiles of resamples.

    Args:
        speakers: (2, T) integers, see `speaker_codes`.
        costs: p_target, c_miss and c_fa of detection costs.

    Raises:
        DataError, ConfigError: as `replicates`.
    """
    found = replicates([scores], labels, speakers, names, resamples, seed, costs)[:, 0]
    return {name: _interval(found[:, i]) for i, name in enumerate(names)}


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same trials, under the same resamples."""

    a: float
    b: float
    interval_a: Interval
    interval_b: Interval
    interval: Interval  # of the difference a - b
    p: float  # two-sided, of no difference

    @property
    def difference(self) -> float:
        return self.a - self.b


def paired(
    scores_a: Any,
    scores_b: Any,
    labels: Any,
    speakers: np.ndarray,
    name: str = "eer",
    *,
    resamples: int = 1000,
    seed: int = 0,
    costs: Costs = COSTS,
) -> Comparison:
    """Difference of one metric between two systems; arguments and errors as of `intervals`.

    p is twice the share of resamples in which the difference is zero or on the rarer side of it,
    these and the list itself counted: ``2 (1 + k) / (resamples + 1)``, at most 1.
    """
    systems = [scores_a, scores_b]
    a, b = replicates(systems, labels, speakers, [name], resamples, seed, costs)[..., 0].T
    difference = a - b
    rarer = min((difference <= 0).sum(), (difference >= 0).sum())
    value = METRICS[name].value
    return Comparison(
        a=value(scores_a, labels, costs),
        b=value(scores_b, labels, costs),
        interval_a=_interval(a),
        interval_b=_interval(b),
        interval=_interval(difference),
        p=float(min(1.0, 2 * (1 + rarer) / (len(difference) + 1))),
    )


def replicates(
    systems: Sequence[Any],
    labels: Any,
    speakers: np.ndarray,
    names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    costs: Costs = COSTS,
) -> np.ndarray:
    """Metrics (R, systems, names) of each resample, the same resamples for all systems.

    R is ``resamples`` less those without a target or a non-target trial.

    Raises:
        DataError: `metrics.check` refuses the scores of a system, the speakers of a trial
            contradict its label, or more than a tenth of the resamples lack a class because
            there are too few speakers.
        ConfigError: an unknown metric, fewer than 100 resamples, a negative seed, or
            impossible costs.
    """
    for name in names:
        check_name(name)
    if resamples < 100:
        raise ConfigError(f"resamples: must be at least 100, got {resamples}")
    if seed < 0:
        raise ConfigError(f"seed: must not be negative, got {seed}")
    labels = metrics.check(systems[0], labels)[1]
    speakers, count = _checked(speakers, labels)
    in_order = [_Sorted(scores, labels, speakers) for scores in systems]
    rows = max(1, _CELLS // max(len(labels), count))
    parts = [
        _measure(in_order, drawn, names, costs) for drawn in _draws(count, resamples, rows, seed)
    ]
    values = np.concatenate(parts)
    lost = resamples - len(values)
    if lost > _LOST * resamples:
        raise DataError(
            f"{lost} of {resamples} resamples of {count} speakers have no target or no non-target "
            "trial: too few speakers for an interval"
        )
    return values


def _checked(speakers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Speakers (2, T) coded as 0, 1, …, and how many there are."""
    if np.shape(speakers) != (2, len(labels)):
        raise DataError(
            f"speakers must have the shape (2, {len(labels)}), both sides of each trial; "
            f"got {np.shape(speakers)}"
        )
    names, codes = np.unique(speakers, return_inverse=True)
    codes = codes.reshape(2, -1)
    wrong = np.flatnonzero((codes[0] == codes[1]) != labels)
    if len(wrong):
        a, b = names[codes[:, wrong[0]]]
        raise DataError(
            f"{len(wrong)} of {len(labels)} labels contradict the speakers, the first at index "
            f"{wrong[0]}: label {labels[wrong[0]]:d}, speakers {a} and {b}"
        )
    return codes, len(names)


def _measure(
    systems: list[_Sorted], drawn: np.ndarray, names: Sequence[str], costs: Costs
) -> np.ndarray:
    """Metrics (R, systems, names) of those among some resamples that have both classes."""
    first = _Weighted(systems[0], drawn, costs)
    complete = first.targets.any(axis=1) & first.nontargets.any(axis=1)
    if not complete.all():  # rare
        return _measure(systems, drawn[complete], names, costs)
    values = np.empty((len(drawn), len(systems), len(names)))
    for place, system in enumerate(systems):
        weighted = first if place == 0 else _Weighted(system, drawn, costs)
        for column, name in enumerate(names):
            values[:, place, column] = METRICS[name].of(weighted)
    return values


def check_name(name: str) -> None:
    """Raise `ConfigError` for a metric that is not among `METRICS`."""
    if name in METRICS:
        return
    near = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(METRICS)}"
    raise ConfigError(f"metric: '{name}' has no intervals; {hint}")


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _draws(count: int, resamples: int, rows: int, seed: int) -> Iterator[np.ndarray]:
    """How often each speaker is drawn, (up to ``rows``, count) at a time."""
    rng = generator("bootstrap", seed)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count)
        yield times.reshape(size, count).astype(np.float64)


class _Sorted:
    """The trials of one system in increasing order of their scores, each class by itself."""

    def __init__(self, scores: Any, labels: np.ndarray, speakers: np.ndarray):
        scores = metrics.check(scores, labels)[0]
        targets, nontargets = np.flatnonzero(labels), np.flatnonzero(~labels)
        targets = targets[np.argsort(scores[targets])]
        nontargets = nontargets[np.argsort(scores[nontargets])]
        self.target_scores, self.nontarget_scores = scores[targets], scores[nontargets]
        self.target = speakers[0, targets]  # speaker of each
        self.nontarget = speakers[:, nontargets]  # (2, non-targets)
        self.below = _corners(scores, labels)

    @cached_property
    def bits(self) -> tuple[np.ndarray, np.ndarray]:
        """What each target and each non-target adds to Cllr."""
        targets = np.logaddexp(0, -self.target_scores) / np.log(2)
        return targets, np.logaddexp(0, self.nontarget_scores) / np.log(2)


def _corners(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Targets and non-targets below the thresholds that matter, (2, P).

    Between these the line through all operating points is straight whatever the weights: from a
    threshold to the next, trials of one class only are rejected.
    """
    _, misses, false_accepts, _, nontargets = metrics.error_counts(scores, labels)
    below = np.stack([misses, nontargets - false_accepts])
    moves = np.diff(below) > 0
    straight = (moves[:, 1:] == moves[:, :-1]).all(axis=0) & ~moves[:, 1:].all(axis=0)
    return below[:, np.concatenate(([True], ~straight, [True]))]


class _Weighted:
    """One system under some resamples."""

    def __init__(self, system: _Sorted, drawn: np.ndarray, costs: Costs):
        self.system = system
        self.costs = costs
        self.targets = drawn.take(system.target, axis=1)  # weights (R, targets)
        self.nontargets = drawn.take(system.nontarget[0], axis=1)
        self.nontargets *= drawn.take(system.nontarget[1], axis=1)

    @cached_property
    def below(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of the targets and of the non-targets below each corner, (R, P) each."""
        targets, nontargets = self.system.below
        return _sum_of_first(self.targets, targets), _sum_of_first(self.nontargets, nontargets)

    @cached_property
    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """FNR and FPR (R, P) at each corner."""
        misses, rejected = self.below
        return misses / misses[:, -1:], (rejected[:, -1:] - rejected) / rejected[:, -1:]

    @cached_property
    def hulls(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """FNR and FPR (V,) at the vertices of the convex hull, of each resample."""
        found = []
        for misses, rejected, fnr, fpr in zip(*self.below, *self.rates, strict=True):
            kept = metrics.hull(rejected, misses)
            found.append((fnr[kept], fpr[kept]))
        return found

    def eer(self) -> np.ndarray:
        return 100 * metrics.equal_errors(*self.rates)

    def eer_rocch(self) -> np.ndarray:
        return np.array([100 * metrics.equal_error(*hull) for hull in self.hulls])

    def mindcf(self) -> np.ndarray:
        return metrics.dcf(*self.rates, *self.costs).min(axis=1)

    def actdcf(self) -> np.ndarray:
        threshold = metrics.bayes_threshold(*self.costs)
        fnr, fpr = self.means(
            self.system.target_scores < threshold, self.system.nontarget_scores >= threshold
        )
        return metrics.dcf(fnr, fpr, *self.costs)

    def cllr(self) -> np.ndarray:
        targets, nontargets = self.means(*self.system.bits)
        return (targets + nontargets) / 2

    def mincllr(self) -> np.ndarray:
        return np.array([metrics.min_cllr_of_hull(*hull) for hull in self.hulls])

    def means(self, targets: np.ndarray, nontargets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted means (R,) of values of the targets and of the non-targets."""
        return (
            self.targets @ targets / self.targets.sum(axis=1),
            self.nontargets @ nontargets / self.nontargets.sum(axis=1),
        )


def _sum_of_first(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of the first ``counts`` (P,) of each row of (R, T) weights: (R, P)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums.take(counts, axis=1)


@dataclass(frozen=True)
class _Metric:
    value: Callable[[Any, Any, Costs], float]  # of scores and labels
    of: Callable[[_Weighted], np.ndarray]  # of each resample


METRICS = {
    "eer": _Metric(lambda s, labels, _: metrics.eer(s, labels), _Weighted.eer),
    "eer_rocch": _Metric(lambda s, labels, _: metrics.eer_rocch(s, labels), _Weighted.eer_rocch),
    "mindcf": _Metric(lambda s, labels, c: metrics.min_dcf(s, labels, *c), _Weighted.mindcf),
    "actdcf": _Metric(lambda s, labels, c: metrics.act_dcf(s, labels, *c), _Weighted.actdcf),
    "cllr": _Metric(lambda s, labels, _: metrics.cllr(s, labels), _Weighted.cllr),
    "mincllr": _Metric(lambda s, labels, _: metrics.min_cllr(s, labels), _Weighted.mincllr),
}
