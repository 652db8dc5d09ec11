"""Noise and reverberation, added to a whole batch at once on the device where it lies.

In three steps: ``Augmentation.draw`` decides what happens to a frame, from the frame's own random
generator and without touching a file; ``Augmentation.gather`` copies the sounds of a batch from
memory-mapped banks into a ``Recipe``, and computes nothing; ``Recipe.apply`` mixes, on the CPU in a
worker or on the GPU once the batch is there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv import audio
from sslsv.datasets.bank import Bank, open_bank
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

_CPU_ROWS = 8  # augmented together on a CPU: what an FFT of them needs stays in its cache

_POWER_FLOOR = 1e-4  # added to mean squares, so that silence has a power in dB (-40)


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
    musan_speech_num: tuple[int, int] = (1, 1)  # likewise of talkers
    musan_music_num: tuple[int, int] = (1, 1)  # likewise of music
    # Factors such as [0.9, 1.0, 1.1], one drawn for each sample: another speed is another voice, so
    # all augmented views of a sample get the same, and its label stays. null: speed is left alone.
    speed_perturb: list[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.aug_prob <= 1:
            raise ConfigError(f"aug_prob: must be between 0 and 1, got {self.aug_prob}")
        if self.strategy not in get_args(Strategy):
            names = ", ".join(get_args(Strategy))
            raise ConfigError(f"strategy: must be one of {names}, got {self.strategy!r}")
        for factor in self.speed_perturb or []:
            if not 0.5 <= factor <= 2:
                raise ConfigError(f"speed_perturb: must be between 0.5 and 2, got {factor}")
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


@dataclass(frozen=True)
class Recipe:
    """What is to be added to a batch of frames (B, T), as tensors that any device can work on."""

    rirs: Tensor  # (K, L) float32, responses of unit energy; L depends on T and the bank alone
    rir_rows: Tensor  # (K,) int64, frame that each is for: ascending, at most one a frame
    noises: Tensor  # (M, T) int16, 32768 is full scale
    noise_rows: Tensor  # (M,) int64, frame that each is added to: ascending
    snr_db: Tensor  # (M,) float32

    def apply(self, wave: Tensor) -> Tensor:
        """Reverberate ``wave`` (B, T) float32, then add the noises; it is left as it is.

        A row's result does not depend on the other rows (on a GPU: up to rounding).
        """
        result = wave.clone()
        if wave.device.type != "cpu":
            self._change(result)
            return result
        with one_thread():
            for first in range(0, len(wave), _CPU_ROWS):
                rows = slice(first, first + _CPU_ROWS)
                self._part(rows)._change(result[rows])
        return result

    def _part(self, rows: slice) -> Recipe:
        """For these rows alone. Sounds are in the order of their rows."""
        ends = torch.tensor([rows.start, rows.stop])
        rirs, noises = (
            slice(*torch.searchsorted(of, ends).tolist()) for of in (self.rir_rows, self.noise_rows)
        )
        return Recipe(
            rirs=self.rirs[rirs],
            rir_rows=self.rir_rows[rirs] - rows.start,
            noises=self.noises[noises],
            noise_rows=self.noise_rows[noises] - rows.start,
            snr_db=self.snr_db[noises],
        )

    def _change(self, wave: Tensor) -> None:
        if len(self.rir_rows):
            reverberated = reverberate(wave[self.rir_rows], self.rirs)
            wave.index_copy_(0, self.rir_rows, reverberated)
        if len(self.noise_rows):
            noises = self.noises.float().mul_(1 / 32768)
            wave.copy_(mix(wave, noises, self.noise_rows, self.snr_db))

    def to(self, device: torch.device) -> Recipe:
        """Copy to ``device``, without waiting where memory is pinned."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Recipe:
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Recipe:
        return Recipe(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


class Augmentation:
    """Reverberates frames and adds noise to them, as ``dataset.augmentation`` says.

    Files are ``base_path/simulated_rirs/*/*/*.wav`` and
    ``base_path/musan_split/{noise,speech,music}/*/*.wav``; only the folders that the strategy
    needs are looked at, and packed into banks the first time. With ``resample`` files at another
    rate than ``sample_rate`` are resampled, otherwise they raise DataError.
    Raises DataError when a folder is absent, has too few files, or one that cannot be used.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        base_path: str | os.PathLike[str],
        sample_rate: int = audio.SAMPLE_RATE,
        resample: bool = False,
    ) -> None:
        self.config = config
        active = config.enable and config.aug_prob > 0
        self._outcomes = _OUTCOMES[config.strategy] if active else ((False, False),)

        self.rirs: Bank | None = None
        if any(reverb for reverb, _ in self._outcomes):
            self.rirs = open_bank(
                base_path, "simulated_rirs", "*/*/*.wav", "rir", sample_rate, resample
            )
        self.noises: dict[str, Bank] = {}
        if any(noise for _, noise in self._outcomes):
            for category in _CATEGORIES:
                name = f"musan_split/{category}"
                bank = open_bank(base_path, name, "*/*.wav", "noise", sample_rate, resample)
                self._check_enough(bank, category)
                self.noises[category] = bank

    def _check_enough(self, bank: Bank, category: str) -> None:
        found, most = len(bank), self.config.num_range(category)[1]
        if found < most:
            raise DataError(
                f"{bank.folder}: {found} files found where "
                f"`dataset.augmentation.musan_{category}_num` mixes up to {most}; lower it"
            )

    def draw(self, rng: np.random.Generator, length: int) -> Draw:
        """Draw what happens to a frame of ``length`` samples: a pure function of ``rng``."""
        if rng.random() >= self.config.aug_prob:
            return Draw(length)
        reverb, noise = self._outcomes[rng.integers(len(self._outcomes))]
        return Draw(
            length,
            rir=int(rng.integers(len(self.rirs))) if reverb and self.rirs else None,
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

    def gather(self, draws: Sequence[Draw], length: int) -> Recipe:
        """Copy what ``draws`` for frames of ``length`` samples need from the banks.

        Raises ValueError for draws that were made for frames of another length.
        """
        if any(draw.length != length for draw in draws):
            raise ValueError(f"the draws are not those of frames of {length} samples")
        noises = [(row, noise) for row, draw in enumerate(draws) for noise in draw.noises]
        crops = torch.empty(len(noises), length, dtype=torch.int16)
        for crop, (_, noise) in zip(crops.numpy(), noises, strict=True):
            self.noises[noise.category].crop(noise.file, noise.offset, crop)
        rirs = [(row, draw.rir) for row, draw in enumerate(draws) if draw.rir is not None]
        return Recipe(
            rirs=self._responses([rir for _, rir in rirs], length),
            rir_rows=torch.tensor([row for row, _ in rirs], dtype=torch.int64),
            noises=crops,
            noise_rows=torch.tensor([row for row, _ in noises], dtype=torch.int64),
            snr_db=torch.tensor([noise.snr_db for _, noise in noises], dtype=torch.float32),
        )

    def _responses(self, indices: list[int], length: int) -> Tensor:
        """Room responses, (K, L); L is the same for any choice of them."""
        if not self.rirs:
            return torch.empty(0, 1)
        # What lies beyond the frame's length in a response is cut off again after convolution.
        padded = torch.empty(len(indices), min(int(self.rirs.lengths.max()), length))
        for row, index in zip(padded.numpy(), indices, strict=True):
            response = self.rirs[index][: len(row)]
            row[: len(response)] = response
            row[len(response) :] = 0
        return padded

    def __call__(self, wave: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Apply ``draws`` to the rows of ``wave`` (B, T), float32, which is left as it is.

        Raises ValueError for draws that were made for other frames.
        """
        if len(draws) != len(wave):
            raise ValueError(f"{len(draws)} draws do not fit a batch of {len(wave)} frames")
        return self.gather(draws, wave.shape[1]).to(wave.device).apply(wave)


def reverberate(wave: Tensor, rirs: Tensor) -> Tensor:
    """Convolve each row of ``wave`` (N, T) with its row of ``rirs`` (N, L), cut to (N, T).

    The direct path's delay stays in, and the level is what the response makes of it.
    """
    count, length = wave.shape
    if count % 2:  # MKL transforms rows in pairs, and rounds the last of an odd number otherwise
        wave, rirs = F.pad(wave, (0, 0, 0, 1)), F.pad(rirs, (0, 0, 0, 1))
    size = fft_size(length + rirs.shape[1] - 1)  # room for the full convolution: none wraps
    spectrum, responses = torch.fft.rfft(wave, size), torch.fft.rfft(rirs, size)
    # In two parts, because each is then multiplied row by row. As a whole it would be one long row,
    # whose last few values, after the last full vector of the processor, are rounded otherwise.
    spectrum[:, :-1] *= responses[:, :-1]
    spectrum[:, -1:] *= responses[:, -1:]
    return torch.fft.irfft(spectrum, size)[:count, :length]


def mix(wave: Tensor, noises: Tensor, rows: Tensor, snr_db: Tensor) -> Tensor:
    """Add each of ``noises`` (M, T) to row ``rows`` (M,) of ``wave`` (B, T) at ``snr_db`` (M,).

    The SNR is between the row as given and that noise alone, whatever else is added to the row.
    """
    wave_db, noise_db = _power_db(wave)[rows], _power_db(noises)
    gains = 10 ** ((wave_db - noise_db - snr_db) / 20)  # (M,)
    return wave.index_add(0, rows, noises * gains[:, None])


def _power_db(wave: Tensor) -> Tensor:
    mean_square = torch.linalg.vector_norm(wave, dim=1).square() / wave.shape[1]
    return 10 * torch.log10(mean_square + _POWER_FLOOR)


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker, so that sums are rounded alike where there are no workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
