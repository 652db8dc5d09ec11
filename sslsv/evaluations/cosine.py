"""Speaker verification by the cosine of two embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError
from sslsv.evaluations import metrics
from sslsv.evaluations.base import Embed, Result, Scores, Task, TaskConfig
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.evaluations.split import SPLIT, SplitConfig
from sslsv.evaluations.trials import Trials, check_files, read_trials
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
    score_norm: Literal["z-norm", "t-norm", "s-norm", "as-norm"] | None = None
    score_norm_cohort_size: int = 300  # nearest cohort embeddings, for as-norm

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_norm is not None:
            raise ConfigError("score_norm: not available yet; set it to null")

    def metric_names(self) -> list[str]:
        return [f"sv_cosine/{name}/{m}" for name in self.trials for m in self.metrics]


@register_evaluation("sv_cosine", SVCosineConfig)
class SVCosine(Task):
    """Score of a trial: mean over pairs of frames of the cosine of their embeddings.

    This is the dot product of the two files' mean unit-length embeddings.
    """

    config: SVCosineConfig

    def __init__(
        self, config: SVCosineConfig, dataset: DatasetConfig, held_out: Trials | None = None
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
            check_files(self.lists[name].files, dataset.base_path, str(path))

    def run(self, embed: Embed, device: torch.device) -> Result:
        files = sorted({file for trials in self.lists.values() for file in trials.files})
        how = Extraction(
            base_path=self.dataset.base_path,
            num_frames=self.config.num_frames,
            frame_length=self.config.frame_length,
            batch_size=self.config.batch_size,
            num_workers=self.dataset.num_workers,
            resample=self.dataset.resample,
        )
        embeddings = extract(embed, files, how, device)
        place = {file: index for index, file in enumerate(files)}
        result = Result()
        for name, trials in self.lists.items():
            index = np.array([place[file] for file in trials.files])
            scores = score(embeddings, index[trials.enrol], index[trials.test])
            result.scores[name] = Scores(trials, scores)
            for metric in self.config.metrics:
                key = f"sv_cosine/{name}/{metric}"
                result.metrics[key] = self._measure(metric, scores, trials)
        return result

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
