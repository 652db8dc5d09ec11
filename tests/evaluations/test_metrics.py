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
    check,
    cllr,
    eer,
    eer_reference,
    min_dcf,
    operating_points,
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


def test_without_ties_between_neighbouring_points():
    scores, labels = [0.9, 0.8, 0.4, 0.5, 0.3, 0.2, 0.1], [1, 1, 1, 0, 0, 0, 0]
    assert eer(scores, labels) == pytest.approx(25)
    assert eer_reference(scores, labels) == pytest.approx(100 / 3)
    assert min_dcf(scores, labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize("labels", [[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0]])
def test_equal_scores_hold_no_information(labels):
    scores = [0.3] * 4
    assert eer(scores, labels) == 50
    assert eer_reference(scores, labels) == 100
    assert min_dcf(scores, labels) == pytest.approx(1)


def test_separated_and_inverted_scores():
    scores = [3.0, 2.0, 1.0, 0.0]
    assert eer(scores, [1, 1, 0, 0]) == min_dcf(scores, [1, 1, 0, 0]) == 0
    assert eer(scores, [0, 0, 1, 1]) == 100
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
    for metric in (eer, eer_reference, min_dcf):
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
