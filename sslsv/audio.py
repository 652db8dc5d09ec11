"""Audio files in and out: mono float32, crops read by seeking, one sample rate.

Positions and lengths count samples at the rate that was asked for, whatever the file's own rate.
"""

from __future__ import annotations

import math
import os
import struct
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
import soundfile as sf

from sslsv.errors import DataError, UserError
from sslsv.files import atomic_write

SAMPLE_RATE = 16000  # Hz; what everything works at unless told otherwise

# Of torchaudio.functional.resample; they decide how far a crop must be read beyond its ends.
_LOWPASS_WIDTH = 6
_ROLLOFF = 0.99


_HEADER = 512  # bytes in which the samples of a plain WAV begin


class _PlainWav:
    """Mono 16-bit PCM in a RIFF file, read as ``soundfile.SoundFile`` would in a third of the time.

    ValueError for any other file, and for one whose header is not true: those are libsndfile's.
    """

    channels = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        try:
            self._parse(self._file.read(_HEADER), os.fstat(self._file.fileno()).st_size)
        except (OSError, ValueError, struct.error):
            self._file.close()
            raise

    def _parse(self, header: bytes, file_size: int) -> None:
        if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
            raise ValueError("not RIFF")
        place, self.samplerate = 12, 0
        while True:
            kind, size = struct.unpack_from("<4sI", header, place)
            place += 8
            if kind == b"data":
                break
            if kind == b"fmt ":
                code, channels, self.samplerate, _, _, bits = struct.unpack_from(
                    "<HHIIHH", header, place
                )
                if (code, channels, bits) != (1, 1, 16):
                    raise ValueError("not mono 16-bit PCM")
            place += size + size % 2
        if not self.samplerate or not size or size % 2 or place + size > file_size:
            raise ValueError("not a true header")
        self._first, self.frames, self._position = place, size // 2, 0

    def tell(self) -> int:
        return self._position

    def seek(self, frame: int) -> None:
        self._position = frame

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """(frames, 1) float32 in [-1, 1); fewer where the file became shorter meanwhile."""
        samples = np.empty(frames, "<i2")
        self._file.seek(self._first + 2 * self._position)
        samples = samples[: (self._file.readinto(samples.data) or 0) // 2]
        self._position += len(samples)
        return np.multiply(samples, np.float32(1 / 32768), dtype=np.float32)[:, None]

    def close(self) -> None:
        self._file.close()


class AudioFile:
    """An open audio file from which crops are read without decoding the rest of it.

    With ``resample`` a file at another rate is read as if it had been resampled as a whole. At
    ``speed`` 1.1 it is one that is played faster by that, and so sounds higher.
    Raises DataError, naming the file, when it is missing, unreadable, empty or at a wrong rate.

    Attributes:
        length: samples in the file, at ``sample_rate`` and ``speed``.
        file_rate, channels: the file's own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int = SAMPLE_RATE,
        resample: bool = False,
        speed: Fraction = Fraction(1),
    ) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._check(sample_rate, resample)
        except DataError:
            self.close()
            raise
        self.file_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        source, ours = self.file_rate * speed.numerator, sample_rate * speed.denominator
        divisor = math.gcd(source, ours)
        self._source_step = source // divisor  # so many samples of the file ...
        self._step = ours // divisor  # ... last as long as so many of ours
        self.length: int = -(-self._file.frames * self._step // self._source_step)

    def _check(self, sample_rate: int, resample: bool) -> None:
        if self._file.frames == 0:
            raise DataError(f"{self.path}: the audio is empty; remove the file from the list")
        if self._file.frames > 1 << 48:  # how libsndfile reports a stream of unknown length
            raise DataError(f"{self.path}: the header gives no length; re-encode the file")
        if self._file.samplerate != sample_rate and not resample:
            raise DataError(
                f"{self.path}: the sample rate is {self._file.samplerate} Hz where "
                f"{sample_rate} Hz is expected; set `dataset.resample: true` or convert the file"
            )

    def read(self, start: int, frames: int) -> np.ndarray:
        """Read ``frames`` samples from ``start`` (0 <= start < length) as float32, (frames,).

        Past its end the audio starts again, so that a short file is repeated to the length
        needed. Raises DataError when the samples cannot be decoded or are not finite.
        """
        if not 0 <= start < self.length:
            raise ValueError(f"start must be in [0, {self.length}), got {start}")
        tail = self._segment(start, min(frames, self.length - start))
        missing = frames - len(tail)
        if missing == 0:
            return tail
        head = tail if start == 0 else self._segment(0, min(missing, self.length))
        return np.concatenate((tail, np.resize(head, missing)))  # resize repeats circularly

    def _segment(self, start: int, frames: int) -> np.ndarray:
        """Read samples that all lie inside the file."""
        if self._step == self._source_step:
            return self._decode(start, frames)
        import torch

        # The filter's phase repeats every `_step` samples of ours, so whole blocks are read:
        # those of the crop, and on each side as many as the filter reaches.
        reach = _LOWPASS_WIDTH / (min(self._source_step, self._step) * _ROLLOFF)
        margin = math.ceil(reach + 1 / self._source_step)
        first = max(0, start // self._step - margin)
        last = (start + frames - 1) // self._step + 1 + margin
        begin = first * self._source_step
        end = min(last * self._source_step, self._file.frames)
        wave = (
            torchaudio()
            .functional.resample(
                torch.from_numpy(self._decode(begin, end - begin)),
                self._source_step,
                self._step,
                lowpass_filter_width=_LOWPASS_WIDTH,
                rolloff=_ROLLOFF,
            )
            .numpy()
        )
        offset = start - first * self._step
        return wave[offset : offset + frames]

    def _decode(self, start: int, frames: int) -> np.ndarray:
        """Read samples at the file's own rate."""
        try:
            if self._file.tell() != start:
                self._file.seek(start)
            channels = self._file.read(frames, dtype="float32", always_2d=True)
        except sf.SoundFileError as error:
            raise DataError(
                f"{self.path}: decoding fails ({_reason(error)}); remove or re-encode the file"
            ) from error
        if len(channels) < frames:
            raise DataError(
                f"{self.path}: the audio ends before the length in its header; "
                "remove or re-encode the file"
            )
        wave = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
        if not np.isfinite(wave).all():
            raise DataError(
                f"{self.path}: there are NaN or infinite samples; remove or re-encode the file"
            )
        return wave

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._file.close()

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def probe(
    path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE, resample: bool = False
) -> int:
    """Length of a file in samples at ``sample_rate``, from its header. Raises as AudioFile."""
    with AudioFile(path, sample_rate, resample) as audio:
        return audio.length


def read(
    path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE, resample: bool = False
) -> np.ndarray:
    """Read a whole file as mono float32, (T,). Raises as AudioFile and its ``read``."""
    with AudioFile(path, sample_rate, resample) as audio:
        return audio.read(0, audio.length)


def write(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a wave (T,) in [-1, 1] as 16-bit PCM, in the format of the extension (.wav, .flac).

    The file appears complete or not at all. What was read from 16-bit audio is written back
    exactly; values beyond the range are clipped. Raises DataError for an unknown format, for
    samples that are not finite; UserError where the file cannot be written.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise ValueError(f"expected floats of shape (T,), got {wave.dtype} {wave.shape}")
    target = Path(path)
    if not sf.check_format(target.suffix[1:], "PCM_16"):
        raise DataError(f"{path}: cannot write this format; name the file .wav or .flac")
    if not np.isfinite(wave).all():
        raise DataError(f"{path}: not written, there are NaN or infinite samples")
    # Scaled by what reading divides by; soundfile's own conversion uses 32767 and rounds down.
    samples = np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)
    with atomic_write(target) as file:
        sf.write(file, samples, sample_rate, subtype="PCM_16", format=target.suffix[1:])


def torchaudio() -> ModuleType:
    """The module torchaudio, imported when first needed.

    A CPU-only build of torch beside the registry's torchaudio does not load; UserError says so.
    """
    try:
        import torchaudio as module
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"torchaudio does not load beside the installed torch ({reason[0] if reason else ''}); "
            "install matching builds of both: pip install torch==2.11.0 torchaudio==2.11.0"
        ) from None
    return module


def _open(path: str | os.PathLike[str]) -> sf.SoundFile | _PlainWav:
    try:
        return _PlainWav(path)
    except (OSError, ValueError, struct.error):
        pass
    try:
        return sf.SoundFile(path)
    except (sf.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
        if not os.path.exists(path):
            raise DataError(f"{path}: file not found") from error
        raise DataError(
            f"{path}: cannot be read as audio ({_reason(error)}); convert the file to WAV or FLAC"
        ) from error


def _reason(error: Exception) -> str:
    """The library's own words, without the path that it may put before them."""
    if isinstance(error, sf.LibsndfileError):
        text = error.error_string
    else:
        text = getattr(error, "strerror", None) or str(error)
    return text.strip().rstrip(".")
