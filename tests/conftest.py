"""What tests share: a tiny corpus made on the spot, configurations, the real corpus if present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from sslsv import audio

hypothesis.settings.register_profile("default", deadline=None)  # machines are shared
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)  # a verdict to repeat
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

LONGEST = ["test_interrupt.py", "test_learning.py", "test_readme.py", "test_notebooks.py"]
RATE = audio.SAMPLE_RATE
SPEAKERS, UTTERANCES = 8, 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process works on one of them when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither read nor fill the cache of the user, nor what the user logs elsewhere."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real-speech corpus that ``SSLSV_TEST_DATA`` names."""
    root = Path(__file__).resolve().parents[1]
    path = Path(os.environ.get("SSLSV_TEST_DATA", root.parent / "shared" / "data"))
    if not (path / "pool.csv").exists():
        pytest.skip(f"no real speech in {path} (set SSLSV_TEST_DATA)")
    return path


def voice(speaker: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A buzz with the pitch and the two resonances of a speaker."""
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = 80 + 15 * speaker
    wave = np.zeros_like(t)
    for harmonic in range(1, 25):
        f = pitch * harmonic
        gain = sum(
            np.exp(-(((f - c) / 200) ** 2)) for c in (400 + 90 * speaker, 1500 + 150 * speaker)
        )
        wave += (gain + 0.02) * np.sin(2 * np.pi * f * t + rng.uniform(0, 6.28))
    wave *= 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 5) * t)
    return (0.1 * wave / np.abs(wave).max() + 0.002 * rng.standard_normal(len(t))).astype(
        np.float32
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight speakers with four files each (0.9 to 2 s), trials, noises and responses."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    files: list[tuple[str, str]] = []
    for speaker in range(SPEAKERS):
        for utterance in range(UTTERANCES):
            name = f"wav/id{speaker:02d}/s{utterance % 2}/{utterance:05d}.wav"
            wave = voice(speaker, rng.uniform(0.9, 2.0), rng)
            audio.write(root / name, wave)
            files.append((name, f"id{speaker:02d}"))
    rows = "".join(f"{name},{speaker}\n" for name, speaker in files)
    (root / "train.csv").write_text("File,Speaker\n" + rows)
    trials = [
        f"{int(a[1] == b[1])} {a[0]} {b[0]}\n"
        for i, a in enumerate(files)
        for b in files[i + 1 :: 3]
    ]
    (root / "trials").write_text("".join(trials))
    for category in ("noise", "music", "speech"):
        for i in range(2):
            noise = 0.05 * rng.standard_normal(3 * RATE).astype(np.float32)
            audio.write(root / f"musan_split/{category}/made/{i}.wav", noise)
    decay = np.exp(-np.arange(RATE // 5) / (0.03 * RATE))
    for i in range(2):
        rir = (decay * rng.standard_normal(len(decay))).astype(np.float32)
        rir[0] = 1
        audio.write(
            root / f"simulated_rirs/smallroom/Room00{i}/{i}.wav", 0.5 * rir / abs(rir).max()
        )
    return root


CONFIG = """\
encoder:
  type: resnet34
  base_dim: 8
  encoder_dim: 32
method:
  type: simclr
  enable_projector: false
  temperature: 0.1
trainer:
  epochs: 2
  batch_size: 8
dataset:
  base_path: {corpus}
  train: train.csv
  ssl: true
  frame_length: 8000
  num_workers: 0
evaluation:
  test:
    - type: sv_cosine
      num_frames: 1
      frame_length: null
      trials: [trials]
"""


@pytest.fixture
def config_file(corpus: Path, tmp_path: Path) -> Path:
    """A small experiment on ``corpus`` in a folder of its own."""
    path = tmp_path / "run" / "config.yml"
    path.parent.mkdir()
    path.write_text(CONFIG.format(corpus=corpus))
    return path


@pytest.fixture
def edit_config(config_file: Path) -> Callable[[str, str], Path]:
    """Replace a piece of the text of ``config_file``."""

    def edit(old: str, new: str) -> Path:
        text = config_file.read_text()
        assert old in text
        config_file.write_text(text.replace(old, new))
        return config_file

    return edit
