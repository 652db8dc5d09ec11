"""One YAML file is one experiment: YAML + ``key=value`` overrides -> a tree of dataclasses.

What a file says is read by ``config_files.py``, with the file that it builds on if it names one.

A field is declared in the file that uses it (``EncoderConfig`` beside the encoders, and so on);
here the tree is put together, strictly: an unknown key, a wrong type or a value out of range is
refused with the line it stands on. The schema is described in ``docs/architecture.md``.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from sslsv import audio, config_files, distributed
from sslsv.config_files import KeyPath, Places, plain, shown
from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.evaluations.base import EvaluationConfig, TaskConfig
from sslsv.evaluations.split import split_of
from sslsv.files import atomic_write
from sslsv.methods.base import MethodConfig
from sslsv.registry import ENCODERS, EVALUATIONS, METHODS
from sslsv.trainer.config import TrainerConfig

RESOLVED_NAME = "resolved_config.yml"
_CHOSEN_BY_TYPE = {EncoderConfig: ENCODERS, MethodConfig: METHODS, TaskConfig: EVALUATIONS}


@dataclass(kw_only=True)
class Config:
    """The whole experiment."""

    encoder: EncoderConfig
    method: MethodConfig
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 1717  # every random draw of the run derives from it
    reproducibility: bool = False  # deterministic kernels only (slower on a GPU)
    run_dir: Path | None = None  # where results go; the config's own folder when null

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: must be from 0 to 2^63 - 1, got {self.seed}")

    def check(self, world_size: int = 1) -> None:
        """Refuse combinations of sections that contradict each other."""
        method: Any = METHODS.get(self.method.type).cls
        wanted = method.views
        if self.dataset.sampling not in (wanted, *method.also_views):
            raise ConfigError(
                f"method.type: '{self.method.type}' needs {wanted} views but the dataset gives "
                f"{self.dataset.sampling} ones; {_SAMPLING_HINTS[wanted]}"
            )
        if self.method.ssps and not method.positives:
            raise ConfigError(
                f"method.ssps: '{self.method.type}' compares no positives that could be replaced; "
                "remove the section"
            )
        if self.dataset.ssps and not self.method.ssps:
            raise ConfigError(
                "dataset.ssps: nothing uses the reference view without a section method.ssps; add "
                "one or set dataset.ssps: false"
            )
        if self.method.ssps and not self.dataset.ssps:
            raise ConfigError("method.ssps: needs the reference view; set dataset.ssps: true")
        pieces = world_size * self.trainer.accumulation
        if self.trainer.batch_size % pieces:
            parts = f" in {self.trainer.accumulation} parts (trainer.accumulation)"
            raise ConfigError(
                f"trainer.batch_size: {self.trainer.batch_size} does not divide over {world_size} "
                f"processes{parts if self.trainer.accumulation > 1 else ''}; use a multiple of "
                f"{pieces}"
            )
        if self.method.needs_sequence != self.encoder.gives_sequence:
            wanted, given = (
                _OUTPUTS[self.method.needs_sequence],
                _OUTPUTS[self.encoder.gives_sequence],
            )
            raise ConfigError(
                f"method.type: '{self.method.type}' needs {wanted} but encoder.type "
                f"'{self.encoder.type}' gives {given}; {_POOLING_HINTS[self.method.needs_sequence]}"
            )
        whole = self.trainer.batch_size  # what a queue takes in; a loss sees one part of it
        for size in dict.fromkeys((whole, whole // self.trainer.accumulation)):
            self.method.check(size, self.encoder, self.dataset)
        shortest = self.encoder.min_samples
        lengths = {f"dataset.{name}": n for name, n in self.dataset.lengths().items()}
        for name in ("validation", "test"):
            for i, task in enumerate(getattr(self.evaluation, name)):
                lengths[f"evaluation.{name}.{i}.frame_length"] = task.frame_length or shortest
        for name, length in lengths.items():
            if length < shortest:
                raise ConfigError(
                    f"{name}: {length} samples are shorter than one analysis window of the "
                    f"encoder ({shortest})"
                )
        rate = self.encoder.mel_sample_rate
        if self.encoder.extract_mel_features and rate != audio.SAMPLE_RATE:
            raise ConfigError(
                f"encoder.mel_sample_rate: must be {audio.SAMPLE_RATE}, the rate at which audio is "
                f"read, got {rate}; dataset.resample: true converts files of other rates"
            )
        for i, task in enumerate(self.evaluation.test):
            if split_of([task]):
                raise ConfigError(
                    f"evaluation.test.{i}.split: held-out speakers are for evaluation.validation "
                    "only, while a model is trained; test on lists of trials in files"
                )
        self._check_tracked_metric()

    def _check_tracked_metric(self) -> None:
        tracked, tasks = self.trainer.tracked_metric, self.evaluation.validation
        if not tasks and tracked.startswith("val/"):  # nothing is validated, nothing tracked
            return
        offered = [f"val/{name}" for task in tasks for name in task.metric_names()]
        offered += ["train/loss", *self._signals()]
        if tracked not in offered:
            raise ConfigError(
                f"trainer.tracked_metric: '{tracked}' is not among what this run measures: "
                f"{', '.join(offered)} (evaluation.validation adds to them)"
            )

    def _signals(self) -> list[str]:
        """What each epoch tells of the embeddings without labels, and of clusters with them."""
        names = []
        if self.trainer.batch_size > 1:
            names += ["train/effective_rank", "train/embedding_std", "train/uniformity"]
            names += ["train/alignment"] if len(self.dataset.views()) > 1 else []
        ssps = self.method.ssps
        if ssps and ssps.clusters and ssps.start_epoch < self.trainer.epochs:
            names += [f"train/ssps_kmeans_nmi_{name.lower()}" for name in ssps.metric_columns]
        return names


_OUTPUTS = {True: "a sequence of frames", False: "one vector for each utterance"}
_POOLING_HINTS = {
    True: "set encoder.pooling: false, or choose simpleaudiocnn",
    False: "set encoder.pooling: true, or choose an encoder that pools over time",
}
_SAMPLING_HINTS = {
    "single": "set dataset.ssl: false",
    "siamese": "set dataset.ssl: true and dataset.frame_sampling: default",
    "multicrop": "set dataset.ssl: true and dataset.frame_sampling: dino",
}


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read ``path`` and its bases, apply ``overrides`` (``a.b=value``, ``a.0.b=[x,y]``) and check
    everything.

    Raises ConfigError with file, line and key. ``run_dir`` of the result is never None.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.yml"
    data, places = config_files.read(path)
    overridden: set[KeyPath] = set()
    for override in overrides:
        overridden.add(_apply_override(data, override))
    try:
        config = _build_section(Config, data, ())
        config.check(distributed.world_size())
    except (_Located, ConfigError) as error:
        raise ConfigError(_locate(_located(error), path, places, overridden)) from None
    config.run_dir = config.run_dir or path.parent
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain YAML/JSON values of a config tree (paths as strings, tuples as lists)."""
    return plain(dataclasses.asdict(config))


def from_dict(data: dict[str, Any]) -> Config:
    """The inverse of ``to_dict``, for the copy that a checkpoint carries."""
    try:
        return _build_section(Config, data, ())
    except _Located as error:
        raise ConfigError(str(error)) from None


def save_resolved(config: Config) -> Path:
    """Write every value in force into the run folder."""
    assert config.run_dir is not None
    path = config.run_dir / RESOLVED_NAME
    with atomic_write(path, "w") as file:
        config_files.write(to_dict(config), file)
    return path


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Keys whose values differ: ``{"encoder.base_dim": "16 -> 8"}``."""
    found: dict[str, str] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = f"{_brief(a)} -> {_brief(b)}"
    return found


# ----------------------------------------------------------------------------------- overrides


def _apply_override(data: dict[str, Any], override: str) -> KeyPath:
    """Set one ``a.b.0.c=value`` in ``data``; the value is YAML. Returns the key path."""
    name, equals, text = override.partition("=")
    parts = name.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override '{override}': expected key.sub=value")
    try:
        value = config_files.parse_value(text)
    except ValueError as error:
        raise ConfigError(f"override '{override}': {error}") from None
    if parts == [config_files.BASE]:
        raise ConfigError(f"override '{override}': a base can only be named in a file")
    node: Any = data
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth]) or "the configuration"
        key: str | int = part
        if isinstance(node, list):
            end = len(node)
            if not part.isdecimal() or int(part) > end:
                raise ConfigError(
                    f"override '{override}': {here} is a list of {end}; use a number from 0 to "
                    f"{end} ({end} adds an entry), not '{part}'"
                )
            key = int(part)
            if key == end:
                node.append({})
        elif not isinstance(node, dict):
            raise ConfigError(f"override '{override}': {here} has no keys below it")
        if depth == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = [] if parts[depth + 1].isdecimal() else {}
        node = node[key]
    return tuple(parts)


# ---------------------------------------------------------------------------- building the tree


class _Located(Exception):
    """What is wrong, and at which key."""

    def __init__(self, path: KeyPath, message: str):
        self.path = path
        super().__init__(f"{'.'.join(path)}: {message}" if path else message)


def _located(error: _Located | ConfigError, section: KeyPath = ()) -> _Located:
    """From a check's own words, "field.sub: what is wrong", where it is wrong."""
    if isinstance(error, _Located):
        return error
    name, _, message = str(error).partition(": ")
    return _Located((*section, *name.split(".")), message)


def _locate(error: _Located, file: Path, places: Places, overridden: set[KeyPath]) -> str:
    path = error.path
    from_override = any(path[: len(given)] == given for given in overridden)
    while path and path not in places and not from_override:
        from_override = any(given[: len(path)] == path for given in overridden)
        path = path[:-1]
    if from_override:
        return f"{error} (given on the command line)"
    if not path:
        return f"{file}: {error}"
    place = places[path]
    user = "" if place.file == file else f" ({file} builds on this file)"
    return f"{place.file} line {place.line}: {error}{user}"


def _build_section(cls: Any, data: Any, path: KeyPath) -> Any:
    """An instance of dataclass ``cls`` from parsed YAML."""
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise _Located(path, f"expected a section of 'key: value' lines, got {shown(data)}")
    if cls in _CHOSEN_BY_TYPE:
        cls = _config_class(cls, data, path)
    names = [f.name for f in fields(cls)]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.7)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(names)}"
            raise _Located((*path, str(key)), f"unknown key; {hint}")
        values[key] = _build_value(hints[key], value, (*path, key))
    for f in fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise _Located((*path, f.name), "missing; this section must be given")
    try:
        return cls(**values)
    except ConfigError as error:  # from __post_init__
        raise _located(error, path) from None


def _config_class(base: type, data: dict[str, Any], path: KeyPath) -> type:
    registry = _CHOSEN_BY_TYPE[base]
    if data.get("type") is None:
        raise _Located((*path, "type"), f"missing; choose one of: {', '.join(registry.names())}")
    try:
        return registry.get(data["type"]).config
    except ConfigError as error:
        raise _located(error, path) from None


def _build_value(hint: Any, value: Any, path: KeyPath) -> Any:
    """``value`` as the type ``hint`` of its field: a section, or a list, or a single value."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None
        if value is None:
            return None
        (kind,) = (choice for choice in typing.get_args(hint) if choice is not type(None))
    else:
        kind = hint
    if is_dataclass(kind):
        return _build_section(kind, value, path)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [_build_value(inner[0], v, (*path, str(i))) for i, v in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(inner):
        return tuple(_build_value(inner[i], v, (*path, str(i))) for i, v in enumerate(value))
    if origin is typing.Literal and any(type(value) is type(x) and value == x for x in inner):
        return value  # types are compared since 1 equals true
    if kind is float and type(value) is int and abs(value) < 2**53:  # so that none is rounded
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is kind:  # isinstance would take true for a whole number
        return value
    raise _Located(path, f"expected {_type_name(hint)}, got {shown(value)}")


def _brief(value: Any) -> str:
    return "a section" if isinstance(value, dict) else "null" if value is None else str(value)


def _type_name(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        words = {True: "true", False: "false"}
        return "one of " + ", ".join(words[x] if isinstance(x, bool) else str(x) for x in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(choice) for choice in inner)
    if origin is list and is_dataclass(inner[0]):
        return "a list of sections ('- type: ...')"
    if origin in (list, tuple):
        count = f" of {len(inner)}" if origin is tuple else ""
        return f"a list{count} (each {_type_name(inner[0])})"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return (names | {Path: "a path", type(None): "null"})[hint]
