"""The fast forms of a step train as eager float32 does: the same loss curve within noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plain_step import default_layout

from sslsv.config import from_dict
from sslsv.experiment import build_trainer
from sslsv.files import read_json

pytestmark = pytest.mark.soak

EPOCHS, STEPS = 100, 200
SMOOTH = 10  # epochs


@pytest.fixture
def curve(corpus: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Training loss of each epoch, smoothed."""

    def train(name: str, seed: int, mixed: object = False, plain: bool = False) -> np.ndarray:
        trainer = build_trainer(
            from_dict(
                {
                    "run_dir": str(tmp_path / name),
                    "seed": seed,
                    "encoder": {"type": "resnet34", "base_dim": 8, "encoder_dim": 64},
                    "method": {"type": "simclr", "enable_projector": False},
                    "dataset": {
                        "base_path": str(corpus),
                        "train": "train.csv",
                        "ssl": True,
                        "frame_length": 8000,
                        "num_workers": 0,
                        "augmentation": {"strategy": "noise"},
                    },
                    "trainer": {"epochs": EPOCHS, "batch_size": 16, "mixed_precision": mixed},
                }
            )
        )
        assert trainer.steps_per_epoch * EPOCHS == STEPS
        if plain:
            default_layout(trainer.method.encoder)
        trainer.fit()
        losses = [x["train/loss"] for x in read_json(tmp_path / name / "training.json").values()]
        return np.convolve(losses, np.ones(SMOOTH) / SMOOTH, mode="valid")

    return train


def test_of_200_steps(curve: Callable[..., np.ndarray]) -> None:
    plain = {seed: curve(f"plain-{seed}", seed, plain=True) for seed in (1, 2, 3)}
    forms = {"channels last": curve("fp32", 1), "bf16": curve("bf16", 1, "bf16")}

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)))

    noise = np.mean([distance(a, b) for a, b in itertools.combinations(plain.values(), 2)])
    found = {name: distance(x, plain[1]) for name, x in forms.items()}
    fallen = plain[1][0] - plain[1][-1]
    print(f"\nloss falls by {fallen:.3f}; seeds differ by {noise:.4f}; from eager float32: {found}")
    assert fallen > 3 * noise
    assert min(found.values()) > 0  # they are other sums, or this would compare nothing
    assert max(found.values()) < noise
