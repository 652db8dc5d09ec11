"""Curves over a training and over shares of the labels: what is read, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sslsv.errors import DataError
from sslsv.evaluations.plots_curves import (
    label_efficiency,
    line_panels,
    read_study,
    read_training,
    study_table,
    training_curves,
)

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten epochs, of which the validation has only the even ones."""
    epochs = {
        str(e): {"train/loss": 10.0 / e} | ({} if e % 2 else {"val/eer": 50.0 - e})
        for e in (10, *range(1, 10))
    }
    (tmp_path / "training.json").write_text(json.dumps(epochs | {"best": 3}))
    return tmp_path


def drawn(figure) -> list[dict[str, list[list[float]]]]:
    """Of each panel: the points of each line by its label."""
    return [
        {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()}
        for axes in figure.axes
    ]


def test_epochs_are_read_in_their_order(run: Path) -> None:
    found = read_training(run)
    assert found["train/loss"] == (list(range(1, 11)), [10.0 / e for e in range(1, 11)])
    assert found["val/eer"] == ([2, 4, 6, 8, 10], [48.0, 46, 44, 42, 40])


def test_a_value_that_was_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"1": {"x": null}, "2": {"x": 3}}')
    epochs, values = read_training(tmp_path)["x"]
    assert epochs == [1, 2]
    assert np.isnan(values[0])
    assert values[1] == 3


def test_training_curves_have_a_panel_a_metric_and_a_line_a_run(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "training.json").write_text('{"1": {"train/loss": 7.0}}')
    shown = {"train/loss": "Loss", "val/eer": "EER"}
    figure = training_curves({"a": run, "b": other}, shown)
    loss, eer = drawn(figure)
    assert loss == {"a": [[e, 10.0 / e] for e in range(1, 11)], "b": [[1, 7.0]]}
    assert eer == {"a": [[e, 50.0 - e] for e in (2, 4, 6, 8, 10)]}
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "EER"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_what_no_run_has_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run has 'val/x'; there are: train/loss, val/eer"):
        training_curves({"a": run}, {"val/x": "X"})
    with pytest.raises(DataError, match="no epoch yet"):
        read_training(tmp_path / "none")
    with pytest.raises(DataError, match="at least one metric"):
        line_panels({}, "epoch")


def test_a_name_looks_alike_in_all_panels() -> None:
    figure = line_panels({"p": {"b": ([1], [1])}, "q": {"a": ([1], [2]), "b": ([1], [3])}}, "x")
    looks = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            looks.setdefault(line.get_label(), set()).add((line.get_color(), line.get_marker()))
    assert {name: len(found) for name, found in looks.items()} == {"a": 1, "b": 1}
    assert looks["a"] != looks["b"]


# ------------------------------------------------------------------------------------- few labels


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """As tools/label_efficient.py writes it, the larger fraction first."""
    entries = [
        {"utterances": 100, "metrics": {"eer": {"mean": 10.0, "std": None, "values": [10.0]}}},
        {"utterances": 10, "metrics": {"eer": {"mean": 30.0, "std": 2.0, "values": [28.0, 32.0]}}},
    ]
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"model_suffix": "latest", "fractions": entries}))
    return path


def test_a_study_is_drawn_with_means_spread_and_trainings(study: Path) -> None:
    figure = label_efficiency({"scratch": study}, "eer", chance=50.0)
    (axes,) = figure.axes
    line, *dots, chance = axes.get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[10, 30], [100, 10]]
    assert [np.asarray(d.get_xydata()).tolist() for d in dots] == [
        [[10, 28], [10, 32]],
        [[100, 10]],
    ]
    assert chance.get_ydata()[0] == 50
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(10, 28), (10, 32), (100, 10)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100"]
    assert axes.get_ylabel() == "eer"


def test_a_study_as_a_table(study: Path) -> None:
    rows = [line.split() for line in study_table({"scratch": study}, "eer").splitlines()]
    assert rows[2:] == [
        ["scratch", "eer", "10", "2", "30.000", "2.000"],
        ["scratch", "eer", "100", "1", "10.000", "-"],
    ]


def test_a_study_that_cannot_be_used_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no metric 'f1'; there are: eer"):
        read_study(study, "f1")
    with pytest.raises(DataError, match=r"not what tools/label_efficient.py writes"):
        read_study(tmp_path / "none.json", "eer")
    with pytest.raises(DataError, match="no study to plot"):
        label_efficiency({}, "eer")
