"""Probabilistic linear discriminant analysis: x = mean + y + e with a speaker's y ~ N(0, B) and an
utterance's e ~ N(0, W).

The score of a trial is the log-likelihood ratio of one speaker to two. A basis in which W is 1 and
B diagonal, with the variances ψ, splits it into one term a dimension (Brümmer and de Villiers, "The
speaker partitioning problem", Odyssey 2010). With s the sum of the n vectors of one side and t that
of the m vectors of the other,

    LLR = ½ Σ_d  log(1 + nψ)(1 + mψ)/(1 + (n+m)ψ)
               + ψ(s + t)²/(1 + (n+m)ψ) - ψs²/(1 + nψ) - ψt²/(1 + mψ),

which follows from log p(n vectors) = Σ log N(u; 0, 1) + ½ Σ_d [ψs²/(1 + nψ) - log(1 + nψ)].

Two forms are fitted, both by EM on the sums and counts of each speaker and one scatter matrix:

- two-covariance: B has full rank (Brümmer and de Villiers 2010; Sizov, Lee and Kinnunen, "Unifying
  PLDA variants", S+SSPR 2014);
- subspace: B = FFᵀ with F (D, R), W full (Prince and Elder, ICCV 2007, without channel factors;
  Kenny, Odyssey 2010).

EM starts from the moments (analysis of variance) and draws nothing at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import linalg

from sslsv.errors import ConfigError, DataError
from sslsv.evaluations.transforms import (
    Statistics,
    blocks,
    check_array,
    check_embeddings,
    factor,
    moments,
    read_npz,
    statistics,
    write_npz,
)

_LEAST = 1e-3  # of the variance within speakers: the variance between them that EM starts from
_TRIALS = 256  # scored at once: the 2 x 256 x D floats stay in the processor's cache


@dataclass(frozen=True, eq=False)
class PLDA:
    """A fitted model; all float64."""

    mean: np.ndarray  # (D,)
    loading: np.ndarray  # (D, R), B = loading @ loading.T
    within: np.ndarray  # (D, D), W

    def __post_init__(self) -> None:
        check_array("mean", self.mean, (None,))
        check_array("loading", self.loading, (len(self.mean), None))
        check_array("within", self.within, (len(self.mean), len(self.mean)))
        if not np.allclose(self.within, self.within.T):
            raise DataError("within: a covariance must be symmetric")
        factor(self.within, "within-speaker")

    @property
    def between(self) -> np.ndarray:
        """B (D, D)."""
        return self.loading @ self.loading.T

    @cached_property
    def _basis(self) -> _Basis:
        return _Basis.of(self.loading, self.within)

    def score(self, embeddings: Any, enrol: Any, test: Any, counts: Any = None) -> np.ndarray:
        """Log-likelihood ratios (T,), base e, of trials between rows of ``embeddings`` (N, D).

        Args:
            enrol: (T,) rows, and ``test`` likewise.
            counts: (N,) of how many vectors each row is the mean (`pool`): a model of several files
                is then scored by the book, as that many draws of one speaker. None: each row is
                one vector, which for a mean is the usual short cut.

        Memory: N R floats, beside ``embeddings``.

        Raises:
            DataError: rows are not finite, dimensions do not match, or counts are not numbers of
                vectors.
        """
        x = check_embeddings(embeddings, len(self.mean))
        enrol, test = np.asarray(enrol), np.asarray(test)
        sums = np.empty((len(x), len(self._basis.psi)))
        for rows in blocks(len(x)):
            np.matmul(x[rows] - self.mean, self._basis.transform, out=sums[rows])
        scores = np.empty(len(enrol))
        if counts is None:
            self._score(sums, enrol, test, (1, 1), scores)
            return scores
        counts = _check_counts(counts, len(x))
        sums *= counts[:, None]
        for pair, trials in _by_counts(counts[enrol], counts[test]):
            part = np.empty(len(trials))
            self._score(sums, enrol[trials], test[trials], pair, part)
            scores[trials] = part
        return scores

    def _score(
        self,
        sums: np.ndarray,  # (N, R)
        enrol: np.ndarray,
        test: np.ndarray,
        pair: tuple[int, int],  # vectors on each side, of all these trials
        scores: np.ndarray,  # (T,), filled
    ) -> None:
        """The formula above, squares multiplied out: a sum for each file and one for each trial."""
        psi, (n, m) = self._basis.psi, pair
        both = psi / (1 + (n + m) * psi)
        constant = np.log1p(n * psi) + np.log1p(m * psi) - np.log1p((n + m) * psi)
        rows = enrol if n != m else np.concatenate([enrol, test])
        own_enrol = _weighted_squares(sums, rows, (both - psi / (1 + n * psi)) / 2)
        own_test = own_enrol  # where the weights are the same
        if n != m:
            own_test = _weighted_squares(sums, test, (both - psi / (1 + m * psi)) / 2)
        left, right = np.empty((2, _TRIALS, len(psi)))
        for start in range(0, len(scores), _TRIALS):
            part = slice(start, start + _TRIALS)
            count = len(scores[part])
            # Without mode, take would fill a buffer of its own first.
            np.take(sums, enrol[part], axis=0, out=left[:count], mode="wrap")
            np.take(sums, test[part], axis=0, out=right[:count], mode="wrap")
            left[:count] *= both
            np.einsum("td,td->t", left[:count], right[:count], out=scores[part])
        scores += own_enrol[enrol]
        scores += own_test[test]
        scores += constant.sum() / 2

    def log_likelihood(self, x: Any, labels: Any) -> float:
        """Log density of embeddings (N, D), those of one speaker in ``labels`` (N,) sharing y."""
        stats = statistics(check_embeddings(x, len(self.mean)), labels)
        offset, total = self.mean - stats.mean, stats.total
        scatter = stats.scatter + total * np.outer(offset, offset)
        lower = linalg.cholesky(self.within, lower=True)
        alone = total * (len(offset) * np.log(2 * np.pi) + 2 * np.log(np.diag(lower)).sum())
        alone += np.trace(linalg.cho_solve((lower, True), scatter))
        counts, psi = stats.counts[:, None], self._basis.psi
        sums = (stats.sums - counts * offset) @ self._basis.transform
        shared = psi * sums**2 / (1 + counts * psi) - np.log1p(counts * psi)
        return float(shared.sum() - alone) / 2

    def adapt(self, x: Any, within: float = 0.75, between: float = 0.25) -> PLDA:
        """A model of the domain of embeddings (N, D) whose speakers are unknown.

        The mean becomes theirs. In directions where their variance is larger than that of the
        model, the shares ``within`` and ``between`` of the excess are added to W and B; nothing is
        made smaller. So does Kaldi's ``ivector-adapt-plda``, whose SRE16 recipe has these shares;
        CORAL+ (arXiv 1812.10260) also only increases variances. Unlike there, the excess is what
        goes beyond the largest ratio of variances that as many draws from the model itself would
        show, (1 + √(D/N))² (Marchenko and Pastur 1967), and a shift of the mean is not variance.

        It takes embeddings of some hundred speakers. A few speakers differ by chance in how they
        spread, which is taken for the domain, and scores become worse than without adaptation.

        Raises:
            DataError: there are not more embeddings than dimensions, so that most of what they vary
                is chance.
            ConfigError: a share is negative, or they sum to more than 1.
        """
        if min(within, between) < 0 or within + between > 1:
            raise ConfigError(
                "adaptation: the shares within and between must not be negative nor sum to more "
                f"than 1, got {within} and {between}"
            )
        x = check_embeddings(x, len(self.mean))
        if len(x) <= x.shape[1]:
            raise DataError(
                f"adaptation needs more embeddings than their {x.shape[1]} dimensions, got "
                f"{len(x)}; give more of them, or reduce the dimension first"
            )
        mean, covariance = moments(x)
        total = self.between + self.within
        ratio, axes = linalg.eigh(covariance, total)  # axes.T @ total @ axes = 1
        ratio /= (1 + np.sqrt(len(mean) / len(x))) ** 2
        more = ratio > 1
        added = (total @ axes[:, more]) * np.sqrt(ratio[more] - 1)
        return PLDA(
            mean,
            _narrow(np.hstack([self.loading, np.sqrt(between) * added])),
            self.within + within * added @ added.T,
        )

    def save(self, path: Path) -> None:
        """Write an npz file of plain arrays."""
        write_npz(path, "plda", {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path) -> PLDA:
        """Read a file of `save`; a `DataError` where it is none."""
        arrays = read_npz(path, "plda")
        try:
            return cls(*(arrays[name] for name in _ARRAYS))
        except (KeyError, DataError) as error:
            raise DataError(f"{path}: not a usable PLDA model ({error})") from None


_ARRAYS = ("mean", "loading", "within")


def pool(embeddings: Any, models: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Means (M, D) over the rows of ``embeddings`` that belong to each model, and their counts (M,)
    for `PLDA.score`."""
    x = check_embeddings(embeddings)
    if empty := [str(number) for number, rows in enumerate(models) if not len(rows)]:
        raise DataError(f"{len(empty)} models have no file: {', '.join(empty[:10])}")
    means = np.stack([x[list(rows)].mean(axis=0) for rows in models])
    return means, np.array([len(rows) for rows in models])


def fit_two_covariance(x: Any, labels: Any, iterations: int = 10) -> PLDA:
    """Fit B and W of full rank to embeddings (N, D) of speakers ``labels`` (N,).

    With ``iterations`` 0 these are the moments, variances between speakers below a thousandth of
    those within them raised to it.

    Raises:
        DataError: fewer than two speakers, none with two files, rows that are not finite, or too
            few files for D.
    """
    stats = statistics(x, labels)
    return _fit(stats, _moments(stats), _two_covariance_step, iterations)


def fit_subspace(x: Any, labels: Any, rank: int = 100, iterations: int = 10) -> PLDA:
    """Fit B of ``rank`` and W of full rank; else as `fit_two_covariance`."""
    stats = statistics(x, labels)
    dim = len(stats.mean)
    if not 1 <= rank <= dim:
        raise DataError(
            f"a speaker subspace of rank {rank} does not fit into embeddings of {dim} dimensions; "
            f"lower the rank to {dim} or less"
        )
    start = _moments(stats)
    start = PLDA(start.mean, start.loading[:, :rank], start.within)
    return _fit(stats, start, _subspace_step, iterations)


Step = Callable[[Statistics, PLDA], PLDA]  # of EM, with the mean relative to that of the data


def _fit(stats: Statistics, model: PLDA, step: Step, iterations: int) -> PLDA:
    for _ in range(iterations):
        model = step(stats, model)
    return PLDA(stats.mean + model.mean, model.loading, model.within)


def _moments(stats: Statistics) -> PLDA:
    """Estimates of the analysis of variance, with the largest ratios of B to W first."""
    counts, within = stats.counts, stats.within()
    lower = linalg.cholesky(within, lower=True)
    size = (stats.total - (counts**2).sum() / stats.total) / (len(counts) - 1)
    excess = (stats.between() - within) / size
    half = linalg.solve_triangular(lower, excess, lower=True)
    psi, axes = linalg.eigh(linalg.solve_triangular(lower, half.T, lower=True))
    psi, axes = psi[::-1], axes[:, ::-1]
    loading = lower @ axes * np.sqrt(np.maximum(psi, _LEAST))
    return PLDA(np.zeros(len(within)), loading, within)


def _two_covariance_step(stats: Statistics, model: PLDA) -> PLDA:
    """EM with y + mean as the hidden vector of a speaker, all in the basis of the model."""
    basis, counts, total = model._basis, stats.counts[:, None], stats.total
    psi, transform, axes = basis.psi, basis.transform, basis.axes
    sums = (stats.sums - counts * model.mean) @ transform  # (S, D)
    variance = psi / (1 + counts * psi)  # (S, D), of y given the data of its speaker
    y = variance * sums  # (S, D), its mean
    shift = y.mean(axis=0)
    between = y.T @ y / len(y) + np.diag(variance.mean(axis=0)) - np.outer(shift, shift)
    cross = sums.T @ y
    within = transform.T @ _about(stats, model.mean) @ transform - cross - cross.T
    within += (counts * y).T @ y + np.diag((counts * variance).sum(axis=0))
    return PLDA(
        model.mean + axes @ shift,
        axes @ linalg.cholesky(between, lower=True),
        _symmetric(axes @ within @ axes.T / total),
    )


def _subspace_step(stats: Statistics, model: PLDA) -> PLDA:
    """EM with x = mean + F h + e, h ~ N(0, 1): a regression of x on h, then minimum divergence.

    The latter lets h have any mean and covariance, and moves them into mean and F (Kenny 2010).
    """
    basis, counts, total = model._basis, stats.counts[:, None], stats.total
    psi = basis.psi
    sums = stats.sums - counts * model.mean  # (S, D)
    variance = 1 / (1 + counts * psi)  # (S, R), of h given the data of its speaker
    h = variance * np.sqrt(psi) * (sums @ basis.transform)  # (S, R), its mean
    squares = (counts * h).T @ h + np.diag((counts * variance).sum(axis=0))
    ones = (counts * h).sum(axis=0)
    squares = np.block([[squares, ones[:, None]], [ones[None], np.array([[total]])]])
    cross = np.hstack([sums.T @ h, sums.sum(axis=0)[:, None]])  # (D, R + 1)
    weights = linalg.solve(squares, cross.T, assume_a="pos").T
    within = _symmetric(_about(stats, model.mean) - weights @ cross.T) / total
    loading, offset = weights[:, :-1], weights[:, -1]

    shift = h.mean(axis=0)
    spread = h.T @ h / len(h) + np.diag(variance.mean(axis=0)) - np.outer(shift, shift)
    mean = model.mean + offset + loading @ shift
    return PLDA(mean, loading @ linalg.cholesky(spread, lower=True), within)


@dataclass(frozen=True, eq=False)
class _Basis:
    """Where W is 1 and B is diagonal: rows x become x @ transform."""

    transform: np.ndarray  # (D, R)
    axes: np.ndarray  # (D, R), W @ transform: B = (axes * psi) @ axes.T, W = axes @ axes.T if R = D
    psi: np.ndarray  # (R,) variances between speakers, largest first

    @classmethod
    def of(cls, loading: np.ndarray, within: np.ndarray) -> _Basis:
        lower = linalg.cholesky(within, lower=True)
        white = linalg.solve_triangular(lower, loading, lower=True)
        left, scale, _ = linalg.svd(white, full_matrices=False)
        transform = linalg.solve_triangular(lower, left, lower=True, trans="T")
        return cls(transform, lower @ left, scale**2)


def _about(stats: Statistics, mean: np.ndarray) -> np.ndarray:
    """The scatter matrix about ``mean``, which is relative to the mean of the data."""
    return stats.scatter + stats.total * np.outer(mean, mean)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _narrow(loading: np.ndarray) -> np.ndarray:
    """A loading with the same product and at most D columns."""
    if loading.shape[1] <= loading.shape[0]:
        return loading
    return linalg.qr(loading.T, mode="r")[0][: len(loading)].T


def _weighted_squares(sums: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,): Σ_d weights_d sums_d² of the rows that stand in ``rows``; others are not filled."""
    squares = np.zeros(len(sums))
    used = np.flatnonzero(np.bincount(rows, minlength=len(sums)))
    for part in blocks(len(used)):
        block = sums[used[part]]
        squares[used[part]] = np.square(block, out=block) @ weights
    return squares


def _check_counts(counts: Any, rows: int) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.shape != (rows,) or counts.dtype.kind not in "iu" or counts.min() < 1:
        raise DataError(
            f"counts must say of how many vectors each of the {rows} embeddings is the mean, in "
            f"whole numbers from 1; got shape {counts.shape} of {counts.dtype}"
        )
    return counts.astype(np.int64)


def _by_counts(enrol: np.ndarray, test: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Indices of the trials for each pair of counts."""
    base = int(test.max(initial=0)) + 1
    pairs, group = np.unique(enrol * base + test, return_inverse=True)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(pairs)))
    for pair, end, start in zip(pairs.tolist(), ends, np.append(0, ends), strict=False):
        yield divmod(pair, base), order[start:end]
