"""Held-out speakers: validation trials made from the training list.

Some labels leave the training with all their rows, and trials are drawn from their utterances. The
labels serve to choose a model only, never to train it. Who wants a self-supervised run to use no
labels at all tracks a signal that needs none: ``trainer.tracked_metric: train/effective_rank`` or
the like. Held out means of this run: weights that a run starts from (``trainer.init_weights``,
``trainer.last_checkpoint``) may have been trained on the same speakers, unless they come from a run
with the same list, seed and ``speakers``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sslsv.datasets.manifest import Manifest
from sslsv.errors import ConfigError
from sslsv.evaluations.trials import Trials, make_trials
from sslsv.randomness import generator

SPLIT = "split"  # in place of the name of a list of trials
_SECTION = "evaluation.validation, section split"


@dataclass(kw_only=True)
class SplitConfig:
    """Section ``split`` of a verification task under ``evaluation.validation``."""

    speakers: int = 40  # labels (dataset.label_key) that leave the training
    trials: int = 4000  # drawn from them, half of them targets

    def __post_init__(self) -> None:
        for name in ("speakers", "trials"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}: must be at least 2, got {getattr(self, name)}")
        if self.trials % 2:
            raise ConfigError(f"trials: must be even, half of them are targets, got {self.trials}")


def split_of(tasks: Iterable[object]) -> SplitConfig | None:
    """The section ``split`` of the one among task configurations that has it."""
    return next(filter(None, (getattr(task, "split", None) for task in tasks)), None)


def hold_out(manifest: Manifest, config: SplitConfig, seed: int) -> tuple[Manifest, Trials]:
    """The rows that are left to train on, and trials of the labels that are not among them.

    Labels are drawn from those with two files or more, none of which stands under another label
    too. Targets are spread evenly over the labels, non-targets over the pairs of labels, as far as
    these go; no pair of files comes twice, in either order. All of it is a function of the list
    (not of the order of its rows) and the seed.

    Raises:
        ConfigError: there are too few labels or pairs, or nothing would be left to train on.
    """
    utterances = _utterances(manifest)
    chosen = _draw_labels(manifest, utterances, config, seed)
    kept = np.isin(manifest.labels, chosen, invert=True)
    if not kept.any():
        raise ConfigError(
            f"{_SECTION}: {config.speakers} speakers are all of {manifest.path}, so none is left "
            "to train on; lower speakers"
        )
    files = [utterances[label] for label in chosen]
    return manifest.select(kept), _draw_trials(files, config.trials, seed)


def _utterances(manifest: Manifest) -> dict[int, list[str]]:
    """The distinct files, sorted, of each label that shares none with another; in order of name."""
    names, files = np.unique(manifest.files, return_inverse=True)
    count = len(names)
    labels, files = np.divmod(np.unique(manifest.labels * count + files), count)
    shared = np.unique(labels[np.bincount(files)[files] > 1])
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    groups = dict(zip(labels[starts].tolist(), np.split(files, starts[1:]), strict=True))
    own = sorted(groups.keys() - set(shared.tolist()), key=manifest.label_names.__getitem__)
    return {label: [names[file].decode() for file in groups[label]] for label in own}


def _draw_labels(
    manifest: Manifest, utterances: dict[int, list[str]], config: SplitConfig, seed: int
) -> list[int]:
    usable = [label for label, files in utterances.items() if len(files) >= 2]
    if len(usable) < config.speakers:
        raise ConfigError(
            f"{_SECTION}: {config.speakers} speakers are to be held out, but of the "
            f"{len(manifest.label_names)} labels of {manifest.path} only {len(usable)} have two "
            "files or more and share none with another label; lower speakers"
        )
    order = generator("held-out speakers", seed).permutation(len(usable))
    return [usable[i] for i in order[: config.speakers]]


def _draw_trials(files: list[list[str]], count: int, seed: int) -> Trials:
    """``count`` trials of speakers with these ``files``."""
    rng = generator("held-out trials", seed)
    half = count // 2
    names = [file for own in files for file in own]
    sizes = np.array([len(own) for own in files])
    starts = np.cumsum(sizes) - sizes  # of each speaker in names

    pool, index = _draw(sizes * (sizes - 1) // 2, half, "target", rng)
    n = sizes[pool]
    place = index % n  # with the file 1, 2, … places on: the first n (n - 1) / 2 are all pairs
    targets = starts[pool] + np.stack([place, (place + index // n + 1) % n])  # (2, half)

    a, b = np.triu_indices(len(files), k=1)
    pool, index = _draw(sizes[a] * sizes[b], half, "non-target", rng)
    a, b = a[pool], b[pool]
    others = np.stack([starts[a] + index // sizes[b], starts[b] + index % sizes[b]])

    pairs = np.concatenate([targets, others], axis=1)  # (2, count)
    turned = rng.random(count) < 0.5
    pairs[:, turned] = pairs[::-1, turned]
    enrol, test = ([names[i] for i in row] for row in pairs.tolist())
    return make_trials(SPLIT, enrol, test, np.arange(count) < half)


def _draw(
    capacity: np.ndarray, count: int, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` different pairs out of pools of ``capacity`` (P,): the pool of each, and which of
    that pool's."""
    if capacity.sum() < count:
        raise ConfigError(
            f"{_SECTION}: {2 * count} trials take {count} {kind} ones, but the held-out speakers "
            f"have only {capacity.sum()} such pairs of files; lower trials or raise speakers"
        )
    shares = _shares(capacity, count, rng)
    used = np.flatnonzero(shares)
    drawn = [rng.choice(capacity[pool], shares[pool], replace=False) for pool in used]
    return np.repeat(used, shares[used]), np.concatenate(drawn)


def _shares(capacity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` dealt out to pools: each has as many as another, or all that it can give."""
    low, high = 0, count  # what each has at least, where it can
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(capacity, middle).sum() <= count:
            low = middle
        else:
            high = middle - 1
    shares = np.minimum(capacity, low)
    more = rng.choice(np.flatnonzero(capacity > low), count - shares.sum(), replace=False)
    shares[more] += 1
    return shares
