"""Score normalisation: a trial's score measured against its files' scores with a cohort.

The cohort is made of utterances of the training list, or of the mean of each label. Each file of a
trial has scores with all of it, whose mean and standard deviation say what is usual for this file.
Auckenthaler, Carey and Lloyd-Thomas, "Score normalization for text-independent speaker verification
systems", Digital Signal Processing 10 (2000); adaptive and symmetric: Matějka et al., "Analysis of
score normalization in multilingual speaker recognition", Interspeech 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sslsv.datasets.manifest import Manifest
from sslsv.errors import DataError, listing

ScoreNorm = Literal["z-norm", "t-norm", "s-norm", "as-norm"]
CohortKind = Literal["utterance", "label"]

_BLOCK = 2**24  # scores held at once: 64 MB
_COLUMNS = 2**14  # cohort embeddings of a block
_ROWS = 2**12  # files of a block
_LEAST_SPREAD = 1e-6  # of the largest score that lengths allow; below it is rounding of float32


class Cohort:
    """Which files the cohort is made of, and how.

    By utterance, each distinct file of the list stands for itself, with its embedding as it is. By
    label, the mean over the rows of a label, scaled to unit length so that labels weigh the same.
    Raises DataError for files that are missing, and a cohort of fewer than two.
    """

    def __init__(self, manifest: Manifest, kind: CohortKind = "utterance"):
        self.kind = kind
        self.path = manifest.path
        if missing := manifest.missing():
            raise manifest.missing_error(missing)
        names, self._places = np.unique(manifest.files, return_inverse=True)
        self.files = [name.decode() for name in names.tolist()]
        self._labels = manifest.labels
        self.size = len(self.files) if kind == "utterance" else len(manifest.label_names)
        if self.size < 2:
            raise DataError(
                f"{self.path}: a cohort needs two {self.plural} or more, and there is {self.size}; "
                "set score_norm: null or use a longer training list"
            )

    @property
    def plural(self) -> str:
        """What the cohort consists of."""
        return "labels" if self.kind == "label" else "utterances"

    def embeddings(self, of_files: np.ndarray) -> np.ndarray:
        """(size, D) from those of ``files`` (len(files), D); no copy where it is by utterance."""
        if self.kind == "utterance":
            return of_files
        order = np.argsort(self._labels, kind="stable")
        starts = np.flatnonzero(np.diff(self._labels[order]))
        means = np.stack(
            [of_files[rows].mean(axis=0) for rows in np.split(self._places[order], starts + 1)]
        )
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        return means / np.maximum(lengths, np.finfo(means.dtype).tiny)


@dataclass(frozen=True)
class Statistics:
    """Of N files' scores with the cohort; (N,) float64."""

    mean: np.ndarray
    std: np.ndarray  # unbiased


def cohort_statistics(
    files: Sequence[str],
    embeddings: np.ndarray,
    cohort: np.ndarray,
    nearest: int | None = None,
    device: torch.device | None = None,
) -> Statistics:
    """Mean and unbiased standard deviation of each file's scores with the cohort.

    Scores are dot products, in the precision of the embeddings.

    Args:
        files: names of N files, for messages.
        embeddings: (N, D), theirs.
        cohort: (C, D), two or more.
        nearest: take only so many of the highest scores of each file, 2 to C; None: all of them.
        device: where to compute; None: the processor.

    Memory, beside the arguments and 16 bytes a file: at most 0.5 GB (eight blocks), whatever N, C
    and ``nearest`` are; 0.1 GB where ``nearest`` is some hundreds and C up to 16,384.

    Raises:
        DataError: the scores of some files do not differ, so that nothing can be divided by their
            standard deviation.
    """
    x, y = torch.from_numpy(embeddings), torch.from_numpy(cohort)
    mean = np.empty(len(x))
    std = np.empty(len(x))
    rows = max(1, min(_ROWS, _BLOCK // max(min(len(y), _COLUMNS), nearest or 0)))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        chunk = x[part].to(device)
        found = _all(chunk, y) if nearest is None else _nearest(chunk, y, nearest)
        mean[part], std[part] = (value.cpu().numpy() for value in found)

    reach = np.sqrt(np.einsum("cd,cd->c", cohort, cohort).max())
    limit = _LEAST_SPREAD * reach * np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
    flat = np.flatnonzero(std <= limit).tolist()
    if flat:
        raise DataError(
            f"the scores of {len(flat)} of {len(files)} files with the cohort do not differ, so "
            f"they cannot be normalised: {listing([files[i] for i in flat])}; does the model give "
            "one embedding for everything? score_norm: null evaluates it all the same"
        )
    return Statistics(mean, std)


def _all(x: Tensor, cohort: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (R,) float64, over all columns of the scores, tile by tile.

    Tiles are joined as by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979), which loses nothing where the mean is far from zero.
    """
    count = 0
    mean = x.new_zeros(len(x), dtype=torch.float64)
    squares = torch.zeros_like(mean)  # sum of squared deviations from the mean
    for tile in cohort.split(_COLUMNS):
        scores = x @ tile.to(x.device).T
        center = scores.mean(dim=1, keepdim=True)
        new, gap = len(tile), center[:, 0].double() - mean
        squares += scores.sub_(center).square_().sum(dim=1) + gap**2 * (count * new / (count + new))
        count += new
        mean += gap * (new / count)
    return mean, (squares / (count - 1)).sqrt()


def _nearest(x: Tensor, cohort: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (R,) float64, over the ``count`` highest scores of each row."""
    best = x.new_empty(len(x), 0)
    for tile in cohort.split(_COLUMNS):
        scores = x @ tile.to(x.device).T
        if best.shape[1]:
            scores = torch.cat((best, scores), dim=1)
        best = _highest(scores, count) if scores.shape[1] > count else scores
    best = best.double()
    return best.mean(dim=1), best.std(dim=1)


def _highest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest of each row, in any order; may reorder ``scores``."""
    if scores.device.type == "cpu":  # numpy is faster than topk, and needs no indices
        scores.numpy().partition(scores.shape[1] - count, axis=1)
        return scores[:, -count:].clone()  # lets go of the others
    return scores.topk(count, dim=1, sorted=False).values


def normalise(
    norm: ScoreNorm, scores: np.ndarray, enrol: np.ndarray, test: np.ndarray, of_files: Statistics
) -> np.ndarray:
    """Scores (T,) less the mean and over the deviation of the files' scores with the cohort.

    z-norm takes those of the enrolment file, t-norm of the test file; s-norm, and as-norm with
    statistics over the nearest of the cohort, is the mean of both.

    Args:
        enrol, test: (T,) index of the trials' files in ``of_files``.
    """
    sides = {"z-norm": [enrol], "t-norm": [test]}.get(norm, [enrol, test])
    total = sum((scores - of_files.mean[side]) / of_files.std[side] for side in sides)
    return total / len(sides)
