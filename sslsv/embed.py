"""``sslsv embed``: audio files -> a file of their embeddings, for other programs.

``.npz`` holds the arrays ``files`` (N,), text, and ``embeddings`` (N, D), float32::

    arrays = numpy.load("x.npz")
    dict(zip(arrays["files"], arrays["embeddings"]))

``.ark`` is Kaldi's binary archive of float vectors; the index ``.scp`` goes beside it.
"""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from sslsv import distributed
from sslsv.config import Config
from sslsv.errors import ConfigError, DataError, UserError, listing
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.experiment import build_method
from sslsv.files import atomic_write
from sslsv.trainer import checkpoint
from sslsv.trainer.tracking import say


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How a file is cut, and how many are embedded together; as the fields of a task."""

    batch_size: int = 64
    num_frames: int = 1
    frame_length: int | None = None  # samples; None: one frame, the whole file
    precision: Literal["fp32", "bf16"] = "fp32"

    def check(self, shortest: int) -> None:
        """ConfigError for numbers that cannot be, or frames of fewer than ``shortest`` samples."""
        for name in ("batch_size", "num_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}: must be at least 1, got {getattr(self, name)}")
        if self.frame_length is not None and self.frame_length < shortest:
            raise ConfigError(
                f"--frame_length: must be at least {shortest} samples, one analysis window of the "
                f"encoder, got {self.frame_length}"
            )


def embed(
    config: Config,
    sources: Sequence[str],
    output: Path,
    suffix: str = "latest",
    frames: Frames | None = None,
) -> None:
    """Write the embeddings of ``sources``, each CSV lists or audio files, by checkpoint ``suffix``.

    They are the mean over frames of unit-length embeddings, in the order of the sources, a file
    that comes twice once. The dot product of two is their cosine score (mean over pairs of frames).
    Raises UserError before the long work where the output cannot be written.
    """
    assert config.run_dir is not None
    frames = frames or Frames()
    frames.check(config.encoder.min_samples)
    write = _writer(output)
    paths = read_sources(sources, config.dataset.base_path)
    if write is _write_ark:
        check_keys(list(paths))
    device = distributed.default_device()
    path = checkpoint.checkpoint_path(config.run_dir, suffix)
    method = build_method(config).to(device)
    remarks = checkpoint.load_to_embed(method, checkpoint.load(path, device), path)
    say("; ".join([f"Embedding {len(paths):,} files with {path}", *remarks]))
    how = Extraction(
        base_path=config.dataset.base_path,
        num_frames=frames.num_frames,
        frame_length=frames.frame_length,
        batch_size=frames.batch_size,
        num_workers=config.dataset.num_workers,
        resample=config.dataset.resample,
        precision=frames.precision,
    )
    with ExitStack() as stack:
        files = _open(output, stack) if distributed.is_main() else []
        embeddings = extract(method.eval().embed, list(paths.values()), how, device)
        if distributed.is_main():
            write(output, files, list(paths), embeddings)
    say(f"{output}: {len(embeddings):,} embeddings of {embeddings.shape[1]} values")


# Which files -------------------------------------------------------------------------------------


def read_sources(sources: Sequence[str], base_path: Path) -> dict[str, str]:
    """The name of each file, and where it is: a path, relative to ``base_path`` or absolute.

    A source that ends in .csv is a list with a column File of paths below ``base_path``, where the
    list itself is looked for, too; any other is an audio file, of this folder or below
    ``base_path``.

    Raises:
        DataError: a list cannot be used, or files are missing (all counted).
    """
    found: dict[str, str] = {}
    for source in sources:
        if source.lower().endswith(".csv"):
            found.update((name, name) for name in _read_list(source, base_path))
        else:
            found[source] = os.path.abspath(source) if os.path.isfile(source) else source
    missing = [name for name, path in found.items() if not os.path.isfile(base_path / path)]
    if missing:
        raise DataError(
            f"--list: {len(missing)} of {len(found)} files not found here or under '{base_path}': "
            f"{listing(missing)}; check dataset.base_path"
        )
    return found


def _read_list(source: str, base_path: Path) -> list[str]:
    path = next((p for p in (Path(source), base_path / source) if p.is_file()), None)
    if path is None:
        raise DataError(f"--list: {source}: file not found, here or under '{base_path}'")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    header, *rows = rows or [[]]
    if "File" not in header:
        columns = ", ".join(header) or "none"
        raise DataError(f"{path}: no column 'File'; its columns are {columns}")
    place = header.index("File")
    names = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) <= place or not row[place]:
            raise DataError(f"{path} row {number}: no value in column 'File'")
        names.append(row[place])
    if not names:
        raise DataError(f"{path}: the list is empty")
    return names


# Formats ------------------------------------------------------------------------------------------

Writer = Callable[[Path, list[IO[Any]], list[str], np.ndarray], None]


def _writer(output: Path) -> Writer:
    try:
        return _WRITERS[output.suffix]
    except KeyError:
        raise UserError(
            f"--output: {output}: the format is told by the end of the name; make it "
            f"{' or '.join(_WRITERS)}"
        ) from None


def _open(output: Path, stack: ExitStack) -> list[IO[Any]]:
    """The files to write, which appear when ``stack`` ends without an error."""
    paths = [output] if output.suffix == ".npz" else [output, output.with_suffix(".scp")]
    for path in paths:
        if path.is_dir():
            raise UserError(f"--output: {path}: is a folder; give another name")
    files = [stack.enter_context(atomic_write(path)) for path in reversed(paths)]
    return files[::-1]  # the index appears after what it points to


def _write_npz(
    output: Path, files: list[IO[Any]], names: list[str], embeddings: np.ndarray
) -> None:
    np.savez(files[0], files=np.array(names), embeddings=embeddings)


def _write_ark(
    output: Path, files: list[IO[Any]], names: list[str], embeddings: np.ndarray
) -> None:
    """For each file ``<key> \\0BFV \\4<D><values>``, little-endian, and its place in the index."""
    archive, index = files
    path = os.path.abspath(output)
    size = struct.pack("<i", embeddings.shape[1])
    place = 0
    for name, vector in zip(names, embeddings, strict=True):
        key = os.fsencode(f"{name} ")
        record = b"\0BFV \4" + size + vector.astype("<f4").tobytes()
        archive.write(key + record)
        index.write(os.fsencode(f"{name} {path}:{place + len(key)}\n"))
        place += len(key) + len(record)


def check_keys(names: list[str]) -> None:
    """DataError for names that cannot be keys of a Kaldi archive."""
    bad = [name for name in names if len(name.split()) != 1 or name != name.strip()]
    if bad:
        raise DataError(
            f"--output: {len(bad)} of {len(names)} names have white space, which ends a key in a "
            f"Kaldi archive: {listing(bad, 3)}; write .npz, or rename the files"
        )


_WRITERS: dict[str, Writer] = {".npz": _write_npz, ".ark": _write_ark}
