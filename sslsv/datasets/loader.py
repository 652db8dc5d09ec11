"""Batches from worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from sslsv.datasets.parcel import Parcel
from sslsv.errors import UserError
from sslsv.interrupt import leave_signals_to_the_parent


@atexit.register
def _end_workers() -> None:
    """Processes that read data ignore SIGTERM, with which Python would end them and then wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class Loader:
    """A DataLoader over a dataset that builds whole batches, and raises what workers met."""

    def __init__(
        self, dataset: Dataset, batches: Sampler | list, num_workers: int, pin_memory: bool = False
    ):
        self.batches = batches
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_send,
            num_workers=num_workers,
            pin_memory=pin_memory and torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # what it draws for workers is not taken from the model's
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                # Ends the workers now. The error's traceback would keep them until the garbage
                # collector, which may close their queues first, and then waits for them in vain.
                self._loader._iterator = None
                raise batch
            yield batch


def _send(batch: Any) -> Any:
    in_a_worker = get_worker_info() is not None and hasattr(os, "memfd_create")
    return Parcel(batch) if in_a_worker else batch
