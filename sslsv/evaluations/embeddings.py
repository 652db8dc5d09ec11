"""Audio files -> one embedding each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sslsv import audio, distributed
from sslsv.datasets.loader import Loader
from sslsv.errors import DataError, UserError, listing
from sslsv.evaluations.base import Embed
from sslsv.trainer.tracking import progress_bar

MIN_SAMPLES = audio.SAMPLE_RATE // 10  # shorter files are wrapped to this


@dataclass(frozen=True)
class Extraction:
    """How files are cut and read."""

    base_path: Path
    num_frames: int = 1  # evenly spaced frames of each file
    frame_length: int | None = None  # samples; None: one frame, the whole file
    batch_size: int = 64  # files
    num_workers: int = 0
    resample: bool = False


class _Frames(Dataset):
    """A batch of files of one length -> (their indices, waveforms (B, num_frames, T))."""

    def __init__(self, files: Sequence[str], how: Extraction):
        self.files, self.how = files, how

    def __getitems__(self, indices: list[int]) -> tuple[list[int], Tensor] | UserError:
        try:
            return indices, torch.from_numpy(np.stack([self._frames(i) for i in indices]))
        except UserError as error:  # raised by the loader, in the main process
            return error

    def _frames(self, index: int) -> np.ndarray:
        how = self.how
        with audio.AudioFile(how.base_path / self.files[index], resample=how.resample) as file:
            if how.frame_length is None:
                return file.read(0, max(file.length, MIN_SAMPLES))[None]
            last = max(0, file.length - how.frame_length)
            starts = np.linspace(0, last, how.num_frames).astype(int)
            return np.stack([file.read(int(start), how.frame_length) for start in starts])


def extract(
    embed: Embed, files: Sequence[str], how: Extraction, device: torch.device
) -> np.ndarray:
    """Embeddings (len(files), D) in float32: the mean over frames of unit-length embeddings.

    Files of different lengths never share a batch, so a file's embedding does not depend on its
    neighbours. Processes share the work and all get the whole result. Raises DataError naming
    files that cannot be read or whose embedding is not finite.
    """
    batches = _batches(files, how)
    mine = batches[distributed.rank() :: distributed.world_size()]
    loader = Loader(_Frames(files, how), mine, how.num_workers)
    embeddings = torch.zeros(0)
    bar = progress_bar(len(files), "Embedding", unit="file")
    with torch.inference_mode():
        for indices, waves in loader:
            frames = waves.shape[1]
            vectors = F.normalize(embed(waves.to(device).flatten(0, 1)).float(), dim=-1)
            vectors = vectors.unflatten(0, (-1, frames)).mean(dim=1)  # (B, D)
            if not len(embeddings):
                embeddings = vectors.new_zeros(len(files), vectors.shape[-1])
            embeddings[torch.tensor(indices, device=device)] = vectors
            bar.update(len(indices) * distributed.world_size())
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
    """Indices of files that are read with the same number of samples, longest first."""
    if how.frame_length is not None:
        order = range(len(files))
        return [list(order[i : i + how.batch_size]) for i in order[:: how.batch_size]]
    lengths = [audio.probe(how.base_path / file, resample=how.resample) for file in files]
    by_length = sorted(range(len(files)), key=lambda i: -lengths[i])
    batches = []
    for _, group in groupby(by_length, key=lambda i: lengths[i]):
        same = list(group)
        batches += [same[i : i + how.batch_size] for i in range(0, len(same), how.batch_size)]
    return batches
