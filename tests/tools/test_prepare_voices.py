"""VOiCES in miniature: the challenge's lists, trials drawn from the devkit, what is refused."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import prepare_voices  # noqa: E402

from sslsv.evaluations.trials import check_files, read_trials  # noqa: E402

UTTERANCE = "Lab41-SRI-VOiCES-rm1-none-sp{}-ch{}-sg0001-mc{:02d}-stu-clo-dg010"
DEV = [UTTERANCE.format(*fields) for fields in (("0032", "01", 1), ("0032", "02", 5))]
DEV.append(UTTERANCE.format("0083", "03", 7))
KEYS = "VOiCES_challenge_2019_eval.SID.trial-keys.lst"


def write_audio(path: Path, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(800) / 5) / 2, rate)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The challenge as it unpacks, and the devkit beside it."""
    base = tmp_path / "source"
    dev = base / "Development_Data" / "Speaker_Recognition"
    lists = dev / "sid_dev_lists_and_keys"
    lists.mkdir(parents=True)
    a, b, c = (f"sid_dev/{name.split('-')[5]}/{name}.wav" for name in DEV)
    for file in (a, b, c):
        write_audio(dev / file)
    (lists / "dev-enroll.lst").write_text(f"{DEV[0]} {a}\n{DEV[2]} {c}\n")
    (lists / "dev-test.lst").write_text(f"{a}\n{b}\n")
    (lists / "dev-trial-keys.lst").write_text(
        f"{DEV[0]} {b} tgt\n{DEV[2]} {a} imp\n{DEV[2]} {b} imp\n"
    )

    evaluation = base / "Speaker_Recognition"
    for name in ("aaa", "bbb"):
        write_audio(evaluation / "sid_eval" / f"{name}.wav")
    (evaluation / "sid_eval_lists").mkdir()
    (evaluation / "sid_eval_lists" / "eval-enroll.lst").write_text("100 sid_eval/aaa.wav\n")
    release = base / "VOiCES_challenge_2019_post-eval-release"
    release.mkdir()
    (release / KEYS).write_text("100 bbb.wav imp\n")  # no folder in front

    devkit = base / "VOiCES_devkit" / prepare_voices.DEVKIT
    for speaker in ("0001", "0002", "0003"):
        for chapter in ("11", "12"):
            for microphone in (1, 5):
                name = UTTERANCE.format(speaker, chapter, microphone)
                write_audio(devkit / "rm1" / "none" / f"sp{speaker}" / f"{name}.wav")
    return base


def run(data: Path, *options: object) -> int:
    return prepare_voices.main([str(data), "--workers", "1", *map(str, options)])


def test_challenge(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source, "--subsets", "dev", "eval") == 0
    a, b, c = (f"voices/sid_dev/{name.split('-')[5]}/{name}.wav" for name in DEV)
    assert (data / "voices2019_dev").read_text() == f"1 {a} {b}\n0 {c} {a}\n0 {c} {b}\n"
    evaluation = "0 voices/sid_eval/aaa.wav voices/sid_eval/bbb.wav\n"
    assert (data / "voices2019_eval").read_text() == evaluation
    trials = read_trials(data / "voices2019_dev")
    check_files(trials.files, data, trials.name)


def test_default_is_dev_and_a_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(data, "--from", source) == 0
    before = (data / "voices2019_dev").read_bytes()
    (data / "voices2019_dev").unlink()
    assert run(data, "--from", source) == 0
    assert (data / "voices2019_dev").read_bytes() == before
    assert sorted(path.name for path in data.iterdir()) == ["voices", "voices2019_dev"]


def test_corpus_in_data(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    source.rename(data / "voices")
    assert run(data) == 0
    link = data / "voices" / "sid_dev"
    assert str(link.readlink()) == "Development_Data/Speaker_Recognition/sid_dev"
    assert run(data) == 0


def test_devkit(source: Path, tmp_path: Path) -> None:
    options = ["--from", source, "--subsets", "devkit", "--trials", 20]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(tmp_path / name, *options, "--seed", seed) == 0
    texts = [(tmp_path / name / "voices_devkit_test").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    trials = [line.split(" ") for line in texts[0].splitlines()]
    assert Counter(label for label, _, _ in trials) == {"0": 10, "1": 10}
    assert len({frozenset(files) for _, *files in trials}) == 20
    for label, enrol, test in trials:
        assert (tmp_path / "a" / enrol).is_file()
        assert enrol.startswith("voices/devkit_test/rm1/none/sp000")
        speakers, chapters = ([file.split("-")[i] for file in (enrol, test)] for i in (5, 6))
        assert (label == "1") == (speakers[0] == speakers[1])
        assert label == "0" or chapters[0] != chapters[1]


def test_devkit_with_too_few(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--from", source, "--subsets", "devkit"]
    assert run(tmp_path / "data", *options) == 2
    assert "devkit, trials: 24 found, 20,000 expected" in capsys.readouterr().err
    assert run(tmp_path / "data", *options, "--allow_incomplete") == 0


def find(base: Path, name: str) -> Path:
    return next(base.rglob(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: find(base, "dev-enroll.lst").unlink(), "found no dev-enroll.lst"),
        (lambda base: find(base, "dev-trial-keys.lst").unlink(), "found no dev-trial-keys.lst"),
        (lambda base: find(base, "sid_dev").rename(base / "audio"), "found no sid_dev"),
        (lambda base: find(base, f"{DEV[1]}.wav").unlink(), "file not found"),
        (lambda base: write_audio(find(base, f"{DEV[1]}.wav"), 8000), "8000 Hz"),
        (
            lambda base: find(base, "dev-test.lst").write_text("sid_dev/sp1/other.wav\n"),
            "1 of its files have no trial: sid_dev/sp1/other.wav",
        ),
        (
            lambda base: find(base, "dev-trial-keys.lst").write_text(f"{DEV[0]} ../x.wav imp\n"),
            "'../x.wav' is not the path of a file below sid_dev/",
        ),
    ],
)
def test_bad_corpus(
    change, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change(source)
    assert run(tmp_path / "data", "--from", source) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "data" / "voices2019_dev").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "found no dev-enroll.lst there"),
        (["--subsets", "devkit"], "found no distant-16k/speech/test there"),
        (["--trials", "1"], "--trials 1: must be at least 2"),
    ],
)
def test_nothing_there(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(tmp_path / "data", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
