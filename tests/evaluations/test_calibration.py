"""Calibration and fusion: the optimum and what it must not depend on, files, refusals."""

import json
import re
from collections.abc import Callable
from math import exp, inf, log, log1p, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from sslsv import cli
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import metrics
from sslsv.evaluations.base import Measures
from sslsv.evaluations.calibration import (
    Calibration,
    fit,
    read_list,
)
from sslsv.evaluations.quality import write_measures
from sslsv.evaluations.trials import make_trials, read_scores, write_scores

PRIORS = [0.01, 0.5, 0.9]


def simulated(count: int = 400, columns: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping scores of ``columns`` systems, on scales far apart, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    x = rng.standard_normal((count, columns)) + 1.5 * labels[:, None] * rng.random(columns)
    return x * 10.0 ** np.arange(columns) - 3, labels


def cost(llr: np.ndarray, labels: np.ndarray, prior: float) -> float:
    """C_π in plain loops."""
    odds = log(prior / (1 - prior))

    def softplus(x: float) -> float:
        return max(x, 0.0) + log1p(exp(-abs(x)))

    targets = [softplus(-(v + odds)) for v, t in zip(llr.tolist(), labels, strict=True) if t]
    others = [softplus(v + odds) for v, t in zip(llr.tolist(), labels, strict=True) if not t]
    return prior * sum(targets) / len(targets) + (1 - prior) * sum(others) / len(others)


# ------------------------------------------------------------------------------------- the optimum


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_the_gradient_is_zero_and_every_step_away_costs(columns: int, prior: float) -> None:
    x, labels = simulated(columns=columns)
    found = fit(x, labels, prior)
    llr = found.apply(x)
    odds = log(prior / (1 - prior))
    share = {True: prior / labels.sum(), False: (1 - prior) / (~labels).sum()}
    gradient = np.zeros(columns + 1)
    for row, value, label in zip(x, llr, labels, strict=True):
        posterior = 1 / (1 + exp(-(value + odds)))
        unit = (row - x.mean(axis=0)) / x.std(axis=0)
        gradient += share[bool(label)] * (posterior - label) * np.append(unit, 1)
    assert np.abs(gradient).max() < 1e-12

    least = cost(llr, labels, prior)
    directions = np.random.default_rng(1).standard_normal((20, columns + 1))
    for step in (*directions, *-directions):
        away = llr + 0.01 * ((x - x.mean(axis=0)) / x.std(axis=0) @ step[:-1] + step[-1])
        assert cost(away, labels, prior) > least


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("columns", [1, 3])
def test_it_is_the_logistic_regression_of_scikit_learn(columns: int, prior: float) -> None:
    x, labels = simulated(columns=columns)
    weight = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    scale = x.std(axis=0)
    model = LogisticRegression(C=inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(x / scale, labels, sample_weight=weight)
    expected = model.decision_function(x / scale) - log(prior / (1 - prior))
    np.testing.assert_allclose(fit(x, labels, prior).apply(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_two_scores_get_the_ratio_of_their_frequencies(prior: float) -> None:
    """A score of 7 has 3 of 4 targets and 1 of 5 non-targets; a score of 2, the others."""
    x = np.array([7, 7, 7, 2, 7, 2, 2, 2, 2.0])[:, None]
    found = fit(x, np.arange(9) < 4, prior)
    ratios = found.apply(np.array([[7.0], [2.0]]))
    np.testing.assert_allclose(ratios, [log(0.75 / 0.2), log(0.25 / 0.8)], rtol=1e-9)
    assert found.remarks == []


def test_gaussian_scores_get_their_true_ratios() -> None:
    """Means 2 and -1, variance 3: the ratio is s - 1/2."""
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.5
    scores = np.where(labels, 2, -1) + np.sqrt(3) * rng.standard_normal(len(labels))
    found = fit(scores[:, None], labels, prior=0.5)
    ratios = found.apply(np.array([[0.0], [1.0]]))
    assert ratios[0] == pytest.approx(-0.5, abs=0.02)
    assert ratios[1] - ratios[0] == pytest.approx(1, abs=0.02)


def test_independent_systems_add_up() -> None:
    """Each is Gaussian with variance 1: the ratio is Σ d_i s_i, for means ± d_i / 2."""
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.5
    gaps = np.array([0.5, 1.0, 2.0])
    x = rng.standard_normal((len(labels), 3)) + np.where(labels, 0.5, -0.5)[:, None] * gaps
    found = fit(x, labels, prior=0.5)
    np.testing.assert_allclose(found.weights, gaps, atol=0.03)
    assert found.apply(np.zeros((1, 3)))[0] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("prior", PRIORS)
def test_fusion_costs_no_more_than_any_of_its_systems(prior: float) -> None:
    x, labels = simulated(columns=3)
    fused = cost(fit(x, labels, prior).apply(x), labels, prior)
    for column in x.T[:, :, None]:
        alone = cost(fit(column, labels, prior).apply(column), labels, prior)
        assert fused < alone < cost(column[:, 0], labels, prior)


def test_a_prior_gives_its_own_optimum() -> None:
    x, labels = simulated()
    x = np.sign(x + 3) * (x + 3) ** 2  # not linear, so that priors disagree
    found = {prior: fit(x, labels, prior).apply(x) for prior in PRIORS}
    for prior in PRIORS:
        costs = {other: cost(ratios, labels, prior) for other, ratios in found.items()}
        assert min(costs, key=costs.__getitem__) == prior
        assert len({round(value, 6) for value in costs.values()}) == 3


# ------------------------------------------------------------------------ what must change nothing


@st.composite
def score_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """One system's scores with many ties, or few; classes apart, touching or mixed."""
    values = draw(st.sampled_from([st.integers(-3, 3), st.floats(-5, 5, width=16)]))
    targets = draw(st.lists(values, min_size=1, max_size=25))
    others = draw(st.lists(values, min_size=1, max_size=25))
    shift = draw(st.sampled_from([0, 0, 3, -11]))
    x = np.array([*(t + shift for t in targets), *others], dtype=np.float64)
    return x, np.arange(len(x)) < len(targets)


def separable(x: np.ndarray, labels: np.ndarray) -> bool:
    targets, others = x[labels], x[~labels]
    apart = targets.min() >= others.max() or targets.max() <= others.min()
    return bool(apart and x.min() < x.max())


@settings(max_examples=300)
@given(scored=score_sets(), prior=st.sampled_from(PRIORS))
def test_any_scores_give_finite_ratios_and_a_remark_where_classes_are_apart(
    scored: tuple[np.ndarray, np.ndarray], prior: float
) -> None:
    x, labels = scored
    found = fit(x[:, None], labels, prior)
    llr = found.apply(x[:, None])
    assert np.isfinite(llr).all()
    targets, others = int(labels.sum()), int((~labels).sum())
    if x.min() == x.max():
        assert found.remarks[0].startswith("'input 1' is the same for all trials")
        np.testing.assert_allclose(llr, 0, atol=1e-9)
    elif separable(x, labels):
        (remark,) = found.remarks
        assert "tell trials of the two classes apart without an error" in remark
        assert f"{targets} targets and {others} non-targets" in remark
        assert metrics.eer(llr, labels) <= metrics.eer(x * np.sign(found.weights[0]), labels)
    else:
        assert found.remarks == []
        assert cost(llr, labels, prior) <= cost(x, labels, prior) + 1e-12
        if prior == 0.5:
            assert metrics.cllr(llr, labels) <= metrics.cllr(x, labels) + 1e-12
            assert metrics.cllr(llr, labels) <= 1 + 1e-12


@settings(max_examples=200)
@given(
    scored=score_sets(),
    scale=st.sampled_from([1e-6, 0.3, 1.0, 1e5]),
    sign=st.sampled_from([1, -1]),
    offset=st.sampled_from([0.0, -7.0, 100.0]),
    prior=st.sampled_from(PRIORS),
)
def test_an_affine_change_of_the_scores_changes_no_ratio(
    scored: tuple[np.ndarray, np.ndarray], scale: float, sign: int, offset: float, prior: float
) -> None:
    x, labels = scored
    changed = sign * scale * (x + offset)
    if len(set(changed)) != len(set(x)):  # rounding has made ties
        return
    expected = fit(x[:, None], labels, prior).apply(x[:, None])
    found = fit(changed[:, None], labels, prior).apply(changed[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_linear_mixture_of_systems_changes_no_ratio(prior: float) -> None:
    x, labels = simulated(columns=3)
    mixed = x @ np.random.default_rng(1).standard_normal((3, 3)) + 5
    expected = fit(x, labels, prior).apply(x)
    np.testing.assert_allclose(fit(mixed, labels, prior).apply(mixed), expected, atol=1e-9)


def test_the_order_of_trials_and_systems_changes_no_ratio() -> None:
    x, labels = simulated(columns=3)
    expected = fit(x, labels).apply(x)
    order, columns = np.random.default_rng(0).permutation(len(x)), [2, 0, 1]
    found = fit(x[order][:, columns], labels[order]).apply(x[:, columns])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_system_given_twice_adds_nothing_and_shares_its_weight() -> None:
    x, labels = simulated()
    alone = fit(x, labels)
    twice = fit(np.column_stack((x, x)), labels)
    np.testing.assert_allclose(twice.apply(np.column_stack((x, x))), alone.apply(x), atol=1e-9)
    np.testing.assert_allclose(twice.weights, alone.weights[0] / 2, rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9])
def test_a_constant_input_gets_no_weight_and_a_remark(constant: float) -> None:
    x, labels = simulated()
    more = np.column_stack((x, np.full(len(x), constant)))
    found = fit(more, labels, inputs=["score 1", "enrol noise"])
    assert found.weights[1] == 0
    (remark,) = found.remarks
    assert remark.startswith("'enrol noise' is the same for all trials")
    np.testing.assert_allclose(found.apply(more), fit(x, labels).apply(x), atol=1e-9)


# --------------------------------------------------------------------------- classes that are apart


@pytest.mark.parametrize("prior", PRIORS)
def test_classes_apart_get_what_their_numbers_can_tell(prior: float) -> None:
    """Three targets and five others: with one more of each kind on the other's side, 3/4 to 1/6
    and 1/4 to 5/6."""
    x = np.array([9, 9, 9, 1, 1, 1, 1, 1.0])[:, None]
    ratios = fit(x, np.arange(8) < 3, prior).apply(np.array([[9.0], [1.0]]))
    np.testing.assert_allclose(ratios, [log(4.5), log(0.3)], rtol=1e-9)


def test_more_trials_apart_tell_more() -> None:
    strongest = []
    for count in (10, 100, 1000):
        x = np.repeat([1.0, 0.0], count)[:, None]
        strongest.append(fit(x, x[:, 0] == 1).apply(x)[0])
    np.testing.assert_allclose(strongest, np.log([10, 100, 1000]), rtol=1e-9)


def test_an_input_that_settles_some_trials_leaves_ratios_finite() -> None:
    """Scores overlap, but where the flag is set all are targets."""
    x, labels = simulated(1000)
    flag = np.zeros(len(x))
    flag[np.flatnonzero(labels)[:20]] = 1
    found = fit(np.column_stack((x, flag)), labels)
    llr = found.apply(np.column_stack((x, flag)))
    assert np.isfinite(llr).all()
    assert np.abs(llr).max() < 30
    assert found.weights[1] > 0
    assert "apart without an error" in found.remarks[0]


def test_systems_that_are_apart_only_together() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.5
    noise = 10 * rng.standard_normal(200)
    x = np.column_stack((noise + np.where(labels, 1, -1), noise))
    assert fit(x[:, :1], labels).remarks == fit(x[:, 1:], labels).remarks == []
    found = fit(x, labels)
    assert "apart without an error" in found.remarks[0]
    assert metrics.eer(found.apply(x), labels) == 0
    assert np.isfinite(found.apply(x)).all()


def test_one_error_among_many_trials_is_not_apart() -> None:
    x = np.concatenate((np.linspace(1, 2, 5000), np.linspace(-2, -1, 5000), [-1.5]))[:, None]
    labels = np.append(np.arange(10_000) < 5000, True)
    found = fit(x, labels)
    assert found.remarks == []
    assert np.isfinite(found.apply(x)).all()


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("prior", [0.0, 1.0, -1.0, nan])
def test_a_prior_outside_its_range_is_refused(prior: float) -> None:
    with pytest.raises(ConfigError, match=f"prior: must be between 0 and 1, got {prior}"):
        fit(*simulated(), prior)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((2, 0)), [0, 1], "at least one, got shape"),
        (np.zeros(2), [0, 1], "at least one, got shape"),
        ([[0.0], [nan]], [0, 1], r"input 1: 1 of 2 values .* the first \(nan\) is that of trial 2"),
        ([[0.0, inf], [1, 1]], [0, 1], "input 2: 1 of 2 values are not finite"),
        ([[0.0], [1.0]], [1, 1], "no non-target trial"),
        ([[0.0], [1.0]], [0, 2], "labels must be 1"),
        ([[0.0], [1.0]], [0, 1, 1], "same length"),
    ],
)
def test_inputs_that_cannot_be_fitted(x: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(np.asarray(x), np.array(labels))


def test_inputs_of_another_number() -> None:
    with pytest.raises(DataError, match=r"has 1 inputs \(input 1\); got values of shape \(4, 2\)"):
        fit(*simulated()).apply(np.zeros((4, 2)))


# ----------------------------------------------------------------------------------- kept in files


def test_a_calibration_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    x, labels = simulated(columns=2)
    found = fit(x, labels, 0.2, ["score 1", "score 2"])
    found.save(tmp_path / "model.json")
    again = Calibration.load(tmp_path / "model.json")
    np.testing.assert_array_equal(again.apply(x), found.apply(x))
    assert (again.inputs, again.prior, again.remarks) == (found.inputs, 0.2, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file not found, or empty"),
        ("{", "not readable as JSON"),
        ('{"inputs": [1]}', "not a calibration that this command has written"),
        ('{"offset": 1}', "not a calibration that this command has written"),
    ],
)
def test_other_files_are_no_calibration(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "model.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Exception, match=re.escape(f"{path}: {message}")):
        Calibration.load(path)


# ------------------------------------------------------------------------------------ the command

Scored = Callable[..., Path]


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """Writes a score file of one system on one list: the same trials for the same ``seed``."""

    def write(name: str, seed: int, system: int = 0, order: Any = slice(None)) -> Path:
        rng = np.random.default_rng(seed)
        files = [f"{seed}_{i}.wav" for i in range(30)]
        pairs = np.array([(a, b) for a in range(30) for b in range(a)])[order]
        labels = (pairs[:, 0] % 5) == (pairs[:, 1] % 5)
        noise = np.random.default_rng([seed, system]).standard_normal((30, 30))
        scores = 0.1 * (noise[pairs[:, 0], pairs[:, 1]] + 2 * labels) + system
        del rng
        trials = make_trials(
            name, [files[a] for a in pairs[:, 0]], [files[b] for b in pairs[:, 1]], labels
        )
        write_scores(tmp_path / name, trials, scores)
        return tmp_path / name

    return write


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["calibrate", *map(str, arguments)])
    return code, *capsys.readouterr()


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def test_one_list_calibrates_another(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev, test, out = scored("dev.txt", 1), scored("test.txt", 2), tmp_path / "new/out.txt"
    code, table, err = run(capsys, "--fit", dev, "--apply", test, "--output", out, "--prior", 0.1)
    assert (code, err) == (0, "")

    fitted_on, scores = read_scores(dev)
    found = fit(scores[:, None], fitted_on.labels, 0.1)
    trials, raw = read_scores(test)
    written, ratios = read_scores(out)
    np.testing.assert_array_equal(ratios, found.apply(raw[:, None]))
    assert [written.files[i] for i in written.enrol] == [trials.files[i] for i in trials.enrol]
    np.testing.assert_array_equal(written.labels, trials.labels)

    model = json.loads((tmp_path / "new/out.json").read_text())
    assert model["prior"] == 0.1
    assert model["inputs"] == [
        {"name": "score 1", "center": found.centers[0], "weight": found.weights[0]}
    ]
    rows = {tuple(line.split()[:4]): line.split()[4:] for line in table.splitlines()[2:]}
    before = rows["applied", "to", "test.txt", "score"]
    assert before[0] == "1"
    after = rows["applied", "to", "test.txt", "calibrated"]
    assert after == [
        f"{metrics.eer(ratios, trials.labels):.2f}",
        f"{metrics.min_dcf(ratios, trials.labels, 0.1):.4f}",
        f"{metrics.act_dcf(ratios, trials.labels, 0.1):.4f}",
        f"{metrics.cllr(ratios, trials.labels):.4f}",
    ]
    assert before[1:3] == after[:2]  # the order of scores is the same
    assert float(after[3]) < float(before[4])

    again = tmp_path / "again.txt"
    arguments = ("--model", tmp_path / "new/out.json", "--apply", test, "--output", again)
    assert run(capsys, *arguments)[0] == 0
    assert again.read_bytes() == out.read_bytes()
    assert not again.with_suffix(".json").exists()


def test_the_default_prior_is_that_of_the_metrics(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = scored("dev.txt", 1)
    assert run(capsys, "--fit", dev, "--apply", dev, "--output", tmp_path / "o.txt")[0] == 0
    assert json.loads((tmp_path / "o.json").read_text())["prior"] == 0.01


def test_systems_are_fused_whatever_the_order_of_their_files(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shuffled = np.random.default_rng(0).permutation(435)
    dev = [scored("dev1.txt", 1), scored("dev2.txt", 1, 1, shuffled)]
    test = [scored("test1.txt", 2, 0, shuffled[::-1]), scored("test2.txt", 2, 1)]
    out = tmp_path / "out.txt"
    assert run(capsys, "--fit", *dev, "--apply", *test, "--output", out)[0] == 0

    def straight(seed: int) -> tuple[np.ndarray, np.ndarray]:
        files = [read_scores(scored(f"{i}.txt", seed, i)) for i in range(2)]
        return np.column_stack([scores for _, scores in files]), files[0][0].labels

    (fit_x, labels), (x, test_labels) = straight(1), straight(2)
    expected = fit(fit_x, labels).apply(x)[shuffled[::-1]]
    ratios = read_scores(out)[1]
    np.testing.assert_allclose(ratios, expected, atol=1e-9)
    single = metrics.eer(x[:, 0], test_labels)
    assert metrics.eer(ratios, test_labels[shuffled[::-1]]) < 0.8 * single


def test_measures_of_both_files_are_inputs(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file shifts all its scores, and a measure says how much."""
    paths, shifts = {}, {}
    for name, seed in (("dev", 1), ("test", 2)):
        trials, scores = read_scores(scored(f"{name}.txt", seed))
        shift = np.random.default_rng(seed).standard_normal(len(trials.files))
        shifts |= dict(zip(trials.files, shift, strict=True))
        paths[name] = tmp_path / f"{name}_shifted.txt"
        scores = scores + shift[trials.enrol] - 2 * shift[trials.test]
        write_scores(paths[name], trials, scores)
    measures = Measures(list(shifts), {"shift": np.array(list(shifts.values()))})
    write_measures(tmp_path / "quality.csv", measures)

    out = tmp_path / "out.txt"
    arguments = ["--fit", paths["dev"], "--apply", paths["test"], "--output", out, "--prior", 0.5]
    assert run(capsys, *arguments)[0] == 0
    trials, without = read_scores(out)
    assert run(capsys, *arguments, "--quality", tmp_path / "quality.csv")[0] == 0
    ratios = read_scores(out)[1]
    assert metrics.cllr(ratios, trials.labels) < 0.7 * metrics.cllr(without, trials.labels)
    model = Calibration.load(tmp_path / "out.json")
    assert model.inputs == ["score 1", "enrol shift", "test shift"]
    np.testing.assert_allclose(model.weights / model.weights[0], [1, -1, 2], atol=0.1)

    trials, scores = read_scores(paths["test"])
    values = np.array([shifts[file] for file in trials.files])
    x = np.column_stack((scores, values[trials.enrol], values[trials.test]))
    np.testing.assert_array_equal(ratios, model.apply(x))

    said = refused(capsys, "--model", out.with_suffix(".json"), *arguments[2:])
    assert said.startswith(f"--output {out}: would overwrite {out.with_suffix('.json')}")
    other = ["--apply", paths["test"], "--output", tmp_path / "other.txt"]
    assert refused(capsys, "--model", out.with_suffix(".json"), *other) == (
        f"{out.with_suffix('.json')}: was fitted on score 1, enrol shift, test shift, and is given "
        "score 1"
    )


def test_durations_are_read_from_the_files(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.split() for line in (corpus / "trials").read_text().splitlines()]
    labels = np.array([line[0] == "1" for line in lines])
    trials = make_trials("list", [x[1] for x in lines], [x[2] for x in lines], labels)
    scores = np.random.default_rng(0).standard_normal(len(labels))
    write_scores(tmp_path / "s.txt", trials, scores)
    files = ["--fit", tmp_path / "s.txt", "--apply", tmp_path / "s.txt"]
    files += ["--output", tmp_path / "out.txt", "--durations", corpus]
    assert run(capsys, *files)[0] == 0
    model = Calibration.load(tmp_path / "out.json")
    assert model.inputs == ["score 1", "enrol log_duration", "test log_duration"]
    seconds = np.array([sf.info(corpus / file).duration for file in trials.files])
    x = np.column_stack((scores, np.log(seconds)[trials.enrol], np.log(seconds)[trials.test]))
    np.testing.assert_allclose(
        read_scores(tmp_path / "out.txt")[1], fit(x, labels).apply(x), atol=1e-9
    )


def test_an_id_is_as_long_as_its_files(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"wav/id0{speaker}/s{n % 2}/{n:05d}.wav" for speaker in range(4) for n in range(3)]
    (tmp_path / "list.enrol").write_text("one " + " ".join(files[:3]) + f"\ntwo {files[3]}\n")
    enrol = ["one", "two"] * len(files)
    test = [file for file in files for _ in range(2)]
    labels = np.random.default_rng(0).random(len(test)) < 0.5
    scores = np.random.default_rng(1).standard_normal(len(test))
    write_scores(tmp_path / "s.txt", make_trials("list", enrol, test, labels), scores)
    command = ["--fit", tmp_path / "s.txt", "--apply", tmp_path / "s.txt"]
    command += ["--output", tmp_path / "out.txt"]
    said = refused(capsys, *command, "--durations", corpus)
    assert said.startswith(f"{corpus}/one: ")
    said = refused(capsys, *command, "--enrolments", tmp_path / "list.enrol")
    assert said == "--enrolments: is used by --durations only; give --durations as well"

    command += ["--durations", corpus, "--enrolments", tmp_path / "list.enrol"]
    assert run(capsys, *command)[0] == 0
    seconds = {file: sf.info(corpus / file).duration for file in files}
    seconds |= {"one": sum(seconds[file] for file in files[:3]), "two": seconds[files[3]]}
    x = np.column_stack((scores, *(np.log([seconds[x] for x in side]) for side in (enrol, test))))
    np.testing.assert_allclose(
        read_scores(tmp_path / "out.txt")[1], fit(x, labels).apply(x), atol=1e-9
    )


def test_classes_apart_are_told(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials, _ = read_scores(scored("dev.txt", 1))
    write_scores(tmp_path / "dev.txt", trials, trials.labels * 0.5)
    out = tmp_path / "out.txt"
    files = ("--fit", tmp_path / "dev.txt", "--apply", tmp_path / "dev.txt", "--output", out)
    code, _, err = run(capsys, *files)
    assert code == 0
    assert err.startswith("warning: the inputs tell trials of the two classes apart without an")
    assert err.count("\n") == 1
    assert np.isfinite(read_scores(out)[1]).all()
    assert len(Calibration.load(tmp_path / "out.json").remarks) == 1


def test_bad_input_is_one_sentence_and_writes_nothing(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev, test, other = scored("dev.txt", 1), scored("test.txt", 2), scored("other.txt", 3)
    out = ("--output", tmp_path / "out.txt")
    good = ("--fit", dev, "--apply", test)

    assert refused(capsys, "--fit", dev, dev, "--apply", test, *out) == (
        "--fit has 2 score files and --apply 1; give one of each system, in the same order"
    )
    said = refused(capsys, "--fit", dev, test, "--apply", test, test, *out)
    assert said.startswith(f"{test}: not the trials of {dev}: no score of 1_1.wav 1_0.wav, ")
    assert said.endswith("(and 432 more)")
    fewer = scored("fewer.txt", 1, 0, slice(1, None))
    said = refused(capsys, "--fit", fewer, dev, "--apply", test, test, *out)
    assert said == f"{dev}: not the trials of {fewer}: other trials as well"
    assert refused(capsys, *good, "--output", dev).startswith(f"--output {dev}: would overwrite")
    said = refused(capsys, *good, "--output", tmp_path / "out.json")
    assert said.startswith(f"--output {tmp_path}/out.json: the model takes this name")
    assert refused(capsys, *good, *out, "--prior", 1) == "prior: must be between 0 and 1, got 1.0"
    assert refused(capsys, "--fit", dev, "--apply", tmp_path / "no.txt", *out) == (
        f"{tmp_path}/no.txt: file not found"
    )
    (tmp_path / "q.csv").write_text("File,x\n1_0.wav,3\n")
    said = refused(capsys, *good, *out, "--quality", tmp_path / "q.csv")
    assert said.startswith(f"{test}: 30 of 30 files have no 'x': 2_1.wav, 2_0.wav")
    assert said.endswith("(and 20 more)")
    said = refused(capsys, *good, *out, "--durations", tmp_path)
    assert said.startswith(f"{tmp_path}/2_1.wav: ")

    lines = other.read_text().splitlines()
    other.write_text("\n".join([lines[0].replace(lines[0].split()[2], "nan"), *lines[1:]]))
    said = refused(capsys, "--fit", other, "--apply", test, *out)
    assert said.startswith(f"{other}: 1 of 435 values are not finite numbers, the first (nan)")
    flipped = [f"{line[:-1]}{1 - int(line[-1])}" for line in dev.read_text().splitlines()]
    other.write_text("\n".join(flipped))
    said = refused(capsys, "--fit", dev, other, "--apply", test, test, *out)
    assert said.startswith(f"{other}: 435 trials have another label than in {dev}, the first is 1_")
    assert not (tmp_path / "out.txt").exists()
    assert not (tmp_path / "out.json").exists()


def test_a_trial_listed_twice_is_fused_line_by_line(scored: Scored, tmp_path: Path) -> None:
    dev = scored("dev.txt", 1)
    lines = dev.read_text().splitlines()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join([*lines, lines[0]]))
    found = read_list([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert found.scores.shape == (436, 2)
    np.testing.assert_array_equal(found.scores[:, 0], found.scores[:, 1])
