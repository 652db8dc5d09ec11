"""A trained model in use: ``sslsv.load``, calibrated decisions, the card, ``sslsv verify``."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st

import sslsv
from sslsv import cli, experiment, export, model
from sslsv.card import write_card
from sslsv.config import from_dict, load_config, to_dict
from sslsv.errors import CheckpointError, ConfigError, DataError, UserError
from sslsv.evaluations.trials import read_scores
from sslsv.model import Model, ScoreCalibration
from sslsv.trainer import checkpoint

NO_EXTRA = "the extra 'export' is not installed"
CONFIG = """\
encoder: {{type: resnet34, base_dim: 8, encoder_dim: 32}}
method: {{type: supervised, nb_classes: 8}}
trainer: {{epochs: 3, batch_size: 8, learning_rate: 0.003}}
dataset: {{base_path: {corpus}, train: train.csv, frame_length: 8000, num_workers: 0}}
seed: 3
evaluation:
  test:
    - {{type: sv_cosine, num_frames: 1, frame_length: null, trials: [trials]}}
"""
SCORES = "scores/trained_sv_cosine_trials.txt"


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ten epochs on 24 utterances, evaluated: enough for an EER below 30 %.
    Not to be written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    (folder / "config.yml").write_text(CONFIG.format(corpus=corpus))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        short = ["trainer.epochs=10", "dataset.max_samples=24"]
        assert cli.main(["train", str(folder), *short]) == 0
        assert cli.main(["evaluate", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished`` to write to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `export` writes, by format, with a calibration."""
    for package in ("onnx", "onnxruntime", "safetensors"):
        pytest.importorskip(package, reason=NO_EXTRA)
    folder = tmp_path_factory.mktemp("exported")
    config = load_config(finished)
    return {
        kind: export.export(config, kind, output=folder / f"m.{kind}", calibrate=Path(SCORES))
        for kind in ("safetensors", "onnx")
    }


@pytest.fixture
def files(corpus: Path) -> list[Path]:
    """Of different lengths, two speakers."""
    return sorted((corpus / "wav/id00").rglob("*.wav")) + sorted(
        (corpus / "wav/id05").rglob("*.wav")
    )


def by_hand(folder: Path, file: Path) -> np.ndarray:
    """The unit-length embedding (D,) of a file, alone, by the checkpoint as it was trained."""
    config = load_config(folder)
    method = experiment.build_method(config)
    method.load_state_dict(torch.load(folder / "checkpoints/model_latest.pt")["model"])
    wave, _ = sf.read(file, dtype="float32")
    with torch.no_grad():
        (vector,) = method.eval().embed(torch.from_numpy(wave)[None]).double().numpy()
    return vector / math.sqrt(sum(float(x) ** 2 for x in vector))


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.1 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(2 * np.pi * 3 * t))
    return (wave + 0.05 * np.sin(2 * np.pi * 900 * t)).astype(np.float32)


# ------------------------------------------------------------------------------- embeddings


class TestEmbeddings:
    def test_are_those_of_the_checkpoint_at_unit_length(
        self, finished: Path, files: list[Path]
    ) -> None:
        found = sslsv.load(finished).embed(files)
        assert found.dtype == np.float32
        expected = [by_hand(finished, file) for file in files]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        assert np.std(expected, axis=0).max() > 1e-3, "or any row would pass for another"

    def test_files_and_waveforms_are_the_same(self, finished: Path, files: list[Path]) -> None:
        loaded, file = sslsv.load(finished), files[0]
        wave, _ = sf.read(file)
        tensor = torch.from_numpy(wave).float()
        a, *others = loaded.embed([file, str(file), wave, tensor])
        for other in others:  # rows of one batch may be summed in another order
            np.testing.assert_allclose(other, a, rtol=0, atol=2e-6)

    def test_one_needs_no_list(self, finished: Path, files: list[Path]) -> None:
        loaded = sslsv.load(finished)
        wave, _ = sf.read(files[0])
        expected = loaded.embed([files[0]])
        assert expected.shape == (1, 32)
        for source in (files[0], str(files[0]), wave, torch.from_numpy(wave)):
            assert np.array_equal(loaded.embed(source), expected)

    def test_rows_of_an_array_are_waveforms_and_arrays_of_names_are_files(
        self, finished: Path, files: list[Path]
    ) -> None:
        loaded = sslsv.load(finished)
        waves = np.stack([tone(1), tone(1)[::-1]])
        np.testing.assert_array_equal(loaded.embed(waves), loaded.embed([waves[0], waves[1]]))
        names = np.array([str(file) for file in files[:2]])
        np.testing.assert_array_equal(loaded.embed(names), loaded.embed(files[:2]))

    @pytest.mark.parametrize("kind", ["safetensors", "onnx"])
    def test_do_not_depend_on_what_is_embedded_beside_them(
        self,
        exported: dict[str, Path],
        files: list[Path],
        kind: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(model, "_CHUNK", 3)
        loaded = sslsv.load(exported[kind])
        alone = np.concatenate([loaded.embed(file) for file in files])
        np.testing.assert_allclose(loaded.embed(files), alone, rtol=0, atol=1e-5)

    def test_of_a_method_with_an_embedding_of_its_own(
        self, tmp_path: Path, files: list[Path]
    ) -> None:
        """An encoder without pooling refuses rows of different lengths, the method does not."""
        config = from_dict(
            {
                "encoder": {"type": "resnet34", "base_dim": 8, "pooling": False},
                "method": {"type": "cpc", "aggregator_dim": 12},
                "run_dir": str(tmp_path),
            }
        )
        method = experiment.build_method(config).eval()
        path = checkpoint.checkpoint_path(tmp_path, "latest")
        checkpoint.save(path, {"model": method.state_dict(), "epoch": 1})
        waves = [tone(1), tone(1.3), tone(0.7)]
        with torch.no_grad():
            rows = torch.cat([method.embed(torch.from_numpy(wave)[None]) for wave in waves])
        expected = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        for kind in ("safetensors", "onnx"):
            pytest.importorskip({"onnx": "onnxruntime"}.get(kind, kind), reason=NO_EXTRA)
            loaded = sslsv.load(export.export(config, kind))
            np.testing.assert_allclose(loaded.embed(waves), expected, rtol=0, atol=1e-4)


class TestScore:
    def test_is_the_cosine(self, finished: Path, files: list[Path]) -> None:
        loaded = sslsv.load(finished)
        for a, b in ((files[0], files[1]), (files[0], files[-1])):
            x, y = by_hand(finished, a), by_hand(finished, b)
            cosine = sum(float(i) * float(j) for i, j in zip(x, y, strict=True))
            assert loaded.score(a, b) == pytest.approx(cosine, abs=1e-6)
            assert loaded.score(b, a) == pytest.approx(cosine, abs=1e-6)
        assert loaded.score(files[0], files[0]) == pytest.approx(1, abs=1e-6)
        assert loaded.score(files[0], files[0]) <= 1

    def test_is_that_of_evaluate(self, finished: Path, corpus: Path) -> None:
        loaded = sslsv.load(finished)
        trials, scores = read_scores(finished / SCORES)
        for trial in (0, 7, len(trials) - 1):
            pair = (trials.files[side[trial]] for side in (trials.enrol, trials.test))
            found = loaded.score(*(corpus / name for name in pair))
            assert found == pytest.approx(scores[trial], abs=1e-5)

    def test_is_the_same_wherever_the_model_lies(
        self, finished: Path, exported: dict[str, Path], files: list[Path]
    ) -> None:
        places = [finished, finished / "resolved_config.yml", *exported.values()]
        for a, b in ((files[0], files[1]), (files[0], files[-1])):
            scores = [sslsv.load(place).score(a, b) for place in places]
            np.testing.assert_allclose(scores, scores[0], rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------- loading


class TestLoad:
    def test_prints_in_a_line_without_its_layers(self, finished: Path) -> None:
        text = repr(sslsv.load(finished))
        assert text.startswith("Model(min_samples=")
        assert "\n" not in text

    def test_package_has_it_and_nothing_else(self) -> None:
        assert sslsv.load is model.load
        assert sslsv.Model is Model
        with pytest.raises(AttributeError, match="module 'sslsv' has no attribute 'laod'"):
            _ = sslsv.laod  # type: ignore[attr-defined]

    @pytest.mark.parametrize("kind", ["run", "safetensors"])
    def test_changes_no_random_number(
        self, finished: Path, request: pytest.FixtureRequest, kind: str
    ) -> None:
        path = finished if kind == "run" else request.getfixturevalue("exported")[kind]
        before = torch.get_rng_state()
        sslsv.load(path)
        assert torch.equal(torch.get_rng_state(), before)

    def test_what_a_run_was_trained_with_counts(self, run: Path, files: list[Path]) -> None:
        expected = sslsv.load(run).score(*files[:2])
        config = run / "config.yml"
        config.write_text(config.read_text().replace("base_dim: 8", "base_dim: 16"))
        assert sslsv.load(run).score(*files[:2]) == expected
        with pytest.raises(CheckpointError, match="does not fit this configuration's encoder"):
            sslsv.load(config)

    def test_run_of_which_only_one_configuration_is_left(
        self, run: Path, files: list[Path]
    ) -> None:
        (run / "resolved_config.yml").rename(run.parent / "resolved_config.yml")
        expected = sslsv.load(run).score(*files[:2])
        (run / "config.yml").unlink()
        with pytest.raises(ConfigError, match=r"neither resolved_config.yml nor config.yml"):
            sslsv.load(run)
        (run.parent / "resolved_config.yml").rename(run / "resolved_config.yml")
        assert sslsv.load(run).score(*files[:2]) == expected

    @pytest.mark.parametrize("name", ["", "resolved_config.yml"])
    def test_run_that_was_moved(self, run: Path, name: str) -> None:
        """Its resolved configuration still names the old folder."""
        path = run / "checkpoints/model_latest.pt"
        path.rename(path.with_name("model_best.pt"))
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: no such checkpoint")):
            sslsv.load(run / name)
        sslsv.load(run / name, suffix="best")

    def test_checkpoint_is_chosen_by_its_suffix(self, finished: Path, files: list[Path]) -> None:
        loaded = [sslsv.load(finished, suffix=suffix) for suffix in ("epoch-1", "epoch-10")]
        first, second = (x.embed(files) for x in loaded)
        assert np.abs(first - second).max() > 1e-3
        np.testing.assert_allclose(sslsv.load(finished).embed(files), second, rtol=0, atol=1e-6)

    def test_suffix_of_an_exported_file(self, exported: dict[str, Path]) -> None:
        with pytest.raises(UserError, match="is one exported model; --model_suffix is for a run"):
            sslsv.load(exported["onnx"], suffix="best")

    @pytest.mark.parametrize("name", ["a.txt", "a", "a.pt"])
    def test_not_a_model(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(CheckpointError, match=r"no such file or folder; give a \.safetensors"):
            sslsv.load(tmp_path / name)
        (tmp_path / name).write_text("text")
        with pytest.raises(CheckpointError, match=r"is not a model; give a \.safetensors"):
            sslsv.load(tmp_path / name)

    @pytest.mark.parametrize("kind", ["safetensors", "onnx"])
    def test_missing_damaged_or_of_another_program(self, tmp_path: Path, kind: str) -> None:
        for package in ("onnx", "onnxruntime", "safetensors"):
            pytest.importorskip(package, reason=NO_EXTRA)
        path = tmp_path / f"x.{kind}"
        with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
            sslsv.load(path)
        path.write_bytes(b"this is no model")
        with pytest.raises(CheckpointError, match=rf"x\.{kind}: damaged, or not a"):
            sslsv.load(path)
        OTHERS[kind](path)
        with pytest.raises(CheckpointError, match="was not written by 'sslsv export'"):
            sslsv.load(path)

    @pytest.mark.parametrize("kind", ["safetensors", "onnx"])
    def test_missing_package(
        self, exported: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = {"onnx": "onnxruntime"}.get(kind, kind)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"m\.{kind} needs {package}: pip install sslsv"):
            sslsv.load(exported[kind])


def other_graph(path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason=NO_EXTRA)
    make = onnx.helper
    ends = [make.make_tensor_value_info(name, 1, ["n"]) for name in ("wave", "embedding")]
    node = make.make_node("Identity", ["wave"], ["embedding"])
    graph = make.make_graph([node], "g", ends[:1], ends[1:])
    opset = [make.make_opsetid("", export.OPSET)]
    onnx.save(make.make_model(graph, opset_imports=opset, ir_version=9), path)


def other_tensors(path: Path) -> None:
    pytest.importorskip("safetensors.numpy", reason=NO_EXTRA).save_file({"x": np.zeros(3)}, path)


OTHERS: dict[str, Callable[[Path], None]] = {"onnx": other_graph, "safetensors": other_tensors}


# ------------------------------------------------------------------------------- audio


class TestAudio:
    @pytest.mark.parametrize(
        ("seconds", "message"),
        [
            (0.0999, r"0\.100 s of audio are too short to tell a speaker by; give at least 0\.100"),
            (0.01, r"0\.010 s of audio are too short"),
        ],
    )
    def test_too_short(self, finished: Path, tmp_path: Path, seconds: float, message: str) -> None:
        path = tmp_path / "x.wav"
        sf.write(path, tone(seconds), 16000)
        loaded = sslsv.load(finished)
        with pytest.raises(DataError, match=rf"x\.wav: {message}"):
            loaded.embed(path)
        with pytest.raises(DataError, match=f"waveform 2: {message}"):
            loaded.embed([tone(1), tone(seconds)])
        assert loaded.embed(tone(0.1)).shape == (1, 32)

    def test_shorter_than_the_encoder_can_take(self, finished: Path) -> None:
        loaded = replace(sslsv.load(finished), min_samples=4000)
        with pytest.raises(DataError, match=r"give at least 0\.250 s"):
            loaded.embed(tone(0.2))

    @pytest.mark.parametrize("level", [0.0, 0.3])
    def test_silent(self, finished: Path, tmp_path: Path, level: float) -> None:
        path = tmp_path / "x.wav"
        sf.write(path, np.full(16000, level), 16000)
        with pytest.raises(DataError, match=r"x\.wav: the audio is silent"):
            sslsv.load(finished).embed(path)

    def test_quiet_is_not_silent(self, finished: Path) -> None:
        assert np.isfinite(sslsv.load(finished).embed(1e-3 * tone(1))).all()

    def test_another_rate_is_refused_or_converted(
        self, finished: Path, run: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "x.wav"
        sf.write(path, tone(1, 8000), 8000)
        message = r"x\.wav: the sample rate is 8000 Hz where 16000 Hz is expected; give --resample"
        with pytest.raises(DataError, match=message):
            sslsv.load(finished).embed(path)
        converted = sslsv.load(finished, resample=True)
        assert converted.score(path, tone(1)) > 0.999

        config = run / "resolved_config.yml"
        config.write_text(config.read_text().replace("resample: false", "resample: true"))
        loaded = sslsv.load(run)
        np.testing.assert_array_equal(loaded.embed(path), converted.embed(path))
        with pytest.raises(DataError, match=message):
            sslsv.load(run, resample=False).embed(path)

    @pytest.mark.parametrize("kind", ["safetensors", "onnx"])
    def test_resampling_goes_with_the_exported_file(self, run: Path, kind: str) -> None:
        for package in ("onnx", "onnxruntime", "safetensors"):
            pytest.importorskip(package, reason=NO_EXTRA)
        for resample in (False, True):
            config = load_config(run, [f"dataset.resample={str(resample).lower()}"])
            assert sslsv.load(export.export(config, kind)).resample is resample

    @pytest.mark.parametrize(
        ("wave", "message"),
        [
            (np.zeros(16000, np.int16), r"expected floats .* got int16 of shape \(16000,\)"),
            (np.zeros((16000, 2)), r"expected floats .* got float64 of shape \(16000, 2\)"),
            (np.full(16000, np.nan), "there are NaN or infinite samples"),
            (np.full(16000, 1e300), "there are NaN or infinite samples"),
            (np.zeros(0), "0.000 s of audio are too short"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:overflow")
    def test_waveforms_that_are_none(self, finished: Path, wave: Any, message: str) -> None:
        with pytest.raises(DataError, match=f"waveform 2: {message}"):
            sslsv.load(finished).embed([tone(1), wave])

    def test_nothing(self, finished: Path) -> None:
        with pytest.raises(DataError, match="there is nothing to embed"):
            sslsv.load(finished).embed([])

    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_embedding_that_has_no_direction(self, value: float) -> None:
        def run(wave: torch.Tensor, lengths: Any = None) -> torch.Tensor:
            return torch.full((len(wave), 3), value)

        with pytest.raises(DataError, match="waveform 1: its embedding is zero or not finite"):
            Model(run=run, min_samples=1).embed(tone(1))


# ------------------------------------------------------------------------------- calibration


def made(scale: float, offset: float) -> ScoreCalibration:
    more: dict[str, Any] = {"list_name": "dev", "hash": "0" * 8, "trials": 9, "targets": 4}
    return ScoreCalibration(scale=scale, offset=offset, prior=0.5, cllr=0.4, **more)


def of_angle(calibration: ScoreCalibration | None, cosine: float) -> Model:
    """A model to which the first of two waveforms of one length has this cosine to the other."""

    def run(wave: torch.Tensor, lengths: Any = None) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])

    return Model(run=run, min_samples=1, calibration=calibration)


priors = st.floats(0.001, 0.999)
cosines = st.floats(-1, 1)


class TestCalibration:
    @given(st.floats(-20, 20), st.floats(-20, 20), cosines, priors)
    def test_probability_is_bayes_rule(
        self, scale: float, offset: float, score: float, prior: float
    ) -> None:
        ratio = math.exp(scale * score + offset)
        expected = prior * ratio / (prior * ratio + 1 - prior)
        found = made(scale, offset).probability(score, prior)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)

    @given(st.floats(-20, 20), st.floats(-20, 20), priors)
    def test_comes_back_from_json(self, scale: float, offset: float, prior: float) -> None:
        fitted = replace(made(scale, offset), prior=prior, remarks=("a", "b"))
        assert ScoreCalibration.from_json(fitted.to_json(), Path("x")) == fitted

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            "{}",
            made(1, 2).to_json().replace('"scale": 1', '"scale": NaN'),
            made(1, 2).to_json().replace('"scale": 1', '"scale": "1"'),
            made(1, 2).to_json().replace("[]", "null"),
            made(1, 2).to_json().replace('"cllr"', '"later"'),
        ],
    )
    def test_damaged(self, text: str) -> None:
        with pytest.raises(CheckpointError, match="x: its calibration cannot be read"):
            ScoreCalibration.from_json(text, Path("x"))

    def test_is_the_optimum_on_the_score_file(
        self, exported: dict[str, Path], finished: Path
    ) -> None:
        fitted = sslsv.load(exported["safetensors"]).calibration
        assert fitted is not None
        rows = [line.split() for line in (finished / SCORES).read_text().splitlines()]
        scores = {label: [float(r[2]) for r in rows if r[3] == label] for label in "01"}

        def cllr(scale: float, offset: float) -> float:
            """Bits, by the formula."""
            of_targets = [math.log2(1 + math.exp(-scale * s - offset)) for s in scores["1"]]
            of_others = [math.log2(1 + math.exp(scale * s + offset)) for s in scores["0"]]
            return sum(of_targets) / len(of_targets) / 2 + sum(of_others) / len(of_others) / 2

        least = cllr(fitted.scale, fitted.offset)
        assert fitted.cllr == pytest.approx(least, rel=1e-9)
        middle = float(np.mean(scores["0"] + scores["1"]))
        for step in (0.01, -0.01):  # offset, and slope about the middle
            assert cllr(fitted.scale, fitted.offset + step) > least
            steeper = fitted.scale * (1 + step)
            assert cllr(steeper, fitted.offset + (fitted.scale - steeper) * middle) > least
        assert (fitted.trials, fitted.targets) == (len(rows), len(scores["1"]))

    def test_says_what_it_was_fitted_on(
        self, exported: dict[str, Path], corpus: Path, finished: Path
    ) -> None:
        fitted = sslsv.load(exported["onnx"]).calibration
        assert fitted == sslsv.load(exported["safetensors"]).calibration
        assert fitted is not None
        lines = sorted((corpus / "trials").read_bytes().splitlines(keepends=True))
        assert fitted.hash == hashlib.sha256(b"".join(lines)).hexdigest()[:8]
        assert (fitted.list_name, fitted.remarks) == ("trials", ())

    def test_list_that_evaluation_json_does_not_know(self, run: Path) -> None:
        pytest.importorskip("safetensors", reason=NO_EXTRA)
        (run / "evaluation.json").unlink()
        path = export.export(load_config(run), "safetensors", calibrate=run / SCORES)
        fitted = sslsv.load(path).calibration
        assert fitted is not None
        assert fitted.list_name == Path(SCORES).name

    def test_scores_that_are_no_cosines(self, run: Path) -> None:
        path = run / "scores/other.txt"
        path.write_text("a b 0.3 1\nc d -1.4 0\n")
        with pytest.raises(DataError, match=r"reach from -1\.4 to 0\.3, so they are no cosines"):
            calibrated(run, path)

    def test_scores_of_frames(self, run: Path) -> None:
        """The very case that would go unnoticed: the same model, and another kind of score."""
        overrides = ["evaluation.test.0.frame_length=8000", "evaluation.test.0.num_frames=2"]
        assert cli.main(["evaluate", str(run), *overrides]) == 0
        with pytest.raises(DataError, match="the cosine of this checkpoint's embeddings of the wh"):
            calibrated(run, run / SCORES)

    def test_scores_of_another_checkpoint(self, run: Path) -> None:
        assert cli.main(["evaluate", str(run), "--model_suffix", "epoch-1"]) == 0
        with pytest.raises(DataError, match="evaluate this checkpoint with sv_cosine"):
            calibrated(run, run / SCORES)

    def test_scores_whose_audio_is_elsewhere_are_said_to_be_unchecked(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (remark,) = calibrated(run, run / SCORES, f"dataset.base_path={tmp_path}").remarks
        assert remark.endswith("was not checked, since none of the audio was found")
        assert f"warning: {remark}" in capsys.readouterr().out

    def test_scores_that_fall_are_remarked_on(self, run: Path, tmp_path: Path) -> None:
        path = tmp_path / "scores.txt"
        path.write_text("a b 0.1 1\na c 0.4 1\nb c 0.3 0\na d 0.6 0\n")
        remarks = calibrated(run, path, f"dataset.base_path={tmp_path}").remarks
        assert "the calibration does not rise with the score: the model tells nothing" in remarks


def calibrated(run: Path, scores: Path, *overrides: str) -> ScoreCalibration:
    pytest.importorskip("safetensors", reason=NO_EXTRA)
    config = load_config(run, overrides)
    found = sslsv.load(export.export(config, "safetensors", calibrate=scores)).calibration
    assert found is not None
    return found


class TestVerify:
    waves = (tone(1), tone(1)[::-1].copy())

    @given(st.floats(-10, 10), st.floats(-5, 5), cosines, priors)
    def test_decides_for_what_is_more_likely(
        self, scale: float, offset: float, cosine: float, prior: float
    ) -> None:
        verdict = of_angle(made(scale, offset), cosine).verify(*self.waves, prior=prior)
        assert verdict.score == pytest.approx(cosine, abs=1e-6)
        ratio = math.exp(scale * verdict.score + offset)
        odds = ratio * prior / (1 - prior)
        assert verdict.probability == pytest.approx(odds / (1 + odds), rel=1e-9)
        if abs(odds - 1) > 1e-9:
            assert verdict.decision is (odds > 1)

    def test_a_trial_at_the_threshold_is_accepted(self) -> None:
        assert of_angle(made(1, -0.5), 0.5).verify(*self.waves).decision is True
        assert of_angle(None, 0.5).verify(*self.waves, threshold=0.5).decision is True

    @pytest.mark.parametrize("fitted", [None, made(10, -5)])
    @pytest.mark.parametrize(("threshold", "same"), [(0.3, True), (0.7, False)])
    def test_a_threshold_decides_by_the_score(
        self, fitted: ScoreCalibration | None, threshold: float, same: bool
    ) -> None:
        cosine = 0.4 if same else 0.6  # the calibration alone would decide otherwise
        verdict = of_angle(fitted, cosine).verify(*self.waves, threshold=threshold)
        assert verdict.decision is same
        assert (verdict.probability is None) == (fitted is None)

    def test_without_calibration_there_is_no_probability(self) -> None:
        score, probability, decision = of_angle(None, 0.6).verify(*self.waves)
        assert score == pytest.approx(0.6)
        assert probability is None
        assert decision is None

    @pytest.mark.parametrize("prior", [0, 1, -0.1, math.nan])
    def test_impossible_prior(self, prior: float) -> None:
        with pytest.raises(ConfigError, match="prior: must be between 0 and 1"):
            of_angle(None, 0.6).verify(*self.waves, prior=prior)

    @pytest.mark.parametrize("threshold", [1.1, -2, math.nan])
    def test_threshold_that_is_no_cosine(self, threshold: float) -> None:
        with pytest.raises(ConfigError, match="threshold: must be a cosine, from -1 to 1"):
            of_angle(None, 0.6).verify(*self.waves, threshold=threshold)


# ------------------------------------------------------------------------------- card


@pytest.fixture
def card(run: Path) -> Callable[..., str]:
    """Exports ``run`` and gives the card."""
    pytest.importorskip("safetensors", reason=NO_EXTRA)

    def card(*overrides: str, **options: Any) -> str:
        path = export.export(load_config(run, overrides), "safetensors", **options)
        return path.with_suffix(".md").read_text()

    return card


class TestCard:
    def test_has_what_was_measured(self, run: Path, card: Callable[..., str]) -> None:
        text = card(calibrate=Path(SCORES))
        found = json.loads((run / "evaluation.json").read_text())
        place = "test/sv_cosine/trials"
        for metric, shown, digits in (("eer", "eer (%)", 2), ("mindcf", "mindcf", 4)):
            value, low, high = (f"{found[f'{place}/{metric}{e}']:.{digits}f}" for e in ENDS)
            row = f"| trained | sv_cosine/trials | {shown} | {value} | {low} to {high} |"
            assert text.count(row) == 1
        facts = [str(found[f"lists/trials/{key}"]) for key in ("trials", "targets", "speakers")]
        assert f"| trials | {' | '.join(facts)} | {found['lists/trials/hash']} |" in text
        assert "Fewer than 40 speakers make the intervals too narrow: trials." in text
        fitted = sslsv.load(run / "model_latest.safetensors").calibration
        assert fitted is not None
        assert f"{fitted.scale:.4f} · cosine {fitted.offset:+.4f}" in text
        assert f"fitted on: trials (list {found['lists/trials/hash']})" in text
        assert text.count("_low") == 0

    def test_says_how_the_model_was_trained_whatever_config_yml_says(
        self, run: Path, card: Callable[..., str]
    ) -> None:
        text = card()
        state = checkpoint.load(run / "checkpoints/model_latest.pt")["model"]
        means = ("running_mean", "running_var", "num_batches_tracked")
        trained = [
            x.numel()
            for name, x in state.items()
            if name.startswith("encoder.")
            and not name.endswith(means)
            and "features_extractor" not in name
        ]
        for line in (
            "# supervised with resnet34",
            f"- parameters: {sum(trained):,}, of what embeds",
            "- embedding: 32 values",
            "- list: `train.csv`",
            "- utterances: 24",
            "- epochs: 10 of 10",
            "None: the file gives scores, and no probabilities.",
        ):
            assert line in text.splitlines()
        assert "started from" not in text

    def test_names_no_folder_of_this_machine(self, run: Path, card: Callable[..., str]) -> None:
        text = card(calibrate=run / SCORES)
        assert not re.search(r"[\s`\"(]/\w", text)

    def test_leaves_the_licence_to_the_author(self, card: Callable[..., str]) -> None:
        section = card().partition("## Licence\n")[2]
        assert section.startswith("\nUnknown; for the author of the model to fill in.\n<!-- ")

    def test_results_of_another_checkpoint_are_not_listed(
        self, run: Path, card: Callable[..., str]
    ) -> None:
        text = card(suffix="epoch-1")
        (shown,) = run.glob("model_epoch-1.md")
        assert shown.read_text() == text
        assert (
            "Unknown: evaluation.json has results of model_latest.pt (epoch 10) and not of" in text
        )
        assert "sv_cosine" not in text
        found = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps(found | {"epoch": 7}))
        assert (
            "results of model_latest.pt (epoch 7) and not of model_latest.pt (epoch 10)" in card()
        )

    def test_what_is_unknown_is_said_to_be(self, run: Path, card: Callable[..., str]) -> None:
        (run / "evaluation.json").unlink()
        path = run / "checkpoints/model_latest.pt"
        state = checkpoint.load(path)
        assert "- utterances: unknown, since the list is not at hand" in card(
            f"dataset.base_path={run}"
        )
        del state["config"]
        for unreadable in ({}, {"config": "{"}, {"config": '{"later": 1}'}):
            checkpoint.save(path, state | unreadable)
            text = card()
            assert "Unknown: the checkpoint does not say how it was trained." in text
            assert "Unknown: the run has no evaluation.json." in text
            assert "train.csv" not in text

    def test_names_the_weights_that_the_training_started_from(
        self, run: Path, card: Callable[..., str]
    ) -> None:
        path = run / "checkpoints/model_latest.pt"
        state = checkpoint.load(path)
        settings = json.loads(state["config"])
        settings["trainer"]["init_weights"] = "/elsewhere/model_x.pt"
        checkpoint.save(path, state | {"config": json.dumps(settings | {"labels": ["a"]})})
        line = "- started from: `model_x.pt`, of whose training nothing is known here"
        assert line in card().splitlines()

    def test_counts_the_utterances_that_held_out_speakers_and_the_sampler_leave(
        self, run: Path, card: Callable[..., str]
    ) -> None:
        path = run / "checkpoints/model_latest.pt"
        state = checkpoint.load(path)
        split = {"speakers": 3, "trials": 20}
        validation = [{"type": "sv_cosine", "trials": ["split"], "split": split}]
        config = load_config(run)
        settings = to_dict(config)
        settings["evaluation"]["validation"] = validation
        settings["dataset"]["sampler"] = {"nb_samples_per_spk": 2}
        checkpoint.save(path, state | {"config": json.dumps(settings)})
        assert "- utterances: 10" in card().splitlines(), "2 each of 8 - 3 speakers"

    def test_its_commands_work(
        self,
        run: Path,
        card: Callable[..., str],
        files: list[Path],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        text = card(calibrate=Path(SCORES))
        for name, file in zip(("a.wav", "b.wav"), files, strict=False):
            shutil.copy(file, run / name)
        monkeypatch.chdir(run)
        (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len(python.splitlines()) == 3
        capsys.readouterr()
        exec(python, {})
        score = sslsv.load(run).score(*files[:2])
        said = re.fullmatch(r"Verdict\(score=(.*), probability=.*\)\n", capsys.readouterr().out)
        assert said
        assert float(said[1]) == pytest.approx(score, abs=1e-6)
        (command,) = re.findall(r"```bash\nsslsv (.*?)\n```", text)
        assert cli.main(command.split()) == 0
        assert capsys.readouterr().out.startswith(f"score: {score:.4f} (cosine)\n")

    def test_one_that_was_edited_is_never_lost(
        self, run: Path, capsys: pytest.CaptureFixture[str], card: Callable[..., str]
    ) -> None:
        first = card()
        path = run / "model_latest.md"
        assert card("seed=5") == first, "replaced, and not put beside"
        assert not list(run.glob("*.new*"))

        edited = first.replace("Unknown; for the author", "MIT; no longer for the author")
        path.write_text(edited)
        capsys.readouterr()
        assert card() == edited
        beside = run / "model_latest.new.md"
        assert beside.read_text() == first
        said = capsys.readouterr().out
        assert f"{beside}: the model's card; {path} was edited and stays as it is\n" in said

        card()
        assert not (run / "model_latest.new2.md").exists()
        beside.write_text("mine, too")
        assert card() == edited
        assert beside.read_text() == "mine, too"
        assert (run / "model_latest.new2.md").read_text() == first

    @pytest.mark.parametrize("change", [b"x%s", b"%sx", b"%s\n"])
    def test_any_edit_counts(self, tmp_path: Path, change: bytes) -> None:
        path = write_card(tmp_path / "c.md", "text — ü\n")
        assert write_card(path, "other\n") == path
        path.write_bytes(change % path.read_bytes())
        assert write_card(path, "third\n") == tmp_path / "c.new.md"

    def test_a_file_that_is_no_card_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "c.md"
        path.mkdir()
        assert write_card(path, "text\n") == tmp_path / "c.new.md"


ENDS = ("", "_low", "_high")


# ------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Verify = Callable[..., Ended]


@pytest.fixture
def verify(files: list[Path], capsys: pytest.CaptureFixture[str]) -> Verify:
    """``verify(model, "--json")`` is ``sslsv verify A B --model MODEL --json``."""

    def verify(path: Path, *arguments: str, a: Path | None = None, b: Path | None = None) -> Ended:
        capsys.readouterr()
        pair = [str(a or files[0]), str(b or files[1])]
        code = cli.main(["verify", *pair, "--model", str(path), *arguments])
        return Ended(code, *capsys.readouterr())

    return verify


class TestCommand:
    @pytest.mark.parametrize("kind", ["safetensors", "onnx"])
    @pytest.mark.parametrize("prior", ["0.5", "0.001", "0.999"])
    def test_with_a_calibration(
        self, verify: Verify, exported: dict[str, Path], files: list[Path], kind: str, prior: str
    ) -> None:
        loaded = sslsv.load(exported[kind])
        score, fitted = loaded.score(*files[:2]), loaded.calibration
        assert fitted is not None
        llr, threshold = fitted.llr(score), math.log((1 - float(prior)) / float(prior))
        probability = 1 / (1 + math.exp(threshold - llr))
        words = "same speaker" if llr >= threshold else "different speakers"
        assert verify(exported[kind], "--prior", prior) == Ended(
            0,
            f"score: {score:.4f} (cosine)\n"
            f"probability: {probability:.4f} of one speaker at a prior of {float(prior):g}; "
            f"calibrated on trials (list {fitted.hash})\n"
            f"decision: {words} (log-likelihood ratio {llr:.2f}, "
            f"Bayes threshold {threshold:.2f})\n",
            "",
        )

    def test_the_prior_changes_the_decision(
        self, verify: Verify, exported: dict[str, Path]
    ) -> None:
        path = exported["safetensors"]
        assert "decision: same speaker (" in verify(path, "--prior", "0.999").out
        assert "decision: different speakers (" in verify(path, "--prior", "0.001").out
        assert verify(path).out == verify(path, "--prior", "0.5").out

    def test_without_a_calibration(self, verify: Verify, finished: Path, files: list[Path]) -> None:
        score = sslsv.load(finished).score(*files[:2])
        ended = verify(finished)
        assert (ended.code, ended.err) == (0, "")
        first, second = ended.out.splitlines()
        assert first == f"score: {score:.4f} (cosine)"
        assert second == (
            "probability: unknown, since the model holds no calibration; 'sslsv export CONFIG "
            "--format safetensors --calibrate SCORES' writes one that does"
        )
        for threshold, words in (("-1", "same speaker"), ("1", "different speakers")):
            lines = verify(finished, "--threshold", threshold).out.splitlines()
            assert lines == [first, second, f"decision: {words} (threshold {threshold})"]

    def test_json(self, verify: Verify, exported: dict[str, Path], finished: Path) -> None:
        path = exported["safetensors"]
        found = json.loads(verify(path, "--json", "--prior", "0.2").out)
        fitted = json.loads(export.read_exported(path)[1]["calibration"])
        assert found.pop("calibration") == fitted
        llr = fitted["scale"] * found["score"] + fitted["offset"]
        assert found == {
            "score": found["score"],
            "llr": pytest.approx(llr),
            "probability": pytest.approx(1 / (1 + 4 * math.exp(-llr))),
            "prior": 0.2,
            "decision": "same" if llr >= math.log(4) else "different",
            "threshold": pytest.approx(math.log(4)),
            "threshold_on": "llr",
        }
        nothing = dict.fromkeys(
            ("llr", "probability", "prior", "decision", "threshold", "threshold_on", "calibration")
        )
        plain = json.loads(verify(finished, "--json").out)
        assert plain == nothing | {"score": pytest.approx(found["score"], abs=1e-4)}
        decided = {"threshold": -0.5, "threshold_on": "score", "decision": "same"}
        assert json.loads(verify(finished, "--json", "--threshold", "-0.5").out) == plain | decided

    def test_remarks_leave_the_output_alone(
        self, verify: Verify, run: Path, tmp_path: Path
    ) -> None:
        calibrated(run, run / SCORES, f"dataset.base_path={tmp_path}")
        ended = verify(run / "model_latest.safetensors", "--json")
        assert ended.code == 0
        json.loads(ended.out)
        assert ended.err.startswith("warning: whether the scores of trained_sv_cosine_trials.txt")

    def test_another_checkpoint(self, verify: Verify, finished: Path) -> None:
        first = verify(finished, "--model_suffix", "epoch-1").out
        assert first != verify(finished, "--model_suffix", "epoch-10").out

    def test_resampled(self, verify: Verify, finished: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.wav"
        sf.write(path, tone(1, 8000), 8000)
        said = check_sentence(verify(finished, b=path))
        assert said.startswith(f"{path}: the sample rate is 8000 Hz where 16000 Hz is expected")
        ended = verify(finished, "--resample", b=path)
        assert (ended.code, ended.err) == (0, "")

    def test_bad_audio(self, verify: Verify, finished: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.wav"
        assert check_sentence(verify(finished, a=path)) == f"{path}: file not found"
        path.write_text("this is no audio")
        assert check_sentence(verify(finished, b=path)).startswith(f"{path}: cannot be read as aud")
        sf.write(path, np.zeros(0), 16000)
        assert "the audio is empty" in check_sentence(verify(finished, b=path))
        sf.write(path, tone(0.05), 16000)
        assert "too short to tell a speaker by" in check_sentence(verify(finished, b=path))
        sf.write(path, np.zeros(16000), 16000)
        assert "the audio is silent" in check_sentence(verify(finished, b=path))
        sf.write(path, np.full(16000, np.inf), 16000, subtype="FLOAT")
        assert "NaN or infinite samples" in check_sentence(verify(finished, b=path))

    def test_bad_model(self, verify: Verify, finished: Path, tmp_path: Path, corpus: Path) -> None:
        missing = tmp_path / "nowhere"
        assert check_sentence(verify(missing)).startswith(f"{missing}: no such file or folder;")
        assert "is not a model" in check_sentence(verify(corpus / "trials"))
        assert "not the folder of a run" in check_sentence(verify(corpus))
        said = check_sentence(verify(finished, "--model_suffix", "avg"))
        assert said.startswith(f"{finished}/checkpoints/model_avg.pt: no such checkpoint (there")
        (tmp_path / "config.yml").write_text("encoder: 3\n")
        assert "config.yml line 1: encoder: expected" in check_sentence(verify(tmp_path))

    def test_bad_operating_point(self, verify: Verify, finished: Path) -> None:
        said = check_sentence(verify(finished, "--prior", "1"))
        assert said == "prior: must be between 0 and 1, got 1.0"
        said = check_sentence(verify(finished, "--threshold", "25"))
        assert said == "threshold: must be a cosine, from -1 to 1, got 25.0"

    def test_export_with_a_score_file_that_cannot_be_used(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("safetensors", reason=NO_EXTRA)
        (run / "scores/one.txt").write_text("a b 0.5 1\n")
        for name, message in (
            ("nowhere.txt", ": file not found"),
            ("one.txt", ": the list has no non-target (0) trial among its 1"),
        ):
            capsys.readouterr()
            command = ["export", str(run), "--format", "safetensors"]
            code = cli.main([*command, "--calibrate", f"scores/{name}"])
            said = check_sentence(Ended(code, *capsys.readouterr()))
            assert said.startswith(f"{run}/scores/{name}{message}")
            assert not list(run.glob("model_latest*"))


def check_sentence(ended: Ended) -> str:
    """What is said where input is bad: code 2, one line, nothing else."""
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.out + ended.err
    return ended.err.removeprefix("error: ").rstrip("\n")
