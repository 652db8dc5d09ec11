"""Each method trains through the real trainer, on eight synthetic voices, for some seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from cases import CASES, Case

from sslsv.config import from_dict
from sslsv.experiment import train

EPOCHS = 16
# The loss of a method with a moving target (a teacher, a filling queue) need not fall.
MOVING = {"moco", "moco_margins", "byol", "dino"}
TYPES = sorted({case.type for case in CASES})
ENOUGH: dict[str, dict[str, Any]] = {  # where the small case of a type is too small to learn
    "wmse": {"projector_hidden_dim": 64, "projector_output_dim": 7, "whitening_size": 16},
    "supervised": {"nb_classes": 8},
    "swav": {"projector_hidden_dim": 64, "projector_output_dim": 16, "nb_prototypes": 16},
    "dino": {"head_hidden_dim": 64, "head_bottleneck_dim": 16, "head_output_dim": 64},
    "simsiam": {"projector_hidden_dim": 64, "projector_output_dim": 64, "pred_hidden_dim": 16},
}


def settings(case: Case, corpus: Path, run_dir: Path) -> dict[str, Any]:
    views = {"single": {"ssl": False}, "siamese": {"ssl": True}}
    multicrop = {"ssl": True, "frame_sampling": "dino", "ssl_dino_global_length": 8000}
    pooling = not case.config().needs_sequence
    return {
        "encoder": {"type": "resnet34", "base_dim": 8, "encoder_dim": 32, "pooling": pooling},
        "method": {"type": case.type, **ENOUGH.get(case.type, case.fields)},
        "trainer": {"epochs": EPOCHS, "batch_size": 16, "tracked_metric": "train/loss"},
        "dataset": {
            "base_path": str(corpus),
            "train": "train.csv",
            "frame_length": 8000,
            "num_workers": 0,
            **views.get(case.views, multicrop | {"ssl_dino_local_length": 4000}),
        },
        "run_dir": str(run_dir),
    }


@pytest.mark.parametrize("kind", TYPES)
def test_it_learns_and_does_not_collapse(kind: str, corpus: Path, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.type == kind)
    train(from_dict(settings(case, corpus, tmp_path)))
    history = json.loads((tmp_path / "training.json").read_text())
    assert len(history) == EPOCHS
    assert all(math.isfinite(value) for epoch in history.values() for value in epoch.values())
    first, last = history["1"], history[str(EPOCHS)]
    if kind not in MOVING:
        assert last["train/loss"] < first["train/loss"]
    assert last["train/embedding_std"] > 0.1
    assert last["train/effective_rank"] > 2
