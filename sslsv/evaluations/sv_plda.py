"""Speaker verification by probabilistic linear discriminant analysis (`plda.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from sslsv import distributed
from sslsv.datasets.manifest import Manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError
from sslsv.evaluations.base import Embed, Result
from sslsv.evaluations.plda import PLDA, fit_subspace, fit_two_covariance
from sslsv.evaluations.transforms import Chain
from sslsv.evaluations.trials import Sides, Trials
from sslsv.evaluations.verification import FitList, Name, SVConfig, Verification
from sslsv.registry import register_evaluation


@dataclass(kw_only=True)
class SVPLDAConfig(SVConfig):
    transforms: list[Name] = field(default_factory=lambda: ["mean", "length"])
    form: Literal["subspace", "two-covariance"] = "subspace"  # of the between-speaker covariance
    rank: int = 100  # of the subspace; embeddings of fewer dimensions have no more
    iterations: int = 10  # of EM
    enrolment: Literal["mean", "book"] = "mean"  # model of several files: one vector, or that many
    adapt_on: str | None = None  # list of the domain that is tested, whose labels are not used
    adapt_within: float = 0.75  # share of the domain's excess variance that is within speakers
    adapt_between: float = 0.25  # and between them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"rank: must be at least 1, got {self.rank}")
        if self.iterations < 0:
            raise ConfigError(f"iterations: must not be negative, got {self.iterations}")
        shares = self.adapt_within, self.adapt_between
        if not (min(shares) >= 0 and sum(shares) <= 1):
            raise ConfigError(
                "adapt_within, adapt_between: must not be negative nor sum to more than 1, got "
                f"{shares[0]} and {shares[1]}"
            )

    def metric_names(self) -> list[str]:
        return [f"sv_plda/{name}/{m}" for name in self.trials for m in self.measured()]

    @property
    def fits(self) -> bool:
        return True

    @property
    def fits_speakers(self) -> bool:
        return True


@register_evaluation("sv_plda", SVPLDAConfig)
class SVPLDA(Verification):
    """Score of a trial: the log-likelihood ratio of one speaker to two.

    Transforms and the model are fitted to the mean over frames of unit-length embeddings, by the
    main process, and go to the ``backends/`` of the run.
    """

    config: SVPLDAConfig
    fit_list: FitList
    _backend: tuple[Chain, PLDA] | None = None

    def __init__(
        self,
        config: SVPLDAConfig,
        dataset: DatasetConfig,
        held_out: Trials | None = None,
        train: Manifest | None = None,
    ):
        super().__init__(config, dataset, held_out, train)
        self.domain: FitList | None = None
        if config.adapt_on:
            self.domain = FitList(self._read("adapt_on", label_key="File"), by_speaker=False)

    def _prepare(self, embed: Embed, device: torch.device, result: Result) -> None:
        chain, rows = self._fit(embed, device)
        model = distributed.from_main(lambda: self._fit_model(rows))
        if self.domain is not None:
            x = chain.apply(self._extract(embed, self.domain.files, device))
            shares = self.config.adapt_within, self.config.adapt_between
            model = distributed.from_main(lambda: model.adapt(x, *shares))
        self._backend = chain, model
        result.backends |= {"transforms": chain, "plda": model}

    def _fit_model(self, rows: np.ndarray | None) -> PLDA:
        assert rows is not None  # on the main process
        c, labels = self.config, self.fit_list.labels
        if c.form == "two-covariance":
            return fit_two_covariance(rows, labels, c.iterations)
        return fit_subspace(rows, labels, min(c.rank, rows.shape[1]), c.iterations)

    def _score_lists(
        self, sides: Sides, embed: Embed, device: torch.device, result: Result
    ) -> None:
        assert self._backend is not None  # `run` comes first
        chain, model = self._backend
        files = sides.files()
        found = {
            condition: self._extract(embed, names, device, condition)
            for condition, names in files.items()
        }
        counts = None
        if self.config.enrolment == "book":  # the files of a model are draws of their own
            found = {condition: chain.apply(x) for condition, x in found.items()}
            embeddings, counts = sides.pool(files, found), sides.counts()
        else:
            embeddings = chain.apply(sides.pool(files, found))
        for name, trials in self.lists.items():
            scores = model.score(embeddings, *sides.rows(trials), counts)
            self._report(result, name, scores)
            self._add_map(result, name, sides, embeddings)
