"""What is checked before a training starts: that all files are there, and a sample of headers."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from sslsv import audio, distributed
from sslsv.datasets.manifest import Manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import DataError, UserError
from sslsv.files import user_cache, write_json
from sslsv.trainer.tracking import say

_REMEMBERED_FROM = 10_000  # rows: shorter lists are looked through again in a moment


def preflight(manifest: Manifest, config: DatasetConfig) -> None:
    """Refuse a list with files missing (all are counted) or unusable headers (a sample).

    The main process looks and all raise the same error. A long list whose files were all there
    is not looked through again while the list stays as it is. With ``on_error: skip`` only a list
    of which nothing can be used is refused; what else is wrong is said.
    """
    error: DataError | None = None
    if distributed.is_main():
        try:
            _check_files(manifest, config.on_error == "skip")
            _check_headers(manifest, config)
        except DataError as found:
            error = found
    error = distributed.broadcast(error)
    if error:
        raise error


def _check_files(manifest: Manifest, skip: bool) -> None:
    remembered = _memory(manifest) if len(manifest) >= _REMEMBERED_FROM else None
    if remembered and remembered.exists():
        return
    missing = manifest.missing()
    if missing and (not skip or len(missing) == len(manifest)):
        raise manifest.missing_error(missing)
    if missing:
        say(f"{manifest.missing_error(missing)}; they are skipped (dataset.on_error)")
    elif remembered:
        with suppress(UserError):  # it is only slower next time
            write_json(remembered, {"list": str(manifest.path), "rows": len(manifest)})


def _memory(manifest: Manifest) -> Path:
    """A file that exists once all files of this very list were found at this very place."""
    place = f"{manifest.path.resolve()} {manifest.base_path.resolve()}"
    state = hashlib.sha256(f"{place} {manifest.path.stat().st_mtime_ns}".encode())
    state.update(manifest.files.tobytes())
    return user_cache() / "complete_lists" / f"{state.hexdigest()}.json"


def _check_headers(manifest: Manifest, config: DatasetConfig) -> None:
    rows = manifest.sample()
    unusable = []
    for row in rows:
        try:
            audio.probe(manifest.base_path / manifest.file(row), resample=config.resample)
        except DataError as error:
            unusable.append(error)
            if config.on_error == "raise":
                raise
    if len(unusable) == len(rows):
        raise unusable[0]
    if unusable:
        say(
            f"{manifest.path}: {len(unusable)} of {len(rows)} headers looked at cannot be used, "
            f"such as {unusable[0]}; they are skipped (dataset.on_error)"
        )
