"""Batches that cross from a worker to the main process in one block."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import time
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from sslsv.datasets.parcel import Parcel

COUNT = 20


@dataclass
class Content:
    tensors: list[torch.Tensor]
    array: np.ndarray
    text: str


def make_content() -> Content:
    generator = torch.Generator().manual_seed(3)
    tensors = [
        torch.randn(7, 1001, generator=generator),
        torch.arange(5),
        torch.zeros(0, 30, dtype=torch.int16),
        torch.tensor(2.5, dtype=torch.float64),
        torch.arange(12).view(3, 4).T,  # not contiguous
        torch.tensor([True, False]),
    ]
    return Content(tensors, np.arange(3, dtype=np.int8), "text")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def batches_open() -> int:
    """How many descriptors of parcels' files this process has."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum("memfd:batch" in link for link in links)


def send(connection: Any, count: int) -> None:
    gc.freeze()  # what other tests left and the fork has taken along stays as it is
    before = batches_open()
    for _ in range(count):
        connection.send_bytes(ForkingPickler.dumps(Parcel(make_content())))
        connection.recv()  # it has arrived
    # A thread of multiprocessing closes the sender's side, shortly after the arrival.
    deadline = time.monotonic() + 60
    while batches_open() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    connection.send(batches_open() - before)


def test_what_arrives_is_what_was_sent() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=send, args=(there, COUNT))
    process.start()
    expected = make_content()
    gc.collect()
    before = descriptors()
    contents = []
    for _ in range(COUNT):
        contents.append(pickle.loads(here.recv_bytes()))
        here.send("arrived")
    kept_by_sender = here.recv()
    process.join(60)
    for content in contents:
        assert isinstance(content, Content)
        assert content.text == "text"
        np.testing.assert_array_equal(content.array, expected.array)
        for tensor, other in zip(content.tensors, expected.tensors, strict=True):
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other)
        content.tensors[0].mul_(2)  # it can be written to, and is nobody else's
    assert torch.equal(contents[0].tensors[0], 2 * expected.tensors[0])
    assert descriptors() <= before + COUNT  # a mapping keeps its file open
    assert kept_by_sender == 0


def test_content_without_tensors() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    here.send(Parcel("a sentence"))
    assert there.recv() == "a sentence"
