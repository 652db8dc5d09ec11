"""Names in a configuration -> classes.

A file in ``sslsv/encoders``, ``sslsv/methods`` or ``sslsv/evaluations`` that uses the matching
decorator is found by itself: no list of names has to be edited anywhere.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sslsv.errors import ConfigError

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered class and the dataclass that holds its section of the YAML file."""

    cls: type
    config: type


class Registry:
    """The classes of one kind; the modules of ``package`` are imported when first asked."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._discovered = False

    def register(self, name: str, config: type) -> Callable[[T], T]:
        """Make a class known as ``type: <name>`` with ``config`` as its section."""

        def decorate(cls: T) -> T:
            known = self._entries.get(name)
            if known and known.cls.__module__ != cls.__module__:
                raise ValueError(f"{self.kind} '{name}' is already {known.cls.__module__}")
            self._entries[name] = Entry(cls, config)
            return cls

        return decorate

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._discover()
        return sorted(self._entries)

    def get(self, name: Any) -> Entry:
        """Look a name up; an unknown one is a ConfigError that suggests the nearest."""
        self._discover()
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"type: unknown {self.kind} '{name}'; {hint}available: {', '.join(self.names())}"
        )

    def class_named(self, class_name: str) -> type:
        """A class or config by Python name, so that ``sslsv.encoders.ResNet34`` works."""
        self._discover()
        for cls in self._classes():
            if cls.__name__ == class_name:
                return cls
        raise AttributeError(f"module '{self.package}' has no attribute '{class_name}'")

    def _classes(self) -> Iterator[type]:
        for entry in self._entries.values():
            yield entry.cls
            yield entry.config

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # first, since the modules below may ask the registry themselves
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")


ENCODERS = Registry("encoder", "sslsv.encoders")
METHODS = Registry("method", "sslsv.methods")
EVALUATIONS = Registry("evaluation", "sslsv.evaluations")

register_encoder = ENCODERS.register
register_method = METHODS.register
register_evaluation = EVALUATIONS.register
