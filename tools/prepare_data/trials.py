"""Verification trials: drawn from utterances, or read from the lists of a corpus."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslsv.errors import DataError

Pair = tuple[str, str]  # two files


@dataclass(frozen=True)
class Utterance:
    file: str  # relative to DATA_DIR
    speaker: str
    session: str  # one recording: a chapter, a video
    sex: str = ""  # "": not known


@dataclass(frozen=True)
class Product(Sequence[Pair]):
    """All pairs of a file of ``first`` and one of ``second``, none of them stored."""

    first: list[str]
    second: list[str]

    def __len__(self) -> int:
        return len(self.first) * len(self.second)

    def __getitem__(self, index):
        return self.first[index // len(self.second)], self.second[index % len(self.second)]


def draw_trials(
    utterances: Iterable[Utterance], count: int, rng: np.random.Generator, same_sex: float = 0.7
) -> list[str]:
    """At most ``count`` lines ``<1|0> <enrol> <test>``, half of them targets, shuffled.

    No pair comes twice, in either order. Targets are spread evenly over the speakers, and are of
    two sessions where the speaker has several. Non-targets are spread evenly over the pairs of
    speakers; ``same_sex`` of them are of one sex where it is known. What is scarce is made up for
    by the rest, and there are fewer than ``count`` lines where all is.
    """
    by_speaker = defaultdict(list)
    for utterance in sorted(utterances, key=lambda utterance: utterance.file):
        by_speaker[utterance.speaker].append(utterance)
    targets = [_target_pairs(by_speaker[speaker]) for speaker in sorted(by_speaker)]
    same, other = _non_target_pairs([by_speaker[speaker] for speaker in sorted(by_speaker)])

    capacity = {id(pools): sum(map(len, pools)) for pools in (targets, same, other)}
    capacity_same, capacity_other = capacity[id(same)], capacity[id(other)]
    half = min(count // 2, capacity[id(targets)], capacity_same + capacity_other)
    if half == 0:
        raise DataError("no trials: they take two speakers, one of them with two utterances")
    wanted = half if capacity_other == 0 else round(half * same_sex)
    crossed = min(half - min(wanted, capacity_same), capacity_other)
    pairs = [(1, pair) for pair in _draw(targets, half, rng)]
    pairs += [(0, pair) for pair in _draw(same, half - crossed, rng)]
    pairs += [(0, pair) for pair in _draw(other, crossed, rng)]
    return [_line(*pairs[position], rng) for position in rng.permutation(len(pairs))]


def _line(target: int, pair: Pair, rng: np.random.Generator) -> str:
    enrol, test = pair if rng.random() < 0.5 else pair[::-1]
    return f"{target} {enrol} {test}"


def _target_pairs(utterances: list[Utterance]) -> list[Pair]:
    pairs = list(itertools.combinations(utterances, 2))
    apart = [(a, b) for a, b in pairs if a.session != b.session]
    return [(a.file, b.file) for a, b in apart or pairs]


def _non_target_pairs(speakers: list[list[Utterance]]) -> tuple[list[Product], list[Product]]:
    """The pairs of files of each two speakers: those of one sex, and the others."""
    same, other = [], []
    files = [[utterance.file for utterance in utterances] for utterances in speakers]
    for a, b in itertools.combinations(range(len(speakers)), 2):
        pools = same if speakers[a][0].sex == speakers[b][0].sex else other
        pools.append(Product(files[a], files[b]))
    return same, other


def _draw(pools: Sequence[Sequence[Pair]], count: int, rng: np.random.Generator) -> Iterator[Pair]:
    """``count`` different pairs, from each pool as many as from the next, as far as they go."""
    ties = rng.random(len(pools))
    order = sorted(range(len(pools)), key=lambda pool: (len(pools[pool]), ties[pool]))
    for rank, pool in enumerate(order):
        quota = min(len(pools[pool]), count // (len(pools) - rank))
        count -= quota
        for index in rng.choice(len(pools[pool]), quota, replace=False):
            yield pools[pool][index]


def read_fields(path: Path, names: str) -> list[list[str]]:
    """The fields of each line of a corpus's list; ``names`` says what they are, as in 'a b c'."""
    if not path.is_file():
        raise DataError(f"{path}: no such list; the corpus is not complete")
    rows, width = [], len(names.split())
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if fields and len(fields) != width:
            raise DataError(f"{path} line {number}: {len(fields)} fields where '{names}' is meant")
        if fields:
            rows.append(fields)
    if not rows:
        raise DataError(f"{path}: is empty")
    return rows


def read_keys(models: Path, keys: Path) -> list[tuple[int, str, str]]:
    """(1 | 0, enrolment file, test file) of the lists of SITW and VOiCES.

    ``models`` has lines ``<model> <file>``, ``keys`` has ``<model> <file> <tgt|imp>``.
    """
    files = {}
    for model, file in read_fields(models, "model file"):
        if files.setdefault(model, file) != file:
            raise DataError(f"{models}: model {model} has several files; only one is supported")
    trials = []
    for model, file, key in read_fields(keys, "model file tgt|imp"):
        if model not in files:
            raise DataError(f"{keys}: model {model} is not in {models.name}")
        if key not in ("tgt", "imp"):
            raise DataError(f"{keys}: key {key!r} where tgt or imp is meant")
        trials.append((int(key == "tgt"), files[model], file))
    return trials
