"""What limits a training on 1, 8 and 64 GPUs, computed from the step of one GPU.

    python benchmarks/train_step.py > train_step.json           # on the GPU
    python benchmarks/scaling.py --measured train_step.json
    python benchmarks/scaling.py --flops 100e12                 # as if a step ran at this rate

Every GPU keeps the batch of one. A step on many is that step and then what they tell each other:
gradients, embeddings for the loss, sums of batch norm, keys of a queue. None of it is taken to be
hidden behind computation, so the efficiency is a lower bound. Over G GPUs a ring all-reduce of S
bytes moves 2 S (G - 1) / G through each link and an all-gather of S bytes from each S (G - 1); a
call also costs ``--latency`` for each of log2 G hops. What the links do is assumed, not measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from train_step import ENCODERS, SIZES

from sslsv.config import from_dict
from sslsv.experiment import build_method
from sslsv.methods.base import Method

UTTERANCES = 1_092_009  # VoxCeleb2, development set
CROP = 32_000  # samples, of which an utterance has two
BATCH = 256  # utterances of a GPU
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Links:
    """Bytes a second within a node and between nodes, seconds of a hop, GPUs of a node."""

    inside: float = 300e9
    between: float = 25e9
    latency: float = 10e-6
    node: int = 8

    def _rate(self, gpus: int) -> float:
        return self.inside if gpus <= self.node else self.between

    def _hops(self, gpus: int) -> float:
        return math.ceil(math.log2(gpus)) * self.latency

    def reduce(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce of ``size`` bytes."""
        return self._hops(gpus) + 2 * size * (gpus - 1) / gpus / self._rate(gpus)

    def gather(self, size: float, gpus: int) -> float:
        """Seconds of an all-gather of ``size`` bytes from each."""
        return self._hops(gpus) + size * (gpus - 1) / self._rate(gpus)


@dataclass(frozen=True)
class Talk:
    """Seconds of a step that GPUs spend on telling each other things."""

    gradients: float
    embeddings: float
    batch_norm: float
    queue: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def talk(method: Method, batch: int, gpus: int, links: Links) -> Talk:
    """For ``batch`` utterances of two views on each GPU."""
    if gpus == 1:
        return Talk(0.0, 0.0, 0.0, 0.0)
    weights = sum(p.numel() for p in method.parameters() if p.requires_grad)
    embeddings = FLOAT * batch * method.encoder.encoder_dim
    norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Talk(
        gradients=links.reduce(FLOAT * weights, gpus),
        # There and, for their gradients, back.
        embeddings=links.gather(2 * embeddings, gpus) + links.reduce(2 * embeddings * gpus, gpus),
        batch_norm=sum(  # mean, variance and count, then two sums of gradients
            links.gather(FLOAT * (2 * m.num_features + 1), gpus)
            + links.reduce(FLOAT * 2 * m.num_features, gpus)
            for m in norms
        ),
        queue=links.gather(2 * embeddings, gpus) if hasattr(method, "queue") else 0.0,
    )


def make_method(method: str, encoder: str) -> Method:
    sections = {
        "encoder": ENCODERS[encoder],
        "method": {"type": method, **SIZES.get(method, {})},
    }
    return build_method(from_dict(sections))


def flop_of(method: Method, rows: int = 2) -> float:
    """Of an utterance of two crops, forward and backward."""
    with FlopCounterMode(display=False) as flops:
        method.encoder(torch.randn(2 * rows, CROP)).sum().backward()
    return flops.get_total_flops() / rows


def table(
    rates: dict[str, tuple[Method, float]], gpus: Sequence[int], links: Links, worker: float
) -> str:
    """Markdown. ``rates``: utterances a second of one GPU by name; ``worker``: of one process that
    loads data."""
    heads = "model | GPUs | utterances/s | efficiency | epoch of VoxCeleb2 | gradients ms | "
    heads += "embeddings ms | batch norm ms | read GB/s | loader cores"
    lines = [f"| {heads} |", "| --- " + "| ---: " * heads.count("|") + "|"]
    for name, (method, rate) in rates.items():
        step = BATCH / rate
        for count in gpus:
            said = talk(method, BATCH, count, links)
            speed = count * BATCH / (step + said.total)
            cells = [
                name,
                str(count),
                f"{speed:,.0f}",
                f"{100 * step / (step + said.total):.0f} %",
                duration(UTTERANCES / speed),
                f"{1000 * said.gradients:.2f}",
                f"{1000 * (said.embeddings + said.queue):.2f}",
                f"{1000 * said.batch_norm:.2f}",
                f"{speed * 2 * CROP * 2 / 1e9:.2f}",  # 16-bit samples
                str(math.ceil(speed / worker)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--measured", type=Path, metavar="FILE.json", help="of train_step.py")
    source.add_argument("--flops", type=float, help="FLOP/s of a step, assumed")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--worker", type=float, default=2385, help="utterances/s of a loader core")
    for field in fields(Links):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    links = Links(**{field.name: getattr(options, field.name) for field in fields(Links)})
    rates = {}
    if options.measured:
        plans = json.loads(options.measured.read_text(encoding="utf-8"))["plans"]
        for plan, found in plans.items():
            method, encoder, source_of = plan.split("/")
            if source_of == "memory" and method != "dino":  # of two views
                form = max(found["forms"].values(), key=lambda x: x["utterances_per_second"])
                model = make_method(method, encoder)
                rates[f"{method}, {encoder}"] = (model, form["utterances_per_second"])
    else:
        for encoder in ("resnet34", "ecapa"):
            model = make_method("simclr", encoder)
            rates[f"simclr, {encoder}"] = (model, options.flops / flop_of(model))
    print(table(rates, options.gpus, links, options.worker))


if __name__ == "__main__":
    main()
