"""The README's commands run as printed, and ``make demo`` in a shorter form."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- not run by the tests.*?-->\n)?```bash\n(.*?)```", re.DOTALL)

pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the project in a folder of their own."""
    folder = tmp_path_factory.mktemp("clone")
    names = ["Makefile", "README.md", "requirements.txt", "pyproject.toml", "setup.py"]
    for name in [*names, "train_ddp.sh", "evaluate_ddp.sh"]:
        shutil.copy2(ROOT / name, folder)
    for name in ("sslsv", "tools"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    config = Path("models/demo/simclr/config.yml")
    (folder / config).parent.mkdir(parents=True)
    shutil.copy2(ROOT / config, folder / config)
    return folder


def run(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    environment.pop("MAKEFLAGS", None)
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_commands_as_printed(clone: Path) -> None:
    commands = [
        line
        for excused, text in BLOCK.findall((clone / "README.md").read_text())
        for line in text.splitlines()
        if not excused
    ]
    assert len(commands) >= 3
    output = [run(command, clone) for command in commands]
    assert "EER (%)" in output[-1]
    assert (clone / "runs/first/checkpoints/model_latest.pt").exists()


def test_two_processes_train_and_evaluate(clone: Path) -> None:
    """On the data of the commands above, which come first."""
    config = "models/demo/simclr/config.yml dataset.base_path=data/first run_dir=runs/two"
    run(f"./train_ddp.sh 2 {config} trainer.epochs=1 trainer.batch_size=16", clone)
    results = []
    for command in ("./evaluate_ddp.sh 2", "python sslsv/bin/evaluate.py"):
        output = run(f"{command} {config}", clone)
        assert "EER (%)" in output
        results.append(json.loads((clone / "runs/two/evaluation.json").read_text()))
    assert results[0].keys() == results[1].keys()
    for name in [name for name in results[0] if name.startswith("test/")]:
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-6), name


def test_demo_short_then_again(clone: Path) -> None:
    mark = Path(sys.prefix) / ".installed"
    newest = max((ROOT / name).stat().st_mtime for name in ("requirements.txt", "pyproject.toml"))
    if not mark.exists() or mark.stat().st_mtime < newest:
        pytest.skip("make demo would install everything anew; run the tests by 'make test'")
    command = (
        f"make demo VENV={sys.prefix} DEMO_DATA=data/short "
        "DEMO_SIZE='--train_voices 8 --test_voices 4 --utterances 4' "
        "DEMO_SET='trainer.epochs=1 trainer.batch_size=16 run_dir=runs/short'"
    )
    first = run(command, clone)
    for system in ("trained", "untrained", "mfcc"):
        row = rf"demo_test_trials +{system} +\d+\.\d\d \[.*\] +\d\.\d{{4}} \[.*\]"
        assert re.search(row, first)
    results = json.loads((clone / "runs/short/evaluation.json").read_text())
    assert 0 <= results["test/sv_cosine/demo_test_trials/eer"] <= 100
    assert list((clone / "runs/short/plots").glob("det_*.png"))
    assert list((clone / "runs/short/tensorboard").iterdir())

    second = run(command, clone)
    assert "already trained" in second
    assert second.count("loss") == 0  # nothing was trained again
