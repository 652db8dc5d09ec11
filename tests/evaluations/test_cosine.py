"""Speaker verification by cosine: scores by definition, metrics with known answers, refusals."""

import re
from collections.abc import Callable, Sequence
from math import acos, cos, inf, log2, nan, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from sslsv.config import load_config
from sslsv.datasets.manifest import read_manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import cosine, metrics, verification
from sslsv.evaluations.base import Embed, Result
from sslsv.evaluations.cosine import SVCosine, SVCosineConfig
from sslsv.evaluations.embeddings import Extraction
from sslsv.evaluations.split import SplitConfig, hold_out

ALL_METRICS = ["eer", "mindcf", "actdcf", "cllr", "avgrprec"]
CPU = torch.device("cpu")


def make_task(base_path: Path, train: str = "none.csv", **fields: object) -> SVCosine:
    fields = {"trials": ["trials"], "num_frames": 1, "frame_length": None} | fields
    config = SVCosineConfig(type="sv_cosine", **fields)  # type: ignore[arg-type]
    return SVCosine(config, DatasetConfig(base_path=base_path, train=train, num_workers=0))


def run(base_path: Path, embed: Embed, **fields: object) -> Result:
    return make_task(base_path, **fields).run(embed, CPU)


def wave_of(path: Path) -> np.ndarray:
    return sf.read(path, dtype="float32")[0]


def embed_by_file(vectors: dict[Path, list[float]]) -> Embed:
    """An encoder that knows the files by heart."""
    known = {wave_of(path).tobytes(): vector for path, vector in vectors.items()}

    def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        lengths = lengths or [waves.shape[1]] * len(waves)
        rows = zip(waves.numpy(), lengths, strict=True)
        return torch.tensor([known[wave[:n].tobytes()] for wave, n in rows])

    return embed


# ---------------------------------------------------------------------------------------- scores


def test_score_is_the_mean_over_all_pairs_of_frames(corpus: Path) -> None:
    frames, length = 4, 5000
    mixing = np.random.default_rng(0).standard_normal((length, 6)) / 70

    def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return waves @ torch.from_numpy(mixing).float()

    found = run(corpus, embed, num_frames=frames, frame_length=length, batch_size=5)

    def unit_vectors(file: str) -> list[np.ndarray]:
        wave = sf.read(corpus / file)[0]
        starts = [(len(wave) - length) * k // (frames - 1) for k in range(frames)]
        vectors = [wave[start : start + length] @ mixing for start in starts]
        return [vector / np.sqrt(vector @ vector) for vector in vectors]

    vectors: dict[str, list[np.ndarray]] = {}
    expected = []
    for line in (corpus / "trials").read_text().splitlines():
        enrol, test = (vectors.setdefault(file, unit_vectors(file)) for file in line.split()[1:])
        expected.append(sum(float(a @ b) for a in enrol for b in test) / frames**2)
    assert len(expected) > 100
    np.testing.assert_allclose(found.scores["trials"].scores, expected, atol=1e-5)


def test_long_lists_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 4)).astype(np.float32)
    enrol, test = rng.integers(9, size=(2, 50))
    monkeypatch.setattr(cosine, "_CHUNK", 7)
    expected = [float(np.sum(vectors[a] * vectors[b])) for a, b in zip(enrol, test, strict=True)]
    found = cosine.score(vectors, enrol, test)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------------------ known answers


def speaker_codes(corpus: Path) -> Embed:
    """One-hot in the speaker."""
    paths = sorted(corpus.glob("wav/*/*/*.wav"))
    speakers = sorted({path.parts[-3] for path in paths})
    return embed_by_file(
        {path: [5.0 * (path.parts[-3] == speaker) for speaker in speakers] for path in paths}
    )


def test_speaker_codes_make_no_error(corpus: Path) -> None:
    found = run(corpus, speaker_codes(corpus), metrics=["eer", "mindcf", "avgrprec"])
    assert found.metrics == {
        "sv_cosine/trials/eer": 0,
        "sv_cosine/trials/mindcf": 0,
        "sv_cosine/trials/avgrprec": 1,
    }
    scored = found.scores["trials"]
    np.testing.assert_allclose(scored.scores, scored.trials.labels, atol=1e-6)


def test_one_embedding_for_everything_knows_nothing(corpus: Path) -> None:
    found = run(corpus, lambda waves, lengths=None: torch.ones(len(waves), 3))
    assert found.metrics == {"sv_cosine/trials/eer": 50, "sv_cosine/trials/mindcf": 1}


@pytest.fixture
def designed(tmp_path: Path) -> tuple[Path, Embed]:
    """Trials of one enrolment whose scores are 1, .9, .8, .2 (targets) and .5, 0 (others)."""
    scores = {"t1": 1.0, "t2": 0.9, "t3": 0.8, "t4": 0.2, "n1": 0.5, "n2": 0.0}
    vectors = {}
    lines = []
    for i, (name, score) in enumerate({"enrol": 1.0, **scores}.items()):
        path = tmp_path / f"{name}.wav"
        sf.write(path, np.full(2000, 0.01 * (i + 1)), 16000)
        angle = acos(score) if score else pi / 2
        vectors[path] = [cos(angle), sin(angle)] if score else [0.0, 1.0]
        lines.append(f"{int(name[0] == 't')} enrol.wav {name}.wav\n")
    (tmp_path / "trials").write_text("".join(lines[1:]))
    return tmp_path, embed_by_file(vectors)


def test_all_metrics_of_designed_scores(designed: tuple[Path, Embed]) -> None:
    found = run(*designed, metrics=ALL_METRICS)
    scores = found.scores["trials"].scores
    np.testing.assert_allclose(scores, [1, 0.9, 0.8, 0.2, 0.5, 0], atol=1e-6)
    misses = [log2(1 + np.exp(-s)) for s in (1, 0.9, 0.8, 0.2)]
    false_accepts = [log2(1 + np.exp(s)) for s in (0.5, 0)]
    assert found.metrics == pytest.approx(
        {
            "sv_cosine/trials/eer": 25.0,  # a quarter is missed where FPR falls from .5 to 0
            "sv_cosine/trials/mindcf": 0.25,  # above .5: one target of four missed
            "sv_cosine/trials/actdcf": 1.0,  # no cosine reaches log 99: nothing accepted
            "sv_cosine/trials/cllr": (sum(misses) / 4 + sum(false_accepts) / 2) / 2,
            "sv_cosine/trials/avgrprec": 0.75,  # three targets among the four best
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),  # the cheaper of FNR 1/4, FPR 0 and FNR 0, FPR 1/2
    [
        ({}, 0.25),
        ({"mindcf_p_target": 0.9}, 0.5),
        ({"mindcf_p_target": 0.5}, 0.25),
        ({"mindcf_c_miss": 891.0}, 0.5),  # as a prior of 0.9
        ({"mindcf_p_target": 0.5, "mindcf_c_fa": 1 / 9}, 0.5),
    ],
)
def test_prior_and_costs_reach_the_metric(
    designed: tuple[Path, Embed], fields: dict[str, float], expected: float
) -> None:
    found = run(*designed, metrics=["mindcf"], **fields)
    assert found.metrics["sv_cosine/trials/mindcf"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "fields",
    [{"mindcf_p_target": 0.35}, {"mindcf_p_target": 0.5, "mindcf_c_fa": 0.65 / 0.35}],
)
def test_prior_and_costs_reach_the_bayes_threshold(
    designed: tuple[Path, Embed], fields: dict[str, float]
) -> None:
    """It is log(.65 / .35) = .62, above which one target of four is missed."""
    found = run(*designed, metrics=["actdcf"], **fields)
    assert found.metrics["sv_cosine/trials/actdcf"] == pytest.approx(0.25)


def test_two_lists_share_their_files(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "wav").symlink_to(corpus / "wav")
    lines = (corpus / "trials").read_text().splitlines(keepends=True)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "easy").write_text("".join(lines))
    swapped = [f"{1 - int(line[0])}{line[1:]}" for line in lines[:40]]
    (tmp_path / "wrong").write_text("".join(swapped))
    codes = speaker_codes(corpus)
    embedded = 0

    def count(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        nonlocal embedded
        embedded += len(waves)
        return codes(waves, lengths)

    names = ["lists/easy", "wrong"]
    task = make_task(tmp_path, trials=names, metrics=ALL_METRICS)
    found = task.run(count, CPU)
    assert embedded == 32
    assert list(found.metrics) == task.config.metric_names()
    assert list(found.scores) == names
    assert [len(found.scores[name].scores) for name in names] == [len(lines), 40]
    assert found.metrics["sv_cosine/lists/easy/eer"] == 0
    assert found.metrics["sv_cosine/wrong/eer"] == 100


def test_held_out_speakers_are_scored_beside_a_list(corpus: Path) -> None:
    manifest = read_manifest("train.csv", corpus)
    section = SplitConfig(speakers=3, trials=20)
    _, held_out = hold_out(manifest, section, seed=0)
    config = SVCosineConfig(
        type="sv_cosine",
        trials=["split", "trials"],
        split=section,
        num_frames=1,
        frame_length=None,
        metrics=["eer", "avgrprec"],
    )
    task = SVCosine(config, DatasetConfig(base_path=corpus, num_workers=0), held_out)
    found = task.run(speaker_codes(corpus), CPU)
    assert list(found.metrics) == config.metric_names()
    assert found.metrics == {
        "sv_cosine/split/eer": 0,
        "sv_cosine/split/avgrprec": 1,
        "sv_cosine/trials/eer": 0,
        "sv_cosine/trials/avgrprec": 1,
    }
    assert found.scores["split"].trials is held_out
    np.testing.assert_allclose(found.scores["split"].scores, held_out.labels, atol=1e-6)


def test_held_out_files_are_looked_for_as_well(corpus: Path, tmp_path: Path) -> None:
    _, held_out = hold_out(read_manifest("train.csv", corpus), SplitConfig(speakers=2, trials=4), 0)
    config = SVCosineConfig(type="sv_cosine", trials=["split"], split=SplitConfig())
    dataset = DatasetConfig(base_path=tmp_path, train="list.csv")
    number = len(held_out.files)
    message = f"{tmp_path}/list.csv: {number} of {number} files not found under"
    with pytest.raises(DataError, match=re.escape(message)):
        SVCosine(config, dataset, held_out)


# --------------------------------------------------------------------------------------- settings


def test_defaults_are_ten_frames_of_four_seconds() -> None:
    config = SVCosineConfig(type="sv_cosine")
    assert (config.num_frames, config.frame_length) == (10, 64000)
    assert config.metric_names() == [
        "sv_cosine/voxceleb1_test_O/eer",
        "sv_cosine/voxceleb1_test_O/mindcf",
    ]
    assert (config.mindcf_p_target, config.mindcf_c_miss, config.mindcf_c_fa) == (0.01, 1, 1)


def test_settings_of_task_and_dataset_reach_the_extraction(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Extraction] = []

    def extract(
        embed: Embed, files: list[str], how: Extraction, device: torch.device
    ) -> np.ndarray:
        asked.append(how)
        return np.eye(len(files))

    monkeypatch.setattr(verification, "extract", extract)
    config = SVCosineConfig(
        type="sv_cosine", trials=["trials"], num_frames=3, frame_length=4000, batch_size=7
    )
    dataset = DatasetConfig(base_path=corpus, num_workers=5, resample=True)
    SVCosine(config, dataset).run(lambda waves, lengths=None: waves, CPU)
    assert asked == [Extraction(corpus, 3, 4000, 7, 5, True)]


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trials", [], "give at least one"),
        ("metrics", [], "give at least one"),
        ("mindcf_p_target", 0.0, "must be between 0 and 1, got 0.0"),
        ("mindcf_p_target", 1.0, "must be between 0 and 1, got 1.0"),
        ("mindcf_p_target", nan, "must be between 0 and 1, got nan"),
        ("mindcf_c_miss", 0.0, "must be positive, got 0.0"),
        ("mindcf_c_fa", -1.0, "must be positive, got -1.0"),
        ("mindcf_c_fa", inf, "must be positive, got inf"),
        ("batch_size", 0, "must be at least 1, got 0"),
        ("num_frames", 0, "must be at least 1, got 0"),
        ("frame_length", 0, "must be at least 1, got 0"),
        ("score_norm_cohort_size", 1, "must be at least 2 for a standard deviation, got 1"),
        ("split", SplitConfig(), "nothing uses it; write trials: [split], or remove it"),
    ],
)
def test_config_is_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SVCosineConfig(type="sv_cosine", **{field: value})  # type: ignore[arg-type]
    assert str(error.value) == f"{field}: {message}"


def test_an_unknown_metric_is_refused_with_its_place(
    edit_config: Callable[[str, str], Path],
) -> None:
    path = edit_config("trials: [trials]", "trials: [trials]\n      metrics: [eer, minDCF]")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    text = str(error.value)
    assert "evaluation.test.0.metrics" in text
    assert "minDCF" in text
    assert "mindcf" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "trials: file not found"),
        ("1 a.wav b.wav\n", r"trials: the list has no non-target \(0\) trial"),
        ("1 a.wav b.wav\n0 a.wav c.wav\n", "trials: 1 of 3 files not found .*: c.wav; check"),
        ("1 a.wav b.wav\n0 a.wav\n", "trials line 2: expected 3 fields"),
    ],
)
def test_lists_are_checked_before_any_work(
    tmp_path: Path, content: str | None, message: str
) -> None:
    for name in ("a.wav", "b.wav"):
        sf.write(tmp_path / name, np.zeros(100), 16000)
    if content is not None:
        (tmp_path / "trials").write_text(content)
    with pytest.raises(DataError, match=message):
        make_task(tmp_path)


# ------------------------------------------------------------------------------- normalised scores


def random_codes(corpus: Path) -> tuple[dict[str, np.ndarray], Embed]:
    """Unit-length vectors of all files, and the encoder that gives them."""
    paths = sorted(corpus.glob("wav/*/*/*.wav"))
    vectors = np.random.default_rng(0).standard_normal((len(paths), 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files = [str(path.relative_to(corpus)) for path in paths]
    by_path = dict(zip(paths, vectors.tolist(), strict=True))
    return dict(zip(files, vectors, strict=True)), embed_by_file(by_path)


@pytest.mark.parametrize("norm", ["z-norm", "t-norm", "s-norm", "as-norm"])
@pytest.mark.parametrize("kind", ["utterance", "label"])
def test_normalised_scores_stand_beside_the_raw_ones(corpus: Path, norm: str, kind: str) -> None:
    vectors, embed = random_codes(corpus)
    cohort = list(vectors.values())
    if kind == "label":
        groups: dict[str, list[np.ndarray]] = {}
        for file, vector in vectors.items():
            groups.setdefault(file.split("/")[1], []).append(vector)
        means = [sum(group) for group in groups.values()]
        cohort = [x / np.sqrt(x @ x) for x in means]
    size = 6

    def against(file: str, score: float) -> float:
        scores = sorted(float(vectors[file] @ other) for other in cohort)
        scores = scores[-size:] if norm == "as-norm" else scores
        return float((score - np.mean(scores)) / np.std(scores, ddof=1))

    expected = []
    for line in (corpus / "trials").read_text().splitlines():
        enrol, test = line.split()[1:]
        raw = float(vectors[enrol] @ vectors[test])
        sides = {"z-norm": [enrol], "t-norm": [test]}.get(norm, [enrol, test])
        expected.append(np.mean([against(file, raw) for file in sides]))

    fields = {"metrics": ALL_METRICS, "score_norm": norm, "score_norm_cohort": kind}
    fields["score_norm_cohort_size"] = size
    task = make_task(corpus, train="train.csv", **fields)
    found = task.run(embed, CPU)
    assert list(found.metrics) == task.config.metric_names()
    assert list(found.scores) == ["trials", f"{norm}/trials"]
    plain = run(corpus, embed, metrics=ALL_METRICS)
    np.testing.assert_array_equal(found.scores["trials"].scores, plain.scores["trials"].scores)
    assert plain.metrics.items() <= found.metrics.items()
    assert list(plain.measures) == []

    scores = found.scores[f"{norm}/trials"].scores
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    labels = found.scores["trials"].trials.labels
    assert found.metrics[f"sv_cosine_{norm}/trials/eer"] == metrics.eer(scores, labels)
    assert found.metrics[f"sv_cosine_{norm}/trials/cllr"] == metrics.cllr(scores, labels)


def test_cohort_and_trials_are_embedded_together_once(corpus: Path, tmp_path: Path) -> None:
    """Frames are averaged, of the cohort too, and not scaled to unit length."""
    (tmp_path / "wav").symlink_to(corpus / "wav")
    files = sorted(str(path.relative_to(corpus)) for path in corpus.glob("wav/*/*/*.wav"))
    (tmp_path / "trials").write_text(f"1 {files[0]} {files[1]}\n0 {files[9]} {files[20]}\n")
    rows = "".join(f"{file},{file.split('/')[1]}\n" for file in files[:4] + files[8:10])
    (tmp_path / "some.csv").write_text("File,Speaker\n" + rows)
    embedded = 0

    def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        nonlocal embedded
        embedded += len(waves)
        return waves[:, :2000].unflatten(1, (-1, 50)).mean(dim=2)

    fields = {"score_norm": "s-norm", "num_frames": 3, "frame_length": 4000}
    task = make_task(tmp_path, train="some.csv", **fields)
    found = task.run(embed, CPU)
    assert embedded == 3 * 7  # six of the cohort, which has three of the trials' four

    def vector(file: str) -> np.ndarray:
        wave = sf.read(corpus / file)[0]
        starts = [(len(wave) - 4000) * k // 2 for k in range(3)]
        frames = [wave[s : s + 2000].reshape(40, 50).mean(axis=1) for s in starts]
        return sum(x / np.sqrt(x @ x) for x in frames) / 3

    usual = found.measures["s-norm/cohort"]
    assert usual.files == sorted({files[0], files[1], files[9], files[20]})
    cohort = [vector(file) for file in files[:4] + files[8:10]]
    for file, average, deviation in zip(usual.files, *usual.columns.values(), strict=True):
        scores = [vector(file) @ other for other in cohort]
        assert average == pytest.approx(np.mean(scores), abs=1e-5)
        assert deviation == pytest.approx(np.std(scores, ddof=1), abs=1e-5)


def test_one_embedding_for_everything_cannot_be_normalised(corpus: Path) -> None:
    task = make_task(corpus, train="train.csv", score_norm="s-norm")
    with pytest.raises(DataError, match="the scores of 32 of 32 files with the cohort do not"):
        task.run(lambda waves, lengths=None: torch.ones(len(waves), 3), CPU)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "nowhere.csv"}, "nowhere.csv: training list not found"),
        ({"train": "lost.csv"}, "lost.csv: 1 of 2 files not found .*: line 3: lost.wav"),
        (
            {"train": "train.csv", "score_norm": "as-norm"},
            "^score_norm_cohort_size: 300 is more than the cohort's 32 utterances in .*/train.csv;",
        ),
        (
            {"train": "train.csv", "score_norm": "as-norm", "score_norm_cohort": "label"}
            | {"score_norm_cohort_size": 9},
            "^score_norm_cohort_size: 9 is more than the cohort's 8 labels in .*/train.csv; lower",
        ),
    ],
)
def test_cohorts_are_checked_before_any_work(
    corpus: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    for name in ("wav", "trials", "train.csv"):
        (tmp_path / name).symlink_to(corpus / name)
    (tmp_path / "lost.csv").write_text("File,Speaker\nwav/id00/s0/00000.wav,a\nlost.wav,b\n")
    with pytest.raises((ConfigError, DataError), match=message):
        make_task(tmp_path, **{"score_norm": "z-norm"} | fields)


def test_only_as_norm_asks_for_so_many_of_the_cohort(corpus: Path) -> None:
    make_task(corpus, train="train.csv", score_norm="s-norm", score_norm_cohort_size=300)
    make_task(corpus, train="train.csv", score_norm="as-norm", score_norm_cohort_size=32)


def test_a_list_is_cut_like_that_of_a_training(corpus: Path) -> None:
    config = SVCosineConfig(type="sv_cosine", trials=["trials"], score_norm="z-norm")
    dataset = DatasetConfig(base_path=corpus, train="train.csv", max_samples=5)
    cohort = SVCosine(config, dataset).cohort
    assert cohort is not None
    assert cohort.size == 5
