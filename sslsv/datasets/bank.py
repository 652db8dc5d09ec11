"""Short sounds packed into one file that every worker maps into its memory.

Thousands of noises or room responses are decoded once and laid end to end; later a crop is a copy
from memory. A bank lies in a folder of its own whose name holds a hash of all that it was made
from (names, sizes and times of change of the files, rate, format), so that it is found only as
long as it is true::

    <base_path>/.sslsv/musan_split-noise-3f2a…/index.npz    names and offsets
                                               samples.bin  the sounds, one after the other

Where ``base_path`` cannot be written to, ``~/.cache/sslsv/<hash of base_path>/`` takes its place.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sslsv import audio
from sslsv.errors import DataError, UserError
from sslsv.files import user_cache
from sslsv.trainer.tracking import progress_bar, say

Kind = Literal["noise", "rir"]

_VERSION = 1  # of the format, part of the hash
_AT_ONCE = 16  # files that are decoded together; so many are held in memory
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


class Bank:
    """The sounds of a folder, by index in the sorted order of their names.

    Attributes:
        folder: where the files lie.
        names: (F,) bytes, their paths below ``folder``.
        lengths: (F,) int64, samples.
    """

    def __init__(self, path: Path, folder: Path, dtype: np.dtype[Any]) -> None:
        """Open the bank in ``path``; OSError, ValueError and others where it is damaged."""
        self.path, self.folder, self.dtype = path, folder, dtype
        with np.load(path / "index.npz", allow_pickle=False) as index:
            self.names: np.ndarray = index["names"]
            self._offsets: np.ndarray = index["offsets"]
        self.lengths: np.ndarray = np.diff(self._offsets)
        if len(self.lengths) != len(self.names) or not (self.lengths > 0).all():
            raise ValueError("names and offsets differ")
        size = (path / "samples.bin").stat().st_size
        if size != self._offsets[-1] * dtype.itemsize:
            raise ValueError("samples are missing")
        # As a plain array: slices of a memmap object cost more than the copies made of them.
        self._samples = np.memmap(path / "samples.bin", dtype, mode="r").view(np.ndarray)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """One whole sound, (L,), read-only and not yet in memory: int16 noise, float32 RIR."""
        return self._samples[self._offsets[index] : self._offsets[index + 1]]

    def files(self) -> list[str]:
        """Paths of the files, in order."""
        return [os.path.join(self.folder, os.fsdecode(name)) for name in self.names]

    def crop(self, index: int, offset: float, out: np.ndarray) -> None:
        """Copy as many samples as ``out`` (T,) takes, at ``offset`` in [0, 1) of possible starts.

        A sound shorter than that is repeated from its beginning.
        """
        sound = self[index]
        if len(sound) < len(out):
            out[:] = np.resize(sound, len(out))  # resize repeats circularly
            return
        start = int(offset * (len(sound) - len(out) + 1))
        out[:] = sound[start : start + len(out)]

    def __getstate__(self) -> tuple[Path, Path, np.dtype[Any]]:
        return self.path, self.folder, self.dtype  # a spawned worker maps the file again

    def __setstate__(self, state: tuple[Path, Path, np.dtype[Any]]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def open_bank(
    base_path: str | os.PathLike[str],
    name: str,
    pattern: str,
    kind: Kind,
    sample_rate: int = audio.SAMPLE_RATE,
    resample: bool = False,
) -> Bank:
    """The bank of the files ``pattern`` below ``base_path/name``; built where there is none.

    One process builds while others wait for it. Raises DataError when no file is found or one
    cannot be used (read as ``audio.read`` does, with ``resample``), UserError when the bank cannot
    be written.
    """
    folder = Path(base_path, name)
    names, versions = _list_files(folder, pattern)
    convert, dtype = _KINDS[kind]
    about = repr((_VERSION, kind, sample_rate, resample)).encode()
    digest = hashlib.sha256(about + b"\0".join(names) + versions.tobytes()).hexdigest()[:16]
    title = name.replace("/", "-")
    places = [Path(base_path, ".sslsv"), _cache(base_path)]

    found = [_open(place / f"{title}-{digest}", folder, dtype) for place in places]
    for bank in found:
        if bank:
            return bank

    if not os.stat(base_path).st_mode & 0o222:  # meant to stay as it is, also for root, who may
        del places[0]
    read = partial(_read, convert=convert, sample_rate=sample_rate, resample=resample)
    for place in places:
        try:
            with _alone(place / f"{title}.lock", f"the bank of {folder}"):
                target = place / f"{title}-{digest}"
                bank = _open(target, folder, dtype)  # others may have built it meanwhile
                if bank is None:
                    _build(target, folder, names, read)
                    bank = Bank(target, folder, dtype)
                return bank
        except OSError as error:
            if error.errno in _NOT_ALLOWED and place != places[-1]:
                continue
            samples = int(versions[0].sum()) // 2  # of 16 bits
            raise UserError(
                f"{place}: the bank of {folder} cannot be written ({error.strerror or error}); "
                f"it takes about {samples * dtype.itemsize / 1e9:.1f} GB"
            ) from None
    raise AssertionError("the last place either works or raises")


def _list_files(folder: Path, pattern: str) -> tuple[list[bytes], np.ndarray]:
    """Sorted names below ``folder``, and their sizes and times of change, (2, F)."""
    names = sorted(glob.glob(pattern, root_dir=folder))
    if not names:
        raise DataError(
            f"{folder}: no {pattern} found here, which augmentation needs; put noises or responses "
            "there, or set `dataset.augmentation.enable: false`"
        )
    states = [os.stat(os.path.join(folder, name)) for name in names]
    versions = np.array([[s.st_size for s in states], [s.st_mtime_ns for s in states]])
    return [os.fsencode(name) for name in names], versions


def _cache(base_path: str | os.PathLike[str]) -> Path:
    """The folder for ``base_path`` in the user's cache."""
    return user_cache() / hashlib.sha256(os.fsencode(os.path.realpath(base_path))).hexdigest()[:16]


def _open(path: Path, folder: Path, dtype: np.dtype[Any]) -> Bank | None:
    """The bank in ``path``; None where there is none that can be used."""
    try:
        return Bank(path, folder, dtype)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


@contextmanager
def _alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock ``path``, which the system releases if this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another process that makes {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks on this file system: work may be done twice, the rename stays atomic
        yield


def _build(
    target: Path, folder: Path, names: list[bytes], read: Callable[[str], np.ndarray]
) -> None:
    """Write a bank beside ``target``, then move it there; earlier ones of the folder go."""
    title = target.name.rpartition("-")[0]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    stale = [*target.parent.glob(f"{title}-*"), *target.parent.glob(f".{title}-*.tmp")]
    temporary.mkdir()
    try:
        offsets = _pack(temporary / "samples.bin", folder, names, read)
        with open(temporary / "index.npz", "wb") as file:
            np.savez(file, names=np.array(names), offsets=offsets)
            _to_disk(file)
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # usually it has been moved


def _pack(
    path: Path, folder: Path, names: list[bytes], read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Write the sounds one after the other; returns where they begin and the last ends, (F+1,)."""
    lengths = []
    bar = progress_bar(len(names), f"Packing {folder.name}", unit="file")
    with open(path, "wb") as file, ThreadPoolExecutor(4) as pool, bar:  # libsndfile frees the GIL
        for first in range(0, len(names), _AT_ONCE):
            paths = [
                os.path.join(folder, os.fsdecode(name)) for name in names[first : first + _AT_ONCE]
            ]
            for sound in pool.map(read, paths):
                file.write(sound.data)
                lengths.append(len(sound))
            bar.update(len(paths))
        _to_disk(file)
    return np.cumsum([0, *lengths], dtype=np.int64)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read(
    path: str, convert: Callable[[str, np.ndarray], np.ndarray], sample_rate: int, resample: bool
) -> np.ndarray:
    return convert(path, audio.read(path, sample_rate, resample))


def _to_int16(path: str, wave: np.ndarray) -> np.ndarray:
    """16-bit audio stays exactly what it was; other audio is rounded, and clipped at +-1."""
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


def _to_unit_energy(path: str, rir: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rir)
    if norm == 0:
        raise DataError(f"{path}: the impulse response is silent; remove the file")
    return rir / norm


_KINDS: dict[Kind, tuple[Callable[[str, np.ndarray], np.ndarray], np.dtype[Any]]] = {
    "noise": (_to_int16, np.dtype(np.int16)),
    "rir": (_to_unit_energy, np.dtype(np.float32)),
}
