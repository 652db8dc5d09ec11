"""Files a second through the cohort statistics of score normalisation, beside a loop over pairs.

    python benchmarks/score_norm.py > score_norm.json

JSON goes to stdout, a table to stderr. The loop takes each file, scores it with each of the cohort
by one dot product, sorts, and takes mean and deviation; it does a sample of the files, and its
seconds for all of them are extrapolated. Memory is how much the process's peak grows, beside the
embeddings. Embeddings are made up: as many directions as labels, and noise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sslsv.evaluations.score_norm import Statistics, cohort_statistics

GOAL_SECONDS, GOAL_GB = 20.0, 1.0  # of as-norm, 2 processors
LABELS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=145_000)
    parser.add_argument("--cohort", type=int, default=6000)
    parser.add_argument("--nearest", type=int, default=300)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--sample", type=int, default=50, help="files for the loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few files once: does it run at all?")
    options = parser.parse_args()
    if options.quick:
        options.files, options.cohort, options.nearest = 200, 50, 10
        options.sample, options.repeats = 5, 1
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((LABELS, options.dim), dtype=np.float32)
    embeddings = make_embeddings(options.files, centers, rng)
    cohort = make_embeddings(options.cohort, centers, rng)
    sample = embeddings[: options.sample]
    cohort_statistics(["warm-up"], embeddings[:1], cohort)

    forms: dict[str, tuple[int | None, Callable[[int | None], Statistics], int]] = {}
    for norm, nearest in {"as-norm": options.nearest, "s-norm": None}.items():
        forms[norm] = (nearest, lambda k: statistics_of(embeddings, cohort, k), options.files)
        forms[f"{norm}, loop"] = (nearest, lambda k: loop(sample, cohort, k), options.sample)
    report: dict[str, Any] = {
        "processors": os.cpu_count(),
        "threads": options.threads,
        "files": options.files,
        "cohort": options.cohort,
        "nearest": options.nearest,
        "dim": options.dim,
        "loop_files": options.sample,
        "goal_seconds": GOAL_SECONDS,
        "goal_gb": GOAL_GB,
        "forms": {},
    }
    found: dict[str, Statistics] = {}
    for form, (nearest, run, files) in forms.items():
        before, seconds = peak_gb(), []
        for _ in range(1 if form.endswith("loop") else options.repeats):
            started = time.perf_counter()
            found[form] = run(nearest)
            seconds.append(time.perf_counter() - started)
        report["forms"][form] = {
            "seconds": statistics.median(seconds) * options.files / files,
            "extra_gb": peak_gb() - before,
        }
    report["largest_difference"] = {
        norm: difference(found[norm], found[f"{norm}, loop"]) for norm in ("as-norm", "s-norm")
    }
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(report)


def make_embeddings(count: int, centers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit-length rows (count, D), in parts so that memory has no peak to hide another."""
    x = np.empty((count, centers.shape[1]), np.float32)
    for part in np.array_split(x, max(1, count // 1000)):
        part[:] = centers[rng.integers(len(centers), size=len(part))]
        part += rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return x


def statistics_of(embeddings: np.ndarray, cohort: np.ndarray, nearest: int | None) -> Statistics:
    return cohort_statistics([str(i) for i in range(len(embeddings))], embeddings, cohort, nearest)


def loop(embeddings: np.ndarray, cohort: np.ndarray, nearest: int | None) -> Statistics:
    mean, std = [], []
    for x in embeddings:
        scores = sorted((float(x @ y) for y in cohort), reverse=True)[:nearest]
        mean.append(statistics.fmean(scores))
        std.append(statistics.stdev(scores, mean[-1]))
    return Statistics(np.array(mean), np.array(std))


def difference(found: Statistics, loop: Statistics) -> float:
    """The largest between what they make of a score of 0, over the files of the loop."""
    zeros = found.mean[: len(loop.mean)] / found.std[: len(loop.mean)]
    return float(np.abs(zeros - loop.mean / loop.std).max())


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def print_table(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    size = f"{report['files']:,} × {report['cohort']:,}, D = {report['dim']}"
    line(size, "seconds", "× loop", "extra GB", "goal")
    line(*["---"] * 5)
    for form, found in report["forms"].items():
        ratio = report["forms"][f"{form.partition(',')[0]}, loop"]["seconds"] / found["seconds"]
        goal = ""
        if form == "as-norm":
            reached = found["seconds"] <= GOAL_SECONDS and found["extra_gb"] <= GOAL_GB
            goal = f"{GOAL_SECONDS:g} s, {GOAL_GB:g} GB: {'yes' if reached else 'no'}"
        line(form, f"{found['seconds']:.1f}", f"{ratio:.0f}", f"{found['extra_gb']:.2f}", goal)


if __name__ == "__main__":
    main()
