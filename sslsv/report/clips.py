"""Short clips of the files in the hardest pairs, as data URIs that a browser plays."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sslsv.audio import SAMPLE_RATE, AudioFile
from sslsv.errors import DataError, listing
from sslsv.report.runs import HARDEST, Findings, Missing

SECONDS = 3  # of a clip, from the start of the file
LIMIT_MB = 20.0  # of all clips, in the page


def clips(found_by: Findings, base_path: Path, limit_mb: float, missing: Missing) -> dict[str, str]:
    """A data URI by file name. Where not all fit, systems that are shown at first come first, and
    of these the hardest pairs of all lists.

    Raises:
        DataError: ``base_path`` is no folder, or has none of the files.
    """
    if not base_path.is_dir():
        raise DataError(f"--audio: {base_path}: no such folder; give the folder of the lists")
    found: dict[str, str] = {}
    unusable: dict[str, None] = {}
    left_out: dict[str, None] = {}
    room = int(limit_mb * 1e6)
    shown = [found_by.systems[scored["system"]]["shown"] for scored in found_by.scores]
    by_turn = ([s for s, on in zip(found_by.scores, shown, strict=True) if on == t] for t in (1, 0))
    for file in chain.from_iterable(map(_hardest_first, by_turn)):
        if file in found or file in unusable or file in left_out:
            continue
        try:
            uri = clip(base_path / file)
        except DataError:
            unusable[file] = None
            continue
        if len(uri) > room:
            left_out[file] = None
            continue
        found[file] = uri
        room -= len(uri)
    if unusable and not found and not left_out:
        raise DataError(
            f"--audio: {base_path}: none of the {len(unusable)} files can be read there: "
            f"{listing(list(unusable), 3)}"
        )
    if unusable:
        text = f"{len(unusable)} files cannot be read: {listing(list(unusable), 3)}."
        missing["hardest"].append(text)
    if left_out:
        missing["hardest"].append(
            f"{len(left_out)} of {len(left_out) + len(found)} files have no clip, so that all "
            f"clips take at most {limit_mb:g} MB (--audio_mb)."
        )
    return found


def _hardest_first(scores: Sequence[dict[str, Any]]) -> Iterator[str]:
    for rank in range(HARDEST):
        for scored in scores:
            for pairs in scored["hardest"].values():
                yield from pairs[rank][1:] if rank < len(pairs) else ()


def clip(path: Path) -> str:
    """The first seconds of a file as a 16-bit WAV at 16 kHz. Raises as `AudioFile`."""
    with AudioFile(path, resample=True) as file:
        samples = file.read(0, min(file.length, SECONDS * SAMPLE_RATE))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()
