"""The card of an exported model: what a reader should know of it, as far as the run tells.

Nothing in it is assumed: what the run does not say is said to be unknown.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslsv.config import Config, from_dict
from sslsv.datasets.manifest import read_manifest
from sslsv.datasets.samplers import rows_in_use
from sslsv.encoders.huggingface import FoundationConfig
from sslsv.errors import UserError
from sslsv.evaluations.compare import FEW
from sslsv.evaluations.split import hold_out, split_of
from sslsv.files import atomic_write
from sslsv.model import ScoreCalibration
from sslsv.trainer import checkpoint

_MARK = b"<!-- written by sslsv export; sha256 of all above: "
_IN_PER_CENT = {"eer", "eer_rocch"}
_ENDS = ("low", "high")  # of intervals


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card is made of."""

    file: str  # name of the exported file
    suffix: str  # of the checkpoint
    about: Mapping[str, str]  # what the exported file says of itself
    parameters: int  # of what embeds
    state: Mapping[str, Any]  # the checkpoint
    base_path: Path  # where the training list is looked for
    results: Mapping[str, Any]  # of evaluation.json
    calibration: ScoreCalibration | None


def make_card(facts: Facts) -> str:
    """The card as Markdown."""
    about = facts.about
    sections = [
        [f"# {about['method']} with {about['encoder']}"],
        [
            f"A waveform of {int(about['sample_rate']):,} Hz in, an embedding of "
            f"{about['embedding_dim']} values out; the higher the cosine of two embeddings, the "
            "more likely they are of one speaker."
        ],
        ["## What it is"],
        [
            f"- file: `{facts.file}`, of the checkpoint `model_{facts.suffix}.pt`, written by "
            f"sslsv {about['sslsv_version']}",
            f"- method: {about['method']}",
            f"- encoder: {about['encoder']}",
            f"- parameters: {facts.parameters:,}, of what embeds",
            f"- embedding: {about['embedding_dim']} values",
        ],
        ["## Training"],
        _training(facts),
        ["## Measured results"],
        *_results(facts),
        ["## Calibration"],
        _calibration(facts.calibration),
        ["## Use"],
        ["```python", "import sslsv", *_python(facts.file), "```"],
        ["```bash", f"sslsv verify a.wav b.wav --model {facts.file}", "```"],
        ["## Limits"],
        [
            "Measured is what stands above and nothing else: how well the model works with other "
            "languages, channels, noise, durations or groups of speakers is unknown. Probabilities "
            "hold for speech like that of the list they were calibrated on."
        ],
        ["## Licence"],
        ["Unknown; for the author of the model to fill in."],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def write_card(path: Path, text: str) -> Path:
    """Write the card to ``path``, or beside it where somebody has edited the one that is there.

    The last line has a hash of all others, so that a card as it was written may be replaced and one
    that was edited is never lost. Returns where the card is.
    """
    place = next(p for p in _places(path) if not p.exists() or _as_written(p))
    body = text.encode()
    with atomic_write(place) as file:
        file.write(body + _MARK + _digest(body))
    return place


def _places(path: Path) -> Iterator[Path]:
    """``x.md``, ``x.new.md``, ``x.new2.md``, …"""
    yield path
    for number in itertools.count(1):
        yield path.with_suffix(f".new{number if number > 1 else ''}.md")


def _as_written(path: Path) -> bool:
    try:
        body, mark, digest = path.read_bytes().rpartition(_MARK)
    except OSError:
        return False
    return bool(mark) and digest == _digest(body)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b" -->\n"


def _python(file: str) -> list[str]:
    return [f'model = sslsv.load("{file}")', 'print(model.verify("a.wav", "b.wav"))']


# ------------------------------------------------------------------------------- training


def _training(facts: Facts) -> list[str]:
    config = _settings(facts.state)
    if config is None:
        return ["Unknown: the checkpoint does not say how it was trained."]
    count = _utterances(config, facts.base_path)
    known = "unknown, since the list is not at hand" if count is None else f"{count:,}"
    mean = "; the mean of several epochs' weights" if facts.suffix == "avg" else ""
    lines = [
        f"- list: `{_portable(config.dataset.train)}`",
        f"- utterances: {known}",
        f"- epochs: {facts.state.get('epoch', 'unknown')} of {config.trainer.epochs}{mean}",
        f"- seed: {config.seed}",
    ]
    return lines + [
        f"- started from: `{name}`, of whose training nothing is known here"
        for name in _starts(config)
    ]


def _starts(config: Config) -> list[str]:
    """Names of weights that the training did not begin without."""
    encoder, trainer = config.encoder, config.trainer
    found = [trainer.last_checkpoint or trainer.init_weights]
    if isinstance(encoder, FoundationConfig):
        found.append(getattr(encoder, encoder.source))
    return [_portable(str(start)) for start in found if start]


def _settings(state: Mapping[str, Any]) -> Config | None:
    """What a checkpoint was trained with, which the configuration at hand need not be."""
    try:
        settings = json.loads(state["config"])
        settings.pop(checkpoint.LABELS, None)
        return from_dict(settings)
    except (KeyError, TypeError, ValueError, UserError):  # of another system, or another version
        return None


def _utterances(config: Config, base_path: Path) -> int | None:
    """How many rows of the list, as it is now, the training uses; None: it cannot be read."""
    dataset = config.dataset
    try:
        manifest = read_manifest(dataset.train, base_path, dataset.label_key, dataset.max_samples)
        if split := split_of(config.evaluation.validation):
            manifest, _ = hold_out(manifest, split, config.seed)
        return len(np.unique(rows_in_use(dataset.sampler, manifest.labels, config.seed)))
    except UserError:
        return None


def _portable(path: str) -> str:
    """Without a folder of this machine."""
    return Path(path).name if Path(path).is_absolute() else path


# ------------------------------------------------------------------------------- results


def _results(facts: Facts) -> list[list[str]]:
    found, epoch = facts.results, facts.state.get("epoch")
    name = f"model_{facts.suffix}.pt"
    if not found:
        return [["Unknown: the run has no evaluation.json."]]
    if (found.get("checkpoint"), found.get("epoch")) != (name, epoch):
        return [
            [
                f"Unknown: evaluation.json has results of {found.get('checkpoint', 'an unnamed')} "
                f"(epoch {found.get('epoch', 'unknown')}) and not of {name} (epoch {epoch})."
            ]
        ]
    rows = [
        [system, place, f"{metric} (%)" if metric in _IN_PER_CENT else metric, *values]
        for group, system in (("test", "trained"), ("untrained", "untrained"), ("mfcc", "mfcc"))
        for place, metric, *values in _measured(found, f"{group}/")
    ]
    if not rows:
        return [["Unknown: evaluation.json has no results of tests."]]
    sections = [_table(["system", "evaluation", "metric", "value", "95 % interval"], rows)]
    lists = _lists(found)
    if lists:
        table = [
            [name, *(_count(about.get(key)) for key in ("trials", "targets", "speakers")), hash_]
            for name, about in lists.items()
            for hash_ in [str(about.get("hash", "unknown"))]
        ]
        sections.append(_table(["list", "trials", "targets", "speakers", "hash"], table))
    few = [n for n, about in lists.items() if (about.get("speakers") or FEW) < FEW]
    if few:
        sections.append(
            [f"Fewer than {FEW} speakers make the intervals too narrow: {', '.join(few)}."]
        )
    return sections


def _measured(found: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Evaluation and list, metric, value and interval of what has this prefix."""
    ends = {f"{key}_{end}" for key in found for end in _ENDS}
    for key, value in found.items():
        if not key.startswith(prefix) or key in ends:
            continue
        place, _, metric = key.removeprefix(prefix).rpartition("/")
        digits = 2 if metric in _IN_PER_CENT else 4
        low, high = (found.get(f"{key}_{end}") for end in _ENDS)
        bar = "unknown" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
        yield place, metric, "not finite" if value is None else f"{value:.{digits}f}", bar


def _lists(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Facts of each list of trials."""
    lists: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        if key.startswith("lists/"):
            name, _, fact = key.removeprefix("lists/").rpartition("/")
            lists.setdefault(name, {})[fact] = value
    return lists


def list_names(found: Mapping[str, Any]) -> dict[str, str]:
    """The name of each list of evaluation.json by its hash."""
    return {str(about["hash"]): name for name, about in _lists(found).items() if "hash" in about}


def _calibration(fitted: ScoreCalibration | None) -> list[str]:
    if fitted is None:
        return ["None: the file gives scores, and no probabilities."]
    return [
        f"- log-likelihood ratio: {fitted.scale:.4f} · cosine {fitted.offset:+.4f}",
        f"- fitted on: {fitted.list_name} (list {fitted.hash}), {fitted.trials:,} trials, "
        f"{fitted.targets:,} of them targets",
        f"- Cllr on the same trials: {fitted.cllr:.4f} bits",
        *(f"- {remark}" for remark in fitted.remarks),
    ]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
