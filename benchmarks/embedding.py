"""Files a second through the extraction of embeddings: batches of similar length, and one by one.

    python benchmarks/embedding.py > embedding.json
    python benchmarks/embedding.py --config models/demo/simclr/config.yml > embedding.json

JSON goes to stdout, a table to stderr. All forms are ``sslsv.evaluations.embeddings.extract`` on
whole files, reading included: one by one is a batch size of 1; bf16 is autocast around the encoder.
Files of 1 to 8 s are made up in a temporary folder and stay in the page cache. Speeds are medians
over repeats, in each of which all forms take their turn; ratios are to one by one in float32.
Distances are 1 - cosine, the largest over the files, to the embeddings of that form. Without
--config, which takes a trained run, encoders are untrained and only their batch norms have seen
the files: then all embeddings are near each other, and distances small. So the report says how far
apart different files are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslsv import audio, experiment
from sslsv.config import load_config
from sslsv.evaluations.base import Embed
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.registry import ENCODERS
from sslsv.trainer import checkpoint

SHORTEST, LONGEST = 1.0, 8.0  # seconds
GOAL = 1.5  # times one by one in float32, on 2 processors
FARTHEST = 1e-3  # 1 - cosine at which a form may still count towards the goal
FORMS = {  # files of a batch, bf16
    "one by one": (1, False),
    "batches": (64, False),
    "one by one, bf16": (1, True),
    "batches, bf16": (64, True),
}
PLAIN = "one by one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["resnet34", "ecapatdnn"])
    parser.add_argument("--config", help="measure this run instead")
    parser.add_argument("--model_suffix", default="latest", help="its checkpoint")
    parser.add_argument("--files", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="4 files once: does it run at all?")
    options = parser.parse_args()
    if options.quick:
        options.files, options.repeats = 4, 1
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        files = make_files(base, options.files)
        samples = sum(audio.probe(base / file) for file in files)
        if options.config:
            embedders = {options.config: trained(options.config, options.model_suffix)}
        else:
            embedders = {name: untrained(name, base, files) for name in options.encoders}
        report = {
            "processors": os.cpu_count(),
            "threads": options.threads,
            "files": len(files),
            "audio_seconds": samples / audio.SAMPLE_RATE,
            "goal": GOAL,
            "farthest": FARTHEST,
            "encoders": {
                name: measure(embed, base, files, options.repeats)
                for name, embed in embedders.items()
            },
        }
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(report)


def make_files(base: Path, count: int) -> list[str]:
    """Buzzes of different pitch and timbre in noise, their lengths drawn evenly."""
    rng = np.random.default_rng(0)
    files = [f"{i:04d}.wav" for i in range(count)]
    for file in files:
        t = np.arange(int(rng.uniform(SHORTEST, LONGEST) * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
        pitch, gains = rng.uniform(80, 300), rng.exponential(size=20)
        phase = 2 * np.pi * pitch * t + 3 * np.sin(2 * np.pi * rng.uniform(1, 4) * t)
        wave = sum(gain * np.sin(k * phase) for k, gain in enumerate(gains, start=1))
        wave *= 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 5) * t)
        wave = 0.3 * wave / np.abs(wave).max() + 0.01 * rng.standard_normal(len(t))
        audio.write(base / file, wave)
    return files


def trained(config_path: str, suffix: str) -> Embed:
    config = load_config(config_path)
    assert config.run_dir is not None
    method = experiment.build_method(config)
    path = checkpoint.checkpoint_path(config.run_dir, suffix)
    checkpoint.load_to_embed(method, checkpoint.load(path), path)
    return method.eval().embed


def untrained(name: str, base: Path, files: list[str]) -> Embed:
    """Of the default configuration; statistics of batch norms are those of the first files."""
    torch.manual_seed(0)
    entry = ENCODERS.get(name)
    encoder = entry.cls(entry.config(type=name))
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain mean over what they see
    shortest = int(SHORTEST * audio.SAMPLE_RATE)
    waves = np.stack([audio.read(base / file)[:shortest] for file in files[:32]])
    with torch.no_grad():
        encoder.train()(torch.from_numpy(waves))
    return encoder.eval().embed


def measure(embed: Embed, base: Path, files: list[str], repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    found: dict[str, np.ndarray] = {}
    for repeat in range(repeats + 1):
        for form, (batch_size, bf16) in FORMS.items():
            how = Extraction(base_path=base, batch_size=batch_size)
            started = time.perf_counter()
            found[form] = extract(autocast(embed, bf16), files, how, torch.device("cpu"))
            if repeat:  # the first one makes what the libraries keep for each shape
                seconds[form].append(time.perf_counter() - started)
    speeds = {form: len(files) / statistics.median(values) for form, values in seconds.items()}
    unit = {form: x / np.linalg.norm(x, axis=1, keepdims=True) for form, x in found.items()}
    apart = 1 - unit[PLAIN].astype(np.float64) @ unit[PLAIN].T
    return {
        "files_per_second": speeds,
        "ratio": {form: speed / speeds[PLAIN] for form, speed in speeds.items()},
        "distance": {form: farthest(unit[PLAIN], x) for form, x in unit.items()},
        "distance_between_files": float(np.median(apart[~np.eye(len(files), dtype=bool)])),
    }


def autocast(embed: Embed, bf16: bool) -> Embed:
    def cast(wave: Tensor, lengths: Sequence[int] | None = None, /) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, bf16):
            return embed(wave, lengths)

    return cast


def farthest(x: np.ndarray, y: np.ndarray) -> float:
    """The largest 1 - cosine of rows of unit length, by their difference, which rounds less."""
    return float((np.square(x.astype(np.float64) - y).sum(axis=1) / 2).max())


def print_table(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    line("encoder", "form", "files/s", "× one by one", "farthest from it", "goal")
    line(*["---"] * 6)
    for name, found in report["encoders"].items():
        for form in FORMS:
            ratio, distance = found["ratio"][form], found["distance"][form]
            goal = ""
            if form.startswith("batches"):
                reached = ratio >= GOAL and distance <= FARTHEST
                goal = f"{GOAL:g}: {'yes' if reached else 'no'}"
            speed = f"{found['files_per_second'][form]:.1f}"
            line(name, form, speed, f"{ratio:.2f}", f"{distance:.1e}", goal)
    for name, found in report["encoders"].items():
        apart = found["distance_between_files"]
        print(f"{name}: two files are {apart:.1e} apart (median)", file=sys.stderr)


if __name__ == "__main__":
    main()
