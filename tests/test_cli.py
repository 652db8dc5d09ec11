"""The commands as a user types them: a good run, and one sentence for whatever can be wrong."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

import sslsv
from sslsv import cli, experiment
from sslsv.cli.base import Command
from sslsv.evaluations import metrics
from sslsv.evaluations.trials import read_scores

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("trainer.epochs=1", "dataset.max_samples=8")  # a training of one step


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Edit = Callable[[str, str], Path]
Run = Callable[..., Ended]
Refused = Callable[..., str]


@pytest.fixture
def run(config_file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("train", "a=b")`` is ``sslsv train CONFIG a=b``."""

    def run(command: str, *arguments: str) -> Ended:
        capsys.readouterr()
        code = cli.main([command, str(config_file), *arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run: Run, config_file: Path) -> Refused:
    """Runs a command that must end with code 2, one sentence, and all files as they were."""

    def refused(command: str, *arguments: str) -> str:
        before = content(config_file.parent)
        ended = run(command, *arguments)
        check_sentence(ended)
        assert content(config_file.parent) == before
        return ended.err.removeprefix("error: ").rstrip("\n")

    return refused


def check_sentence(ended: Ended) -> None:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.index("\n") == len(ended.err) - 1, "one line"
    assert "Traceback" not in ended.out + ended.err


def content(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder, to the last byte."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def data(corpus: Path, tmp_path: Path, edit_config: Edit) -> Path:
    """A copy of the corpus to spoil; the configuration uses it."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    edit_config(str(corpus), str(folder))
    return folder


@pytest.fixture
def listed(data: Path) -> Path:
    """The first file of the training list, which is in trials as well."""
    return data / (data / "train.csv").read_text().splitlines()[1].split(",")[0]


@pytest.fixture
def trained(run: Run, config_file: Path) -> Path:
    """The folder of a run that has done one epoch, of one step."""
    assert run("train", *SHORT).code == 0
    return config_file.parent


class TestGoodRun:
    def test_train_then_evaluate(
        self, run: Run, config_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = config_file.parent
        monkeypatch.setenv("WANDB_API_KEY", "0123-a-secret")

        training = run("train")
        assert (training.code, training.err) == (0, "")
        assert "Epoch 2/2: loss" in training.out
        assert sorted(os.listdir(folder / "checkpoints")) == [
            "model_epoch-1.pt",
            "model_epoch-2.pt",
            "model_latest.pt",
            "model_previous.pt",
        ]
        history = read_strict_json(folder / "training.json")
        assert list(history) == ["1", "2"]
        assert all(np.isfinite(epoch["train/loss"]) for epoch in history.values())
        assert (folder / "resolved_config.yml").exists()
        assert any((folder / "tensorboard").glob("events*"))

        evaluation = run("evaluate", "--baselines", "--plots")
        assert (evaluation.code, evaluation.err) == (0, "")
        results = read_strict_json(folder / "evaluation.json")
        for system, prefix in {"trained": "test", "untrained": "untrained", "mfcc": "mfcc"}.items():
            eer = results[f"{prefix}/sv_cosine/trials/eer"]
            trials, scores = read_scores(folder / f"scores/{system}_sv_cosine_trials.txt")
            assert eer == metrics.eer(scores, trials.labels)
            low, high = (results[f"{prefix}/sv_cosine/trials/eer_{end}"] for end in ("low", "high"))
            row = rf"{system} +{eer:.2f} \[{low:.2f}, {high:.2f}\]"
            assert low <= high
            assert re.search(row, evaluation.out)
        assert f"list {results['lists/trials/hash']}" in evaluation.out
        assert (folder / "plots/det_sv_cosine_trials.png").read_bytes().startswith(b"\x89PNG")

        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in files if b"0123-a-secret" in path.read_bytes()]
        assert not list(folder.rglob("*.tmp"))

    def test_a_second_training_has_nothing_to_do(self, run: Run, trained: Path) -> None:
        before = content(trained)
        ended = run("train", *SHORT)
        assert ended.code == 0
        assert "already trained for 1 of 1 epochs, nothing to do" in ended.out
        assert content(trained) == before

    def test_a_later_training_goes_on(self, run: Run, trained: Path) -> None:
        assert "going on after epoch 1 of 2" in run("train", *SHORT, "trainer.epochs=2").out
        assert list(read_strict_json(trained / "training.json")) == ["1", "2"]

    def test_run_dir_takes_the_results(self, run: Run, config_file: Path, tmp_path: Path) -> None:
        before = content(config_file.parent)
        other = tmp_path / "new/other"
        assert run("train", *SHORT, f"run_dir={other}").code == 0
        assert (other / "checkpoints/model_latest.pt").exists()
        assert content(config_file.parent) == before

    def test_options_and_overrides_in_any_order(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []
        monkeypatch.setattr(experiment, "evaluate", lambda *args: seen.append(args) or {})
        ended = run("evaluate", "--plots", "seed=3", "--model_suffix", "best", "trainer.epochs=7")
        assert ended.code == 0
        (config, suffix, baselines, plots) = seen[0]
        assert (config.seed, config.trainer.epochs) == (3, 7)
        assert (suffix, baselines, plots) == ("best", False, True)

    def test_resample_accepts_other_rates(self, run: Run, listed: Path) -> None:
        wave, _ = sf.read(listed)
        sf.write(listed, wave[::2], 8000)
        assert run("train", "trainer.epochs=1", "dataset.resample=true").code == 0

    def test_stereo_is_averaged_and_short_audio_repeated(self, run: Run, listed: Path) -> None:
        wave, rate = sf.read(listed)
        sf.write(listed, np.stack([wave, -wave], axis=1)[: rate // 10], rate)
        assert run("train", "trainer.epochs=1", "dataset.frame_length=16000").code == 0

    def test_an_interrupt_says_how_to_go_on(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(experiment, "train", interrupted)
        ended = run("train")
        assert ended.code == 130
        assert ended.err == "interrupted; the same command goes on from the last checkpoint\n"
        monkeypatch.setattr("sslsv.doctor.examine", interrupted)
        assert run("doctor").err == "interrupted\n"  # it starts anew


def read_strict_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


class TestSampling:
    def test_all_options_train_and_go_on(self, run: Run, config_file: Path) -> None:
        sampler = (
            "dataset.sampler={balance: true, create_contrastive_pairs: true, nb_speakers: 8, "
            "prevent_class_collisions: true, randomize_at_each_epoch: true}"
        )
        straight = config_file.parent / "straight"
        assert run("train", sampler, f"run_dir={straight}").code == 0
        assert run("train", sampler, "trainer.stop_at_epoch=1").code == 0
        assert run("train", sampler).code == 0
        histories = [p / "training.json" for p in (straight, config_file.parent)]
        assert histories[0].read_bytes() == histories[1].read_bytes()

    def test_fewer_labels_than_a_batch(self, refused: Refused) -> None:
        assert refused(
            "train", "trainer.batch_size=16", "dataset.sampler={prevent_class_collisions: true}"
        ) == (
            "dataset.sampler.prevent_class_collisions: a batch of 16 needs as many labels and "
            "there are 8; lower trainer.batch_size to 8 or less"
        )


class TestUsage:
    @pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
    def test_overview_shows_every_command(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        for name, command in cli.COMMANDS.items():
            assert f"\n  {name} " in out
            assert command.help in out
            assert f"$ {command.example}\n" in out
        groups = [out.index(f"\n\n{title}\n") for title in cli.GROUPS]
        assert groups == sorted(groups)
        assert all(code in out for code in ("0 done", "2 bad input", "130 interr", "143 a train"))
        assert max(map(len, out.splitlines())) <= 80

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"sslsv {sslsv.__version__}\n"

    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_help_of_a_command(
        self, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
        out = capsys.readouterr().out
        command = cli.COMMANDS[name]
        assert out.startswith(f"usage: sslsv {name} ")
        assert command.help in out
        assert out.endswith(f"\nexample:\n  {command.example}\n")
        assert max(map(len, out.splitlines())) < 80
        # and not on a configuration
        works_on_files = ("calibrate", "compare", "list", "report", "results", "verify")
        assert ("key=value" in out) == (name not in works_on_files)

    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_help_states_the_defaults_there_are(self, name: str) -> None:
        parser = cli.COMMANDS[name].parser()
        text = " ".join(parser.format_help().split())
        defaults = [action.default for action in parser._actions]
        silent = (None, [], argparse.SUPPRESS)
        assert re.findall(r"\(default: (\S+)\)", text) == [
            str(default) for default in defaults if default not in silent and default is not False
        ]

    @pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=cli.COMMANDS)
    def test_example_parses(self, command: Command) -> None:
        program, name, *arguments = shlex.split(command.example)
        assert (program, name) == ("sslsv", command.name)
        command.parser().parse_intermixed_args(arguments)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("trian", "did you mean 'train'?"), ("zzz", "choose one of: train, evaluate")],
    )
    def test_unknown_command(
        self, name: str, hint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([name]) == 2
        assert capsys.readouterr().err.startswith(f"error: unknown command '{name}'; {hint}")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["train"], "the following arguments are required: CONFIG"),
            (["train", "c.yml", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
            (["evaluate", "c.yml", "--model_suffix"], "--model_suffix: expected one argument"),
        ],
    )
    def test_wrong_arguments(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        usage, *_, last = capsys.readouterr().err.splitlines()
        assert usage.startswith(f"usage: sslsv {arguments[0]} ")
        assert last.endswith(message)


class TestRefusedSettings:
    def test_unknown_key(self, refused: Refused, edit_config: Edit) -> None:
        path = edit_config("epochs: 2", "epochz: 2")
        for command in ("train", "evaluate"):
            assert refused(command) == (
                f"{path} line 10: trainer.epochz: unknown key; did you mean 'epochs'?"
            )

    def test_wrong_type(self, refused: Refused) -> None:
        assert refused("train", "trainer.epochs=ten") == (
            "trainer.epochs: expected a whole number, got 'ten' (str) (given on the command line)"
        )

    def test_missing_configuration(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "nowhere.yml"
        assert cli.main(["train", str(path)]) == 2
        assert capsys.readouterr().err == (
            f"error: {path}: cannot read the configuration (No such file or directory)\n"
        )

    def test_batch_larger_than_the_list(self, refused: Refused) -> None:
        assert refused("train", "trainer.batch_size=64") == (
            "trainer.batch_size: 64 is more than the 32 rows of the training list; lower it"
        )

    def test_nothing_to_evaluate(self, refused: Refused) -> None:
        assert refused("evaluate", "evaluation.test=[]").startswith("evaluation.test: is empty")

    @pytest.mark.parametrize("path", ["file", "file/below"])
    def test_folder_that_cannot_be_written(
        self, refused: Refused, tmp_path: Path, path: str
    ) -> None:
        (tmp_path / "file").write_text("")
        said = refused("train", f"run_dir={tmp_path / path}")
        assert said.startswith(f"{tmp_path / path}/resolved_config.yml: cannot be written (")

    def test_tensorboard_folder_that_cannot_be_written(self, run: Run, config_file: Path) -> None:
        path = config_file.parent / "tensorboard"
        path.write_text("")
        ended = run("train", *SHORT)
        check_sentence(ended)
        assert ended.err == f"error: {path}: cannot be written (File exists)\n"
        assert not (config_file.parent / "checkpoints").exists()


class TestRefusedLists:
    def test_missing_training_list(self, refused: Refused, corpus: Path) -> None:
        said = refused("train", "dataset.train=nowhere.csv")
        assert said.startswith(f"{corpus}/nowhere.csv: training list not found")
        assert "dataset.base_path" in said

    def test_missing_column(self, refused: Refused, corpus: Path) -> None:
        said = refused("train", "dataset.label_key=Speakr")
        assert said.startswith(
            f"{corpus}/train.csv: no column 'Speakr'; its columns are File, Speaker"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", ": the list is empty"),
            ("1 a b\n", ": the list has no non-target (0) trial"),
            ("0 a b\n", ": the list has no target (1) trial"),
            ("1 a b\n0 a\n", " line 2: expected 3 fields"),
            ("1 a b\nyes a b\n", " line 2: the label must be 1 (target) or 0: 'yes a b'"),
            ("1 a b\n0 a c\n", ": 3 of 3 files not found"),
        ],
    )
    def test_bad_trials_before_any_training(
        self, refused: Refused, data: Path, text: str, message: str
    ) -> None:
        (data / "trials").write_text(text)
        said = refused("evaluate")
        assert said.startswith(f"{data}/trials{message}")
        assert said == refused(
            "train",
            "evaluation.validation=[{type: sv_cosine, trials: [trials]}]",
            "trainer.tracked_metric=val/sv_cosine/trials/eer",
        )

    def test_missing_trials(self, refused: Refused, corpus: Path) -> None:
        said = refused("evaluate", "evaluation.test.0.trials=[nowhere]")
        assert said == f"{corpus}/nowhere: file not found"


class TestRefusedAudio:
    def test_missing_files_are_counted_and_ten_named(self, refused: Refused, data: Path) -> None:
        files = (data / "train.csv").read_text().splitlines()[1:13]
        for file in files:
            (data / file.split(",")[0]).unlink()
        said = refused("train")
        assert said.startswith(f"{data}/train.csv: 12 of 32 files not found")
        assert "line 2: wav/id00/" in said
        assert said.count(".wav") == 10
        assert said.endswith("(and 2 more)")
        assert refused("evaluate").startswith(f"{data}/trials: 12 of 32 files not found")

    def test_unreadable(self, refused: Refused, trained: Path, listed: Path) -> None:
        listed.write_text("this is no audio")
        said = refused("train", "trainer.epochs=2", "dataset.max_samples=8")
        assert said.startswith(f"{listed}: cannot be read as audio (")
        assert refused("evaluate") == said

    def test_empty(self, refused: Refused, listed: Path) -> None:
        sf.write(listed, np.zeros(0), 16000)
        assert refused("train") == f"{listed}: the audio is empty; remove the file from the list"

    def test_wrong_sample_rate(self, refused: Refused, listed: Path) -> None:
        wave, _ = sf.read(listed)
        sf.write(listed, wave[::2], 8000)
        said = refused("train")
        assert said.startswith(f"{listed}: the sample rate is 8000 Hz where 16000 Hz is expected")
        assert "dataset.resample: true" in said

    @pytest.mark.parametrize("workers", [0, 1])
    def test_not_finite_found_while_training(
        self, run: Run, listed: Path, trained: Path, workers: int
    ) -> None:
        sf.write(listed, np.full(16000, np.nan), 16000, subtype="FLOAT")
        before = content(trained / "checkpoints")
        ended = run("train", "trainer.epochs=2", SHORT[1], f"dataset.num_workers={workers}")
        check_sentence(ended)
        assert ended.err.startswith(f"error: {listed}: there are NaN or infinite samples")
        assert content(trained / "checkpoints") == before

    def test_skipped_while_training_counted_and_listed_once(
        self, run: Run, data: Path, listed: Path, config_file: Path
    ) -> None:
        sf.write(listed, np.full(16000, np.nan), 16000, subtype="FLOAT")
        name = str(listed.relative_to(data))
        ended = run("train", "dataset.on_error=skip", "trainer.epochs=2")
        assert (ended.code, ended.err) == (0, "")
        path = config_file.parent / "skipped_files.txt"
        said = f"  unusable files: 1, replaced 1 times by others; see {path}\n"
        assert ended.out.count(said) == 2  # epochs
        reason = f"{listed}: there are NaN or infinite samples; remove or re-encode the file"
        assert path.read_text() == f"{name}\t{reason}\n"

        other = data / (data / "train.csv").read_text().splitlines()[6].split(",")[0]
        other.unlink()
        ended = run("train", "dataset.on_error=skip", "trainer.epochs=3")
        assert ended.code == 0
        assert "1 of 32 files not found" in ended.out
        assert "going on after epoch 2" in ended.out
        lines = path.read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == [name, str(other.relative_to(data))]

    def test_skipping_may_begin_with_a_restart(self, run: Run, trained: Path, listed: Path) -> None:
        listed.unlink()
        settings = ("trainer.epochs=2", SHORT[1])
        assert "1 of 8 files not found" in run("train", *settings).err
        assert run("train", *settings, "dataset.on_error=skip").code == 0
        assert (trained / "skipped_files.txt").exists()

    def test_nothing_is_listed_where_nothing_is_skipped(self, run: Run, config_file: Path) -> None:
        assert run("train", *SHORT, "dataset.on_error=skip").code == 0
        assert not (config_file.parent / "skipped_files.txt").exists()

    @pytest.mark.parametrize("folder", ["musan_split", "musan_split/music", "simulated_rirs"])
    def test_missing_noise_or_responses(self, refused: Refused, data: Path, folder: str) -> None:
        shutil.rmtree(data / folder)
        said = refused("train", "dataset.augmentation.enable=true")
        assert said.startswith(f"{data}/{folder}")
        assert "dataset.augmentation.enable: false" in said


class TestRefusedCheckpoints:
    @pytest.mark.parametrize("kept", [0.0, 0.01, 0.9])
    def test_truncated(self, refused: Refused, trained: Path, kept: float) -> None:
        path = trained / "checkpoints/model_latest.pt"
        os.truncate(path, int(kept * path.stat().st_size))
        said = refused("train", "trainer.epochs=2", SHORT[1])
        assert said.startswith(f"{path}: damaged, or not a checkpoint (")
        assert len(said) < 300
        assert refused("evaluate") == said

    def test_of_another_encoder(self, refused: Refused, trained: Path) -> None:
        said = refused("evaluate", "encoder.base_dim=16")
        assert said.startswith(f"{trained}/checkpoints/model_latest.pt: does not fit")
        assert "encoder.conv.weight is (8, 1, 7, 7), not (16, 1, 7, 7)" in said

    def test_of_other_settings(self, refused: Refused, trained: Path) -> None:
        said = refused("train", "trainer.batch_size=4", "dataset.augmentation.enable=true")
        assert "max_samples 8 -> null" in said
        assert "trainer.batch_size 8 -> 4" in said
        assert "dataset.augmentation null -> a section" in said
        assert said.endswith("undo the change, or give another run_dir to start anew")

    def test_missing_names_what_is_there(self, refused: Refused, trained: Path) -> None:
        said = refused("evaluate", "--model_suffix", "best")
        path = trained / "checkpoints/model_best.pt"
        assert said == f"{path}: no such checkpoint (there are: epoch-1, latest)"

    def test_evaluation_before_training(self, refused: Refused) -> None:
        assert "no such checkpoint (train first" in refused("evaluate")

    @pytest.mark.parametrize("text", ["[]", "{"])
    def test_results_that_are_no_longer_json(self, run: Run, trained: Path, text: str) -> None:
        path = trained / "evaluation.json"
        path.write_text(text)
        ended = run("evaluate")
        check_sentence(ended)
        assert ended.err.startswith(f"error: {path}: ")
        assert ended.err.endswith("; move it away\n")
        assert path.read_text() == text


class TestScripts:
    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_find_the_package_beside_them(self, name: str, tmp_path: Path) -> None:
        named = {
            "average": "average_model.py",
            "embed": "inference.py",
            "profile": "profile_training.py",
        }
        script = ROOT / "sslsv/bin" / named.get(name, f"{name}.py")
        ended = python(["-S", str(script), "--help"], tmp_path)  # -S: without installed packages
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"usage: {script.name} ")

    def test_train_from_the_root_of_a_clone(self, config_file: Path) -> None:
        ended = python(["sslsv/bin/train.py", str(config_file), *SHORT], ROOT)
        assert (ended.code, ended.err) == (0, "")
        assert "Epoch 1/1: loss" in ended.out
        assert (config_file.parent / "checkpoints/model_latest.pt").exists()

    def test_bad_input(self, tmp_path: Path) -> None:
        script = ROOT / "sslsv/bin/evaluate.py"
        check_sentence(python([str(script), str(tmp_path)], tmp_path))


def python(arguments: list[str], folder: Path) -> Ended:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_choosing_on_a_test_list_is_said(run: Run) -> None:
    validation = "evaluation.validation=[{type: sv_cosine, num_frames: 1, trials: [trials]}]"
    tracked = "trainer.tracked_metric=val/sv_cosine/trials/eer"
    training = run("train", "trainer.epochs=1", validation, tracked)
    assert "warning: the best model is chosen on trials, which is also tested" in training.out
