"""That the benchmark runs and says what it should; how fast anything is, is not asked."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "score_norm.py"


def test_it_reports_both_norms_beside_their_loops() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert list(report["forms"]) == ["as-norm", "as-norm, loop", "s-norm", "s-norm, loop"]
    for found in report["forms"].values():
        assert found["seconds"] > 0
        assert found["extra_gb"] >= 0
    assert set(report["largest_difference"]) == {"as-norm", "s-norm"}
    assert all(0 < value < 1e-4 for value in report["largest_difference"].values())
    rows = [line for line in done.stderr.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
