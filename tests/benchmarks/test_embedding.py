"""That the benchmark runs and says what it should; how fast anything is, is not asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sslsv import experiment
from sslsv.config import load_config

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "embedding.py"


@pytest.mark.parametrize("trained", [False, True])
def test_it_reports_speed_and_distance(trained: bool, config_file: Path) -> None:
    arguments = ["--encoders", "resnet34"]
    if trained:
        settings = ["trainer.epochs=1", "dataset.max_samples=8"]
        experiment.train(load_config(config_file, settings))
        arguments = ["--config", str(config_file), "--model_suffix", "epoch-1"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", *arguments], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["files"] == 4
    assert 4 <= report["audio_seconds"] <= 32
    assert list(report["encoders"]) == [arguments[1]]
    (found,) = report["encoders"].values()
    speeds = found["files_per_second"]
    assert speeds.keys() == found["ratio"].keys() == found["distance"].keys()
    assert len(speeds) == 4
    for form, ratio in found["ratio"].items():
        assert ratio == speeds[form] / speeds["one by one"] > 0
    assert found["distance"]["one by one"] == 0
    assert found["distance"]["batches"] < 1e-5  # the same embeddings, however they are batched
    assert found["distance"]["batches, bf16"] > 0  # bf16 is not float32
    assert found["distance_between_files"] > 0
    rows = [line for line in done.stderr.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
