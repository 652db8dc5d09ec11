"""The page: what is shown, as JSON, inside page.html with page.css and page.js."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sslsv import __version__
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import plots
from sslsv.files import atomic_write
from sslsv.report.clips import LIMIT_MB, SECONDS, clips
from sslsv.report.maps import maps, read_labels
from sslsv.report.runs import Findings, Missing, differences, read_runs, signals

SECTIONS = ("configuration", "training", "results", "det", "map", "hardest")
_LOW, _HIGH = (1e-3, 1e-4, 1e-5), (0.5, 0.8, 0.99)  # limits that the axes of a DET plot may have


def report(
    folders: Sequence[Path],
    out: Path,
    embeddings: Sequence[Path] = (),
    labels: Path | None = None,
    audio: Path | None = None,
    audio_mb: float = LIMIT_MB,
) -> list[str]:
    """Write the page of the runs in ``folders`` to ``out``; returns sentences on what is left out.

    Args:
        embeddings: .npz files of ``sslsv embed`` to draw maps of; none: what is in runs' caches.
        labels: CSV with columns File and others, to colour maps by.
        audio: folder that names of files in score files are below, to make hardest pairs playable.
        audio_mb: MB that clips may take in the page.

    Raises:
        DataError: a folder is not that of a run or has no results; another file cannot be used.
    """
    if not audio_mb >= 0:
        raise ConfigError(f"--audio_mb: must be 0 or more, got {audio_mb}")
    if out.is_dir():
        raise DataError(f"--out: {out}: is a folder; give the name of a file")
    data = collect(folders, embeddings, labels, audio, audio_mb)
    with atomic_write(out, "w") as file:
        file.write(page(data))
    return [sentence for sentences in data["missing"].values() for sentence in sentences]


def collect(
    folders: Sequence[Path],
    embeddings: Sequence[Path] = (),
    labels: Path | None = None,
    audio: Path | None = None,
    audio_mb: float = LIMIT_MB,
) -> dict[str, Any]:
    """What the page shows, for JSON. Arguments and errors as `report`."""
    missing: Missing = {section: [] for section in SECTIONS}
    known = None if labels is None else read_labels(labels)
    runs = read_runs(folders)
    found = Findings(runs, missing)
    if len(runs) < 2:
        missing["configuration"].append("There is one run; two or more are compared here.")
    if audio is None:
        missing["hardest"].append("--audio BASE_PATH makes the pairs playable.")
    return {
        "version": __version__,
        "runs": [{"name": run.name, "about": run.about()} for run in runs],
        "configuration": differences(runs),
        "signals": signals(runs, missing),
        "systems": found.systems,
        "lists": found.lists,
        "results": found.results,
        "others": found.others,
        "scores": found.scores,
        "det": {
            "ticks": [[_deviate(tick / 100), f"{tick:g}"] for tick in plots.TICKS],
            "low": [[rate, _deviate(rate)] for rate in _LOW],
            "high": [[rate, _deviate(rate)] for rate in _HIGH],
        },
        "maps": maps(runs, embeddings, known, missing),
        "clips": {} if audio is None else clips(found, audio, audio_mb, missing),
        "clip_seconds": SECONDS,
        "missing": missing,
    }


def _deviate(rate: float) -> float:
    return round(float(plots.probit(rate)), 5)


def page(data: dict[str, Any]) -> str:
    """HTML that holds ``data``; the script writes names from there as text, never as HTML."""
    colours = "".join(f"--c{i}:{colour};" for i, colour in enumerate(plots.COLOURS))
    parts = {
        "STYLE": f":root{{{colours}}}\n{_template('page.css')}",
        "DATA": as_json(data),
        "SCRIPT": _template("page.js"),
    }
    text = _template("page.html")
    pieces = text.split("@@")  # text, name, text, name, ...: what is put in is not searched again
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def as_json(value: Any) -> str:
    """ASCII in which no name can end the script element it stands in, or begin a comment there."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _template(name: str) -> str:
    return (resources.files("sslsv.report") / name).read_text(encoding="utf-8")
