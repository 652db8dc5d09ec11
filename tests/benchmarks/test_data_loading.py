"""That the benchmark runs and says what it should; how fast anything is, is not asked."""

import json
import subprocess
import sys
from pathlib import Path


def test_it_reports_speed_and_memory() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "data_loading.py"
    sizes = ["--repeats=1", "--files=3", "--listed=1000", "--batches=1"]
    done = subprocess.run(
        [sys.executable, script, *sizes], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["listed_files"] == 1000
    assert len(report["samplings"]) == 2
    for found in report["samplings"].values():
        speeds = found["utterances_per_second"]
        assert speeds.keys() == {"plain", "device", "worker"}
        for key, ratio in found["ratio"].items():
            assert ratio == speeds[key] / speeds["plain"] > 0
        assert all(size > 0 for size in found["worker_private_bytes"].values())
    rows = [line for line in done.stderr.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * 3
