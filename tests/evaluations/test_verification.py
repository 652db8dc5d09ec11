"""What verification tasks share: transforms before a cosine, lists they are fitted on, metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
from sslsv.evaluations import metrics
from sslsv.evaluations.base import Result
from sslsv.evaluations.conditions import make_condition
from sslsv.evaluations.cosine import SVCosine, SVCosineConfig
from sslsv.evaluations.stress import Stress
from sslsv.evaluations.transforms import Chain, UnitLength
from sslsv.evaluations.verification import Metric, measure

CPU = torch.device("cpu")
SPEAKERS, FILES, DIM = 9, 4, 5
NAMES = [f"s{i // FILES}/{i % FILES}.wav" for i in range(SPEAKERS * FILES)]
PLACE = {name: i for i, name in enumerate(NAMES)}
LABELS = np.repeat(np.arange(SPEAKERS), FILES)
PART = 1000  # samples of a frame; a file has two, one with each of its vectors


def draw_vectors() -> np.ndarray:
    """(files, 2, DIM) float32: the vectors of both frames of each file."""
    rng = np.random.default_rng(1)
    means = np.repeat(rng.standard_normal((SPEAKERS, 1, DIM)), FILES, axis=0)
    noise = rng.standard_normal((len(means), 2, DIM)) * [1.5, 1, 0.8, 0.5, 0.3]
    return (2 * np.eye(DIM)[0] + means + noise).astype(np.float32)


VECTORS = draw_vectors()
FRAMES = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS, axis=2, keepdims=True)
X = FRAMES.mean(axis=1)  # (files, DIM), of less than unit length


def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """The vector of a frame, which its first sample tells."""
    code = (waves[:, 0] * 327.68).round().long() - 1
    return torch.from_numpy(VECTORS).flatten(0, 1)[code]


class Counting:
    """`embed`, and how many frames it was given."""

    frames = 0

    def __call__(self, waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.frames += len(waves)
        return embed(waves, lengths)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of `NAMES`, of which six speakers are listed to fit and all are in trials."""
    folder = tmp_path_factory.mktemp("verification")
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        wave = np.repeat([2 * i + 1, 2 * i + 2], PART) / 327.68
        sf.write(folder / name, wave, 16000)
    rows = [f"{name},{name[:2]}\n" for name in NAMES[: 6 * FILES]]
    (folder / "train.csv").write_text("File,Speaker\n" + "".join(rows))
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :: 3]]
    lines = [f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs]
    (folder / "trials").write_text("".join(lines))
    return folder


def make_config(**fields: Any) -> SVCosineConfig:
    fields = {"trials": ["trials"], "num_frames": 2, "frame_length": PART} | fields
    return SVCosineConfig(type="sv_cosine", **fields)


def make_task(base: Path, train: str = "train.csv", **fields: Any) -> SVCosine:
    dataset = DatasetConfig(base_path=base, train=train, num_workers=0)
    return SVCosine(make_config(**fields), dataset)


def run(base: Path, **fields: Any) -> Result:
    return make_task(base, **fields).run(embed, CPU)


def places(base: Path) -> np.ndarray:
    """(2, T): both files of each trial."""
    lines = (base / "trials").read_text().splitlines()
    return np.array([[PLACE[name] for name in line.split()[1:]] for line in lines]).T


# -------------------------------------------------------------------- transforms before the cosine

FITTED = slice(0, 6 * FILES)


def within(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Covariance about the means of speakers, over N - S, file by file."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for row, label in zip(x, labels, strict=True):
        gap = row - x[labels == label].mean(axis=0)
        total += np.outer(gap, gap)
    return total / (len(x) - len(set(labels.tolist())))


def products(names: tuple[str, ...], x: np.ndarray, labels: np.ndarray) -> Callable[..., float]:
    """Dot product after the transforms, by the matrix that they amount to."""
    mean, identity = x.mean(axis=0), np.eye(x.shape[1])
    total = np.linalg.inv((x - mean).T @ (x - mean) / len(x))
    matrices = {
        (): (0, identity),
        ("length",): (0, identity),
        ("mean",): (mean, identity),
        ("mean", "length"): (mean, identity),
        ("whitening",): (mean, total),
        ("zca", "length"): (mean, total),
        ("wccn",): (0, np.linalg.inv(within(x, labels))),
        ("lda",): (mean, np.linalg.inv(within(x, labels))),  # all directions
    }
    center, matrix = matrices[names]
    return lambda a, b: float((a - center) @ matrix @ (b - center))


CHAINS = [("mean",), ("mean", "length"), ("whitening",), ("zca", "length"), ("wccn",), ("lda",)]


@pytest.mark.parametrize("names", [*CHAINS, ("length",)], ids="+".join)
def test_scores_are_cosines_of_transformed_mean_embeddings(
    base: Path, names: tuple[str, ...]
) -> None:
    product = products(names, X[FITTED], LABELS[FITTED])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return product(a, b) / np.sqrt(product(a, a) * product(b, b))

    found = run(base, transforms=list(names))
    expected = [cosine(X[a], X[b]) for a, b in places(base).T]
    np.testing.assert_allclose(found.scores["trials"].scores, expected, atol=2e-5)
    mapped = found.backends["transforms"]
    assert isinstance(mapped, Chain)
    assert isinstance(mapped.steps[-1], UnitLength)
    np.testing.assert_allclose(np.linalg.norm(mapped.apply(X), axis=1), 1)
    labels = found.scores["trials"].trials.labels
    eer = metrics.eer(found.scores["trials"].scores, labels)
    assert found.metrics["sv_cosine/trials/eer"] == eer


@pytest.mark.parametrize("kind", ["utterance", "label"])
@pytest.mark.parametrize("names", [(), *CHAINS], ids="+".join)
def test_the_cohort_is_transformed_likewise(base: Path, names: tuple[str, ...], kind: str) -> None:
    product = products(names, X[FITTED], LABELS[FITTED])
    cohort = X[FITTED]
    if kind == "label":
        means = [cohort[LABELS[FITTED] == label].mean(axis=0) for label in range(6)]
        cohort = np.stack([x / np.linalg.norm(x) for x in means])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        lengths = product(a, a) * product(b, b) if names else 1  # frames are averaged as they are
        return product(a, b) / np.sqrt(lengths)

    def usual(x: np.ndarray) -> tuple[float, float]:
        scores = sorted(cosine(x, other) for other in cohort)[-4:]
        return float(np.mean(scores)), float(np.std(scores, ddof=1))

    fields = {"score_norm": "as-norm", "score_norm_cohort_size": 4, "score_norm_cohort": kind}
    found = run(base, transforms=list(names), **fields)
    expected = []
    for a, b in places(base).T:
        raw = cosine(X[a], X[b])
        z, t = ((raw - mean) / std for mean, std in (usual(X[a]), usual(X[b])))
        expected.append((z + t) / 2)
    scores = found.scores["as-norm/trials"].scores
    np.testing.assert_allclose(scores, expected, rtol=2e-3, atol=2e-3)
    assert np.ptp(scores) > 3


def test_without_transforms_nothing_changes(base: Path) -> None:
    counting = Counting()
    task = make_task(base, train="none.csv")
    found = task.run(counting, CPU)
    assert counting.frames == 2 * len(NAMES)
    assert found.backends == {}
    assert not task.config.needs_train
    a, b = places(base)
    expected = np.einsum("td,td->t", X[a], X[b])
    np.testing.assert_allclose(found.scores["trials"].scores, expected, atol=1e-6)


def test_length_alone_needs_no_list(base: Path) -> None:
    counting = Counting()
    task = make_task(base, train="none.csv", transforms=["length"])
    task.run(counting, CPU)
    assert counting.frames == 2 * len(NAMES)
    assert not task.config.needs_train
    assert make_config(transforms=["length", "mean"]).needs_train
    assert not make_config(transforms=["mean"], fit_on="some.csv").needs_train


@pytest.mark.parametrize("both", [False, True])
def test_under_a_condition_the_transforms_stay_those_of_the_run(base: Path, both: bool) -> None:
    """The encoder is another one, as it were by the condition: its mean is not taken again."""
    task = make_task(base, transforms=["mean"], num_frames=1, frame_length=None)
    task.run(embed, CPU)
    heard = 0

    def other(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        nonlocal heard
        heard += len(waves)
        return 3 * embed(waves, lengths) + 1

    condition = make_condition("duration-0.1s", base)  # starts in the first frame of a file
    found = task.run_under(Stress(condition, both), other, CPU)
    a, b = places(base)
    assert heard == (len({*a, *b}) if both else len({*a}) + len({*b}))  # and no list to fit on
    assert found.backends == {}
    shifted = 3 * VECTORS[:, 0] + 1
    shifted = shifted / np.linalg.norm(shifted, axis=1, keepdims=True)
    shifted = shifted - FRAMES[FITTED, 0].mean(axis=0)
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    expected = np.einsum("td,td->t", shifted[a], shifted[b])
    np.testing.assert_allclose(found.scores["trials"].scores, expected, atol=1e-5)


# ------------------------------------------------------------------------------- the list to fit on


def fitted_mean(result: Result) -> np.ndarray:
    chain = result.backends["transforms"]
    assert isinstance(chain, Chain)
    return chain.steps[0].mean  # type: ignore[attr-defined]


def write_list(path: Path, names: Sequence[str], header: str = "File,Speaker") -> str:
    rows = [f"{name},{name[:2]}\n" for name in names]
    path.write_text(f"{header}\n" + "".join(rows))
    return str(path)


def test_rows_of_a_list_weigh_alike_and_files_are_embedded_once(base: Path, tmp_path: Path) -> None:
    names = [NAMES[9], NAMES[3], NAMES[3], NAMES[3], NAMES[20]]
    fit_on = write_list(tmp_path / "some.csv", names)
    counting = Counting()
    task = make_task(base, train="none.csv", transforms=["mean"], fit_on=fit_on)
    found = task.run(counting, CPU)
    assert counting.frames == 2 * (3 + len(NAMES))
    expected = X[[PLACE[name] for name in names]].mean(axis=0)
    np.testing.assert_allclose(fitted_mean(found), expected, atol=1e-6)


def test_speakers_are_those_of_their_rows_in_any_order(base: Path, tmp_path: Path) -> None:
    names = list(np.random.default_rng(0).permutation(NAMES[FITTED]))
    fit_on = write_list(tmp_path / "mixed.csv", names)
    mixed = run(base, transforms=["lda"], fit_on=fit_on).scores["trials"].scores
    plain = run(base, transforms=["lda"]).scores["trials"].scores
    np.testing.assert_allclose(mixed, plain, atol=1e-5)


def test_the_label_column_is_that_of_the_dataset(base: Path, tmp_path: Path) -> None:
    fit_on = write_list(tmp_path / "some.csv", NAMES[FITTED], "File,Who")
    config = make_config(transforms=["wccn"], fit_on=fit_on)
    dataset = DatasetConfig(base_path=base, train="none.csv", num_workers=0, label_key="Who")
    found = SVCosine(config, dataset).run(embed, CPU).scores["trials"].scores
    assert np.array_equal(found, run(base, transforms=["wccn"]).scores["trials"].scores)
    with pytest.raises(DataError, match="no column 'Speaker'; its columns are File, Who"):
        make_task(base, transforms=["wccn"], fit_on=fit_on)


def test_a_training_list_is_cut_like_that_of_a_training(base: Path) -> None:
    dataset = DatasetConfig(base_path=base, train="train.csv", num_workers=0, max_samples=7)
    found = SVCosine(make_config(transforms=["mean"]), dataset).run(embed, CPU)
    np.testing.assert_allclose(fitted_mean(found), X[:7].mean(axis=0), atol=1e-6)


def test_the_rows_that_a_run_trains_on_are_fitted(base: Path) -> None:
    manifest = read_manifest("train.csv", base)
    kept = manifest.select(manifest.labels % 2 == 1)
    dataset = DatasetConfig(base_path=base, train="none.csv", num_workers=0)
    found = SVCosine(make_config(transforms=["mean"]), dataset, train=kept).run(embed, CPU)
    chosen = LABELS[FITTED] % 2 == 1
    np.testing.assert_allclose(fitted_mean(found), X[FITTED][chosen].mean(axis=0), atol=1e-6)


# ---------------------------------------------------------------------------- metrics and pictures


def test_more_priors_have_a_metric_each(base: Path) -> None:
    priors = {"mindcf_p_target": 0.1, "mindcf_priors": [0.05, 0.001], "mindcf_c_miss": 4.0}
    task = make_task(base, score_norm="s-norm", metrics=["mindcf"], **priors)
    found = task.run(embed, CPU)
    assert list(found.metrics) == task.config.metric_names()
    ends = {"mindcf": 0.1, "mindcf_p0.05": 0.05, "mindcf_p0.001": 0.001}
    expected = {}
    for system, key in {"sv_cosine": "trials", "sv_cosine_s-norm": "s-norm/trials"}.items():
        scored = found.scores[key]
        assert (scored.prefix, scored.costs) == (f"{system}/trials", (0.1, 4.0, 1.0))
        assert scored.metrics == ("mindcf",)
        for name, prior in ends.items():
            value = metrics.min_dcf(scored.scores, scored.trials.labels, prior, c_miss=4.0)
            expected[f"{system}/trials/{name}"] = value
    assert found.metrics == expected
    assert len(set(expected.values())) > 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eer", metrics.eer),
        ("eer_rocch", metrics.eer_rocch),
        ("cllr", metrics.cllr),
        ("mincllr", metrics.min_cllr),
        ("mindcf", lambda s, labels: metrics.min_dcf(s, labels, 0.2, 3.0, 2.0)),
        ("actdcf", lambda s, labels: metrics.act_dcf(s, labels, 0.2, 3.0, 2.0)),
    ],
)
def test_each_metric_is_the_function_of_its_name(
    base: Path, name: Metric, expected: Callable[..., float]
) -> None:
    costs = {"mindcf_p_target": 0.2, "mindcf_c_miss": 3.0, "mindcf_c_fa": 2.0}
    found = run(base, metrics=[name], **costs)
    scored = found.scores["trials"]
    value = expected(scored.scores, scored.trials.labels)
    assert found.metrics == {f"sv_cosine/trials/{name}": value}
    assert measure(name, scored.scores, scored.trials, scored.costs) == value


def test_r_precision_is_taken_by_enrolment(base: Path) -> None:
    scored = run(base, metrics=["avgrprec"]).scores["trials"]
    expected = metrics.avg_r_prec(scored.scores, scored.trials.labels, scored.trials.enrol)
    assert measure("avgrprec", scored.scores, scored.trials, scored.costs) == expected
    assert 0 < expected < 1


def test_a_map_shows_who_is_where(base: Path) -> None:
    found = run(base, transforms=["mean"])
    drawn = found.maps["trials"]
    chain = found.backends["transforms"]
    assert isinstance(chain, Chain)
    mapped = chain.apply(X.astype(np.float32))
    rows = [int(np.abs(mapped - point).max(axis=1).argmin()) for point in drawn.embeddings]
    np.testing.assert_allclose(drawn.embeddings, mapped[rows], atol=1e-6)
    assert sorted(rows) == list(range(len(NAMES)))
    group = dict(zip(rows, drawn.groups.tolist(), strict=True))
    assert set(zip(group.values(), LABELS[list(group)].tolist(), strict=True)) == {
        (speaker, speaker) for speaker in range(SPEAKERS)
    }


@pytest.mark.parametrize("known", [True, False])
def test_a_map_shows_the_speakers_that_are_named(base: Path, tmp_path: Path, known: bool) -> None:
    """Where targets leave a speaker in two halves, which are two speakers if none is named."""
    halves = zip(NAMES[::2], NAMES[1::2], strict=True)
    targets = [f"1 {a} {b}\n" for a, b in halves]
    (tmp_path / "halves").write_text("".join([*targets, f"0 {NAMES[0]} {NAMES[-1]}\n"]))
    task = make_task(base, trials=[str(tmp_path / "halves")])
    if known:
        task.speakers = dict(zip(NAMES, map(str, LABELS), strict=True))
    (drawn,) = task.run(embed, CPU).maps.values()
    rows = [int(np.abs(X - point).max(axis=1).argmin()) for point in drawn.embeddings]
    expected = LABELS[rows] if known else np.array(rows) // 2
    assert sorted(rows) == list(range(len(NAMES)))
    np.testing.assert_array_equal(drawn.groups, expected)


def test_a_map_has_twenty_speakers_of_fifty_files(tmp_path: Path) -> None:
    """Those with the most files: of 21 with two files and one with 53, 19 and the latter."""
    speakers = {f"s{i}": [f"s{i}/{n}.wav" for n in range(53 if i == 4 else 2)] for i in range(22)}
    lines = [f"1 {own[0]} {file}\n" for own in speakers.values() for file in own[1:]]
    (tmp_path / "trials").write_text("".join([*lines, "0 s0/0.wav s1/0.wav\n"]))
    files = [file for own in speakers.values() for file in own]
    for i, file in enumerate(files):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        sf.write(tmp_path / file, np.full(1700, (i + 1) / 327.68), 16000)

    def places_of(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        code = (waves[:, 0] * 327.68).round()
        return torch.stack([torch.cos(code / 100), torch.sin(code / 100)], dim=1)

    found = run_with(tmp_path, places_of).maps["trials"]
    sizes = np.bincount(found.groups)
    assert sizes.tolist() == [50] + 19 * [2]
    names = {file: i + 1 for i, file in enumerate(files)}
    codes = np.arctan2(found.embeddings[:, 1], found.embeddings[:, 0]) * 100
    first = [names[file] for file in speakers["s4"][:50]]
    np.testing.assert_allclose(sorted(codes[:50]), sorted(first), atol=1e-2)


def run_with(base: Path, embed: Callable[..., Tensor]) -> Result:
    return make_task(base, train="none.csv", num_frames=1, frame_length=None).run(embed, CPU)


def test_lists_of_one_name_in_two_folders_are_told_apart(base: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        lines = (base / "trials").read_text().splitlines(keepends=True)
        (tmp_path / name / "trials").write_text("".join(lines[i::2]))
    names = [str(tmp_path / name / "trials") for name in ("a", "b")]
    task = make_task(base, trials=names)
    assert [trials.name for trials in task.lists.values()] == names


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"whitening_dim": 0, "transforms": ["whitening"]}, "whitening_dim: must be at least 1, "),
        ({"mindcf_priors": [0.5, 0.5000000001]}, "metrics, mindcf_priors: give none twice"),
        ({"lda_dim": -1, "transforms": ["lda"]}, "lda_dim: must be at least 1, got -1"),
        (
            {"whitening_dim": 4, "transforms": ["zca", "lda"]},
            "whitening_dim: nothing uses it; add whitening to transforms",
        ),
        (
            {"lda_dim": 4, "transforms": ["whitening"]},
            "lda_dim: nothing uses it; add lda to transforms",
        ),
        ({"fit_on": "train.csv"}, "fit_on: nothing uses it; add whitening or lda to transforms"),
        (
            {"fit_on": "train.csv", "transforms": ["length"]},
            "fit_on: nothing uses it; add whitening or lda to transforms",
        ),
        ({"mindcf_priors": [0.1, 0.0]}, "mindcf_priors: must be between 0 and 1, got 0.0"),
        ({"mindcf_p_target": 2.0}, "mindcf_p_target: must be between 0 and 1, got 2.0"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        make_config(**fields)


def test_an_unknown_transform_is_refused_with_its_place(
    edit_config: Callable[[str, str], Path],
) -> None:
    path = edit_config("trials: [trials]", "trials: [trials]\n      transforms: [mean, plda]")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    line = len(path.read_text().splitlines())
    text = str(error.value)
    assert text.startswith(f"{path} line {line}: evaluation.test.0.transforms.1: ")
    assert "plda" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("transforms", "rows", "message"),
    [
        (["lda"], [f"{name},x" for name in NAMES[:5]], "all rows are of one speaker by its labels"),
        (["wccn"], [f"{name},{name}" for name in NAMES[:5]], "no speaker has two rows by its"),
        (["mean"], [f"{NAMES[0]},x", "gone.wav,x"], "1 of 2 files not found below"),
    ],
)
@pytest.mark.parametrize("field", ["train", "fit_on"])
def test_lists_that_cannot_be_fitted_are_refused_at_once(
    base: Path, tmp_path: Path, transforms: list[str], rows: list[str], message: str, field: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("File,Speaker\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        make_task(base, transforms=transforms, **{field: str(path)})


@pytest.mark.parametrize("transforms", [["mean"], ["whitening"], ["zca", "length"]])
def test_labels_do_not_matter_where_no_transform_knows_speakers(
    base: Path, tmp_path: Path, transforms: list[str]
) -> None:
    (tmp_path / "rows.csv").write_text("File,Speaker\n" + "".join(f"{n},x\n" for n in NAMES))
    counting = Counting()
    task = make_task(base, transforms=transforms, fit_on=str(tmp_path / "rows.csv"))
    task.run(counting, CPU)
    assert counting.frames == 2 * 2 * len(NAMES)


def test_a_missing_list_is_told_at_once(base: Path) -> None:
    with pytest.raises(DataError) as error:
        make_task(base, transforms=["mean"], fit_on="none.csv")
    assert str(error.value) == (
        f"{base}/none.csv: list not found; fit_on is looked up below dataset.base_path"
    )
    with pytest.raises(DataError, match=r"none\.csv: training list not found"):
        make_task(base, train="none.csv", transforms=["mean"])


def test_lda_to_as_many_directions_as_speakers_is_refused_at_once(
    base: Path, tmp_path: Path
) -> None:
    fit_on = write_list(tmp_path / "short.csv", NAMES[:5])
    make_task(base, fit_on=fit_on, transforms=["lda"], lda_dim=1)
    with pytest.raises(ConfigError, match="lda_dim: 2 directions need more speakers than the 2 of"):
        make_task(base, fit_on=fit_on, transforms=["lda"], lda_dim=2)


@pytest.mark.parametrize(
    ("fields", "dim", "embedded"),
    [
        ({"transforms": ["lda"]}, DIM, 1),
        ({"transforms": ["mean", "wccn", "whitening"], "whitening_dim": 2}, DIM, 1),
        ({"transforms": ["whitening", "wccn"], "whitening_dim": 4}, 4, 0),
    ],
)
def test_a_list_too_short_for_the_dimension_is_refused_after_one_file(
    base: Path, tmp_path: Path, fields: dict[str, Any], dim: int, embedded: int
) -> None:
    fit_on = write_list(tmp_path / "short.csv", NAMES[:5])
    counting = Counting()
    with pytest.raises(DataError) as error:
        make_task(base, fit_on=fit_on, **fields).run(counting, CPU)
    assert str(error.value) == (
        f"{fit_on}: 5 rows of 2 speakers determine 3 of {dim} dimensions; use a longer list, or "
        "put whitening with whitening_dim of 3 or less first in transforms"
    )
    assert counting.frames == 2 * embedded
