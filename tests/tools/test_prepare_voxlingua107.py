"""VoxLingua107 in miniature: archives and folders, restart, counts and what is refused."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_voxlingua107  # noqa: E402

from sslsv.datasets.manifest import read_manifest  # noqa: E402

SEGMENT = "{}__bFm7fpb3OZI__U__S{}---0104.000-0110.630.wav"
CSV = """\
File,Language,Set
voxlingua107/train/en/en__bFm7fpb3OZI__U__S0---0104.000-0110.630.wav,en,train
voxlingua107/train/en/en__bFm7fpb3OZI__U__S1---0104.000-0110.630.wav,en,train
voxlingua107/train/no/no__bFm7fpb3OZI__U__S0---0104.000-0110.630.wav,no,train
voxlingua107/train/no/no__bFm7fpb3OZI__U__S1---0104.000-0110.630.wav,no,train
voxlingua107/test/no/no__bFm7fpb3OZI__U__S9---0104.000-0110.630.wav,no,test
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The corpus of two languages, unpacked."""
    monkeypatch.setattr(prepare_voxlingua107, "LANGUAGES", ["en", "no"])
    monkeypatch.setattr(prepare_voxlingua107, "TEST_SEGMENTS", 1)
    monkeypatch.setattr(prepare_voxlingua107, "TEST_LANGUAGES", 1)
    root = tmp_path / "tree"
    names = [f"{code}/{SEGMENT.format(code, n)}" for code in ("en", "no") for n in (0, 1)]
    for name in (*names, f"dev/no/{SEGMENT.format('no', 9)}"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, np.sin(np.arange(800) / 5) / 2, 16000)
    return root


@pytest.fixture
def archives(tree: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in ("en", "no", "dev"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((tree / name).rglob("*.wav")):
                archive.write(path, path.relative_to(tree))
    return folder


def run(data: Path, *options: object) -> int:
    return prepare_voxlingua107.main([str(data), "--workers", "1", *map(str, options)])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_archives(archives: Path, tmp_path: Path, workers: str) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", archives, "--workers", workers) == 0
    assert (data / "voxlingua107_train.csv").read_text() == CSV
    manifest = read_manifest("voxlingua107_train.csv", data, label_key="Language")
    manifest.check()
    assert manifest.label_names == ["en", "no"]
    assert len(manifest) == 4


@pytest.mark.parametrize("train", [".", "train"])
def test_folders_are_linked(tree: Path, tmp_path: Path, train: str) -> None:
    data = tmp_path / "data"
    if train == "train":
        (tree / train).mkdir()
        for code in ("en", "no"):
            (tree / code).rename(tree / train / code)
    assert run(data, "--from", tree) == 0
    assert (data / "voxlingua107_train.csv").read_text() == CSV
    assert (data / "voxlingua107" / "train" / "en").is_symlink()
    assert run(data) == 0
    assert (data / "voxlingua107_train.csv").read_text() == CSV


def test_archive_without_folder(archives: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archives / "en.zip") as archive:
        content = {Path(name).name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(archives / "en.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert run(tmp_path / "data", "--from", archives) == 0
    assert (tmp_path / "data" / "voxlingua107_train.csv").read_text() == CSV


@pytest.mark.parametrize("inside", [False, True])
def test_restart(archives: Path, tmp_path: Path, inside: bool) -> None:
    data = tmp_path / "data"
    options = ["--from", archives]
    if inside:
        data.mkdir()
        archives.rename(data / "voxlingua107")
        options = []
    assert run(data, *options) == 0
    folder = data / "voxlingua107" / "train" / "no"
    (folder / SEGMENT.format("no", 0)).unlink()
    (folder / SEGMENT.format("no", 1)).write_bytes(b"half")
    kept = next((folder.parent / "en").iterdir())
    time = kept.stat().st_mtime_ns
    (data / "voxlingua107_train.csv").unlink()
    assert run(data, *options) == 0
    assert (data / "voxlingua107_train.csv").read_text() == CSV
    read_manifest("voxlingua107_train.csv", data, label_key="Language").check()
    assert kept.stat().st_mtime_ns == time


def test_languages(archives: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", archives, "--languages", "no") == 0
    lines = CSV.splitlines()
    assert (data / "voxlingua107_train.csv").read_text().splitlines() == [lines[0], *lines[3:]]
    assert not (data / "voxlingua107" / "train" / "en").exists()


def test_counts(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (archives / "en.zip").unlink()
    assert run(tmp_path / "data", "--from", archives) == 2
    error = capsys.readouterr().err
    assert "languages to train on (without en): 1 found, 2 expected" in error
    assert not (tmp_path / "data" / "voxlingua107_train.csv").exists()
    (archives / "dev.zip").unlink()
    assert run(tmp_path / "other", "--from", archives, "--allow_incomplete") == 0
    error = capsys.readouterr().err
    assert "warning: test segments: 0 found, 1 expected" in error


def corrupt(archives: Path) -> None:
    path = archives / "en.zip"
    path.write_bytes(path.read_bytes()[:200])


def evil(archives: Path) -> None:
    with zipfile.ZipFile(archives / "en.zip", "a") as archive:
        archive.writestr("../../evil.wav", "evil")


def no_language(archives: Path) -> None:
    with zipfile.ZipFile(archives / "dev.zip", "a") as archive:
        archive.writestr("dev/xx/a.wav", "x")


def no_audio(archives: Path) -> None:
    with zipfile.ZipFile(archives / "en.zip", "w") as archive:
        archive.writestr("en/readme.txt", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (corrupt, "download it again"),
        (evil, "unsafe member '../../evil.wav'"),
        (no_language, "dev/xx/a.wav is in no folder of a language"),
        (no_audio, "en.zip: holds no .wav file"),
    ],
)
def test_bad_archive(
    change, message: str, archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change(archives)
    assert run(tmp_path / "data", "--from", archives) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("evil.wav"))


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "data") == 2
    assert "found neither <language>.zip nor <language>/*.wav" in capsys.readouterr().err
    assert run(tmp_path / "data", "--languages", "en", "klingon") == 2
    assert "--languages klingon: not one of" in capsys.readouterr().err
