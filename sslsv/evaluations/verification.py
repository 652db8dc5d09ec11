"""Speaker verification: lists of trials, the embeddings of their files, and what is measured.

A scorer (`cosine.py`, `sv_plda.py`) says how trials are scored; all else is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from sslsv import distributed
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import metrics, transforms
from sslsv.evaluations.base import Embed, Map, Result, Scores, Task, TaskConfig
from sslsv.evaluations.bootstrap import codes_of_files
from sslsv.evaluations.conditions import Condition
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.evaluations.split import SPLIT, SplitConfig
from sslsv.evaluations.stress import Stress
from sslsv.evaluations.transforms import Chain, Transform, fit_chain
from sslsv.evaluations.trials import Sides, Trials, check_files, read_trials
from sslsv.methods.base import Method
from sslsv.trainer.tracking import say

# As metrics.py defines them.
Metric = Literal["eer", "eer_rocch", "mindcf", "actdcf", "cllr", "mincllr", "avgrprec"]
Name = Literal["mean", "whitening", "zca", "lda", "wccn", "length"]
_BY_SPEAKER = {"lda", "wccn"}
_MAP_SPEAKERS, _MAP_FILES = 20, 50  # of each, in a picture


@dataclass(kw_only=True)
class SVConfig(TaskConfig):
    """Fields of every speaker-verification task."""

    num_frames: int = 10
    trials: list[str] = field(default_factory=lambda: ["voxceleb1_test_O"])  # below base_path
    split: SplitConfig | None = None  # what the name split stands for in trials: held-out speakers
    transforms: list[Name] = field(default_factory=list)  # of embeddings, one after another
    whitening_dim: int | None = None  # principal components that whitening keeps; null: all
    lda_dim: int | None = None  # directions that lda keeps; null: all, min(D, speakers - 1)
    fit_on: str | None = None  # labelled list they are fitted on; null: what the run trains on
    metrics: list[Metric] = field(  # of docs/evaluation.md
        default_factory=lambda: ["eer", "mindcf"]
    )
    mindcf_p_target: float = 0.01  # prior of a target trial
    mindcf_c_miss: float = 1.0  # cost of rejecting a target
    mindcf_c_fa: float = 1.0  # cost of accepting a non-target
    mindcf_priors: list[float] = field(default_factory=list)  # more, as mindcf_p<prior>

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
        for prior in [self.mindcf_p_target, *self.mindcf_priors]:
            if not 0 < prior < 1:
                name = "mindcf_priors" if prior in self.mindcf_priors else "mindcf_p_target"
                raise ConfigError(f"{name}: must be between 0 and 1, got {prior}")
        if len(set(self.measured())) < len(self.measured()):
            raise ConfigError("metrics, mindcf_priors: give none twice")
        for name in ("mindcf_c_miss", "mindcf_c_fa"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)}")
        for name, user in {"whitening_dim": "whitening", "lda_dim": "lda"}.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
            if value is not None and user not in self.transforms:
                raise ConfigError(f"{name}: nothing uses it; add {user} to transforms")
        if self.fit_on and not self.fits:
            raise ConfigError("fit_on: nothing uses it; add whitening or lda to transforms")

    def measured(self) -> list[str]:
        """Names of the metrics of a list."""
        return [*self.metrics, *(f"mindcf_p{prior:g}" for prior in self.mindcf_priors)]

    @property
    def costs(self) -> tuple[float, float, float]:
        return self.mindcf_p_target, self.mindcf_c_miss, self.mindcf_c_fa

    @property
    def fits(self) -> bool:
        """Whether anything is fitted to a list."""
        return any(name != "length" for name in self.transforms)

    @property
    def fits_speakers(self) -> bool:
        """Whether the list has to know its speakers."""
        return not _BY_SPEAKER.isdisjoint(self.transforms)

    @property
    def needs_train(self) -> bool:
        """Whether the list that the run trains on is embedded."""
        return self.fits and self.fit_on is None


class FitList:
    """The list that transforms and PLDA are fitted on: its distinct files, and rows of it.

    Raises DataError where files are missing, or ``by_speaker`` and the labels tell too little.
    """

    def __init__(self, manifest: Manifest, by_speaker: bool):
        self.path = manifest.path
        if missing := manifest.missing():
            raise manifest.missing_error(missing)
        names, self.places = np.unique(manifest.files, return_inverse=True)  # of rows in files
        self.files = [name.decode() for name in names.tolist()]
        self.labels = manifest.labels
        self.speakers = len(manifest.label_names)
        self.free = len(self.labels) - self.speakers  # dimensions that differences can span
        if by_speaker and (self.speakers < 2 or not self.free):
            what = "all rows are of one speaker" if self.free else "no speaker has two rows"
            raise DataError(
                f"{self.path}: {what} by its labels, so how speakers differ cannot be learnt from "
                "it; name a labelled list as fit_on"
            )

    def check_dimension(self, dim: int) -> None:
        """DataError where covariances within speakers of ``dim`` dimensions would be singular."""
        if self.free < dim:
            raise DataError(
                f"{self.path}: {len(self.labels)} rows of {self.speakers} speakers determine "
                f"{self.free} of {dim} dimensions; use a longer list, or put whitening with "
                f"whitening_dim of {self.free} or less first in transforms"
            )


class Verification(Task):
    """Trials of ``config.trials``, scored by a subclass.

    ``held_out``: what the name ``split`` stands for; ``train``: the rows that the run trains on,
    for what is fitted (None: all of the training list).
    """

    config: SVConfig

    def __init__(
        self,
        config: SVConfig,
        dataset: DatasetConfig,
        held_out: Trials | None = None,
        train: Manifest | None = None,
    ):
        super().__init__(config, dataset)
        self.speakers: Mapping[str, str] | None = None  # of files, where known: for maps
        self.lists: dict[str, Trials] = {}
        for name in config.trials:
            path = dataset.base_path / name
            if name == SPLIT:
                if held_out is None:
                    raise ConfigError(f"trials: '{SPLIT}' is only known while a model is trained")
                self.lists[name] = held_out
                path = dataset.base_path / dataset.train
            else:
                self.lists[name] = replace(read_trials(path), name=name)  # folders tell them apart
            check_files(self.lists[name].audio, dataset.base_path, str(path))
        self.sides = Sides(self.lists.values())
        self.fit_list: FitList | None = None
        if config.fits:
            rows = self._read("fit_on") if config.fit_on else self._training_list(train)
            self.fit_list = FitList(rows, config.fits_speakers)
            if config.lda_dim and config.lda_dim >= self.fit_list.speakers:
                raise ConfigError(
                    f"lda_dim: {config.lda_dim} directions need more speakers than the "
                    f"{self.fit_list.speakers} of {self.fit_list.path}; lower it"
                )

    def _read(self, key: str, label_key: str | None = None) -> Manifest:
        """The list that the field ``key`` of the config names."""
        base_path, name = self.dataset.base_path, getattr(self.config, key)
        if not (base_path / name).is_file():
            raise DataError(
                f"{base_path / name}: list not found; {key} is looked up below dataset.base_path"
            )
        return read_manifest(name, base_path, label_key or self.dataset.label_key)

    def _training_list(self, train: Manifest | None) -> Manifest:
        if train is not None:
            return train
        dataset = self.dataset
        return read_manifest(
            dataset.train, dataset.base_path, dataset.label_key, dataset.max_samples
        )

    # Running --------------------------------------------------------------------------------------

    def run(self, embed: Embed, device: torch.device, method: Method | None = None) -> Result:
        """Fit what is fitted, then score all lists."""
        result = Result()
        self._prepare(embed, device, result)
        self._score_lists(self.sides, embed, device, result)
        return result

    def run_under(self, stress: Stress, embed: Embed, device: torch.device) -> Result:
        """After ``run`` with the same ``embed``, whose fits are used: these never hear it."""
        result = Result()
        sides = Sides(self.lists.values(), stress.condition, stress.both)
        self._score_lists(sides, embed, device, result)
        return result

    @abstractmethod
    def _prepare(self, embed: Embed, device: torch.device, result: Result) -> None:
        """Fit what is needed before trials are scored."""

    @abstractmethod
    def _score_lists(
        self, sides: Sides, embed: Embed, device: torch.device, result: Result
    ) -> None:
        """Score all lists and `_report` them."""

    def _extract(
        self,
        embed: Embed,
        files: Sequence[str],
        device: torch.device,
        condition: Condition | None = None,
    ) -> np.ndarray:
        """Embeddings (len(files), D) as the task's settings say."""
        how = Extraction.of(self.config, self.dataset, condition)
        return extract(embed, files, how, device)

    def _fit(self, embed: Embed, device: torch.device) -> tuple[Chain, np.ndarray | None]:
        """The transforms, and the rows (R, D') of the fit list as they leave them (None: there is
        no list). Only the main process has the latter."""
        fit_list = self.fit_list
        if fit_list is None:
            return Chain(tuple(t.fit(np.zeros((1, 1))) for t in self._transforms())), None
        self._check_dimensions(fit_list, embed, device)
        found = self._extract(embed, fit_list.files, device)
        rows: list[np.ndarray] = []

        def fit() -> Chain:
            x = found[fit_list.places]
            chain = fit_chain(self._transforms(), x, fit_list.labels)
            rows.append(chain.apply(x))
            return chain

        chain = distributed.from_main(fit)
        return chain, rows[0] if rows else None

    def _check_dimensions(self, fit_list: FitList, embed: Embed, device: torch.device) -> None:
        """Refuse a list too short for the dimension, before all of it is embedded."""
        names = self.config.transforms
        first = next((i for i, name in enumerate(names) if name in _BY_SPEAKER), len(names))
        if self.config.fits_speakers and "whitening" not in names[:first]:
            fit_list.check_dimension(self._extract(embed, fit_list.files[:1], device).shape[1])
        elif self.config.fits_speakers and self.config.whitening_dim:
            fit_list.check_dimension(self.config.whitening_dim)

    def _transforms(self) -> list[Transform]:
        make = {
            "mean": transforms.MeanSubtraction,
            "whitening": lambda: transforms.Whitening(dim=self.config.whitening_dim),
            "zca": lambda: transforms.Whitening(kind="zca"),
            "lda": lambda: transforms.LDA(dim=self.config.lda_dim),
            "wccn": transforms.WCCN,
            "length": transforms.LengthNorm,
        }
        return [make[name]() for name in self.config.transforms]

    def _add_map(self, result: Result, name: str, sides: Sides, embeddings: np.ndarray) -> None:
        """Some of the embeddings that trials of the list ``name`` compare, of the speakers with the
        most files; none under a condition."""
        if sides is not self.sides:
            return
        trials = self.lists[name]
        row = np.full(len(trials.files), -1)
        row[trials.enrol], row[trials.test] = sides.rows(trials)
        speakers = codes_of_files(trials, self.speakers)
        most = np.argsort(-np.bincount(speakers), kind="stable")[:_MAP_SPEAKERS]
        of_each = [np.flatnonzero(speakers == speaker)[:_MAP_FILES] for speaker in most]
        groups = np.repeat(np.arange(len(most)), [len(files) for files in of_each])
        result.maps[name] = Map(embeddings[row[np.concatenate(of_each)]], groups)

    def _report(
        self, result: Result, name: str, scores: np.ndarray, norm: str | None = None
    ) -> None:
        """Metrics of scores (T,) of the list ``name``, normalised by ``norm``."""
        c, trials = self.config, self.lists[name]
        prefix = f"{c.type}_{norm}/{name}" if norm else f"{c.type}/{name}"
        key = f"{norm}/{name}" if norm else name
        result.scores[key] = Scores(trials, scores, prefix, c.costs, tuple(c.metrics))
        for metric in c.metrics:
            result.metrics[f"{prefix}/{metric}"] = measure(metric, scores, trials, c.costs)
        for prior in c.mindcf_priors:
            value = metrics.min_dcf(scores, trials.labels, prior, *c.costs[1:])
            result.metrics[f"{prefix}/mindcf_p{prior:g}"] = value
        warning = metrics.calibration_warning(scores, trials.labels)
        if warning and not {"actdcf", "cllr"}.isdisjoint(c.metrics):
            say(f"warning: {prefix}: {warning}")


def measure(
    metric: str, scores: np.ndarray, trials: Trials, costs: tuple[float, float, float]
) -> float:
    """One of `Metric` for scores (T,); ``costs`` are p_target, c_miss and c_fa."""
    if metric == "avgrprec":
        return metrics.avg_r_prec(scores, trials.labels, trials.enrol)
    if metric in ("mindcf", "actdcf"):
        of_costs = {"mindcf": metrics.min_dcf, "actdcf": metrics.act_dcf}[metric]
        return of_costs(scores, trials.labels, *costs)
    plain = {
        "eer": metrics.eer,
        "eer_rocch": metrics.eer_rocch,
        "cllr": metrics.cllr,
        "mincllr": metrics.min_cllr,
    }
    return plain[metric](scores, trials.labels)
