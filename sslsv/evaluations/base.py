"""The contract of an evaluation: waveforms are embedded, metrics come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError
from sslsv.evaluations.conditions import check_names
from sslsv.evaluations.trials import Trials
from sslsv.methods.base import Method


class Embed(Protocol):
    """Waveforms (B, T) -> embeddings (B, D), each as if its waveform were alone.

    ``lengths`` counts the samples of each row; None: all T.
    """

    def __call__(self, wave: Tensor, lengths: Sequence[int] | None = None, /) -> Tensor: ...


@dataclass(kw_only=True)
class TaskConfig:
    """One entry of ``evaluation.validation`` or ``evaluation.test``."""

    type: str  # which evaluation
    batch_size: int = 64  # files embedded together
    num_frames: int = 1  # evenly spaced frames of each file
    frame_length: int | None = 64000  # samples of a frame; null: one frame, the whole file
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder (bf16: autocast)

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_frames", "frame_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")

    def metric_names(self) -> list[str]:
        """What the task will report, without the ``val/`` or ``test/`` in front."""
        raise NotImplementedError

    @property
    def needs_train(self) -> bool:
        """Whether it uses the list that the run trains on, which it is then given as ``train``."""
        return False


@dataclass(kw_only=True)
class EvaluationConfig:
    """YAML section ``evaluation``."""

    validation: list[TaskConfig] = field(default_factory=list)  # after each epoch of training
    test: list[TaskConfig] = field(default_factory=list)  # by the evaluate command
    conditions: list[str] = field(default_factory=list)  # such as duration-2s, snr-5db, telephone
    conditions_on: Literal["test", "both"] = "test"  # side of a trial that is heard under them
    resamples: int = 1000  # of the speakers, for 95 % intervals of the tests; 0: none
    speakers: str | None = None  # CSV with File and Speaker for these; null: what targets join
    cache_gb: float = 4.0  # of embeddings kept in <run_dir>/cache for the next evaluation; 0: none

    def __post_init__(self) -> None:
        check_names(self.conditions)
        if not self.cache_gb >= 0:
            raise ConfigError(f"cache_gb: must be 0 or more, got {self.cache_gb}")
        if self.resamples < 0 or 0 < self.resamples < 100:
            raise ConfigError(f"resamples: must be 0 or at least 100, got {self.resamples}")
        for name in ("validation", "test"):
            reported: dict[str, str] = {}
            for task in getattr(self, name):
                for metric in dict.fromkeys(task.metric_names()):
                    if metric in reported:
                        raise ConfigError(
                            f"{name}: '{task.type}' is listed twice with the same list, so that "
                            f"'{metric}' would mean two things; remove one"
                        )
                    reported[metric] = task.type


@dataclass(frozen=True)
class Scores:
    """A trials list with its scores (T,), for plots, score files and error bars."""

    trials: Trials
    scores: np.ndarray
    prefix: str = ""  # of the names of its metrics
    costs: tuple[float, float, float] = (0.01, 1.0, 1.0)  # p_target, c_miss, c_fa
    metrics: tuple[str, ...] = ()  # names of those taken of it


class Saveable(Protocol):
    """A fitted model or transform."""

    def save(self, path: Path, /) -> None: ...


@dataclass(frozen=True)
class Measures:
    """Numbers that belong to files, for the calibration of scores: columns of N values."""

    files: list[str]
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """Labels of files and what they are taken for, as codes (N,) into ``names``."""

    files: list[str]
    names: list[str]
    true: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class Map:
    """Some embeddings (N, D) of a list, and the code (N,) of who or what each is."""

    embeddings: np.ndarray
    groups: np.ndarray


@dataclass
class Result:
    """What a task found."""

    metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)  # by list; normalised: "s-norm/<list>"
    measures: dict[str, Measures] = field(default_factory=dict)  # by what they are
    predictions: dict[str, Predictions] = field(default_factory=dict)  # by list and classifier
    maps: dict[str, Map] = field(default_factory=dict)  # by list
    backends: dict[str, Saveable] = field(default_factory=dict)  # what was fitted, by what it is


class Task:
    """One evaluation. ``dataset`` says where lists and audio are and how to read them.

    Lists are read and their files looked for when the task is made, before any long work.
    """

    def __init__(self, config: TaskConfig, dataset: DatasetConfig):
        self.config = config
        self.dataset = dataset

    def run(self, embed: Embed, device: torch.device, method: Method | None = None) -> Result:
        """Embed and score; every process calls this and gets the same metrics.

        ``method``: whose ``embed`` it is, where it was trained; None: a baseline's.
        """
        raise NotImplementedError
