"""Milliseconds of SSPS a step, its map of nearest clusters, and k-means, against naive forms.

    python benchmarks/ssps.py > ssps.json

JSON goes to stdout, a table to stderr. 200,000 rows, 25,000 clusters, a queue of 25,000, batches of
256, D = 512, M = 1 neighbour. *Sampling* chooses and fetches positives (``kmeans-repr``), *memory*
writes a batch into references and queue. The naive forms are written here: for each sample a mask
over the queue and a draw among its entries; for each cluster its cosines with all others, sorted.
The second is timed on some clusters and taken as proportional. Medians of repeats in which the
forms take turns. Float32 on the CPU unless there is a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv.distributed import default_device
from sslsv.methods.kmeans import spherical_kmeans
from sslsv.methods.ssps import SSPS, SSPSConfig, nearest

DIM = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000, help="utterances of the list")
    parser.add_argument("--clusters", type=int, default=25_000)
    parser.add_argument("--queue", type=int, default=25_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--kmeans_clusters", type=int, default=5000)
    parser.add_argument("--kmeans_iterations", type=int, default=2)
    parser.add_argument("--looped", type=int, default=100, help="clusters of the naive map")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    device = default_device()
    torch.manual_seed(0)
    x = F.normalize(torch.randn(options.rows, DIM), dim=1).to(device)
    report: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads()}
    report |= vars(options)
    report |= measure_steps(make(x, options, device), x, options)
    report |= measure_map(x[: options.clusters], options)
    report |= measure_kmeans(x, options)
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(report)


def make(x: Tensor, options: argparse.Namespace, device: torch.device) -> SSPS:
    """With random clusters, and a full queue."""
    config = SSPSConfig(
        start_epoch=0,
        pos_queue_size=options.queue,
        kmeans_nb_prototypes=options.clusters,
        inter_sampling_size=1,
    )
    ssps = SSPS(config, options.rows, DIM, {"z2": torch.Size([DIM])}).to(device)
    ssps.cluster = torch.randint(options.clusters, (options.rows,), device=device)
    ssps.row_at = ssps.cluster.argsort(stable=True)
    ssps.place[ssps.row_at] = torch.arange(options.rows, device=device)
    sizes = torch.bincount(ssps.cluster + 1, minlength=options.clusters + 1)
    ssps.first_place = sizes.cumsum(0)
    ssps.neighbours = torch.randint(options.clusters, (options.clusters, 1), device=device)
    rows = torch.randperm(options.rows, device=device)[: options.queue]
    ssps.keep({"z2": x[rows]}, rows, x[rows], torch.zeros((), device=device))
    return ssps


def measure_steps(ssps: SSPS, x: Tensor, options: argparse.Namespace) -> dict[str, float]:
    frozen = torch.zeros((), device=x.device)
    rows = torch.randperm(options.rows, device=x.device)[: options.batch]
    outputs, references = {"z2": torch.randn_like(x[rows])}, x[rows]
    parts = {
        "sampling": lambda: ssps.replace(outputs, rows, references, 0, 0),
        "memory": lambda: ssps.keep(outputs, rows, references, frozen),
        "sampling_naive": lambda: replace_naively(ssps, outputs["z2"], rows),
    }
    found = in_turns(parts, options.repeats, x.device)
    return {f"{name}_ms": 1000 * seconds for name, seconds in found.items()}


def replace_naively(ssps: SSPS, z2: Tensor, rows: Tensor) -> Tensor:
    """Sample by sample; a mask over the queue tells which entries are in the cluster."""
    replaced = z2.clone()
    for i, row in enumerate(rows.tolist()):
        near = random.choice(ssps.neighbours[ssps.cluster[row]].tolist())
        entries = (ssps.cluster[ssps.queue_rows] == near).nonzero().flatten().tolist()
        if entries:
            replaced[i] = ssps.queue_positives[random.choice(entries)]
    return replaced


def measure_map(centroids: Tensor, options: argparse.Namespace) -> dict[str, float]:
    def loop() -> None:
        for k in range(options.looped):
            cosines = F.cosine_similarity(centroids[k : k + 1], centroids)
            cosines.argsort(descending=True)[1:2].tolist()

    parts: dict[str, Callable[[], Any]] = {"map": lambda: nearest(centroids, 1), "map_naive": loop}
    found = in_turns(parts, max(1, options.repeats // 3), centroids.device)
    whole = found["map_naive"] * len(centroids) / min(options.looped, len(centroids))
    return {"map_s": found["map"], "map_naive_s": whole}


def measure_kmeans(x: Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an iteration: the first pass over the data, which assigns, is not one."""

    def run(iterations: int) -> float:
        started = time.perf_counter()
        float(spherical_kmeans(x, options.kmeans_clusters, iterations).similarity)
        return time.perf_counter() - started

    more = run(options.kmeans_iterations + 1)
    return {"kmeans_iteration_s": (more - run(1)) / options.kmeans_iterations}


def in_turns(
    parts: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            wait()
            started = time.perf_counter()
            part()
            wait()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    def ratio(name: str, unit: str) -> str:
        return f"{report[f'{name}_naive_{unit}'] / report[f'{name}_{unit}']:.1f}"

    line("part", "here", "naive", "ratio", "goal")
    line("---", "---:", "---:", "---:", "---")
    here, naive = report["sampling_ms"], report["sampling_naive_ms"]
    cells = [f"{here:.1f} ms", f"{naive:.1f} ms", ratio("sampling", "ms"), "20, under 5 ms"]
    line("sampling of a step", *cells)
    line("memory of a step", f"{report['memory_ms']:.1f} ms", "", "", "")
    here, naive = report["map_s"], report["map_naive_s"]
    line("nearest clusters", f"{here:.1f} s", f"{naive:.0f} s", ratio("map", "s"), "20")
    size = f"{report['rows']} rows, {report['kmeans_clusters']} clusters"
    line(f"k-means, an iteration, {size}", f"{report['kmeans_iteration_s']:.1f} s", "", "", "")


if __name__ == "__main__":
    main()
