"""Utterances a second of a training step, beside its plain form and the limits of the machine.

    python benchmarks/train_step.py > train_step.json       # all of PLANS, for the CPU or the GPU
    python benchmarks/train_step.py simclr/ecapa/memory --batch_size 64 > train_step.json

JSON goes to stdout, tables to stderr. A plan is method/encoder/input: *memory* gives the same few
batches again and again, *disk* reads 8-s WAV files with workers and augments them. Its forms are
*baseline* (plain_step.py; from disk with a loader that decodes whole files and augments each crop
by itself), *fp32*, *bf16*, and *compiled* (``torch.compile``, bf16 where the device has it). Each
form is a process of its own, they take turns, and figures are medians over repeats; ratios are of
one run.

*FLOP/s* counts matrix products and convolutions of a step, forward and backward, and is compared
with products of large matrices on the same machine; *bytes/s* counts what eager operators read and
write, and is compared with a copy of a large tensor. Both are measured before and after the plans.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from data_loading import RATE, PlainDataset, make_corpus
from methods import SIZES
from plain_step import plain_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from sslsv.config import from_dict
from sslsv.datasets.views import Batch
from sslsv.distributed import default_device
from sslsv.experiment import build_trainer
from sslsv.profiling import STAGES, endless, measure
from sslsv.registry import METHODS
from sslsv.trainer.precision import has_bfloat16
from sslsv.trainer.prefetch import ahead
from sslsv.trainer.tracking import peak_memory_gb
from sslsv.trainer.trainer import Trainer

ENCODERS: dict[str, dict[str, Any]] = {
    "resnet34": {"type": "resnet34"},
    "ecapa": {"type": "ecapatdnn", "channels": [1024, 1024, 1024, 1024, 3072], "mel_n_mels": 80},
    "tiny": {"type": "resnet34", "base_dim": 8},  # to try the script
}
FORMS = {"baseline": False, "fp32": False, "bf16": "bf16", "compiled": True}  # mixed_precision
PLANS = {
    "cpu": ["simclr/resnet34/memory", "simclr/ecapa/memory", "simclr/resnet34/disk"],
    "cuda": [
        "simclr/resnet34/memory",
        "simclr/ecapa/memory",
        "dino/resnet34/memory",
        "simclr/resnet34/disk",
        "simclr/ecapa/disk",
    ],
}
BATCH = {"cpu": 32, "cuda": 256}  # of DINO, with three times the audio, a quarter
HELD = 2  # batches, of input from memory


@dataclass(frozen=True)
class Spec:
    """One form of one plan."""

    method: str
    encoder: str
    input: str
    form: str
    batch_size: int
    workers: int
    steps: int
    base: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    device = default_device()
    parser.add_argument("plans", nargs="*", default=PLANS[device.type], help="method/encoder/input")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="default: all that pay here")
    parser.add_argument("--batch_size", type=int, default=BATCH[device.type])
    parser.add_argument("--steps", type=int, default=4 if device.type == "cpu" else 20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--files", type=int, default=600, help="utterances on the disk")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(device), "plans": {}}
    with tempfile.TemporaryDirectory() as base:
        make_corpus(Path(base), options.files, options.files)
        for plan in options.plans:
            print(f"{plan} ...", file=sys.stderr, flush=True)
            report["plans"][plan] = run_plan(plan, options, device, base)
    for key, value in machine(device).items():  # other work may have disturbed the first time
        if key.startswith("flops_") or key == "bytes":
            report["machine"][key] = max(value, report["machine"][key])
    json.dump(report, sys.stdout, indent=2)
    print()
    print_tables(report)


# ------------------------------------------------------------------------------ the machine


def machine(device: torch.device) -> dict[str, Any]:
    """What it is called, and what it does at best: FLOP/s of products, bytes/s of a copy."""
    found: dict[str, Any] = {"processors": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["name"] = torch.cuda.get_device_name(device)
    else:
        found["name"] = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    found["bfloat16"] = has_bfloat16(device)
    size = 8192 if device.type == "cuda" else 2048
    types = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if found["bfloat16"] else {})
    for name, dtype in types.items():
        a = torch.randn(size, size, device=device, dtype=dtype)
        found[f"flops_{name}"] = 2 * size**3 / seconds(lambda a=a: a @ a, device)
    x = torch.zeros((2 if device.type == "cuda" else 1) * 64 * 2**20, device=device)
    y = torch.empty_like(x)
    found["bytes"] = 2 * x.nbytes / seconds(lambda: y.copy_(x), device)
    return found


def seconds(run: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    """The fastest of some calls, after one to warm up."""
    taken = []
    for _ in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Bytes(TorchDispatchMode):
    """Counts what operators read and write, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        aliases = [result.alias_info for result in func._schema.returns]
        if not any(info is not None and not info.is_write for info in aliases):
            self.total += sum(map(size_of, torch.utils._pytree.tree_leaves((args, kwargs, found))))
        return found


def size_of(x: Any) -> int:
    if not isinstance(x, Tensor):
        return 0
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


# -------------------------------------------------------------------------------- a process


def serve(connection: Connection, spec: Spec) -> None:
    """Answers "run" with seconds of some steps, "count", "stages" and "end"."""
    sys.stdout = sys.stderr  # what a training says
    try:
        answers = Steps(spec)
        connection.send("ready")
        while (asked := connection.recv()) != "end":
            connection.send(getattr(answers, asked)())
        connection.send(answers.memory_gb())
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
        raise


class Steps:
    """Training steps of one form."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = make_trainer(spec, Path(self.folder.name))
        self.device = self.trainer.device
        self.trainer.method.train()
        self.trainer.method.progress = self.trainer.progress
        self.trainer.method.on_train_start()
        self.trainer.method.on_epoch_start()
        plain = spec.form == "baseline"
        self.step: Callable[[Batch], Any] = (
            plain_step(self.trainer) if plain else self.trainer.train_step
        )
        self.batches = self._batches(plain)
        self.waited = 0.0

    def _batches(self, plain: bool) -> Iterator[Batch]:
        if self.spec.input == "disk":
            return (
                plain_batches(self.trainer) if plain else ahead(endless(self.trainer), self.device)
            )
        held = list(itertools.islice(endless(self.trainer), HELD))
        if plain:  # which would augment on the CPU
            held = [batch.augmented() for batch in held]
        elif self.device.type == "cuda":
            held = [batch.pin_memory() for batch in held]
        return ahead(itertools.cycle(held), self.device)

    def run(self) -> tuple[float, float]:
        """Seconds of the steps, and of waiting for batches in them."""
        if self.device.type == "cuda":  # its memory was given back to the other forms
            self.step(next(self.batches))
        wait(self.device)
        started, waited = time.perf_counter(), 0.0
        for _ in range(self.spec.steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - asked
            self.trainer.step = 0  # of the first epoch, with its learning rate
            self.step(batch)
        wait(self.device)
        taken = time.perf_counter() - started
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return taken, waited

    def count(self) -> tuple[int, int]:
        """FLOP and bytes of a step."""
        batch = next(self.batches)
        with FlopCounterMode(display=False) as flops:
            self.step(batch)
        with Bytes() as traffic:
            self.step(batch)
        return flops.get_total_flops(), traffic.total

    def stages(self) -> dict[str, float]:
        """Milliseconds of each, by ``sslsv profile``, which waits at the end of each."""
        self.trainer.step = 0
        steps = measure(self.trainer, steps=max(2, self.spec.steps // 2), warmup=1).steps
        return {
            name: 1000 * statistics.median(step.stages[name] for step in steps) for name in STAGES
        }

    def memory_gb(self) -> float:
        """The most so far, of the GPU where there is one, else of this process."""
        return peak_memory_gb()


def make_trainer(spec: Spec, run_dir: Path) -> Trainer:
    entry: Any = METHODS.get(spec.method)
    encoder = {**ENCODERS[spec.encoder], "compile": spec.form == "compiled"}
    dataset: dict[str, Any] = {
        "base_path": spec.base,
        "train": "train.csv",
        "ssl": entry.cls.views != "single",
        "num_workers": spec.workers if spec.input == "disk" else 0,
        "augmentation": {"strategy": "reverb+noise"},
    }
    if entry.cls.views == "multicrop":
        dataset |= {"frame_sampling": "dino", "ssl_dino_global_length": 4 * RATE}
        dataset |= {"ssl_dino_local_length": 2 * RATE}
    return build_trainer(
        from_dict(
            {
                "run_dir": str(run_dir),
                "encoder": encoder,
                "method": {"type": spec.method, **SIZES.get(spec.method, {})},
                "dataset": dataset,
                "trainer": {
                    "batch_size": spec.batch_size,
                    "mixed_precision": FORMS[spec.form],
                    "optimizer": "sgd" if spec.method == "dino" else "adam",
                },
            }
        )
    )


def plain_batches(trainer: Trainer) -> Iterator[Batch]:
    """Whole files, each crop augmented by itself in a worker."""
    dataset: Any = trainer.loader._loader.dataset
    lengths = [view.samples for view in dataset.views]
    plain = PlainDataset(dataset.manifest, len(dataset.manifest), lengths)
    loader: DataLoader[Any] = DataLoader(
        plain,
        trainer.config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=trainer.loader._loader.num_workers,
        persistent_workers=True,
    )
    rows = torch.arange(trainer.config.batch_size)
    while True:
        for views in loader:
            yield Batch(rows, rows, list(views))


# ----------------------------------------------------------------------------------- a plan


def run_plan(
    plan: str, options: argparse.Namespace, device: torch.device, base: str
) -> dict[str, Any]:
    """Of each form: utterances a second and what belongs to it."""
    method, encoder, source = plan.split("/")
    batch_size = options.batch_size // 4 if method == "dino" else options.batch_size
    forms = options.forms or forms_for(source, device)
    context = multiprocessing.get_context("spawn")
    workers, pipes = [], {}
    for form in forms:
        ours, theirs = context.Pipe()
        spec = Spec(method, encoder, source, form, batch_size, options.workers, options.steps, base)
        worker = context.Process(target=serve, args=(theirs, spec))
        worker.start()
        theirs.close()
        workers.append(worker)
        pipes[form] = ours
    for pipe in pipes.values():
        received(pipe)
    rates: dict[str, list[float]] = {form: [] for form in forms}
    waits: dict[str, list[float]] = {form: [] for form in forms}
    for repeat in range(options.repeats + 1):
        for form, pipe in pipes.items():
            taken, waited = ask(pipe, "run")
            if repeat:  # the first one warms up
                rates[form].append(batch_size * options.steps / taken)
                waits[form].append(100 * waited / taken)
    counted = next((form for form in ("fp32", "bf16") if form in forms), None)
    flops, traffic = ask(pipes[counted], "count") if counted else (None, None)
    found: dict[str, Any] = {"batch_size": batch_size, "flop": flops, "bytes": traffic, "forms": {}}
    for form, pipe in pipes.items():
        stages = None if form == "baseline" else ask(pipe, "stages")
        found["forms"][form] = {
            "utterances_per_second": statistics.median(rates[form]),
            "all": rates[form],
            "data_wait_percent": statistics.median(waits[form]),
            "stages_ms": stages,
            "memory_gb": ask(pipe, "end"),
        }
    for worker in workers:
        worker.join()
    if "baseline" in forms:
        plain = found["forms"]["baseline"]["utterances_per_second"]
        for form in forms:
            speed = found["forms"][form]["utterances_per_second"]
            found["forms"][form]["ratio"] = speed / plain
    return found


def forms_for(source: str, device: torch.device) -> list[str]:
    """Those that pay on the device."""
    if source == "disk":
        return ["baseline", "compiled" if device.type == "cuda" else fastest(device)]
    if device.type == "cuda":
        return ["baseline", "fp32", "bf16", "compiled"]
    return ["baseline", "fp32", *(["bf16"] if has_bfloat16(device) else [])]


def fastest(device: torch.device) -> str:
    return "bf16" if has_bfloat16(device) else "fp32"


def ask(pipe: Connection, question: str) -> Any:
    pipe.send(question)
    return received(pipe)


def received(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


# ---------------------------------------------------------------------------------- tables


def print_tables(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    about = report["machine"]
    rates = [f"{about[k] / 1e9:.0f} GFLOP/s in {k[6:]}" for k in about if k.startswith("flops_")]
    print(
        f"\n{about['name']}, {about['processors']} processors: {', '.join(rates)}, "
        f"{about['bytes'] / 1e9:.1f} GB/s\n",
        file=sys.stderr,
    )
    heads = ["method/encoder/input", "form", "utterances/s", "× baseline", "GFLOP/s (of the best)"]
    line(*heads, "GB/s (of the best)", "peak GB", "data-wait %")
    line("---", "---", *["---:"] * 6)
    for plan, found in report["plans"].items():
        for form, row in found["forms"].items():
            steps = row["utterances_per_second"] / found["batch_size"]
            best = about.get("flops_fp32" if form in ("baseline", "fp32") else "flops_bf16")
            line(
                plan,
                form,
                f"{row['utterances_per_second']:.1f}",
                f"{row['ratio']:.2f}" if "ratio" in row else "",
                share(found["flop"], steps, best),
                share(found["bytes"], steps, about["bytes"]) if form == "fp32" else "",
                f"{row['memory_gb']:.1f}",
                f"{row['data_wait_percent']:.1f}",
            )
    print("\nMilliseconds of the stages of a step:\n", file=sys.stderr)
    line("method/encoder/input", "form", *STAGES)
    line("---", "---", *["---:"] * len(STAGES))
    for plan, found in report["plans"].items():
        for form, row in found["forms"].items():
            if row["stages_ms"]:
                line(plan, form, *(f"{row['stages_ms'][name]:.1f}" for name in STAGES))


def share(amount: int | None, steps: float, best: float | None) -> str:
    """Of ``amount`` a step, in 10⁹ a second."""
    if not amount:
        return ""
    part = f" ({100 * amount * steps / best:.0f} %)" if best else ""
    return f"{amount * steps / 1e9:.1f}{part}"


if __name__ == "__main__":
    main()
