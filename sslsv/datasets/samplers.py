"""Which rows make up which batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from sslsv.errors import ConfigError
from sslsv.randomness import generator


class Draw(NamedTuple):
    """One sample to make: all its randomness is a pure function of the seed and these numbers."""

    epoch: int
    row: int
    second: int | None = None  # another utterance of the label, for the later views
    copy: int = 0  # tells apart the times that an epoch uses the row anew


@dataclass(kw_only=True)
class SamplerConfig:
    """Subsets, balancing and pairs of utterances by label."""

    enable: bool = True  # false: all rows, shuffled anew every epoch, as without this section
    balance: bool = False  # give every label the same share of an epoch
    nb_utterances: int | None = None  # use so many utterances, chosen once; an epoch's, if balanced
    nb_speakers: int | None = None  # use the first this many labels
    nb_samples_per_spk: int | None = None  # use at most this many utterances a label
    create_contrastive_pairs: bool = False  # views from two utterances of one label
    prevent_class_collisions: bool = False  # no label twice in a batch
    randomize_at_each_epoch: bool = False  # draw balance, pairs and order anew for every epoch

    def __post_init__(self) -> None:
        for name, least in (("nb_utterances", 1), ("nb_speakers", 1), ("nb_samples_per_spk", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: must be at least {least}, got {value}")

    @property
    def pairs(self) -> bool:
        """Whether a sample is made of two utterances."""
        return self.enable and self.create_contrastive_pairs


class Plan(NamedTuple):
    """The samples of an epoch in order, batch after batch: arrays (length * batch_size,)."""

    rows: np.ndarray
    seconds: np.ndarray | None = None
    copies: np.ndarray | None = None


class Batches(Sampler[list[Draw]]):
    """Batches of an epoch. Its number of batches is known beforehand and never changes.

    An epoch depends on (seed, epoch) alone. A global batch is the same for any number of
    processes, each of which takes its own contiguous part.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int, world_size: int):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches of this epoch that are already done

    def plan(self) -> Plan:
        """What ``self.epoch`` is made of."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[Draw]]:
        plan, epoch = self.plan(), self.epoch
        share = self.batch_size // self.world_size
        for batch in range(self.start, len(self)):
            first = batch * self.batch_size + self.rank * share
            part = slice(first, first + share)
            rows = plan.rows[part].tolist()
            seconds = repeat(None) if plan.seconds is None else plan.seconds[part].tolist()
            copies = repeat(0) if plan.copies is None else plan.copies[part].tolist()
            yield [Draw(epoch, *sample) for sample in zip(rows, seconds, copies, strict=False)]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to batch ``start`` of ``epoch``."""
        self.epoch, self.start = epoch, start

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_epoch(state["epoch"], state["start"])


class ShuffledBatches(Batches):
    """Batches of a fresh permutation each epoch; the last incomplete batch is dropped."""

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        _check_enough(rows, batch_size, "rows of the training list")
        super().__init__(rows // batch_size, batch_size, seed, rank, world_size)
        self.rows = rows

    def plan(self) -> Plan:
        return Plan(generator("order", self.seed, self.epoch).permutation(self.rows))


class LabelBatches(Batches):
    """What ``dataset.sampler`` asks for.

    Chosen once for a run, by the seed: the utterances in use (``nb_utterances`` at random; of
    these the first ``nb_speakers`` labels, and of each label the first ``nb_samples_per_spk``).
    Drawn once, or for every epoch with ``randomize_at_each_epoch``: what ``balance`` repeats or
    leaves out, the pairs (consecutive utterances of a label as the list has them, or in a fresh
    order), and the order of an epoch. Always drawn for every epoch: which samples are left out
    because they fill no batch, or because there is no batch left without their label.

    ``balance`` gives labels equal shares. An utterance comes again only once all of its label
    have come, and then with crops of its own.
    """

    def __init__(
        self,
        config: SamplerConfig,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.config = config
        self.rows = rows_in_use(config, labels, seed)  # grouped by label
        # Labels are numbered anew by their group, so that none is empty.
        _, self.starts, self.counts = np.unique(
            labels[self.rows], return_index=True, return_counts=True
        )
        # An odd utterance of a label has no partner.
        self.usable = self.counts - self.counts % 2 if config.pairs else self.counts
        samples = np.sort(self._quotas(np.random.default_rng(0)))  # the same in every epoch
        total = int(samples.sum())
        _check_enough(total, batch_size, "samples that dataset.sampler leaves")
        length = total // batch_size
        if config.prevent_class_collisions:
            length = _collision_free_length(samples, batch_size)
        super().__init__(length, batch_size, seed, rank, world_size)

    def plan(self) -> Plan:
        rng = generator(
            "label order", self.seed, self.epoch if self.config.randomize_at_each_epoch else 0
        )
        groups, places = self._samples(rng)  # group of each sample, and its place in the group
        order = rng.permutation(len(groups))
        # Only this is always another for each epoch: otherwise the same would be lost for good.
        left = generator("left out", self.seed, self.epoch).random(len(groups))
        if self.config.prevent_class_collisions:
            kept = _keep_few_of_each(groups, left, self.length, self.length * self.batch_size)
            order = order[kept[order]]
            order = _spread(order, groups, self.length, self.batch_size, rng).reshape(-1)
        else:
            order = order[_smallest(left, self.length * self.batch_size)[order]]
        groups, places = groups[order], places[order]

        rows = self._grouped_rows(rng)
        copies, places = np.divmod(places, self.usable[groups])
        starts = self.starts[groups]
        if not self.config.pairs:
            return Plan(rows[starts + places], None, copies)
        return Plan(rows[starts + places], rows[starts + (places ^ 1)], copies)

    def _samples(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        quotas = self._quotas(rng)
        groups = np.repeat(np.arange(len(quotas)), quotas)
        return groups, _place_in_group(quotas)

    def _quotas(self, rng: np.random.Generator) -> np.ndarray:
        """Samples of each label in an epoch: in another order the same numbers each time."""
        if not self.config.balance:
            return self.usable
        quotas = np.zeros_like(self.usable)
        present = np.flatnonzero(self.usable)
        if not len(present):
            return quotas
        total = self.config.nb_utterances or int(self.usable.sum())
        if self.config.nb_samples_per_spk:
            total = min(total, len(present) * self.config.nb_samples_per_spk)
        step = 2 if self.config.pairs else 1  # a pair gives two samples
        share, more = divmod(total // step, len(present))
        quotas[present] = share
        quotas[rng.permutation(present)[:more]] += 1
        return quotas * step

    def _grouped_rows(self, rng: np.random.Generator) -> np.ndarray:
        """``rows``, in a fresh order within each label where that is asked for."""
        if not (self.config.balance or self.config.randomize_at_each_epoch):
            return self.rows
        groups = np.repeat(np.arange(len(self.counts)), self.counts)
        return self.rows[np.argsort(groups + rng.random(len(groups)))]


def make_batches(
    config: SamplerConfig | None,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """The batches of a training on rows with these ``labels`` (R,)."""
    if config is None or not config.enable:
        return ShuffledBatches(len(labels), batch_size, seed, rank, world_size)
    return LabelBatches(config, labels, batch_size, seed, rank, world_size)


def _check_enough(available: int, batch_size: int, what: str) -> None:
    if available < batch_size:
        raise ConfigError(
            f"trainer.batch_size: {batch_size} is more than the {available} {what}; lower it"
        )


def rows_in_use(config: SamplerConfig | None, labels: np.ndarray, seed: int) -> np.ndarray:
    """The rows that a run may draw; with a sampler by label, and of a label as in the list."""
    rows = np.arange(len(labels))
    if config is None or not config.enable:
        return rows
    if config.nb_utterances and not config.balance:
        if config.nb_utterances > len(rows):
            raise ConfigError(
                f"dataset.sampler.nb_utterances: {config.nb_utterances} is more than the "
                f"{len(rows)} rows of the training list; lower it"
            )
        rows = np.sort(
            generator("utterances", seed).choice(rows, config.nb_utterances, replace=False)
        )
    rows = rows[np.argsort(labels[rows], kind="stable")]
    _, groups, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    keep = np.ones(len(rows), dtype=bool)
    if config.nb_speakers:
        keep &= groups < config.nb_speakers
    if config.nb_samples_per_spk:
        keep &= _place_in_group(counts) < config.nb_samples_per_spk
    return rows[keep]


def _place_in_group(counts: np.ndarray) -> np.ndarray:
    """0 … n-1 for each n of ``counts``, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Marks the ``count`` smallest of ``values``."""
    marks = np.zeros(len(values), dtype=bool)
    marks[np.argpartition(values, count - 1)[:count]] = True
    return marks


def _collision_free_length(samples: np.ndarray, batch_size: int) -> int:
    """Most batches in which no label stands twice, for ``samples`` of each label.

    L batches can be filled exactly if at most L samples of each label suffice for them.
    """
    labels = int(np.count_nonzero(samples))
    if labels < batch_size:
        raise ConfigError(
            f"dataset.sampler.prevent_class_collisions: a batch of {batch_size} needs as many "
            f"labels and there are {labels}; lower trainer.batch_size to {labels} or less"
        )
    possible, impossible = 1, int(samples.sum()) // batch_size + 1
    while impossible - possible > 1:
        length = (possible + impossible) // 2
        if np.minimum(samples, length).sum() >= length * batch_size:
            possible = length
        else:
            impossible = length
    return possible


def _keep_few_of_each(groups: np.ndarray, left: np.ndarray, most: int, total: int) -> np.ndarray:
    """Marks ``total`` samples, at most ``most`` of a group; those with small ``left`` come first.

    ``groups`` are sorted.
    """
    place = np.empty(len(groups), dtype=np.int64)
    counts = np.bincount(groups)
    place[np.argsort(groups + left)] = _place_in_group(counts)
    return _smallest(np.where(place < most, left, 2.0), total)


def _spread(
    order: np.ndarray, groups: np.ndarray, length: int, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Batches (length, batch_size) of the samples ``order``, without a group twice in any.

    There are exactly ``length * batch_size``, and at most ``length`` of a group. Dealt out like
    cards, group after group, those of one group all land in different batches. But groups that
    follow each other meet in batch after batch, so batches are mixed two by two: their samples
    sorted by group, every other one goes to the first; a group that both had lies side by side
    there and is parted. A round halves the chance that two samples which were together still are.
    """
    count = len(groups) and int(groups[-1]) + 1
    number = rng.permutation(count).astype(np.int32)
    dealt = order[np.argsort(number[groups[order]], kind="stable")]
    batches = dealt.reshape(batch_size, length).T.astype(np.int32)
    largest = int(np.bincount(groups[order]).max())
    half = length // 2
    for _ in range(largest.bit_length() + 2):
        number = rng.permutation(count).astype(np.int32)
        batches = batches[rng.permutation(length)]
        two = np.concatenate((batches[:half], batches[half : 2 * half]), axis=1)
        two = np.take_along_axis(two, np.argsort(number[groups[two]], axis=1), axis=1)
        batches[:half], batches[half : 2 * half] = two[:, 0::2], two[:, 1::2]
    return rng.permuted(batches[rng.permutation(length)], axis=1)
