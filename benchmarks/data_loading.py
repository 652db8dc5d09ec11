"""Utterances a second and memory of one loading worker, beside a plain loader.

    python benchmarks/data_loading.py > data_loading.json

JSON goes to stdout, a table to stderr. The plain loader is what one writes first: an utterance is
decoded whole in float64 and cropped; each crop is augmented by itself with a whole noise file and
``scipy.signal.convolve``. All audio is made up in a temporary folder (8-s utterances and noises,
responses of 0.3 to 1 s) and stays in the page cache, so that processors are compared, not disks.
Speeds are medians over repeats, in each of which all loaders take their turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile as sf
import torch
from torch.utils.data import DataLoader, Dataset

from sslsv import audio
from sslsv.datasets.augmentation import AugmentationConfig
from sslsv.datasets.loader import Loader
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.samplers import Draw
from sslsv.datasets.views import DatasetConfig, SpeechDataset

RATE = audio.SAMPLE_RATE
BATCH = 64
SAMPLINGS: dict[str, dict[str, Any]] = {
    "siamese 2 x 2 s": {"frame_length": 2 * RATE},
    "DINO 2 x 4 s + 4 x 2 s": {
        "frame_sampling": "dino",
        "ssl_dino_global_length": 4 * RATE,
        "ssl_dino_local_length": 2 * RATE,
    },
}
GOALS = {  # times the plain loader: augmentation on the device, everything in the worker
    "siamese 2 x 2 s": (8.0, 2.5),
    "DINO 2 x 4 s + 4 x 2 s": (5.0, 2.0),
}
SNR_DB = {"noise": (0, 15), "speech": (13, 20), "music": (5, 15)}


class PlainDataset(Dataset):
    """One utterance at a time, whole files, float64."""

    def __init__(self, manifest: Manifest, files: int, lengths: list[int]):
        self.files = [str(manifest.base_path / manifest.file(row)) for row in range(files)]
        self.lengths = lengths
        base = manifest.base_path
        self.rirs = sorted(str(path) for path in base.glob("simulated_rirs/*/*/*.wav"))
        self.noises = {
            category: sorted(str(path) for path in base.glob(f"musan_split/{category}/*/*.wav"))
            for category in SNR_DB
        }

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        wave, _ = sf.read(self.files[row])
        views = []
        for length in self.lengths:
            start = np.random.randint(len(wave) - length + 1)  # noqa: NPY002
            frame = self.augment(wave[start : start + length])
            views.append(torch.from_numpy(frame.astype(np.float32)))
        return views

    def augment(self, frame: np.ndarray) -> np.ndarray:
        random = np.random.mtrand._rand
        rir, _ = sf.read(self.rirs[random.randint(len(self.rirs))])
        rir = rir / np.sqrt(np.sum(rir**2))
        frame = scipy.signal.convolve(frame, rir, mode="full")[: len(frame)]
        category = list(SNR_DB)[random.randint(3)]
        files = self.noises[category]
        noise, _ = sf.read(files[random.randint(len(files))])
        start = random.randint(len(noise) - len(frame) + 1)
        noise = noise[start : start + len(frame)]
        snr_db = random.uniform(*SNR_DB[category])
        frame_db = 10 * np.log10(np.mean(frame**2) + 1e-4)
        noise_db = 10 * np.log10(np.mean(noise**2) + 1e-4)
        return frame + noise * 10 ** ((frame_db - noise_db - snr_db) / 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, default=400, help="utterances on the disk")
    parser.add_argument("--listed", type=int, default=1_100_000, help="rows of the training list")
    parser.add_argument("--batches", type=int, default=32, help=f"of {BATCH}, timed each repeat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_corpus(base, options.files, options.listed)
        started = time.perf_counter()
        manifest = read_manifest("train.csv", base)
        report: dict[str, Any] = {
            "processors": os.cpu_count(),
            "listed_files": len(manifest),
            "list_seconds": time.perf_counter() - started,
            "samplings": {},
        }
        for name, fields in SAMPLINGS.items():
            report["samplings"][name] = measure(manifest, options, name, fields)
    json.dump(report, sys.stdout, indent=2)
    print()
    print_table(report)


def make_corpus(base: Path, files: int, listed: int) -> None:
    """Audio, and a list in which only the first rows exist on the disk."""
    rng = np.random.default_rng(0)

    def save(name: str, seconds: float, decay: bool = False) -> None:
        wave = 0.1 * rng.standard_normal(int(seconds * RATE), dtype=np.float32)
        if decay:
            wave *= np.exp(-6 * np.arange(len(wave), dtype=np.float32) / len(wave))
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write(base / name, wave)

    for i in range(files):
        save(listed_name(i), 8)
    for category in SNR_DB:
        for i in range(100):
            save(f"musan_split/{category}/made/{i:05d}.wav", 8)
    for i in range(200):
        save(f"simulated_rirs/mediumroom/Room{i // 10:03d}/{i:05d}.wav", rng.uniform(0.3, 1), True)
    with open(base / "train.csv", "w", encoding="utf-8") as file:
        file.write("File,Speaker\n")
        file.writelines(f"{listed_name(i)},id{i // 180:05d}\n" for i in range(listed))


def listed_name(i: int) -> str:
    return f"voxceleb2/id{i // 180:05d}/{i * 7919 % 999983:011d}/{i % 50:05d}.wav"


def measure(
    manifest: Manifest, options: argparse.Namespace, name: str, fields: dict[str, Any]
) -> dict[str, Any]:
    config = DatasetConfig(
        ssl=True, base_path=manifest.base_path, augmentation=AugmentationConfig(), **fields
    )
    lengths = [view.samples for view in config.views()]
    shape = (options.batches + 1, BATCH)
    rows = np.random.default_rng(1).integers(options.files, size=shape).tolist()
    batches = [[Draw(0, row) for row in batch] for batch in rows]
    loaders: dict[str, Any] = {
        "plain": DataLoader(
            PlainDataset(manifest, options.files, lengths),
            batch_sampler=rows[: 1 + -(-options.batches // 8)],  # it takes long enough
            num_workers=1,
            persistent_workers=True,
        ),
        "device": Loader(SpeechDataset(manifest, config, 0, augment_later=True), batches, 1),
        "worker": Loader(SpeechDataset(manifest, config, 0), batches, 1),
    }
    speeds: dict[str, list[float]] = {key: [] for key in loaders}
    for repeat in range(options.repeats + 1):
        for key, loader in loaders.items():
            speed = utterances_a_second(iter(loader), len(loader))
            if repeat:  # the first one starts the worker
                speeds[key].append(speed)
    uss = {
        key: private_memory(getattr(loader, "_loader", loader)) for key, loader in loaders.items()
    }
    found = {key: statistics.median(values) for key, values in speeds.items()}
    return {
        "utterances_per_second": found,
        "ratio": {key: found[key] / found["plain"] for key in ("device", "worker")},
        "goal": dict(zip(("device", "worker"), GOALS[name], strict=True)),
        "worker_private_bytes": uss,
    }


def utterances_a_second(batches: Iterator[Any], count: int) -> float:
    next(batches)
    started = time.perf_counter()
    for _ in batches:
        pass
    return (count - 1) * BATCH / (time.perf_counter() - started)


def private_memory(loader: DataLoader[Any]) -> int:
    """Bytes that the loader's worker shares with no other process (USS)."""
    (worker,) = loader._iterator._workers  # type: ignore[union-attr]
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def print_table(report: dict[str, Any]) -> None:
    def line(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", file=sys.stderr)

    line("views", "augmentation", "utterances/s", "× plain", "goal", "private MB of the worker")
    line(*["---"] * 6)
    for name, found in report["samplings"].items():
        for key in ("plain", "device", "worker"):
            ratio = f"{found['ratio'][key]:.1f}" if key != "plain" else "1"
            goal = f"{found['goal'][key]:g}" if key != "plain" else ""
            speed = f"{found['utterances_per_second'][key]:.0f}"
            line(name, key, speed, ratio, goal, f"{found['worker_private_bytes'][key] / 1e6:.0f}")
    print(
        f"{report['listed_files']} files listed, read in {report['list_seconds']:.1f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
