"""Batches that are on the device before a step asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from sslsv.datasets.views import Batch


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """``batches`` on ``device``; on a GPU each is copied while the step before it is computed, on a
    stream of its own."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copies = torch.cuda.Stream(device)
    waiting = None
    for batch in batches:
        with torch.cuda.stream(copies):
            copied = batch.to(device)
        if waiting is not None:
            yield _ready(waiting, copies, device)
        waiting = copied
    if waiting is not None:
        yield _ready(waiting, copies, device)


def _ready(batch: Batch, copies: torch.cuda.Stream, device: torch.device) -> Batch:
    """What the current stream asks for next comes after the copy, and the memory is not used for
    another copy before it is done."""
    stream = torch.cuda.current_stream(device)
    stream.wait_stream(copies)
    for tensor in batch.on_device():
        tensor.record_stream(stream)
    return batch
