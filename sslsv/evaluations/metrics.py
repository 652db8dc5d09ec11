"""Speaker-verification metrics: numpy functions of scores and labels.

Everywhere, ``scores`` (T,) are finite numbers, higher meaning "same speaker", and ``labels`` (T,)
are 1 for a target trial (same speaker) and 0 for a non-target one. A trial is accepted when
``score >= threshold``, so trials with equal scores are always decided alike and the order of the
list changes no result. Every metric raises `sslsv.errors.DataError` on the input `check` refuses.
"""

from collections.abc import Sequence
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


def error_counts(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """`operating_points` in whole numbers.

    Returns:
        ``(thresholds, misses, false_accepts, targets, nontargets)``: the first three (K + 1,), the
        counts int64.
    """
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
    thresholds, misses, false_accepts, targets, nontargets = error_counts(scores, labels)
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
    return float(equal_errors(fnr[None], fpr[None])[0])


def equal_errors(fnr: np.ndarray, fpr: np.ndarray) -> np.ndarray:
    """`equal_error` of each row of (R, K) rates: (R,)."""
    row = np.arange(len(fnr))
    after = np.argmax(fnr >= fpr, axis=1)  # at least 1: the first point is FNR 0, FPR 1
    before = after - 1
    low, high = fnr[row, before], fnr[row, after]
    gap_before, gap_after = fpr[row, before] - low, high - fpr[row, after]
    return low + gap_before / (gap_before + gap_after) * (high - low)


def eer_rocch(scores: Any, labels: Any) -> float:
    """Equal error rate in per cent on the convex hull of the ROC, never above `eer`.

    The hull holds the error rates of the best choice at random between two thresholds, so this is
    what pool-adjacent-violators calibration leaves: the largest, over all priors, of the smallest
    probability of error. Brümmer and de Villiers, "The BOSARIS toolkit" (2013), section 6.
    """
    return 100.0 * equal_error(*rocch(scores, labels))


def rocch(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the convex hull of the ROC, from accept-all to reject-all.

    Returns:
        ``(fnr, fpr)``, each (V,), as in `operating_points`. Trials between two neighbouring
        vertices are those that pool-adjacent-violators gives one log-likelihood ratio.
    """
    _, misses, false_accepts, targets, nontargets = error_counts(scores, labels)
    kept = hull(nontargets - false_accepts, misses)
    return misses[kept] / targets, false_accepts[kept] / nontargets


def hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices (V,) of the vertices of the greatest convex minorant of the points (x, y), (K,).

    ``x`` and ``y`` never fall and are whole numbers whose products are exact in their type, so
    the choice of vertices is exact: points on an edge are none.
    """
    new = np.append(True, (np.diff(x) > 0) | (np.diff(y) > 0))
    kept = np.flatnonzero(new)  # equal points would hide each other
    before = 2 * len(kept) + 1
    while len(kept) > 2 and len(kept) < 0.9 * before:  # most points go in a few passes
        before = len(kept)
        width, height = np.diff(x[kept]), np.diff(y[kept])
        # A point on or above the line between two others is no vertex, whatever becomes of them.
        convex = width[:-1] * height[1:] > height[:-1] * width[1:]
        kept = kept[np.concatenate(([True], convex, [True]))]
    vertices: list[tuple[int, Any, Any]] = []  # the rest one by one: Andrew's monotone chain
    for point in zip(kept.tolist(), x[kept].tolist(), y[kept].tolist(), strict=True):
        while len(vertices) > 1 and not _turns_up(vertices[-2], vertices[-1], point):
            vertices.pop()
        vertices.append(point)
    return np.array([index for index, _, _ in vertices])


def _turns_up(a: tuple[int, Any, Any], b: tuple[int, Any, Any], c: tuple[int, Any, Any]) -> bool:
    return (b[1] - a[1]) * (c[2] - b[2]) > (b[2] - a[2]) * (c[1] - b[1])


def eer_reference(scores: Any, labels: Any) -> float:
    """Equal error rate in per cent without interpolation: ``max(FPR, FNR)`` where they are closest.

    For comparison with figures computed that way; with many trials it differs from `eer` by less
    than one trial's share. The lowest threshold wins where several are equally close.
    """
    _, misses, false_accepts, targets, nontargets = error_counts(scores, labels)
    best = _closest(misses, false_accepts, targets, nontargets)
    return 100.0 * max(misses[best] / targets, false_accepts[best] / nontargets)


def _closest(misses: np.ndarray, false_accepts: np.ndarray, targets: int, nontargets: int) -> int:
    """Index of the first point with the smallest ``|FNR - FPR|``."""
    # In whole numbers, so that rounding never decides which point is closest.
    return int(np.argmin(np.abs(misses * nontargets - false_accepts * targets)))


def dcf(
    fnr: Any, fpr: Any, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> np.ndarray:
    """Detection cost at the given error rates (0 to 1, any shape), normalised.

    A cost of 1 is that of the better of the two systems that look at no score (accept all, reject
    all).

    Raises:
        ConfigError: the prior is not strictly between 0 and 1, or a cost is not positive.
    """
    check_application(p_target, c_miss, c_fa)
    miss, false_accept = c_miss * p_target, c_fa * (1 - p_target)
    cost = miss * np.asarray(fnr) + false_accept * np.asarray(fpr)
    return cost / min(miss, false_accept)


def check_application(p_target: float, c_miss: float, c_fa: float) -> None:
    """Raise `ConfigError` for a prior or costs that `dcf` refuses."""
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


def min_dcfs(
    scores: Any,
    labels: Any,
    p_targets: Sequence[float] = (0.01, 0.05),
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> dict[float, float]:
    """`min_dcf` by prior, with the scores sorted once; their mean is the primary cost of a SRE."""
    _, fnr, fpr = operating_points(scores, labels)
    return {p: float(dcf(fnr, fpr, p, c_miss, c_fa).min()) for p in p_targets}


def act_dcf(
    scores: Any, labels: Any, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Normalised detection cost at the Bayes threshold, for scores that are log-likelihood ratios.

    That is `bayes_threshold`. It says nothing about scores that are not calibrated natural-log
    likelihood ratios, such as cosines: see `calibration_warning`.
    """
    threshold = bayes_threshold(p_target, c_miss, c_fa)
    fnr, fpr = error_rates(scores, labels, threshold)
    return float(dcf(fnr, fpr, p_target, c_miss, c_fa))


def bayes_threshold(p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The log-likelihood ratio from which on accepting costs less on average than rejecting.

    ``log(c_fa (1 - p_target) / (c_miss p_target))``.
    """
    check_application(p_target, c_miss, c_fa)
    return float(np.log(c_fa * (1 - p_target)) - np.log(c_miss * p_target))


def error_rates(scores: Any, labels: Any, threshold: float) -> tuple[float, float]:
    """``(fnr, fpr)``, 0 to 1, at a threshold, such as one that was chosen on another list."""
    scores, labels = check(scores, labels)
    if np.isnan(threshold):
        raise ConfigError("threshold must be a number, got nan")
    accepted = scores >= threshold
    return float(1 - accepted[labels].mean()), float(accepted[~labels].mean())


def eer_threshold(scores: Any, labels: Any) -> float:
    """The lowest threshold at which FNR and FPR are closest: the point of `eer_reference`."""
    thresholds, misses, false_accepts, targets, nontargets = error_counts(scores, labels)
    return float(thresholds[_closest(misses, false_accepts, targets, nontargets)])


def fpr_threshold(scores: Any, labels: Any, fpr: float) -> float:
    """The lowest threshold that accepts at most the share ``fpr`` (0 to 1) of the non-targets.

    No other threshold keeps to it and misses fewer targets. ``inf`` (reject all) where the best
    score of all belongs to too many non-targets.
    """
    _check_rate("fpr", fpr)
    thresholds, _, false_accepts, _, nontargets = error_counts(scores, labels)
    return float(thresholds[np.argmax(false_accepts / nontargets <= fpr)])


def fnr_threshold(scores: Any, labels: Any, fnr: float) -> float:
    """The highest threshold that rejects at most the share ``fnr`` (0 to 1) of the targets.

    No other threshold keeps to it and accepts fewer non-targets. ``inf`` (reject all) where
    ``fnr`` is 1.
    """
    _check_rate("fnr", fnr)
    thresholds, misses, _, targets, _ = error_counts(scores, labels)
    return float(thresholds[np.flatnonzero(misses / targets <= fnr)[-1]])


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"{name} must lie between 0 and 1, got {rate}")


def cllr(scores: Any, labels: Any) -> float:
    """Cost of log-likelihood ratios in bits: 0 is perfect, scores of 0 (no information) give 1.

    Like `act_dcf` it is for natural-log likelihood ratios. Brümmer and du Preez, "Application-
    independent evaluation of speaker detection", Computer Speech & Language 20 (2006).
    """
    scores, labels = check(scores, labels)
    target_bits = np.logaddexp(0, -scores[labels]).mean() / np.log(2)
    nontarget_bits = np.logaddexp(0, scores[~labels]).mean() / np.log(2)
    return float((target_bits + nontarget_bits) / 2)


def min_cllr(scores: Any, labels: Any) -> float:
    """`cllr` after the best calibration that keeps the order of the scores, between 0 and 1.

    The calibration is that of pool-adjacent-violators, whose pools are the edges of `rocch`; a pool
    of one class has the log-likelihood ratio -inf or inf and costs nothing. Brümmer and du Preez
    (2006). Cllr minus this is what calibration could win.
    """
    return min_cllr_of_hull(*rocch(scores, labels))


def min_cllr_of_hull(fnr: np.ndarray, fpr: np.ndarray) -> float:
    """Bits of ideally calibrated scores whose ROC has these convex vertices (V,)."""
    target, nontarget = np.diff(fnr), -np.diff(fpr)  # shares of the trials of a pool
    mixed = (target > 0) & (nontarget > 0)
    target, nontarget = target[mixed], nontarget[mixed]
    bits = target * np.log1p(nontarget / target) + nontarget * np.log1p(target / nontarget)
    return float(bits.sum() / (2 * np.log(2)))


def calibration_warning(scores: Any, labels: Any) -> str | None:
    """What to say beside `act_dcf` and `cllr` where calibration would win 0.1 bits or more."""
    found, least = cllr(scores, labels), min_cllr(scores, labels)
    if found - least < 0.1:
        return None
    return (
        f"scores are not calibrated log-likelihood ratios (Cllr {found:.2f}, {least:.2f} after "
        "calibration), so actDCF and Cllr say little of them; calibrate them on another list first"
    )


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
