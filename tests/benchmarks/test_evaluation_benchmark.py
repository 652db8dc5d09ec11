"""That the benchmarks run and say what they should; how fast anything is, is not asked."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(name: str, *options: str) -> tuple[dict[str, Any], list[str]]:
    command = [sys.executable, BENCHMARKS / name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), [x for x in done.stderr.splitlines() if x.startswith("|")]


def test_evaluation_reports_both_of_its_sections() -> None:
    sizes = ["--list_trials=2000", "--utterances=600", "--dim=16", "--looped_trials=200"]
    sizes += ["--trials=400", "--speakers=12", "--resamples=100", "--looped=2", "--repeats=1"]
    report, rows = run("evaluation.py", *sizes)
    assert report["cosine"]["seconds"] > 0
    assert report["cosine"]["memory_gb"] >= 0
    assert report["bootstrap"]["all_s"] > 0
    assert len(rows) == 2 + 4


def test_plda_reports_both_forms() -> None:
    sizes = ["--trials=2000", "--files=600", "--speakers=60", "--dim=8", "--rank=4"]
    sizes += ["--looped=100", "--repeats=1"]
    report, rows = run("plda.py", *sizes)
    assert list(report["plda"]) == ["two-covariance", "subspace"]
    assert len(rows) == 2 + 2
