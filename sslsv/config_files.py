"""YAML files of a configuration: what they hold, on which lines, and which file they build on.

``base: ../other.yml`` at the top of a file (a path relative to it) takes over what that file says,
which may have a base itself, but for its ``run_dir``. Sections are merged key by key. Lists and
single values take the place of the base's, and so does a section whose ``type`` is another one,
since it has other fields; a section without a value has the defaults again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from sslsv.errors import ConfigError

BASE = "base"
_OWN = ("run_dir",)  # keys of a base that are not taken over: results of two runs never mix
_UNREADABLE = (YAMLError, ValueError, RecursionError)  # such as 2024-13-45 or a list in itself

KeyPath = tuple[str, ...]  # ("evaluation", "test", "0", "trials")


class Place(NamedTuple):
    """Where something is written."""

    file: Path
    line: int


Places = dict[KeyPath, Place]


def read(path: Path, asked: tuple[Place, ...] = ()) -> tuple[dict[str, Any], Places]:
    """What a file and those it builds on say, and where each key of it stands.

    ``asked``: where this file is named as a base, after where that one is, and so on. Raises
    ConfigError with the file and, where there is one, the line.
    """
    by = f"{asked[-1].file} line {asked[-1].line}: {BASE}: " if asked else ""
    files = [place.file for place in asked]
    if path.resolve() in [file.resolve() for file in files]:
        circle = " -> ".join(str(file) for file in [*files, path])
        raise ConfigError(f"{by}files cannot build on each other in a circle ({circle})")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{by}{path}: cannot read the configuration ({reason})") from None
    data, places = _parse(text, path)
    if (BASE,) not in places:
        return data, places
    place, name = places.pop((BASE,)), data.pop(BASE)
    if not isinstance(name, str):
        raise ConfigError(
            f"{path} line {place.line}: {BASE}: expected the path of a YAML file, got {shown(name)}"
        )
    below, places_below = read(Path(os.path.normpath(path.parent / name)), (*asked, place))
    for key in _OWN:
        below.pop(key, None)
    replaced: set[KeyPath] = set()
    data = _merge(below, data, (), replaced)
    kept = {key: p for key, p in places_below.items() if not _within(key, replaced)}
    return data, kept | places


def _merge(
    below: dict[str, Any], above: dict[str, Any], path: KeyPath, replaced: set[KeyPath]
) -> dict[str, Any]:
    """``above`` laid over ``below``; what it sets anew is noted in ``replaced``."""
    merged = dict(below)
    for key, value in above.items():
        here, old = (*path, str(key)), below.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _other_type(old, value):
            merged[key] = _merge(old, value, here, replaced)
        else:
            merged[key] = value
            replaced.add(here)
    return merged


def _other_type(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return "type" in old and "type" in new and old["type"] != new["type"]


def _within(key: KeyPath, sections: set[KeyPath]) -> bool:
    return any(key[:depth] in sections for depth in range(1, len(key) + 1))


def _parse(text: str, path: Path) -> tuple[dict[str, Any], Places]:
    """Safe-load ``text``; also the line on which each key stands."""
    places: Places = {}
    try:
        data = plain(_yaml().load(text))  # a copy, in which anchor and alias are no longer one
        _collect(_yaml().compose(text), path, (), places)
    except _UNREADABLE as error:
        where, problem = "", str(error)
        if isinstance(error, MarkedYAMLError):
            mark = error.problem_mark or error.context_mark
            where = f" line {mark.line + 1}" if mark else ""
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            problem = problem.partition(" with value ")[0]  # after which a duplicate is spelt out
        raise ConfigError(f"{path}{where}: not valid YAML: {problem.splitlines()[0]}") from None
    if data is None:
        raise ConfigError(f"{path}: the file is empty")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' sections, got {shown(data)}")
    return data, places


def _collect(node: Node, file: Path, path: KeyPath, places: Places) -> None:
    if isinstance(node, MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, SequenceNode):
        children = [(str(index), value, value) for index, value in enumerate(node.value)]
    else:
        return
    for name, marked, value in children:
        here = (*path, name)
        places[here] = Place(file, marked.start_mark.line + 1)
        _collect(value, file, here, places)


def parse_value(text: str) -> Any:
    """One YAML value. ValueError where it is none."""
    try:
        return plain(_yaml().load(text))
    except _UNREADABLE:
        raise ValueError(f"'{text}' is not a YAML value") from None


def write(data: dict[str, Any], file: IO[str]) -> None:
    _yaml().dump(data, file)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)  # version 1.2: 1e-3 is a number, yes is text
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def plain(value: Any) -> Any:
    """A copy of dicts and lists, with paths as text and tuples as lists."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def shown(value: Any) -> str:
    """A value and its type, for messages."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 100 else text[:100] + '...'} ({type(value).__name__})"
