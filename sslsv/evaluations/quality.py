"""Measures of the quality of files, such as their duration: read, written and taken.

`calibration` uses them beside scores.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sslsv import audio
from sslsv.errors import DataError
from sslsv.evaluations.base import Measures
from sslsv.files import atomic_write


def write_measures(path: Path, measures: Measures) -> None:
    """A CSV with a column ``File`` and the measures."""
    columns = [values.tolist() for values in measures.columns.values()]
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["File", *measures.columns])
        writer.writerows(zip(measures.files, *columns, strict=True))


def read_measures(
    paths: Sequence[Path], columns: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """``{measure: {file: value}}`` of CSVs with a column ``File``.

    Args:
        columns: which to use; None: all others, which must be numbers.

    Raises:
        DataError: naming file, column and line; also where two values are given for one file.
    """
    import pandas as pd

    found: dict[str, dict[str, float]] = {}
    for path in paths:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        except FileNotFoundError:
            raise DataError(f"{path}: file not found") from None
        except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
            raise DataError(f"{path}: cannot be read as CSV ({str(error).strip()})") from None
        if "File" not in table.columns:
            raise DataError(f"{path}: no column 'File'; its columns are {', '.join(table.columns)}")
        for name in table.columns:
            if name == "File" or (columns and name not in columns):
                continue
            of_files = found.setdefault(name, {})
            pairs = zip(table["File"], table[name], strict=True)
            for line, (file, text) in enumerate(pairs, start=2):
                value = _number(text)
                if value is None:
                    raise DataError(
                        f"{path} line {line}: '{text[:100]}' in column '{name}' is not a finite "
                        "number; --columns chooses others"
                    )
                if of_files.setdefault(file, value) != value:
                    raise DataError(
                        f"{path} line {line}: another '{name}' of {file} was read before; measures "
                        "of several systems need columns of different names"
                    )
    missing = [name for name in columns or () if name not in found]
    if missing:
        raise DataError(
            f"no column '{missing[0]}' in {', '.join(map(str, paths))}; there are: "
            f"{', '.join(found) or 'none'}"
        )
    if paths and not found:
        raise DataError(f"{', '.join(map(str, paths))}: no column beside 'File'")
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def log_durations(
    names: Sequence[str],
    base_path: Path,
    enrolments: Mapping[str, Sequence[str]] | None = None,
    resample: bool = True,
) -> dict[str, float]:
    """Natural logarithm of each file's seconds, from its header; of an id of ``enrolments``, that
    of all its files together."""
    parts = {name: (enrolments or {}).get(name, (name,)) for name in names}
    files = dict.fromkeys(file for each in parts.values() for file in each)
    samples = {file: audio.probe(base_path / file, resample=resample) for file in files}
    return {
        name: float(np.log(sum(samples[file] for file in each) / audio.SAMPLE_RATE))
        for name, each in parts.items()
    }
