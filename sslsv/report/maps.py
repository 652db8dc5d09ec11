"""Embeddings of a few hundred files, laid out in the plane by t-SNE."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslsv.errors import DataError
from sslsv.evaluations import plots
from sslsv.report.runs import Missing, Run

GROUPS, FILES = 20, 20  # the groups with the most files, and so many files of each
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)

Labels = dict[str, dict[str, str]]  # file -> column -> value


def read_labels(path: Path) -> Labels:
    """The columns of a CSV with a column File, by file.

    Raises:
        DataError: it cannot be read, or has no such column or no other.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            if "File" not in columns or len(columns) < 2:
                raise DataError(
                    f"{path}: --labels needs a column File and another, such as Speaker; "
                    f"its columns are {', '.join(columns) or 'none'}"
                )
            rest = [column for column in columns if column != "File"]
            return {row["File"]: {c: row[c] or "" for c in rest} for row in reader}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV in UTF-8 ({error})") from None


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and embeddings (N, D) of what ``sslsv embed`` writes as .npz.

    Raises:
        DataError: it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            files, embeddings = arrays["files"].tolist(), arrays["embeddings"]
        _check(files, embeddings)
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: not a file of 'sslsv embed' with the arrays files and embeddings ({reason})"
        ) from None
    return files, embeddings


def cached_embeddings(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names and embeddings that ``sslsv evaluate`` kept in the ``cache`` of a run.

    Raises:
        DataError: there are none, or of several models or conditions, which their names do not
            tell apart.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise DataError("no embeddings are kept in cache/; give --embeddings")
    if len({path.name.partition("-")[0] for path in paths}) > 1:
        raise DataError(
            "cache/ holds embeddings of several checkpoints or conditions; give --embeddings"
        )
    try:
        with np.load(paths[0], allow_pickle=False) as arrays:
            names = bytes(arrays["names"]).decode("utf-8", "surrogateescape").split("\0")
            embeddings = arrays["embeddings"]
        _check(names, embeddings)
    except _UNREADABLE as error:
        raise DataError(f"cache/{paths[0].name} cannot be read ({error})") from None
    return names, embeddings


def _check(files: list[str], embeddings: np.ndarray) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(files):
        raise ValueError(f"{len(files)} files, embeddings of shape {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError("there are NaN or infinite values")


def maps(
    runs: Sequence[Run], sources: Sequence[Path], labels: Labels | None, missing: Missing
) -> list[dict[str, Any]]:
    """A map of each of ``sources``, or where there is none of what each run has in its cache."""
    if sources:
        return [_map(path.name, *read_embeddings(path), labels) for path in sources]
    found = []
    for run in runs:
        try:
            found.append(_map(run.name, *cached_embeddings(run.path / "cache"), labels))
        except DataError as error:
            missing["map"].append(f"{run.name}: {error}.")
    return found


def _map(
    name: str, files: list[str], embeddings: np.ndarray, labels: Labels | None
) -> dict[str, Any]:
    columns = _columns(files, labels)
    main = columns.get("Speaker", next(iter(columns.values())))
    rows = choose(main)
    points = plots.tsne(embeddings[rows])
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    span = np.abs(points).max() or 1.0
    return {
        "name": name,
        "of": len(files),
        "files": [files[i] for i in rows],
        "x": np.round(points[:, 0] / span, 4).tolist(),
        "y": np.round(points[:, 1] / span, 4).tolist(),
        "columns": {column: [values[i] for i in rows] for column, values in columns.items()},
    }


def _columns(files: list[str], labels: Labels | None) -> dict[str, list[str]]:
    """Values of each column; without labels there is one, the first folder of the path."""
    if labels is None:
        return {"first folder": [file.partition("/")[0] for file in files]}
    names = dict.fromkeys(column for row in labels.values() for column in row)
    if not any(file in labels for file in files):
        raise DataError("none of the embedded files is in the CSV of --labels")
    return {name: [labels.get(file, {}).get(name, "") for file in files] for name in names}


def choose(groups: Sequence[str]) -> list[int]:
    """Indices of files evenly taken from the largest groups, in order."""
    largest = [group for group, _ in Counter(groups).most_common(GROUPS)]
    chosen: list[int] = []
    for group in largest:
        rows = [i for i, other in enumerate(groups) if other == group]
        places = np.linspace(0, len(rows) - 1, min(FILES, len(rows))).round().astype(int)
        chosen += [rows[place] for place in places]
    return sorted(chosen)
