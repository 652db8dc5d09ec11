"""Speakers in the Wild in miniature: trials, conversion, restart and what is refused."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_sitw  # noqa: E402

from sslsv.evaluations.trials import check_files, read_trials  # noqa: E402

WAVE = np.sin(np.arange(1600) / 5) / 2
EVAL = """\
1 sitw/eval/audio/aaaaa.flac sitw/eval/audio/ccccc.flac
0 sitw/eval/audio/aaaaa.flac sitw/eval/wav/stereo.wav
0 sitw/eval/audio/bbbbb.flac sitw/eval/wav/low.wav
"""


def write_subset(folder: Path, subset: str) -> None:
    base = folder / "sitw_database.v4" / subset
    for name in ("audio", "lists", "keys"):
        (base / name).mkdir(parents=True)
    for name in ("aaaaa", "bbbbb", "ccccc"):
        soundfile.write(base / "audio" / f"{name}.flac", WAVE, 16000)
    soundfile.write(base / "audio" / "low.flac", WAVE, 8000)
    soundfile.write(base / "audio" / "stereo.flac", np.stack([WAVE, -WAVE / 2], 1), 16000)
    (base / "lists" / "enroll-core.lst").write_text(
        "12013 audio/aaaaa.flac\n12014 audio/bbbbb.flac\n"
    )
    (base / "keys" / "core-core.lst").write_text(
        "12013 audio/ccccc.flac tgt\n12013 audio/stereo.flac imp\n12014 audio/low.flac imp\n"
    )
    (base / "keys" / "core-multi.lst").write_text(
        "12014 audio/aaaaa.flac tgt\n12014 audio/ccccc.flac imp\n"
    )


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = [(subset, "core-core") for subset in ("eval", "dev")]
    monkeypatch.setattr(prepare_sitw, "TARGETS", dict.fromkeys(names, 1))
    monkeypatch.setattr(prepare_sitw, "NON_TARGETS", dict.fromkeys(names, 2))
    for subset in ("eval", "dev"):
        write_subset(tmp_path / "source", subset)
    return tmp_path / "source"


def run(data: Path, *options: object) -> int:
    return prepare_sitw.main([str(data), "--workers", "1", *map(str, options)])


def test_trials_and_audio(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source) == 0
    assert (data / "sitw_eval_core-core").read_text() == EVAL
    assert (data / "sitw_dev_core-core").read_text() == EVAL.replace("eval", "dev")
    trials = read_trials(data / "sitw_eval_core-core")
    check_files(trials.files, data, trials.name)
    for file in trials.files:
        info = soundfile.info(data / file)
        assert (info.samplerate, info.channels) == (16000, 1)
    low, _ = soundfile.read(data / "sitw/eval/wav/low.wav")
    stereo, _ = soundfile.read(data / "sitw/eval/wav/stereo.wav")
    assert len(low) == 3200
    np.testing.assert_allclose(stereo, WAVE / 4, atol=1e-4)
    assert sorted(path.name for path in (data / "sitw/eval/wav").iterdir()) == [
        "low.wav",
        "stereo.wav",
    ]


def test_workers_do_not_matter(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert prepare_sitw.main([str(data), "--from", str(source), "--workers", "2"]) == 0
    assert (data / "sitw_eval_core-core").read_text() == EVAL


def test_core_multi(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = ["--from", source, "--subsets", "eval", "--conditions", "core-multi", "core-core"]
    assert run(data, *options) == 0
    assert (data / "sitw_eval_core-core").read_text() == EVAL
    assert (data / "sitw_eval_core-multi").read_text() == (
        "1 sitw/eval/audio/bbbbb.flac sitw/eval/audio/aaaaa.flac\n"
        "0 sitw/eval/audio/bbbbb.flac sitw/eval/audio/ccccc.flac\n"
    )
    assert not (data / "sitw_dev_core-core").exists()


@pytest.mark.parametrize("where", ["sitw", "elsewhere"])
def test_archive(source: Path, tmp_path: Path, where: str) -> None:
    data = tmp_path / "data"
    folder = data / where
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "SITW_database.v4.zip", "w") as archive:
        for path in sorted(source.rglob("*.*")):
            if path.is_file():
                archive.write(path, path.relative_to(source))
    options = [] if where == "sitw" else ["--from", folder]
    assert run(data, *options) == 0
    assert (data / "sitw_eval_core-core").read_text() == EVAL


def test_restart(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source) == 0
    made = data / "sitw/eval/wav/stereo.wav"
    kept = made.stat().st_mtime_ns
    (data / "sitw/eval/wav/low.wav").unlink()
    (data / "sitw_eval_core-core").unlink()
    assert run(data, "--from", source) == 0
    assert (data / "sitw_eval_core-core").read_text() == EVAL
    assert (data / "sitw/eval/wav/low.wav").is_file()
    assert made.stat().st_mtime_ns == kept


def test_counts(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    keys = source / "sitw_database.v4/eval/keys/core-core.lst"
    keys.write_text("".join(keys.read_text().splitlines(keepends=True)[:2]))
    assert run(tmp_path / "data", "--from", source) == 2
    assert "eval core-core, non-targets: 1 found, 2 expected" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert run(tmp_path / "data", "--from", source, "--allow_incomplete") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: (base / "keys/core-core.lst").unlink(), "core-core.lst: no such list"),
        (lambda base: (base / "keys/core-core.lst").write_text("\n"), "core-core.lst: is empty"),
        (
            lambda base: (base / "keys/core-core.lst").write_text("1 audio/aaaaa.flac tgt\n"),
            "model 1 is not in enroll-core.lst",
        ),
        (
            lambda base: (base / "keys/core-core.lst").write_text("12013 audio/aaaaa.flac yes\n"),
            "key 'yes' where tgt or imp is meant",
        ),
        (
            lambda base: (base / "keys/core-core.lst").write_text("12013 audio/aaaaa.flac\n"),
            "core-core.lst line 1: 2 fields",
        ),
        (
            lambda base: (base / "lists/enroll-core.lst").write_text(
                "12013 audio/aaaaa.flac\n12013 audio/bbbbb.flac\n12014 audio/bbbbb.flac\n"
            ),
            "model 12013 has several files",
        ),
        (lambda base: (base / "audio/ccccc.flac").unlink(), "ccccc.flac: file not found"),
        (lambda base: (base / "audio/ccccc.flac").write_text("x"), "cannot be read as audio"),
        (lambda base: (base / "audio").rename(base / "sounds"), "audio: no such folder"),
        (
            lambda base: (base / "lists/enroll-core.lst").write_text(
                "12013 ../../aaaaa.flac\n12014 audio/bbbbb.flac\n"
            ),
            "the lists name ../../aaaaa.flac",
        ),
    ],
)
def test_bad_corpus(
    change, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change(source / "sitw_database.v4/eval")
    assert run(tmp_path / "data", "--from", source) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "data" / "sitw_eval_core-core").exists()


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert "found neither a folder with eval/lists/enroll-core.lst" in error
    assert "sitw*" in error


def test_unsafe_archive(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "sitw.zip", "w") as archive:
        archive.writestr("../evil", "evil")
    assert run(tmp_path / "data", "--from", tmp_path) == 2
    assert "unsafe member '../evil'" in capsys.readouterr().err
