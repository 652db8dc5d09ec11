"""PLDA: scores and EM against dense Gaussians, recovery of what was simulated, refusals."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import plda, transforms
from sslsv.evaluations.metrics import eer
from sslsv.evaluations.plda import PLDA, fit_subspace, fit_two_covariance, pool

SEEDS = st.integers(0, 1000)


def draw_model(seed: int = 0, dim: int = 4, rank: int = 4) -> PLDA:
    rng = np.random.default_rng(seed)
    square = rng.standard_normal((dim, dim))
    within = square @ square.T / dim + 0.2 * np.eye(dim)
    return PLDA(rng.standard_normal(dim), rng.standard_normal((dim, rank)), within)


def wide_model() -> PLDA:
    """Speakers are far apart, so that EM arrives quickly."""
    model = draw_model(3, dim=3, rank=3)
    return PLDA(model.mean, model.loading + 2 * np.eye(3), model.within)


def simulate(model: PLDA, counts: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) of speakers with ``counts`` files, in mixed order, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    y = rng.standard_normal((len(counts), model.loading.shape[1])) @ model.loading.T
    e = rng.multivariate_normal(np.zeros(len(model.mean)), model.within, len(labels))
    return model.mean + y[labels] + e, labels


def dense_log_density(model: PLDA, vectors: np.ndarray) -> float:
    """Of vectors (n, D) of one speaker: one Gaussian of n D dimensions."""
    n = len(vectors)
    covariance = np.kron(np.ones((n, n)), model.loading @ model.loading.T)
    covariance += np.kron(np.eye(n), model.within)
    return multivariate_normal(np.tile(model.mean, n), covariance).logpdf(vectors.ravel())


def dense_ratio(model: PLDA, enrol: np.ndarray, test: np.ndarray) -> float:
    together = dense_log_density(model, np.vstack([enrol, test]))
    return together - dense_log_density(model, enrol) - dense_log_density(model, test)


def dense_log_likelihood(model: PLDA, x: np.ndarray, labels: np.ndarray) -> float:
    return sum(dense_log_density(model, x[labels == label]) for label in set(labels.tolist()))


def fit(form: str, x: np.ndarray, labels: np.ndarray, iterations: int) -> PLDA:
    if form == "two-covariance":
        return fit_two_covariance(x, labels, iterations)
    return fit_subspace(x, labels, int(form.removeprefix("rank ")), iterations)


# ------------------------------------------------------------------------------------------ scores


@given(seed=SEEDS, dim=st.integers(1, 6), rank=st.integers(1, 6))
def test_scores_are_ratios_of_dense_gaussians(seed, dim, rank):
    model = draw_model(seed, dim, min(rank, dim))
    x = 2 * np.random.default_rng(seed).standard_normal((6, dim))
    enrol, test = [0, 1, 2, 3, 3], [1, 4, 5, 0, 3]
    expected = [dense_ratio(model, x[[a]], x[[b]]) for a, b in zip(enrol, test, strict=True)]
    np.testing.assert_allclose(model.score(x, enrol, test), expected, rtol=1e-8, atol=1e-8)


@given(seed=SEEDS, rank=st.integers(1, 4))
def test_models_of_several_files_are_scored_as_several_vectors(seed, rank):
    model = draw_model(seed, 4, rank)
    x = 2 * np.random.default_rng(seed).standard_normal((12, 4))
    models = [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9], [10, 11]]
    means, counts = pool(x, models)
    enrol, test = [0, 1, 2, 3, 0, 4, 0, 2], [2, 4, 4, 5, 3, 1, 4, 0]
    expected = [
        dense_ratio(model, x[models[a]], x[models[b]]) for a, b in zip(enrol, test, strict=True)
    ]
    found = model.score(means, enrol, test, counts)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_without_counts_the_mean_of_several_files_is_one_vector():
    model, x = draw_model(), np.random.default_rng(0).standard_normal((5, 4))
    means, counts = pool(x, [[0, 1, 2], [3], [4]])
    np.testing.assert_allclose(means, [(x[0] + x[1] + x[2]) / 3, x[3], x[4]])
    assert counts.tolist() == [3, 1, 1]
    expected = dense_ratio(model, means[[0]], means[[1]])
    assert model.score(means, [0], [1])[0] == pytest.approx(expected, rel=1e-8)
    assert abs(model.score(means, [0], [1], counts)[0] - expected) > 0.01


def test_score_of_one_dimension_by_hand():
    """B = 3, W = 1, both vectors 2 from the mean: variances 4, covariance 3."""
    model = PLDA(np.array([5.0]), np.array([[3**0.5]]), np.array([[1.0]]))
    # log N(2, 2; 0, [4 3; 3 4]) - 2 log N(2; 0, 4); the determinant is 7, the sum has variance 14
    expected = -0.5 * np.log(7 / 16) - 0.5 * (4**2 / 14) + 2**2 / 4
    assert model.score([[7.0], [7.0]], [0], [1])[0] == pytest.approx(expected, abs=1e-12)


@given(seed=SEEDS, rank=st.integers(1, 4))
def test_score_does_not_depend_on_which_side_enrols(seed, rank):
    model = draw_model(seed, 4, rank)
    rng = np.random.default_rng(seed)
    x, counts = 3 * rng.standard_normal((8, 4)), rng.integers(1, 4, 8)
    enrol, test = rng.integers(8, size=(2, 30))
    for n in (None, counts):
        np.testing.assert_allclose(
            model.score(x, enrol, test, n), model.score(x, test, enrol, n), rtol=1e-10, atol=1e-10
        )


@given(seed=SEEDS, rank=st.integers(1, 4))
def test_score_does_not_depend_on_the_axes(seed, rank):
    """An invertible map of data and model leaves every ratio as it is."""
    model = draw_model(seed, 4, rank)
    rng = np.random.default_rng(seed)
    x, counts = 3 * rng.standard_normal((8, 4)), rng.integers(1, 4, 8)
    mix = rng.standard_normal((4, 4)) + 4 * np.eye(4)
    offset = rng.standard_normal(4)
    moved = PLDA(
        mix @ model.mean + offset, mix @ model.loading, plda._symmetric(mix @ model.within @ mix.T)
    )
    enrol, test = rng.integers(8, size=(2, 30))
    for n in (None, counts):
        expected = model.score(x, enrol, test, n)
        found = moved.score(x @ mix.T + offset, enrol, test, n)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_long_lists_are_scored_in_parts(monkeypatch):
    model, rng = draw_model(), np.random.default_rng(0)
    x, counts = rng.standard_normal((20, 4)), rng.integers(1, 4, 20)
    enrol, test = rng.integers(20, size=(2, 50))
    expected = [model.score(x, enrol, test, n) for n in (None, counts)]
    monkeypatch.setattr(plda, "_TRIALS", 7)
    monkeypatch.setattr(transforms, "_ROWS", 3)
    for n, scores in zip((None, counts), expected, strict=True):
        np.testing.assert_allclose(model.score(x, enrol, test, n), scores, rtol=1e-12)


def test_float32_embeddings_are_scored_in_float64():
    model, rng = draw_model(), np.random.default_rng(0)
    x = rng.standard_normal((20, 4)).astype(np.float32)
    enrol, test = rng.integers(20, size=(2, 50)).astype(np.int32)
    found = model.score(x, enrol, test)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, model.score(x.astype(np.float64), enrol, test))


def test_no_trial_has_no_score():
    none = np.zeros(0, int)
    assert draw_model().score(np.ones((2, 4)), none, none).shape == (0,)
    assert draw_model().score(np.ones((2, 4)), none, none, [1, 2]).shape == (0,)


# ---------------------------------------------------------------------------------------- training


FORMS = ["two-covariance", "rank 2", "rank 4"]


@given(seed=SEEDS, rank=st.integers(1, 4))
def test_log_likelihood_is_that_of_dense_gaussians(seed, rank):
    x, labels = simulate(draw_model(seed), [1, 2, 3, 1, 4], seed)
    model = draw_model(seed + 1, 4, rank)
    expected = dense_log_likelihood(model, x, labels)
    assert model.log_likelihood(x, labels) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=12)
@given(seed=SEEDS, form=st.sampled_from(FORMS))
def test_em_never_lowers_the_likelihood(seed, form):
    x, labels = simulate(draw_model(seed, rank=2), [1, 2, 3, 1, 4, 2, 5], seed)
    values = [dense_log_likelihood(fit(form, x, labels, i), x, labels) for i in range(9)]
    assert np.diff(values).min() >= -1e-9 * abs(values[0])
    assert values[1] > values[0] + 1e-6


def posterior(model: PLDA, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of h given vectors (n, D) of a speaker, by conditioning a Gaussian."""
    n, f = len(vectors), model.loading
    stacked = np.tile(f, (n, 1))  # (n D, R)
    joint = stacked @ stacked.T + np.kron(np.eye(n), model.within)
    gain = stacked.T @ np.linalg.inv(joint)
    return gain @ (vectors - model.mean).ravel(), np.eye(f.shape[1]) - gain @ stacked


def two_covariance_by_loops(model: PLDA, x: np.ndarray, labels: np.ndarray) -> PLDA:
    """Mean and covariances of z = mean + F h and of x - z, expected under the posterior."""
    z, spread = {}, {}
    for label in set(labels.tolist()):
        h, covariance = posterior(model, x[labels == label])
        z[label] = model.mean + model.loading @ h
        spread[label] = model.loading @ covariance @ model.loading.T
    mean = sum(z.values()) / len(z)
    between = sum(spread[k] + np.outer(z[k] - mean, z[k] - mean) for k in z) / len(z)
    within = sum(
        spread[k] + np.outer(v - z[k], v - z[k]) for v, k in zip(x, labels.tolist(), strict=True)
    ) / len(x)
    return PLDA(mean, np.linalg.cholesky(between), within)


def subspace_by_loops(model: PLDA, x: np.ndarray, labels: np.ndarray) -> PLDA:
    """Regression of x on (h, 1) in expectation, then h standardised."""
    known = {label: posterior(model, x[labels == label]) for label in set(labels.tolist())}
    rank = model.loading.shape[1]
    right, left = np.zeros((rank + 1, rank + 1)), np.zeros((x.shape[1], rank + 1))
    for vector, label in zip(x, labels.tolist(), strict=True):
        h, covariance = known[label]
        one = np.append(h, 1)
        right += np.outer(one, one)
        right[:rank, :rank] += covariance
        left += np.outer(vector, one)
    weights = left @ np.linalg.inv(right)
    within = np.zeros_like(model.within)
    for vector, label in zip(x, labels.tolist(), strict=True):
        h, covariance = known[label]
        rest = vector - weights @ np.append(h, 1)
        within += np.outer(rest, rest) + weights[:, :rank] @ covariance @ weights[:, :rank].T
    shift = sum(h for h, _ in known.values()) / len(known)
    square = sum(c + np.outer(h - shift, h - shift) for h, c in known.values()) / len(known)
    loading = weights[:, :rank]
    return PLDA(
        weights[:, rank] + loading @ shift, loading @ np.linalg.cholesky(square), within / len(x)
    )


@pytest.mark.parametrize("form", FORMS)
def test_an_iteration_is_the_textbook_em_done_file_by_file(form: str):
    x, labels = simulate(draw_model(), [1, 2, 3, 1, 4, 2, 5])
    by_loops = two_covariance_by_loops if form == "two-covariance" else subspace_by_loops
    expected = fit(form, x, labels, 0)
    for iterations in (1, 2, 3):
        expected = by_loops(expected, x, labels)
        found = fit(form, x, labels, iterations)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.between, expected.between, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.within, expected.within, rtol=1e-9, atol=1e-9)


def test_em_starts_from_the_analysis_of_variance():
    """Two speakers with 2 and 1 files of one dimension: 1, 3 and 8."""
    found = fit_two_covariance([[1.0], [3.0], [8.0]], ["a", "a", "b"], iterations=0)
    # Within: 1 + 1 over one degree of freedom. Speakers' means 2 and 8 about 4: 2·4 + 16 = 24 with
    # one degree; a speaker counts for (3 - 5/3) / 1 = 4/3 files: (24 - 2) / (4/3) = 16.5.
    assert found.mean[0] == pytest.approx(4)
    assert found.within[0, 0] == pytest.approx(2)
    assert found.between[0, 0] == pytest.approx(16.5)


@pytest.mark.parametrize("form", ["two-covariance", "rank 3"])
def test_em_of_balanced_data_finds_the_maximum_in_closed_form(form: str):
    speakers, files = 30, 4
    x, labels = simulate(wide_model(), [files] * speakers)
    groups = [x[labels == speaker] for speaker in range(speakers)]
    means = np.array([group.mean(axis=0) for group in groups])
    within = sum((g - g.mean(axis=0)).T @ (g - g.mean(axis=0)) for g in groups)
    within /= speakers * (files - 1)
    apart = means - means.mean(axis=0)
    between = apart.T @ apart / speakers - within / files
    assert np.linalg.eigvalsh(between)[0] > 0.5  # else the maximum lies on the boundary
    found = fit(form, x, labels, 300)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), atol=1e-8)
    np.testing.assert_allclose(found.within, within, atol=1e-8)
    np.testing.assert_allclose(found.between, between, atol=1e-8)


def test_a_subspace_of_full_rank_is_the_two_covariance_model():
    x, labels = simulate(wide_model(), [1, 2, 3, 4, 5, 6] * 6)
    a = fit_two_covariance(x, labels, 300)
    b = fit_subspace(x, labels, 3, 300)
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-6)
    np.testing.assert_allclose(a.between, b.between, atol=1e-6)
    np.testing.assert_allclose(a.within, b.within, atol=1e-6)
    enrol, test = np.random.default_rng(0).integers(len(x), size=(2, 40))
    np.testing.assert_allclose(a.score(x, enrol, test), b.score(x, enrol, test), atol=1e-5)


@pytest.mark.parametrize(("form", "rank"), [("two-covariance", 4), ("rank 2", 2)])
def test_a_simulated_model_is_recovered(form: str, rank: int):
    truth = draw_model(1, dim=4, rank=rank)
    counts = np.random.default_rng(1).integers(1, 9, 4000)
    found = fit(form, *simulate(truth, counts), iterations=10)
    assert np.linalg.norm(found.mean - truth.mean) < 0.08
    for name in ("between", "within"):
        expected = getattr(truth, name)
        error = np.linalg.norm(getattr(found, name) - expected) / np.linalg.norm(expected)
        assert error < 0.06, name
    assert np.linalg.matrix_rank(found.between) == rank


@pytest.mark.parametrize("form", FORMS)
def test_training_does_not_depend_on_the_axes(form: str):
    """Nor on the order of files, nor on the names of the speakers."""
    x, labels = simulate(draw_model(), [1, 2, 3, 1, 4, 2, 5])
    rng = np.random.default_rng(0)
    mix, offset, order = rng.standard_normal((4, 4)), rng.standard_normal(4), rng.permutation(18)
    enrol, test = rng.integers(18, size=(2, 30))
    names = np.array(["g", "f", "e", "d", "c", "b", "a"])
    expected = fit(form, x, labels, 10).score(x, enrol, test)
    moved = x @ mix.T + offset
    found = fit(form, moved[order], names[labels[order]], 10).score(moved, enrol, test)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_blocks_of_rows_do_not_change_the_model(monkeypatch):
    x, labels = simulate(draw_model(), [1, 2, 3, 1, 4, 2, 5])
    expected = fit_two_covariance(x, labels)
    monkeypatch.setattr(transforms, "_ROWS", 4)
    found = fit_two_covariance(x, labels)
    np.testing.assert_allclose(found.between, expected.between, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.within, expected.within, rtol=1e-9, atol=1e-9)


def test_the_defaults_are_rank_100_and_10_iterations():
    x, labels = simulate(draw_model(0, 101, 101), [3] * 60)
    assert fit_subspace(x, labels).loading.shape == (101, 100)
    np.testing.assert_array_equal(
        fit_subspace(x, labels).within, fit_subspace(x, labels, 100, 10).within
    )


# -------------------------------------------------------------------------------------- adaptation


def spread_out(covariance: np.ndarray, mean: np.ndarray, count: int = 50) -> np.ndarray:
    """Embeddings with exactly this covariance (over N) and mean."""
    x = np.random.default_rng(0).standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / count)).T
    return mean + x @ np.linalg.cholesky(covariance).T


def test_adaptation_adds_the_variance_that_is_missing():
    """Model: B = diag(1, 1, 0), W = 1. 48 draws in 3 dimensions may have (1 + 1/4)² of its
    variances; beyond that the domain has 6, 0.5 and 1.2: 4 and 0.2 more."""
    model = PLDA(np.zeros(3), np.eye(3)[:, :2], np.eye(3))
    x = spread_out(1.5625 * np.diag([6.0, 0.5, 1.2]), np.array([0.0, 9.0, 0.0]), 48)
    found = model.adapt(x, 0.5, 0.25)
    np.testing.assert_allclose(found.mean, [0, 9, 0], atol=1e-12)
    np.testing.assert_allclose(found.within, np.diag([3.0, 1.0, 1.1]), atol=1e-9)
    np.testing.assert_allclose(found.between, np.diag([2.0, 1.0, 0.05]), atol=1e-9)
    assert found.loading.shape == (3, 3)
    found = model.adapt(x)
    np.testing.assert_allclose(found.within, np.diag([4.0, 1.0, 1.15]), atol=1e-9)
    np.testing.assert_allclose(found.between, np.diag([2.0, 1.0, 0.05]), atol=1e-9)


def test_adaptation_to_draws_from_the_model_changes_little():
    model = draw_model(0, dim=40, rank=40)
    x, _ = simulate(model, np.ones(200, int))
    found, total = model.adapt(x), model.between + model.within
    ratio = np.linalg.eigvals(np.linalg.solve(total, np.cov(x.T))).real
    assert ratio.max() > 1.8  # by chance
    change = np.linalg.eigvals(np.linalg.solve(total, found.between + found.within)).real
    assert change.max() < 1.15


def test_adaptation_helps_where_utterances_vary_more():
    model = draw_model(1, dim=6, rank=6)
    noisy = np.random.default_rng(1).standard_normal((6, 2)) * 3
    domain = PLDA(model.mean + 1, model.loading, model.within + noisy @ noisy.T)
    adapted = model.adapt(simulate(domain, [2] * 300, seed=1)[0])
    x, labels = simulate(domain, [4] * 200, seed=2)
    files = np.argsort(labels, kind="stable").reshape(200, 4)  # of each speaker
    enrol = np.concatenate([files[:, 0], files[:, 1]])
    test = np.concatenate([files[:, 2], np.roll(files[:, 3], 1)])
    target = labels[enrol] == labels[test]
    before, after = (eer(m.score(x, enrol, test), target) for m in (model, adapted))
    assert after < 0.8 * before


def test_adaptation_to_a_narrower_domain_only_moves_the_mean():
    model = draw_model(rank=2)
    narrow = 0.5 * (model.between + model.within)
    found = model.adapt(spread_out(narrow, model.mean))
    np.testing.assert_allclose(found.within, model.within, atol=1e-12)
    np.testing.assert_allclose(found.between, model.between, atol=1e-12)


@given(seed=SEEDS, rank=st.integers(1, 4))
def test_adaptation_does_not_depend_on_the_axes_and_makes_nothing_smaller(seed, rank):
    model, rng = draw_model(seed, 4, rank), np.random.default_rng(seed)
    x = 2 * rng.standard_normal((20, 4)) @ rng.standard_normal((4, 4)) + rng.standard_normal(4)
    found = model.adapt(x)
    for name in ("between", "within"):
        assert np.linalg.eigvalsh(getattr(found, name) - getattr(model, name))[0] > -1e-9
    mix = rng.standard_normal((4, 4)) + 4 * np.eye(4)
    moved = PLDA(
        mix @ model.mean, mix @ model.loading, plda._symmetric(mix @ model.within @ mix.T)
    ).adapt(x @ mix.T)
    enrol, test = rng.integers(20, size=(2, 30))
    np.testing.assert_allclose(
        moved.score(x @ mix.T, enrol, test), found.score(x, enrol, test), rtol=1e-6, atol=1e-6
    )


# ------------------------------------------------------------------------------------------- files


def test_a_saved_model_is_the_same_model(tmp_path: Path):
    x, labels = simulate(draw_model(), [1, 2, 3, 1, 4, 2, 5])
    model = fit_subspace(x, labels, 2)
    model.save(tmp_path / "new" / "plda.npz")
    loaded = PLDA.load(tmp_path / "new" / "plda.npz")
    enrol, test = np.random.default_rng(0).integers(18, size=(2, 30))
    np.testing.assert_array_equal(loaded.score(x, enrol, test), model.score(x, enrol, test))
    with np.load(tmp_path / "new" / "plda.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_files_that_hold_no_model_are_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="file not found"):
        PLDA.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot be read as an npz file"):
        PLDA.load(path)
    transforms.fit_chain([], np.ones((1, 1))).save(path)
    with pytest.raises(DataError, match="holds 'sslsv chain 1', not 'sslsv plda 1'"):
        PLDA.load(path)
    good = {"mean": np.zeros(2), "loading": np.ones((2, 1)), "within": np.eye(2)}
    for wrong in (
        {"mean": np.zeros(3)},
        {"loading": np.ones(2)},
        {"within": np.ones((2, 2))},
        {"within": np.array([[1, 0], [0, np.nan]])},
        {"within": np.array([[1.0, 0.5], [0.0, 1.0]])},
    ):
        np.savez(path, format=np.array("sslsv plda 1"), **(good | wrong))
        with pytest.raises(DataError, match=r"a\.npz: not a usable PLDA model"):
            PLDA.load(path)
    np.savez(path, format=np.array("sslsv plda 1"), mean=good["mean"])
    with pytest.raises(DataError, match=r"not a usable PLDA model.*loading"):
        PLDA.load(path)


# ---------------------------------------------------------------------------------------- refusals


@pytest.fixture(params=["two-covariance", "rank 2"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def test_too_few_speakers_or_files_are_refused(form: str):
    x, labels = simulate(draw_model(), [3, 3, 3])
    with pytest.raises(DataError, match=r"at least 2 speakers.*all 9 files are of 7"):
        fit(form, x, np.full(9, 7), 10)
    with pytest.raises(DataError, match="none of the 9 speakers has two"):
        fit(form, x, np.arange(9), 10)
    with pytest.raises(DataError, match="5 embeddings of 3 speakers determine 2 of 4"):
        fit(form, x[:5], np.array([0, 0, 1, 1, 2]), 10)
    with pytest.raises(DataError, match="9 embeddings need as many labels"):
        fit(form, x, labels[:8], 10)


def test_training_data_that_are_not_finite_are_named(form: str):
    x, labels = simulate(draw_model(), [3, 3, 3])
    x[[2, 5], [0, 3]] = np.nan, -np.inf
    with pytest.raises(DataError, match=r"2 of 9 embeddings are not finite: rows 2, 5$"):
        fit(form, x, labels, 10)


def test_directions_without_variation_are_refused(form: str):
    x, labels = simulate(draw_model(), [3] * 9)
    x[:, 1] = x[:, 0] + labels
    with pytest.raises(DataError, match="within-speaker covariance is singular"):
        fit(form, x, labels, 10)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_does_not_fit_is_refused(rank: int):
    with pytest.raises(DataError, match=f"rank {rank} does not fit .* 4 dimensions"):
        fit_subspace(*simulate(draw_model(), [3] * 9), rank=rank)


def test_embeddings_of_another_model_are_refused():
    model = draw_model()
    x, labels = np.ones((6, 3)), [0, 0, 0, 1, 1, 1]
    for action in (
        lambda: model.score(x, [0], [1]),
        lambda: model.adapt(x),
        lambda: model.log_likelihood(x, labels),
    ):
        with pytest.raises(DataError, match="have 3 dimensions, but 4 are expected"):
            action()


def test_embeddings_to_score_that_are_not_finite_are_named():
    x = np.ones((6, 4))
    x[4, 2] = np.nan
    for action in (lambda: draw_model().score(x, [0], [1]), lambda: pool(x, [[0]])):
        with pytest.raises(DataError, match=r"1 of 6 embeddings are not finite: rows 4$"):
            action()


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, 0], [1.0, 2.0, 3.0], [[1, 2, 3]]])
def test_counts_that_count_nothing_are_refused(counts: Any):
    with pytest.raises(DataError, match="counts must say of how many vectors each of the 3"):
        draw_model().score(np.ones((3, 4)), [0], [1], counts)


@pytest.mark.parametrize("row", [3, -1])
def test_trials_outside_the_embeddings_are_refused(row: int):
    for trial in (([row], [0]), ([0], [row])):
        with pytest.raises((IndexError, ValueError)):
            draw_model().score(np.ones((3, 4)), *trial)


def test_a_model_without_a_file_is_refused():
    with pytest.raises(DataError, match=re.escape("1 models have no file: 1")):
        pool(np.ones((3, 4)), [[0], [], [1, 2]])


def test_adaptation_refuses_few_embeddings_and_impossible_shares():
    with pytest.raises(DataError, match="more embeddings than their 4 dimensions, got 4"):
        draw_model().adapt(np.ones((4, 4)))
    for shares in ((-0.1, 0.5), (0.75, 0.5)):
        with pytest.raises(ConfigError, match="shares within and between"):
            draw_model().adapt(np.ones((9, 4)), *shares)
