"""Two systems on the same trials: values, error bars, difference and p value as a table."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslsv.errors import DataError, listing
from sslsv.evaluations.bootstrap import (
    Comparison,
    Costs,
    Interval,
    check_name,
    paired,
    speaker_codes,
)
from sslsv.evaluations.metrics import calibration_warning, check_application
from sslsv.evaluations.trials import Trials, read_scores

FEW = 40  # speakers; with fewer, intervals hold the true value less often than they say
_SYSTEM = "trained_"  # score files of a run's own model; others are of baselines
_TITLES = {
    "eer": "EER (%)",
    "eer_rocch": "EER on the convex hull of the ROC (%)",
    "mindcf": "minDCF",
    "actdcf": "actDCF",
    "cllr": "Cllr",
    "mincllr": "minCllr",
}
_DECIMALS = {"eer": 2, "eer_rocch": 2}  # four for all others


@dataclass(frozen=True)
class Row:
    """One list of trials in a comparison."""

    name: str
    hash: str  # of `list_hash`
    trials: int
    speakers: int
    found: Comparison


@dataclass(frozen=True)
class Report:
    """What `compare` found, list by list."""

    a: Path
    b: Path
    metric: str
    costs: Costs
    resamples: int
    seed: int
    rows: list[Row]
    remarks: list[str]  # what a reader should know besides


def compare(
    a: Path,
    b: Path,
    metric: str = "eer",
    speakers: Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
    p_target: float = 0.01,
) -> Report:
    """Compare two score files, or all lists that two runs have been evaluated on.

    Args:
        a: score file, or the folder of a run, as ``b``; trials may be in another order there.
        speakers: CSV with columns File and Speaker. None: see `speaker_codes`.

    Raises:
        DataError: a file cannot be read, has scores that are not finite or lacks a class, two
            lists differ, or files have no speaker.
        ConfigError: an impossible metric, number of resamples or prior.
    """
    check_name(metric)
    costs = (p_target, 1.0, 1.0)
    check_application(*costs)
    pairs, remarks = _score_files(a, b)
    known = None if speakers is None else read_speakers(speakers)
    if known is None:
        remarks.append(
            "speakers are files joined by target trials; where these do not join all files of a "
            "speaker, intervals are too narrow, and --speakers FILE.csv mends it"
        )
    read = []
    for name, path_a, path_b in pairs:  # all before the first resample
        trials, scores_a = _read(path_a)
        other, scores_b = _read(path_b)
        scores_b = scores_b[_same_trials(path_a, trials, path_b, other)]
        read.append((name, trials, speaker_codes(trials, known), scores_a, scores_b))
        if metric in ("actdcf", "cllr"):
            for path, scores in ((path_a, scores_a), (path_b, scores_b)):
                if warning := calibration_warning(scores, trials.labels):
                    remarks.append(f"{path}: {warning}")

    rows = []
    how = {"resamples": resamples, "seed": seed}
    for name, trials, codes, scores_a, scores_b in read:
        systems = scores_a, scores_b
        found = paired(*systems, trials.labels, codes, metric, costs=costs, **how)
        count = len(np.unique(codes))
        rows.append(Row(name, list_hash(trials), len(trials), count, found))
        if count < FEW:
            remarks.append(f"{name}: only {count} speakers, so intervals and p are too optimistic")
    return Report(a, b, metric, costs, resamples, seed, rows, remarks)


def list_hash(trials: Trials) -> str:
    """Eight hexadecimal digits that tell lists apart, whatever the order of their lines.

    Of a list with lines ``<1|0> <enrol> <test>``, one space between, they are the first digits of
    ``LC_ALL=C sort LIST | sha256sum``.
    """
    text = "".join(f"{line}\n" for line in sorted(_lines(trials)))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_speakers(path: Path) -> dict[str, str]:
    """Speaker of each file, from the columns File and Speaker of a CSV.

    Raises:
        DataError: the file cannot be read, a column or field is missing, or a file has two
            speakers.
    """
    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            if missing := [name for name in ("File", "Speaker") if name not in columns]:
                raise DataError(
                    f"{path}: no column {' and no column '.join(missing)}; "
                    f"it has: {', '.join(columns) or 'nothing'}"
                )
            for row in reader:
                name, speaker = row["File"], row["Speaker"]
                if not name or not speaker or None in row:
                    raise DataError(
                        f"{path} line {reader.line_num}: expected a File, a Speaker and "
                        f"{len(columns)} fields in all"
                    )
                if found.setdefault(name, speaker) != speaker:
                    raise DataError(
                        f"{path} line {reader.line_num}: {name} has the speaker {speaker} here "
                        f"and {found[name]} above"
                    )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV in UTF-8 ({error})") from None
    return found


def format_report(report: Report) -> str:
    """Text for a terminal."""
    title = _TITLES[report.metric]
    if report.metric in ("mindcf", "actdcf"):
        title += f" (p_target {report.costs[0]:g})"
    digits = _DECIMALS.get(report.metric, 4)
    table = [["list", "hash", "trials", "speakers", "A", "B", "A - B", "p"]]
    for row in report.rows:
        found = row.found
        table.append(
            [
                *(row.name, row.hash, str(row.trials), str(row.speakers)),
                _cell(found.a, found.interval_a, digits),
                _cell(found.b, found.interval_b, digits),
                _cell(found.difference, found.interval, digits, "+"),
                f"{found.p:.4f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(
        [
            f"A: {report.a}",
            f"B: {report.b}",
            f"{title}, 95 % intervals and two-sided p: {report.resamples} resamples of the "
            f"speakers, seed {report.seed}",
            "",
            *lines,
            *([""] if report.remarks else []),
            *(f"note: {remark}" for remark in report.remarks),
        ]
    )


def _cell(value: float, interval: Interval, digits: int, sign: str = "") -> str:
    texts = [f"{x + 0.0:{sign}.{digits}f}" for x in (value, *interval)]  # + 0.0: never -0
    return "{} [{}, {}]".format(*texts)


def _score_files(a: Path, b: Path) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Name of each list and its two score files; and what is left out."""
    for path in (a, b):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if a.is_dir() != b.is_dir():
        run, file = (a, b) if a.is_dir() else (b, a)
        raise DataError(
            f"{run} is a folder and {file} a file; give two score files, or two folders of runs"
        )
    if not a.is_dir():
        name = a.stem if a.stem == b.stem else f"{a.stem}, {b.stem}"
        return [(name, a, b)], []

    lists_a, lists_b = _lists(a), _lists(b)
    common = sorted(lists_a.keys() & lists_b.keys())
    if not common:
        raise DataError(
            f"no list in common: {a} has {listing(sorted(lists_a))}; "
            f"{b} has {listing(sorted(lists_b))}"
        )
    remarks = [
        f"only in {run}, not compared: {listing(sorted(only))}"
        for run, only in (
            (a, lists_a.keys() - lists_b.keys()),
            (b, lists_b.keys() - lists_a.keys()),
        )
        if only
    ]
    return [(name, lists_a[name], lists_b[name]) for name in common], remarks


def _lists(run: Path) -> dict[str, Path]:
    """Score files of a run by the name of their list."""
    found = {
        path.stem.removeprefix(_SYSTEM): path for path in (run / "scores").glob(f"{_SYSTEM}*.txt")
    }
    if not found:
        raise DataError(
            f"{run}: no {run / 'scores' / _SYSTEM}*.txt; run 'sslsv evaluate' on it first"
        )
    return found


def _read(path: Path) -> tuple[Trials, np.ndarray]:
    trials, scores = read_scores(path)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        lines = [
            f"line {i + 1} ({trials.files[trials.enrol[i]]} {trials.files[trials.test[i]]} "
            f"{scores[i]})"
            for i in bad.tolist()
        ]
        raise DataError(
            f"{path}: {len(bad)} of {len(scores)} scores are not finite numbers: {listing(lines)}"
        )
    return trials, scores


def _same_trials(path_a: Path, a: Trials, path_b: Path, b: Trials) -> np.ndarray:
    """Where each trial of ``a`` stands in ``b``: (T,)."""
    lines_a, lines_b = _lines(a), _lines(b)
    if lines_a == lines_b:
        return np.arange(len(a))
    order_a = sorted(range(len(a)), key=lines_a.__getitem__)
    order_b = sorted(range(len(b)), key=lines_b.__getitem__)
    if [lines_a[i] for i in order_a] == [lines_b[i] for i in order_b]:
        place = np.empty(len(a), dtype=np.intp)
        place[order_a] = order_b
        return place
    parts = []
    for path, own, others in ((path_a, lines_a, lines_b), (path_b, lines_b, lines_a)):
        if only := sorted((Counter(own) - Counter(others)).elements()):
            named = listing([f"'{line}'" for line in only])
            parts.append(f"{len(only)} of {len(own)} trials only in {path}: {named}")
    raise DataError(f"the lists differ, so their results cannot be compared: {'; '.join(parts)}")


def _lines(trials: Trials) -> list[str]:
    """``<1|0> <enrol> <test>`` of each trial."""
    files = trials.files
    columns = trials.labels.tolist(), trials.enrol.tolist(), trials.test.tolist()
    return [f"{label:d} {files[a]} {files[b]}" for label, a, b in zip(*columns, strict=True)]
