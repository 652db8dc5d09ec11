"""docs/first_steps.md works as it stands: its commands are run in order in a clean folder."""

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
PAGE = ROOT / "docs" / "first_steps.md"
BLOCK = re.compile(r"(<!-- not run by the tests.*?-->\n)?```bash\n(.*?)```", re.DOTALL)
SHORTER = {  # settings that are added to commands: fewer rows than a batch, and little time
    "sslsv doctor": "trainer.batch_size=8",
    "sslsv train": "trainer.batch_size=8 trainer.epochs=1 dataset.frame_length=8000",
}
VOICES = "alice bob carol dave erin frank grace heidi".split()


@pytest.fixture(scope="module")
def place(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings of eight speakers and the project's tools, and nothing else."""
    folder = tmp_path_factory.mktemp("stranger")
    for number, name in enumerate(VOICES):
        shutil.copytree(corpus / f"wav/id{number:02d}", folder / "recordings" / name)
    (folder / "tools").symlink_to(ROOT / "tools")
    return folder


def run(block: str, folder: Path) -> str:
    for command, settings in SHORTER.items():
        block = re.sub(rf"^{command}.*$", rf"\g<0> {settings}", block, flags=re.MULTILINE)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_from_a_folder_to_a_verdict(place: Path) -> None:
    blocks = [text for mark, text in BLOCK.findall(PAGE.read_text()) if not mark]
    prepared, written, examined, trained, evaluated, verified = (run(b, place) for b in blocks)

    assert "24 recordings of 6 speakers to train on" in prepared
    assert "trials of 8 recordings of 2 speakers" in prepared
    assert written == ""
    assert "error" not in examined
    assert "Epoch 1/1: loss" in trained
    results = json.loads((place / "models/mine/evaluation.json").read_text())
    for system in ("trained", "untrained", "mfcc"):
        assert re.search(rf"test_trials +{system} +\d+\.\d\d ", evaluated)
    assert 0 <= results["test/sv_cosine/test_trials/eer"] <= 100
    (score,) = re.findall(r"^score: (-?\d\.\d{4}) \(cosine\)$", verified, re.MULTILINE)
    trial = (place / "data/mine/test_trials").read_text().splitlines()[0].split()
    scores = (place / "models/mine/scores/trained_sv_cosine_test_trials.txt").read_text()
    (same,) = [line for line in scores.splitlines() if line.split()[:2] == trial[1:]]
    assert float(score) == pytest.approx(float(same.split()[2]), abs=1e-4)


def test_its_configuration_is_that_of_the_demonstration() -> None:
    """But for what is the user's: the lists, their sample rate, noises, the time it takes."""
    from ruamel.yaml import YAML

    (text,) = re.findall(r"<<'END'\n(.*?)END\n", PAGE.read_text(), re.DOTALL)
    mine = YAML(typ="safe").load(text)
    demo = YAML(typ="safe").load(ROOT / "models/demo/simclr/config.yml")
    assert mine["encoder"] == demo["encoder"]
    assert mine["method"] == demo["method"]
    assert {**mine["trainer"], "epochs": 5} == demo["trainer"]
