"""An utterance -> views: random crops of their true length, each with its own augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslsv import audio
from sslsv.datasets.augmentation import Augmentation, AugmentationConfig
from sslsv.datasets.manifest import Manifest
from sslsv.datasets.samplers import Draw, SamplerConfig
from sslsv.errors import ConfigError, UserError
from sslsv.randomness import generator


@dataclass(kw_only=True)
class DatasetConfig:
    """YAML section ``dataset``."""

    ssl: bool = False  # several views of each utterance; false: one labelled crop
    ssl_dino_global_count: int = 2  # long crops where frame_sampling is dino
    ssl_dino_global_length: int = 64000  # samples
    ssl_dino_local_count: int = 4  # short crops
    ssl_dino_local_length: int = 32000  # samples
    ssps: bool = False  # append a clean reference crop
    ssps_frame_length: int = 64000  # samples
    augmentation: AugmentationConfig | None = None
    sampler: SamplerConfig | None = None
    frame_length: int = 32000  # samples of a crop
    frame_sampling: Literal["default", "dino"] = "default"  # two equal crops, or long and short
    max_samples: int | None = None  # use only the first rows of the list
    train: str = "voxceleb2_train.csv"  # training list, below base_path
    label_key: str = "Speaker"  # column of the training list that holds the labels
    base_path: Path = field(default_factory=lambda: Path("data"))  # root of lists and audio
    num_workers: int = 8  # processes that read audio, for each training process
    pin_memory: bool = True  # page-locked batches, faster to copy to a GPU
    resample: bool = False  # convert audio of another rate; false: refuse it

    def __post_init__(self) -> None:
        at_least = {
            "ssl_dino_global_count": 1,
            "ssl_dino_global_length": 1,
            "ssl_dino_local_count": 0,
            "ssl_dino_local_length": 1,
            "ssps_frame_length": 1,
            "frame_length": 1,
            "num_workers": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples: must be at least 1, got {self.max_samples}")

    @property
    def sampling(self) -> Literal["single", "siamese", "multicrop"]:
        """Which kind of views the dataset gives."""
        if not self.ssl:
            return "single"
        return "siamese" if self.frame_sampling == "default" else "multicrop"

    def lengths(self) -> dict[str, int]:
        """The crop lengths in use, by field, in samples."""
        names = ["frame_length"]
        if self.sampling == "multicrop":
            names = ["ssl_dino_global_length"]
            names += ["ssl_dino_local_length"] if self.ssl_dino_local_count else []
        names += ["ssps_frame_length"] if self.ssps else []
        return {name: getattr(self, name) for name in names}

    def views(self) -> list[View]:
        """The views of one sample, in order."""
        if self.sampling == "multicrop":
            views = [View(self.ssl_dino_global_length)] * self.ssl_dino_global_count
            views += [View(self.ssl_dino_local_length)] * self.ssl_dino_local_count
        else:
            views = [View(self.frame_length)] * (2 if self.ssl else 1)
        if self.ssps:
            views.append(View(self.ssps_frame_length, augmented=False))
        return views


@dataclass(frozen=True)
class View:
    """One crop to take."""

    samples: int
    augmented: bool = True


@dataclass
class Batch:
    """N samples. ``views[v]`` is (N, T_v) float32; rows and labels are (N,) int64."""

    rows: Tensor  # row of each sample in the training list
    labels: Tensor
    views: list[Tensor]

    def to(self, device: torch.device) -> Batch:
        """Copy to ``device``, without waiting where memory is pinned. ``rows`` stay on the host."""
        views = [view.to(device, non_blocking=True) for view in self.views]
        return Batch(self.rows, self.labels.to(device, non_blocking=True), views)

    def pin_memory(self) -> Batch:
        views = [view.pin_memory() for view in self.views]
        return Batch(self.rows, self.labels.pin_memory(), views)


class SpeechDataset(Dataset):
    """Reads and augments whole batches; one call of ``__getitems__`` in a worker makes a Batch."""

    def __init__(self, manifest: Manifest, config: DatasetConfig, seed: int):
        self.manifest = manifest
        self.views = config.views()
        self.seed = seed
        self.resample = config.resample
        self.augmentation: Augmentation | None = None
        if config.augmentation and config.augmentation.enable:
            self.augmentation = Augmentation(
                config.augmentation, config.base_path, resample=config.resample
            )

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, draw: Draw) -> Batch | UserError:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> Batch | UserError:
        """The batch for ``draws``. A UserError is returned, not raised: the loader raises it in
        the main process, where it is one sentence and not a worker's traceback."""
        try:
            with _one_thread():
                return self._read(draws)
        except UserError as error:
            return error

    def _read(self, draws: Sequence[Draw]) -> Batch:
        views = [np.empty((len(draws), view.samples), np.float32) for view in self.views]
        generators = [
            [generator("sample", self.seed, d.epoch, d.row, v) for d in draws]
            for v in range(len(views))
        ]
        for i, draw in enumerate(draws):
            path = self.manifest.base_path / self.manifest.file(draw.row)
            with audio.AudioFile(path, resample=self.resample) as file:
                for v, view in enumerate(self.views):
                    room = max(0, file.length - view.samples)
                    start = int(generators[v][i].integers(room + 1))
                    views[v][i] = file.read(start, view.samples)
        tensors = [torch.from_numpy(view) for view in views]
        if self.augmentation:
            for v, view in enumerate(self.views):
                if view.augmented:
                    plan = [self.augmentation.draw(rng, view.samples) for rng in generators[v]]
                    tensors[v] = self.augmentation(tensors[v], plan)
        rows = torch.tensor([draw.row for draw in draws])
        return Batch(rows, torch.from_numpy(self.manifest.labels)[rows], tensors)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker, so that sums are rounded alike where there are no workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
