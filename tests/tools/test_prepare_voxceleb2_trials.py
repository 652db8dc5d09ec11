"""Trials of VoxCeleb2 speakers: balance, held-out speakers, determinism, what is refused."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_voxceleb2_trials  # noqa: E402

from sslsv.evaluations.trials import read_trials  # noqa: E402

SMALL = ["--speakers", "4", "--trials", "40"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """8 speakers, 2 videos of 3 utterances, and a column more than there has to be."""
    lines = ["File,Speaker,Sex\n"]
    for speaker in range(12, 20):
        for video in ("aaa", "bbb"):
            for number in range(3):
                file = f"voxceleb2/id{speaker:05d}/{video}/{number:05d}.wav"
                lines.append(f"{file},id{speaker:05d},m\n")
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(tmp_path / file, np.sin(np.arange(400) / 5) / 2, 16000)
    (tmp_path / "voxceleb2_train.csv").write_text("".join(lines))
    return tmp_path


def run(data: Path, *options: object) -> int:
    command = [str(data), "--workers", "1", *SMALL, *map(str, options)]
    return prepare_voxceleb2_trials.main(command)


def trials(data: Path) -> list[list[str]]:
    return [line.split(" ") for line in (data / "voxceleb2_trials").read_text().splitlines()]


def speaker(file: str) -> str:
    return file.split("/")[1]


def test_trials(data: Path) -> None:
    assert run(data) == 0
    lines = trials(data)
    assert Counter(label for label, _, _ in lines) == {"0": 20, "1": 20}
    assert len({frozenset(files) for _, *files in lines}) == 40
    speakers = Counter()
    for label, enrol, test in lines:
        assert (label == "1") == (speaker(enrol) == speaker(test))
        if label == "1":
            speakers[speaker(enrol)] += 1
            assert enrol.split("/")[2] != test.split("/")[2]
    assert list(speakers.values()) == [5] * 4
    assert len(read_trials(data / "voxceleb2_trials")) == 40
    assert not (data / "voxceleb2_train_without_trials.csv").exists()


def test_held_out_speakers(data: Path) -> None:
    assert run(data, "--hold_out") == 0
    header, *rest = (data / "voxceleb2_train_without_trials.csv").read_text().splitlines()
    source = (data / "voxceleb2_train.csv").read_text().splitlines()
    used = {speaker(file) for _, *files in trials(data) for file in files}
    assert len(used) == 4
    assert header == source[0]
    assert rest == [line for line in source[1:] if line.split(",")[1] not in used]
    assert len(rest) == 4 * 6


def test_seed(data: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        assert run(data, "--seed", seed) == 0
        texts.append((data / "voxceleb2_trials").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_the_order_of_the_list_does_not_matter(data: Path) -> None:
    assert run(data) == 0
    before = trials(data)
    path = data / "voxceleb2_train.csv"
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *reversed(rows)]))
    assert run(data) == 0
    assert trials(data) == before


def test_list_from_elsewhere(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (data / "voxceleb2_train.csv").rename(tmp_path / "lists" / "voxceleb2_train.csv")
    assert run(data, "--from", tmp_path / "lists") == 0
    assert len(trials(data)) == 40


def test_defaults(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        prepare_voxceleb2_trials.main(["--help"])
    text = capsys.readouterr().out
    assert "(default: 50)" in text
    assert "(default: 40000)" in text


def test_too_few_pairs(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(data, "--trials", 1000) == 2  # 4 speakers have 9 pairs each
    assert "trials: 72 found, 1,000 expected" in capsys.readouterr().err
    assert run(data, "--trials", 1000, "--allow_incomplete") == 0
    assert Counter(label for label, _, _ in trials(data)) == {"0": 36, "1": 36}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda path: path.unlink(), [], "not found; prepare_voxceleb.py writes it"),
        (lambda path: path.write_text(""), [], "is empty or not text"),
        (lambda path: path.write_text("Path,Speaker\n"), [], "no column 'File'"),
        (lambda path: path.write_text("File,Speaker\na\n"), [], "line 2: 1 fields, 2 expected"),
        (lambda path: None, ["--speakers", "8"], "--speakers 8:"),
        (lambda path: None, ["--speakers", "1"], "--speakers 1: must be at least 2"),
        (lambda path: None, ["--trials", "0"], "--trials 0: must be at least 2"),
        (
            lambda path: [file.unlink() for file in path.parent.rglob("*.wav")],
            [],
            "file not found",
        ),
    ],
)
def test_bad_input(
    change, options: list[str], message: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    change(data / "voxceleb2_train.csv")
    assert run(data, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (data / "voxceleb2_trials").exists()
