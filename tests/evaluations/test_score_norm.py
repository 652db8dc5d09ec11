"""Score normalisation: against loops written from the definition, known answers, refusals."""

import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslsv import experiment
from sslsv.config import from_dict, load_config
from sslsv.datasets.manifest import read_manifest
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import score_norm
from sslsv.evaluations.score_norm import (
    Cohort,
    ScoreNorm,
    Statistics,
    cohort_statistics,
    normalise,
)
from sslsv.evaluations.split import SplitConfig, hold_out
from sslsv.evaluations.trials import read_scores
from sslsv.files import read_json

NORMS: list[ScoreNorm] = ["z-norm", "t-norm", "s-norm", "as-norm"]


def loops(
    norm: ScoreNorm, enrol: np.ndarray, test: np.ndarray, cohort: np.ndarray, size: int
) -> float:
    """One trial's normalised score, from the definition."""

    def dot(a: np.ndarray, b: np.ndarray) -> float:
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    def against(file: np.ndarray) -> float:
        scores = sorted((dot(file, other) for other in cohort), reverse=True)
        scores = scores[:size] if norm == "as-norm" else scores
        return (dot(enrol, test) - mean(scores)) / stdev(scores)

    if norm == "z-norm":
        return against(enrol)
    if norm == "t-norm":
        return against(test)
    return (against(enrol) + against(test)) / 2


def names(embeddings: np.ndarray) -> list[str]:
    return [f"{i}.wav" for i in range(len(embeddings))]


@pytest.mark.parametrize(
    ("block", "columns", "rows"),
    [(2**24, 2**14, 2**12), (60, 10, 5), (40, 7, 100), (1, 3, 1), (200, 31, 3)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
@pytest.mark.parametrize("norm", NORMS)
def test_scores_are_those_of_a_double_loop_however_they_are_tiled(
    monkeypatch: pytest.MonkeyPatch,
    norm: ScoreNorm,
    dtype: Any,
    tolerance: float,
    block: int,
    columns: int,
    rows: int,
) -> None:
    for name, value in {"_BLOCK": block, "_COLUMNS": columns, "_ROWS": rows}.items():
        monkeypatch.setattr(score_norm, name, value)
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((11, 6)).astype(dtype)
    cohort = (rng.standard_normal((31, 6)) + 0.3).astype(dtype)
    enrol, test = rng.integers(11, size=(2, 40))
    raw = np.einsum("td,td->t", embeddings[enrol], embeddings[test]).astype(np.float64)
    size = 12 if norm == "as-norm" else None

    usual = cohort_statistics(names(embeddings), embeddings, cohort, size)
    found = normalise(norm, raw, enrol, test, usual)

    assert usual.mean.dtype == usual.std.dtype == found.dtype == np.float64
    pairs = zip(enrol, test, strict=True)
    expected = [loops(norm, embeddings[a], embeddings[b], cohort, 12) for a, b in pairs]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [None, 12, 31])
def test_a_gpu_finds_the_same_statistics(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(score_norm, "_COLUMNS", 10)
    rng = np.random.default_rng(0)
    x, cohort = rng.standard_normal((11, 6)), rng.standard_normal((31, 6))
    expected = cohort_statistics(names(x), x, cohort, size)
    found = cohort_statistics(names(x), x, cohort, size, torch.device("cuda"))
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-9)


def test_statistics_worked_by_hand() -> None:
    """Scores 2, 4, 4, 10 and -6, -12, -12, -30 of the two files."""
    x, cohort = np.array([[2.0], [-6.0]]), np.array([[2.0], [1.0], [5.0], [2.0]])
    everything = cohort_statistics(["a", "b"], x, cohort)
    np.testing.assert_allclose(everything.mean, [5, -15])
    np.testing.assert_allclose(everything.std, [np.sqrt(12), np.sqrt(108)])
    nearest = cohort_statistics(["a", "b"], x, cohort, 2)
    np.testing.assert_allclose(nearest.mean, [7, -9])
    np.testing.assert_allclose(nearest.std, [np.sqrt(18), np.sqrt(18)])


def test_normalised_scores_worked_by_hand() -> None:
    usual = Statistics(mean=np.array([1.0, 2.0]), std=np.array([0.5, 4.0]))
    scores, enrol, test = np.array([3.0, 4.0]), np.array([0, 1]), np.array([1, 1])
    expected = {"z-norm": [4, 0.5], "t-norm": [0.25, 0.5], "s-norm": [2.125, 0.5]}
    expected["as-norm"] = expected["s-norm"]
    for norm in NORMS:
        assert normalise(norm, scores, enrol, test, usual).tolist() == expected[norm]


def test_a_deviation_is_exact_where_the_mean_is_far_from_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_norm, "_COLUMNS", 100)
    cohort = 1e6 + np.random.default_rng(0).standard_normal((1000, 1))
    monkeypatch.setattr(score_norm, "_LEAST_SPREAD", 0)
    found = cohort_statistics(["a"], np.ones((1, 1)), cohort)
    assert found.mean[0] == pytest.approx(cohort.mean(), rel=1e-14)
    assert found.std[0] == pytest.approx(cohort.std(ddof=1), rel=1e-9)


@pytest.mark.parametrize("size", [None, 2, 4, 50])
@pytest.mark.parametrize("files", [1, 3, 50])
def test_no_block_of_scores_is_larger_than_it_may_be(
    monkeypatch: pytest.MonkeyPatch, size: int | None, files: int
) -> None:
    monkeypatch.setattr(score_norm, "_BLOCK", 60)
    monkeypatch.setattr(score_norm, "_COLUMNS", 10)
    monkeypatch.setattr(score_norm, "_ROWS", 4)
    done = []

    def spy(name: str) -> None:
        original = getattr(score_norm, name)

        def watched(x: torch.Tensor, *more: Any) -> Any:
            done.append(len(x))
            return original(x, *more)

        monkeypatch.setattr(score_norm, name, watched)

    spy("_all")
    spy("_nearest")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((files, 3))
    cohort_statistics(names(x), x, rng.standard_normal((50, 3)), size)
    assert sum(done) == files
    assert max(done) <= 4
    assert max(done) * max(10, size or 0) <= 60 or max(done) == 1


@given(seed=st.integers(0, 10**6), size=st.integers(2, 9))
def test_sides_swap_with_the_trial(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    x, cohort = rng.standard_normal((4, 3)), rng.standard_normal((9, 3))
    scores, (a, b) = rng.standard_normal(20), rng.integers(4, size=(2, 20))
    usual = cohort_statistics(names(x), x, cohort, size)
    z, t = (normalise(norm, scores, a, b, usual) for norm in NORMS[:2])
    np.testing.assert_array_equal(normalise("t-norm", scores, b, a, usual), z)
    for norm in NORMS[2:]:
        found = normalise(norm, scores, a, b, usual)
        np.testing.assert_allclose(found, (z + t) / 2, rtol=1e-12)
        np.testing.assert_array_equal(normalise(norm, scores, b, a, usual), found)


def test_the_nearest_of_all_are_all() -> None:
    rng = np.random.default_rng(0)
    x, cohort = rng.standard_normal((4, 3)), rng.standard_normal((9, 3))
    everything, nearest = (cohort_statistics(names(x), x, cohort, k) for k in (None, 9))
    np.testing.assert_allclose(nearest.mean, everything.mean, rtol=1e-12)
    np.testing.assert_allclose(nearest.std, everything.std, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [None, 3])
def test_scores_that_do_not_differ_are_refused(size: int | None, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 50)).astype(dtype)
    cohort = np.repeat(rng.standard_normal((1, 50)), 9, axis=0).astype(dtype)
    with pytest.raises(DataError, match=r"the scores of 3 of 3 files .* do not differ.*: 0.wav, 1"):
        cohort_statistics(names(x), x, cohort, size)
    x[1] = 0
    cohort = rng.standard_normal((9, 50)).astype(dtype)
    with pytest.raises(DataError, match=r"of 1 of 3 files .*: 1.wav; does the model"):
        cohort_statistics(names(x), x, cohort, size)


def test_small_differences_are_no_rounding() -> None:
    """An untrained encoder's cosines are all near 1."""
    rng = np.random.default_rng(0)
    x = (1 + 1e-2 * rng.standard_normal((20, 64))).astype(np.float32) / 8
    found = cohort_statistics(names(x), x[:3], x[3:])
    expected = (x[:3].astype(np.float64) @ x[3:].T.astype(np.float64)).std(axis=1, ddof=1)
    np.testing.assert_allclose(found.std, expected, rtol=1e-3)


# ---------------------------------------------------------------------------------------- cohort


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Five rows, four files (one under two labels), three labels."""
    for name in "abcd":
        (tmp_path / f"{name}.wav").touch()
    rows = ["d.wav,Z", "b.wav,X", "a.wav,X", "c.wav,Y", "b.wav,Y"]
    (tmp_path / "train.csv").write_text("\n".join(["File,Speaker", *rows]))
    return tmp_path


def test_a_cohort_by_utterance_is_each_file_once(few: Path) -> None:
    cohort = Cohort(read_manifest("train.csv", few))
    assert cohort.files == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert (cohort.size, cohort.plural) == (4, "utterances")
    vectors = np.arange(8.0).reshape(4, 2)
    assert cohort.embeddings(vectors) is vectors


def test_a_cohort_by_label_is_unit_length_means(few: Path) -> None:
    cohort = Cohort(read_manifest("train.csv", few), "label")
    assert (cohort.size, cohort.plural) == (3, "labels")
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 2.0], [0.0, -5.0]])
    means = [[0, -5], [0.5, 1], [1.5, 2]]  # Z, X, Y in order of first appearance
    expected = [[x / np.hypot(x, y), y / np.hypot(x, y)] for x, y in means]
    np.testing.assert_allclose(cohort.embeddings(vectors), expected, rtol=1e-12)
    assert cohort.embeddings(vectors.astype(np.float32)).dtype == np.float32


def test_missing_cohort_files_are_counted(few: Path) -> None:
    for name in "bd":
        (few / f"{name}.wav").unlink()
    with pytest.raises(DataError) as error:
        Cohort(read_manifest("train.csv", few))
    assert str(error.value).startswith(f"{few}/train.csv: 3 of 5 files not found")
    assert "line 2: d.wav, line 3: b.wav, line 6: b.wav" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ("a.wav,X\na.wav,Y\n", "utterance", "a cohort needs two utterances or more, and there is"),
        ("a.wav,X\nb.wav,X\n", "label", "a cohort needs two labels or more, and there is 1"),
    ],
)
def test_a_cohort_of_one_is_refused(few: Path, rows: str, kind: Any, message: str) -> None:
    (few / "train.csv").write_text("File,Speaker\n" + rows)
    with pytest.raises(DataError, match=message):
        Cohort(read_manifest("train.csv", few), kind)


# ------------------------------------------------------------------------------- in an experiment


@pytest.fixture
def cohorts(monkeypatch: pytest.MonkeyPatch) -> list[Cohort]:
    """Those that are made."""
    made: list[Cohort] = []

    def watched(*arguments: Any) -> Cohort:
        made.append(Cohort(*arguments))
        return made[-1]

    monkeypatch.setattr("sslsv.evaluations.cosine.Cohort", watched)
    return made


def test_a_run_is_validated_and_tested_with_the_rows_it_is_trained_on(
    config_file: Path, corpus: Path, cohorts: list[Cohort]
) -> None:
    sampler = "dataset.sampler={nb_samples_per_spk: 3, nb_speakers: 4}"
    task = "type: sv_cosine, num_frames: 1, frame_length: 8000"
    overrides = [
        sampler,
        f"evaluation.validation=[{{{task}, score_norm: s-norm, trials: [split], "
        "split: {speakers: 3, trials: 24}}]",
        f"evaluation.test=[{{{task}, score_norm: as-norm, score_norm_cohort_size: 5, "
        "score_norm_cohort: utterance, trials: [trials]}]",
        "trainer.epochs=1",
        "trainer.tracked_metric=val/sv_cosine_s-norm/split/eer",
    ]
    config = load_config(config_file, overrides)
    experiment.train(config)

    folder = config_file.parent
    (epoch,) = read_json(folder / "training.json").values()
    kinds = [
        f"val/sv_cosine{norm}/split/{m}" for norm in ("", "_s-norm") for m in ("eer", "mindcf")
    ]
    assert [name for name in epoch if name.startswith("val/")] == kinds
    assert (folder / "checkpoints/model_best.pt").exists()

    left, held_out = hold_out(
        read_manifest("train.csv", corpus), SplitConfig(speakers=3, trials=24), config.seed
    )
    used = [left.file(i) for i in range(len(left)) if left.labels[i] < 4]
    used = sorted(file for file in used if not file.endswith("3.wav"))  # three of each
    assert len(used) == 12
    assert cohorts[0].files == used
    assert not set(used) & set(held_out.files)

    results = experiment.evaluate(config)
    assert cohorts[1].files == used
    systems = ["sv_cosine", "sv_cosine_as-norm"]
    assert list(results["trained"]) == [
        f"{s}/trials/{m}" for s in systems for m in ("eer", "mindcf")
    ]
    written = read_json(folder / "evaluation.json")
    raw, normalised = (read_scores(folder / f"scores/trained_{s}_trials.txt") for s in systems)
    assert (
        results["trained"].items()
        <= {k.removeprefix("test/"): v for k, v in written.items()}.items()
    )

    lines = (folder / "scores/trained_sv_cosine_as-norm_cohort.csv").read_text().splitlines()
    assert lines[0] == "File,cohort_mean,cohort_std"
    table = {row.split(",")[0]: [float(x) for x in row.split(",")[1:]] for row in lines[1:]}
    assert list(table) == sorted(raw[0].files)
    usual = np.array([table[file] for file in raw[0].files])
    z, t = ((raw[1] - usual[i, 0]) / usual[i, 1] for i in (raw[0].enrol, raw[0].test))
    np.testing.assert_allclose(normalised[1], (z + t) / 2, rtol=1e-9)


def test_a_missing_training_list_is_told_before_a_model_is_loaded(
    config_file: Path, corpus: Path
) -> None:
    data = ["dataset.train=nowhere.csv", "evaluation.test.0.score_norm=z-norm"]
    with pytest.raises(DataError, match=re.escape(f"{corpus}/nowhere.csv: training list not")):
        experiment.evaluate(load_config(config_file, data))


def test_a_configuration_in_a_checkpoint_keeps_the_settings(config_file: Path) -> None:
    overrides = [
        "evaluation.test.0.score_norm=as-norm",
        "evaluation.test.0.score_norm_cohort=label",
    ]
    config = load_config(config_file, overrides)
    assert from_dict(experiment.to_dict(config)) == config


def test_too_small_a_cohort_is_told_before_a_model_is_loaded(config_file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        experiment.evaluate(load_config(config_file, ["evaluation.test.0.score_norm=as-norm"]))
    assert str(error.value).startswith(
        "score_norm_cohort_size: 300 is more than the cohort's 32 utterances in "
    )
