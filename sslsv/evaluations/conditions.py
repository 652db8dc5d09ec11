"""Stress conditions: the same trials, heard as over worse channels.

``evaluation.conditions`` lists them. Each is applied to whole files while these are embedded:

- ``clean``: nothing is changed;
- ``duration-2s``: a stretch of that length, drawn for each file; shorter files stay whole;
- ``snr-5db``: noise of ``musan_split/noise`` at this ratio of powers over the whole file (a
  negative one is ``snr--5db``);
- ``reverb``: a response of ``simulated_rirs``, as in augmentation;
- ``telephone``: the band from 300 to 3400 Hz;
- ``mulaw``: 8 bits by the µ-law (ITU-T G.711 in its continuous form), µ = 255;
- ``vorbis``, ``opus``, ``mp3``: encoded and decoded with the library's default quality.

Several one after the other are joined by a plus: ``telephone+mulaw``. What is drawn for a file
depends on its name in the list alone: it is the same for any model, list and run, and one noise for
all ratios.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile as sf

from sslsv import audio
from sslsv.datasets.bank import Bank, open_bank
from sslsv.errors import ConfigError, DataError
from sslsv.randomness import generator

CLEAN = "clean"
_EXAMPLES = "clean duration-2s snr-5db reverb telephone mulaw vorbis opus mp3".split()
_PLAIN = ("reverb", "telephone", "mulaw", "vorbis", "opus", "mp3")
_WITH_NUMBER = {
    "duration": re.compile(r"duration-(\d+(?:\.\d+)?)s"),
    "snr": re.compile(r"snr-(-?\d+(?:\.\d+)?)db"),
}
_SHORTEST = 0.1  # s
_MU = 255
_CODECS = {
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
_BLOCK = audio.SAMPLE_RATE  # samples encoded at once: libsndfile's Vorbis crashes on minutes


# What a condition is made of ----------------------------------------------------------------------


class Step(Protocol):
    """Changes one whole file, (T,) float32 -> (``length(T)``,)."""

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray: ...

    def length(self, samples: int) -> int: ...

    @property
    def version(self) -> str:
        """What the result depends on, beside the name of the condition."""
        ...


class _SameLength:
    version = ""

    def length(self, samples: int) -> int:
        return samples


@dataclass(frozen=True)
class Duration:
    seconds: float
    version = ""

    @property
    def samples(self) -> int:
        return round(self.seconds * audio.SAMPLE_RATE)

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        room = len(wave) - self.samples
        if room <= 0:
            return wave
        start = _draws("duration", file).integers(room + 1)
        return wave[start : start + self.samples]

    def length(self, samples: int) -> int:
        return min(samples, self.samples)


@dataclass(frozen=True)
class Noise(_SameLength):
    """Noise at ``snr_db``, the ratio of the mean squares of the file and of what is added."""

    snr_db: float
    bank: Bank

    @property
    def version(self) -> str:  # type: ignore[override]
        return self.bank.path.name  # a hash of its files is in it

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        rng = _draws("snr", file)
        first, offset = int(rng.integers(len(self.bank))), rng.random()
        crop = np.empty(len(wave), np.int16)
        for number in range(len(self.bank)):  # the next one where a stretch is silent
            self.bank.crop((first + number) % len(self.bank), offset, crop)
            if crop.any():
                break
        noise = crop.astype(np.float64)
        power = np.mean(noise**2)
        if power == 0:
            raise DataError(f"{self.bank.folder}: all the noise is silent; replace the files")
        speech = np.mean(wave.astype(np.float64) ** 2)
        gain = np.sqrt(speech / power) * 10 ** (-self.snr_db / 20)
        return (wave + gain * noise).astype(np.float32)


@dataclass(frozen=True)
class Reverb(_SameLength):
    bank: Bank

    @property
    def version(self) -> str:  # type: ignore[override]
        return self.bank.path.name

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        response = self.bank[int(_draws("reverb", file).integers(len(self.bank)))]
        return _convolve(wave, response)[: len(wave)].astype(np.float32)


class Telephone(_SameLength):
    """Flat within 0.1 dB from 300 to 3400 Hz; 60 dB down below 200 and above 3500 Hz. No delay."""

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        taps = _telephone_band()
        start = len(taps) // 2
        return _convolve(wave, taps)[start : start + len(wave)].astype(np.float32)


class MuLaw(_SameLength):
    """A sign and 7 bits of log(1 + µ|x|) / log(1 + µ); what is beyond ±1 is clipped."""

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        x = np.clip(wave.astype(np.float64), -1, 1)
        code = np.rint(127 * np.log1p(_MU * np.abs(x)) / np.log1p(_MU))
        return (np.sign(x) * np.expm1(code / 127 * np.log1p(_MU)) / _MU).astype(np.float32)


@dataclass(frozen=True)
class Codec(_SameLength):
    """Encoded and decoded in memory; what is beyond ±1 is clipped before."""

    name: str

    def __post_init__(self) -> None:
        if not sf.check_format(*_CODECS[self.name]):
            raise ConfigError(
                f"conditions: '{self.name}' is not in this build of libsndfile "
                f"({sf.__libsndfile_version__}); pip install -U soundfile, or remove it"
            )

    @property
    def version(self) -> str:  # type: ignore[override]
        return f"libsndfile {sf.__libsndfile_version__}"

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        kind, subtype = _CODECS[self.name]
        wave = np.clip(wave, -1, 1)
        stream = io.BytesIO()
        try:
            with sf.SoundFile(stream, "w", audio.SAMPLE_RATE, 1, subtype, format=kind) as encoder:
                for start in range(0, len(wave), _BLOCK):
                    encoder.write(wave[start : start + _BLOCK])
            stream.seek(0)
            decoded, _ = sf.read(stream, dtype="float32")
        except sf.SoundFileError as error:
            raise DataError(f"{file}: cannot be encoded as {self.name} ({error})") from error
        result = np.zeros(len(wave), np.float32)
        result[: len(decoded)] = decoded[: len(wave)]
        return result


def _draws(purpose: str, file: str) -> np.random.Generator:
    digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest()
    return generator(f"condition {purpose}", int.from_bytes(digest[:8], "little"))


def _convolve(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    from scipy.signal import fftconvolve

    return fftconvolve(wave.astype(np.float64), response.astype(np.float64))


@lru_cache
def _telephone_band() -> np.ndarray:
    from scipy.signal import firwin, kaiserord

    count, beta = kaiserord(66, 100 / (audio.SAMPLE_RATE / 2))  # dB, width of both edges
    edges = [250, 3450]  # Hz, half-way down
    return firwin(count | 1, edges, window=("kaiser", beta), pass_zero=False, fs=audio.SAMPLE_RATE)


# Conditions ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """One entry of ``evaluation.conditions``, ready to be applied."""

    name: str
    steps: tuple[Step, ...]

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        """The whole file (T,) float32 under the condition; ``file``: its name in the list."""
        for step in self.steps:
            wave = step(wave, file)
        return wave

    def length(self, samples: int) -> int:
        """How long a file of ``samples`` is afterwards."""
        for step in self.steps:
            samples = step.length(samples)
        return samples

    @property
    def version(self) -> str:
        """Differs where results may differ."""
        return " ".join(filter(None, [self.name, *(step.version for step in self.steps)]))


def check_names(names: Sequence[str]) -> None:
    """ConfigError where a name is none of a condition, or stands twice."""
    for number, name in enumerate(names):
        try:
            _parse(name)
        except ConfigError as error:
            raise ConfigError(f"conditions.{number}: {error}") from None
        if name in names[:number]:
            raise ConfigError(f"conditions.{number}: '{name}' is listed twice")


def make_condition(name: str, base_path: Path, resample: bool = False) -> Condition:
    """The condition ``name`` with the noises and responses below ``base_path``.

    Raises ConfigError for an unknown name or a codec that cannot be had, DataError where there are
    no noises or responses.
    """
    return Condition(name, tuple(_make(*part, base_path, resample) for part in _parse(name)))


def _parse(name: str) -> list[tuple[str, float]]:
    """Kind and number (0: none) of each part; none for clean."""
    if name == CLEAN:
        return []
    return [_parse_part(part) for part in name.split("+")]


def _parse_part(name: str) -> tuple[str, float]:
    if name in _PLAIN:
        return name, 0.0
    for kind, pattern in _WITH_NUMBER.items():
        if match := pattern.fullmatch(name):
            number = float(match[1])
            if kind == "duration" and number < _SHORTEST:
                raise ConfigError(f"'{name}' is too short; give {_SHORTEST} s or more")
            return kind, number
    if name == CLEAN:
        raise ConfigError(f"'{CLEAN}' changes nothing and stands alone, without a plus")
    near = difflib.get_close_matches(name, _EXAMPLES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(_EXAMPLES)}"
    raise ConfigError(f"unknown condition '{name}'; {hint}")


def _make(kind: str, number: float, base_path: Path, resample: bool) -> Step:
    if kind == "duration":
        return Duration(number)
    if kind == "telephone":
        return Telephone()
    if kind == "mulaw":
        return MuLaw()
    if kind in _CODECS:
        return Codec(kind)
    try:
        if kind == "snr":
            name = "musan_split/noise"
            return Noise(number, open_bank(base_path, name, "*/*.wav", "noise", resample=resample))
        name = "simulated_rirs"
        return Reverb(open_bank(base_path, name, "*/*/*.wav", "rir", resample=resample))
    except DataError as error:
        reason = str(error).partition(", which augmentation needs")[0]
        raise DataError(
            f"evaluation.conditions: '{kind}' needs sounds that cannot be used: {reason}"
        ) from None
