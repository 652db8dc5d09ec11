"""What the runs below a folder have given, beside what others have published of them, as a table.

Every number is read from a file: ``evaluation.json``, ``timings.json`` and the configuration of a
run, and ``published.yml``. Published and measured figures never share a column.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sslsv import config_files
from sslsv.config import RESOLVED_NAME, Config, load_config
from sslsv.encoders.huggingface import FoundationConfig
from sslsv.errors import DataError, listing
from sslsv.evaluations.stress import MARK
from sslsv.experiment import build_method
from sslsv.files import atomic_write, read_json

PUBLISHED_NAME = "published.yml"
_CONFIGS = (RESOLVED_NAME, "config.yml")  # the first that a run has is read
_FIRST_CHOICE = "sv_cosine"  # of the evaluations of one list
_KEY = re.compile(rf"test/(?P<task>[^/{MARK}]+)/(?P<list>.+)/(?P<metric>eer|mindcf)")
_BEGIN = re.compile(r"<!-- results:begin (.+) -->")
_END = "<!-- results:end -->"
_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is published of a model."""

    method: str  # as it is written there
    eer: float  # %
    mindcf: float  # at a prior of 0.01
    checkpoint: str | None = None  # address
    list: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run gave on one list of trials; None: not in its evaluation.json."""

    checkpoint: str | None
    epoch: int | None
    evaluation: str | None = None  # the task, such as sv_cosine
    eer: float | None = None  # %
    eer_low: float | None = None  # 95 % interval
    eer_high: float | None = None
    mindcf: float | None = None
    mindcf_low: float | None = None
    mindcf_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run on a list of trials."""

    model: str  # folder below the one that was asked for
    method: str
    encoder: str
    trainable_parameters: int | None  # None: pretrained weights would be needed to count them
    epochs: int  # of the configuration
    utterances_per_second: float | None  # of training, median of its epochs
    list: str | None
    list_hash: str | None
    measured: Measured | None
    published: Published | None


Tables = dict[str, dict[str, Published]]  # by name, and by the model's folder


def results(folder: Path, lists: Sequence[str] = (), form: str = "markdown") -> str:
    """The table of all runs below ``folder``, ``form`` "markdown" or "json".

    ``lists`` are those to show; where none is given, of each run the first it was tested on.

    Raises:
        DataError: a folder or list that there is not, or a file that holds something else.
        UserError: a file that cannot be read.
    """
    rows = _rows(folder, lists)
    if form == "json":
        return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)
    return "\n".join(_markdown(_HEADS, [_cells(row) for row in rows]))


def update_readme(readme: Path, folder: Path, check: bool = False) -> str:
    """Write each table of ``published.yml`` between its markers in ``readme``; says what was done.

    ``check``: write nothing, and a file that would change is a DataError.
    """
    path = _find_published(folder)
    if path is None:
        raise DataError(f"{folder}: no {PUBLISHED_NAME} there or above; it holds the tables")
    tables = _read_published(path)
    try:
        old = readme.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{readme}: cannot be read ({error})") from None
    links = os.path.relpath(path.parent.resolve(), readme.parent.resolve())
    for model in (model for table in tables.values() for model in table):
        if not (path.parent / model / "config.yml").is_file():
            raise DataError(f"{path}: {model} has no config.yml there; correct its name")
    written = {name: _published_lines(table, links) for name, table in tables.items()}
    new = _between_markers(old, written, readme)
    if new == old:
        return f"{readme}: {len(tables)} tables, as they should be"
    if check:
        raise DataError(
            f"{readme}: its tables are not those of {path}; write them with "
            f"'sslsv results {folder} --readme {readme}'"
        )
    with atomic_write(readme) as file:
        file.write(new.encode())
    return f"{readme}: {len(tables)} tables written"


# ------------------------------------------------------------------------------------------- runs


def _rows(folder: Path, lists: Sequence[str]) -> list[Row]:
    runs = _find_runs(folder)
    found = {path: _read_evaluation(path / "evaluation.json") for path in runs}
    known = list(dict.fromkeys(name for tested, _ in found.values() for name in tested if name))
    for name in lists:
        if name not in known:
            there = f"choose among: {listing(known)}" if known else "none was tested on any"
            raise DataError(f"--list: no run below {folder} was tested on '{name}'; {there}")
    published = published_by_folder(folder)
    rows = []
    for path, name in runs.items():
        tested, hashes = found[path]
        config = load_config(_config_file(path))
        shown = [x for x in dict.fromkeys(lists) if x in tested] if lists else list(tested)[:1]
        for chosen in shown or [None]:
            rows.append(
                Row(
                    model=name,
                    method=config.method.type,
                    encoder=config.encoder.type,
                    trainable_parameters=trainable_parameters(config),
                    epochs=config.trainer.epochs,
                    utterances_per_second=_throughput(path / "timings.json"),
                    list=chosen,
                    list_hash=hashes.get(chosen),
                    measured=tested[chosen] if shown else None,
                    published=published.get(path.resolve()),
                )
            )
    return rows


def _find_runs(folder: Path) -> dict[Path, str]:
    """Folders of runs, sorted, and what they are called."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that runs are below")
    paths = {path.parent for name in _CONFIGS for path in folder.rglob(name)}
    if not paths:
        raise DataError(f"{folder}: holds no run; one has {' or '.join(_CONFIGS)}")
    return {
        path: path.resolve().name if path == folder else path.relative_to(folder).as_posix()
        for path in sorted(paths)
    }


def _config_file(run_dir: Path) -> Path:
    """The file that says what the run in ``run_dir`` was, or would be."""
    return next(run_dir / name for name in _CONFIGS if (run_dir / name).is_file())


def trainable_parameters(config: Config) -> int | None:
    """What the optimiser would change, counted without memory for it; None: of a pretrained
    encoder, whose weights say how many there are."""
    if isinstance(config.encoder, FoundationConfig):
        return None
    config = copy.deepcopy(config)
    config.encoder.compile = False
    config.encoder.extract_mel_features = False  # the front-end has none, and needs real numbers
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        groups = build_method(config).param_groups()
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def _throughput(path: Path) -> float | None:
    epochs = read_json(path).values()
    if not all(isinstance(epoch, dict) for epoch in epochs):
        raise DataError(f"{path}: holds other things than epochs; move it away")
    values = [_number(epoch, "utterances_per_second", path) for epoch in epochs]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _read_evaluation(path: Path) -> tuple[dict[str | None, Measured], dict[str | None, str]]:
    """What was measured on each list, in the order of the file, and hashes of lists. A run that
    was tested on no trials has None for a list; one that was not tested has nothing."""
    if not path.exists():
        return {}, {}
    flat = read_json(path)
    about: dict[str, Any] = {key: flat.get(key) for key in ("checkpoint", "epoch")}
    tasks: dict[str, list[str]] = {}
    for key in flat:
        if match := _KEY.fullmatch(key):
            tasks.setdefault(match["list"], []).append(match["task"])
    found: dict[str | None, Measured] = {}
    for name, offered in tasks.items():
        task = _FIRST_CHOICE if _FIRST_CHOICE in offered else offered[0]
        values: dict[str, Any] = {
            metric + end: _number(flat, f"test/{task}/{name}/{metric}{end}", path)
            for metric in ("eer", "mindcf")
            for end in ("", "_low", "_high")
        }
        found[name] = Measured(**about, evaluation=task, **values)
    hashes: dict[str | None, str] = {
        name: str(flat[f"lists/{name}/hash"]) for name in tasks if f"lists/{name}/hash" in flat
    }
    return found or {None: Measured(**about)}, hashes


def _number(values: Mapping[str, Any], key: str, path: Path) -> float | None:
    """None where there is none, or it was not finite."""
    value = values.get(key)
    if value is None or _is_number(value):
        return value
    raise DataError(f"{path}: {key} is not a number but {value!r}; move the file away")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -------------------------------------------------------------------------------- published figures


def _find_published(folder: Path) -> Path | None:
    """The nearest file at ``folder`` or above it."""
    for place in (folder, *folder.resolve().parents):
        if (place / PUBLISHED_NAME).is_file():
            return place / PUBLISHED_NAME
    return None


def published_by_folder(folder: Path) -> dict[Path, Published]:
    path = _find_published(folder)
    if path is None:
        return {}
    root = path.parent.resolve()
    tables = _read_published(path).values()
    return {root / model: entry for table in tables for model, entry in table.items()}


def _read_published(path: Path) -> Tables:
    data, places = config_files.read(path)
    tables: Tables = {}
    try:
        for name, table in data["tables"].items():
            about = {key: str(table[key]) for key in ("list", "source")}
            tables[name] = {
                model: _entry(values, about, f"{path} line {_line(places, name, model)}: {model}")
                for model, values in table["models"].items()
            }
    except (KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: expected 'tables', each with 'list', 'source' and 'models'"
        ) from None
    return tables


def _line(places: config_files.Places, table: str, model: str) -> int:
    return places["tables", table, "models", model].line


def _entry(values: dict[str, Any], about: Mapping[str, str], where: str) -> Published:
    kinds = {"method": _is_text, "eer": _is_number, "mindcf": _is_number, "checkpoint": _is_text}
    required = set(kinds) - {"checkpoint"}
    if not required <= set(values) <= set(kinds) or not all(kinds[k](values[k]) for k in values):
        raise DataError(
            f"{where}: expected the text 'method', the numbers 'eer' and 'mindcf', and perhaps the "
            "address 'checkpoint'"
        )
    return Published(**values, list=about["list"], source=about["source"])


def _published_lines(table: Mapping[str, Published], links: str) -> list[str]:
    rows = []
    for model, entry in table.items():
        name = "/".join(model.split("/")[-2:])
        link = f"[:link:]({entry.checkpoint})" if entry.checkpoint else _NONE
        linked = f"[`{name}`]({Path(links, model).as_posix()})"
        rows.append([entry.method, linked, f"{entry.eer:.2f}", f"{entry.mindcf:.4f}", link])
    return _markdown(
        {"Method": "", "Model": "", "EER (%)": ":", "minDCF (p=0.01)": ":", "Checkpoint": ""}, rows
    )


def _between_markers(text: str, tables: Mapping[str, list[str]], file: Path) -> str:
    """``text`` with other lines between the markers; each table must have one pair of them."""
    lines: list[str] = []
    found: list[str] = []
    inside = None
    for number, line in enumerate(text.split("\n"), start=1):
        begin, end = _BEGIN.fullmatch(line.strip()), line.strip() == _END
        if end if inside is None else begin:
            raise DataError(
                f"{file} line {number}: '{line.strip()}' does not follow its counterpart; markers "
                f"are pairs of '<!-- results:begin NAME -->' and '{_END}'"
            )
        if begin and (begin[1] not in tables or begin[1] in found):
            raise DataError(
                f"{file} line {number}: '{begin[1]}' is not a table, or is there twice; tables "
                f"are: {', '.join(tables)}"
            )
        if inside is None or end:
            lines.append(line)
        if begin:
            inside = begin[1]
            found.append(inside)
            lines += ["", *tables[inside], ""]
        elif end:
            inside = None
    if inside is not None:
        raise DataError(f"{file}: no '{_END}' follows the marker of '{inside}'; add it")
    if missing := [name for name in tables if name not in found]:
        raise DataError(
            f"{file}: no marker '<!-- results:begin {missing[0]} -->'; add it and '{_END}' where "
            "the table belongs"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ tables

_HEADS = {  # ":" is for numbers
    "model": "",
    "method": "",
    "encoder": "",
    "parameters (M)": ":",
    "epochs": ":",
    "utterances/s": ":",
    "list": "",
    "list hash": "",
    "EER (%)": ":",
    "minDCF": ":",
    "measured": "",
    "published EER (%)": ":",
    "published minDCF (p=0.01)": ":",
    "published": "",
}


def _cells(row: Row) -> list[str]:
    count, speed = row.trainable_parameters, row.utterances_per_second
    return [
        row.model,
        row.method,
        row.encoder,
        _NONE if count is None else f"{count / 1e6:.2f}",
        str(row.epochs),
        _NONE if speed is None else f"{speed:.1f}",
        row.list or _NONE,
        row.list_hash or _NONE,
        *_measured_cells(row.measured),
        *_published_cells(row.published),
    ]


def _measured_cells(m: Measured | None) -> list[str]:
    if m is None:
        return [_NONE] * 3
    epoch = None if m.epoch is None else f"epoch {m.epoch}"
    origin = [str(x) for x in (m.checkpoint, epoch, m.evaluation) if x is not None]
    return [
        _with_interval(m.eer, m.eer_low, m.eer_high, 2),
        _with_interval(m.mindcf, m.mindcf_low, m.mindcf_high, 4),
        ", ".join(origin) or "evaluation.json",
    ]


def _published_cells(p: Published | None) -> list[str]:
    if p is None:
        return [_NONE] * 3
    return [f"{p.eer:.2f}", f"{p.mindcf:.4f}", f"{p.list}, {p.source}"]


def _with_interval(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    if value is None:
        return _NONE
    text = f"{value:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _markdown(heads: Mapping[str, str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; ``heads`` says of each column whether it is of numbers (":")."""
    lines = [list(heads), ["---" + end for end in heads.values()]]
    lines += [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]
