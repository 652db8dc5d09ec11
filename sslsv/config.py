"""One YAML file is one experiment: YAML + ``key=value`` overrides -> a tree of dataclasses.

A field is declared in the file that uses it (``EncoderConfig`` beside the encoders, and so on);
here the tree is put together, strictly: an unknown key, a wrong type or a value out of range is
refused with the line it stands on. The schema is described in ``docs/architecture.md``.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import dacite
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from sslsv import audio, distributed
from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.base import EncoderConfig
from sslsv.errors import ConfigError
from sslsv.evaluations.base import EvaluationConfig, TaskConfig
from sslsv.files import atomic_write
from sslsv.methods.base import MethodConfig
from sslsv.registry import ENCODERS, EVALUATIONS, METHODS
from sslsv.trainer.trainer import TrainerConfig

RESOLVED_NAME = "resolved_config.yml"
KeyPath = tuple[str | int, ...]
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
        if self.seed < 0:
            raise ConfigError(f"seed: must be 0 or more, got {self.seed}")

    def check(self, world_size: int = 1) -> None:
        """Refuse combinations of sections that contradict each other."""
        wanted = METHODS.get(self.method.type).cls.views  # type: ignore[attr-defined]
        if self.dataset.sampling != wanted:
            raise ConfigError(
                f"method.type: '{self.method.type}' needs {wanted} views but the dataset gives "
                f"{self.dataset.sampling} ones; {_SAMPLING_HINTS[wanted]}"
            )
        if self.trainer.batch_size % world_size:
            raise ConfigError(
                f"trainer.batch_size: {self.trainer.batch_size} does not divide over {world_size} "
                f"processes; use a multiple of {world_size}"
            )
        shortest = self.encoder.min_samples
        for name, length in self.dataset.lengths().items():
            if length < shortest:
                raise ConfigError(
                    f"dataset.{name}: {length} samples are shorter than one analysis window of "
                    f"the encoder ({shortest})"
                )
        rate = self.encoder.mel_sample_rate
        if self.encoder.extract_mel_features and rate != audio.SAMPLE_RATE:
            raise ConfigError(
                f"encoder.mel_sample_rate: audio is read at {audio.SAMPLE_RATE} Hz, got {rate}; "
                "set dataset.resample: true to convert files of other rates"
            )
        self._check_tracked_metric()

    def _check_tracked_metric(self) -> None:
        tracked, tasks = self.trainer.tracked_metric, self.evaluation.validation
        if not tasks or tracked.startswith("train/"):
            return
        offered = [f"val/{name}" for task in tasks for name in task.metric_names()]
        if tracked not in offered:
            raise ConfigError(
                f"trainer.tracked_metric: '{tracked}' is not among what evaluation.validation "
                f"gives: {', '.join(offered)}, train/loss"
            )


_SAMPLING_HINTS = {
    "single": "set dataset.ssl: false",
    "siamese": "set dataset.ssl: true and dataset.frame_sampling: default",
    "multicrop": "set dataset.ssl: true and dataset.frame_sampling: dino",
}


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read ``path``, apply ``overrides`` (``a.b=value``, ``a.0.b=[x,y]``) and check everything.

    Raises ConfigError with file, line and key. ``run_dir`` of the result is never None.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.yml"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration ({_reason(error)})") from None
    data, lines = _parse(text, path)
    overridden: set[KeyPath] = set()
    for override in overrides:
        overridden.add(_apply_override(data, override))
    try:
        config = _build_section(Config, data, ())
        config.check(distributed.world_size())
    except _Located as error:
        raise ConfigError(_locate(error, path, lines, overridden)) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    config.run_dir = config.run_dir or path.parent
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain YAML/JSON values of a config tree (paths as strings, tuples as lists)."""
    return _plain(dataclasses.asdict(config))


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
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with atomic_write(path, "w") as file:
        yaml.dump(to_dict(config), file)
    return path


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Keys whose values differ: ``{"encoder.base_dim": "16 -> 8"}``."""
    found: dict[str, str] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = f"{a} -> {b}"
    return found


# ---------------------------------------------------------------------------- YAML and overrides


def _parse(text: str, path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Safe-load ``text``; also the line on which each key stands."""
    try:
        data = YAML(typ="safe", pure=True).load(text)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        problem = (error.problem or str(error)).splitlines()[0]
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' sections, got {_shown(data)}")
    lines: dict[KeyPath, int] = {}
    _collect_lines(root, (), lines)
    return data, lines


def _collect_lines(node: Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if isinstance(node, MappingNode):
        children = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, SequenceNode):
        children = [(index, value, value) for index, value in enumerate(node.value)]
    else:
        return
    for name, marked, value in children:
        here = (*path, name)
        lines[here] = marked.start_mark.line + 1
        _collect_lines(value, here, lines)


def _apply_override(data: dict[str, Any], override: str) -> KeyPath:
    """Set one ``a.b.0.c=value`` in ``data``; the value is YAML. Returns the key path."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override '{override}': expected key.sub=value")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise ConfigError(f"override '{override}': '{text}' is not a YAML value") from None
    parts = name.split(".")
    keys: list[str | int] = []
    node: Any = data
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth]) or "the configuration"
        key: str | int = part
        if isinstance(node, list):
            if not part.isdigit() or int(part) > len(node):
                raise ConfigError(
                    f"override '{override}': {here} is a list of {len(node)}; "
                    f"use a number from 0 to {len(node)}, not '{part}'"
                )
            key = int(part)
            if key == len(node):
                node.append({})
        elif not isinstance(node, dict):
            raise ConfigError(f"override '{override}': {here} has no keys below it")
        keys.append(key)
        if depth == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = [] if parts[depth + 1].isdigit() else {}
        node = node[key]
    return tuple(keys)


# ---------------------------------------------------------------------------- building the tree


class _Located(Exception):
    """What is wrong, and at which key."""

    def __init__(self, path: KeyPath, message: str):
        self.path = path
        super().__init__(f"{'.'.join(map(str, path))}: {message}" if path else message)


def _locate(
    error: _Located, file: Path, lines: dict[KeyPath, int], overridden: set[KeyPath]
) -> str:
    path = error.path
    while path and path not in lines:
        if path in overridden:
            return f"{error} (given on the command line)"
        path = path[:-1]
    if any(error.path[: len(given)] == given for given in overridden):
        return f"{error} (given on the command line)"
    return f"{file} line {lines[path]}: {error}" if path else f"{file}: {error}"


def _build_section(cls: Any, data: Any, path: KeyPath) -> Any:
    """An instance of dataclass ``cls`` from parsed YAML."""
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise _Located(path, f"expected a section of 'key: value' lines, got {_shown(data)}")
    if cls in _CHOSEN_BY_TYPE:
        cls = _config_class(cls, data, path)
    names = [f.name for f in fields(cls)]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(names)}"
            raise _Located((*path, key), f"unknown key; {hint}")
        values[key] = _build_value(hints[key], value, (*path, key))
    for f in fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise _Located((*path, f.name), "missing; this section must be given")
    try:
        return dacite.from_dict(cls, values, _DACITE)
    except dacite.WrongTypeError as error:
        key = (*path, *(error.field_path or "").split("."))
        value = _shown(error.value)
        raise _Located(key, f"expected {_type_name(error.field_type)}, got {value}") from None
    except ConfigError as error:  # from __post_init__: "field: what is wrong"
        name, _, message = str(error).partition(": ")
        raise _Located((*path, *name.split(".")), message) from None


def _config_class(base: type, data: dict[str, Any], path: KeyPath) -> type:
    registry = _CHOSEN_BY_TYPE[base]
    if "type" not in data:
        raise _Located((*path, "type"), f"missing; choose one of: {', '.join(registry.names())}")
    try:
        return registry.get(data["type"]).config
    except ConfigError as error:
        raise _Located((*path, "type"), str(error).partition(": ")[2]) from None


def _build_value(hint: Any, value: Any, path: KeyPath) -> Any:
    """Sections and lists of sections become dataclasses; anything else stays for dacite."""
    if is_dataclass(hint):
        return _build_section(hint, value, path)
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) and value is not None:
        sections = [a for a in arguments if is_dataclass(a)]
        return _build_value(sections[0], value, path) if sections else value
    if typing.get_origin(hint) is list and is_dataclass(arguments[0]):
        if not isinstance(value, list):
            raise _Located(path, f"expected a list ('- type: ...'), got {_shown(value)}")
        return [_build_section(arguments[0], v, (*path, i)) for i, v in enumerate(value)]
    return value


def _integer(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts True as an int, YAML users do not
        raise dacite.WrongTypeError(int, value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise dacite.WrongTypeError(float, value)
    return float(value)


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike):
        raise dacite.WrongTypeError(Path, value)
    return Path(value)


_DACITE = dacite.Config(type_hooks={int: _integer, float: _number, Path: _path}, cast=[tuple])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return " or ".join(_type_name(a) for a in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    names |= {Path: "a path", type(None): "null"}
    return names.get(hint) or str(hint)


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
