import sys
from statistics import NormalDist

import numpy as np
import pytest

from sslsv.errors import DataError, UserError
from sslsv.evaluations.metrics import dcf, eer, error_rates, min_dcf, operating_points
from sslsv.evaluations.plots import (
    COLOURS,
    LOWEST,
    MOST_LABELS,
    SHAPES,
    _det_limits,
    confusion,
    det_coordinates,
    det_curve,
    embedding_map,
    probit,
    save,
    score_histogram,
    thresholds,
    tsne,
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

    def note(figure, path):
        drawn.append(figure)
        return save(figure, path)

    monkeypatch.setattr("sslsv.evaluations.plots.save", note)
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


def test_a_histogram_names_several_thresholds_with_the_digits_that_matter(figures):
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.99991, 0.99994, 0.99996, 0.99999])
    figure = score_histogram(scores, labels, threshold={"EER": 0.999951, "FPR 1 %": 0.99996})
    assert figures == [figure]
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[2:] == ["EER: 0.999951", "FPR 1 %: 0.99996"]
    marks = [line for line in axes.get_lines() if str(line.get_label()) in shown]
    assert [line.get_xdata()[0] for line in marks] == [0.999951, 0.99996]
    assert len({line.get_linestyle() for line in marks}) == 2


def test_thresholds_are_those_of_the_metrics():
    scores, labels = gaussian_system(2000, 2)
    found = thresholds(scores, labels, 0.1)
    assert list(found) == ["EER", "minDCF(0.1)", "FPR 1 %"]
    fnr, fpr = error_rates(scores, labels, found["EER"])
    assert fnr == pytest.approx(fpr, abs=0.002)
    assert dcf(*error_rates(scores, labels, found["minDCF(0.1)"]), 0.1) == pytest.approx(
        min_dcf(scores, labels, 0.1)
    )
    assert error_rates(scores, labels, found["FPR 1 %"])[1] == pytest.approx(0.01, abs=0.002)
    assert list(thresholds(np.zeros(2), np.array([0, 1]))) == ["EER"]  # the others reject all


def test_score_histogram_of_equal_scores(tmp_path):
    score_histogram(np.ones(3), np.array([0, 1, 1]), tmp_path / "h.png")
    assert is_picture(tmp_path / "h.png")


def test_nothing_to_plot_is_refused(tmp_path):
    with pytest.raises(DataError, match="no system to plot"):
        det_curve({}, tmp_path / "det.png")
    with pytest.raises(DataError, match="no target trial"):
        score_histogram(np.ones(3), np.zeros(3), tmp_path / "h.png")
    with pytest.raises(DataError, match="no predictions to draw"):
        confusion(np.zeros(0, int), np.zeros(0, int), ["a"], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install sslsv\[plots\]"):
        score_histogram(*HAND, tmp_path / "h.png")


# ---------------------------------------------------------------------------- maps of embeddings


def two_clusters(each=15, dim=8, seed=0):
    """Directions near two axes, of any length."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([0, 1], each)
    points = np.eye(dim)[groups] + 0.05 * rng.standard_normal((2 * each, dim))
    return (points * rng.uniform(0.1, 10, (2 * each, 1))).astype(np.float32), groups


def test_a_map_is_the_same_each_time_and_parts_what_is_far():
    points, groups = two_clusters()
    places = tsne(points)
    assert places.shape == (30, 2)
    np.testing.assert_array_equal(places, tsne(points))
    assert np.abs(places - tsne(points, seed=1)).max() > 1e-3
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    same = groups[:, None] == groups[None]
    assert distances[same].max() < distances[~same].min()


def test_a_map_that_starts_from_another_lies_like_it():
    points, _ = two_clusters()
    first = tsne(points)
    first = first - first.mean(axis=0)
    turn = np.array([[0.6, 0.8], [0.8, -0.6]])  # a rotation with a mirror
    one, other = tsne(points, start=first), tsne(points, start=first @ turn)

    def alike(a, b):
        return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)

    assert alike(one, first) > 0.9
    assert alike(other, first @ turn) > 0.9
    assert alike(other, first) < 0.9


def test_a_map_is_of_directions_and_not_of_lengths():
    """Clusters that differ in length alone lie on each other: neighbours are of either."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((20, 6))
    places = tsne(np.concatenate([points, 100 * points]))
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    partner = (np.arange(40) + 20) % 40
    assert np.mean(distances.argmin(axis=1) == partner) > 0.9


def test_three_points_are_the_fewest_of_a_map(tmp_path):
    assert tsne(np.eye(3)).shape == (3, 2)
    for count in (0, 1, 2):
        with pytest.raises(DataError, match=f"a map needs 3 embeddings or more, got {count}"):
            embedding_map(np.ones((count, 4)), np.zeros(count, int), tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


def test_a_map_has_a_look_for_each_group(tmp_path, figures):
    count = len(COLOURS) + 3
    points = np.random.default_rng(0).standard_normal((2 * count, 5))
    groups = np.repeat(np.arange(count), 2)[::-1]
    embedding_map(points, groups, tmp_path / "map.png", title="vox", plural="emotions")
    assert is_picture(tmp_path / "map.png")
    (axes,) = figures[0].axes
    assert axes.get_title() == "vox"
    assert axes.get_xlabel() == f"t-SNE of {2 * count} embeddings of {count} emotions"
    places = tsne(points)
    lines = axes.get_lines()
    for group, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xydata(), places[groups == group])
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(lines) == count


def test_more_groups_than_looks_are_still_drawn(tmp_path, figures):
    count = len(SHAPES) * len(COLOURS) + 3
    points = np.random.default_rng(0).standard_normal((count, 3))
    embedding_map(points, np.arange(count), tmp_path / "map.png")
    assert len(figures[0].axes[0].get_lines()) == count


# ------------------------------------------------------------------------------------ confusions


def cells_of(axes):
    """{(row, column): text}."""
    return {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}


def test_a_confusion_shows_counts_and_shares_of_what_is_true(tmp_path, figures):
    true, predicted = np.array([0, 0, 0, 3, 3]), np.array([0, 0, 2, 3, 0])
    confusion(true, predicted, ["glad", "not met", "sad", "angry"], tmp_path / "c.png", "title")
    assert is_picture(tmp_path / "c.png")
    (axes,) = figures[0].axes
    assert axes.get_title() == "title"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "true")
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["glad", "sad", "angry"]
    (image,) = axes.get_images()
    expected = np.array([[2, 1, 0], [0, 0, 0], [1, 0, 1]])
    shares = expected / [[3], [1], [2]]
    np.testing.assert_allclose(image.get_array(), shares)
    assert image.get_clim() == (0, 1)
    assert cells_of(axes) == {(i, j): str(expected[i, j]) for i in range(3) for j in range(3)}


def test_a_confusion_of_many_labels_shows_the_most_frequent_ones(tmp_path, figures):
    """Code 0 is met least and left out; there is no room for counts."""
    count = MOST_LABELS + 1
    true = np.repeat(np.arange(count), np.append(1, np.full(count - 1, 2)))
    names = [f"label {i}" for i in range(count)]
    confusion(true, true, names, tmp_path / "c.png")
    assert is_picture(tmp_path / "c.png")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == names[1:]
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), np.eye(MOST_LABELS))
    assert not axes.texts


def test_a_confusion_of_one_label(tmp_path):
    confusion(np.zeros(3, int), np.zeros(3, int), ["only"], tmp_path / "c.png")
    assert is_picture(tmp_path / "c.png")
