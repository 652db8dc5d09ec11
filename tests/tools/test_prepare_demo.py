"""The demo corpus: what it holds, that it is reproducible, and that it spares others' files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "prepare_data" / "prepare_demo.py"
SMALL = ["--train_voices", "6", "--test_voices", "4", "--utterances", "3", "--noises", "2"]
SMALL += ["--rooms", "1"]

spec = importlib.util.spec_from_file_location("prepare_demo", SCRIPT)
prepare_demo = importlib.util.module_from_spec(spec)
sys.modules["prepare_demo"] = prepare_demo
spec.loader.exec_module(prepare_demo)
Options = prepare_demo.Options

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="no espeakng-loader: pip install espeakng-loader",
)


def run(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), str(out), *SMALL, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def trials(out: Path) -> list[list[str]]:
    return [line.split(" ") for line in (out / "demo_test_trials").read_text().splitlines()]


def rows(out: Path) -> list[list[str]]:
    return [line.split(",") for line in (out / "demo_train.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    result = run(out, "--workers", "1")
    assert result.returncode == 0, result.stderr
    return out


@needs_espeak
def test_layout(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == set(prepare_demo.PRODUCTS)
    header, *data = rows(demo)
    assert header == ["File", "Speaker"]
    listed = {file for file, _ in data} | {file for trial in trials(demo) for file in trial[1:]}
    assert listed == {str(path.relative_to(demo)) for path in demo.glob("demo/*/*/*.wav")}
    assert len(listed) == 10 * 3
    for category in ("noise", "music", "speech"):
        assert len(list((demo / "musan_split" / category).glob("*/*.wav"))) == 2
    for size in ("smallroom", "mediumroom", "largeroom"):
        assert len(list((demo / "simulated_rirs" / size).glob("*/*.wav"))) == 4
    counts = json.loads((demo / "demo.json").read_text())["counts"]
    assert counts == {"demo": 30, "musan_split": 6, "simulated_rirs": 12, "trials": 24}


@needs_espeak
def test_audio(demo: Path) -> None:
    for path in demo.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        wave, _ = soundfile.read(path)
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() < 1
        kind = path.relative_to(demo).parts[0]
        if kind == "simulated_rirs":
            assert np.abs(wave).argmax() == 0
            assert 0.2 <= info.duration <= 0.9
        else:
            assert np.sqrt(np.mean(wave**2)) > 0.01
            assert 3 <= info.duration <= 5 if kind == "demo" else info.duration == 8


@needs_espeak
def test_training_and_test_speakers_are_disjoint(demo: Path) -> None:
    _, *data = rows(demo)
    assert all(file.split("/")[1] == speaker for file, speaker in data)
    train = {speaker for _, speaker in data}
    test = {file.split("/")[1] for trial in trials(demo) for file in trial[1:]}
    assert (len(train), len(test)) == (6, 4)
    assert not train & test


@needs_espeak
def test_trials(demo: Path) -> None:
    lines = trials(demo)
    assert Counter(target for target, _, _ in lines) == {"0": 12, "1": 12}
    assert len({frozenset(files) for _, *files in lines}) == len(lines)
    for target, enrol, test in lines:
        assert enrol != test
        assert (target == "1") == (enrol.split("/")[1] == test.split("/")[1])


@needs_espeak
def test_only_the_test_part_mixes_conditions(demo: Path) -> None:
    _, *data = rows(demo)
    assert {file.split("/")[2] for file, _ in data} == {"clean1"}
    sessions = {file.split("/")[2] for trial in trials(demo) for file in trial[1:]}
    assert sessions == {"clean1", "noisy1", "reverberant1"}


@needs_espeak
def test_same_bytes_with_other_workers_after_an_interrupted_run(demo: Path, tmp_path: Path) -> None:
    left = tmp_path / ".demo_partial" / "demo" / "sp1" / "clean1" / "00001.wav"
    left.parent.mkdir(parents=True)
    left.touch()
    result = run(tmp_path, "--workers", "3")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path) == contents(demo)


@needs_espeak
def test_second_run_does_nothing_and_other_options_are_refused(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    again = run(demo)
    assert again.returncode == 0
    assert "complete" in again.stdout
    other = run(demo, "--seed", "3")
    assert other.returncode == 2
    assert "seed 1717, not 3" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


@needs_espeak
def test_missing_file_is_no_complete_demo(demo: Path) -> None:
    path = next(demo.glob("demo/*/*/*.wav"))
    data = path.read_bytes()
    path.unlink()
    result = run(demo)
    path.write_bytes(data)
    assert result.returncode == 2
    assert "not a complete demo" in result.stderr


def test_files_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = tmp_path / "musan_split" / "noise" / "free-sound" / "mine.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(SystemExit) as exit_:
        prepare_demo.main([str(tmp_path)])
    assert exit_.value.code == 2
    assert "musan_split" in capsys.readouterr().err
    assert contents(tmp_path) == {"musan_split/noise/free-sound/mine.wav": b"mine"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--utterances", "1"], "--utterances 1: must be at least 2"),
        (["--test_voices", "1"], "--test_voices 1: must be at least 2"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--train_voices", "5000"], "--train_voices 5000 and --test_voices 40"),
        (["--train_voices", "many"], "invalid int value"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit_:
        prepare_demo.main([str(tmp_path), *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@needs_espeak
def test_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_:
        prepare_demo.main([str(tmp_path / "file" / "data")])
    assert exit_.value.code == 2
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_missing_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(SystemExit) as exit_:
        prepare_demo.main([str(tmp_path)])
    assert exit_.value.code == 2
    assert "pip install espeakng-loader" in capsys.readouterr().err


def test_import_is_light() -> None:
    code = "import sys, prepare_demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True)


def test_every_voice_is_another() -> None:
    options = Options(train_voices=prepare_demo.MAX_VOICES - 40)
    total = options.voices + prepare_demo.SPARE_VOICES
    voices = [prepare_demo.make_voice(options, index) for index in range(total)]
    assert len({(voice.language, voice.variant) for voice in voices}) == total
    assert voices[0] == prepare_demo.make_voice(options, 0)
    assert voices[0] != prepare_demo.make_voice(Options(seed=3), 0)


@pytest.mark.parametrize("language", ["en-us", "de"])
def test_parts_share_no_sentence(language: str) -> None:
    rng = np.random.default_rng(0)
    parts = [
        {prepare_demo.sentence(rng, language, part) for _ in range(300)}
        for part in prepare_demo.PARTS
    ]
    assert all(len(sentences) == 300 for sentences in parts)
    openings = [{text.split()[0] for text in sentences} for sentences in parts]
    assert len(set.union(*openings)) == sum(len(names) for names in openings)


def test_most_non_targets_are_of_one_sex() -> None:
    options = Options()
    groups = {
        prepare_demo.speaker(options, index): prepare_demo.GROUPS[index % len(prepare_demo.GROUPS)]
        for index in range(options.train_voices, options.voices)
    }
    lines = [line.split() for line in prepare_demo.make_trials(options)]
    pairs = [
        [groups[file.split("/")[1]] for file in files] for target, *files in lines if target == "0"
    ]
    assert (len(lines), len(pairs)) == (4000, 2000)
    assert sum(one[0] == two[0] for one, two in pairs) == 1400
    assert sum(one == two for one, two in pairs) == 700
