"""CREMA-D in miniature: the list, its two splits and what is refused."""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_cremad  # noqa: E402

from sslsv.datasets.manifest import read_manifest  # noqa: E402

SPEAKERS = [1001, 1002, 1003, 1076]
CODES = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prepare_cremad, "CLIPS", 24)
    monkeypatch.setattr(prepare_cremad, "SPEAKERS", 4)
    folder = tmp_path / "CREMA-D" / "AudioWAV"
    folder.mkdir(parents=True)
    for speaker in SPEAKERS:
        for code in CODES:
            wave = np.sin(np.arange(800) / 5) / 2
            soundfile.write(folder / f"{speaker}_MTI_{code}_XX.wav", wave, 16000)
    (folder / "1076_MTI_SAD_XX.wav").write_bytes(b"")  # the clip without audio
    return folder.parent


def run(data: Path, *options: object) -> int:
    return prepare_cremad.main([str(data), "--workers", "1", *map(str, options)])


def rows(data: Path) -> list[list[str]]:
    header, *lines = (data / "cremad_train.csv").read_text().splitlines()
    assert header == "File,Speaker,Emotion,Set"
    return [line.split(",") for line in lines]


def test_list(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source) == 0
    found = rows(data)
    assert found[0][:3] == ["cremad/AudioWAV/1001_MTI_ANG_XX.wav", "1001", "Anger"]
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    # No disgust, and not the clip without audio.
    expected = {"Anger": 4, "Fear": 4, "Happiness": 4, "Neutral": 4, "Sadness": 3}
    assert Counter(row[2] for row in found) == expected
    assert Counter(row[3] for row in found) == {"train": 17, "test": 2}
    manifest = read_manifest("cremad_train.csv", data, label_key="Emotion")
    manifest.check()
    assert len(manifest) == 17


def test_split_by_speaker(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source, "--split", "speaker") == 0
    speakers = {
        part: {row[1] for row in rows(data) if row[3] == part} for part in ("train", "test")
    }
    assert (len(speakers["train"]), len(speakers["test"])) == (3, 1)
    assert not speakers["train"] & speakers["test"]


@pytest.mark.parametrize("split", ["utterance", "speaker"])
def test_seed(source: Path, tmp_path: Path, split: str) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 3)):
        assert run(tmp_path / name, "--from", source, "--split", split, "--seed", seed) == 0
        texts.append((tmp_path / name / "cremad_train.csv").read_text())
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_share_of_the_corpus() -> None:
    names = [str(number) for number in range(6170)]
    test = prepare_cremad.held_out(names, 0.1, np.random.default_rng(0))
    assert len(test) == 617


@pytest.mark.parametrize("where", ["cremad", "elsewhere"])
def test_archive(source: Path, tmp_path: Path, where: str) -> None:
    assert run(tmp_path / "linked", "--from", source) == 0
    data = tmp_path / "data"
    (data / where).mkdir(parents=True)
    with zipfile.ZipFile(data / where / "CREMA-D-master.zip", "w") as archive:
        for path in source.rglob("*.wav"):
            archive.write(path, Path("CREMA-D-master") / path.relative_to(source))
    options = [] if where == "cremad" else ["--from", data / where]
    for _ in range(2):
        assert run(data, *options) == 0
        assert rows(data) == rows(tmp_path / "linked")


def test_restart_completes_what_a_kill_left(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "cremad").mkdir(parents=True)
    with zipfile.ZipFile(data / "cremad" / "crema-d.zip", "w") as archive:
        for path in source.rglob("*.wav"):
            archive.write(path, path.relative_to(source))
    folder = data / "cremad" / "AudioWAV"
    folder.mkdir()
    (folder / "1001_MTI_ANG_XX.wav").write_bytes(b"half")
    assert run(data) == 0
    assert len(rows(data)) == 19


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "1001_MTI_ANG_XX.wav").unlink(), "clips: 23 found, 24 expected"),
        (
            lambda f: (f / "1001_MTI_ANG_XX.wav").rename(f / "a.wav"),
            "a.wav: is not named <speaker>",
        ),
        (lambda f: (f / "1001_MTI_ANG_XX.wav").write_text("version https"), "be read as audio"),
        (lambda f: [path.unlink() for path in f.iterdir()], "found no .wav file there"),
        (lambda f: f.rename(f.parent / "Audio"), "found neither a folder with AudioWAV nor an"),
    ],
)
def test_bad_corpus(
    change, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change(source / "AudioWAV")
    assert run(tmp_path / "data", "--from", source) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "data" / "cremad_train.csv").exists()


def test_incomplete(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (source / "AudioWAV" / "1001_MTI_ANG_XX.wav").unlink()
    assert run(tmp_path / "data", "--from", source, "--allow_incomplete") == 0
    assert "warning: clips: 23 found" in capsys.readouterr().err
    assert len(rows(tmp_path / "data")) == 18


def test_another_corpus_in_its_place(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data" / "cremad" / "AudioWAV").mkdir(parents=True)
    assert run(tmp_path / "data", "--from", source) == 2
    assert "is there already and is not" in capsys.readouterr().err


def test_unsafe_archive(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "crema-d.zip", "w") as archive:
        archive.writestr("/AudioWAV/evil.wav", "evil")
    assert run(tmp_path / "data", "--from", tmp_path) == 2
    assert "unsafe member '/AudioWAV/evil.wav'" in capsys.readouterr().err
