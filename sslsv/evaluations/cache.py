"""Embeddings kept in ``<run_dir>/cache``, so that an evaluation with other metrics, norms or lists
does not embed the same files again.

A cache belongs to the weights that ``embed`` has, and goes with it (`CachedEmbed`). Each file in
the folder is a part::

    <key>-<hash>.npz    key (64 hex digits), names, sizes, times, embeddings (N, D) float32

whose ``key`` is a hash of those weights, of the encoder's and the method's settings, and of how
files are cut, read and changed; a row is taken only where name, size and time of change of its file
are the same, too. Anything may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sslsv import __version__, distributed
from sslsv.errors import DataError, UserError
from sslsv.files import atomic_write
from sslsv.trainer.tracking import say

if TYPE_CHECKING:
    from torch import Tensor

    from sslsv.config import Config
    from sslsv.evaluations.base import Embed
    from sslsv.methods.base import Method

_VERSION = 1  # of the format and of what is computed, part of the key
_PART = 2**28  # bytes of embeddings in a part, at most; so many are read at once
_ABANDONED = 24 * 3600  # s, the age at which an unfinished file is deleted
_DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)


class CachedEmbed:
    """An ``embed`` that `extract` calls only for what is not in ``cache``."""

    def __init__(self, embed: Embed, cache: EmbeddingCache):
        self._embed, self.cache = embed, cache

    def __call__(self, wave: Tensor, lengths: Sequence[int] | None = None, /) -> Tensor:
        return self._embed(wave, lengths)


def cached(method: Method, config: Config) -> Embed:
    """``method.embed``, with the cache of the run where ``evaluation.cache_gb`` allows one.

    The weights must stay as they are from then on.
    """
    limit = int(config.evaluation.cache_gb * 1e9)
    if not limit:
        return method.embed
    assert config.run_dir is not None
    settings = {"encoder": asdict(config.encoder), "method": asdict(config.method)}
    model = hash_of_model(method.state_dict(), settings)
    return CachedEmbed(method.embed, EmbeddingCache(config.run_dir / "cache", model, limit))


def hash_of_model(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256 of all tensors, with names, types and shapes, and of what else makes the model."""
    about = json.dumps([_VERSION, __version__, settings], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class EmbeddingCache:
    """Embeddings of one ``model``, a hash of it, in a ``folder`` that others may use, too.

    The parts in the folder take at most ``limit`` bytes; those not used for longest go first.
    """

    def __init__(self, folder: Path, model: str, limit: int):
        self.folder, self.model, self.limit = folder, model, limit

    def complete(
        self,
        files: Sequence[str],
        base_path: Path,
        about: Mapping[str, Any],
        device: torch.device,
        extract: Callable[[list[str]], np.ndarray],
    ) -> np.ndarray:
        """Embeddings (len(files), D) float32: what is kept, and ``extract`` of the rest.

        ``about`` is whatever else they depend on, for JSON. All processes call this; the main one
        reads and writes. Raises DataError where a file holds embeddings of another model or of
        other settings than its name says.
        """
        key = hashlib.sha256(json.dumps([self.model, about], sort_keys=True).encode()).hexdigest()
        main = distributed.is_main()
        states = _states(files, base_path) if main else np.empty(0)
        rows, found = self._load(key, files, states) if main else (np.empty(0), np.empty(0))
        rows = distributed.broadcast(rows)
        found = _to_all(found, device)
        if len(rows):
            say(f"  {len(rows):,} of {len(files):,} embeddings are in {self.folder}")
        missing = np.setdiff1d(np.arange(len(files)), rows)
        if not len(missing):
            return found
        new = extract([files[i] for i in missing])
        if main:
            self._store(key, [files[i] for i in missing], states[missing], new)
        if not len(rows):
            return new
        result = np.empty((len(files), new.shape[1]), np.float32)
        result[rows], result[missing] = found, new
        return result

    def _load(
        self, key: str, files: Sequence[str], states: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of ``files`` are kept, ascending, and their embeddings."""
        where: dict[str, list[int]] = {}
        for index, file in enumerate(files):
            where.setdefault(file, []).append(index)
        known = np.zeros(len(files), bool)
        found = np.empty((0, 0), np.float32)
        for path in sorted(self.folder.glob(f"{key[:16]}-*.npz")):
            try:
                indices, embeddings = self._read(path, key, where, states)
            except _DAMAGED:
                with suppress(OSError):
                    path.unlink()
                continue
            if not len(indices):
                continue
            if not len(found):
                found = np.empty((len(files), embeddings.shape[1]), np.float32)
            found[indices], known[indices] = embeddings, True
            with suppress(OSError):
                os.utime(path)  # used last
        rows = np.flatnonzero(known)
        return rows, found if len(rows) == len(found) else found[rows]

    def _read(
        self, path: Path, key: str, where: Mapping[str, list[int]], states: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which files of ``where`` are in a part, unchanged since, and their embeddings."""
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                raise DataError(
                    f"{path}: holds embeddings of another model or of other settings than its "
                    "name says; delete it"
                )
            names = bytes(arrays["names"]).decode("utf-8", "surrogateescape").split("\0")
            pairs = [
                (index, row) for row, name in enumerate(names) for index in where.get(name, ())
            ]
            indices, rows = np.array(pairs, np.int64).reshape(-1, 2).T
            same = (arrays["states"][rows] == states[indices]).all(axis=1)
            if not same.any():
                return indices[:0], np.empty((0, 0), np.float32)
            embeddings = arrays["embeddings"]
        if embeddings.dtype != np.float32 or len(embeddings) != len(names):
            raise ValueError("names and embeddings differ")
        return indices[same], embeddings[rows[same]]

    def _store(
        self, key: str, files: list[str], states: np.ndarray, embeddings: np.ndarray
    ) -> None:
        if embeddings.nbytes > self.limit:
            say(
                f"  {embeddings.nbytes / 1e9:.1f} GB of embeddings are not kept: that is more than "
                "evaluation.cache_gb"
            )
            return
        step = max(1, _PART // (embeddings.itemsize * embeddings.shape[1]))
        for start in range(0, len(files), step):
            part = slice(start, start + step)
            names = "\0".join(files[part]).encode("utf-8", "surrogateescape")
            digest = hashlib.sha256(names + states[part].tobytes()).hexdigest()
            path = self.folder / f"{key[:16]}-{digest[:16]}.npz"
            self._make_room(embeddings[part].nbytes)
            try:
                with atomic_write(path) as file:
                    np.savez(
                        file,
                        key=np.array(key),
                        names=np.frombuffer(names, np.uint8),
                        states=states[part],
                        embeddings=embeddings[part],
                    )
            except UserError as error:  # what was asked for is there all the same
                say(f"warning: embeddings are not kept for another time: {error}")
                return

    def _make_room(self, size: int) -> None:
        """Delete what was not used for longest until ``size`` bytes more are within the limit."""
        for path in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        parts = sorted(_sizes(self.folder), key=lambda part: part[1])
        total = sum(part[2] for part in parts)
        for path, _, there in parts:
            if total + size <= self.limit:
                return
            with suppress(OSError):
                path.unlink()
            total -= there


def _sizes(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, time of last use (ns) and bytes of each part."""
    for path in folder.glob("*.npz"):
        with suppress(OSError):
            state = path.stat()
            yield path, state.st_mtime_ns, state.st_size


def _states(files: Sequence[str], base_path: Path) -> np.ndarray:
    """Bytes and time of change (ns) of each file, (N, 2) int64; -1 where there is none."""
    states = np.full((len(files), 2), -1, np.int64)
    for row, file in zip(states, files, strict=True):
        with suppress(OSError):
            state = os.stat(os.path.join(base_path, file))
            row[:] = state.st_size, state.st_mtime_ns
    return states


def _to_all(x: np.ndarray, device: torch.device) -> np.ndarray:
    """The main process's float32 array on every process."""
    if distributed.world_size() == 1:
        return x
    shape = distributed.broadcast(x.shape)
    there = torch.from_numpy(x) if distributed.is_main() else torch.empty(shape)
    return distributed.broadcast_(there.to(device)).cpu().numpy()
