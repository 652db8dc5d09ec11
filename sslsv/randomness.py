"""Random draws that depend on what they are for, and on nothing else."""

from __future__ import annotations

import zlib

import numpy as np


def generator(purpose: str, *key: int) -> np.random.Generator:
    """A stream of its own for each purpose and key, such as ``("sample", seed, epoch, row, view)``.

    The same arguments give the same stream in any process. Keys of one purpose must have one
    length: numpy pads a key with zeros.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), *key))
