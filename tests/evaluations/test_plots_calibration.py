"""Calibration and Bayes-error plots: what is drawn, against values worked out otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from sslsv.errors import DataError
from sslsv.evaluations import metrics
from sslsv.evaluations.plots_calibration import (
    bayes_error_plot,
    bayes_errors,
    calibrated,
    calibration_plot,
    metrics_table,
    read_systems,
    reliability,
    weights_table,
)

pytest.importorskip("matplotlib")

System = tuple[np.ndarray, np.ndarray]


def gaussian(trials: int, distance: float, seed: int = 0, targets: float = 0.3) -> System:
    """Scores of unit variance whose log-likelihood ratio is ``distance · score`` by algebra."""
    rng = np.random.default_rng(seed)
    labels = rng.random(trials) < targets
    return rng.normal(size=trials) + distance * (labels - 0.5), labels


def write(path: Path, scores: np.ndarray, labels: np.ndarray) -> str:
    rows = enumerate(zip(scores, labels, strict=True))
    path.write_text("".join(f"e{i} t{i} {float(s)!r} {int(y)}\n" for i, (s, y) in rows))
    return str(path)


class TestReliability:
    def test_an_example_worked_by_hand(self) -> None:
        """A target weighs 1/4, a non-target 1/8: the half of the weight lies at -1 and below."""
        llr = np.array([-1.0, -1, -1, 2, 2, 2])
        labels = np.array([0, 0, 1, 0, 0, 1])
        stated, found = reliability(llr, labels, bins=2)
        np.testing.assert_allclose(stated, expit([-1, 2]))
        np.testing.assert_allclose(found, [0.5, 0.5])
        found = reliability(llr, np.array([0, 0, 0, 0, 1, 1]), bins=2)[1]
        np.testing.assert_allclose(found, [0, 0.5 / (0.5 + 0.125)])

    def test_true_ratios_lie_on_the_diagonal_whatever_the_share_of_targets(self) -> None:
        for share in (0.05, 0.5):
            scores, labels = gaussian(200_000, 2.0, targets=share)
            stated, found = reliability(2.0 * scores, labels)
            assert len(stated) == 10
            np.testing.assert_allclose(found, stated, atol=0.02)

    def test_ratios_that_are_too_sure_lie_across_it(self) -> None:
        scores, labels = gaussian(20_000, 2.0)
        stated, found = reliability(6.0 * scores, labels)
        assert (found[:3] > stated[:3]).all()
        assert (found[-3:] < stated[-3:]).all()

    def test_does_not_depend_on_the_order_of_trials(self) -> None:
        scores, labels = gaussian(500, 1.0)
        scores = scores.round(1)  # with ties
        order = np.random.default_rng(1).permutation(500)
        for a, b in zip(
            reliability(scores, labels), reliability(scores[order], labels[order]), strict=True
        ):
            np.testing.assert_allclose(a, b)

    def test_is_what_the_plot_draws(self) -> None:
        system = gaussian(500, 2.0)
        figure = calibration_plot({"a": system}, title="t")
        diagonal, line = figure.axes[0].get_lines()
        np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
        np.testing.assert_array_equal(line.get_xydata().T, reliability(*system))
        assert line.get_label() == f"a: Cllr {metrics.cllr(*system):.3f}"


class TestBayesErrors:
    def test_are_the_costs_of_the_metrics(self) -> None:
        scores, labels = gaussian(400, 2.0)
        scores = scores.round(1)  # with ties, some of them at the threshold
        priors = np.array([0.01, 0.2, 0.5, expit(-1.5), 0.97])
        actual, least = bayes_errors(scores, labels, logit(priors))
        for prior, act, low in zip(priors, actual, least, strict=True):
            assert act == pytest.approx(metrics.act_dcf(scores, labels, prior))
            assert low == pytest.approx(metrics.min_dcf(scores, labels, prior))

    def test_are_what_the_plot_draws(self) -> None:
        system = gaussian(400, 2.0)
        figure = bayes_error_plot({"a": system}, marked=0.05)
        line, dotted, mark = figure.axes[0].get_lines()
        x = np.asarray(line.get_xdata())
        actual, least = bayes_errors(*system, x)
        np.testing.assert_array_equal(line.get_ydata(), actual)
        np.testing.assert_array_equal(dotted.get_ydata(), least)
        assert (least <= actual + 1e-12).all()
        assert mark.get_xdata()[0] == pytest.approx(logit(0.05))
        assert (x[0], x[-1]) == (pytest.approx(logit(0.001)), pytest.approx(logit(0.999)))


class TestSystems:
    def test_are_read_by_list_and_in_the_order_of_the_first_file(self, tmp_path: Path) -> None:
        scores, labels = gaussian(50, 1.0)
        write(tmp_path / "a_dev.txt", scores, labels)
        lines = Path(write(tmp_path / "b_dev.txt", 2 * scores, labels)).read_text().splitlines()
        (tmp_path / "b_dev.txt").write_text("\n".join(lines[::-1]))
        files = {name: f"{tmp_path}/{name}_{{list}}.txt" for name in "ab"}
        found = read_systems(files, "dev")
        np.testing.assert_array_equal(found["a"][0], scores)
        np.testing.assert_array_equal(found["b"][0], 2 * scores)
        np.testing.assert_array_equal(found["b"][1], labels)
        with pytest.raises(DataError, match="give at least one name"):
            read_systems({})

    def test_are_calibrated_alone_and_together_on_the_other_list(self, tmp_path: Path) -> None:
        """Two independent looks at a trial: the ratio of both is the sum of the two ratios."""
        for part, seed in (("dev", 0), ("test", 1)):
            rng = np.random.default_rng(seed)
            labels = rng.random(20_000) < 0.3
            for name, distance, scale in (("a", 2.0, 1.0), ("b", 1.0, 0.1)):
                scores = rng.normal(size=len(labels)) + distance * (labels - 0.5)
                write(tmp_path / f"{name}_{part}", scale * scores + 3, labels)
        files = {name: f"{tmp_path}/{name}_{{list}}" for name in "ab"}
        systems, fits = calibrated(files, "dev", "test", prior=0.5)
        assert list(systems) == list(fits) == ["a", "b", "fusion"]
        assert fits["a"].weights == pytest.approx([2.0], rel=0.05)
        assert fits["b"].weights == pytest.approx([10.0], rel=0.1)
        assert fits["fusion"].weights == pytest.approx([2.0, 10.0], rel=0.1)
        known = read_systems(files, "test")
        np.testing.assert_array_equal(systems["a"][0], fits["a"].apply(known["a"][0][:, None]))
        bits = {name: metrics.cllr(*system) for name, system in systems.items()}
        assert bits["fusion"] < bits["a"] < bits["b"]
        first = weights_table(fits).splitlines()[0]
        assert first.startswith("a: llr = +")
        offset = float(first.rpartition(" ")[2])
        assert offset == pytest.approx(-3 * fits["a"].weights[0], abs=0.2)  # undoes the + 3

    def test_of_one_there_is_no_fusion(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", *gaussian(100, 1.0))
        assert list(calibrated({"a": path}, "", "")[0]) == ["a"]

    def test_metrics_are_those_of_the_module(self) -> None:
        scores, labels = gaussian(300, 1.5)
        plain, full = (metrics_table({"a": (scores, labels)}, 0.05, ratios) for ratios in (0, 1))
        assert plain.splitlines()[0].split()[-3:] == ["EER", "(%)", "minDCF"]
        expected = [f"{metrics.eer(scores, labels):.2f}"]
        costs = (metrics.min_dcf, metrics.act_dcf)
        expected += [f"{cost(scores, labels, 0.05):.4f}" for cost in costs]
        expected += [f"{bits(scores, labels):.4f}" for bits in (metrics.cllr, metrics.min_cllr)]
        assert full.splitlines()[-1].split()[-5:] == expected

    def test_there_must_be_one_to_plot(self) -> None:
        for plot in (calibration_plot, bayes_error_plot):
            with pytest.raises(DataError, match="no system to plot"):
                plot({})
