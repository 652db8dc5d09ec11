"""Verification by PLDA, from files to scores: dense Gaussians, fits by hand, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.stats import multivariate_normal
from torch import Tensor

from sslsv.config import load_config
from sslsv.datasets.manifest import read_manifest
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import metrics
from sslsv.evaluations.base import Result
from sslsv.evaluations.conditions import make_condition
from sslsv.evaluations.plda import PLDA, fit_subspace, fit_two_covariance
from sslsv.evaluations.stress import Stress
from sslsv.evaluations.sv_plda import SVPLDA, SVPLDAConfig
from sslsv.evaluations.transforms import (
    LDA,
    WCCN,
    Chain,
    LengthNorm,
    MeanSubtraction,
    Whitening,
    fit_chain,
)

CPU = torch.device("cpu")
SPEAKERS, FILES, DIM = 14, 5, 6  # the last four speakers are those of the trials
TRAINED = 10
FORMS = ["subspace", "two-covariance"]


def draw_vectors() -> np.ndarray:
    """(SPEAKERS * FILES, DIM) float32, of one speaker after another."""
    rng = np.random.default_rng(5)
    speakers = np.repeat(rng.standard_normal((SPEAKERS, DIM)), FILES, axis=0)
    noise = rng.standard_normal((SPEAKERS * FILES, DIM)) * [0.2, 1.5, 0.5, 0.4, 0.3, 0.2]
    return (3 * np.eye(DIM)[0] + speakers + noise).astype(np.float32)


VECTORS = torch.from_numpy(draw_vectors())
UNIT = F.normalize(VECTORS, dim=-1).numpy()  # what extraction makes of them
NAMES = [f"s{i // FILES:02d}/{i % FILES}.wav" for i in range(len(VECTORS))]
PLACE = {name: i for i, name in enumerate(NAMES)}


def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """The vector of a file, which its first sample tells."""
    return VECTORS[(waves[:, 0] * 327.68).round().long() - 1]


class Counting:
    """`embed`, and how many files it was given."""

    files = 0

    def __call__(self, waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.files += len(waves)
        return embed(waves, lengths)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of `NAMES`, a list to fit, one of another domain, trials of files and of models."""
    folder = tmp_path_factory.mktemp("plda")
    tested = NAMES[TRAINED * FILES :]
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        sf.write(folder / name, np.full(1700, (i + 1) / 327.68), 16000)
    rows = [f"{name},{name[:3]}\n" for name in NAMES[: TRAINED * FILES]]
    (folder / "train.csv").write_text("File,Speaker\n" + "".join(rows))
    (folder / "domain.csv").write_text("File\n" + "".join(f"{name}\n" for name in tested))
    pairs = [(a, b) for i, a in enumerate(tested) for b in tested[i + 1 :]]
    lines = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in pairs]
    (folder / "trials").write_text("".join(lines))
    models = {name[:3]: [name] for name in tested if name.endswith("0.wav")}
    models["s11"].append("s11/1.wav")
    models["s12"] += ["s12/1.wav", "s12/2.wav"]
    lines = [f"{id_} {' '.join(files)}\n" for id_, files in models.items()]
    (folder / "pairs.enrol").write_text("".join(lines))
    lines = [f"{int(id_ == b[:3])} {id_} {b}\n" for id_ in models for b in tested if b[4] > "2"]
    (folder / "pairs").write_text("".join(lines))
    return folder


def make_config(**fields: Any) -> SVPLDAConfig:
    fields = {"trials": ["trials"], "num_frames": 1, "frame_length": None} | fields
    return SVPLDAConfig(type="sv_plda", **fields)


def make_task(base: Path, train: str = "train.csv", **fields: Any) -> SVPLDA:
    return SVPLDA(make_config(**fields), DatasetConfig(base_path=base, train=train, num_workers=0))


def backend(result: Result) -> tuple[Chain, PLDA]:
    chain, model = result.backends["transforms"], result.backends["plda"]
    assert isinstance(chain, Chain)
    assert isinstance(model, PLDA)
    return chain, model


def fit_rows() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the list to fit, and labels, in the order of the list."""
    return UNIT[: TRAINED * FILES], np.repeat(np.arange(TRAINED), FILES)


def lines_of(base: Path, name: str = "trials") -> list[tuple[str, str]]:
    lines = (base / name).read_text().splitlines()
    return [(line.split()[1], line.split()[2]) for line in lines]


def log_density(model: PLDA, vectors: np.ndarray) -> float:
    """Of vectors (n, D) of one speaker, as one Gaussian of n D dimensions."""
    n = len(vectors)
    covariance = np.kron(np.ones((n, n)), model.between) + np.kron(np.eye(n), model.within)
    return multivariate_normal(np.tile(model.mean, n), covariance).logpdf(vectors.ravel())


def dense_ratio(model: PLDA, enrol: np.ndarray, test: np.ndarray) -> float:
    enrol, test = np.atleast_2d(enrol).astype(np.float64), np.atleast_2d(test).astype(np.float64)
    together = log_density(model, np.vstack([enrol, test]))
    return together - log_density(model, enrol) - log_density(model, test)


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("enrolment", ["mean", "book"])
def test_scores_are_ratios_of_dense_gaussians(base: Path, form: str, enrolment: str) -> None:
    found = make_task(base, form=form, rank=3, enrolment=enrolment).run(embed, CPU)
    chain, model = backend(found)
    x = chain.apply(UNIT)
    expected = [dense_ratio(model, x[PLACE[a]], x[PLACE[b]]) for a, b in lines_of(base)]
    scores = found.scores["trials"].scores
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-8)
    labels = found.scores["trials"].trials.labels
    assert found.metrics == {
        "sv_plda/trials/eer": metrics.eer(scores, labels),
        "sv_plda/trials/mindcf": metrics.min_dcf(scores, labels),
    }
    assert np.ptp(scores) > 1


def model_rows(base: Path) -> dict[str, list[int]]:
    """Places in `NAMES` of the files of each enrolment id."""
    lines = [line.split() for line in (base / "pairs.enrol").read_text().splitlines()]
    return {id_: [PLACE[file] for file in files] for id_, *files in lines}


def test_by_the_book_each_file_of_a_model_is_a_vector_of_its_own(base: Path) -> None:
    found = make_task(base, trials=["pairs"], rank=3, enrolment="book").run(embed, CPU)
    chain, model = backend(found)
    x, models = chain.apply(UNIT), model_rows(base)
    assert sorted({len(rows) for rows in models.values()}) == [1, 2, 3]
    # The mean of two or three vectors is rounded to float32.
    expected = [dense_ratio(model, x[models[a]], x[PLACE[b]]) for a, b in lines_of(base, "pairs")]
    scores = found.scores["pairs"].scores
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    single = [len(models[a]) == 1 for a, _ in lines_of(base, "pairs")]
    np.testing.assert_allclose(scores[single], np.array(expected)[single], rtol=1e-8, atol=1e-8)


def test_otherwise_a_model_is_the_mean_of_its_files_transformed(base: Path) -> None:
    found = make_task(base, trials=["pairs"], rank=3).run(embed, CPU)
    chain, model = backend(found)
    x = {id_: chain.apply(UNIT[rows].mean(axis=0)[None]) for id_, rows in model_rows(base).items()}
    y = chain.apply(UNIT)
    expected = [dense_ratio(model, x[a], y[PLACE[b]]) for a, b in lines_of(base, "pairs")]
    scores = found.scores["pairs"].scores
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-8)
    book = make_task(base, trials=["pairs"], rank=3, enrolment="book").run(embed, CPU)
    assert np.abs(book.scores["pairs"].scores - scores).max() > 0.1


def test_the_model_knows_what_varies_within_speakers_and_a_cosine_does_not(base: Path) -> None:
    """The second dimension varies most, and hardly tells speakers apart."""
    found = make_task(base, form="two-covariance").run(embed, CPU)
    labels = found.scores["trials"].trials.labels
    cosine = [float(UNIT[PLACE[a]] @ UNIT[PLACE[b]]) for a, b in lines_of(base)]
    assert found.metrics["sv_plda/trials/eer"] < 0.5 * metrics.eer(cosine, labels)


# -------------------------------------------------------------------------------------- what is fit

CHAINS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "default": ({}, [MeanSubtraction(), LengthNorm()]),
    "nothing": ({"transforms": []}, []),
    "three": (
        {"transforms": ["whitening", "lda", "length"], "whitening_dim": 5, "lda_dim": 4},
        [Whitening(dim=5), LDA(dim=4), LengthNorm()],
    ),
    "another order": (
        {"transforms": ["length", "wccn", "zca", "mean"]},
        [LengthNorm(), WCCN(), Whitening(kind="zca"), MeanSubtraction()],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chain", CHAINS)
def test_transforms_and_model_are_those_fitted_by_hand(base: Path, chain: str, form: str) -> None:
    fields, transforms = CHAINS[chain]
    found = make_task(base, form=form, rank=2, iterations=4, **fields).run(embed, CPU)
    by_hand = fit_chain(transforms, *fit_rows())
    fitted, model = backend(found)
    assert [step.kind for step in fitted.steps] == [step.kind for step in by_hand.steps]
    np.testing.assert_allclose(fitted.apply(UNIT), by_hand.apply(UNIT), rtol=1e-5, atol=1e-6)

    x, labels = by_hand.apply(fit_rows()[0]), fit_rows()[1]
    expected = (
        fit_subspace(x, labels, 2, 4) if form == "subspace" else fit_two_covariance(x, labels, 4)
    )
    np.testing.assert_allclose(model.mean, expected.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.between, expected.between, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.within, expected.within, rtol=1e-4, atol=1e-6)
    y = by_hand.apply(UNIT)
    enrol, test = np.array([[PLACE[a], PLACE[b]] for a, b in lines_of(base)]).T
    scores = found.scores["trials"].scores
    np.testing.assert_allclose(scores, expected.score(y, enrol, test), rtol=1e-3, atol=1e-4)


def test_a_rank_above_the_dimension_is_the_dimension(base: Path) -> None:
    assert make_config().rank == 100
    found = make_task(base).run(embed, CPU)
    full = make_task(base, rank=DIM).run(embed, CPU)
    assert backend(found)[1].loading.shape == (DIM, DIM)
    assert np.array_equal(found.scores["trials"].scores, full.scores["trials"].scores)
    fewer = make_task(base, transforms=["whitening"], whitening_dim=3).run(embed, CPU)
    assert backend(fewer)[1].loading.shape == (3, 3)
    lower = make_task(base, rank=2).run(embed, CPU)
    assert backend(lower)[1].loading.shape == (DIM, 2)


def test_adaptation_moves_the_model_to_the_domain(base: Path) -> None:
    plain = backend(make_task(base, rank=3).run(embed, CPU))
    found = make_task(base, rank=3, adapt_on="domain.csv", adapt_between=0.1).run(embed, CPU)
    chain, model = backend(found)
    domain = chain.apply(UNIT[TRAINED * FILES :]).astype(np.float64)
    np.testing.assert_allclose(model.mean, sum(domain) / len(domain), atol=1e-6)
    assert np.abs(model.mean - plain[1].mean).max() > 0.01
    # The transforms stay those of the list that was fitted.
    assert np.array_equal(chain.apply(UNIT), plain[0].apply(UNIT))
    expected = plain[1].adapt(domain.astype(np.float32), within=0.75, between=0.1)
    np.testing.assert_allclose(model.between, expected.between, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(model.within, expected.within, rtol=1e-5, atol=1e-8)
    assert np.trace(model.within) > 1.01 * np.trace(plain[1].within)
    x = chain.apply(UNIT)
    ratios = [dense_ratio(model, x[PLACE[a]], x[PLACE[b]]) for a, b in lines_of(base)]
    np.testing.assert_allclose(found.scores["trials"].scores, ratios, rtol=1e-8, atol=1e-8)


def test_labels_of_the_domain_are_not_used(base: Path, tmp_path: Path) -> None:
    rows = [f"{name},everybody\n" for name in NAMES[TRAINED * FILES :]]
    (tmp_path / "labelled.csv").write_text("File,Speaker\n" + "".join(rows))
    blind = make_task(base, adapt_on="domain.csv").run(embed, CPU)
    labelled = make_task(base, adapt_on=str(tmp_path / "labelled.csv")).run(embed, CPU)
    assert blind.metrics == labelled.metrics


def test_another_labelled_list_can_be_fitted(base: Path, tmp_path: Path) -> None:
    rows = [f"{name},{name[:3]}\n" for name in NAMES[: 8 * FILES]]
    (tmp_path / "some.csv").write_text("File,Speaker\n" + "".join(rows))
    task = make_task(base, train="none.csv", fit_on=str(tmp_path / "some.csv"))
    assert not task.config.needs_train
    assert make_config().needs_train
    fitted = backend(task.run(embed, CPU))[0]
    by_hand = fit_chain([MeanSubtraction()], UNIT[: 8 * FILES])
    np.testing.assert_allclose(fitted.steps[0].mean, by_hand.steps[0].mean, rtol=1e-6)


def test_the_rows_that_a_run_trains_on_are_fitted(base: Path) -> None:
    manifest = read_manifest("train.csv", base)
    kept = manifest.select(np.arange(len(manifest)) < 7 * FILES)
    dataset = DatasetConfig(base_path=base, train="none.csv", num_workers=0)
    task = SVPLDA(make_config(), dataset, train=kept)
    fitted = backend(task.run(embed, CPU))[0]
    by_hand = fit_chain([MeanSubtraction()], UNIT[: 7 * FILES])
    np.testing.assert_allclose(fitted.steps[0].mean, by_hand.steps[0].mean, rtol=1e-6)


def test_a_run_with_another_encoder_fits_anew(base: Path) -> None:
    """As after each epoch of a training."""
    turned = VECTORS.flip(1) + torch.arange(DIM)

    def other(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return turned[(waves[:, 0] * 327.68).round().long() - 1]

    task = make_task(base)
    first = task.run(embed, CPU)
    second = task.run(other, CPU)
    assert second.metrics == make_task(base).run(other, CPU).metrics
    assert np.abs(second.scores["trials"].scores - first.scores["trials"].scores).max() > 0.1


@pytest.mark.parametrize("chain", CHAINS)
def test_what_was_fitted_can_be_saved_and_scores_the_same(
    base: Path, tmp_path: Path, chain: str
) -> None:
    found = make_task(base, adapt_on="domain.csv", **CHAINS[chain][0]).run(embed, CPU)
    assert list(found.backends) == ["transforms", "plda"]
    for name, fitted in found.backends.items():
        fitted.save(tmp_path / f"{name}.npz")
    x = Chain.load(tmp_path / "transforms.npz").apply(UNIT)
    enrol, test = np.array([[PLACE[a], PLACE[b]] for a, b in lines_of(base)]).T
    scores = PLDA.load(tmp_path / "plda.npz").score(x, enrol, test)
    np.testing.assert_allclose(scores, found.scores["trials"].scores, rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------- conditions


def features(wave: np.ndarray) -> np.ndarray:
    """Changed by what a condition does."""
    steps = np.abs(np.diff(wave))
    return np.array([wave.std(), np.abs(wave).mean(), steps.mean(), np.abs(wave[:99]).mean(), 0.01])


def listen(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    lengths = lengths or [waves.shape[1]] * len(waves)
    rows = zip(waves.numpy(), lengths, strict=True)
    return torch.from_numpy(np.stack([features(wave[:n]) for wave, n in rows]))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("enrolment", ["mean", "book"])
def test_under_a_condition_the_fit_stays_that_of_the_run(
    corpus: Path, both: bool, enrolment: str
) -> None:
    task = make_task(corpus, form="two-covariance", transforms=["mean"], enrolment=enrolment)
    plain = task.run(listen, CPU)
    chain, model = backend(plain)
    condition = make_condition("telephone", corpus)
    embedded = 0

    def count(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        nonlocal embedded
        embedded += len(waves)
        return listen(waves, lengths)

    found = task.run_under(Stress(condition, both), count, CPU)
    lines = lines_of(corpus)
    heard = len({b for _, b in lines})
    assert embedded == (len({*sum(lines, ())}) if both else len({a for a, _ in lines}) + heard)
    assert found.backends == {}

    def vector(file: str, stressed: bool) -> np.ndarray:
        wave = sf.read(corpus / file, dtype="float32")[0]
        x = features(condition(wave, file) if stressed else wave).astype(np.float32)
        return chain.apply((x / np.linalg.norm(x))[None])

    expected = [dense_ratio(model, vector(a, both), vector(b, True)) for a, b in lines]
    scores = found.scores["trials"].scores
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(scores - plain.scores["trials"].scores).max() > 1
    assert np.array_equal(
        task.run(listen, CPU).scores["trials"].scores, plain.scores["trials"].scores
    )


# -------------------------------------------------------------------------------- several processes


def whole(base: Path) -> dict[str, float]:
    """Metrics of a task in which all that is fitted is shared."""
    fields = {"transforms": ["whitening", "lda", "length"], "whitening_dim": 5, "lda_dim": 4}
    fields |= {"trials": ["trials", "pairs"], "metrics": ["eer", "mindcf", "cllr"]}
    task = make_task(base, rank=3, adapt_on="domain.csv", batch_size=7, **fields)
    return task.run(embed, CPU).metrics


def refused(base: Path) -> str:
    """What a process says of a list that the main process cannot fit to."""
    try:
        make_task(base, transforms=["whitening"], whitening_dim=DIM + 1).run(embed, CPU)
    except DataError as error:
        return str(error)
    return ""


def work(rank: int, folder: str, base: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    found = {"metrics": whole(Path(base)), "refused": refused(Path(base))}
    Path(folder, str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_processes_find_what_one_does(base: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), str(base)), 2)
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0]["metrics"] == pytest.approx(whole(base), rel=1e-6)
    assert found[0]["refused"] == refused(base)
    assert f"whitening to dimension {DIM + 1} is not possible" in found[0]["refused"]


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank: must be at least 1, got 0"),
        ({"iterations": -1}, "iterations: must not be negative, got -1"),
        (
            {"adapt_within": -0.1},
            "adapt_within, adapt_between: must not be negative nor sum to more than 1, got -0.1 "
            "and 0.25",
        ),
        (
            {"adapt_within": 0.8, "adapt_between": 0.3},
            "adapt_within, adapt_between: must not be negative nor sum to more than 1, got 0.8 "
            "and 0.3",
        ),
        ({"mindcf_priors": [0.01, 1.0]}, "mindcf_priors: must be between 0 and 1, got 1.0"),
        ({"mindcf_priors": [nan]}, "mindcf_priors: must be between 0 and 1, got nan"),
        ({"mindcf_c_fa": inf}, "mindcf_c_fa: must be positive, got inf"),
        ({"whitening_dim": 4}, "whitening_dim: nothing uses it; add whitening to transforms"),
        ({"lda_dim": 4}, "lda_dim: nothing uses it; add lda to transforms"),
        ({"trials": []}, "trials: give at least one"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(**fields)
    assert str(error.value) == message


def test_shares_that_are_not_numbers_are_refused() -> None:
    for name in ("adapt_within", "adapt_between"):
        with pytest.raises(ConfigError, match="must not be negative nor sum to more than 1"):
            make_config(**{name: nan})


def test_bounds_are_allowed() -> None:
    make_config(rank=1, iterations=0, adapt_within=0.0, adapt_between=1.0, mindcf_priors=[0.5])


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("trials: [trials]", "trials: [trials]\n      form: subspaces", "evaluation.test.0.form"),
        (
            "trials: [trials]",
            "trials: [trials]\n      transforms: [mean, pca]",
            "evaluation.test.0.transforms.1",
        ),
    ],
)
def test_an_unknown_choice_is_refused_with_its_place(
    edit_config: Callable[[str, str], Path], old: str, new: str, place: str
) -> None:
    edit_config("type: sv_cosine", "type: sv_plda")
    path = edit_config(old, new)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    line = len(path.read_text().splitlines())
    assert str(error.value).startswith(f"{path} line {line}: {place}: ")


def test_names_of_metrics_are_known_before(base: Path) -> None:
    task = make_task(base, trials=["trials", "pairs"], metrics=["cllr"], mindcf_priors=[0.05])
    names = [
        f"sv_plda/{name}/{m}" for name in ("trials", "pairs") for m in ("cllr", "mindcf_p0.05")
    ]
    assert task.config.metric_names() == names
    assert list(task.run(embed, CPU).metrics) == names


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [f"{name},x" for name in NAMES[:9]],
            "all rows are of one speaker by its labels, so how speakers differ cannot be learnt "
            "from it; name a labelled list as fit_on",
        ),
        (
            [f"{name},{name}" for name in NAMES[:9]],
            "no speaker has two rows by its labels, so how speakers differ cannot be learnt "
            "from it; name a labelled list as fit_on",
        ),
        (["s00/0.wav,a", "gone.wav,a"], "1 of 2 files not found below"),
    ],
)
@pytest.mark.parametrize("field", ["train", "fit_on"])
def test_lists_that_cannot_be_fitted_are_refused_at_once(
    base: Path, tmp_path: Path, rows: list[str], message: str, field: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("File,Speaker\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")) as error:
        make_task(base, **{field: str(path)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["fit_on", "adapt_on"])
def test_a_missing_list_is_told_at_once(base: Path, field: str) -> None:
    with pytest.raises(DataError) as error:
        make_task(base, **{field: "none.csv"})
    assert str(error.value) == (
        f"{base}/none.csv: list not found; {field} is looked up below dataset.base_path"
    )


def test_missing_audio_of_the_domain_is_told_at_once(base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("File\ns00/0.wav\ngone.wav\n")
    with pytest.raises(DataError, match=r"rows.csv: 1 of 2 files not found .*line 3: gone.wav"):
        make_task(base, adapt_on=str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("fields", "dim", "embedded"),
    [
        ({}, DIM, 1),
        ({"transforms": []}, DIM, 1),
        ({"transforms": ["lda", "whitening"]}, DIM, 1),  # whitened too late
        ({"transforms": ["whitening"], "whitening_dim": 5}, 5, 0),
    ],
)
def test_a_list_too_short_for_the_dimension_is_refused_after_one_file(
    base: Path, tmp_path: Path, fields: dict[str, Any], dim: int, embedded: int
) -> None:
    rows = [f"{name},{name[:3]}" for name in NAMES[:6]]  # five of one speaker and one of another
    (tmp_path / "short.csv").write_text("File,Speaker\n" + "\n".join(rows) + "\n")
    counting = Counting()
    with pytest.raises(DataError) as error:
        make_task(base, fit_on=str(tmp_path / "short.csv"), **fields).run(counting, CPU)
    assert str(error.value) == (
        f"{tmp_path}/short.csv: 6 rows of 2 speakers determine 4 of {dim} dimensions; use a longer "
        "list, or put whitening with whitening_dim of 4 or less first in transforms"
    )
    assert counting.files == embedded


def test_whitening_to_what_a_short_list_determines_is_enough(base: Path, tmp_path: Path) -> None:
    rows = [f"{name},{name[:3]}" for name in NAMES[: 2 * FILES]][:8]  # five and three
    (tmp_path / "short.csv").write_text("File,Speaker\n" + "\n".join(rows) + "\n")
    counting = Counting()
    fields = {"transforms": ["whitening", "length"], "whitening_dim": 4}
    make_task(base, fit_on=str(tmp_path / "short.csv"), **fields).run(counting, CPU)
    assert counting.files == 8 + 4 * FILES  # of the list and of the trials
