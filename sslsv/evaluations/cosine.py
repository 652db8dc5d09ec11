"""Speaker verification by the cosine of two embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sslsv.datasets.manifest import Manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError
from sslsv.evaluations.base import Embed, Measures, Result
from sslsv.evaluations.score_norm import (
    Cohort,
    CohortKind,
    ScoreNorm,
    cohort_statistics,
    normalise,
)
from sslsv.evaluations.transforms import Chain, UnitLength
from sslsv.evaluations.trials import Sides, Trials
from sslsv.evaluations.verification import SVConfig, Verification
from sslsv.registry import register_evaluation

_CHUNK = 256  # trials scored at once: 2 x 256 x D floats stay in the processor's cache


@dataclass(kw_only=True)
class SVCosineConfig(SVConfig):
    score_norm: ScoreNorm | None = None  # report normalised scores beside the raw ones
    score_norm_cohort: CohortKind = "utterance"  # of the training list, or the mean of each label
    score_norm_cohort_size: int = 300  # nearest of the cohort, for as-norm

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_norm_cohort_size < 2:
            raise ConfigError(
                "score_norm_cohort_size: must be at least 2 for a standard deviation, got "
                f"{self.score_norm_cohort_size}"
            )

    def metric_names(self) -> list[str]:
        systems = ["sv_cosine"]
        if self.score_norm:
            systems.append(f"sv_cosine_{self.score_norm}")
        return [f"{s}/{name}/{m}" for name in self.trials for s in systems for m in self.measured()]

    @property
    def needs_train(self) -> bool:
        return super().needs_train or self.score_norm is not None


@register_evaluation("sv_cosine", SVCosineConfig)
class SVCosine(Verification):
    """Score of a trial: mean over pairs of frames of the cosine of their embeddings.

    This is the dot product of the two files' mean unit-length embeddings. With ``transforms`` these
    means are transformed and scaled to unit length, and so is the cohort of ``score_norm``, whose
    utterances are those of ``train``.
    """

    config: SVCosineConfig
    _map: Chain | None = None

    def __init__(
        self,
        config: SVCosineConfig,
        dataset: DatasetConfig,
        held_out: Trials | None = None,
        train: Manifest | None = None,
    ):
        super().__init__(config, dataset, held_out, train)
        self.cohort = self._cohort(train) if config.score_norm else None

    def _cohort(self, train: Manifest | None) -> Cohort:
        config = self.config
        cohort = Cohort(self._training_list(train), config.score_norm_cohort)
        if config.score_norm == "as-norm" and config.score_norm_cohort_size > cohort.size:
            raise ConfigError(
                f"score_norm_cohort_size: {config.score_norm_cohort_size} is more than the cohort's"
                f" {cohort.size} {cohort.plural} in {cohort.path}; lower it"
            )
        return cohort

    def _prepare(self, embed: Embed, device: torch.device, result: Result) -> None:
        self._map = None
        if self.config.transforms:
            chain, _ = self._fit(embed, device)
            self._map = Chain((*chain.steps, UnitLength()))
            result.backends["transforms"] = self._map

    def _score_lists(
        self, sides: Sides, embed: Embed, device: torch.device, result: Result
    ) -> None:
        """The cohort of ``score_norm`` is never under a condition."""
        embeddings, cohort = self._embed(embed, sides, device)
        norm, usual = self.config.score_norm, None
        if cohort is not None:
            nearest = self.config.score_norm_cohort_size if norm == "as-norm" else None
            usual = cohort_statistics(sides.names, embeddings, cohort, nearest, device)
            columns = {"cohort_mean": usual.mean, "cohort_std": usual.std}
            result.measures[f"{norm}/cohort"] = Measures(sides.names, columns)
        for name, trials in self.lists.items():
            enrol, test = sides.rows(trials)
            scores = score(embeddings, enrol, test)
            self._report(result, name, scores)
            self._add_map(result, name, sides, embeddings)
            if norm and usual:
                self._report(result, name, normalise(norm, scores, enrol, test, usual), norm)

    def _embed(
        self, embed: Embed, sides: Sides, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The embeddings of ``sides`` and of the cohort; each file is read once."""
        files = sides.files([] if self.cohort is None else self.cohort.files)
        found = {
            condition: self._extract(embed, names, device, condition)
            for condition, names in files.items()
        }
        cohort = None
        if self.cohort is not None:
            cohort = self._mapped(self.cohort.embeddings(found[None][: len(self.cohort.files)]))
        return self._mapped(sides.pool(files, found)), cohort

    def _mapped(self, x: np.ndarray) -> np.ndarray:
        return x if self._map is None else self._map.apply(x)


def score(embeddings: np.ndarray, enrol: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Dot products (T,) float64 of rows ``enrol`` and ``test`` of ``embeddings`` (N, D)."""
    scores = np.empty(len(enrol))
    left, right = np.empty((2, _CHUNK, embeddings.shape[1]), embeddings.dtype)
    for start in range(0, len(enrol), _CHUNK):
        part = slice(start, start + _CHUNK)
        count = len(scores[part])
        # Without mode, take would fill a buffer of its own first; rows are never outside.
        np.take(embeddings, enrol[part], axis=0, out=left[:count], mode="wrap")
        np.take(embeddings, test[part], axis=0, out=right[:count], mode="wrap")
        scores[part] = np.einsum("td,td->t", left[:count], right[:count])
    return scores
