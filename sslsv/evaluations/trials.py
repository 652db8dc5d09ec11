"""Trial lists and score files: reading, checking and writing them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslsv.errors import DataError, listing
from sslsv.files import atomic_write


@dataclass(frozen=True, eq=False)
class Trials:
    """T pairs of utterances, as indices into the list of the distinct files."""

    files: list[str]  # distinct paths, in order of first appearance, relative to base_path
    enrol: np.ndarray  # (T,) int32, index into `files` of the enrolment utterance
    test: np.ndarray  # (T,) int32, index into `files` of the test utterance
    labels: np.ndarray  # (T,) bool, True for the same speaker
    name: str  # file name of the list, for metric names and messages

    def __len__(self) -> int:
        return len(self.labels)


def make_trials(name: str, enrol: list[str], test: list[str], labels: np.ndarray) -> Trials:
    """Trials from the files of each, and ``labels`` (T,) bool."""
    index: dict[str, int] = {}
    for pair in zip(enrol, test, strict=True):
        for file in pair:
            index.setdefault(file, len(index))
    return Trials(
        files=list(index),
        enrol=np.array([index[file] for file in enrol], dtype=np.int32),
        test=np.array([index[file] for file in test], dtype=np.int32),
        labels=labels,
        name=name,
    )


def read_trials(path: str | os.PathLike) -> Trials:
    """Read a list of lines ``<1|0> <enrol> <test>``: fields split at white space, no header.

    Raises:
        DataError: the file is missing, empty or not text, a line is malformed, or the list has no
            target or no non-target trial.
    """
    columns = _read_columns(path, ("label", "enrol", "test"))
    labels = _labels(path, columns)
    return make_trials(Path(path).name, columns["enrol"], columns["test"], labels)


def read_scores(path: str | os.PathLike) -> tuple[Trials, np.ndarray]:
    """Read a file of `write_scores` lines ``<enrol> <test> <score> <1|0>``.

    Returns:
        The trials and their scores (T,) float64, bit for bit those written.

    Raises:
        DataError: as `read_trials`, or a score is not a number.
    """
    columns = _read_columns(path, ("enrol", "test", "score", "label"))
    scores = _convert(path, columns, "score", float, "must be a number")
    labels = _labels(path, columns)
    trials = make_trials(Path(path).name, columns["enrol"], columns["test"], labels)
    return trials, np.array(scores, dtype=np.float64)


def write_scores(path: str | os.PathLike, trials: Trials, scores: np.ndarray) -> None:
    """Write one line ``<enrol> <test> <score> <1|0>`` a trial, for fusion, calibration or plots.

    The file appears under its name only once it is complete; missing folders are made.

    Args:
        scores: (T,) floats, written so that `read_scores` gives back the very same float64.

    Raises:
        DataError: there is not one score for each trial.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != trials.labels.shape:
        raise DataError(
            f"{trials.name}: {len(trials)} trials but scores of shape {values.shape}; "
            f"cannot write {path}"
        )
    files = trials.files
    columns = (trials.enrol.tolist(), trials.test.tolist(), values.tolist(), trials.labels.tolist())
    with atomic_write(Path(path), "w") as file:
        file.writelines(
            f"{files[enrol]} {files[test]} {score!r} {label:d}\n"
            for enrol, test, score, label in zip(*columns, strict=True)
        )


def check_files(files: list[str], base_path: str | os.PathLike, source: str) -> None:
    """Raise one `DataError` for all the ``files`` of ``source`` that ``base_path`` lacks."""
    missing = [file for file in files if not os.path.isfile(os.path.join(base_path, file))]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of {len(files)} files not found under '{base_path}': "
            f"{listing(missing)}; check dataset.base_path"
        )


def _read_columns(path: str | os.PathLike, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Split every line into its fields. Blank lines may only end the file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise DataError(f"{path}: the list is empty")

    fields: list[str] = []  # flat: half a million small lists would keep the garbage collector busy
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        row = line.split()
        if len(row) != len(names):
            raise DataError(
                f"{path} line {number}: expected {len(names)} fields ({' '.join(names)}), "
                f"found {len(row)}: '{line[:200]}'"
            )
        fields += row
    return {name: fields[column :: len(names)] for column, name in enumerate(names)}


def _convert(
    path: str | os.PathLike,
    columns: dict[str, list[str]],
    name: str,
    convert: Callable[[str], float],
    rule: str,
) -> list[float]:
    """Convert one column, showing the first line whose field breaks the ``rule``."""
    values: list[float] = []
    try:
        for field in columns[name]:
            values.append(convert(field))
    except (KeyError, ValueError):
        row = [column[len(values)] for column in columns.values()]
        raise DataError(
            f"{path} line {len(values) + 1}: the {name} {rule}: '{' '.join(row)[:200]}'"
        ) from None
    return values


def _labels(path: str | os.PathLike, columns: dict[str, list[str]]) -> np.ndarray:
    meaning = {"1": True, "0": False}.__getitem__
    labels = np.array(_convert(path, columns, "label", meaning, "must be 1 (target) or 0"))
    if labels.all() or not labels.any():
        missing = "non-target (0)" if labels[0] else "target (1)"
        raise DataError(
            f"{path}: the list has no {missing} trial among its {len(labels)}, "
            "and error rates need both kinds"
        )
    return labels
