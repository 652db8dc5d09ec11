"""Speaker verification by the cosine of two embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError
from sslsv.evaluations import metrics
from sslsv.evaluations.base import Embed, Measures, Result, Scores, Task, TaskConfig
from sslsv.evaluations.conditions import Stress
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.evaluations.score_norm import (
    Cohort,
    CohortKind,
    ScoreNorm,
    cohort_statistics,
    normalise,
)
from sslsv.evaluations.split import SPLIT, SplitConfig
from sslsv.evaluations.trials import Sides, Trials, check_files, read_trials
from sslsv.methods.base import Method
from sslsv.registry import register_evaluation

Metric = Literal["eer", "mindcf", "actdcf", "cllr", "avgrprec"]
_CHUNK = 65536  # trials scored at once: 2 x 65536 x D floats in memory


@dataclass(kw_only=True)
class SVConfig(TaskConfig):
    """Fields of every speaker-verification task."""

    num_frames: int = 10
    trials: list[str] = field(default_factory=lambda: ["voxceleb1_test_O"])  # below base_path
    split: SplitConfig | None = None  # what the name split stands for in trials: held-out speakers
    metrics: list[Metric] = field(default_factory=lambda: ["eer", "mindcf"])
    mindcf_p_target: float = 0.01  # prior of a target trial
    mindcf_c_miss: float = 1.0  # cost of rejecting a target
    mindcf_c_fa: float = 1.0  # cost of accepting a non-target

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trials", "metrics"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: give at least one")
        if SPLIT in self.trials and self.split is None:
            raise ConfigError(
                f"trials: '{SPLIT}' stands for held-out speakers of dataset.train and needs a "
                "section split: {speakers: 40, trials: 4000} beside it, under "
                "evaluation.validation; a file of this name has to be renamed"
            )
        if self.split and SPLIT not in self.trials:
            raise ConfigError(f"split: nothing uses it; write trials: [{SPLIT}], or remove it")
        if not 0 < self.mindcf_p_target < 1:
            raise ConfigError(
                f"mindcf_p_target: must be between 0 and 1, got {self.mindcf_p_target}"
            )
        for name in ("mindcf_c_miss", "mindcf_c_fa"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}")


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
        return [f"{s}/{name}/{m}" for name in self.trials for s in systems for m in self.metrics]


@register_evaluation("sv_cosine", SVCosineConfig)
class SVCosine(Task):
    """Score of a trial: mean over pairs of frames of the cosine of their embeddings.

    This is the dot product of the two files' mean unit-length embeddings. ``train`` are the rows
    whose utterances are the cohort of ``score_norm``; None: all that the training list has.
    """

    config: SVCosineConfig

    def __init__(
        self,
        config: SVCosineConfig,
        dataset: DatasetConfig,
        held_out: Trials | None = None,
        train: Manifest | None = None,
    ):
        super().__init__(config, dataset)
        self.lists: dict[str, Trials] = {}
        for name in config.trials:
            path = dataset.base_path / name
            if name == SPLIT:
                if held_out is None:
                    raise ConfigError(f"trials: '{SPLIT}' is only known while a model is trained")
                self.lists[name] = held_out
                path = dataset.base_path / dataset.train
            else:
                self.lists[name] = read_trials(path)
            check_files(self.lists[name].audio, dataset.base_path, str(path))
        self.sides = Sides(self.lists.values())
        self.cohort = self._cohort(train) if config.score_norm else None

    def _cohort(self, train: Manifest | None) -> Cohort:
        config, dataset = self.config, self.dataset
        if train is None:
            train = read_manifest(
                dataset.train, dataset.base_path, dataset.label_key, dataset.max_samples
            )
        cohort = Cohort(train, config.score_norm_cohort)
        if config.score_norm == "as-norm" and config.score_norm_cohort_size > cohort.size:
            raise ConfigError(
                f"score_norm_cohort_size: {config.score_norm_cohort_size} is more than the cohort's"
                f" {cohort.size} {cohort.plural} in {cohort.path}; lower it"
            )
        return cohort

    def run(self, embed: Embed, device: torch.device, method: Method | None = None) -> Result:
        return self._run(self.sides, embed, device)

    def run_under(self, stress: Stress, embed: Embed, device: torch.device) -> Result:
        """The cohort of ``score_norm`` is not changed."""
        sides = Sides(self.lists.values(), stress.condition, stress.both)
        return self._run(sides, embed, device)

    def _run(self, sides: Sides, embed: Embed, device: torch.device) -> Result:
        embeddings, cohort = self._embed(embed, sides, device)
        norm, usual = self.config.score_norm, None
        result = Result()
        if cohort is not None:
            nearest = self.config.score_norm_cohort_size if norm == "as-norm" else None
            usual = cohort_statistics(sides.names, embeddings, cohort, nearest, device)
            columns = {"cohort_mean": usual.mean, "cohort_std": usual.std}
            result.measures[f"{norm}/cohort"] = Measures(sides.names, columns)
        for name, trials in self.lists.items():
            enrol, test = sides.rows(trials)
            scores = score(embeddings, enrol, test)
            self._report(result, trials, scores, name, f"sv_cosine/{name}")
            if norm and usual:
                scores = normalise(norm, scores, enrol, test, usual)
                self._report(result, trials, scores, f"{norm}/{name}", f"sv_cosine_{norm}/{name}")
        return result

    def _embed(
        self, embed: Embed, sides: Sides, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The embeddings of ``sides`` and of the cohort; each file is read once."""
        files = sides.files([] if self.cohort is None else self.cohort.files)
        embeddings = {
            condition: extract(
                embed, names, Extraction.of(self.config, self.dataset, condition), device
            )
            for condition, names in files.items()
        }
        cohort = None
        if self.cohort is not None:
            cohort = self.cohort.embeddings(embeddings[None][: len(self.cohort.files)])
        return sides.pool(files, embeddings), cohort

    def _report(
        self, result: Result, trials: Trials, scores: np.ndarray, name: str, prefix: str
    ) -> None:
        result.scores[name] = Scores(trials, scores)
        for metric in self.config.metrics:
            result.metrics[f"{prefix}/{metric}"] = self._measure(metric, scores, trials)

    def _measure(self, metric: Metric, scores: np.ndarray, trials: Trials) -> float:
        c = self.config
        costs = (c.mindcf_p_target, c.mindcf_c_miss, c.mindcf_c_fa)
        if metric == "eer":
            return metrics.eer(scores, trials.labels)
        if metric == "mindcf":
            return metrics.min_dcf(scores, trials.labels, *costs)
        if metric == "actdcf":
            return metrics.act_dcf(scores, trials.labels, *costs)
        if metric == "cllr":
            return metrics.cllr(scores, trials.labels)
        return metrics.avg_r_prec(scores, trials.labels, trials.enrol)


def score(embeddings: np.ndarray, enrol: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Dot products (T,) float64 of rows ``enrol`` and ``test`` of ``embeddings`` (N, D)."""
    scores = np.empty(len(enrol))
    for start in range(0, len(enrol), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores[part] = np.einsum("td,td->t", embeddings[enrol[part]], embeddings[test[part]])
    return scores
