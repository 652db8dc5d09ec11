"""Seconds and memory of PLDA on a list as long as VoxCeleb1-E, beside a loop over trials.

    python benchmarks/plda.py > plda.json

JSON goes to stdout, a table to stderr. 580,000 trials over 145,000 utterances of 1,251 speakers,
D = 512, in both forms: the two-covariance model and a speaker subspace of rank 100. *Read* parses
the list; *score* subtracts the mean, normalises length and scores; *metrics* are EER, minDCF,
actDCF, Cllr and AvgRPrec. Each form has a process of its own, whose largest memory (all of it, with
float32 embeddings and libraries) is reported. The loop scores a trial at a time, with matrices
(D, D) made before; it is timed on some trials and taken as proportional, and its scores have to be
the same. *Training* is ten iterations of EM on embeddings of as many utterances, for the record.
Medians of repeats. *CPU* are the processor seconds behind the total, which show what other work on
the machine has added; with OMP_NUM_THREADS=1 nothing of them is waiting for another thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
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
from sslsv.evaluations.plda import PLDA, fit_subspace, fit_two_covariance
from sslsv.evaluations.transforms import Chain, LengthNorm, MeanSubtraction, fit_chain
from sslsv.evaluations.trials import Trials, read_trials

FORMS = ("two-covariance", "subspace")
GOAL_S, GOAL_BYTES = 4.0, 2e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=580_000)
    parser.add_argument("--files", type=int, default=145_000)
    parser.add_argument("--speakers", type=int, default=1251)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--looped", type=int, default=2000, help="trials of the loop")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "processors": os.cpu_count(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        **vars(options),
        "goal_s": GOAL_S,
        "goal_bytes": GOAL_BYTES,
        "plda": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for form in FORMS:
            # The first process trains, so that the second one's memory is that of scoring alone.
            report["plda"][form] = alone(train, form, path, options)
            report["plda"][form] |= alone(measure, form, path, options)
            report["plda"][form] |= alone(loop, form, path, options)
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(report)


def alone(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What ``work`` finds in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def embeddings(options: argparse.Namespace) -> np.ndarray:
    """(files, dim) float32 of length 1; file i is of speaker i modulo their number."""
    rng = np.random.default_rng(0)
    speakers = rng.standard_normal((options.speakers, options.dim), dtype=np.float32)
    x = rng.standard_normal((options.files, options.dim), dtype=np.float32)
    x *= np.linspace(1, 4, options.dim, dtype=np.float32)
    for start in range(0, len(x), options.speakers):
        part = x[start : start + options.speakers]
        part += speakers[: len(part)]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return x


def write_list(path: Path, options: argparse.Namespace) -> None:
    """Half of the trials are targets; enrolments stand together, as in the lists of VoxCeleb1."""
    rng = np.random.default_rng(1)
    enrol = np.sort(rng.integers(options.files, size=options.trials))
    laps = rng.integers(-(-options.files // options.speakers), size=options.trials)
    same = (enrol + laps * options.speakers) % (options.files - options.files % options.speakers)
    test = np.where(
        rng.random(options.trials) < 0.5, same, rng.integers(options.files, size=options.trials)
    )
    target = enrol % options.speakers == test % options.speakers
    names = [f"id{i % options.speakers:05d}/video{i:06d}/00001.wav" for i in range(options.files)]
    with open(path, "w") as file:
        columns = (target.tolist(), enrol.tolist(), test.tolist())
        file.writelines(f"{t:d} {names[a]} {names[b]}\n" for t, a, b in zip(*columns, strict=True))


def train(form: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    x, labels = embeddings(options), np.arange(options.files) % options.speakers
    chain = fit_chain([MeanSubtraction(), LengthNorm()], x)
    x = chain.apply(x)
    started = time.perf_counter()
    if form == "subspace":
        model = fit_subspace(x, labels, options.rank)
    else:
        model = fit_two_covariance(x, labels)
    seconds = time.perf_counter() - started
    chain.save(folder / "chain.npz")
    model.save(folder / "plda.npz")
    write_list(folder / "trials", options)
    return {"training_s": seconds}


def indices(trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `embeddings` of both sides."""
    rows = np.array([int(file.split("/")[1].removeprefix("video")) for file in trials.files])
    return rows[trials.enrol], rows[trials.test]


def measure(form: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    x = embeddings(options)
    chain, model = Chain.load(folder / "chain.npz"), PLDA.load(folder / "plda.npz")
    laps = []  # seconds of read, score and metrics; of the clock, and of the processors
    for _ in range(options.repeats):
        times = [clocks()]
        trials = read_trials(folder / "trials")
        times.append(clocks())
        enrol, test = indices(trials)  # no part of it: files would be embedded in this order
        between = clocks()
        scores = model.score(chain.apply(x), enrol, test)
        times.append(times[-1] + clocks() - between)
        found = [
            metrics.eer(scores, trials.labels),
            metrics.min_dcf(scores, trials.labels),
            metrics.act_dcf(scores, trials.labels),
            metrics.cllr(scores, trials.labels),
            metrics.avg_r_prec(scores, trials.labels, trials.enrol),
        ]
        assert np.isfinite(found).all()
        times.append(clocks() - between + times[1])
        laps.append(np.diff(times, axis=0))
    parts = np.median(laps, axis=0)  # (3, 2)
    total, cpu = np.median(np.sum(laps, axis=1), axis=0)
    return {
        **dict(zip(("read_s", "score_s", "metrics_s"), parts[:, 0].tolist(), strict=True)),
        "total_s": float(total),
        "cpu_s": float(cpu),
        "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def clocks() -> np.ndarray:
    """Seconds of the clock and of this process on all processors."""
    return np.array([time.perf_counter(), time.process_time()])


def loop(form: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """½ (aᵀQa + bᵀQb) + aᵀPb + constant, trial by trial."""
    chain, model = Chain.load(folder / "chain.npz"), PLDA.load(folder / "plda.npz")
    x = chain.apply(embeddings(options)).astype(np.float64)
    enrol, test = (side[: options.looped] for side in indices(read_trials(folder / "trials")))
    between = model.between
    total = np.linalg.inv(between + model.within)
    given = np.linalg.inv(between + model.within - between @ total @ between)
    q, p = total - given, total @ between @ given
    constant = (np.linalg.slogdet(given)[1] - np.linalg.slogdet(total)[1]) / 2
    started = time.perf_counter()
    scores = []
    for i, j in zip(enrol.tolist(), test.tolist(), strict=True):
        a, b = x[i] - model.mean, x[j] - model.mean
        scores.append(float(a @ q @ a + b @ q @ b) / 2 + float(a @ p @ b) + constant)
    seconds = time.perf_counter() - started
    np.testing.assert_allclose(scores, model.score(x, enrol, test), rtol=1e-6, atol=1e-6)
    return {"score_loop_s": seconds * options.trials / len(enrol)}


def print_table(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    columns = ["read", "score", "metrics", "total", "cpu"]
    line("form", *(f"{name} (s)" for name in columns), "goal", "GB", "goal", "loop (s)", "EM (s)")
    line("---", *["---:"] * 5, "---", "---:", "---", "---:", "---:")
    for form, found in report["plda"].items():
        line(
            form,
            *(f"{found[f'{name}_s']:.2f}" for name in columns),
            f"{GOAL_S:g}: {'yes' if found['total_s'] < GOAL_S else 'no'}",
            f"{found['bytes'] / 1e9:.2f}",
            f"{GOAL_BYTES / 1e9:g}: {'yes' if found['bytes'] < GOAL_BYTES else 'no'}",
            f"{found['score_loop_s']:.0f}",
            f"{found['training_s']:.1f}",
        )


if __name__ == "__main__":
    main()
