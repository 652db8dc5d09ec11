"""Streams of random numbers."""

from __future__ import annotations

import subprocess
import sys

from sslsv.randomness import generator


def first(purpose: str, *key: int) -> float:
    return float(generator(purpose, *key).random())


def test_each_purpose_and_key_has_a_stream_of_its_own() -> None:
    keys = [("order", 1, 2), ("sample", 1, 2), ("order", 2, 1), ("order", 1, 3)]
    draws = [first(*key) for key in keys]
    assert len(set(draws)) == len(draws)


def test_same_in_another_process() -> None:
    code = "from sslsv.randomness import generator; print(generator('order', 1, 2).random())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == first("order", 1, 2)
