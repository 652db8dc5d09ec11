"""Classification: metrics by hand and against scikit-learn, head and probes against loops, labels
that outputs keep, refusals."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import soundfile as sf
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from sslsv import experiment
from sslsv.config import load_config
from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import CheckpointError, ConfigError, DataError
from sslsv.evaluations import classification, probes
from sslsv.evaluations.base import Embed, Predictions
from sslsv.evaluations.baselines import mfcc_statistics
from sslsv.evaluations.classification import (
    Classification,
    ClassificationConfig,
    accuracy,
    confusion_matrix,
    f1_macro,
    f1_weighted,
    roots_of_posteriors,
    write_predictions,
)
from sslsv.methods.supervised import Supervised, SupervisedConfig
from sslsv.trainer import checkpoint

CPU = torch.device("cpu")
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, header: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


# ----------------------------------------------------------------------------------------- metrics


def test_metrics_of_an_example_worked_by_hand() -> None:
    """Of label 0 two of three are right and one of label 2 is taken for it, and so on; label 3 is
    neither given nor taken."""
    true = np.array([0, 0, 0, 1, 2, 2, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2, 1])
    f1 = [4 / 6, 2 / 4, 2 / 4]  # 2 TP / (2 TP + FP + FN)
    assert accuracy(true, predicted) == pytest.approx(4 / 7)
    assert f1_macro(true, predicted) == pytest.approx(sum(f1) / 3)
    assert f1_weighted(true, predicted) == pytest.approx((3 * f1[0] + f1[1] + 3 * f1[2]) / 7)
    np.testing.assert_array_equal(
        confusion_matrix(true, predicted, 4),
        [[2, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
    )


def test_weighted_and_macro_f1_differ_by_the_weights() -> None:
    """All of four rows taken for code 0, which three have: F1 is 2 * 3 / (2 * 3 + 1) and 0."""
    true, predicted = np.array([0, 0, 0, 5]), np.zeros(4, int)
    assert f1_macro(true, predicted) == pytest.approx((6 / 7) / 2)
    assert f1_weighted(true, predicted) == pytest.approx((6 / 7) * 3 / 4)


def test_a_label_that_is_only_taken_counts_in_the_macro_mean() -> None:
    true, predicted = np.array([0, 0]), np.array([0, 1])
    assert f1_macro(true, predicted) == pytest.approx((2 / 3 + 0) / 2)
    assert f1_weighted(true, predicted) == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60))
def test_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, predicted = np.array(pairs).T
    oracle = sklearn.metrics
    assert accuracy(true, predicted) == pytest.approx(oracle.accuracy_score(true, predicted))
    for average, found in {"weighted": f1_weighted, "macro": f1_macro}.items():
        expected = oracle.f1_score(true, predicted, average=average, zero_division=0)
        assert found(true, predicted) == pytest.approx(expected, abs=1e-12)
    expected = oracle.confusion_matrix(true, predicted, labels=range(7))
    np.testing.assert_array_equal(confusion_matrix(true, predicted, 7), expected)


# ------------------------------------------------------------------------------------------ probes


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_nearest_neighbours_vote_by_cosine(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    train, test = rng.standard_normal((12, 3)), rng.standard_normal((7, 3))
    labels = rng.integers(0, 4, 12)
    expected = []
    for x in test:
        cosines = [x @ y / np.sqrt((x @ x) * (y @ y)) for y in train]
        votes = Counter(
            int(labels[i]) for i in sorted(range(12), key=lambda i: -cosines[i])[:count]
        )
        most = max(votes.values())
        expected.append(min(code for code, n in votes.items() if n == most))
    assert probes.nearest_neighbours(train, labels, test, count).tolist() == expected


def blobs(seed: int, spread: float, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three labels around corners of a triangle, in five dimensions of very different scale."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    centres = np.array([[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 1.0, 0, 0]])
    x = centres[labels] + spread * rng.standard_normal((rows, 5))
    return x * [1, 1, 1, 1e3, 1e-3] + [0, 5, 0, -2e3, 1], labels


def test_linear_probe_separates_what_can_be_separated() -> None:
    train, labels = blobs(0, 0.05)
    test, expected = blobs(1, 0.05)
    predicted, _ = probes.linear(train, labels, test)
    assert predicted.tolist() == expected.tolist()


def test_linear_probe_is_the_same_in_any_unit() -> None:
    train, labels = blobs(0, 0.6)
    test, _ = blobs(1, 0.6)
    scale, shift = np.array([1e4, 1e-4, 3.0, 1.0, 7.0]), np.array([5.0, -1.0, 0, 2.0, 100.0])
    predicted, strength = probes.linear(train, labels, test)
    other, other_strength = probes.linear(train * scale + shift, labels, test * scale + shift)
    assert strength == other_strength
    assert predicted.tolist() == other.tolist()
    assert len(set(predicted.tolist())) == 3


def standardised(x: np.ndarray, of: np.ndarray) -> np.ndarray:
    return (x - of.mean(axis=0)) / of.std(axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_regularisation_is_chosen_by_cross_validation(seed: int) -> None:
    train, labels = blobs(seed, 0.7, rows=45)
    scores = []
    for c in probes.REGULARISATIONS:
        right = []
        for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(train, labels):
            model = LogisticRegression(C=c, max_iter=1000)
            model.fit(standardised(train[fit], train[fit]), labels[fit])
            p = model.predict_proba(standardised(train[held], train[fit]))
            likelihood = np.log(p[np.arange(len(held)), labels[held]])
            right.append((np.mean(p.argmax(axis=1) == labels[held]), likelihood.mean()))
        right, likely = np.mean(right, axis=0)
        scores.append((round(float(right), 12), float(likely)))
    assert len({right for right, _ in scores}) > 2, "the choice matters"
    best = probes.REGULARISATIONS[scores.index(max(scores))]
    test, _ = blobs(seed + 10, 0.7)
    predicted, strength = probes.linear(train, labels, test)
    assert strength == best
    model = LogisticRegression(C=best, max_iter=1000).fit(standardised(train, train), labels)
    assert predicted.tolist() == model.predict(standardised(test, train)).tolist()


def test_what_is_predicted_depends_on_no_other_test_row() -> None:
    train, labels = blobs(0, 0.6)
    test, _ = blobs(1, 0.6)
    together, _ = probes.linear(train, labels, test)
    alone = [int(probes.linear(train, labels, x[None])[0][0]) for x in test[:4]]
    assert together[:4].tolist() == alone


def test_labels_with_a_single_row_are_learnt_too() -> None:
    train, labels = blobs(0, 0.05)
    train = np.vstack([train, [[4.0, 9.0, 4.0, -2e3, 1]]])
    predicted, _ = probes.linear(train, np.append(labels, 3), train)
    assert predicted.tolist() == [*labels.tolist(), 3]
    assert probes.choose_regularisation(train[:3], np.arange(3)) == 1


# -------------------------------------------------------------------------- a corpus known by heart

VECTORS = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)  # of files
LABELS = [*"bbbccc", *"caabba"]  # of files; the last six are tested


def by_heart(wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Files are told apart by their first sample."""
    return torch.from_numpy(VECTORS)[(100 * wave[:, 0]).round().long()]


class ByHeart(Encoder):
    """Such an encoder."""

    def __init__(self) -> None:
        super().__init__(EncoderConfig(type="x", encoder_dim=4, extract_mel_features=False))

    def forward(self, wave: Tensor) -> Tensor:
        return by_heart(wave)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """``all.csv``, whose test rows come first; ``train.csv`` and ``test.csv``, its parts."""
    for i in range(12):
        sf.write(tmp_path / f"{i}.wav", np.full(2000 + 10 * i, i / 100), 16000)
    sets = ["train"] * 5 + ["valid"] + ["test"] * 6
    order = [*range(11, 5, -1), *range(6)]
    rows = [f"{sets[i]},{i}.wav,{LABELS[i]}" for i in order]
    write(tmp_path / "all.csv", "Set,File,Letter", rows)
    rows = [f"{i}.wav,{LABELS[i]}" for i in (0, 1, 2, 3, 4, 6, 7, 8)]
    write(tmp_path / "train.csv", "File,Letter", rows)
    write(tmp_path / "test.csv", "File,Letter", [f"{i}.wav,{LABELS[i]}" for i in (11, 9, 10)])
    return tmp_path


def make_task(base_path: Path, has_head: bool = False, **fields: Any) -> Classification:
    fields = {"csv": "test.csv", "key": "Letter", "frame_length": None, "batch_size": 4} | fields
    config = ClassificationConfig(type="classification", **fields)
    return Classification(config, DatasetConfig(base_path=base_path, num_workers=0), has_head)


def make_method(classes: int = 5, **fields: Any) -> Supervised:
    """Its classifier has random weights."""
    config = SupervisedConfig(type="supervised", nb_classes=classes, **fields)
    return Supervised(config, ByHeart()).eval()


def chosen(predictions: Predictions) -> dict[str, str]:
    names = [predictions.names[code] for code in predictions.predicted]
    return dict(zip(predictions.files, names, strict=True))


@pytest.mark.parametrize("classifier", ["speaker", "linear"])
def test_head_takes_the_label_of_the_largest_output(lists: Path, classifier: str) -> None:
    method = make_method(classifier=classifier)
    task = make_task(lists, has_head=True, csv="all.csv")
    task.set_labels(["c", "a", "b"])  # of the first three of five outputs
    found = task.run(method.embed, CPU, method)
    state = {key: value.numpy() for key, value in method.state_dict().items()}
    expected = {}
    for i in range(11, 5, -1):
        if classifier == "speaker":
            w = state["classifier.classifier_weight"]
            outputs = w @ VECTORS[i] / np.linalg.norm(w, axis=1)
        else:
            outputs = state["classifier.weight"] @ VECTORS[i] + state["classifier.bias"]
        expected[f"{i}.wav"] = "cab"[int(np.argmax(outputs[:3]))]
    assert chosen(found.predictions["all"]) == expected
    assert len(set(expected.values())) > 1
    right = [expected[f"{i}.wav"] == LABELS[i] for i in range(6, 12)]
    assert found.metrics["all/accuracy"] == pytest.approx(np.mean(right))
    assert list(found.metrics) == ["all/accuracy", "all/f1_score", "all/f1_macro"]
    names = {label: code for code, label in enumerate("cab")}
    true = [names[LABELS[i]] for i in range(11, 5, -1)]
    taken = [names[label] for label in expected.values()]
    for name, average in {"f1_score": "weighted", "f1_macro": "macro"}.items():
        f1 = sklearn.metrics.f1_score(true, taken, average=average, zero_division=0)
        assert found.metrics[f"all/{name}"] == pytest.approx(f1)


@pytest.mark.parametrize("classifier", ["speaker", "linear"])
def test_roots_of_posteriors_are_those_of_the_loss_without_margin(classifier: str) -> None:
    method = make_method(classifier=classifier, aam_scale=7.0)
    waves = torch.arange(12).float()[:, None] / 100
    with torch.no_grad():
        found = roots_of_posteriors(method, 3)(waves).numpy()
    state = {key: value.double().numpy() for key, value in method.state_dict().items()}
    for x, row in zip(VECTORS.astype(float), found, strict=True):
        if classifier == "speaker":
            w = state["classifier.classifier_weight"][:3]
            outputs = 7.0 * (w @ x) / np.linalg.norm(w, axis=1) / np.linalg.norm(x)
        else:
            outputs = (state["classifier.weight"] @ x + state["classifier.bias"])[:3]
        posteriors = np.exp(outputs) / np.exp(outputs).sum()
        np.testing.assert_allclose(row, np.sqrt(posteriors), rtol=1e-5)


@pytest.mark.parametrize("classifier", ["speaker", "linear"])
def test_frames_pool_the_roots_of_their_posteriors(corpus: Path, classifier: str) -> None:
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=16))
    config = SupervisedConfig(type="supervised", nb_classes=9, classifier=classifier, aam_scale=7.0)
    method = Supervised(config, encoder).eval()
    fields = {"csv": "train.csv", "key": "Speaker", "num_frames": 3, "frame_length": 6000}
    task = make_task(corpus, has_head=True, **fields)
    names = [f"id{i:02d}" for i in (3, 1, 4, 0, 5, 2, 6, 7)]
    task.set_labels(names)
    found = chosen(task.run(method.embed, CPU, method).predictions["train"])
    for file, name in found.items():
        wave = torch.from_numpy(sf.read(corpus / file, dtype="float32")[0])
        starts = [(len(wave) - 6000) * k // 2 for k in range(3)]
        with torch.no_grad():
            frames = torch.stack([wave[s : s + 6000] for s in starts])
            logits = method.classifier(encoder(frames))[:, :8].double().numpy()
        logits = np.exp(logits * (7.0 if classifier == "speaker" else 1.0))
        posteriors = logits / logits.sum(axis=1, keepdims=True)
        assert name == names[int(np.argmax(np.sqrt(posteriors).mean(axis=0)))]
    assert len(found) == 32


def test_posteriors_of_many_labels_are_computed_in_parts(
    lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, sizes = make_method(), []
    task = make_task(lists, has_head=True, csv="all.csv")
    task.set_labels(["a", "b", "c"])
    whole = chosen(task.run(method.embed, CPU, method).predictions["all"])
    extract = classification.extract

    def counted(embed: Embed, files: Sequence[str], *more: Any) -> np.ndarray:
        sizes.append(len(files))
        return extract(embed, files, *more)

    monkeypatch.setattr(classification, "extract", counted)
    monkeypatch.setattr(classification, "_FLOATS", 14)
    assert chosen(task.run(method.embed, CPU, method).predictions["all"]) == whole
    assert sizes == [4, 2]


def test_only_test_rows_are_tested_and_only_train_rows_are_learnt(lists: Path) -> None:
    embedded: list[int] = []

    def embed(wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        embedded.extend((100 * wave[:, 0]).round().long().tolist())
        return by_heart(wave)

    (lists / "all.csv").write_text((lists / "all.csv").read_text().replace(",a", ",b"))
    found = make_task(lists, csv="all.csv", knn_neighbours=1).run(embed, CPU)
    assert sorted(embedded) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]  # each once; 5 is valid
    predictions = found.predictions["knn/all"]
    assert predictions.files == [f"{i}.wav" for i in range(11, 5, -1)]
    assert [predictions.names[code] for code in predictions.true] == list("bbbbbc")
    for file, name in chosen(predictions).items():
        x = VECTORS[int(file.split(".")[0])]
        cosines = [x @ y / np.linalg.norm(y) for y in VECTORS[:5]]
        assert name == LABELS[int(np.argmax(cosines))]
    assert list(found.metrics) == [
        *("linear/all/accuracy", "linear/all/f1_score", "linear/all/f1_macro"),
        *("knn/all/accuracy", "knn/all/f1_score", "knn/all/f1_macro"),
    ]


def test_a_list_without_sets_is_all_test_or_all_train(lists: Path) -> None:
    task = make_task(lists, train="train.csv", knn_neighbours=3)
    assert task.train is not None
    assert len(task.train.files) == 8
    found = task.run(by_heart, CPU)
    files = found.predictions["linear/test"].files
    assert files == ["11.wav", "9.wav", "10.wav"]
    train = np.array([0, 1, 2, 3, 4, 6, 7, 8])
    x = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    labels = np.array(["abc".index(LABELS[i]) for i in train])
    for name, codes in {
        "linear": probes.linear(x[train], labels, x[[11, 9, 10]])[0],
        "knn": probes.nearest_neighbours(x[train], labels, x[[11, 9, 10]], 3),
    }.items():
        expected = ["abc"[code] for code in codes]
        assert list(chosen(found.predictions[f"{name}/test"]).values()) == expected


def test_a_baseline_has_no_head(lists: Path) -> None:
    fields = {"csv": "all.csv", "classifiers": ["head", "knn"], "knn_neighbours": 1}
    (lists / "all.csv").write_text((lists / "all.csv").read_text().replace(",a", ",b"))
    task, method = make_task(lists, has_head=True, **fields), make_method()
    task.set_labels(["b", "c"])
    assert list(task.run(by_heart, CPU).predictions) == ["knn/all"]
    assert list(task.run(method.embed, CPU, method).predictions) == ["all", "knn/all"]


def test_metrics_are_those_that_were_asked_for(lists: Path) -> None:
    fields = {"csv": "test.csv", "train": "train.csv", "metrics": ["f1_macro", "accuracy"]}
    task = make_task(lists, classifiers=["knn"], **fields)
    assert list(task.run(by_heart, CPU).metrics) == task.config.metric_names()
    assert task.config.metric_names() == ["knn/test/f1_macro", "knn/test/accuracy"]
    assert make_task(lists, train="train.csv").config.metric_names() == [
        f"{prefix}test/{metric}"
        for prefix in ("", "linear/", "knn/")
        for metric in ("accuracy", "f1_score", "f1_macro")
    ]


def test_predictions_and_their_confusion_are_written(tmp_path: Path) -> None:
    names = ["z", "x", "not met", "y, or so"]
    predictions = Predictions(
        ["1.wav", "2.wav", "3.wav", "3.wav"], names, np.array([0, 0, 1, 1]), np.array([0, 3, 1, 0])
    )
    write_predictions(tmp_path / "made.csv", predictions)
    assert (tmp_path / "made.csv").read_text() == (
        'File,True,Predicted\n1.wav,z,z\n2.wav,z,"y, or so"\n3.wav,x,x\n3.wav,x,z\n'
    )
    assert (tmp_path / "made_confusion.csv").read_text() == (
        'True,z,x,"y, or so"\nz,1,0,1\nx,1,1,0\n"y, or so",0,0,0\n'
    )


def test_no_confusion_matrix_that_nobody_can_read(tmp_path: Path) -> None:
    count = 501
    codes = np.arange(count)
    names = [str(code) for code in codes]
    write_predictions(tmp_path / "made.csv", Predictions(names, names, codes, codes))
    assert len(read(tmp_path / "made.csv")) == count
    assert not (tmp_path / "made_confusion.csv").exists()


def work(rank: int, folder: str, lists: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    task = make_task(Path(lists), train="train.csv", knn_neighbours=3)
    found = task.run(by_heart, CPU)
    Path(folder, str(rank)).write_text(json.dumps(found.metrics))
    dist.destroy_process_group()


def test_two_processes_find_what_one_does(lists: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (str(folder), str(lists)), 2)
    expected = make_task(lists, train="train.csv", knn_neighbours=3).run(by_heart, CPU).metrics
    for rank in range(2):
        assert json.loads((folder / str(rank)).read_text()) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"csv": ""}, "csv: missing; give the name of the list to classify"),
        ({"key": ""}, "key: missing; give the name of its column of labels"),
        ({"metrics": []}, "metrics: give at least one, and none twice"),
        ({"classifiers": ["knn", "knn"]}, "classifiers: give at least one, and none twice"),
        ({"classifiers": []}, "classifiers: give at least one, and none twice"),
        ({"knn_neighbours": 0}, "knn_neighbours: must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ClassificationConfig(type="classification", **{"csv": "x.csv", "key": "y"} | fields)
    assert str(error.value) == message


PROBES = {"train": "train.csv"}


@pytest.mark.parametrize(
    ("fields", "edit", "message"),
    [
        (
            {"csv": "none.csv"},
            None,
            "none.csv: list not found; it is looked up below dataset.base_path",
        ),
        (
            {"key": "Leter"},
            None,
            "test.csv: no column 'Leter'; its columns are File, Letter (key names the column of "
            "labels)",
        ),
        ({"key": "Letter"}, ("test.csv", "File,", "file,"), "test.csv: no column 'File'; its"),
        ({}, ("test.csv", "9.wav,b", "9.wav,"), "test.csv line 3: empty File or Letter"),
        ({}, ("test.csv", "9.wav,b", "9.wav,b,b,b"), "test.csv: cannot be read as CSV"),
        (
            {},
            None,
            "test.csv: has no column Set, and so no train rows, so there is nothing for linear "
            "and knn to learn from; give the list of a training part as train, beside csv",
        ),
        (
            {"csv": "all.csv", "classifiers": ["knn"]},
            ("all.csv", "train", "other"),
            "all.csv: has no train rows, so there is nothing for knn to learn from",
        ),
        ({"csv": "all.csv"}, ("all.csv", "test,", "tests,"), "all.csv: has no test rows"),
        (
            {"csv": "all.csv"},
            None,
            "all.csv: labels that are unknown to the train rows of {root}/all.csv: 'a' (line 2); "
            "known are b, c",
        ),
        (
            PROBES,
            ("test.csv", "9.wav,b", "9.wav,q\n1.wav,r\n3.wav,q"),
            "train.csv: 2 of the files that probes are fitted on are tested too ({root}/test.csv): "
            "1.wav, 3.wav",
        ),
        (
            PROBES,
            ("test.csv", "9.wav,b", "9.wav,q\n10.wav,r\n9.wav,q"),
            "labels that are unknown to the train rows of {root}/train.csv: 'q' (line 3), 'r' "
            "(line 4); known are a, b, c",
        ),
        (PROBES, ("test.csv", "9.wav", "99.wav"), "files not found"),
        (PROBES, ("train.csv", "0.wav", "99.wav"), "files not found"),
        (
            PROBES | {"knn_neighbours": 9},
            None,
            "knn_neighbours: 9 is more than the 8 train rows of {root}/train.csv; lower it",
        ),
        ({"classifiers": ["head"]}, None, "classifiers: 'head' is the classifier of method"),
    ],
)
def test_lists_are_checked_before_any_work(
    lists: Path, fields: dict[str, Any], edit: tuple[str, str, str] | None, message: str
) -> None:
    if edit:
        name, old, new = edit
        text = (lists / name).read_text()
        assert old in text
        (lists / name).write_text(text.replace(old, new))
    with pytest.raises((DataError, ConfigError)) as error:
        make_task(lists, **fields)
    assert message.format(root=lists) in str(error.value)
    assert "\n" not in str(error.value)


def test_one_label_is_nothing_to_learn(lists: Path) -> None:
    write(lists / "train.csv", "File,Letter", ["0.wav,b", "1.wav,b"])
    with pytest.raises(DataError, match="all train rows have the label 'b'; two labels are needed"):
        make_task(lists, train="train.csv")


def test_a_head_that_does_not_know_a_tested_label_is_refused(lists: Path) -> None:
    task = make_task(lists, has_head=True)
    message = "labels that are unknown to the trained classifier: 'a' (line 2); known are b, c"
    with pytest.raises(DataError, match=re.escape(message)):
        task.set_labels(["c", "b"])


# ------------------------------------------------------------------------------------- experiments

TASK = """\
    - type: classification
      csv: letters.csv
      key: Speaker
      frame_length: null
"""


@pytest.fixture
def data(corpus: Path, tmp_path: Path, edit_config: Callable[[str, str], Path]) -> Path:
    """A copy of the corpus to write to, with ``letters.csv``: three files of a speaker to train on,
    in the order of the speakers, and one to test, which stand first in the opposite order."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    edit_config(str(corpus), str(folder))
    rows = read(corpus / "train.csv")
    lines = [f"test,{r['File']},{r['Speaker']}" for r in rows[::-4]]
    lines += [f"train,{r['File']},{r['Speaker']}" for i, r in enumerate(rows) if i % 4 != 3]
    write(folder / "letters.csv", "Set,File,Speaker", lines)
    edit_config("train: train.csv", "train: letters.csv")
    edit_config("trials: [trials]\n", "trials: [trials]\n" + TASK)
    return folder


@pytest.fixture
def supervised(data: Path, edit_config: Callable[[str, str], Path]) -> Path:
    """The configuration of a training of a head with more outputs than labels."""
    edit_config("type: simclr\n  enable_projector: false\n  temperature: 0.1", "type: supervised")
    edit_config("type: supervised", "type: supervised\n  nb_classes: 11")
    return edit_config("ssl: true", "ssl: false")


SPEAKERS = [f"id{i:02d}" for i in range(8)]


def test_outputs_stand_for_the_labels_of_the_training(data: Path, supervised: Path) -> None:
    config = load_config(supervised, ["trainer.epochs=1", "trainer.avg_count=1"])
    experiment.train(config)
    run_dir = supervised.parent
    for suffix in ("latest", "epoch-1", "avg"):
        state = checkpoint.load(checkpoint.checkpoint_path(run_dir, suffix))
        assert json.loads(state["config"])["labels"] == SPEAKERS  # order of the train rows
    # Class vectors that know the speakers, by least squares on what the encoder gives.
    method = experiment.build_method(config).eval()
    method.load_state_dict(state["model"])
    rows = read(data / "letters.csv")
    with torch.no_grad():
        waves = [torch.from_numpy(sf.read(data / r["File"], dtype="float32")[0]) for r in rows]
        y = torch.cat([method.embed(wave[None]) for wave in waves])
    weight = state["model"]["classifier.classifier_weight"]
    state["model"]["encoder.fc.bias"] -= y.mean(dim=0)  # what all embeddings have in common
    y = y - y.mean(dim=0)
    own = np.array([[r["Speaker"] == speaker for speaker in SPEAKERS] for r in rows])
    solved = np.linalg.lstsq(y.double().numpy(), own - own.mean(axis=0), rcond=1e-5)[0]
    weight[:8] = torch.from_numpy(solved.T)
    checkpoint.save(checkpoint.checkpoint_path(run_dir, "known"), state)

    found = experiment.evaluate(config, "known", baselines=True)
    raw, w = y[:8].numpy(), weight[:8].numpy()
    cosines = (raw / np.linalg.norm(raw, axis=1, keepdims=True)) @ (
        w / np.linalg.norm(w, axis=1, keepdims=True)
    ).T
    expected = [SPEAKERS[code] for code in cosines.argmax(axis=1)]
    made = read(run_dir / "scores" / "trained_classification_letters.csv")
    assert [row["File"] for row in made] == [row["File"] for row in rows[:8]]
    assert [row["True"] for row in made] == SPEAKERS[::-1]
    assert [row["Predicted"] for row in made] == expected
    right = np.mean([row["True"] == row["Predicted"] for row in made])
    assert found["trained"]["letters/accuracy"] == pytest.approx(right)
    assert right > 3 / 4, "the class vectors know the speakers"
    saved = json.loads((run_dir / "evaluation.json").read_text())
    assert saved["test/letters/accuracy"] == pytest.approx(right)
    assert {"test/letters/f1_score", "test/letters/f1_macro"} <= saved.keys()
    assert not any("letters" in name for name in found["untrained"] | found["mfcc"])
    matrix = read(run_dir / "scores" / "trained_classification_letters_confusion.csv")
    assert sum(int(v) for row in matrix for k, v in row.items() if k != "True") == 8


def test_a_method_without_a_head_is_probed(data: Path, config_file: Path) -> None:
    config = load_config(config_file, ["trainer.epochs=1", "trainer.batch_size=4"])
    experiment.train(config)
    state = checkpoint.load(checkpoint.checkpoint_path(config_file.parent, "latest"))
    assert "labels" not in json.loads(state["config"])
    found = experiment.evaluate(config, baselines=True)
    for system in ("trained", "untrained", "mfcc"):
        for probe in ("linear", "knn"):
            assert 0 <= found[system][f"{probe}/letters/accuracy"] <= 1
            assert "letters/accuracy" not in found[system]
            name = f"{system}_classification_{probe}_letters.csv"
            assert len(read(config_file.parent / "scores" / name)) == 8
    assert found["mfcc"]["linear/letters/accuracy"] > 1 / 2
    saved = json.loads((config_file.parent / "evaluation.json").read_text())
    assert {"test/linear/letters/f1_macro", "mfcc/knn/letters/f1_score"} <= saved.keys()


def test_a_training_is_validated_by_its_head(data: Path, supervised: Path) -> None:
    supervised.write_text(supervised.read_text().replace("  test:\n", "  validation:\n"))
    settings = ["trainer.epochs=1", "trainer.tracked_metric=val/letters/accuracy"]
    experiment.train(load_config(supervised, settings))
    logged = json.loads((supervised.parent / "training.json").read_text())
    assert {f"val/letters/{m}" for m in ("accuracy", "f1_score", "f1_macro")} <= logged["1"].keys()
    assert checkpoint.checkpoint_path(supervised.parent, "best").exists()
    with pytest.raises(ConfigError, match="'val/knn/letters/accuracy' is not among what this"):
        experiment.train(
            load_config(supervised, ["trainer.tracked_metric=val/knn/letters/accuracy"])
        )


def test_going_on_with_labels_in_another_order_is_refused(data: Path, supervised: Path) -> None:
    experiment.train(load_config(supervised, ["trainer.epochs=1"]))
    lines = (data / "letters.csv").read_text().splitlines()
    more = load_config(supervised, ["trainer.epochs=2"])
    write(data / "letters.csv", lines[0], [*lines[12:], *lines[1:12]])  # id01 first
    with pytest.raises(CheckpointError, match=r"\(label 0 is 'id00', not 'id01'\); restore"):
        experiment.train(more)
    write(data / "letters.csv", lines[0], lines[1:-3])  # without id07
    with pytest.raises(CheckpointError, match=r"\(8 labels, not 7\); restore the list"):
        experiment.train(more)
    latest = checkpoint.checkpoint_path(supervised.parent, "latest")
    other = [f"run_dir={data}/other", f"trainer.last_checkpoint={latest}", "trainer.epochs=2"]
    with pytest.raises(CheckpointError, match=r"\(8 labels, not 7\)"):
        experiment.train(load_config(supervised, other))
    write(data / "letters.csv", lines[0], lines[1:])
    experiment.train(more)


def test_a_checkpoint_of_the_reference_takes_labels_from_the_training_list(
    data: Path, supervised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(supervised, ["evaluation.test.0.trials=[trials]"])
    model = experiment.build_method(config).state_dict()
    path = checkpoint.checkpoint_path(supervised.parent, "latest")
    checkpoint.save(path, {"model": {k: v for k, v in model.items() if k != "margin.t"}})
    experiment.evaluate(config)
    assert "does not say which labels it was trained on; taken from" in capsys.readouterr().out
    made = read(supervised.parent / "scores" / "trained_classification_letters.csv")
    assert [row["True"] for row in made] == SPEAKERS[::-1]
    headless = {k: v for k, v in model.items() if not k.startswith("classifier.")}
    checkpoint.save(path, {"model": headless})
    with pytest.raises(CheckpointError, match="holds no trained classifier that fits"):
        experiment.evaluate(config)


def test_other_labels_of_a_training_list_do_not_change_what_outputs_mean(
    data: Path, supervised: Path
) -> None:
    config = load_config(supervised, ["trainer.epochs=1"])
    experiment.train(config)
    before = experiment.evaluate(config)
    first = read(supervised.parent / "scores" / "trained_classification_letters.csv")
    lines = (data / "letters.csv").read_text().splitlines()
    write(data / "letters.csv", lines[0], [*lines[1:9], *lines[:8:-1]])
    assert experiment.evaluate(config) == before
    assert read(supervised.parent / "scores" / "trained_classification_letters.csv") == first


# ------------------------------------------------------------------------------------- real speech


@pytest.mark.parametrize(
    ("name", "least"), [("emotion", 0.6), ("gender", 0.75), ("language", 0.85)]
)
def test_probes_of_mfcc_statistics_on_real_speech(real_data: Path, name: str, least: float) -> None:
    """The most frequent label is that of 36, 55 and 51 %."""
    fields = {"csv": f"{name}_test.csv", "train": f"{name}_train.csv", "key": "Label"}
    task = make_task(real_data, frame_length=16000, batch_size=64, **fields)
    found = task.run(mfcc_statistics, CPU)
    assert list(found.metrics) == task.config.metric_names()[3:]
    for probe in ("linear", "knn"):
        predictions = found.predictions[f"{probe}/{name}_test"]
        assert predictions.files == [row["File"] for row in read(real_data / f"{name}_test.csv")]
        value = found.metrics[f"{probe}/{name}_test/accuracy"]
        assert value == np.mean(predictions.true == predictions.predicted)
        assert value > least - 0.15 * (probe == "knn")


def test_probes_of_an_untrained_encoder_on_real_speech(real_data: Path) -> None:
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=64)).eval()
    fields = {"csv": "language_test.csv", "train": "language_train.csv", "key": "Label"}
    task = make_task(real_data, frame_length=16000, batch_size=64, **fields)
    found = task.run(encoder.embed, CPU)
    assert found.metrics["linear/language_test/accuracy"] > 0.6  # chance is 51 %
