"""An utterance -> views: random crops of their true length, each with its own augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslsv import audio
from sslsv.datasets.augmentation import Augmentation, AugmentationConfig, Recipe, one_thread
from sslsv.datasets.manifest import Manifest
from sslsv.datasets.samplers import Draw, SamplerConfig, rows_in_use
from sslsv.errors import ConfigError, DataError, UserError
from sslsv.randomness import generator

_AS_IT_IS = Fraction(1)  # speed
_SUBSTITUTES = 10  # utterances tried in place of one that cannot be used


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
    wrap_length: int | None = None  # samples; shorter audio goes round to this, crops overlap less
    resample: bool = False  # convert audio of another rate; false: refuse it
    on_error: Literal["raise", "skip"] = "raise"  # unusable audio: stop, or take another utterance

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
        for name in ("max_samples", "wrap_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
        if self.pairs and not self.ssl:
            raise ConfigError(
                "sampler.create_contrastive_pairs: pairs need several views of a sample; "
                "set dataset.ssl: true"
            )
        if self.pairs and self.ssps:
            raise ConfigError(
                "ssps: has no reference view where dataset.sampler.create_contrastive_pairs takes "
                "views from two utterances; set one of them to false"
            )

    @property
    def pairs(self) -> bool:
        """Whether the views of a sample come from two utterances of one label."""
        return self.sampler is not None and self.sampler.pairs

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
        if self.pairs:
            first = 1 if self.sampling == "siamese" else 2
            views[first:] = [replace(view, second=True) for view in views[first:]]
        if self.ssps:
            views.append(View(self.ssps_frame_length, augmented=False))
        return views


@dataclass(frozen=True)
class View:
    """One crop to take."""

    samples: int
    augmented: bool = True
    second: bool = False  # from the second utterance of a pair


class Skipped(NamedTuple):
    """An utterance that was to be used and could not be."""

    row: int
    reason: str


@dataclass
class Batch:
    """N samples. ``views[v]`` is (N, T_v) float32; rows and labels are (N,) int64."""

    rows: Tensor  # row of each sample in the training list; of a pair, the first one
    labels: Tensor
    views: list[Tensor]
    skipped: list[Skipped] = field(default_factory=list)  # met while the batch was made
    recipes: list[Recipe | None] | None = None  # what is to be added to each view; None: nothing

    def to(self, device: torch.device) -> Batch:
        """Copy to ``device``, without waiting where memory is pinned. ``rows`` stay on the host."""
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            views=[view.to(device, non_blocking=True) for view in self.views],
            recipes=self.recipes and [recipe and recipe.to(device) for recipe in self.recipes],
        )

    def on_device(self) -> list[Tensor]:
        """What ``to`` copies."""
        recipes = [recipe for recipe in self.recipes or [] if recipe]
        return [self.labels, *self.views, *(x for recipe in recipes for x in vars(recipe).values())]

    def parts(self, count: int) -> list[Batch]:
        """``count`` batches of as many rows each, one after the other; N is a multiple."""
        assert self.recipes is None
        pieces = zip(
            self.rows.chunk(count),
            self.labels.chunk(count),
            zip(*(view.chunk(count) for view in self.views), strict=True),
            strict=True,
        )
        return [Batch(rows, labels, list(views)) for rows, labels, views in pieces]

    def pin_memory(self) -> Batch:
        return replace(
            self,
            labels=self.labels.pin_memory(),
            views=[view.pin_memory() for view in self.views],
            recipes=self.recipes and [recipe and recipe.pin_memory() for recipe in self.recipes],
        )

    def augmented(self) -> Batch:
        """With the recipes applied, on the device where the views are."""
        if self.recipes is None:
            return self
        views = [
            recipe.apply(view) if recipe else view
            for view, recipe in zip(self.views, self.recipes, strict=True)
        ]
        return replace(self, views=views, recipes=None)


class _Unusable(Exception):
    """Which row of a sample, and why."""

    def __init__(self, row: int, error: DataError):
        self.row, self.error = row, error


class SpeechDataset(Dataset):
    """Reads and augments whole batches; one call of ``__getitems__`` in a worker makes a Batch.

    With ``augment_later`` only the sounds that augmentation needs are read here, and a batch's
    ``augmented`` does the rest where it is wanted: on the device of the training.
    """

    def __init__(
        self, manifest: Manifest, config: DatasetConfig, seed: int, augment_later: bool = False
    ):
        self.manifest = manifest
        self.views = config.views()
        self.seed = seed
        self.resample = config.resample
        self.wrap_length = config.wrap_length or 0
        self.skip = config.on_error == "skip"
        self.sampler = config.sampler if config.sampler and config.sampler.enable else None
        self.augment_later = augment_later
        self.augmentation: Augmentation | None = None
        self.speeds: list[Fraction] = []
        if config.augmentation and config.augmentation.enable:
            factors = config.augmentation.speed_perturb or []
            self.speeds = [Fraction(factor).limit_denominator(100) for factor in factors]
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
            with one_thread():
                batch = self._read(draws)
                return batch if self.augment_later else batch.augmented()
        except UserError as error:
            return error

    def _read(self, draws: Sequence[Draw]) -> Batch:
        views = [np.empty((len(draws), view.samples), np.float32) for view in self.views]
        generators: list[list[np.random.Generator]] = [[] for _ in views]
        rows, skipped = [], []
        for i, draw in enumerate(draws):
            used, met = self._read_sample(draw, [view[i] for view in views], generators)
            rows.append(used.row)
            skipped += met
        index = torch.tensor(rows)
        return Batch(
            index,
            torch.from_numpy(self.manifest.labels)[index],
            [torch.from_numpy(view) for view in views],
            skipped,
            self._recipes(generators),
        )

    def _recipes(self, generators: list[list[np.random.Generator]]) -> list[Recipe | None] | None:
        """What is to be added to each view, from the generators that chose its crops."""
        augmentation = self.augmentation
        if augmentation is None:
            return None
        recipes: list[Recipe | None] = []
        for view, its in zip(self.views, generators, strict=True):
            draws = [augmentation.draw(rng, view.samples) for rng in its] if view.augmented else []
            recipes.append(augmentation.gather(draws, view.samples) if view.augmented else None)
        return recipes

    def _read_sample(
        self, draw: Draw, crops: list[np.ndarray], generators: list[list[np.random.Generator]]
    ) -> tuple[Draw, list[Skipped]]:
        """Fill ``crops`` and append to ``generators``, both of each view, with ``draw``'s.

        Where ``draw`` cannot be used and that may be, another one is; gives the one that was,
        and what could not be.
        """
        skipped: list[Skipped] = []
        used, rng = draw, None
        while True:
            try:
                own = self._read_crops(used, crops)
                break
            except _Unusable as unusable:
                if not self.skip:
                    raise unusable.error from None
                skipped.append(Skipped(unusable.row, str(unusable.error)))
            if len(skipped) > _SUBSTITUTES:
                raise DataError(
                    f"{skipped[0].reason} (dataset.on_error: skip, but none of {_SUBSTITUTES} "
                    f"others can be used either; the last is {skipped[-1].reason})"
                )
            rng = rng or generator("substitute", self.seed, draw.epoch, draw.row, draw.copy)
            near = self.sampler is not None and len(skipped) <= _SUBSTITUTES // 2
            used = self._substitute(used, [row for row, _ in skipped], near, rng)
            # Not the crops that the row has where it stands itself.
            used = used._replace(copy=len(self.manifest) + draw.row)
        for mine, its in zip(generators, own, strict=True):
            mine.append(its)
        return used, skipped

    def _read_crops(self, draw: Draw, crops: list[np.ndarray]) -> list[np.random.Generator]:
        """Fill ``crops``, one of each view; gives the generators, for the draws that follow."""
        second = draw.row if draw.second is None else draw.second
        rows = [second if view.second else draw.row for view in self.views]
        first = draw.copy * len(rows)  # a copy's views are numbered on
        generators = [
            generator("sample", self.seed, draw.epoch, row, v)
            for v, row in enumerate(rows, start=first)
        ]
        speed = self._speed(draw)
        sources = [
            (row, speed if view.augmented else _AS_IT_IS)
            for row, view in zip(rows, self.views, strict=True)
        ]
        for source in dict.fromkeys(sources):
            row, speed = source
            path = self.manifest.base_path / self.manifest.file(row)
            try:
                with audio.AudioFile(path, resample=self.resample, speed=speed) as file:
                    for crop, rng, its in zip(crops, generators, sources, strict=True):
                        if its == source:
                            span = max(file.length, self.wrap_length)
                            start = int(rng.integers(max(0, span - len(crop)) + 1))
                            crop[:] = file.read(start % file.length, len(crop))
            except DataError as error:
                raise _Unusable(row, error) from None
        return generators

    def _speed(self, draw: Draw) -> Fraction:
        """At which speed the augmented views of a sample are read."""
        if not self.speeds:
            return _AS_IT_IS
        rng = generator("speed", self.seed, draw.epoch, draw.row, draw.copy)
        return self.speeds[rng.integers(len(self.speeds))]

    def _substitute(self, draw: Draw, bad: list[int], near: bool, rng: np.random.Generator) -> Draw:
        """What takes the place of ``draw``, of which the last of ``bad`` cannot be used.

        ``near`` is by another utterance of the label, if there is one, so that what the sampler
        promises about labels stays true; the partner in a pair stays.
        """
        pair = [draw.row] if draw.second is None else [draw.row, draw.second]
        others: np.ndarray | list[int] = []
        if near:
            others = self._rows_of_label(draw.row, but=[*bad, *pair])
        partner = [row for row in pair if row != bad[-1]]
        if len(others):
            pair[pair.index(bad[-1])] = int(rng.choice(others))
            return Draw(draw.epoch, *pair)
        if near and partner:  # all views from the one that is left
            return Draw(draw.epoch, partner[0])
        row = int(rng.choice(self._rows_in_use))
        if draw.second is not None:
            others = self._rows_of_label(row, but=[row])
        return Draw(draw.epoch, row, int(rng.choice(others)) if len(others) else None)

    @cached_property
    def _rows_in_use(self) -> np.ndarray:
        return rows_in_use(self.sampler, self.manifest.labels, self.seed)

    def _rows_of_label(self, row: int, but: list[int]) -> np.ndarray:
        labels, rows = self.manifest.labels, self._rows_in_use
        return np.setdiff1d(rows[labels[rows] == labels[row]], but)
