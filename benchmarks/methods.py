"""Milliseconds of loss and update of each method, and their share of a training step.

    python benchmarks/methods.py > methods.json

JSON goes to stdout, a table to stderr. *Loss* is ``method.loss`` and its backward pass to what the
network gave; *update* is ``on_step_end``: teachers, queues, running statistics. Heads belong to the
network. Every method has its published size (N = 256 utterances, D = 512), with the Fast ResNet-34
on 2-s crops of noise (two of 4 s and four of 2 s where views are long and short). A step is
measured on few utterances and taken as proportional to their number. Medians over repeats, in each
of which the three parts take turns. Float32 on the CPU unless there is a GPU.

DINO's loss is also compared, for 16 utterances, with one that loops over pairs of views and takes
the teacher's entropy and spread and the divergence at every step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv.config import from_dict
from sslsv.datasets.views import Batch
from sslsv.distributed import default_device
from sslsv.methods.base import Method
from sslsv.methods.deepcluster import DeepCluster
from sslsv.methods.dino import distillation
from sslsv.registry import ENCODERS, METHODS

PROJECTOR = {"projector_hidden_dim": 2048, "projector_output_dim": 512}
SIZES: dict[str, dict[str, Any]] = {  # of the published table; the defaults elsewhere
    "lim": {**PROJECTOR, "loss": "nce"},
    "simclr": {"enable_projector": False, "temperature": 0.03},
    "moco": {"enable_projector": False, "temperature": 0.03, "queue_size": 32768},
    "wmse": {"projector_hidden_dim": 1024, "projector_output_dim": 64},
    "barlow_twins": PROJECTOR,
    "vicreg": PROJECTOR,
    "vibcreg": PROJECTOR,
    "combiner": {
        **PROJECTOR,
        "Y_losses": [{"type": "infonce"}],
        "Z_losses": [{"type": "vicreg"}, {"type": "barlowtwins"}],
    },
    "simclr_margins": {"enable_projector": False, "loss": {"loss": "nt-xent-cosface"}},
    "moco_margins": {
        "enable_projector": False,
        "queue_size": 32768,
        "loss": {"loss": "nt-xent-cosface"},
    },
    "simclr_multiviews": {"enable_projector": False, "loss": {"loss": "nt-xent-cosface"}},
    "swav": {"queue_start_epoch": 0},
}
DEEPCLUSTER_ROWS = 20_000  # of the training list
SECOND = 16000
VIEWS = {
    "single": [2 * SECOND],
    "siamese": [2 * SECOND] * 2,
    "multicrop": [4 * SECOND] * 2 + [2 * SECOND] * 4,
}
SHORT = 0.15  # of a crop, where only the shape of what the network gives counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", default=METHODS.names(), help="types")
    parser.add_argument("--rows", type=int, default=256, help="utterances of a batch")
    parser.add_argument("--step_rows", type=int, default=128, help="utterances of a measured step")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = default_device()
    report: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "rows": options.rows,
        "methods": {name: measure(name, options, device) for name in options.methods},
    }
    if "dino" in options.methods:
        report["dino_loss"] = compare_dino(max(5, options.repeats), device)
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(report)


def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    method = make_method(name).to(device).train()
    optimizer = torch.optim.Adam(method.param_groups(), 1e-6, fused=True)
    frozen = torch.zeros((), device=device)
    short = make_batch(method, options.rows, device, SHORT)
    with torch.no_grad():
        fixed = method(short.views)
    crops = make_batch(method, options.step_rows, device)

    def loss() -> None:
        leaves = {key: x.detach().requires_grad_(x.requires_grad) for key, x in known.items()}
        method.loss(leaves, short)[0].backward()

    def update() -> None:
        method.on_step_end(fixed, short, frozen)

    def step() -> None:
        value, _ = method.loss(method(crops.views), crops)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    known = method(short.views)  # which of them have a gradient
    parts: dict[str, Callable[[], None]] = {"loss": loss, "update": update, "step": step}
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for repeat in range(options.repeats + 1):
        for part, run in parts.items():
            if repeat:
                seconds[part].append(timed(run, device))
            else:
                run()  # allocates, and fills queues
    found = {part: 1000 * statistics.median(values) for part, values in seconds.items()}
    whole = found["step"] * options.rows / options.step_rows
    return {
        "loss_ms": found["loss"],
        "update_ms": found["update"],
        "step_ms": whole,
        "share": (found["loss"] + found["update"]) / whole,
    }


def make_method(name: str) -> Method:
    entry = METHODS.get(name)
    encoder = {"type": "resnet34", "pooling": not entry.config.needs_sequence}  # type: ignore[attr-defined]
    sections = {"encoder": encoder, "method": {"type": name, **SIZES.get(name, {})}}
    config = from_dict(sections)
    method = entry.cls(config.method, ENCODERS.get("resnet34").cls(config.encoder))
    method.on_data(DEEPCLUSTER_ROWS)
    if isinstance(method, DeepCluster):  # as if it had clustered
        method.assignments.random_(min(config.method.nb_prototypes))  # type: ignore[attr-defined]
    return method


def make_batch(method: Method, rows: int, device: torch.device, share: float = 1) -> Batch:
    views: list[Tensor] = [
        0.1 * torch.randn(rows, int(share * length), device=device)
        for length in VIEWS[method.views]
    ]
    index = torch.arange(rows)
    return Batch(index, index.to(device), views)


def timed(run: Callable[[], None], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def compare_dino(repeats: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of DINO's loss with its backward pass, here and in the naive form."""
    rows, views, seen, prototypes = 16, 6, 2, 65536
    student = torch.randn(views, rows, prototypes, device=device).transpose(0, 1)
    teacher = torch.randn(seen, rows, prototypes, device=device).transpose(0, 1)
    student.requires_grad_()

    def here() -> Tensor:
        with torch.no_grad():
            p = (teacher / 0.04).softmax(dim=-1)
        return distillation(student, p, 0.1)

    def naive() -> Tensor:
        scores = [x / 0.1 for x in student.unbind(1)]
        targets = [(x / 0.04).softmax(dim=-1) for x in teacher.unbind(1)]
        pairs = [(p, x) for t, p in enumerate(targets) for v, x in enumerate(scores) if v != t]
        losses = [-(p * x.log_softmax(dim=-1)).sum(dim=-1).mean() for p, x in pairs]
        with torch.no_grad():
            for x, p in zip(teacher.unbind(1), targets, strict=True):
                torch.special.entr(p).sum(dim=-1).mean()
                F.normalize(x, dim=-1).std(dim=0).mean()
            for p, x in pairs:
                F.kl_div(x.log_softmax(dim=-1), p, reduction="batchmean")
        return torch.stack(losses).mean()

    def run(form: Callable[[], Tensor]) -> Callable[[], None]:
        def backward() -> None:
            student.grad = None
            form().backward()

        return backward

    values = [form().item() for form in (here, naive)]
    seconds: dict[str, list[float]] = {"here": [], "naive": []}
    for _ in range(repeats):
        for form in (here, naive):
            seconds[form.__name__].append(timed(run(form), device))
    found = {f"{name}_ms": 1000 * statistics.median(times) for name, times in seconds.items()}
    return {**found, "difference": abs(values[0] - values[1])}


def print_table(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    line("method", "loss (ms)", "update (ms)", "step (ms)", "share of the step (%)")
    line("---", *["---:"] * 4)
    for name, found in report["methods"].items():
        values = (found["loss_ms"], found["update_ms"], found["step_ms"], 100 * found["share"])
        line(name, *(f"{value:.1f}" for value in values))
    if dino := report.get("dino_loss"):
        ratio = dino["naive_ms"] / dino["here_ms"]
        print(
            f"\nDINO's loss, 16 utterances: {dino['here_ms']:.1f} ms, naive "
            f"{dino['naive_ms']:.1f} ms ({ratio:.1f} times), "
            f"values differ by {dino['difference']:.1e}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
