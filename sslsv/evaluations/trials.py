"""Trial lists and score files: reading, checking and writing them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sslsv.errors import DataError, listing
from sslsv.files import atomic_write

if TYPE_CHECKING:
    from sslsv.evaluations.conditions import Condition

ENROLMENTS = ".enrol"  # after the name of a list: the files of each enrolment id
_MARKS = {"1": True, "0": False}
_KEYS = {"tgt": True, "imp": False, "target": True, "nontarget": False}
_LABEL_FIRST = ("label", "enrol", "test")
_LABEL_LAST = ("enrol", "test", "label")


@dataclass(frozen=True, eq=False)
class Trials:
    """T pairs of utterances, as indices into the list of the distinct files.

    The enrolment side may be a model: an id that stands for several files.
    """

    files: list[str]  # distinct paths or ids, in order of first appearance; paths below base_path
    enrol: np.ndarray  # (T,) int32, index into `files` of the enrolment utterance
    test: np.ndarray  # (T,) int32, index into `files` of the test utterance
    labels: np.ndarray  # (T,) bool, True for the same speaker
    name: str  # file name of the list, for metric names and messages
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # files of each id

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def audio(self) -> list[str]:
        """The distinct audio files, those of models included."""
        if not self.models:
            return self.files
        return list(dict.fromkeys(x for name in self.files for x in self.parts(name)))

    def parts(self, name: str) -> tuple[str, ...]:
        """The audio files that an entry of `files` stands for."""
        return self.models.get(name, (name,))


def make_trials(
    name: str,
    enrol: list[str],
    test: list[str],
    labels: np.ndarray,
    models: Mapping[str, tuple[str, ...]] | None = None,
) -> Trials:
    """Trials from the files (or ids of ``models``) of each, and ``labels`` (T,) bool."""
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
        models={id_: files for id_, files in (models or {}).items() if id_ in index},
    )


def read_trials(path: str | os.PathLike) -> Trials:
    """Read a list of trials: fields split at white space, no header, one form throughout.

    - ``<1|0> <enrol> <test>``, of VoxCeleb and VoxSRC, which the tools in tools/prepare_data write;
    - ``<enrol> <test> <tgt|imp>`` (or ``target|nontarget``), the keys of SITW, VOiCES and NIST.

    Where there is a file ``<list>.enrol``, ``<enrol>`` is an id that stands for the files on its
    lines ``<id> <file> [<file> ...]`` there (of several lines with one id: all of them).

    Raises:
        DataError: the file is missing, empty or not text, a line is malformed, or the list has no
            target or no non-target trial; an id has no files, or is also the name of a test file.
    """
    columns = _read_columns(path, _layout)
    labels = _labels(path, columns, _MARKS if next(iter(columns)) == "label" else _KEYS)
    enrolments = Path(f"{os.fspath(path)}{ENROLMENTS}")
    models = _models(path, columns, enrolments) if enrolments.exists() else None
    return make_trials(Path(path).name, columns["enrol"], columns["test"], labels, models)


def _layout(first: Sequence[str]) -> tuple[str, ...]:
    """What the fields are, by those of the first line."""
    by_key = len(first) == 3 and first[0] not in _MARKS and first[2] in _KEYS
    return _LABEL_LAST if by_key else _LABEL_FIRST


def _models(
    path: str | os.PathLike, columns: dict[str, list[str]], enrolments: Path
) -> dict[str, tuple[str, ...]]:
    models = read_enrolments(enrolments)
    ids = dict.fromkeys(columns["enrol"])
    if unknown := [id_ for id_ in ids if id_ not in models]:
        raise DataError(
            f"{path}: {len(unknown)} of {len(ids)} enrolment ids have no line in {enrolments}: "
            f"{listing(unknown)}"
        )
    if both := [file for file in dict.fromkeys(columns["test"]) if file in models]:
        raise DataError(
            f"{path}: {len(both)} test files have the name of an enrolment id of {enrolments}: "
            f"{listing(both)}; rename the ids"
        )
    return models


def read_enrolments(path: Path) -> dict[str, tuple[str, ...]]:
    """The files of each id, from lines ``<id> <file> [<file> ...]``.

    Raises:
        DataError: the file is empty or not text, a line has no file, or an id has a file twice.
    """
    models: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_read_lines(path), 1):
        id_, *files = line.split() or [""]
        if not files:
            raise DataError(
                f"{path} line {number}: expected <id> <file> [<file> ...], found: '{line[:200]}'"
            )
        models[id_] = (*models.get(id_, ()), *files)
        if len(set(models[id_])) < len(models[id_]):
            raise DataError(f"{path} line {number}: '{id_}' has a file twice: '{line[:200]}'")
    return models


def read_scores(path: str | os.PathLike) -> tuple[Trials, np.ndarray]:
    """Read a file of `write_scores` lines ``<enrol> <test> <score> <1|0>``.

    Returns:
        The trials and their scores (T,) float64, bit for bit those written.

    Raises:
        DataError: as `read_trials`, or a score is not a number.
    """
    columns = _read_columns(path, lambda _: ("enrol", "test", "score", "label"))
    scores = _convert(path, columns, "score", float, "must be a number")
    labels = _labels(path, columns, _MARKS)
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


class Sides:
    """What trials compare, as rows of one array of embeddings: files and models, each once.

    With a ``condition`` the test side is heard under it, or ``both`` sides. Without one a row
    stands for a file on whichever side.

    Attributes:
        names: what each row is, an entry of `Trials.files`.
    """

    def __init__(
        self, lists: Iterable[Trials], condition: Condition | None = None, both: bool = False
    ):
        """DataError where a name stands for other files in one list than in another."""
        lists = list(lists)
        self._models = any(trials.models for trials in lists)
        self._parts = _parts_of(lists) if self._models else _alone(lists)
        self._enrol = condition if both else None
        self._test = condition
        if self._enrol is self._test:
            rows = [(name, condition) for name in sorted(self._parts)]
        else:
            enrol = {name for t in lists for name in _used(t, t.enrol)}
            test = {name for t in lists for name in _used(t, t.test)}
            rows = [(name, None) for name in sorted(enrol)]
            rows += [(name, condition) for name in sorted(test)]
        self._row = {row: number for number, row in enumerate(rows)}
        self.names = [name for name, _ in rows]

    def files(self, first: Iterable[str] = ()) -> dict[Condition | None, list[str]]:
        """The distinct audio files to embed under each condition; None: as they are, where
        ``first`` come first whether trials need them or not."""
        found: dict[Condition | None, dict[str, None]] = {None: dict.fromkeys(first)}
        for name, condition in self._row:
            found.setdefault(condition, {}).update(dict.fromkeys(self._parts[name]))
        return {condition: list(files) for condition, files in found.items() if files}

    def pool(
        self,
        files: Mapping[Condition | None, Sequence[str]],
        embeddings: Mapping[Condition | None, np.ndarray],
    ) -> np.ndarray:
        """Rows (N, D) from those of ``files``, as `files` gives them: of a model the mean.

        The dot product with such a mean is the mean of those with each file.
        """
        if not self._models and list(files.values()) == [self.names]:
            return next(iter(embeddings.values()))
        width = max(found.shape[1] for found in embeddings.values())
        result = np.empty((len(self._row), width), next(iter(embeddings.values())).dtype)
        for condition, found in embeddings.items():
            place = {file: i for i, file in enumerate(files[condition])}
            rows, sources = [], []
            for (name, under), row in self._row.items():
                if under is not condition:
                    continue
                parts = [place[file] for file in self._parts[name]]
                if len(parts) > 1:
                    result[row] = found[parts].mean(axis=0)
                else:
                    rows.append(row)
                    sources += parts
            result[rows] = found[sources]
        return result

    def counts(self) -> np.ndarray:
        """How many files each row is the mean of: (N,)."""
        return np.array([len(self._parts[name]) for name in self.names])

    def rows(self, trials: Trials) -> tuple[np.ndarray, np.ndarray]:
        """Index (T,) of the enrolment and of the test row of each trial."""
        enrol, test = (
            np.array([self._row.get((name, condition), -1) for name in trials.files])
            for condition in (self._enrol, self._test)
        )
        return enrol[trials.enrol], test[trials.test]


def _used(trials: Trials, side: np.ndarray) -> list[str]:
    return [trials.files[i] for i in np.unique(side).tolist()]


def _alone(lists: list[Trials]) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for trials in lists for name in trials.files}


def _parts_of(lists: list[Trials]) -> dict[str, tuple[str, ...]]:
    """The audio files of each name in the lists."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for trials in lists:
        for name in trials.files:
            parts, other = found.setdefault(name, (trials.parts(name), trials.name))
            if parts != trials.parts(name):
                raise DataError(
                    f"{trials.name}: '{name}' stands for other files than in {other}; rename it in "
                    "one of the lists"
                )
    return {name: parts for name, (parts, _) in found.items()}


def _read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text. Blank ones at its end are left out."""
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
    return text.rstrip().split("\n")


def _read_columns(
    path: str | os.PathLike, layout: Callable[[Sequence[str]], tuple[str, ...]]
) -> dict[str, list[str]]:
    """Split every line into its fields, which ``layout`` names by those of the first line. Blank
    lines may only end the file."""
    lines = _read_lines(path)
    names = layout(lines[0].split())
    fields: list[str] = []  # flat: half a million small lists would keep the garbage collector busy
    for number, line in enumerate(lines, 1):
        row = line.split()
        if len(row) != len(names):
            blind = "; a list without labels cannot be measured on" if len(row) == 2 else ""
            raise DataError(
                f"{path} line {number}: expected {len(names)} fields ({' '.join(names)}), "
                f"found {len(row)}: '{line[:200]}'{blind if number == 1 else ''}"
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


def _labels(
    path: str | os.PathLike, columns: dict[str, list[str]], meaning: dict[str, bool]
) -> np.ndarray:
    rule = "must be 1 (target) or 0" if meaning is _MARKS else "must be tgt (target) or imp"
    labels = np.array(_convert(path, columns, "label", meaning.__getitem__, rule))
    if labels.all() or not labels.any():
        words = ("target (1)", "non-target (0)") if meaning is _MARKS else ("tgt", "imp")
        raise DataError(
            f"{path}: the list has no {words[int(labels[0])]} trial among its {len(labels)}, "
            "and error rates need both kinds"
        )
    return labels
