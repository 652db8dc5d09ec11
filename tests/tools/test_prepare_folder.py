"""A folder of recordings: who is trained on, who is tested, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_folder  # noqa: E402

from sslsv.datasets.manifest import read_manifest  # noqa: E402
from sslsv.evaluations.trials import read_trials  # noqa: E402

# Of 6 speakers one has a single recording; bob's are of two sessions, and one is at 44.1 kHz.
FILES = """alice/1.wav alice/2.wav alice/3.flac bob/mon/1.wav bob/mon/2.wav bob/tue/1.WAV
carol/1.wav carol/2.wav dave/1.wav dave/2.wav erin/1.wav frank/1.wav frank/2.wav""".split()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rate = 44100 if name == "carol/1.wav" else 16000
        soundfile.write(folder / name, np.sin(np.arange(800) / 5) / 2, rate)
    (folder / "alice" / "notes.txt").write_text("said nothing")
    (folder / "alice" / ".hidden.wav").write_text("of an editor")
    return folder


def run(data: Path, *options: object) -> int:
    return prepare_folder.main([str(data), "--workers", "1", *map(str, options)])


def rows(data: Path) -> dict[str, str]:
    header, *lines = (data / "train.csv").read_text().splitlines()
    assert header == "File,Speaker"
    return dict(line.split(",") for line in lines)


def pairs(data: Path) -> dict[frozenset[str], str]:
    lines = [line.split() for line in (data / "test_trials").read_text().splitlines()]
    found = {frozenset(line[1:]): line[0] for line in lines}
    assert len(found) == len(lines)
    return found


def speaker(file: str) -> str:
    return file.split("/")[1]


def test_lists(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source) == 0
    trained, tested = rows(data), pairs(data)
    files = {file for pair in tested for file in pair}
    assert trained.keys() | files == {f"recordings/{name}" for name in FILES}
    assert all(speaker(file) == name for file, name in trained.items())
    held_out = {speaker(file) for file in files}
    assert len(held_out) == 2, "a tenth of six, but no less than two"
    assert not held_out & set(trained.values())
    assert "erin" not in held_out, "with one recording there is no target trial"
    assert all((len({speaker(f) for f in pair}) == 1) == (t == "1") for pair, t in tested.items())
    assert "left out, as neither WAV nor FLAC: 1 (.txt)\n" in capsys.readouterr().out
    manifest = read_manifest("train.csv", data)
    manifest.check(resample=True)
    assert len(manifest) == len(trained)
    assert len(read_trials(data / "test_trials")) == len(tested)


def test_all_pairs_where_they_are_few(source: Path, tmp_path: Path) -> None:
    """Speakers to test on are five of six, so that only erin is trained on."""
    data = tmp_path / "data"
    assert run(data, "--from", source, "--test_speakers", 5) == 0
    assert rows(data) == {"recordings/erin/1.wav": "erin"}
    everyone = [f"recordings/{name}" for name in FILES if not name.startswith("erin")]
    same = {frozenset(p) for p in combinations(everyone, 2) if speaker(p[0]) == speaker(p[1])}
    same -= {frozenset(("recordings/bob/mon/1.wav", "recordings/bob/mon/2.wav"))}  # one session
    found = pairs(data)
    assert {pair for pair, target in found.items() if target == "1"} == same
    assert len(found) == 2 * len(same), "as many of two speakers"


def test_no_test(source: Path, tmp_path: Path) -> None:
    (source / "dave" / "2.wav").rename(source / "dave" / "2, again.wav")  # in a CSV it may be
    data = tmp_path / "data"
    assert run(data, "--from", source, "--test_speakers", 0) == 0
    assert not (data / "test_trials").exists()
    manifest = read_manifest("train.csv", data)
    manifest.check(resample=True)
    assert len(manifest) == len(FILES)


def test_number_of_trials_and_seed(source: Path, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        data = tmp_path / name
        assert run(data, "--from", source, "--trials", 2, "--seed", seed) == 0
        assert sorted(pairs(data).values()) == ["0", "1"]
        texts.append((data / "train.csv").read_text() + (data / "test_trials").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_recordings_that_are_in_the_data_folder_stay_there(source: Path) -> None:
    assert run(source.parent, "--from", source) == 0
    assert not source.is_symlink()
    assert all((source.parent / file).is_file() for file in rows(source.parent))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: (f / "alice/1.wav").rename(f / "1.wav"), [], "1.wav: is in no speaker's folder"),
        (lambda f: (f / "dave/1.wav").write_text("text"), [], "dave/1.wav: cannot be read as"),
        (lambda f: (f / "dave").rename(f / "d a"), ["--test_speakers", 5], ": has a space, which"),
        (lambda f: None, ["--test_speakers", 1], "--test_speakers 1: trials take two speakers"),
        (lambda f: None, ["--test_speakers", 6], "6 speakers, 5 of them with two recordings"),
        (lambda f: None, ["--test_speakers", -1], "--test_speakers -1: must be at least 0"),
        (lambda f: None, ["--trials", 1], "--trials 1: must be at least 2"),
        (lambda f: f.rename(f.parent / "gone"), [], "recordings: no such folder"),
        (
            lambda f: [p.rename(p.with_suffix(".mp3")) for p in f.rglob("*.*")],
            [],
            "no .wav or .flac file below it; convert what there is",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    change: Callable[[Path], object],
    options: list[object],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(source)
    assert run(tmp_path / "data", "--from", source, *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert not (tmp_path / "data").exists()


def test_another_folder_in_its_place(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "recordings").mkdir(parents=True)
    assert run(tmp_path / "data", "--from", source) == 2
    assert "is there already and is not" in capsys.readouterr().err
    assert not (tmp_path / "data" / "train.csv").exists()
