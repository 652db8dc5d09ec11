#!/usr/bin/env python3
"""docs/configuration.md from the dataclasses that hold a configuration.

    python tools/make_config_reference.py            # writes docs/configuration.md
    python tools/make_config_reference.py --check    # exit code 1 if it would change

What a field means is the comment at the end of its line, or the comment lines above it; a field
that a subclass gives another default keeps the comment of the class it comes from, and one that is
a section has the section's docstring.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without installing

from sslsv.config import Config  # noqa: E402
from sslsv.config_files import plain  # noqa: E402
from sslsv.datasets.views import DatasetConfig  # noqa: E402
from sslsv.encoders.base import EncoderConfig  # noqa: E402
from sslsv.evaluations.base import EvaluationConfig, TaskConfig  # noqa: E402
from sslsv.methods.base import MethodConfig  # noqa: E402
from sslsv.registry import ENCODERS, EVALUATIONS, METHODS, Registry  # noqa: E402
from sslsv.trainer.config import TrainerConfig  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration reference

<!-- made by tools/make_config_reference.py from the comments in the source: do not edit -->

Every key that a `config.yml` may have, with its type, its default and what it means. A key that is
not here is refused. `base: PATH`, at the top of a file, names a file to build on
([models.md](models.md#a-config-of-your-own)); `key.sub=value` on the command line comes last; the
values in force are in `resolved_config.yml` in the run folder.

`encoder`, `method` and each entry of `evaluation.validation` and `evaluation.test` have a `type`,
which decides what other keys they have: those of the table of all types, and those of the type's
own table. Where a type changes a default, the key is in both, and the type's own table holds.
"""
_CHOSEN_BY_TYPE = (EncoderConfig, MethodConfig, TaskConfig)
_KINDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
_SEVERAL = {int: "integers", float: "numbers", str: "texts", Path: "paths"}


@dataclasses.dataclass(frozen=True)
class Section:
    """A dataclass and where it stands in a configuration."""

    title: str  # heading of the page
    config: type
    leave_out: type | None = None  # the class whose unchanged fields have a table of their own
    level: int = 2  # of the heading


@dataclasses.dataclass(frozen=True)
class Field:
    """A row of a table."""

    name: str
    hint: Any
    default: Any  # dataclasses.MISSING where it must be given
    description: str


# ------------------------------------------------------------------------------------- reading


def sections() -> list[Section]:
    """All sections, each followed by those that only stand in it."""
    found = [Section("Top level", Config)]
    found += _of_types("encoder", EncoderConfig, ENCODERS, "encoder")
    found += _of_types("method", MethodConfig, METHODS, "method")
    found += _with_nested(Section("trainer", TrainerConfig), "trainer")
    found += _with_nested(Section("dataset", DatasetConfig), "dataset")
    found += _with_nested(Section("evaluation", EvaluationConfig), "evaluation")
    found += _of_types("evaluation task", TaskConfig, EVALUATIONS, "evaluation.validation.N")
    unique: dict[tuple[type, type | None], Section] = {}
    for section in found:
        unique.setdefault((section.config, section.leave_out), section)
    return list(unique.values())


def _of_types(title: str, base: type, registry: Registry, path: str) -> Iterator[Section]:
    """The fields of all types, then those of each, which is one for every registered name."""
    yield from _with_nested(Section(title, base), path)
    for name in registry.names():
        section = Section(f"{title}: {name}", registry.get(name).config, base, 3)
        yield from _with_nested(section, path)


def _with_nested(section: Section, path: str) -> Iterator[Section]:
    yield section
    users: dict[type, list[str]] = {}
    for field in fields_of(section):
        for config in _dataclasses_in(field.hint):
            if config in _CHOSEN_BY_TYPE:  # which have tables of their own
                continue
            users.setdefault(config, []).append(f"{path}.{field.name}")
    for config, paths in users.items():
        yield Section(", ".join(paths), config, None, 3)


def fields_of(section: Section) -> list[Field]:
    """Fields in the order of the source; without those that ``leave_out`` has just so."""
    hints = typing.get_type_hints(section.config)
    shared = _defaults(section.leave_out) if section.leave_out else {}
    return [
        Field(name, hints[name], default, description(section.config, name, hints[name]))
        for name, default in _defaults(section.config).items()
        if name not in shared or (name != "type" and default != shared[name])
    ]


def _defaults(config: Any) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(config):
        factory = field.default_factory
        found[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return found


def description(config: type, name: str, hint: Any) -> str:
    """The comment of a field in the nearest class that has one, or the docstring of the section
    that it is, or nothing."""
    classes = [cls for cls in config.__mro__ if dataclasses.is_dataclass(cls)]
    written = [comments(cls).get(name) for cls in classes]
    written += [about(section) for section in _dataclasses_in(hint)]
    return next(filter(None, written), "")


def about(config: type) -> str:
    """The first paragraph of the docstring that somebody wrote."""
    text = config.__dict__.get("__doc__") or ""
    if text.startswith(f"{config.__name__}("):  # what dataclass makes up
        return ""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def comments(config: type) -> dict[str, str]:
    """What the source of a dataclass says of the fields that stand in it, by name."""
    source = textwrap.dedent(inspect.getsource(config))
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    by_line = {
        token.start[0]: (token.string.lstrip("# ").strip(), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert node.end_lineno is not None
            above = node.lineno
            while by_line.get(above - 1, ("", False))[1]:  # a line that is nothing but a comment
                above -= 1
            lines = range(above, node.end_lineno + 1)
            found[node.target.id] = " ".join(by_line[i][0] for i in lines if i in by_line)
    return found


def _dataclasses_in(hint: Any) -> list[type]:
    """The sections that a field holds."""
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    return [config for inner in typing.get_args(hint) for config in _dataclasses_in(inner)]


# ------------------------------------------------------------------------------------- writing


def page() -> str:
    """The whole of docs/configuration.md."""
    every = sections()
    anchors = {s.config: _anchor(s.title) for s in every if s.leave_out is None}
    return INTRODUCTION + "".join(_table(section, anchors) for section in every)


def _table(section: Section, anchors: dict[type, str]) -> str:
    file = Path(inspect.getfile(section.config)).relative_to(ROOT).as_posix()
    lines = ["", f"{'#' * section.level} {section.title}", ""]
    lines += [f"`{file}: {section.config.__name__}`", ""]
    if text := about(section.config):
        lines[-2] += f" — {_text(text)}"
    rows = fields_of(section)
    if not rows:
        lines += ["No other keys.", ""]
    else:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in rows:
        cells = [f"`{field.name}`", kind(field.hint, anchors), shown(field.default)]
        lines.append(f"| {' | '.join([*cells, _text(field.description)])} |")
    return "\n".join(lines).rstrip("\n") + "\n"


def kind(hint: Any, anchors: dict[type, str]) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        words = [kind(choice, anchors) for choice in inner if choice is not type(None)]
        return " or ".join([*words, "null"])
    if origin is typing.Literal:
        return ", ".join(shown(value) for value in inner)
    if origin is list:
        (element,) = inner
        return f"list of {_SEVERAL[element]}" if element in _SEVERAL else _list_of(element, anchors)
    if origin is tuple:
        return f"[{', '.join(kind(element, anchors) for element in inner)}]"
    if dataclasses.is_dataclass(hint):
        name = anchors[typing.cast(type, hint)]
        return f"[section](#{name})"
    return _KINDS[hint]


def _list_of(element: Any, anchors: dict[type, str]) -> str:
    if dataclasses.is_dataclass(element):
        return f"list of [sections](#{anchors[typing.cast(type, element)]})"
    return f"list of {kind(element, anchors)}"


def shown(value: Any) -> str:
    """A value as a YAML file would have it."""
    if value is dataclasses.MISSING:
        return "must be given"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    return _code(_yaml(plain(value)) or '""')


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_yaml(v) for v in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _code(text: str) -> str:
    """In a table a bar would end the cell, also within backticks."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _text(text: str) -> str:
    """Prose of a comment or docstring, where nothing but backticks is meant as Markdown."""
    for special, written in {"``": "`", "<": "&lt;", "|": "&#124;", "*": "\\*"}.items():
        text = text.replace(special, written)
    return text


def _anchor(title: str) -> str:
    """As GitHub and mkdocs make it of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " _-")
    return kept.replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, tell by the exit code")
    args = parser.parse_args()
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"error: {PAGE.relative_to(ROOT)} is not up to date; run {Path(__file__).name}")


if __name__ == "__main__":
    main()
