"""What a worker made, sent to the main process in one block of memory.

PyTorch's own way shares each tensor by itself, in pages of /dev/shm that the worker touches one by
one. Here all tensors of a batch are written to one anonymous file, which takes half the time, needs
one descriptor instead of a dozen, and does not end where a container's /dev/shm is small.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


class Parcel:
    """Wraps ``content``, any picklable object; unpickling the parcel gives the object itself.

    To be sent once, over a connection of ``multiprocessing``.
    """

    def __init__(self, content: Any) -> None:
        blocks: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=blocks.append).dump(content)
        self._head = stream.getvalue()
        self._spans: list[tuple[int, int]] = []  # where each block begins and ends
        with open(os.memfd_create("batch"), "wb", buffering=0, closefd=False) as file:
            self._descriptor = file.fileno()
            end = 0
            for block in blocks:
                begin = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = begin + block.raw().nbytes
                file.seek(begin)
                _write(file, block.raw())
                self._spans.append((begin, end))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        handle = DupFd(self._descriptor)
        os.close(self._descriptor)
        return _unwrap, (self._head, self._spans, handle)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):  # numpy's arrays go out of band, torch's tensors do not
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _write(file: io.FileIO | Any, block: memoryview) -> None:
    while block.nbytes:
        block = block[file.write(block) :]


def _unwrap(head: bytes, spans: list[tuple[int, int]], handle: Any) -> Any:
    descriptor = handle.detach()
    try:
        size = spans[-1][1] if spans else 0
        memory = memoryview(mmap.mmap(descriptor, size) if size else b"")
    finally:
        os.close(descriptor)
    return pickle.loads(head, buffers=[memory[begin:end] for begin, end in spans])
