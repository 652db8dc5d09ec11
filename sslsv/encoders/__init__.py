"""Waveform in, embedding out. One file each; their classes are found by the registry."""

from sslsv.registry import ENCODERS


def __getattr__(name: str) -> type:
    if not name[0].isupper():  # a submodule; looking for it must not import all the others
        raise AttributeError(name)
    return ENCODERS.class_named(name)
