"""Seconds of the evaluation's parts on lists of the usual sizes, against naive forms.

    python benchmarks/evaluation.py > evaluation.json
    python benchmarks/evaluation.py bootstrap > evaluation.json

JSON goes to stdout, a table to stderr. Sections:

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
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Before numpy is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

from sslsv.evaluations import metrics
from sslsv.evaluations.bootstrap import METRICS, intervals, paired


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
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
    "bootstrap": bootstrap,
}


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
