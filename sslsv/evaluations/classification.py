"""Classification of utterances: emotion, language, gender, speaker or any other label.

Either by the head that was trained with the encoder (method ``supervised``), or by probes that are
fitted on frozen embeddings, which shows what these hold.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import CheckpointError, ConfigError, DataError, listing
from sslsv.evaluations import probes
from sslsv.evaluations.base import Embed, Predictions, Result, Task, TaskConfig
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.evaluations.trials import check_files
from sslsv.files import atomic_write
from sslsv.methods.base import Method
from sslsv.methods.supervised import Supervised
from sslsv.registry import register_evaluation
from sslsv.trainer.checkpoint import LABELS
from sslsv.trainer.tracking import say

Classifier = Literal["head", "linear", "knn"]
Metric = Literal["accuracy", "f1_score", "f1_macro"]
_FLOATS = 2**26  # of posteriors held at once, 256 MB
_MOST_LABELS = 500  # of a confusion matrix that is written


@dataclass(kw_only=True)
class ClassificationConfig(TaskConfig):
    csv: str = ""  # list to classify, below base_path; where it has a column Set, its test rows
    key: str = ""  # column of the lists that holds the labels
    train: str | None = None  # list whose train rows probes are fitted on; null: those of csv
    classifiers: list[Classifier] | None = None  # null: the trained head, else linear and knn
    knn_neighbours: int = 5  # that vote, by cosine
    metrics: list[Metric] = field(  # f1_score: weighted by the labels' test rows
        default_factory=lambda: ["accuracy", "f1_score", "f1_macro"]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, what in {"csv": "the list to classify", "key": "its column of labels"}.items():
            if not getattr(self, name):
                raise ConfigError(f"{name}: missing; give the name of {what}")
        for name in ("classifiers", "metrics"):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise ConfigError(f"{name}: give at least one, and none twice")
        if self.knn_neighbours < 1:
            raise ConfigError(f"knn_neighbours: must be at least 1, got {self.knn_neighbours}")

    def metric_names(self) -> list[str]:
        """With ``classifiers`` null: of all, since it is the method that decides."""
        return self.names_of(self.classifiers or ["head", "linear", "knn"])

    def names_of(self, classifiers: Sequence[Classifier]) -> list[str]:
        return [f"{self.name_of(c)}/{metric}" for c in classifiers for metric in self.metrics]

    def name_of(self, classifier: Classifier) -> str:
        """What stands before ``/<metric>``."""
        name = self.csv.removesuffix(".csv")
        return name if classifier == "head" else f"{classifier}/{name}"


@dataclass(frozen=True)
class LabelledFiles:
    """Rows of a list."""

    path: Path
    files: list[str]  # relative to base_path
    labels: list[str]
    lines: list[int]  # of the CSV, for messages


@register_evaluation("classification", ClassificationConfig)
class Classification(Task):
    """Which label a file is taken for.

    ``has_head``: whether the method has a trained classifier, of which ``set_labels`` must tell.
    Posteriors of several frames are pooled by the mean of their square roots.
    """

    config: ClassificationConfig

    def __init__(
        self, config: ClassificationConfig, dataset: DatasetConfig, has_head: bool = False
    ):
        super().__init__(config, dataset)
        default: list[Classifier] = ["head"] if has_head else ["linear", "knn"]
        self.classifiers = config.classifiers or default
        if self.by_head and not has_head:
            raise ConfigError(
                "classifiers: 'head' is the classifier of method 'supervised', and this method has "
                "none; choose linear, knn or both"
            )
        self.labels: list[str] = []
        self.test = read_rows(dataset.base_path / config.csv, config.key, "test")
        self.train: LabelledFiles | None = None
        if self.probes:
            self.train = self._train_rows()
        files = dict.fromkeys(self.test.files)
        files |= dict.fromkeys(self.train.files) if self.train else {}
        source = " and ".join(dict.fromkeys(str(r.path) for r in (self.test, self.train) if r))
        check_files(list(files), dataset.base_path, source)

    def set_labels(self, labels: list[str]) -> None:
        """Those of the trained head, in the order of its outputs. DataError where others are
        tested."""
        _refuse_unknown(self.test, labels, "the trained classifier")
        self.labels = labels

    @property
    def by_head(self) -> bool:
        return "head" in self.classifiers

    @property
    def probes(self) -> list[Classifier]:
        return [c for c in self.classifiers if c != "head"]

    def _train_rows(self) -> LabelledFiles:
        """What probes are fitted on."""
        config, base_path = self.config, self.dataset.base_path
        path = base_path / (config.train or config.csv)
        try:
            train = read_rows(path, config.key, "train", has_set=config.train is None)
        except NoRows as error:
            raise DataError(
                f"{error}, so there is nothing for {' and '.join(self.probes)} to learn from; give "
                "the list of a training part as train, beside csv"
            ) from None
        if both := sorted(set(train.files) & set(self.test.files)):
            raise DataError(
                f"{train.path}: {len(both)} of the files that probes are fitted on are tested too "
                f"({self.test.path}): {listing(both, 3)}"
            )
        known = list(dict.fromkeys(train.labels))
        if len(known) < 2:
            raise DataError(
                f"{train.path}: all train rows have the label '{known[0]}'; two labels are needed"
            )
        _refuse_unknown(self.test, known, f"the train rows of {train.path}")
        if "knn" in self.probes and config.knn_neighbours > len(train.files):
            raise ConfigError(
                f"knn_neighbours: {config.knn_neighbours} is more than the {len(train.files)} "
                f"train rows of {train.path}; lower it"
            )
        return train

    def run(self, embed: Embed, device: torch.device, method: Method | None = None) -> Result:
        """``method`` is what ``embed`` belongs to; None: something without a trained head, of
        which only probes are reported."""
        result = Result()
        if method is not None and self.by_head:
            assert self.labels
            predicted = self._by_head(method, len(self.labels), device)
            self._report(result, "head", self.labels, predicted)
        if self.train:
            names, codes = np.unique(self.train.labels, return_inverse=True)
            for probe, predicted in self._by_probes(embed, codes, device).items():
                self._report(result, probe, names.tolist(), predicted)
        return result

    def _by_head(self, method: Method, classes: int, device: torch.device) -> np.ndarray:
        files = sorted(set(self.test.files))
        step = max(1, _FLOATS // classes)
        parts = [files[i : i + step] for i in range(0, len(files), step)]
        head = roots_of_posteriors(method, classes)
        found = [
            extract(head, part, Extraction.of(self.config, self.dataset), device).argmax(axis=1)
            for part in parts
        ]
        return np.concatenate(found)[np.searchsorted(files, self.test.files)]

    def _by_probes(
        self, embed: Embed, codes: np.ndarray, device: torch.device
    ) -> dict[Classifier, np.ndarray]:
        """The code predicted for each test row; fitted by the main process."""
        assert self.train
        files = sorted({*self.test.files, *self.train.files})
        embeddings = extract(embed, files, Extraction.of(self.config, self.dataset), device)
        if not distributed.is_main():
            return distributed.broadcast(None)
        train = embeddings[np.searchsorted(files, self.train.files)]
        test = embeddings[np.searchsorted(files, self.test.files)]
        found: dict[Classifier, np.ndarray] = {}
        if "linear" in self.probes:
            found["linear"], strength = probes.linear(train, codes, test)
            say(f"  {self.config.name_of('linear')}: C = {strength:g} by cross-validation")
        if "knn" in self.probes:
            count = self.config.knn_neighbours
            found["knn"] = probes.nearest_neighbours(train, codes, test, count)
        return distributed.broadcast(found)

    def _report(
        self, result: Result, classifier: Classifier, names: list[str], predicted: np.ndarray
    ) -> None:
        name = self.config.name_of(classifier)
        code = {label: i for i, label in enumerate(names)}
        true = np.array([code[label] for label in self.test.labels])
        result.predictions[name] = Predictions(self.test.files, names, true, predicted)
        measure = {"accuracy": accuracy, "f1_score": f1_weighted, "f1_macro": f1_macro}
        for metric in self.config.metrics:
            result.metrics[f"{name}/{metric}"] = measure[metric](true, predicted)


def roots_of_posteriors(method: Method, classes: int) -> Embed:
    """The trained head: (B, T) -> square roots of the posteriors of the first ``classes`` outputs,
    (B, C). They have unit length, as embeddings of frames that are averaged; outputs after these
    stand for no label."""
    assert isinstance(method, Supervised)
    config, classifier = method.config, method.classifier
    scale = config.aam_scale if config.classifier == "speaker" else 1.0

    def embed(wave: Tensor, lengths: Sequence[int] | None = None, /) -> Tensor:
        logits = classifier(method.embed(wave, lengths))[:, :classes]  # (B, C)
        return (scale * logits.float()).softmax(dim=-1).sqrt()

    return embed


# Which label an output stands for ----------------------------------------------------------------


def saved_labels(state: dict[str, Any]) -> list[str] | None:
    """The labels of a checkpoint's classifier in the order of its outputs; None: not known, as of
    the reference system's."""
    return json.loads(state["config"]).get(LABELS) if "config" in state else None


def refuse_missing_head(method: Method, state: dict[str, Any], source: Path) -> None:
    """CheckpointError where the classifier of ``method`` was not loaded from ``state``."""
    own, saved = method.state_dict(), state["model"]
    heads = [key for key in own if key.startswith("classifier.")]
    lacking = [k for k in heads if k not in saved or saved[k].shape != own[k].shape]
    if lacking:
        raise CheckpointError(
            f"{source}: holds no trained classifier that fits this configuration (its "
            f"{listing(lacking, 3)}); set classifiers: [linear, knn] for its embeddings, or "
            "correct the section method"
        )


# Metrics ------------------------------------------------------------------------------------------


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the codes (N,) that agree."""
    return float(np.mean(true == predicted))


def f1_macro(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over labels, each with the same weight, of F1."""
    scores, _ = _f1(true, predicted)
    return float(scores.mean())


def f1_weighted(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over labels of F1, weighted by how many rows have the label."""
    scores, rows = _f1(true, predicted)
    return float(scores @ rows / len(true))


def _f1(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 = 2 TP / (2 TP + FP + FN) of each label that rows have or are taken for, and how many
    have it."""
    count = max(true.max(), predicted.max()) + 1
    rows, taken = (np.bincount(codes, minlength=count) for codes in (true, predicted))
    right = np.bincount(true[true == predicted], minlength=count)
    met = rows + taken > 0
    return 2 * right[met] / (rows + taken)[met], rows[met]


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many rows of code i are taken for code j: (C, C) int64."""
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


# Files --------------------------------------------------------------------------------------------


class NoRows(DataError):
    """A list has no rows of the part asked for."""


def read_rows(
    path: Path, key: str, part: Literal["train", "test"], has_set: bool = False
) -> LabelledFiles:
    """Rows of a CSV with columns ``File`` and ``key`` whose ``Set`` is ``part``; all rows where it
    has no column ``Set``, unless it has to have one (``has_set``).

    Raises:
        NoRows: there are none of this part.
        DataError: the file, a column or a value is missing.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except FileNotFoundError:
        raise DataError(
            f"{path}: list not found; it is looked up below dataset.base_path"
        ) from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: cannot be read as CSV ({str(error).strip()})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus fields for row names
        raise DataError(f"{path} line 2: more fields than the header's {len(table.columns)}")
    for column, hint in {"File": "", key: " (key names the column of labels)"}.items():
        if column not in table.columns:
            raise DataError(
                f"{path}: no column '{column}'; its columns are {', '.join(table.columns)}{hint}"
            )
    if "Set" in table.columns:
        table = table[table["Set"] == part]
    elif has_set:
        raise NoRows(f"{path}: has no column Set, and so no train rows")
    if table.empty:
        raise NoRows(f"{path}: has no {part} rows")
    empty = table.index[(table["File"] == "") | (table[key] == "")]
    if len(empty):
        raise DataError(f"{path} line {empty[0] + 2}: empty File or {key}")
    lines = (table.index + 2).tolist()
    return LabelledFiles(path, table["File"].tolist(), table[key].tolist(), lines)


def _refuse_unknown(rows: LabelledFiles, known: Sequence[str], source: str) -> None:
    unknown = {label: line for label, line in _first_lines(rows) if label not in set(known)}
    if unknown:
        named = [f"'{label}' (line {line})" for label, line in unknown.items()]
        raise DataError(
            f"{rows.path}: labels that are unknown to {source}: {listing(named)}; known are "
            f"{listing(sorted(known))}; give the list or column (key) that goes with it"
        )


def _first_lines(rows: LabelledFiles) -> list[tuple[str, int]]:
    """Each label with the first line that it stands on."""
    first: dict[str, int] = {}
    for label, line in zip(rows.labels, rows.lines, strict=True):
        first.setdefault(label, line)
    return list(first.items())


def write_predictions(path: Path, predictions: Predictions) -> None:
    """A CSV of files with their labels and those they are taken for, and ``<path>_confusion.csv``,
    a row for each true label, of the labels met (where these are not too many to read)."""
    p = predictions
    names = [[p.names[code] for code in codes] for codes in (p.true, p.predicted)]
    _write(path, ["File", "True", "Predicted"], zip(p.files, *names, strict=True))
    met, codes = np.unique(np.concatenate([p.true, p.predicted]), return_inverse=True)
    if len(met) > _MOST_LABELS:
        return
    matrix = confusion_matrix(codes[: len(p.true)], codes[len(p.true) :], len(met))
    labels = [p.names[code] for code in met]
    rows = ([label, *row] for label, row in zip(labels, matrix.tolist(), strict=True))
    _write(path.with_name(f"{path.stem}_confusion.csv"), ["True", *labels], rows)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
