"""That the benchmark runs and says what it should; how fast anything is, is not asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_it_reports_loss_update_and_share() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "methods.py"
    sizes = ["simclr", "--rows=4", "--step_rows=2", "--repeats=1"]
    done = subprocess.run(
        [sys.executable, script, *sizes], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    found = report["methods"]["simclr"]
    assert report["rows"] == 4
    assert found["share"] == pytest.approx(
        (found["loss_ms"] + found["update_ms"]) / found["step_ms"]
    )
    assert found["loss_ms"] > 0
    rows = [line for line in done.stderr.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 1
