"""Speaker-verification metrics: numpy functions of scores and labels.

Everywhere, ``scores`` (T,) are finite numbers, higher meaning "same speaker", and ``labels`` (T,)
are 1 for a target trial (same speaker) and 0 for a non-target one. A trial is accepted when
``score >= threshold``, so trials with equal scores are always decided alike and the order of the
list changes no result. Every metric raises `sslsv.errors.DataError` on the input `check` refuses.
"""

from typing import Any

import numpy as np

from sslsv.errors import ConfigError, DataError


def check(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return ``scores`` as float64 (T,) and ``labels`` as bool (T,) if they can be evaluated.

    Raises:
        DataError: there is no trial, the lengths differ, a score is not finite, a label is neither
            0 nor 1, or one of the two classes is missing.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise DataError(
            "scores and labels must be two lists of the same length, one value a trial; "
            f"got shapes {scores.shape} and {labels.shape}"
        )
    if len(scores) == 0:
        raise DataError("no trial to evaluate: the scores are empty")

    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(scores)} scores are not finite numbers, the first "
            f"({scores[bad[0]]}) at index {bad[0]}; look for NaN or empty embeddings"
        )
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if len(bad):
        raise DataError(
            f"labels must be 1 (target) or 0 (non-target); {len(bad)} of {len(labels)} are not, "
            f"the first ({labels[bad[0]]}) at index {bad[0]}"
        )
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        present, missing = ("target", "non-target") if labels[0] else ("non-target", "target")
        raise DataError(
            f"no {missing} trial: all {len(labels)} trials are {present} ones, "
            "and error rates need both"
        )
    return scores, labels


def _error_counts(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Thresholds (K + 1,), int64 misses and false acceptances at each, targets, non-targets."""
    scores, labels = check(scores, labels)
    order = np.argsort(scores)
    scores, labels = scores[order], labels[order]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(scores)) + 1))  # of each distinct score
    below = np.append(starts, len(scores))  # trials rejected at each threshold
    misses = np.concatenate(([0], np.cumsum(labels, dtype=np.int64)))[below]
    targets = int(misses[-1])
    nontargets = len(scores) - targets
    thresholds = np.append(scores[starts], np.inf)
    return thresholds, misses, nontargets - (below - misses), targets, nontargets


def operating_points(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All error rates that a threshold can give, from accept-all to reject-all.

    Returns:
        ``(thresholds, fnr, fpr)``, each (K + 1,) for K distinct scores: the increasing scores,
        then ``inf`` (reject all); the share of targets rejected (0 to 1); the share of non-targets
        accepted (1 to 0).
    """
    thresholds, misses, false_accepts, targets, nontargets = _error_counts(scores, labels)
    return thresholds, misses / targets, false_accepts / nontargets


def eer(scores: Any, labels: Any) -> float:
    """Equal error rate in per cent, interpolated between operating points.

    FNR never falls and FPR never rises with the threshold. The EER is where the straight line
    between the last operating point with FNR < FPR and the first with FNR >= FPR meets FNR = FPR.
    Choosing at random between these two thresholds attains it, so it is a property of the scores
    and not of the order of the list, it moves smoothly when one trial changes, and scores that
    are all equal (no information) give 50.
    """
    _, fnr, fpr = operating_points(scores, labels)
    return 100.0 * equal_error(fnr, fpr)


def equal_error(fnr: np.ndarray, fpr: np.ndarray) -> float:
    """The rate (0 to 1) at which the line through ``operating_points`` crosses FNR = FPR."""
    after = int(np.argmax(fnr >= fpr))  # at least 1: the first point is FNR 0, FPR 1
    gap_before = fpr[after - 1] - fnr[after - 1]
    gap_after = fnr[after] - fpr[after]
    step = gap_before / (gap_before + gap_after)
    return float(fnr[after - 1] + step * (fnr[after] - fnr[after - 1]))


def eer_reference(scores: Any, labels: Any) -> float:
    """Equal error rate in per cent without interpolation: ``max(FPR, FNR)`` where they are closest.

    For comparison with figures computed that way; with many trials it differs from `eer` by less
    than one trial's share. The lowest threshold wins where several are equally close.
    """
    _, misses, false_accepts, targets, nontargets = _error_counts(scores, labels)
    # In whole numbers, so that rounding never decides which point is closest.
    gap = np.abs(misses * nontargets - false_accepts * targets)
    best = int(np.argmin(gap))
    return 100.0 * max(misses[best] / targets, false_accepts[best] / nontargets)


def dcf(
    fnr: Any, fpr: Any, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> np.ndarray:
    """Detection cost at the given error rates (0 to 1, any shape), normalised.

    A cost of 1 is that of the better of the two systems that look at no score (accept all, reject
    all).

    Raises:
        ConfigError: the prior is not strictly between 0 and 1, or a cost is not positive.
    """
    _check_application(p_target, c_miss, c_fa)
    miss, false_accept = c_miss * p_target, c_fa * (1 - p_target)
    cost = miss * np.asarray(fnr) + false_accept * np.asarray(fpr)
    return cost / min(miss, false_accept)


def _check_application(p_target: float, c_miss: float, c_fa: float) -> None:
    if not 0 < p_target < 1:
        raise ConfigError(f"p_target must lie strictly between 0 and 1, got {p_target}")
    if not (0 < c_miss < np.inf and 0 < c_fa < np.inf):
        raise ConfigError(f"c_miss and c_fa must be positive, got {c_miss} and {c_fa}")


def min_dcf(
    scores: Any, labels: Any, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Smallest normalised detection cost over all thresholds, between 0 and 1.

    Args:
        p_target: prior probability of a target trial.
        c_miss: cost of rejecting a target.
        c_fa: cost of accepting a non-target.
    """
    _, fnr, fpr = operating_points(scores, labels)
    return float(dcf(fnr, fpr, p_target, c_miss, c_fa).min())


def act_dcf(
    scores: Any, labels: Any, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Normalised detection cost at the Bayes threshold, for scores that are log-likelihood ratios.

    The threshold is ``log(c_fa (1 - p_target) / (c_miss p_target))``. It says nothing about scores
    that are not calibrated natural-log likelihood ratios, such as cosines.
    """
    scores, labels = check(scores, labels)
    _check_application(p_target, c_miss, c_fa)
    accepted = scores >= np.log(c_fa * (1 - p_target)) - np.log(c_miss * p_target)
    fnr, fpr = 1 - accepted[labels].mean(), accepted[~labels].mean()
    return float(dcf(fnr, fpr, p_target, c_miss, c_fa))


def cllr(scores: Any, labels: Any) -> float:
    """Cost of log-likelihood ratios in bits: 0 is perfect, scores of 0 (no information) give 1.

    Like `act_dcf` it is for natural-log likelihood ratios. Brümmer and du Preez, "Application-
    independent evaluation of speaker detection", Computer Speech & Language 20 (2006).
    """
    scores, labels = check(scores, labels)
    target_bits = np.logaddexp(0, -scores[labels]).mean() / np.log(2)
    nontarget_bits = np.logaddexp(0, scores[~labels]).mean() / np.log(2)
    return float((target_bits + nontarget_bits) / 2)


def avg_r_prec(scores: Any, labels: Any, enrolments: Any) -> float:
    """Average R-precision, 0 to 1: can the targets of an enrolment be retrieved by their scores?

    The mean, over the enrolments that have targets (r of them), of the share of targets among
    their r best scores. Where equal scores straddle the r-th place, it is the expected share when
    the tied trials are put in random order.

    Args:
        enrolments: (T,) which enrolment a trial belongs to; integers are fastest.

    Raises:
        DataError: ``enrolments`` has another length than ``scores``, or see `check`.
    """
    scores, labels = check(scores, labels)
    if np.shape(enrolments) != scores.shape:
        raise DataError(
            f"avg_r_prec needs one enrolment for each of the {len(scores)} trials, "
            f"got shape {np.shape(enrolments)}"
        )
    groups, group = np.unique(enrolments, return_inverse=True)
    size, relevant = np.bincount(group), np.bincount(group[labels], minlength=len(groups))

    order = np.lexsort((-scores, group))  # by enrolment, best score first
    scores, labels, group = scores[order], labels[order], group[order]
    first = np.cumsum(size) - size  # where each enrolment starts
    last_place = scores[first + np.maximum(relevant, 1) - 1][group]  # its r-th best score

    def count(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(group[chosen], minlength=len(groups))

    above, tied = scores > last_place, scores == last_place
    places_left = relevant - count(above)
    found = count(above & labels) + places_left * count(tied & labels) / count(tied)
    asked = relevant > 0
    return float((found[asked] / relevant[asked]).mean())
