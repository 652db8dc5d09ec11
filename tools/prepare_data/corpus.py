"""Folders of corpora: found where the user has them, and made to appear below DATA_DIR."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from common import extract, parallel_map

from sslsv import audio
from sslsv.errors import DataError, UserError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def check_minimum(options: argparse.Namespace, **minima: float) -> None:
    """Refuse an option below the minimum of its name."""
    for name, minimum in minima.items():
        value = getattr(options, name)
        if value < minimum:
            raise UserError(f"--{name} {value}: must be at least {minimum}")


def find_root(start: Path, *markers: str, depth: int = 3) -> Path | None:
    """The folder at or at most ``depth`` levels below ``start`` that holds all ``markers``.

    The nearest one wins, then the first by name; a marker is a relative path.
    """
    level = [start] if start.is_dir() else []
    for _ in range(depth + 1):
        for folder in level:
            if all((folder / marker).exists() for marker in markers):
                return folder
        level = [
            Path(entry)
            for folder in level
            for entry in sorted(e.path for e in os.scandir(folder) if e.is_dir())
            if not Path(entry).name.startswith(".")
        ]
    return None


def find_archives(start: Path, pattern: str) -> list[Path]:
    """Archives directly in ``start`` whose name matches ``pattern``, capitals aside."""
    paths = sorted(start.iterdir()) if start.is_dir() else []
    return [
        path
        for path in paths
        if path.name.lower().endswith(ARCHIVES) and fnmatch(path.name.lower(), pattern.lower())
    ]


def open_corpus(options: argparse.Namespace, name: str, pattern: str, *markers: str) -> Path:
    """The folder that holds ``markers``: in --from DIR, else in DATA_DIR/``name``.

    Archives that match ``pattern`` are unpacked into DATA_DIR/``name`` where DIR has no such
    folder; those in DATA_DIR/``name`` always, so that what a kill left half unpacked is completed.
    """
    target = options.data_dir / name
    start = options.source or target
    root = find_root(start, *markers) if options.source else None
    if root is None:
        for archive in find_archives(start, pattern):
            extract(archive, target)
            start = target
        root = find_root(start, *markers)
    if root is None:
        raise DataError(
            f"{start}: found neither a folder with {' and '.join(markers)} nor an archive "
            f"{pattern} ({', '.join(ARCHIVES)}); --from DIR says where the corpus is"
        )
    return root


def link(source: Path, target: Path, data_dir: Path) -> None:
    """Make ``source`` appear as ``target`` by a symbolic link, unless it is there already.

    Within ``data_dir`` the link is relative, so that the folder can be moved as a whole.
    """
    if target.exists() and target.samefile(source):
        return
    if target.exists():
        raise UserError(f"{target}: is there already and is not {source}; remove one of them")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    inside = source.is_relative_to(data_dir.resolve())
    aim = os.path.relpath(source, target.parent.resolve()) if inside else str(source)
    target.unlink(missing_ok=True)  # a link to what is gone
    target.symlink_to(aim, target_is_directory=source.is_dir())


def check_audio(files: Iterable[str], data_dir: Path, workers: int) -> None:
    """Refuse a file that is missing, no audio, empty or not at 16 kHz; headers only are read."""
    paths = [str(data_dir / file) for file in files]
    parallel_map(audio.probe, paths, workers, "Checking audio")
