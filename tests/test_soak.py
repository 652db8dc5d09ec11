"""Proofs that take long: ``make soak``. Their last results are in docs/results.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sslsv import registry
from sslsv.config import from_dict, load_config, to_dict
from sslsv.experiment import evaluate, train
from sslsv.trainer.averaging import average_epochs

CONFIG = Path(__file__).resolve().parents[1] / "models" / "demo" / "simclr" / "config.yml"

pytestmark = pytest.mark.soak


PROJECTOR = {"projector_hidden_dim": 512, "projector_output_dim": 128}
MARGIN = {"loss": "nt-xent-cosface", "scale": 33.3333, "margin": 0.1}
# Type of a method -> fields of its section, sized for 1920 utterances of 120 voices.
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"enable_projector": False, "temperature": 0.03},
    "moco": {"enable_projector": False, "temperature": 0.03, "queue_size": 1024},
    "lim": {**PROJECTOR, "loss": "nce"},
    "cpc": {},
    "wmse": {"projector_hidden_dim": 512, "projector_output_dim": 32, "whitening_size": 64},
    "barlow_twins": PROJECTOR,
    "vicreg": {**PROJECTOR, "cov_weight": 0.1},
    "vibcreg": PROJECTOR,
    "byol": {**PROJECTOR, "predictor_hidden_dim": 512},
    "simsiam": {"projector_hidden_dim": 512, "projector_output_dim": 512, "pred_hidden_dim": 128},
    "combiner": {
        **PROJECTOR,
        "Y_losses": [{"type": "infonce"}],
        "Z_losses": [{"type": "vicreg", "weight": 0.1}],
    },
    "simclr_margins": {"enable_projector": False, "loss": MARGIN},
    "moco_margins": {"enable_projector": False, "queue_size": 1024, "loss": MARGIN},
    "simclr_multiviews": {"enable_projector": False, "loss": MARGIN},
    "supervised": {"nb_classes": 120},
}
EPOCHS = {"byol": 10, "simsiam": 10, "cpc": 10}  # 5 elsewhere


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of ``make demo``, made anew."""
    pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")
    script = CONFIG.parents[3] / "tools" / "prepare_data" / "prepare_demo.py"
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, script, folder], check=True)
    return folder


def eers(results: dict[str, dict[str, float]], trials: str) -> dict[str, float]:
    return {system: found[f"sv_cosine/{trials}/eer"] for system, found in results.items()}


def test_demo_beats_its_baselines_by_half(demo_data: Path, tmp_path: Path) -> None:
    """Some 7 minutes on two cores."""
    config = load_config(CONFIG, [f"dataset.base_path={demo_data}", f"run_dir={tmp_path}"])
    train(config)
    eer = eers(evaluate(config, baselines=True), "demo_test_trials")
    assert eer["trained"] < 15
    assert eer["trained"] <= 0.5 * min(eer["untrained"], eer["mfcc"])


def test_simclr_learns_from_an_hour_of_real_speech(real_data: Path, tmp_path: Path) -> None:
    """Some 20 minutes on two cores."""
    overrides = [f"dataset.base_path={real_data}", "dataset.train=pool.csv", "trainer.epochs=40"]
    overrides += ["dataset.wrap_length=64000"]  # its files are hardly longer than a crop
    overrides += ["evaluation.test.0.trials=[trials.txt]", f"run_dir={tmp_path / 'run'}"]
    config = load_config(CONFIG, overrides)
    train(config)
    average_epochs(tmp_path / "run", count=10)
    averaged = eers(evaluate(config, "avg"), "trials.txt")
    eer = eers(evaluate(config, baselines=True), "trials.txt")
    assert averaged["trained"] < eer["untrained"]
    assert eer["trained"] < eer["untrained"]
    assert eer["trained"] <= 24


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_beats_its_untrained_encoder(
    kind: str, demo_data: Path, tmp_path: Path
) -> None:
    """One to four minutes each on two cores, with half of the encoder's channels."""
    cls = registry.METHODS.get(kind).cls
    data = load_config(CONFIG, [f"dataset.base_path={demo_data}", f"run_dir={tmp_path}"])
    raw = to_dict(data)
    raw["method"] = {"type": kind, **METHODS[kind]}
    raw["encoder"] |= {"base_dim": 8, "encoder_dim": 256, "pooling": kind != "cpc"}
    raw["encoder"]["pooling_mode"] = None if kind == "cpc" else "sap"
    raw["trainer"] |= {"epochs": EPOCHS.get(kind, 5), "mixed_precision": True}
    raw["dataset"] |= {
        "ssl": cls.views != "single",  # type: ignore[attr-defined]
        "frame_sampling": "dino" if cls.views == "multicrop" else "default",  # type: ignore[attr-defined]
        "ssl_dino_global_length": 32000,
        "ssl_dino_local_length": 16000,
    }
    config = from_dict(raw)
    config.check()
    train(config)
    eer = eers(evaluate(config, baselines=True), "demo_test_trials")
    print(f"RESULT {kind}: EER {eer['trained']:.2f} %, untrained {eer['untrained']:.2f} %")
    assert eer["trained"] < eer["untrained"]
