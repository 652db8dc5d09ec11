"""Seconds of the evaluation's parts on lists of the usual sizes, against naive forms.

    python benchmarks/evaluation.py > evaluation.json
    python benchmarks/evaluation.py bootstrap > evaluation.json

JSON goes to stdout, a table to stderr. Sections:

*cosine*: a list as long as VoxCeleb1-H over as many utterances as VoxCeleb1 has is read from its
file, scored from embeddings in memory, and measured (EER, minDCF, actDCF, Cllr, AvgRPrec). The
naive form reads, normalises and multiplies trial by trial, and counts errors at 20 thresholds; it
is timed on some trials and taken as proportional. Memory is what a process needs beside what it
started with, the embeddings.

*bootstrap*: 95 % intervals from resamples of the speakers, on as many trials as VoxCeleb1-O has and
as many speakers, for one metric, for all of them and for the paired test of two systems. The naive
form repeats each trial as often as its speakers are drawn and measures that list anew; it is timed
on some resamples and taken as proportional.

Medians of repeats in which the forms take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before numpy is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

from sslsv.evaluations import metrics
from sslsv.evaluations.bootstrap import METRICS, intervals, paired
from sslsv.evaluations.cosine import score
from sslsv.evaluations.trials import read_trials
from sslsv.evaluations.verification import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
    group = parser.add_argument_group("cosine")
    group.add_argument("--list_trials", type=int, default=580_000)
    group.add_argument("--utterances", type=int, default=145_000)
    group.add_argument("--dim", type=int, default=512)
    group.add_argument("--looped_trials", type=int, default=20_000, help="of the naive form")
    group = parser.add_argument_group("bootstrap")
    group.add_argument("--trials", type=int, default=37_611)
    group.add_argument("--speakers", type=int, default=40)
    group.add_argument("--resamples", type=int, default=1000)
    group.add_argument("--looped", type=int, default=100, help="resamples of the naive form")
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"unknown section {', '.join(sorted(unknown))}")
    report: dict[str, Any] = {
        "processors": os.cpu_count(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "repeats": options.repeats,
    }
    rows = []
    for section in options.sections or SECTIONS:
        found, lines = SECTIONS[section](options)
        report[section] = found
        rows += lines
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(rows)


Row = tuple[str, float, float | None, str]  # part, seconds here and of the naive form, goal


def cosine(options: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    rng = np.random.default_rng(0)
    count, size, speakers = (
        options.utterances,
        options.list_trials,
        max(2, options.utterances // 120),
    )
    names = [f"id{i % speakers:05d}/session{i // speakers:05d}/00001.wav" for i in range(count)]
    of_speaker = rng.normal(size=(speakers, options.dim)).astype(np.float32)
    embeddings = of_speaker[np.arange(count) % speakers]
    for rows in np.array_split(np.arange(count), 64):
        embeddings[rows] += 3 * rng.normal(size=(len(rows), options.dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = rng.random(size) < 0.5
    enrol = rng.integers(0, count, size)
    other = rng.integers(0, count, size)
    sessions = count // speakers
    same = enrol % speakers + speakers * rng.integers(0, sessions, size)
    test = np.where(labels, same, np.where(other % speakers == enrol % speakers, enrol, other))
    labels = enrol % speakers == test % speakers
    folder = Path(tempfile.mkdtemp())
    path = folder / "list"
    rows = zip(labels.tolist(), enrol.tolist(), test.tolist(), strict=True)
    path.write_text("".join(f"{label:d} {names[a]} {names[b]}\n" for label, a, b in rows))

    def here() -> list[float]:
        trials = read_trials(path)
        place = {name: i for i, name in enumerate(names)}
        row = np.array([place[name] for name in trials.files])
        scores = score(embeddings, row[trials.enrol], row[trials.test])
        return [measure(name, scores, trials, (0.01, 1.0, 1.0)) for name in FIVE]

    def naive() -> None:
        known = dict(zip(names, embeddings, strict=True))
        scores, found = [], []
        with open(path) as file:
            for line, _ in zip(file, range(options.looped_trials), strict=False):
                label, a, b = line.split()
                x, y = known[a], known[b]
                scores.append(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)))
                found.append(label == "1")
        targets = sum(found)
        for threshold in np.linspace(-1, 1, 20):
            miss = sum(s < threshold for s, f in zip(scores, found, strict=True) if f) / targets
            accept = sum(s >= threshold for s, f in zip(scores, found, strict=True) if not f)
            _ = miss + accept

    memory = extra_gb(here)
    seconds = in_turns({"here": here, "naive": naive}, options.repeats)
    seconds["naive"] *= size / options.looped_trials
    path.unlink()
    folder.rmdir()
    sizes = f"{size} trials over {count} utterances, D = {options.dim}"
    found = {
        "sizes": sizes,
        "seconds": seconds["here"],
        "naive_s": seconds["naive"],
        "memory_gb": memory,
        "embeddings_gb": embeddings.nbytes / 1e9,
    }
    part = (
        f"read, score, five metrics: {sizes} ({memory:.2f} GB beside {embeddings.nbytes / 1e9:.2f})"
    )
    return found, [(part, seconds["here"], seconds["naive"], "3 s, 2 GB")]


def extra_gb(part: Callable[[], Any]) -> float:
    """Memory that ``part`` needs, measured in a process of its own that starts with all of this
    one's."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        part()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(writer, str((peak - pages * resource.getpagesize()) / 1e9).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return float(os.read(reader, 100))


def bootstrap(options: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    rng = np.random.default_rng(0)
    count, size = options.speakers, options.trials
    labels = rng.random(size) < 0.5
    a = rng.integers(0, count, size)
    b = np.where(labels, a, (a + rng.integers(1, count, size)) % count)
    speakers = np.stack([a, b])
    scores = rng.normal(size=size) + 4 * labels  # an EER of 2 %
    other = scores + 0.3 * rng.normal(size=size)
    how = {"resamples": options.resamples}

    def naive() -> None:
        for _ in range(options.looped):
            times = np.bincount(rng.integers(0, count, count), minlength=count)
            weights = np.where(labels, times[a], times[a] * times[b])
            metrics.eer(np.repeat(scores, weights), np.repeat(labels, weights))

    seconds = in_turns(
        {
            "eer": lambda: intervals(scores, labels, speakers, **how),
            "all": lambda: intervals(scores, labels, speakers, list(METRICS), **how),
            "paired": lambda: paired(scores, other, labels, speakers, **how),
            "eer_naive": naive,
        },
        options.repeats,
    )
    seconds["eer_naive"] *= options.resamples / options.looped
    found = {
        **{name: getattr(options, name) for name in ("trials", "speakers", "resamples", "looped")},
        **{f"{name}_s": value for name, value in seconds.items()},
    }
    sizes = f"{options.resamples} resamples, {size} trials"
    rows = [
        (f"interval of the EER, {sizes}", seconds["eer"], seconds["eer_naive"], "3 s"),
        (f"intervals of {len(METRICS)} metrics", seconds["all"], None, ""),
        ("paired test of two systems", seconds["paired"], 2 * seconds["eer_naive"], ""),
    ]
    return found, rows


SECTIONS: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], list[Row]]]] = {
    "cosine": cosine,
    "bootstrap": bootstrap,
}
FIVE = ("eer", "mindcf", "actdcf", "cllr", "avgrprec")


def in_turns(parts: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(rows: list[Row]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    line("part", "here", "naive", "ratio", "goal")
    line("---", "---:", "---:", "---:", "---")
    for part, here, naive, goal in rows:
        compared = ("", "") if naive is None else (f"{naive:.2f} s", f"{naive / here:.1f}")
        line(part, f"{here:.2f} s", *compared, goal)


if __name__ == "__main__":
    main()
