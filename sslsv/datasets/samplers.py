"""Which rows make up which batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import Sampler

from sslsv.errors import ConfigError
from sslsv.randomness import generator


class Draw(NamedTuple):
    """One sample to make. All its randomness is a pure function of (seed, epoch, row, view)."""

    epoch: int
    row: int


@dataclass(kw_only=True)
class SamplerConfig:
    """Subsets, balancing and pairs of utterances by label."""

    enable: bool = True
    balance: bool = False  # draw labels with equal chance
    nb_utterances: int | None = None  # use this many utterances
    nb_speakers: int | None = None  # use the first this many labels
    nb_samples_per_spk: int | None = None  # use at most this many utterances a label
    create_contrastive_pairs: bool = False  # views from two utterances of one label
    prevent_class_collisions: bool = False  # no label twice in a batch
    randomize_at_each_epoch: bool = False  # another order every epoch

    def __post_init__(self) -> None:
        if self.enable:
            raise ConfigError("enable: label-based sampling is not available yet; set it to false")


class ShuffledBatches(Sampler[list[Draw]]):
    """Batches of a fresh permutation each epoch; the last incomplete batch is dropped.

    The permutation depends on (seed, epoch) alone. A global batch is the same for any number of
    processes, each of which takes its own contiguous part.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if rows < batch_size:
            raise ConfigError(
                f"trainer.batch_size: {batch_size} is more than the {rows} rows of the training "
                "list; lower it"
            )
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches of this epoch that are already done

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[Draw]]:
        order = generator("order", self.seed, self.epoch).permutation(self.rows)
        share = self.batch_size // self.world_size
        for batch in range(self.start, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield [Draw(self.epoch, int(row)) for row in order[first : first + share]]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to batch ``start`` of ``epoch``."""
        self.epoch, self.start = epoch, start

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_epoch(state["epoch"], state["start"])
