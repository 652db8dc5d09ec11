"""Views of an utterance in, loss out. One file each; their classes are found by the registry."""

from sslsv.registry import METHODS


def __getattr__(name: str) -> type:
    if name == "_SSPS":
        from sslsv.methods.ssps import SSPS

        return SSPS
    if not name[0].isupper():  # a submodule; looking for it must not import all the others
        raise AttributeError(name)
    return METHODS.class_named(name)
