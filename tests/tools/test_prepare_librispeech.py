"""LibriSpeech in miniature: layout, trials, restart, download and what is refused."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_librispeech  # noqa: E402

from sslsv.datasets.manifest import read_manifest  # noqa: E402
from sslsv.evaluations.trials import read_trials  # noqa: E402

SPEAKERS = {"train-clean-100": range(100, 103), "test-clean": range(200, 206)}
CHAPTERS, UTTERANCES = 2, 3
SUBSETS = ["--subsets", *SPEAKERS]
LISTS = {"librispeech_train.csv", "librispeech_test_clean"}


def write_tree(folder: Path) -> Path:
    """LibriSpeech/ with even speakers female; speaker 205 has one chapter only."""
    root = folder / "LibriSpeech"
    lines = ["; ID |SEX| SUBSET           |MINUTES| NAME"]
    wave = np.sin(np.arange(1600) / 5) / 2
    for subset, speakers in SPEAKERS.items():
        for speaker in speakers:
            sex = "MF"[speaker % 2 == 0]
            lines.append(f"{speaker:<5}| {sex} | {subset:<16} | 25.03 | A Name | or two")
            for chapter in range(1 if speaker == 205 else CHAPTERS):
                path = root / subset / str(speaker) / str(1000 + chapter)
                path.mkdir(parents=True)
                for number in range(UTTERANCES):
                    name = f"{speaker}-{1000 + chapter}-{number:04d}.flac"
                    soundfile.write(path / name, wave, 16000)
                (path / f"{speaker}-{1000 + chapter}.trans.txt").write_text("WORDS\n")
    (root / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    return root


def write_archives(root: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for subset in SPEAKERS:
        with tarfile.open(folder / f"{subset}.tar.gz", "w:gz") as archive:
            archive.add(root / "SPEAKERS.TXT", "LibriSpeech/SPEAKERS.TXT")
            archive.add(root / subset, f"LibriSpeech/{subset}")
    return folder


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    counts = {"train-clean-100": (18, 3, ""), "test-clean": (33, 6, ""), "dev-clean": (1, 1, "")}
    monkeypatch.setattr(prepare_librispeech, "SUBSETS", counts)
    return write_tree(tmp_path / "source")


def run(data: Path, *options: object) -> int:
    command = [str(data), *SUBSETS, "--workers", "1", *map(str, options)]
    return prepare_librispeech.main(command)


def lists(data: Path) -> dict[str, str]:
    return {name: (data / name).read_text() for name in LISTS}


def speaker(file: str) -> str:
    return file.split("/")[2]


def test_training_list(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", tree.parent) == 0
    lines = lists(data)["librispeech_train.csv"].splitlines()
    assert len(lines) == 1 + 18
    assert lines[:2] == [
        "File,Speaker",
        "librispeech/train-clean-100/100/1000/100-1000-0000.flac,100",
    ]
    manifest = read_manifest("librispeech_train.csv", data)
    manifest.check()
    assert manifest.label_names == ["100", "101", "102"]


def test_trials(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", tree, "--trials", 80) == 0
    trials = [line.split(" ") for line in lists(data)["librispeech_test_clean"].splitlines()]
    assert Counter(label for label, _, _ in trials) == {"0": 40, "1": 40}
    assert len({frozenset(files) for _, *files in trials}) == 80  # no duplicate, no self-trial
    same_sex, per_speaker = 0, Counter()
    for label, enrol, test in trials:
        assert (label == "1") == (speaker(enrol) == speaker(test))
        if label == "0":
            same_sex += int(speaker(enrol)) % 2 == int(speaker(test)) % 2
        elif speaker(enrol) != "205":  # the one with a single chapter
            assert enrol.split("/")[3] != test.split("/")[3]
        if label == "1":
            per_speaker[speaker(enrol)] += 1
    assert same_sex == 28  # 70 %
    assert per_speaker["205"] == 3  # all it has: 3 utterances
    assert {per_speaker[str(name)] for name in range(200, 205)} == {7, 8}
    assert len(read_trials(data / "librispeech_test_clean")) == 80
    assert {speaker(file) for _, *files in trials for file in files} == {
        str(name) for name in SPEAKERS["test-clean"]
    }


def test_seed(tree: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(tmp_path / name, "--from", tree, "--trials", 40, "--seed", seed) == 0
    assert lists(tmp_path / "a") == lists(tmp_path / "b")
    assert lists(tmp_path / "a") != lists(tmp_path / "c")


def test_archives_give_the_same_lists(tree: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "linked", "--from", tree) == 0
    archives = write_archives(tree, tmp_path / "archives")
    assert run(tmp_path / "unpacked", "--from", archives) == 0
    assert lists(tmp_path / "unpacked") == lists(tmp_path / "linked")
    assert not (tmp_path / "unpacked" / "librispeech" / "test-clean").is_symlink()


def test_restart_completes_what_a_kill_left(tree: Path, tmp_path: Path) -> None:
    archives, data = write_archives(tree, tmp_path / "archives"), tmp_path / "data"
    assert run(data, "--from", archives) == 0
    before = lists(data)
    chapter = data / "librispeech" / "test-clean" / "200" / "1000"
    (chapter / "200-1000-0001.flac").unlink()
    (chapter / "200-1000-0002.flac").write_bytes(b"half")
    kept = (chapter / "200-1000-0000.flac").stat().st_mtime_ns
    for name in LISTS:
        (data / name).unlink()
    assert run(data, "--from", archives) == 0
    assert lists(data) == before
    assert (chapter / "200-1000-0000.flac").stat().st_mtime_ns == kept


def test_second_run_needs_no_source(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", tree) == 0
    before = lists(data)
    assert run(data) == 0  # nothing is downloaded: the counts are right
    assert lists(data) == before


def test_download(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives, data = write_archives(tree, tmp_path / "archives"), tmp_path / "data"
    counts = {
        subset: (
            *prepare_librispeech.SUBSETS[subset][:2],
            hashlib.md5((archives / f"{subset}.tar.gz").read_bytes()).hexdigest(),
        )
        for subset in SPEAKERS
    }
    monkeypatch.setattr(prepare_librispeech, "SUBSETS", counts)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(archives))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert run(data, "--url", url) == 0
        server.shutdown()
    assert {path.name for path in (data / "archives").iterdir()} == {
        f"{subset}.tar.gz" for subset in SPEAKERS
    }
    assert len(lists(data)["librispeech_train.csv"].splitlines()) == 19


def test_tree_inside_data_is_linked_relatively(tree: Path) -> None:
    data = tree.parent  # so that data/ can be moved as a whole
    assert run(data, "--from", data) == 0
    link = data / "librispeech" / "test-clean"
    assert str(link.readlink()) == "../LibriSpeech/test-clean"
    assert run(data, "--from", data) == 0


def test_counts(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    next(tree.glob("test-clean/201/*/*.flac")).unlink()
    assert run(tmp_path / "data", "--from", tree) == 2
    assert "test-clean, utterances: 32 found, 33 expected" in capsys.readouterr().err
    assert not (tmp_path / "data" / "librispeech_train.csv").exists()
    assert run(tmp_path / "data", "--from", tree, "--allow_incomplete") == 0
    assert "warning: test-clean, utterances: 32 found" in capsys.readouterr().err


def test_audio_is_checked(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = next(tree.glob("test-clean/201/*/*.flac"))
    soundfile.write(path, np.zeros(800), 8000)
    assert run(tmp_path / "data", "--from", tree) == 2
    error = capsys.readouterr().err
    assert path.name in error
    assert "8000 Hz" in error


def test_unsafe_archive(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    archives, data = write_archives(tree, tmp_path / "archives"), tmp_path / "data"
    with tarfile.open(archives / "train-clean-100.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("LibriSpeech/train-clean-100/../../../evil")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    assert run(data, "--from", archives) == 2
    assert "unsafe member" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "nowhere"], "--from nowhere: no such folder"),
        (["--from", "."], "found neither train-clean-100.tar.gz nor a folder train-clean-100"),
        (["--trials", "1"], "--trials 1: must be at least 2"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--url", "ftp://host"], "https://host/path"),
    ],
)
def test_bad_options(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "data", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "SPEAKERS.TXT").unlink(), "SPEAKERS.TXT: not found"),
        (lambda root: (root / "SPEAKERS.TXT").write_text("14 F\n"), "lines are not '<speaker>"),
        (lambda root: (root / "SPEAKERS.TXT").write_text("; none\n"), "is not in SPEAKERS.TXT"),
        (
            lambda root: next(root.glob("test-clean/201/*/*.flac")).rename(
                root / "test-clean" / "201" / "1000" / "x.flac"
            ),
            "is not named <speaker>-<chapter>-<number>.flac",
        ),
    ],
)
def test_unknown_layout(
    change, message: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change(tree)
    assert run(tmp_path / "data", "--from", tree) == 2
    assert message in capsys.readouterr().err


def test_empty_subset(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tree / "dev-clean").mkdir()
    command = [str(tmp_path / "data"), "--from", str(tree), "--subsets", "dev-clean"]
    assert prepare_librispeech.main(command) == 2
    assert "found no <speaker>/<chapter>/*.flac" in capsys.readouterr().err


def test_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "prepare_librispeech.py"), "data", "--from", "."]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("prepare_librispeech.py: error: .: found neither")
    assert result.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_help_names_defaults(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        prepare_librispeech.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "train-clean-100" in text
    assert "(default: 20000)" in text
