"""Transforms of embeddings: against loops and scikit-learn, known answers, refusals."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sslsv.errors import DataError
from sslsv.evaluations import transforms
from sslsv.evaluations.transforms import (
    LDA,
    WCCN,
    Affine,
    Chain,
    LengthNorm,
    MeanSubtraction,
    Shift,
    Transform,
    Whitening,
    fit_chain,
    statistics,
)

SEEDS = st.integers(0, 1000)
ALL = [MeanSubtraction(), LDA(), WCCN(), Whitening(), Whitening(kind="zca"), LengthNorm()]


def draw(seed: int = 0, speakers: int = 6, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, dim) about a mean that is not 0, and labels: 2 to 5 files a speaker, mixed."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(speakers), rng.integers(2, 6, speakers)))
    mix = rng.standard_normal((dim, dim))
    x = rng.standard_normal((speakers, dim))[labels] + rng.standard_normal((len(labels), dim)) @ mix
    return x + rng.standard_normal(dim), labels


def within_loop(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unbiased covariance about the mean of the speaker, file by file."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for speaker in set(labels.tolist()):
        own = [x[i] for i in range(len(x)) if labels[i] == speaker]
        mean = sum(own) / len(own)
        for vector in own:
            total += np.outer(vector - mean, vector - mean)
    return total / (len(x) - len(set(labels.tolist())))


# ------------------------------------------------------------------------------------ each of them


@given(seed=SEEDS)
def test_statistics_are_the_sums_they_say(seed):
    x, labels = draw(seed)
    stats = statistics(x, np.array(["b", "a", "d", "c", "f", "e"])[labels])
    mean = sum(x) / len(x)
    np.testing.assert_allclose(stats.mean, mean, atol=1e-12)
    for row, code in enumerate([1, 0, 3, 2, 5, 4]):  # in order of name
        own = [x[i] - mean for i in range(len(x)) if labels[i] == code]
        assert stats.counts[row] == len(own)
        np.testing.assert_allclose(stats.sums[row], sum(own), atol=1e-10)
    np.testing.assert_allclose(
        stats.scatter, sum(np.outer(v - mean, v - mean) for v in x), atol=1e-9
    )
    np.testing.assert_allclose(stats.within(), within_loop(x, labels), atol=1e-10)


def test_mean_subtraction_takes_the_mean_of_the_training_data():
    x, _ = draw()
    fitted = MeanSubtraction().fit(x)
    other = x[:3] + 7
    np.testing.assert_allclose(fitted.apply(other), other - sum(x) / len(x), atol=1e-12)


@given(seed=SEEDS)
def test_lda_finds_the_axes_of_scikit_learn(seed):
    x, labels = draw(seed)
    found = LDA(dim=3).fit(x, labels).apply(x)
    expected = LinearDiscriminantAnalysis(solver="eigen").fit(x, labels).transform(x)
    for a, b in zip(found.T, expected.T, strict=False):
        assert abs(np.corrcoef(a, b)[0, 1]) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(within_loop(found, labels), np.eye(3), atol=1e-8)


def test_lda_takes_all_directions_there_are():
    x, labels = draw(speakers=3, dim=4)
    assert LDA().fit(x, labels).apply(x).shape[1] == 2
    x, labels = draw(speakers=9, dim=4)
    assert LDA().fit(x, labels).apply(x).shape[1] == 4


@given(seed=SEEDS)
def test_dot_products_after_wccn_are_weighted_by_the_inverse(seed):
    x, labels = draw(seed)
    fitted = WCCN().fit(x, labels)
    inverse = np.linalg.inv(within_loop(x, labels))
    a, b = fitted.apply(x[:2])
    assert a @ b == pytest.approx(x[0] @ inverse @ x[1], rel=1e-8, abs=1e-8)
    np.testing.assert_allclose(within_loop(fitted.apply(x), labels), np.eye(4), atol=1e-8)


@given(seed=SEEDS, kind=st.sampled_from(["pca", "zca"]))
def test_whitened_embeddings_have_unit_covariance(seed, kind):
    x, _ = draw(seed)
    fitted = Whitening(kind=kind).fit(x)
    found = fitted.apply(x)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(found.T @ found / len(x), np.eye(4), atol=1e-8)
    if kind == "zca":
        np.testing.assert_allclose(fitted.matrix, fitted.matrix.T, atol=1e-10)


def test_pca_keeps_the_largest_components_first():
    x = np.array([[3.0, 0, 1], [-3, 0, 1], [0, 1, 1], [0, -1, 1]])  # variances 4.5, 0.5 and 0
    fitted = Whitening(dim=1).fit(x)
    np.testing.assert_allclose(abs(fitted.apply(x)[:, 0]), [2**0.5, 2**0.5, 0, 0], atol=1e-12)
    assert Whitening().fit(x).matrix.shape == (3, 2)
    assert Whitening(floor=0.2).fit(x).matrix.shape == (3, 1)


def test_zca_takes_small_variances_for_the_floor():
    x = np.array([[3.0, 0, 1], [-3, 0, 1], [0, 1, 1], [0, -1, 1]])
    found = Whitening(kind="zca", floor=0.25).fit(x).apply(x + np.array([0, 0, 1]))
    least = (0.25 * 4.5) ** 0.5
    np.testing.assert_allclose(found[:, 0], x[:, 0] / 4.5**0.5, atol=1e-12)
    np.testing.assert_allclose(found[:, 1], x[:, 1] / least, atol=1e-12)
    np.testing.assert_allclose(found[:, 2], 1 / least, atol=1e-12)


def test_length_normalisation_keeps_the_direction():
    found = LengthNorm().fit(np.ones((1, 2))).apply([[3.0, 4.0], [0.0, -2e-9]])
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, -1]], atol=1e-15)


@given(seed=SEEDS)
def test_wccn_and_lda_do_not_depend_on_the_axes(seed):
    """Distances afterwards are the same whatever invertible matrix mixed the dimensions before."""
    x, labels = draw(seed)
    mix = np.random.default_rng(seed).standard_normal((4, 4)) + 4 * np.eye(4)
    for transform in (WCCN(), LDA(dim=2)):
        a, b = (transform.fit(y, labels).apply(y) for y in (x, x @ mix))
        np.testing.assert_allclose(
            np.linalg.norm(a[:1] - a, axis=1), np.linalg.norm(b[:1] - b, axis=1), rtol=1e-6
        )


# ------------------------------------------------------------------------------------------ chains


def test_a_chain_fits_each_to_what_those_before_it_give():
    x, labels = draw(speakers=8)
    chain = fit_chain([MeanSubtraction(), LengthNorm(), LDA(dim=3), LengthNorm()], x, labels)
    y = x - x.mean(axis=0)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    y = LDA(dim=3).fit(y, labels).apply(y)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(chain.apply(x), y, atol=1e-10)
    assert chain.dims == (4, 3)


def test_a_chain_of_nothing_changes_nothing():
    x, labels = draw()
    np.testing.assert_array_equal(fit_chain([], x, labels).apply(x), x)


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_blocks_of_rows_do_not_change_the_result(transform: Transform, monkeypatch):
    x, labels = draw(speakers=9)
    expected = transform.fit(x, labels).apply(x)
    monkeypatch.setattr(transforms, "_ROWS", 5)
    np.testing.assert_allclose(transform.fit(x, labels).apply(x), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_float32_stays_float32_and_is_computed_in_float64(transform: Transform):
    x, labels = draw(speakers=9)
    x = x.astype(np.float32)
    kept = x.copy()
    found = transform.fit(x, labels).apply(x)
    expected = transform.fit(x.astype(np.float64), labels).apply(x.astype(np.float64))
    assert (found.dtype, expected.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    np.testing.assert_array_equal(x, kept)


def test_a_saved_chain_is_the_same_chain(tmp_path: Path):
    x, labels = draw(speakers=9)
    chain = fit_chain(ALL, x, labels)
    chain.save(tmp_path / "new" / "chain.npz")
    loaded = Chain.load(tmp_path / "new" / "chain.npz")
    np.testing.assert_array_equal(loaded.apply(x), chain.apply(x))
    assert [step.kind for step in loaded.steps] == [step.kind for step in chain.steps]
    with np.load(tmp_path / "new" / "chain.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


# ---------------------------------------------------------------------------------------- refusals


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_is_never_unpickled(tmp_path: Path):
    trap = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    np.savez(tmp_path / "a.npz", format=np.array("sslsv chain 1"), kinds=trap)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        Chain.load(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="file not found"):
        Chain.load(path)
    whole = tmp_path / "whole.npz"
    fit_chain([Whitening()], draw()[0]).save(whole)
    npy = tmp_path / "a.npy"
    np.save(npy, np.ones(3))
    for content in (b"", b"hello", whole.read_bytes()[:-40], npy.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as an npz file"):
            Chain.load(path)
    np.savez(path, mean=np.ones(3))
    with pytest.raises(DataError, match="holds 'unknown', not 'sslsv chain 1'"):
        Chain.load(path)
    for arrays in (
        {"kinds": ["shift"]},
        {"kinds": ["magic"], "0.mean": np.ones(2)},
        {"kinds": ["shift"], "0.mean": np.array([1, np.nan])},
        {"kinds": ["affine"], "0.mean": np.ones(2), "0.matrix": np.ones((3, 2))},
        {"kinds": ["shift", "shift"], "0.mean": np.ones(2), "1.mean": np.ones(3)},
    ):
        np.savez(path, format=np.array("sslsv chain 1"), **arrays)
        with pytest.raises(DataError, match=r"a\.npz: not a usable chain"):
            Chain.load(path)


def constant_dimension(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(4) == 2, 0.1, x)


def no_variation_within(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, 1] = draw(speakers=9)[1]  # the label itself
    return x


@pytest.mark.parametrize("spoil", [constant_dimension, no_variation_within])
@pytest.mark.parametrize("transform", [LDA(), WCCN()], ids=repr)
def test_singular_input_is_refused(transform: Transform, spoil):
    x, labels = draw(speakers=9)
    mix = np.random.default_rng(5).standard_normal((4, 4))
    for y in (spoil(x), 1e-6 * spoil(x), spoil(x) @ mix):
        with pytest.raises(DataError, match="within-speaker covariance is singular"):
            transform.fit(y, labels)


@pytest.mark.parametrize("transform", [LDA(), WCCN()], ids=repr)
def test_too_few_speakers_or_files_are_refused(transform: Transform):
    x, labels = draw()
    with pytest.raises(DataError, match=f"all {len(x)} files are of ann"):
        transform.fit(x, ["ann"] * len(x))
    with pytest.raises(DataError, match="none of the 4 speakers has two"):
        transform.fit(x[:4], [4, 3, 2, 1])
    with pytest.raises(
        DataError, match=r"5 embeddings of 2 speakers determine 3 of 4 .* to 3 or less"
    ):
        transform.fit(x[:5], [0, 0, 1, 1, 1])
    with pytest.raises(DataError, match=f"{len(x)} embeddings need as many labels"):
        transform.fit(x, labels[1:])


@pytest.mark.parametrize("transform", ALL[:-1], ids=repr)
def test_embeddings_that_are_not_finite_are_named(transform: Transform, monkeypatch):
    monkeypatch.setattr(transforms, "_ROWS", 5)
    x, labels = draw()
    fitted = transform.fit(x, labels)
    x[3, 1], x[11, 0] = np.nan, np.inf
    for action in (lambda: transform.fit(x, labels), lambda: fitted.apply(x)):
        with pytest.raises(DataError, match=f"^2 of {len(x)} embeddings are not finite: rows 3, 1"):
            action()


@pytest.mark.parametrize("transform", ALL[:-1], ids=repr)
def test_other_dimensions_are_refused(transform: Transform):
    fitted = transform.fit(*draw())
    with pytest.raises(DataError, match="have 3 dimensions, but 4 are expected"):
        fitted.apply(np.ones((5, 3)))
    for wrong in (np.ones(4), np.ones((0, 4)), np.ones((2, 4, 1))):
        with pytest.raises(DataError, match=re.escape(f"got shape {wrong.shape}")):
            fitted.apply(wrong)


@pytest.mark.parametrize("dim", [0, 4])
def test_lda_to_too_many_dimensions_is_refused(dim: int):
    x, labels = draw(speakers=4, dim=5)
    with pytest.raises(DataError, match=rf"dimension {dim} .* 4 speakers .* allow 1 to 3"):
        LDA(dim=dim).fit(x, labels)


def test_whitening_what_does_not_vary_is_refused():
    x, _ = draw()
    with pytest.raises(DataError, match="are the same"):
        Whitening().fit(np.ones((5, 4)))
    with pytest.raises(DataError, match=r"dimension 4 .* vary in 3"):
        Whitening(dim=4).fit(constant_dimension(x))
    with pytest.raises(DataError, match="is singular"):
        Whitening(kind="zca", floor=0).fit(constant_dimension(x))
    assert np.isfinite(Whitening(kind="zca").fit(constant_dimension(x)).matrix).all()


def test_an_embedding_without_length_is_named():
    x, _ = draw()
    chain = Chain((Shift(x[2]), *fit_chain([LengthNorm()], x).steps))
    with pytest.raises(DataError, match=r"1 of .* embeddings have length 0.*rows 2$"):
        chain.apply(x)


def test_maps_that_do_not_fit_each_other_are_refused():
    with pytest.raises(DataError, match=r"map 3 \(affine\) takes 4 dimensions, .* gives 2"):
        Chain(
            (
                Affine(np.zeros(3), np.ones((3, 2))),
                *fit_chain([LengthNorm()], np.ones((1, 2))).steps,
                Affine(np.zeros(4), np.eye(4)),
            )
        )
