"""Noise and reverberation, added to a whole batch at once on the device where it lies.

What happens to a frame is drawn beforehand by ``Augmentation.draw``, from the frame's own random
generator and without touching a file; ``Augmentation(wave, draws)`` reads the audio and mixes it.
"""

import glob
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sslsv import audio
from sslsv.errors import ConfigError, DataError

Strategy = Literal["reverb", "noise", "reverb|noise", "reverb+noise", "all"]

# The equally likely outcomes of each strategy, as (reverberate?, add noise?).
_OUTCOMES: dict[Strategy, tuple[tuple[bool, bool], ...]] = {
    "reverb": ((True, False),),
    "noise": ((False, True),),
    "reverb|noise": ((True, False), (False, True)),
    "reverb+noise": ((True, True),),
    "all": ((False, False), (True, False), (False, True), (True, True)),
}

_CATEGORIES = ("noise", "speech", "music")

_POWER_FLOOR = 1e-4  # added to mean squares, so that silence has a power in dB (-40)

_CACHED_RIRS = 512  # a second at 16 kHz is 64 kB, so about 32 MB at most in each process


@dataclass(kw_only=True)
class AugmentationConfig:
    """Section ``dataset.augmentation``: noise (MUSAN) and reverberation (simulated RIRs)."""

    enable: bool = True  # false: frames stay as they are, and no noise or RIR folder is needed
    aug_prob: float = 1.0  # chance that a frame goes through the strategy at all
    strategy: Strategy = "reverb+noise"  # | one of both; + one after the other; all: any subset
    musan_noise_snr: tuple[float, float] = (0, 15)  # dB
    musan_speech_snr: tuple[float, float] = (13, 20)  # dB
    musan_music_snr: tuple[float, float] = (5, 15)  # dB
    musan_noise_num: tuple[int, int] = (1, 1)  # files mixed when noise is drawn, both ends included
    musan_speech_num: tuple[int, int] = (1, 1)
    musan_music_num: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if not 0 <= self.aug_prob <= 1:
            raise ConfigError(f"aug_prob: must be between 0 and 1, got {self.aug_prob}")
        if self.strategy not in get_args(Strategy):
            names = ", ".join(get_args(Strategy))
            raise ConfigError(f"strategy: must be one of {names}, got {self.strategy!r}")
        for category in _CATEGORIES:
            _check_range(f"musan_{category}_snr", self.snr_range(category), lowest=-math.inf)
            _check_range(f"musan_{category}_num", self.num_range(category), lowest=1)

    def snr_range(self, category: str) -> tuple[float, float]:
        """Lowest and highest SNR in dB for a category of noise."""
        return getattr(self, f"musan_{category}_snr")

    def num_range(self, category: str) -> tuple[int, int]:
        """Lowest and highest number of files mixed for a category of noise."""
        return getattr(self, f"musan_{category}_num")


def _check_range(field: str, bounds: tuple[float, float], lowest: float) -> None:
    if len(bounds) != 2:
        raise ConfigError(f"{field}: must be [lowest, highest], got {list(bounds)}")
    if not all(math.isfinite(bound) for bound in bounds):
        raise ConfigError(f"{field}: must be finite numbers, got {list(bounds)}")
    if bounds[0] > bounds[1]:
        raise ConfigError(f"{field}: the lowest comes first, got {list(bounds)}")
    if bounds[0] < lowest:
        raise ConfigError(f"{field}: must be at least {lowest}, got {list(bounds)}")


@dataclass(frozen=True)
class NoiseDraw:
    """One noise file to be added to a frame."""

    category: str  # noise, speech or music
    file: int  # index in the sorted files of the category
    offset: float  # where the crop starts, in [0, 1) of the starts that the file has room for
    snr_db: float


@dataclass(frozen=True)
class Draw:
    """Everything random about the augmentation of one frame."""

    length: int  # samples of the frame it was drawn for
    rir: int | None = None  # index in the sorted RIR files; None: no reverberation
    noises: tuple[NoiseDraw, ...] = ()


class Augmentation:
    """Reverberates frames and adds noise to them, as ``dataset.augmentation`` says.

    Files are ``base_path/simulated_rirs/*/*/*.wav`` and
    ``base_path/musan_split/{noise,speech,music}/*/*.wav``; only the folders that the strategy
    needs are looked at. With ``resample`` files at another rate than ``sample_rate`` are
    resampled, otherwise they raise DataError when they are read.
    Raises DataError when a folder is absent or has too few files.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        base_path: str | os.PathLike[str],
        sample_rate: int = audio.SAMPLE_RATE,
        resample: bool = False,
    ) -> None:
        self.config = config
        self.sample_rate = sample_rate
        self.resample = resample
        self._outcomes = _OUTCOMES[config.strategy] if config.enable else ((False, False),)

        self.rirs: list[str] = []
        if any(reverb for reverb, _ in self._outcomes):
            self.rirs = _list_files(Path(base_path, "simulated_rirs"), "*/*/*.wav")

        self.noises: dict[str, list[str]] = {}
        if any(noise for _, noise in self._outcomes):
            for category in _CATEGORIES:
                folder = Path(base_path, "musan_split", category)
                self.noises[category] = _list_files(folder, "*/*.wav")
                self._check_enough(folder, category)

    def _check_enough(self, folder: Path, category: str) -> None:
        found, most = len(self.noises[category]), self.config.num_range(category)[1]
        if found < most:
            raise DataError(
                f"{folder}: {found} files found where "
                f"`dataset.augmentation.musan_{category}_num` mixes up to {most}; lower it"
            )

    def draw(self, rng: np.random.Generator, length: int) -> Draw:
        """Draw what happens to a frame of ``length`` samples: a pure function of ``rng``."""
        if rng.random() >= self.config.aug_prob:
            return Draw(length)
        reverb, noise = self._outcomes[rng.integers(len(self._outcomes))]
        return Draw(
            length,
            rir=int(rng.integers(len(self.rirs))) if reverb else None,
            noises=self._draw_noises(rng) if noise else (),
        )

    def _draw_noises(self, rng: np.random.Generator) -> tuple[NoiseDraw, ...]:
        category = _CATEGORIES[rng.integers(len(_CATEGORIES))]
        count = rng.integers(*self.config.num_range(category), endpoint=True)
        files = rng.choice(len(self.noises[category]), size=count, replace=False)
        return tuple(
            NoiseDraw(
                category=category,
                file=int(file),
                offset=rng.random(),
                snr_db=rng.uniform(*self.config.snr_range(category)),
            )
            for file in files
        )

    def __call__(self, wave: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Apply ``draws`` to the rows of ``wave`` (B, T), float32, which is left as it is.

        Raises DataError for a noise or RIR file that cannot be used, ValueError for draws that
        were made for other frames.
        """
        if [draw.length for draw in draws] != [wave.shape[1]] * len(wave):
            raise ValueError(f"the draws are not those of a batch of shape {tuple(wave.shape)}")
        return self._add_noise(self._add_reverb(wave, draws), draws)

    def _add_reverb(self, wave: Tensor, draws: Sequence[Draw]) -> Tensor:
        picked = [(row, draw.rir) for row, draw in enumerate(draws) if draw.rir is not None]
        if not picked:
            return wave
        # What lies beyond the frame's length in a response is cut off again after convolution.
        responses = [
            read_rir(self.rirs[rir], self.sample_rate, self.resample)[: wave.shape[1]]
            for _, rir in picked
        ]
        rirs = np.zeros((len(picked), max(map(len, responses))), dtype=np.float32)
        for padded, response in zip(rirs, responses, strict=True):
            padded[: len(response)] = response
        rows = torch.tensor([row for row, _ in picked], device=wave.device)
        reverberated = reverberate(wave[rows], torch.from_numpy(rirs).to(wave.device))
        return wave.index_copy(0, rows, reverberated)

    def _add_noise(self, wave: Tensor, draws: Sequence[Draw]) -> Tensor:
        picked = [(row, noise) for row, draw in enumerate(draws) for noise in draw.noises]
        if not picked:
            return wave
        noises = np.empty((len(picked), wave.shape[1]), dtype=np.float32)
        for crop, (_, noise) in zip(noises, picked, strict=True):
            path = self.noises[noise.category][noise.file]
            crop[:] = read_noise(path, noise.offset, len(crop), self.sample_rate, self.resample)
        return mix(
            wave,
            torch.from_numpy(noises).to(wave.device),
            torch.tensor([row for row, _ in picked], device=wave.device),
            torch.tensor([noise.snr_db for _, noise in picked], device=wave.device),
        )


def reverberate(wave: Tensor, rirs: Tensor) -> Tensor:
    """Convolve each row of ``wave`` (N, T) with its row of ``rirs`` (N, L), cut to (N, T).

    The direct path's delay stays in, and the level is what the response makes of it.
    """
    length = wave.shape[1]
    size = fft_size(length + rirs.shape[1] - 1)  # room for the full convolution: none wraps
    spectrum = torch.fft.rfft(wave, size) * torch.fft.rfft(rirs, size)
    return torch.fft.irfft(spectrum, size)[:, :length]


def mix(wave: Tensor, noises: Tensor, rows: Tensor, snr_db: Tensor) -> Tensor:
    """Add each of ``noises`` (M, T) to row ``rows`` (M,) of ``wave`` (B, T) at ``snr_db`` (M,).

    The SNR is between the row as given and that noise alone, whatever else is added to the row.
    """
    wave_db, noise_db = _power_db(wave)[rows], _power_db(noises)
    gains = 10 ** ((wave_db - noise_db - snr_db) / 20)  # (M,)
    return wave.index_add(0, rows, noises * gains[:, None])


def _power_db(wave: Tensor) -> Tensor:
    return 10 * torch.log10(wave.square().mean(dim=1) + _POWER_FLOOR)


@lru_cache
def fft_size(minimum: int) -> int:
    """Smallest size from ``minimum`` on that has no prime factor above 5: its FFT is fast."""
    size = minimum
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def read_noise(
    path: str, offset: float, length: int, sample_rate: int, resample: bool
) -> np.ndarray:
    """Crop of ``length`` samples at ``offset`` in [0, 1) of its possible starts, (length,).

    A file shorter than that is repeated from its beginning.
    """
    with audio.AudioFile(path, sample_rate, resample) as file:
        starts = max(file.length - length, 0) + 1
        return file.read(int(offset * starts), length)


@lru_cache(maxsize=_CACHED_RIRS)
def read_rir(path: str, sample_rate: int, resample: bool) -> np.ndarray:
    """The whole room impulse response, scaled to unit energy, (L,)."""
    rir = audio.read(path, sample_rate, resample)
    norm = np.linalg.norm(rir)
    if norm == 0:
        raise DataError(f"{path}: the impulse response is silent; remove the file")
    return rir / norm


def _list_files(folder: Path, pattern: str) -> list[str]:
    """Sorted paths of the files that match ``pattern`` below ``folder``: the order of indices."""
    names = sorted(glob.glob(pattern, root_dir=folder))
    if not names:
        raise DataError(
            f"{folder}: no {pattern} found here, which augmentation needs; put noises or responses "
            "there, or set `dataset.augmentation.enable: false`"
        )
    return [os.path.join(folder, name) for name in names]
