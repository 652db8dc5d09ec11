"""Audio files -> one embedding each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sslsv import audio, distributed
from sslsv.datasets.loader import Loader
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import DataError, UserError, listing
from sslsv.evaluations.base import Embed, TaskConfig
from sslsv.evaluations.cache import EmbeddingCache
from sslsv.evaluations.conditions import Condition
from sslsv.trainer.tracking import progress_bar

MIN_SAMPLES = audio.SAMPLE_RATE // 10  # shorter files are wrapped to this
MEAN_SAMPLES = 4 * audio.SAMPLE_RATE  # of whole files in a full batch, padding included
LEAST_FILLED = 0.8  # of the longest file in a batch, the length of the shortest


@dataclass(frozen=True)
class Extraction:
    """How files are cut and read."""

    base_path: Path
    num_frames: int = 1  # evenly spaced frames of each file
    frame_length: int | None = None  # samples; None: one frame, the whole file
    batch_size: int = 64  # files; fewer whole files where they are longer than 4 s
    num_workers: int = 0
    resample: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder
    condition: Condition | None = None  # what whole files go through before they are cut

    @classmethod
    def of(
        cls, config: TaskConfig, dataset: DatasetConfig, condition: Condition | None = None
    ) -> Extraction:
        """As a task and the dataset section say."""
        return cls(
            base_path=dataset.base_path,
            num_frames=config.num_frames,
            frame_length=config.frame_length,
            batch_size=config.batch_size,
            num_workers=dataset.num_workers,
            resample=dataset.resample,
            precision=config.precision,
            condition=condition,
        )

    def about(self) -> dict[str, Any]:
        """What an embedding depends on, beside the model and the file; for JSON."""
        return {
            "base_path": os.path.realpath(self.base_path),
            "num_frames": 1 if self.frame_length is None else self.num_frames,
            "frame_length": self.frame_length,
            "resample": self.resample,
            "precision": self.precision,
            "condition": self.condition.version if self.condition else None,
        }


@dataclass(frozen=True)
class _Waves:
    """What a worker reads: frames of files (B, num_frames, T), zeros after the end of a file."""

    indices: list[int]  # of the files
    waves: Tensor
    lengths: list[int] | None  # (B,) samples; None: all of T


class _Frames(Dataset):
    """Indices of files -> their waveforms."""

    def __init__(self, files: Sequence[str], how: Extraction):
        self.files, self.how = files, how

    def __getitems__(self, indices: list[int]) -> _Waves | UserError:
        try:
            frames = [self._frames(i) for i in indices]
        except UserError as error:  # raised by the loader, in the main process
            return error
        lengths = [x.shape[1] for x in frames]
        waves = np.zeros((len(frames), len(frames[0]), max(lengths)), np.float32)
        for row, x in zip(waves, frames, strict=True):
            row[:, : x.shape[1]] = x
        padded = min(lengths) < max(lengths)
        return _Waves(indices, torch.from_numpy(waves), lengths if padded else None)

    def _frames(self, index: int) -> np.ndarray:
        how, name = self.how, self.files[index]
        with audio.AudioFile(how.base_path / name, resample=how.resample) as file:
            if how.condition is None:
                return self._cut(file.read, file.length)
            wave = how.condition(file.read(0, file.length), name)
        return self._cut(partial(_crop, wave), len(wave))

    def _cut(self, read: Callable[[int, int], np.ndarray], length: int) -> np.ndarray:
        """Frames (num_frames, T) of what ``read(start, frames)`` gives, of ``length`` samples."""
        how = self.how
        if how.frame_length is None:
            return read(0, max(length, MIN_SAMPLES))[None]
        starts = np.linspace(0, max(0, length - how.frame_length), how.num_frames).astype(int)
        return np.stack([read(int(start), how.frame_length) for start in starts])


def _crop(wave: np.ndarray, start: int, frames: int) -> np.ndarray:
    """``frames`` samples of a wave that starts again past its end."""
    crop = wave[start : start + frames]
    return np.concatenate((crop, np.resize(wave, frames - len(crop))))


def extract(
    embed: Embed, files: Sequence[str], how: Extraction, device: torch.device
) -> np.ndarray:
    """Embeddings (len(files), D) in float32: the mean over frames of unit-length embeddings.

    Whole files share batches of similar length, with padding of which ``embed`` is told, so that a
    file's embedding does not depend on its neighbours. Processes share the work and all get the
    whole result. What an ``embed`` with a cache (`CachedEmbed`) has given before comes from there.
    Raises DataError naming files that cannot be read or whose embedding is not finite.

    Memory: of whole files a batch holds ``batch_size`` times 4 s, or a single longer file.
    """
    cache: EmbeddingCache | None = getattr(embed, "cache", None)
    if cache is None:
        return _extract(embed, files, how, device)
    return cache.complete(
        files, how.base_path, how.about(), device, lambda rest: _extract(embed, rest, how, device)
    )


def _extract(
    embed: Embed, files: Sequence[str], how: Extraction, device: torch.device
) -> np.ndarray:
    batches = _batches(files, how)
    mine = batches[distributed.rank() :: distributed.world_size()]
    loader = Loader(_Frames(files, how), mine, how.num_workers)
    embeddings = torch.zeros(0)
    bar = progress_bar(len(files), "Embedding", unit="file")
    with torch.inference_mode():
        for batch in loader:
            frames = batch.waves.shape[1]  # 1 where files are padded
            with torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bf16"):
                vectors = embed(batch.waves.to(device).flatten(0, 1), batch.lengths)
            vectors = F.normalize(vectors.float(), dim=-1)
            vectors = vectors.unflatten(0, (-1, frames)).mean(dim=1)  # (B, D)
            if not len(embeddings):
                embeddings = vectors.new_zeros(len(files), vectors.shape[-1])
            embeddings[torch.tensor(batch.indices, device=device)] = vectors
            bar.update(len(batch.indices) * distributed.world_size())
    bar.close()
    if distributed.world_size() > 1:
        width = max(distributed.gather_objects(embeddings.shape[-1]))
        if not len(embeddings):  # fewer batches than processes
            embeddings = torch.zeros(len(files), width, device=device)
        embeddings = distributed.reduce_sum(embeddings)
    bad = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"the embeddings of {len(bad)} files are not finite: "
            + listing([files[i] for i in bad])
        )
    return embeddings.cpu().numpy()


def _batches(files: Sequence[str], how: Extraction) -> list[list[int]]:
    """Indices of the files of each batch."""
    if how.frame_length is not None:
        order = range(len(files))
        return [list(order[i : i + how.batch_size]) for i in order[:: how.batch_size]]
    lengths = [audio.probe(how.base_path / file, resample=how.resample) for file in files]
    if how.condition:
        lengths = [how.condition.length(length) for length in lengths]
    return bucketed([max(length, MIN_SAMPLES) for length in lengths], how.batch_size)


def bucketed(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of ``lengths`` in batches of similar ones, longest first: what does not fit into
    memory fails at once.

    A batch has at most ``batch_size`` rows and, padded, ``batch_size * MEAN_SAMPLES`` samples (or
    one row); at most a share of ``1 - LEAST_FILLED`` of it is padding.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            longest = lengths[batches[-1][0]]
            room = min(batch_size, batch_size * MEAN_SAMPLES // longest)
            if len(batches[-1]) < room and lengths[i] >= LEAST_FILLED * longest:
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches
