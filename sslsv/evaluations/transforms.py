"""Linear maps and length normalisation of embeddings, fitted before a scoring model.

A transform says what is to be fitted, ``fit`` gives a `Map`, and `fit_chain` fits several one after
another, each to what those before it make of the embeddings. All is computed in float64; a map
gives back float32 for float32.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from scipy import linalg

from sslsv.errors import DataError, listing
from sslsv.files import atomic_write

_ROWS = 1024  # embeddings worked on at once: 1024 x D floats stay in the processor's cache
_SINGULAR = 1e-12  # a share of the variance that is taken for rounding


def blocks(count: int) -> Iterator[slice]:
    """Slices of ``count`` rows, a thousand each."""
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)


def check_embeddings(x: Any, dim: int | None = None) -> np.ndarray:
    """``x`` as an array (N, D) of floats.

    Raises:
        DataError: it has another shape, no row, values that are not finite (rows are named), or
            not ``dim`` columns.
    """
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    if x.ndim != 2 or not x.size:
        raise DataError(f"embeddings must be a table (files, dimensions), got shape {x.shape}")
    if dim is not None and x.shape[1] != dim:
        raise DataError(
            f"the embeddings have {x.shape[1]} dimensions, but {dim} are expected; transforms and "
            "PLDA fit the model whose embeddings they were fitted to"
        )
    refuse_rows([~np.isfinite(x[rows]).all(axis=1) for rows in blocks(len(x))], "are not finite")
    return x


def refuse_rows(bad: list[Any], problem: str) -> None:
    """Raise a `DataError` naming the embeddings marked in ``bad``, a mask for each block."""
    mask = np.concatenate(bad)
    if mask.any():
        rows = [str(row) for row in np.flatnonzero(mask)]
        raise DataError(f"{len(rows)} of {len(mask)} embeddings {problem}: rows {listing(rows)}")


def factor(covariance: np.ndarray, what: str, variance: np.ndarray | None = None) -> np.ndarray:
    """Lower Cholesky factor (D, D); a `DataError` about ``what`` where there is no inverse.

    What counts as nothing is measured by ``variance`` (D,), that of the diagonal unless given.
    """
    scale = np.sqrt(np.maximum(np.diag(covariance) if variance is None else variance, 0))
    if scale.all():
        relative = covariance / np.outer(scale, scale)
        if linalg.eigvalsh(relative, subset_by_index=(0, 0))[0] > _SINGULAR:
            return linalg.cholesky(covariance, lower=True)
    raise DataError(
        f"the {what} covariance is singular: in some direction of the {len(covariance)} dimensions "
        "nothing varies; reduce the dimension first (whitening by PCA)"
    )


# ------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True, eq=False)
class Statistics:
    """All that covariance models see of labelled embeddings: N of S speakers."""

    mean: np.ndarray  # (D,)
    counts: np.ndarray  # (S,) embeddings of each speaker, as floats
    sums: np.ndarray  # (S, D) of a speaker's embeddings, each less the mean
    scatter: np.ndarray  # (D, D), sum over embeddings of the squares of the same

    @property
    def total(self) -> float:
        """N."""
        return float(self.counts.sum())

    def within(self) -> np.ndarray:
        """Covariance (D, D) of embeddings about the mean of their speaker, over N - S.

        Raises:
            DataError: it has no inverse, or no speaker has two embeddings.
        """
        dim, speakers, free = len(self.mean), len(self.counts), int(self.total) - len(self.counts)
        if not free:
            raise DataError(
                f"none of the {speakers} speakers has two embeddings, so how much one speaker "
                "varies cannot be told; give more files of each"
            )
        if free < dim:
            raise DataError(
                f"the within-speaker covariance is singular: {int(self.total)} embeddings of "
                f"{speakers} speakers determine {free} of {dim} dimensions; give more files, or "
                f"reduce the dimension to {free} or less first (whitening by PCA)"
            )
        covariance = (self.scatter - (self.sums.T / self.counts) @ self.sums) / free
        # A difference of sums: what is a tiny part of the whole is rounding.
        factor(covariance, "within-speaker", np.diag(self.scatter) / self.total)
        return covariance

    def between(self) -> np.ndarray:
        """Mean square (D, D) of the speakers' means, weighted by counts, over S - 1."""
        return (self.sums.T / self.counts) @ self.sums / (len(self.counts) - 1)


def statistics(x: Any, labels: Any) -> Statistics:
    """What is needed of embeddings (N, D) and their speakers ``labels`` (N,), in one block a time.

    Raises:
        DataError: `check_embeddings` refuses ``x``, there is not a label for each, or fewer than
            two speakers.
    """
    x = check_embeddings(x)
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    if codes.shape != (len(x),):
        raise DataError(f"{len(x)} embeddings need as many labels, got shape {codes.shape}")
    if len(names) < 2:
        raise DataError(f"at least 2 speakers are needed, but all {len(x)} files are of {names[0]}")
    mean, dim = _mean(x), x.shape[1]
    sums, scatter = np.zeros((len(names), dim)), np.zeros((dim, dim))
    for rows in blocks(len(x)):
        order = np.argsort(codes[rows], kind="stable")
        part = x[rows][order] - mean
        scatter += part.T @ part
        present, starts = np.unique(codes[rows][order], return_index=True)
        sums[present] += np.add.reduceat(part, starts, axis=0)
    return Statistics(mean, np.bincount(codes).astype(np.float64), sums, scatter)


def moments(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D), over N, of embeddings (N, D)."""
    x = check_embeddings(x)
    mean, scatter = _mean(x), np.zeros((x.shape[1], x.shape[1]))
    for rows in blocks(len(x)):
        part = x[rows] - mean
        scatter += part.T @ part
    return mean, scatter / len(x)


def _mean(x: np.ndarray) -> np.ndarray:
    return sum(x[rows].sum(axis=0, dtype=np.float64) for rows in blocks(len(x))) / len(x)


# ------------------------------------------------------------------------------------------- maps


class Map(ABC):
    """A fitted transform: embeddings (N, D) -> (N, D')."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def dims(self) -> tuple[int | None, int | None]:
        """D and D'; None: any, and the same."""

    @abstractmethod
    def rows(self, x: np.ndarray) -> np.ndarray:
        """``apply`` to a few finite rows in float64; NaN where a row has no image."""

    def apply(self, x: Any) -> np.ndarray:
        """Map ``x`` (N, D); float32 stays float32, all else becomes float64.

        Raises:
            DataError: ``x`` has the wrong shape, or rows that are not finite or, where length is
                normalised, have none.
        """
        x = check_embeddings(x, self.dims[0])
        mapped = np.empty((len(x), self.dims[1] or x.shape[1]), x.dtype)
        bad = []
        for rows in blocks(len(x)):
            mapped[rows] = self.rows(x[rows].astype(np.float64))
            bad.append(np.isnan(mapped[rows]).any(axis=1))
        refuse_rows(bad, "have length 0, which cannot become 1")
        return mapped


@dataclass(frozen=True, eq=False)
class Shift(Map):
    """x - mean."""

    mean: np.ndarray  # (D,)
    kind = "shift"

    def __post_init__(self) -> None:
        check_array("mean", self.mean, (None,))

    @property
    def dims(self) -> tuple[int, int]:
        return len(self.mean), len(self.mean)

    def rows(self, x: np.ndarray) -> np.ndarray:
        return x - self.mean


@dataclass(frozen=True, eq=False)
class Affine(Map):
    """(x - mean) @ matrix."""

    mean: np.ndarray  # (D,)
    matrix: np.ndarray  # (D, D')
    kind = "affine"

    def __post_init__(self) -> None:
        check_array("mean", self.mean, (None,))
        check_array("matrix", self.matrix, (len(self.mean), None))

    @property
    def dims(self) -> tuple[int, int]:
        return self.matrix.shape

    def rows(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) @ self.matrix


@dataclass(frozen=True, eq=False)
class UnitLength(Map):
    """x / ‖x‖."""

    kind = "unit_length"
    dims = (None, None)

    def rows(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return x / np.linalg.norm(x, axis=1, keepdims=True)


_KINDS: dict[str, type[Map]] = {map.kind: map for map in (Shift, Affine, UnitLength)}


@dataclass(frozen=True, eq=False)
class Chain(Map):
    """Maps one after another."""

    steps: tuple[Map, ...]
    kind = "chain"

    def __post_init__(self) -> None:
        dim = None
        for number, step in enumerate(self.steps, 1):
            if None not in (dim, step.dims[0]) and dim != step.dims[0]:
                raise DataError(
                    f"map {number} ({step.kind}) takes {step.dims[0]} dimensions, but the map "
                    f"before it gives {dim}"
                )
            dim = step.dims[1] or dim

    @property
    def dims(self) -> tuple[int | None, int | None]:
        known = [step.dims for step in self.steps if step.dims[0] is not None]
        return (known[0][0], known[-1][1]) if known else (None, None)

    def rows(self, x: np.ndarray) -> np.ndarray:
        for step in self.steps:
            x = step.rows(x)
        return x

    def save(self, path: Path) -> None:
        """Write an npz file of plain arrays."""
        arrays = {"kinds": np.array([step.kind for step in self.steps], dtype="U16")}
        for number, step in enumerate(self.steps):
            for field in fields(step):  # type: ignore[arg-type]
                arrays[f"{number}.{field.name}"] = getattr(step, field.name)
        write_npz(path, self.kind, arrays)

    @classmethod
    def load(cls, path: Path) -> Chain:
        """Read a file of `save`; a `DataError` where it is none."""
        arrays = read_npz(path, cls.kind)
        try:
            steps = []
            for number, kind in enumerate(arrays["kinds"].tolist()):
                step = _KINDS[kind]
                names = [field.name for field in fields(step)]  # type: ignore[arg-type]
                steps.append(step(**{name: arrays[f"{number}.{name}"] for name in names}))
            return cls(tuple(steps))
        except (KeyError, DataError) as error:
            raise DataError(f"{path}: not a usable chain of transforms ({error})") from None


# ------------------------------------------------------------------------------------- transforms


class Transform(ABC):
    """What is to be fitted."""

    @abstractmethod
    def fit(self, x: Any, labels: Any = None) -> Map:
        """Fit to embeddings (N, D) and, where speakers matter, their ``labels`` (N,).

        Raises:
            DataError: the input is not enough, or singular.
        """


@dataclass(kw_only=True)
class MeanSubtraction(Transform):
    """The mean becomes 0."""

    def fit(self, x: Any, labels: Any = None) -> Shift:
        return Shift(_mean(check_embeddings(x)))


@dataclass(kw_only=True)
class LengthNorm(Transform):
    """Every embedding gets length 1 (Garcia-Romero and Espy-Wilson, Interspeech 2011)."""

    def fit(self, x: Any, labels: Any = None) -> UnitLength:
        return UnitLength()


@dataclass(kw_only=True)
class Whitening(Transform):
    """The mean becomes 0 and the covariance 1.

    PCA gives principal components, largest first, and leaves out those with less than ``floor``
    of the largest variance. ZCA turns back to the old axes and takes such variances for ``floor``
    of the largest one.
    """

    kind: Literal["pca", "zca"] = "pca"
    dim: int | None = None  # components kept, for PCA; None: all
    floor: float = 1e-6  # of the largest variance

    def fit(self, x: Any, labels: Any = None) -> Affine:
        mean, covariance = moments(x)
        variance, axes = _largest_first(*linalg.eigh(covariance))
        if not variance[0] > 0:
            raise DataError(f"all {len(x)} embeddings are the same and cannot be whitened")
        least = max(self.floor, _SINGULAR) * variance[0]
        if self.kind == "zca":
            if self.floor < _SINGULAR and variance[-1] < least:
                raise DataError(
                    f"the covariance of {len(x)} embeddings in {len(mean)} dimensions is singular; "
                    "give more of them, a floor, or take PCA"
                )
            return Affine(mean, axes / np.sqrt(np.maximum(variance, least)) @ axes.T)
        varying = int((variance >= least).sum())
        dim = varying if self.dim is None else self.dim
        if not 1 <= dim <= varying:
            raise DataError(
                f"whitening to dimension {dim} is not possible: {len(x)} embeddings in {len(mean)} "
                f"dimensions vary in {varying} (more than {self.floor:g} of the largest variance)"
            )
        return Affine(mean, axes[:, :dim] / np.sqrt(variance[:dim]))


@dataclass(kw_only=True)
class WCCN(Transform):
    """The within-speaker covariance becomes 1 (Hatch, Kajarekar and Stolcke, Interspeech 2006).

    Nothing is subtracted.
    """

    def fit(self, x: Any, labels: Any = None) -> Affine:
        lower = linalg.cholesky(statistics(x, labels).within(), lower=True)
        identity = np.eye(len(lower))  # W⁻¹ = matrix @ matrix.T
        matrix = linalg.solve_triangular(lower, identity, lower=True).T
        return Affine(np.zeros(len(lower)), matrix)


@dataclass(kw_only=True)
class LDA(Transform):
    """Directions with the largest ratio of variance between to within speakers, largest first.

    The mean becomes 0, the within-speaker covariance 1.
    """

    dim: int | None = None  # None: as many as there are, min(D, speakers - 1)

    def fit(self, x: Any, labels: Any = None) -> Affine:
        stats = statistics(x, labels)
        speakers, full = stats.sums.shape
        most = min(full, speakers - 1)
        dim = most if self.dim is None else self.dim
        if not 1 <= dim <= most:
            raise DataError(
                f"LDA to dimension {dim} is not possible: {speakers} speakers in {full} dimensions "
                f"allow 1 to {most}"
            )
        _, axes = _largest_first(*linalg.eigh(stats.between(), stats.within()))
        return Affine(stats.mean, axes[:, :dim])


def _largest_first(values: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (D,) and vectors (D, D) in falling order; the largest entry of a vector is made
    positive, since its sign is chance."""
    values, axes = values[::-1], axes[:, ::-1]
    largest = axes[abs(axes).argmax(axis=0), np.arange(len(values))]
    return values, axes * np.sign(largest)


def fit_chain(transforms: Sequence[Transform], x: Any, labels: Any = None) -> Chain:
    """Fit each of ``transforms`` to embeddings (N, D) as those before it leave them."""
    steps = []
    for number, transform in enumerate(transforms, 1):
        steps.append(transform.fit(x, labels))
        if number < len(transforms):
            x = steps[-1].apply(x)
    return Chain(tuple(steps))


# ------------------------------------------------------------------------------------------ files


def write_npz(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> None:
    """Write ``arrays`` and what they are; the file appears once it is complete."""
    with atomic_write(Path(path)) as file:
        np.savez(file, format=np.array(f"sslsv {kind} 1"), **arrays)  # type: ignore[arg-type]


def read_npz(path: Path, kind: str) -> dict[str, np.ndarray]:
    """The arrays of a file of `write_npz`, never unpickling; a `DataError` where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an npz file of arrays ({error})") from None
    found = str(arrays.pop("format", "unknown"))
    if found != f"sslsv {kind} 1":
        raise DataError(f"{path}: holds '{found}', not 'sslsv {kind} 1'")
    return arrays


def check_array(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raise a `DataError` unless ``array`` has ``shape`` (None: any) and is finite."""
    fits = array.ndim == len(shape) and all(
        b in (None, a) for a, b in zip(array.shape, shape, strict=True)
    )
    if not fits or not array.size or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise DataError(f"{name}: must be finite numbers of shape {shape}, got {array.shape}")
