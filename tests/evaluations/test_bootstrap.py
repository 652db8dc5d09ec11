import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import bootstrap, metrics
from sslsv.evaluations.bootstrap import METRICS, intervals, paired, replicates, speaker_codes
from sslsv.evaluations.trials import make_trials
from sslsv.randomness import generator

COSTS = (0.05, 2.0, 1.0)
PLAIN = {  # of scores and labels
    "eer": metrics.eer,
    "eer_rocch": metrics.eer_rocch,
    "mindcf": lambda scores, labels: metrics.min_dcf(scores, labels, *COSTS),
    "actdcf": lambda scores, labels: metrics.act_dcf(scores, labels, *COSTS),
    "cllr": metrics.cllr,
    "mincllr": metrics.min_cllr,
}


def simulate(rng, count, targets=15, nontargets=600):
    """Scores whose true EER is that of two unit Gaussians 3 apart, labels and speakers.

    A share of the variance is common to all trials of a speaker, as in real lists.
    """
    own, other = 0.8, 0.6  # standard deviation of what a speaker does to its trials
    a = np.repeat(np.arange(count), targets)
    noise = rng.normal(size=len(a)) * math.sqrt(1 - own**2)
    target_scores = 3 + own * rng.normal(size=count)[a] + noise
    x = rng.integers(0, count, nontargets)
    y = (x + rng.integers(1, count, nontargets)) % count
    effect = other * rng.normal(size=count)
    noise = rng.normal(size=nontargets) * math.sqrt(1 - 2 * other**2)
    scores = np.concatenate([target_scores, effect[x] + effect[y] + noise])
    labels = np.arange(len(scores)) < len(a)
    return scores, labels, np.stack([np.concatenate([a, x]), np.concatenate([a, y])])


@st.composite
def lists(draw):
    """Few distinct scores, so that ties are the rule; 4 to 6 speakers, all pairs of which occur."""
    count = draw(st.integers(4, 6))
    pairs = [(a, b) for a in range(count) for b in range(a, count)]
    pairs += draw(st.lists(st.sampled_from(pairs), max_size=15))
    score = st.integers(-2, 2).map(float) | st.floats(-8, 8)
    scores = draw(st.lists(score, min_size=len(pairs), max_size=len(pairs)))
    order = draw(st.permutations(range(len(pairs))))
    speakers = np.array([pairs[i] for i in order]).T
    return np.array(scores), speakers[0] == speakers[1], speakers


@settings(max_examples=25, deadline=None)
@given(lists(), st.integers(0, 5))
def test_a_resample_is_the_list_with_trials_repeated(data, seed):
    scores, labels, speakers = data
    count = speakers.max() + 1
    draws = generator("bootstrap", seed).integers(count, size=(100, count))
    wanted = []
    for drawn in draws.tolist():
        times = [
            drawn.count(a) if a == b else drawn.count(a) * drawn.count(b) for a, b in speakers.T
        ]
        repeated, kinds = np.repeat(scores, times), np.repeat(labels, times)
        if len(set(drawn)) > 1:
            wanted.append([metric(repeated, kinds) for metric in PLAIN.values()])
    found = replicates([scores], labels, speakers, list(PLAIN), 100, seed, COSTS)
    assert found.shape == (len(wanted), 1, len(PLAIN))
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-9, atol=1e-9)


def test_every_metric_has_its_plain_value():
    scores, labels, _ = simulate(np.random.default_rng(0), 10)
    assert METRICS.keys() == PLAIN.keys()
    for name, metric in METRICS.items():
        assert metric.value(scores, labels, COSTS) == PLAIN[name](scores, labels)


def test_intervals_are_percentiles_of_the_resamples():
    data = simulate(np.random.default_rng(0), 20)
    names = ["mindcf", "eer"]
    found = intervals(*data, names, resamples=200, seed=3, costs=COSTS)
    assert list(found) == names
    values = replicates([data[0]], *data[1:], names, 200, 3, COSTS)[:, 0]
    for name, column in zip(names, values.T, strict=True):
        column = sorted(column)
        place = 0.025 * 199  # between two of 200, counted from 0
        low = column[4] + (place - 4) * (column[5] - column[4])
        high = column[-5] - (place - 4) * (column[-5] - column[-6])
        assert found[name] == pytest.approx((low, high), rel=1e-12)


def test_the_seed_decides_and_nothing_else(monkeypatch):
    scores, labels, speakers = simulate(np.random.default_rng(0), 20)
    names = list(PLAIN)
    once = replicates([scores], labels, speakers, names, 150, 1)
    assert (replicates([scores], labels, speakers, names, 150, 1) == once).all()
    assert (replicates([scores], labels, speakers, names, 150, 2) != once).any()

    order = np.random.default_rng(1).permutation(len(scores))
    turned = speakers[::-1, order] * 10 + 7  # sides exchanged, other numbers for the speakers
    shuffled = replicates([scores[order]], labels[order], turned, names, 150, 1)
    np.testing.assert_allclose(shuffled, once, rtol=1e-12)

    monkeypatch.setattr(bootstrap, "_CELLS", 7 * len(scores))  # 7 resamples at a time
    np.testing.assert_allclose(
        replicates([scores], labels, speakers, names, 150, 1), once, rtol=1e-12
    )


def test_memory_does_not_grow_with_the_resamples():
    data = simulate(np.random.default_rng(0), 40, targets=250, nontargets=10_000)
    peaks = []
    for resamples in (100, 1000):
        tracemalloc.start()
        intervals(*data, list(PLAIN), resamples=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 8 * 20_000 * 1000 / 3  # all weights of 1000 resamples take 160 MB


def test_95_percent_intervals_hold_the_true_value_so_often():
    normal, costs = NormalDist(), (0.3, 1.0, 1.0)
    threshold = (4.5 + math.log(0.7 / 0.3)) / 3  # of the scores; their log ratio is 3 s - 4.5
    fnr, fpr = normal.cdf(threshold - 3), normal.cdf(-threshold)
    true = {"eer": 100 * normal.cdf(-1.5), "actdcf": float(metrics.dcf(fnr, fpr, *costs))}
    rng = np.random.default_rng(1)
    held, held_by_trials = dict.fromkeys(true, 0), 0
    for seed in range(400):
        scores, labels, speakers = simulate(rng, 50)
        ratios = 3 * scores - 4.5
        found = intervals(
            ratios, labels, speakers, list(true), resamples=200, seed=seed, costs=costs
        )
        for name, (low, high) in found.items():
            held[name] += low <= true[name] <= high
        if seed < 100:  # each trial of speakers of its own
            size = len(scores)
            alone = np.stack([np.arange(size), np.arange(size) + size * ~labels])
            low, high = intervals(scores, labels, alone, resamples=100, seed=seed)["eer"]
            held_by_trials += low <= true["eer"] <= high
    assert all(0.90 <= count / 400 <= 0.99 for count in held.values()), held
    assert held_by_trials / 100 < 0.80  # the simulation can tell a bootstrap that is too narrow


def test_the_paired_test_is_rarely_sure_of_what_is_not_there():
    rng = np.random.default_rng(2)
    sure = held = 0
    for seed in range(200):
        scores, labels, speakers = simulate(rng, 50)
        # Each system likes some speakers better than the other does.
        systems = [scores + 0.3 * rng.normal(size=50)[speakers].sum(axis=0) for _ in range(2)]
        found = paired(*systems, labels, speakers, resamples=100, seed=seed)
        sure += found.p < 0.05
        held += found.interval[0] <= 0 <= found.interval[1]
    assert 0 < sure / 200 <= 0.10
    assert 0.90 <= held / 200 <= 0.99


def test_a_system_does_not_differ_from_itself_nor_from_its_increasing_maps():
    scores, labels, speakers = simulate(np.random.default_rng(0), 20)
    for other in (scores, np.exp(scores) + 3):
        found = paired(scores, other, labels, speakers, resamples=100)
        assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)
        assert found.a == found.b == metrics.eer(scores, labels)
        assert found.interval_a == found.interval_b


def test_a_clear_difference_is_found_from_either_side():
    rng = np.random.default_rng(0)
    good, labels, speakers = simulate(rng, 40)
    bad = good + 2 * rng.normal(size=len(good))
    found = paired(good, bad, labels, speakers, "mindcf", resamples=200, seed=5, costs=COSTS)
    assert found.p == pytest.approx(2 / 201)  # the least of 200 resamples
    assert found.interval[1] < 0
    assert found.difference == found.a - found.b
    assert found.b == metrics.min_dcf(bad, labels, *COSTS)
    alone = intervals(bad, labels, speakers, ["mindcf"], resamples=200, seed=5, costs=COSTS)
    assert found.interval_b == alone["mindcf"]

    turned = paired(bad, good, labels, speakers, "mindcf", resamples=200, seed=5, costs=COSTS)
    assert (turned.p, turned.difference) == (found.p, -found.difference)
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_p_counts_the_resamples_on_the_rarer_side():
    rng = np.random.default_rng(0)
    scores, labels, speakers = simulate(rng, 40)
    other = scores + 0.4 * rng.normal(size=len(scores))
    a, b = replicates([scores, other], labels, speakers, ["eer"], 300, 4)[..., 0].T
    below, above = sum(a <= b), sum(a >= b)
    assert 0 < min(below, above) < 150
    found = paired(scores, other, labels, speakers, resamples=300, seed=4)
    assert found.p == pytest.approx(min(1, 2 * (1 + min(below, above)) / 301))
    low, high = np.percentile(a - b, [2.5, 97.5])
    assert found.interval == pytest.approx((low, high))


def test_the_difference_of_similar_systems_is_known_better_than_either():
    rng = np.random.default_rng(0)
    scores, labels, speakers = simulate(rng, 40)
    found = paired(scores, scores + 0.1 * rng.normal(size=len(scores)), labels, speakers)
    width, *alone = (
        high - low for low, high in (found.interval, found.interval_a, found.interval_b)
    )
    assert width < 0.5 * min(alone)


class TestSpeakers:
    FILES = ("a1", "a2", "a3", "b1", "b2", "c1")

    def trials(self, text):
        rows = [row.split() for row in text.split(",")]
        labels = np.array([row[0] == "1" for row in rows])
        return make_trials("list.txt", [row[1] for row in rows], [row[2] for row in rows], labels)

    def test_of_a_mapping(self):
        trials = self.trials("1 a1 a2, 0 b1 a1, 0 c1 b2, 0 a3 b1")
        # No target trial joins b1 with b2, or a3 with the others, but the mapping does.
        codes = speaker_codes(trials, {file: file[0] for file in (*self.FILES, "unused")})
        assert codes.tolist() == [[0, 1, 2, 0], [0, 0, 1, 1]]

    def test_are_files_joined_by_target_trials(self):
        trials = self.trials("1 a1 a2, 1 a3 a2, 1 b1 b2, 0 a1 b1, 0 a3 c1, 0 b2 c1, 1 b1 b1")
        codes = speaker_codes(trials)
        assert (codes[0] == codes[1]).tolist() == trials.labels.tolist()
        (a, a_), (a__, _), (b, _) = codes.T[:3]
        c = codes[1, 4]
        assert a == a_ == a__
        assert sorted({a, b, c}) == [0, 1, 2]
        assert codes.T.tolist()[3:] == [[a, b], [a, c], [b, c], [b, b]]

    @given(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12),
    )
    def test_joined_files_are_those_reached_step_by_step(self, pairs):
        trials = make_trials(
            "list.txt",
            [str(a) for a, _ in pairs],
            [str(b) for _, b in pairs],
            np.ones(len(pairs), dtype=bool),
        )
        codes = speaker_codes(trials)
        code = {a: c for (a, _), c in zip(pairs, codes[0], strict=True)}
        code |= {b: c for (_, b), c in zip(pairs, codes[1], strict=True)}
        for start in code:
            reached = {start}
            for _ in pairs:
                reached |= {x for pair in pairs if set(pair) & reached for x in pair}
            assert reached == {file for file in code if code[file] == code[start]}

    def test_missing_ones_are_counted(self):
        with pytest.raises(DataError, match=r"list.txt: 2 of 4 files have no speaker: b1, c1"):
            speaker_codes(self.trials("1 a1 a2, 0 a1 b1, 0 a2 c1"), {"a1": "a", "a2": "a"})

    def test_that_contradict_a_label_are_refused(self):
        trials = self.trials("1 a1 a2, 0 a1 b1, 1 b1 b2")
        with pytest.raises(
            DataError, match=r"list.txt: 2 of 3 labels contradict the speakers; .*'0 a1 b1', '1 b1"
        ):
            speaker_codes(trials, {"a1": "a", "a2": "a", "b1": "a", "b2": "b"})
        trials = self.trials("1 a1 a2, 1 a2 a3, 0 a1 a3")
        with pytest.raises(
            DataError, match=r"1 of 3 labels contradict the target trials; .*--speakers.*'0 a1 a3'"
        ):
            speaker_codes(trials)


GOOD = simulate(np.random.default_rng(0), 20, 2, 40)


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (DataError, {"scores": np.append(GOOD[0][:-1], math.nan)}, r"\(nan\) at index 79"),
        (DataError, {"scores": np.append(GOOD[0][:-1], math.inf)}, r"\(inf\) at index 79"),
        (DataError, {"scores": GOOD[0][:-1]}, "same length"),
        (DataError, {"scores": [], "labels": []}, "no trial to evaluate"),
        (DataError, {"labels": np.ones(80, dtype=bool)}, "no non-target trial"),
        (DataError, {"speakers": GOOD[2][:, 1:]}, r"shape \(2, 80\).* got \(2, 79\)"),
        (DataError, {"speakers": np.zeros((2, 80))}, "40 of 80 labels contradict .* at index 40"),
        (ConfigError, {"names": ["err"]}, "did you mean 'eer'"),
        (ConfigError, {"names": ["zzz"]}, "choose one of: eer, eer_rocch, mindcf"),
        (ConfigError, {"resamples": 99}, "resamples: must be at least 100, got 99"),
        (ConfigError, {"seed": -1}, "seed: must not be negative"),
        (ConfigError, {"names": ["mindcf"], "costs": (0.0, 1.0, 1.0)}, "p_target"),
    ],
)
def test_bad_input_is_refused(error, changes, message):
    arguments = dict(zip(("scores", "labels", "speakers"), GOOD, strict=True))
    with pytest.raises(error, match=message):
        intervals(**(arguments | changes))


def test_the_other_system_is_checked_as_well():
    scores, labels, speakers = GOOD
    with pytest.raises(DataError, match=r"\(nan\) at index 0"):
        paired(scores, np.append(math.nan, scores[1:]), labels, speakers)


def test_too_few_speakers_are_refused():
    # Of 2 speakers every other resample draws one of them twice and has no non-target trial.
    speakers = np.array([[0, 1, 0], [0, 1, 1]])
    with pytest.raises(DataError, match=r"of 100 resamples of 2 speakers have no target or no"):
        intervals([1.0, 2.0, 0.0], [1, 1, 0], speakers, resamples=100)
