import sys
from statistics import NormalDist

import numpy as np
import pytest

from sslsv.errors import DataError, UserError
from sslsv.evaluations.metrics import eer, min_dcf, operating_points
from sslsv.evaluations.plots import (
    COLOURS,
    LOWEST,
    _det_limits,
    _save,
    det_coordinates,
    det_curve,
    probit,
    score_histogram,
)

pytest.importorskip("matplotlib")

# Two targets, three non-targets: (FPR, FNR) = (1, 0), (2/3, 0), (1/3, 0), (0, 1/2), (0, 1).
HAND = (np.array([0.9, 0.5, 0.5, 0.2, 0.1]), np.array([1, 1, 0, 0, 0]))


def gaussian_system(trials, distance, seed=0):
    random = np.random.default_rng(seed)
    labels = random.random(trials) < 0.5
    return random.normal(size=trials) + distance * labels, labels


@pytest.fixture
def figures(monkeypatch):
    """The figures saved, for a look at what was drawn."""
    drawn = []

    def save(figure, path):
        drawn.append(figure)
        _save(figure, path)

    monkeypatch.setattr("sslsv.evaluations.plots._save", save)
    return drawn


def is_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    return min(pixels.shape[:2]) > 400 and len(np.unique(pixels[..., :3])) > 20


def test_det_coordinates_are_the_operating_points_in_normal_deviates():
    x, y = det_coordinates(*HAND)
    deviate = NormalDist().inv_cdf
    outside = deviate(LOWEST / 100) - 1
    assert x == pytest.approx([-outside, deviate(2 / 3), deviate(1 / 3), outside, outside])
    assert y == pytest.approx([outside, outside, outside, deviate(1 / 2), -outside])


def test_det_coordinates_stay_few_and_close_to_every_operating_point():
    scores, labels = gaussian_system(200_000, 2.5)
    x, y = det_coordinates(scores, labels)
    assert len(x) < 10_000
    _, fnr, fpr = operating_points(scores, labels)
    inside = (fnr > 1e-3) & (fpr > 1e-3)
    all_x, all_y = probit(fpr[inside]), probit(fnr[inside])
    # x falls along the curve; the drawn curve passes within the resolution of each point.
    drawn = np.interp(-all_x, -x, y)
    assert np.abs(drawn - all_y).max() < 0.02
    # Gaussian scores of equal variance give the straight line x + y = -distance.
    assert np.abs(all_x + all_y + 2.5).max() < 0.1


def test_det_curve_draws_each_system_with_its_eer(tmp_path, figures):
    systems = {"good": gaussian_system(2000, 3.5), "poor": gaussian_system(2000, 1.5, seed=1)}
    det_curve(systems, tmp_path / "new" / "det.png", title="VoxCeleb1-O", p_target=0.05)
    assert is_picture(tmp_path / "new" / "det.png")

    (axes,) = figures[0].axes
    assert axes.get_title() == "VoxCeleb1-O"
    lines = {line.get_label(): line for line in axes.get_lines()}
    for name, (scores, labels) in systems.items():
        rate, cost = eer(scores, labels), min_dcf(scores, labels, p_target=0.05)
        line = lines[f"{name}: EER {rate:.2f} %, minDCF(0.05) {cost:.3f}"]
        assert np.array_equal(line.get_xydata().T, det_coordinates(scores, labels))
        deviate = NormalDist().inv_cdf(rate / 100)
        circles = [
            mark.get_xydata()[0]
            for mark in axes.get_lines()
            if mark.get_marker() == "o" and mark.get_color() == line.get_color()
        ]
        assert circles == [pytest.approx([deviate, deviate])]


@pytest.mark.parametrize("p_target", [None, 0.01])
def test_det_curve_of_degenerate_systems(tmp_path, p_target):
    labels = np.array([0, 0, 1, 1])
    systems = {
        "perfect": (np.array([0.0, 0, 1, 1]), labels),
        "constant": (np.zeros(4), labels),
        "inverted": (np.array([1.0, 1, 0, 0]), labels),
    }
    det_curve(systems, tmp_path / "det.png", p_target=p_target)
    assert is_picture(tmp_path / "det.png")


@pytest.mark.parametrize(
    ("marked", "limits"),
    [
        ([0.05], (0.001, 0.5)),
        ([0.05, 0.45], (0.001, 0.8)),
        ([0.001], (0.0001, 0.5)),
        ([0.00001], (0.00001, 0.5)),
        ([0.7], (0.001, 0.99)),
        ([0.0, 1.0], (0.001, 0.5)),
    ],
)
def test_det_limits_hold_the_marked_rates(marked, limits):
    assert _det_limits(marked) == limits


def test_more_systems_than_colours_still_look_different(tmp_path, figures):
    systems = {str(i): gaussian_system(50, 2, seed=i) for i in range(2 * len(COLOURS))}
    det_curve(systems, tmp_path / "det.png")
    lines = [line for line in figures[0].axes[0].get_lines() if ": EER" in str(line.get_label())]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(systems)


def test_score_histogram(tmp_path, figures):
    scores, labels = gaussian_system(1000, 3)
    score_histogram(scores, labels, tmp_path / "h.png", threshold=1.5, title="scores")
    assert is_picture(tmp_path / "h.png")
    (axes,) = figures[0].axes
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    counts = labels.sum(), (~labels).sum()
    assert shown == [f"non-target (n = {counts[1]})", f"target (n = {counts[0]})", "threshold 1.5"]
    for steps in axes.patches:
        values, edges, _ = steps.get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(1)


def test_score_histogram_of_equal_scores(tmp_path):
    score_histogram(np.ones(3), np.array([0, 1, 1]), tmp_path / "h.png")
    assert is_picture(tmp_path / "h.png")


def test_nothing_to_plot_is_refused(tmp_path):
    with pytest.raises(DataError, match="no system to plot"):
        det_curve({}, tmp_path / "det.png")
    with pytest.raises(DataError, match="no target trial"):
        score_histogram(np.ones(3), np.zeros(3), tmp_path / "h.png")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install sslsv\[plots\]"):
        score_histogram(*HAND, tmp_path / "h.png")
