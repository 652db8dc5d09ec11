"""Training lists: CSV rows -> arrays that worker processes share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sslsv import audio
from sslsv.errors import DataError, listing

_PROBED = 1000  # headers read before training; existence is checked for every file
_THREADS, _CHUNK = 16, 4096  # that look for files, and how many at a time


@dataclass(frozen=True)
class Manifest:
    """Files (paths relative to ``base_path``) and their integer labels.

    Arrays of fixed-width bytes, not lists: forked workers share them without copying, and the
    1.09 M rows of VoxCeleb2 take some 50 MB once.
    """

    path: Path  # the CSV
    base_path: Path
    files: np.ndarray  # (R,) bytes
    labels: np.ndarray  # (R,) int64, codes in order of first appearance
    label_names: list[str]  # code -> name
    lines: np.ndarray  # (R,) int64, line of the CSV, for messages
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # (R,) int64 codes of others

    def __len__(self) -> int:
        return len(self.files)

    def file(self, row: int) -> str:
        """Path of a row relative to ``base_path``."""
        return self.files[row].decode()

    def select(self, kept: np.ndarray) -> Manifest:
        """The rows that ``kept`` (R,) bool marks, coded as if the list had no others."""
        import pandas as pd

        labels, codes = pd.factorize(self.labels[kept])
        return replace(
            self,
            files=self.files[kept],
            labels=labels.astype(np.int64),
            label_names=[self.label_names[code] for code in codes],
            lines=self.lines[kept],
            columns={name: pd.factorize(x[kept])[0] for name, x in self.columns.items()},
        )

    def check(self, resample: bool = False) -> None:
        """Refuse missing files (all are counted) and headers that cannot be used (a sample)."""
        if missing := self.missing():
            raise self.missing_error(missing)
        for row in self.sample():
            audio.probe(self.base_path / self.file(row), resample=resample)

    def missing(self) -> list[int]:
        """Rows without a file. Threads wait together where the disk is far away."""

        def absent(start: int) -> list[int]:
            stop = min(start + _CHUNK, len(self))
            return [r for r in range(start, stop) if not isfile(join(base, self.file(r)))]

        base, join, isfile = str(self.base_path), os.path.join, os.path.isfile
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = pool.map(absent, range(0, len(self), _CHUNK))
            return [row for part in parts for row in part]

    def missing_error(self, missing: list[int]) -> DataError:
        """What is said of rows without a file."""
        named = [f"line {self.lines[row]}: {self.file(row)}" for row in missing]
        return DataError(
            f"{self.path}: {len(missing)} of {len(self)} files not found below "
            f"{self.base_path}/ (check dataset.base_path): " + listing(named)
        )

    def sample(self) -> range:
        """Evenly spaced rows, about a thousand."""
        return range(0, len(self), max(1, len(self) // _PROBED))


def read_manifest(
    name: str | Path,
    base_path: Path,
    label_key: str = "Speaker",
    max_samples: int | None = None,
    columns: Sequence[str] = (),
) -> Manifest:
    """Read ``base_path/name``: a CSV with a column ``File`` and a column ``label_key``, and others
    in ``columns`` that metrics are to be taken of.

    Where a column ``Set`` exists only its ``train`` rows are used; labels are coded after that.
    Raises DataError naming file, column or line.
    """
    import pandas as pd

    path = base_path / name
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except FileNotFoundError:
        raise DataError(
            f"{path}: training list not found (dataset.train is looked up below "
            f"dataset.base_path, which is {base_path})"
        ) from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: cannot be read as CSV ({str(error).strip()})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus fields for row names
        raise DataError(f"{path} line 2: more fields than the header's {len(table.columns)}")
    hints = {
        **dict.fromkeys(columns, " (method.ssps.metric_columns names it)"),
        label_key: " (dataset.label_key names the label column)",
        "File": "",
    }
    for column, hint in reversed(hints.items()):
        if column not in table.columns:
            raise DataError(
                f"{path}: no column '{column}'; its columns are {', '.join(table.columns)}{hint}"
            )
    if "Set" in table.columns:
        table = table[table["Set"] == "train"]
    empty = table.index[(table["File"] == "") | (table[label_key] == "")]
    if len(empty):
        raise DataError(f"{path} line {empty[0] + 2}: empty File or {label_key}")
    table = table[:max_samples]
    if table.empty:
        raise DataError(f"{path}: no rows to train on")
    codes, names = pd.factorize(table[label_key])
    return Manifest(
        path=path,
        base_path=base_path,
        files=np.char.encode(table["File"].to_numpy(dtype=str), "utf-8"),
        labels=codes.astype(np.int64),
        label_names=list(names),
        lines=table.index.to_numpy(dtype=np.int64) + 2,
        columns={name: pd.factorize(table[name])[0].astype(np.int64) for name in columns},
    )
