"""What there is to choose from: methods and encoders by name, configurations by folder."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sslsv import config_files
from sslsv.errors import ConfigError, DataError
from sslsv.registry import ENCODERS, METHODS, Registry
from sslsv.results_table import PUBLISHED_NAME, published_by_folder

_FOLDER = Path("models")
_CLONE = Path(__file__).resolve().parents[1] / _FOLDER


@dataclass(frozen=True, kw_only=True)
class Part:
    """A method or an encoder."""

    name: str  # as ``type`` of its section says it
    about: str  # the first sentence of its class


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A configuration."""

    path: str  # what commands take as CONFIG
    method: str
    encoder: str
    published_eer: float | None  # in %; None: nothing is published of it


def methods() -> list[Part]:
    """All methods, by name."""
    return _parts(METHODS)


def encoders() -> list[Part]:
    """All encoders, by name."""
    return _parts(ENCODERS)


def configs(folder: Path | None = None) -> list[Experiment]:
    """The configurations in ``folder`` and below, by path; None: of ``models`` here, or else of
    that in the clone which this package is part of.

    Raises:
        DataError: there is no such folder, or no configuration in it.
        ConfigError: a file that is no YAML, or that names no method or encoder.
    """
    if folder is None:
        in_clone = (_CLONE / PUBLISHED_NAME).is_file() and not _FOLDER.is_dir()
        folder = _CLONE if in_clone else _FOLDER
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that configurations are below")
    paths = sorted(folder.rglob("config.yml"))
    if not paths:
        raise DataError(f"{folder}: no config.yml in it or below; give another folder")
    published = published_by_folder(folder)
    found = []
    for path in paths:
        values, _ = config_files.read(path)
        entry = published.get(path.parent.resolve())
        found.append(
            Experiment(
                path=path.parent.as_posix(),
                method=_type_of(values, "method", path),
                encoder=_type_of(values, "encoder", path),
                published_eer=entry.eer if entry else None,
            )
        )
    return found


def as_json(found: Sequence[Part | Experiment]) -> str:
    """A list of objects with the fields above."""
    return json.dumps([asdict(item) for item in found], indent=2, ensure_ascii=False)


def as_text(found: Sequence[Part | Experiment]) -> str:
    """Lines for a terminal. Sentences are wrapped; paths come last and are not."""
    experiments = [item for item in found if isinstance(item, Experiment)]
    if not experiments:
        return "\n".join(_described(item) for item in found if isinstance(item, Part))
    rows = [("method", "encoder", "EER (%)*", "path")]
    for e in experiments:
        eer = "-" if e.published_eer is None else f"{e.published_eer:.2f}"
        rows.append((e.method, e.encoder, eer, e.path))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{method:{widths[0]}}  {encoder:{widths[1]}}  {eer:>{widths[2]}}  {path}"
        for method, encoder, eer, path in rows
    ]
    return "\n".join([*lines, "* published, not measured here; 'sslsv results' has what runs gave"])


def _parts(registry: Registry) -> list[Part]:
    return [
        Part(name=name, about=_first_sentence(registry.get(name).cls.__doc__ or ""))
        for name in registry.names()
    ]


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def _described(part: Part) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(f"{part.name:19s}{part.about}", width, subsequent_indent=" " * 19)


def _type_of(values: dict[str, object], section: str, path: Path) -> str:
    found = values.get(section)
    kind = found.get("type") if isinstance(found, dict) else None
    if not isinstance(kind, str):
        raise ConfigError(f"{path}: {section}.type: is missing; name one of 'sslsv list'")
    return kind
