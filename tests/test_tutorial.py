"""docs/extending.md does what it says: its files are taken out of the page and used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the tutorial's files in it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "sslsv", folder / "sslsv", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", page(), flags=re.DOTALL)
    assert len(blocks) == 5
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def page() -> str:
    return (ROOT / "docs" / "extending.md").read_text()


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_pass(project: Path) -> None:
    assert "3 passed" in run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], project)


def test_its_config_trains(project: Path, corpus: Path) -> None:
    (command,) = re.findall(r"```bash\npython (.*?)\n```", page())
    settings = [f"dataset.base_path={corpus}", "dataset.train=train.csv"]
    assert "align_uniform with mean_cnn" in run([*command.split(), *settings], project)
    assert (project / "models" / "tutorial" / "checkpoints" / "model_latest.pt").exists()
