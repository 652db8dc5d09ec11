"""Audio files: headers, or all that is in them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sslsv import audio
from sslsv.config import Config
from sslsv.doctor.report import Report
from sslsv.errors import DataError, listing
from sslsv.trainer.tracking import progress_bar

_CHUNK = 512  # files that a process looks at before it reports; so few need no processes
_BLOCK = 1 << 20  # samples decoded at a time


@dataclass
class Heard:
    """What F files are like, in the order they were given."""

    seconds: np.ndarray  # (F,) float64, 0 where a file cannot be used
    rates: np.ndarray  # (F,) int64, Hz
    channels: np.ndarray  # (F,) int64
    errors: dict[int, str] = field(default_factory=dict)  # by index


class Audio:
    """Looks at files, each only once however many lists it is in."""

    def __init__(self, config: Config, full: bool):
        self.resample, self.full = config.dataset.resample, full
        self.skipped: set[str] = set()  # paths that cannot be used, of which one stops no run
        self._known: set[str] = set()

    def new(self, paths: Iterable[str]) -> list[str]:
        """Those of ``paths`` that have not been looked at."""
        fresh = list(dict.fromkeys(path for path in paths if path not in self._known))
        self._known.update(fresh)
        return fresh

    def look(self, paths: Sequence[str]) -> Heard:
        chunks = [(paths[i : i + _CHUNK], self.full) for i in range(0, len(paths), _CHUNK)]
        heard = Heard(np.zeros(len(paths)), *np.zeros((2, len(paths)), dtype=np.int64))
        done = 0
        bar = progress_bar(len(paths), "Decoding" if self.full else "Headers", unit="file")
        for part in self._map(chunks):
            end = done + len(part.seconds)
            heard.seconds[done:end] = part.seconds
            heard.rates[done:end] = part.rates
            heard.channels[done:end] = part.channels
            heard.errors |= {done + i: error for i, error in part.errors.items()}
            bar.update(end - done)
            done = end
        bar.close()
        return heard

    def _map(self, chunks: list[tuple[Sequence[str], bool]]) -> Iterable[Heard]:
        processes = min(len(chunks), os.cpu_count() or 1)
        if processes < 2:
            yield from map(_look, chunks)
            return
        with multiprocessing.Pool(processes) as pool:
            yield from pool.imap(_look, chunks)

    def report(self, paths: Sequence[str], heard: Heard, stops: bool, report: Report) -> None:
        """Say which files cannot be used; ``stops`` is whether one is enough to stop a run."""
        if not stops:
            self.skipped |= {paths[i] for i in heard.errors}
        stops = stops or len(heard.errors) == len(paths)
        missing = [paths[i] for i, error in heard.errors.items() if error.endswith(_MISSING)]
        if missing:
            text = f"{len(missing)} of {len(paths)} files not found: {listing(missing)}"
            report.fault(text, "check dataset.base_path, or remove them from the list", stops)
        bad = [error for error in heard.errors.values() if not error.endswith(_MISSING)]
        if bad:
            text = f"{len(bad)} of {len(paths)} files cannot be used: {listing(bad)}"
            report.fault(text, "re-encode the files or remove them from the list", stops)
        others = np.flatnonzero((heard.rates > 0) & (heard.rates != audio.SAMPLE_RATE)).tolist()
        if others:
            rates = ", ".join(f"{rate} Hz" for rate in np.unique(heard.rates[others]))
            named = listing([paths[i] for i in others])
            text = f"{len(others)} of {len(paths)} files are at {rates}: {named}"
            if self.resample:
                report.note(f"{text}; they are resampled")
            else:
                self.skipped |= set() if stops else {paths[i] for i in others}
                fix = f"set dataset.resample: true or convert the files to {audio.SAMPLE_RATE} Hz"
                report.fault(text, fix, stops or len(others) == len(paths))
        if many := int((heard.channels > 1).sum()):
            report.note(f"{many} files have several channels, which are averaged")


_MISSING = ": file not found"


def _look(chunk: tuple[Sequence[str], bool]) -> Heard:
    paths, full = chunk
    heard = Heard(np.zeros(len(paths)), *np.zeros((2, len(paths)), dtype=np.int64))
    for i, path in enumerate(paths):
        try:
            with audio.AudioFile(path, resample=True) as file:
                rate, channels, samples = file.file_rate, file.channels, file.length
            if full:
                _decode(path, rate)
        except DataError as error:
            heard.errors[i] = str(error)
            continue
        heard.seconds[i] = samples / audio.SAMPLE_RATE
        heard.rates[i], heard.channels[i] = rate, channels
    return heard


def _decode(path: str, rate: int) -> None:
    with audio.AudioFile(path, rate) as file:
        for start in range(0, file.length, _BLOCK):
            file.read(start, min(_BLOCK, file.length - start))
