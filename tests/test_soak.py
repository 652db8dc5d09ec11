"""Proofs that take long: ``make soak``. Their last results are in docs/results.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sslsv.config import load_config
from sslsv.experiment import evaluate, train
from sslsv.trainer.averaging import average_epochs

CONFIG = Path(__file__).resolve().parents[1] / "models" / "demo" / "simclr" / "config.yml"

pytestmark = pytest.mark.soak


def eers(results: dict[str, dict[str, float]], trials: str) -> dict[str, float]:
    return {system: found[f"sv_cosine/{trials}/eer"] for system, found in results.items()}


def test_demo_beats_its_baselines_by_half(tmp_path: Path) -> None:
    """Some 7 minutes on two cores."""
    pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")
    script = CONFIG.parents[3] / "tools" / "prepare_data" / "prepare_demo.py"
    subprocess.run([sys.executable, script, tmp_path / "data"], check=True)
    config = load_config(
        CONFIG, [f"dataset.base_path={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    )
    train(config)
    eer = eers(evaluate(config, baselines=True), "demo_test_trials")
    assert eer["trained"] < 15
    assert eer["trained"] <= 0.5 * min(eer["untrained"], eer["mfcc"])


def test_simclr_learns_from_an_hour_of_real_speech(real_data: Path, tmp_path: Path) -> None:
    """Some 20 minutes on two cores."""
    overrides = [f"dataset.base_path={real_data}", "dataset.train=pool.csv", "trainer.epochs=40"]
    overrides += ["evaluation.test.0.trials=[trials.txt]", f"run_dir={tmp_path / 'run'}"]
    config = load_config(CONFIG, overrides)
    train(config)
    average_epochs(tmp_path / "run", count=10)
    averaged = eers(evaluate(config, "avg"), "trials.txt")
    eer = eers(evaluate(config, baselines=True), "trials.txt")
    assert averaged["trained"] < eer["untrained"]
    assert eer["trained"] < eer["untrained"]
    assert eer["trained"] <= 24
