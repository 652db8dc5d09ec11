import itertools
import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sslsv.errors import ConfigError, DataError
from sslsv.evaluations.metrics import (
    act_dcf,
    avg_r_prec,
    bayes_threshold,
    calibration_warning,
    check,
    cllr,
    eer,
    eer_reference,
    eer_rocch,
    eer_threshold,
    error_rates,
    fnr_threshold,
    fpr_threshold,
    hull,
    min_cllr,
    min_dcf,
    min_dcfs,
    operating_points,
    rocch,
)

# Few distinct scores, so that ties within and across the classes are the rule.
TIED = st.integers(-3, 3).map(float)
DISTINCT = st.floats(-1e6, 1e6)


@st.composite
def trials(draw, values=TIED | DISTINCT, most=12):
    targets = draw(st.lists(values, min_size=1, max_size=most))
    nontargets = draw(st.lists(values, min_size=1, max_size=most))
    pairs = draw(st.permutations([(s, 1) for s in targets] + [(s, 0) for s in nontargets]))
    return [s for s, _ in pairs], [label for _, label in pairs]


def exact_points(scores, labels):
    """(threshold, FNR, FPR) by counting, in exact arithmetic."""
    targets = [s for s, label in zip(scores, labels, strict=True) if label]
    nontargets = [s for s, label in zip(scores, labels, strict=True) if not label]
    return [
        (
            threshold,
            Fraction(sum(s < threshold for s in targets), len(targets)),
            Fraction(sum(s >= threshold for s in nontargets), len(nontargets)),
        )
        for threshold in [*sorted(set(scores)), math.inf]
    ]


def exact_eer(scores, labels):
    """Cut every segment of the curve with FNR = FPR; all cuts must agree."""
    cuts = set()
    for (_, fnr_a, fpr_a), (_, fnr_b, fpr_b) in itertools.pairwise(exact_points(scores, labels)):
        slope = (fnr_b - fpr_b) - (fnr_a - fpr_a)  # positive: a trial changes sides
        step = (fpr_a - fnr_a) / slope
        if 0 <= step <= 1:
            cuts.add(fnr_a + step * (fnr_b - fnr_a))
    (rate,) = cuts
    return 100 * rate


def exact_eer_reference(scores, labels):
    _, fnr, fpr = min(exact_points(scores, labels), key=lambda point: abs(point[1] - point[2]))
    return 100 * max(fnr, fpr)


def exact_eer_rocch(scores, labels):
    """The best of all random choices between two thresholds that equalise the error rates."""
    rates = set()
    points = exact_points(scores, labels)
    for (_, fnr_a, fpr_a), (_, fnr_b, fpr_b) in itertools.product(points, repeat=2):
        gap_a, gap_b = fpr_a - fnr_a, fnr_b - fpr_b
        if gap_a >= 0 and gap_b >= 0:
            share = gap_a / (gap_a + gap_b) if gap_a + gap_b else 0
            rates.add(fnr_a + share * (fnr_b - fnr_a))
    return 100 * min(rates)


def exact_rocch(scores, labels):
    """(FNR, FPR) of the points that lie below the line between any two others."""
    points = list(dict.fromkeys(point[1:] for point in exact_points(scores, labels)))
    kept = []
    for place, (fnr, fpr) in enumerate(points):
        lines = itertools.product(points[:place], points[place + 1 :])
        # Twice the area of the triangle, positive where the point is nearer to (0, 0).
        if all(
            (fpr_a - fpr) * (b - fnr) > (fnr - a) * (fpr - fpr_b)
            for (a, fpr_a), (b, fpr_b) in lines
        ):
            kept.append((fnr, fpr))
    return kept


def exact_min_cllr(scores, labels):
    """Every way to cut the sorted scores into pools of one ratio each that never falls."""
    distinct = sorted(set(scores))
    counts = [
        [
            sum(s == value and bool(label) == kind for s, label in zip(scores, labels, strict=True))
            for kind in (True, False)
        ]
        for value in distinct
    ]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    costs = []
    for cuts in itertools.product([False, True], repeat=len(distinct) - 1):
        pools = [[0, 0]]
        for (targets, nontargets), cut in zip(counts, (*cuts, False), strict=True):
            pools[-1][0] += targets
            pools[-1][1] += nontargets
            if cut:
                pools.append([0, 0])
        shares = [(Fraction(t, totals[0]), Fraction(n, totals[1])) for t, n in pools]
        if all(a[0] * b[1] <= b[0] * a[1] for a, b in itertools.pairwise(shares)):
            costs.append(
                sum(
                    share / 2 * math.log2(1 + other / share)
                    for pool in shares
                    for share, other in (pool, pool[::-1])
                    if share
                )
            )
    return min(costs)


def exact_min_dcf(scores, labels, p, c_miss, c_fa):
    costs = [
        c_miss * p * fnr + c_fa * (1 - p) * fpr for _, fnr, fpr in exact_points(scores, labels)
    ]
    return min(costs) / min(c_miss * p, c_fa * (1 - p))


def exact_avg_r_prec(scores, labels, enrolments):
    """The mean over all orders of the trials, sorted by score with ties left in that order."""
    shares = []
    for enrolment in set(enrolments):
        rows = [
            (s, label)
            for s, label, e in zip(scores, labels, enrolments, strict=True)
            if e == enrolment
        ]
        r = sum(label for _, label in rows)
        if r:
            orders = list(itertools.permutations(rows))
            found = sum(
                label for order in orders for _, label in sorted(order, key=lambda t: -t[0])[:r]
            )
            shares.append(Fraction(found, r * len(orders)))
    return sum(shares) / len(shares)


# Two targets, three non-targets; one tie across the classes.
HAND = ([0.9, 0.5, 0.5, 0.2, 0.1], [1, 1, 0, 0, 0])


def test_operating_points_of_a_hand_example():
    thresholds, fnr, fpr = operating_points(*HAND)
    assert thresholds.tolist() == [0.1, 0.2, 0.5, 0.9, math.inf]
    assert fnr.tolist() == [0, 0, 0, 0.5, 1]
    assert fpr.tolist() == [1, 2 / 3, 1 / 3, 0, 0]


def test_metrics_of_a_hand_example():
    # From (FNR 0, FPR 1/3) to (1/2, 0): FNR = FPR after 2/5 of the way, at 1/5.
    assert eer(*HAND) == pytest.approx(20)
    assert eer_reference(*HAND) == pytest.approx(100 / 3)
    # Rejecting one target costs 0.01 / 2; any false acceptance costs 0.99 / 3.
    assert min_dcf(*HAND) == pytest.approx(0.5)
    assert min_dcf(*HAND, p_target=0.5) == pytest.approx(1 / 3)
    assert min_dcf(*HAND, p_target=0.5, c_fa=10) == pytest.approx(0.5)


# 1 and 4 are targets, 2 and 3 are not: the hull leaves out all but one threshold.
CONCAVE = ([1.0, 2.0, 3.0, 4.0], [1, 0, 0, 1])


def test_metrics_of_the_convex_hull_of_hand_examples():
    assert eer_rocch(*HAND) == pytest.approx(20)  # all its points are vertices
    # Pools: only non-targets; 1/2 of the targets and 1/3 of the non-targets; only targets.
    assert min_cllr(*HAND) == pytest.approx((math.log2(5 / 3) / 2 + math.log2(5 / 2) / 3) / 2)

    assert eer(*CONCAVE) == 50
    # From (FNR 0, FPR 1) to (1/2, 0): FNR = FPR after 2/3 of the way.
    assert eer_rocch(*CONCAVE) == pytest.approx(100 / 3)
    fnr, fpr = rocch(*CONCAVE)
    assert (fnr.tolist(), fpr.tolist()) == ([0, 0.5, 1], [1, 0, 0])
    # Pools: 1/2 of the targets and all non-targets; only targets.
    assert min_cllr(*CONCAVE) == pytest.approx((math.log2(3) / 2 + math.log2(3 / 2)) / 2)


def test_thresholds_of_a_hand_example():
    assert eer_threshold(*HAND) == 0.5
    assert fpr_threshold(*HAND, 1 / 3) == 0.5
    assert fpr_threshold(*HAND, 0.33) == fpr_threshold(*HAND, 0) == 0.9
    assert fpr_threshold(*HAND, 1) == 0.1
    assert fnr_threshold(*HAND, 0) == fnr_threshold(*HAND, 0.49) == 0.5
    assert fnr_threshold(*HAND, 0.5) == 0.9
    assert fnr_threshold(*HAND, 1) == math.inf
    assert fpr_threshold([0.1, 0.2], [1, 0], 0.5) == math.inf
    assert error_rates(*HAND, 0.5) == (0, 1 / 3)
    assert error_rates(*HAND, 0.51) == (0.5, 0)
    assert error_rates(*HAND, -math.inf) == (0, 1)
    assert bayes_threshold(0.01) == pytest.approx(math.log(99))
    assert bayes_threshold(0.5, c_miss=4, c_fa=2) == pytest.approx(-math.log(2))


def test_without_ties_between_neighbouring_points():
    scores, labels = [0.9, 0.8, 0.4, 0.5, 0.3, 0.2, 0.1], [1, 1, 1, 0, 0, 0, 0]
    assert eer(scores, labels) == pytest.approx(25)
    assert eer_reference(scores, labels) == pytest.approx(100 / 3)
    assert min_dcf(scores, labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize("labels", [[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0]])
def test_equal_scores_hold_no_information(labels):
    scores = [0.3] * 4
    assert eer(scores, labels) == 50
    assert eer_rocch(scores, labels) == 50
    assert eer_reference(scores, labels) == 100
    assert min_dcf(scores, labels) == pytest.approx(1)
    assert min_cllr(scores, labels) == pytest.approx(1)


def test_separated_and_inverted_scores():
    scores = [3.0, 2.0, 1.0, 0.0]
    assert eer(scores, [1, 1, 0, 0]) == min_dcf(scores, [1, 1, 0, 0]) == 0
    assert eer(scores, [0, 0, 1, 1]) == 100
    assert eer_rocch(scores, [1, 1, 0, 0]) == min_cllr(scores, [1, 1, 0, 0]) == 0
    assert eer_rocch(scores, [0, 0, 1, 1]) == 50  # no threshold is better than chance
    assert min_cllr(scores, [0, 0, 1, 1]) == pytest.approx(1)
    assert min_dcf(scores, [0, 0, 1, 1]) == pytest.approx(1)


@given(trials())
def test_operating_points_are_those_counted(data):
    points = exact_points(*data)
    for found, wanted in zip(operating_points(*data), zip(*points, strict=True), strict=True):
        assert found.tolist() == pytest.approx([float(value) for value in wanted])


@given(trials())
@example(([0.5, 0.5], [0, 1]))
@example(([0.5] + [0.1 * i for i in range(40)], [1] + [0] * 40))
@example(([0.5] + [0.1 * i for i in range(40)], [0] + [1] * 40))
def test_eer_is_exact(data):
    assert eer(*data) == pytest.approx(float(exact_eer(*data)))
    assert eer_reference(*data) == pytest.approx(float(exact_eer_reference(*data)))


# One trial of a class against many of the other.
RARE_TARGET = ([0.5] + [0.1 * i for i in range(40)], [1] + [0] * 40)
RARE_NONTARGET = ([0.5] + [0.1 * i for i in range(40)], [0] + [1] * 40)


@given(trials())
@example(([0.5, 0.5], [0, 1]))
@example(RARE_TARGET)
@example(RARE_NONTARGET)
def test_eer_of_the_convex_hull_is_exact(data):
    assert eer_rocch(*data) == pytest.approx(float(exact_eer_rocch(*data)), rel=1e-9)
    assert eer_rocch(*data) <= min(eer(*data), 50) + 1e-9


@given(trials())
@example(([0.5, 0.5], [0, 1]))
@example(RARE_TARGET)
@example(RARE_NONTARGET)
def test_the_convex_hull_has_the_exact_vertices(data):
    fnr, fpr = zip(*exact_rocch(*data), strict=True)
    found = rocch(*data)
    assert found[0].tolist() == pytest.approx([float(value) for value in fnr])
    assert found[1].tolist() == pytest.approx([float(value) for value in fpr])


@given(trials(most=5))
@example(([0.5, 0.5], [0, 1]))
@example(([0.5, 0.5] + [0.1 * i for i in range(8)], [1] + [0] * 9))
@example(([0.5, 0.5] + [0.1 * i for i in range(8)], [0] + [1] * 9))
def test_min_cllr_is_the_least_of_all_calibrations(data):
    found = min_cllr(*data)
    assert found == pytest.approx(exact_min_cllr(*data), rel=1e-9, abs=1e-12)
    assert -1e-12 <= found <= min(1, cllr(*data)) + 1e-12


@pytest.mark.parametrize("shape", ["noise", "convex", "concave", "drop", "edge"])
def test_the_hull_of_many_points_is_that_of_one_by_one(shape):
    # "drop" is convex but for its end, so that removing a point lets only one more be removed.
    count = 400
    steps = np.random.default_rng(3).integers(0, 4, (2, count))
    if shape != "noise":
        steps = np.stack([np.ones(count, dtype=np.int64), np.arange(count)])
    if shape == "concave":
        steps = steps[:, ::-1]
    if shape == "edge":  # a point above an edge hides that another lies on it
        edge = np.array([[2, 1, 1], [20, 11, 9]])
        steps = np.concatenate([steps[:, :10], edge, steps[:, 11:]], axis=1)
    x, y = np.concatenate([np.zeros((2, 1), dtype=np.int64), steps.cumsum(axis=1)], axis=1)
    if shape == "drop":
        x, y = np.append(x, 10 * x[-1]), np.append(y, y[-1])

    points = list(dict.fromkeys(zip(x.tolist(), y.tolist(), strict=True)))
    wanted = points[
        :1
    ]  # from a vertex to the next: the least slope, and of equal ones the farthest
    while wanted[-1] != points[-1]:
        (x0, y0), rest = wanted[-1], points[points.index(wanted[-1]) + 1 :]
        wanted.append(
            min(
                rest,
                key=lambda p: (
                    Fraction(p[1] - y0, p[0] - x0) if p[0] > x0 else 10**9,
                    -p[0] - p[1],
                ),
            )
        )
    found = hull(x, y)
    assert list(zip(x[found].tolist(), y[found].tolist(), strict=True)) == wanted


@given(trials(), st.fractions(0, 1))
@example(RARE_TARGET, Fraction(0))
@example(RARE_NONTARGET, Fraction(1))
def test_thresholds_are_the_best_of_all(data, rate):
    points = exact_points(*data)
    low = [threshold for threshold, _, fpr in points if float(fpr) <= float(rate)]
    high = [threshold for threshold, fnr, _ in points if float(fnr) <= float(rate)]
    assert fpr_threshold(*data, float(rate)) == min(low)
    assert fnr_threshold(*data, float(rate)) == max(high)
    closest = min(abs(fnr - fpr) for _, fnr, fpr in points)
    assert eer_threshold(*data) == min(t for t, fnr, fpr in points if abs(fnr - fpr) == closest)
    for threshold, fnr, fpr in points:
        assert error_rates(*data, threshold) == pytest.approx((float(fnr), float(fpr)))


@given(trials(), st.lists(st.fractions("1/1000", "999/1000"), max_size=3))
def test_min_dcfs_are_exact_at_every_prior(data, priors):
    found = min_dcfs(*data, [float(p) for p in priors], c_miss=2, c_fa=3)
    assert found == pytest.approx({float(p): float(exact_min_dcf(*data, p, 2, 3)) for p in priors})


@given(
    trials(), st.fractions("1/1000", "999/1000"), st.fractions("1/10", 10), st.fractions("1/10", 10)
)
def test_min_dcf_is_exact(data, p_target, c_miss, c_fa):
    found = min_dcf(*data, float(p_target), float(c_miss), float(c_fa))
    assert found == pytest.approx(float(exact_min_dcf(*data, p_target, c_miss, c_fa)))
    assert 0 <= found <= 1 + 1e-12


@given(trials(values=TIED), st.randoms())
def test_order_of_the_trials_and_increasing_maps_change_nothing(data, random):
    scores, labels = data
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = [scores[i] for i in order], [labels[i] for i in order]
    mapped = [math.exp(s) + s**3 for s in scores], labels
    for metric in (eer, eer_rocch, eer_reference, min_dcf, min_cllr):
        assert metric(*data) == metric(*shuffled) == metric(*mapped)


@given(trials())
def test_exchanging_the_classes_and_the_sign_keeps_the_eer(data):
    scores, labels = data
    exchanged = eer([-s for s in scores], [1 - label for label in labels])
    assert exchanged == pytest.approx(eer(scores, labels))


@given(
    trials(values=TIED),
    st.sampled_from([Fraction(1, 100), Fraction(1, 2), Fraction(9, 10)]),
    st.sampled_from([Fraction(1, 2), Fraction(7)]),
)
def test_act_dcf_is_the_cost_at_the_bayes_threshold(data, p_target, c_miss):
    threshold = math.log((1 - p_target) / (c_miss * p_target))
    scores, labels = data
    decided = exact_points(*([1.0 if s >= threshold else 0.0 for s in scores], labels))
    # With decisions for scores, the point at the threshold 1 is the decision itself.
    _, fnr, fpr = next(point for point in decided if point[0] >= 1)
    wanted = (c_miss * p_target * fnr + (1 - p_target) * fpr) / min(c_miss * p_target, 1 - p_target)
    found = act_dcf(scores, labels, float(p_target), float(c_miss))
    assert found == pytest.approx(float(wanted))
    assert found >= min_dcf(scores, labels, float(p_target), float(c_miss)) - 1e-12


def test_act_dcf_threshold_for_the_default_prior_is_log_99():
    just_below, just_above = math.log(99) - 1e-9, math.log(99) + 1e-9
    assert act_dcf([just_above, just_below], [1, 0]) == pytest.approx(0)
    assert act_dcf([just_below, -1.0], [1, 0]) == pytest.approx(1)  # all rejected
    assert act_dcf([just_above, just_above], [1, 0]) == pytest.approx(99)


def test_cllr_of_known_ratios():
    assert cllr([0.0, 0.0, 0.0], [1, 0, 0]) == pytest.approx(1)
    # Ratios of 3 for the target and 1/7 for the non-target: log2(4/3) and log2(8/7).
    wanted = (math.log2(4 / 3) + math.log2(8 / 7)) / 2
    assert cllr([math.log(3), -math.log(7)], [1, 0]) == pytest.approx(wanted)
    assert cllr([1e4, -1e4], [1, 0]) == 0
    assert cllr([-1e4, 1e4], [1, 0]) == pytest.approx(1e4 / math.log(2))


def test_scores_that_are_no_likelihood_ratios_are_told():
    random = np.random.default_rng(0)
    labels = random.random(2000) < 0.5
    llr = 3 * (random.normal(size=labels.size) + 3 * labels) - 4.5  # of two unit Gaussians 3 apart
    assert calibration_warning(llr, labels) is None
    cosines = llr / np.abs(llr).max()
    wanted = f"Cllr {cllr(cosines, labels):.2f}, {min_cllr(llr, labels):.2f} after calibration"
    assert wanted in calibration_warning(cosines, labels)


def test_avg_r_prec_of_a_hand_example():
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    labels = [1, 0, 1, 0, 1, 0, 0]
    enrolments = [7, 7, 7, 2, 2, 5, 5]
    # 7: one target among its 2 best of 2 targets; 2: none in the first place; 5: no target.
    assert avg_r_prec(scores, labels, enrolments) == pytest.approx((1 / 2 + 0) / 2)


def test_avg_r_prec_shares_a_tie():
    # One place for 1 target and 2 non-targets with the same score.
    assert avg_r_prec([0.5] * 3, [0, 1, 0], [0] * 3) == pytest.approx(1 / 3)


@settings(max_examples=60, deadline=None)  # each example tries up to 6! orders
@given(trials(values=TIED, most=3), st.data())
def test_avg_r_prec_is_the_expectation_over_tied_orders(data, more):
    size = len(data[0])
    enrolments = more.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    found = avg_r_prec(*data, enrolments)
    assert found == pytest.approx(float(exact_avg_r_prec(*data, enrolments)))


def test_large_lists_reach_the_theoretical_values():
    random = np.random.default_rng(0)
    labels = random.random(300_000) < 0.5
    scores = random.normal(size=labels.size) + 3 * labels
    theory = 100 * NormalDist().cdf(-1.5)
    assert eer(scores, labels) == pytest.approx(theory, abs=0.2)
    assert eer_reference(scores, labels) == pytest.approx(theory, abs=0.2)
    llr = 3 * scores - 4.5  # of two unit Gaussians 3 apart
    gap = act_dcf(llr, labels, p_target=0.1) - min_dcf(llr, labels, p_target=0.1)
    assert 0 <= gap < 0.01
    assert cllr(llr, labels) < cllr(llr + 1, labels)


def test_label_and_score_types_do_not_matter():
    scores = np.array(HAND[0], dtype=np.float32)
    values = {eer(scores, np.array(HAND[1], dtype=kind)) for kind in (bool, np.int8, float)}
    assert values == {eer(*HAND)}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "no trial to evaluate"),
        ([0.1, 0.2], [1], r"same length.*\(2,\) and \(1,\)"),
        ([[0.1], [0.2]], [[1], [0]], r"\(2, 1\)"),
        ([0.1, 0.2, 0.3], [1, 1, 1], "no non-target trial: all 3 trials are target"),
        ([0.1, 0.2], [0, 0], "no target trial: all 2 trials are non-target"),
        ([0.1, math.nan, math.inf], [0, 1, 1], r"2 of 3 scores .* \(nan\) at index 1"),
        ([0.1, -math.inf], [1, 0], r"1 of 2 scores .* \(-inf\) at index 1"),
        ([0.1, 0.2, 0.3], [0, 1, 2], r"1 of 3 are not, the first \(2\) at index 2"),
        ([0.1, 0.2], ["a", "b"], "labels must be 1"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [
        check,
        operating_points,
        eer,
        eer_reference,
        min_dcf,
        act_dcf,
        cllr,
        eer_rocch,
        rocch,
        min_cllr,
        min_dcfs,
        eer_threshold,
        calibration_warning,
        lambda scores, labels: error_rates(scores, labels, 0.5),
        lambda scores, labels: fpr_threshold(scores, labels, 0.5),
        lambda scores, labels: fnr_threshold(scores, labels, 0.5),
        lambda scores, labels: avg_r_prec(scores, labels, [0] * len(scores)),
    ],
)
def test_bad_input_is_refused_by_every_metric(metric, scores, labels, message):
    with pytest.raises(DataError, match=message):
        metric(scores, labels)


def test_avg_r_prec_needs_an_enrolment_a_trial():
    with pytest.raises(DataError, match="one enrolment for each of the 5 trials"):
        avg_r_prec(*HAND, [0, 1])


@pytest.mark.parametrize("metric", [min_dcf, act_dcf])
@pytest.mark.parametrize(
    "wrong", [{"p_target": 0}, {"p_target": 1.0}, {"c_miss": 0}, {"c_fa": -1}, {"c_fa": math.nan}]
)
def test_impossible_priors_and_costs_are_refused(metric, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        metric(*HAND, **wrong)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_impossible_rates_and_thresholds_are_refused(rate):
    with pytest.raises(ConfigError, match="fpr must lie between 0 and 1"):
        fpr_threshold(*HAND, rate)
    with pytest.raises(ConfigError, match="fnr must lie between 0 and 1"):
        fnr_threshold(*HAND, rate)
    with pytest.raises(ConfigError, match="threshold must be a number"):
        error_rates(*HAND, math.nan)
    with pytest.raises(ConfigError, match="p_target must lie strictly"):
        bayes_threshold(rate)
    with pytest.raises(ConfigError, match="p_target must lie strictly"):
        min_dcfs(*HAND, [0.5, rate])
