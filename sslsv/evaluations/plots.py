"""Pictures of results: DET curves, score histograms, maps of embeddings, confusions.

Each function returns the figure, and writes it as PNG where it is given a path.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sslsv.errors import DataError
from sslsv.evaluations.figures import (
    COLOURS,
    LINE_STYLES,
    SHAPES,
    legend_below,
    new_figure,
    save,
)
from sslsv.evaluations.metrics import (
    check,
    dcf,
    eer_threshold,
    equal_error,
    fpr_threshold,
    operating_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_OF_A_MAP = 3  # embeddings
MOST_LABELS = 60  # of a confusion matrix
# Per cent. The first ones matter most: a tick is left out where its label would touch one of them.
TICKS = (0.001, 0.01, 0.1, 1, 10, 50, 90, 99, 5, 20, 80, 95, 2, 40, 60, 0.5, 0.2, 30, 70)
LOWEST = 0.001  # per cent, the smallest rate that a DET plot ever shows


def probit(rates: Any) -> np.ndarray:
    """Normal deviates of ``rates`` (0 to 1, any shape); 0 and 1 give infinities.

    On these axes scores that are Gaussian in each class give a straight DET curve.
    """
    from scipy.special import ndtri

    return ndtri(np.asarray(rates, dtype=np.float64))


def det_coordinates(
    scores: np.ndarray, labels: np.ndarray, resolution: float = 0.002
) -> tuple[np.ndarray, np.ndarray]:
    """The DET curve as normal deviates of (FPR, FNR), from accept-all to reject-all.

    Args:
        scores: (T,) higher meaning "same speaker".
        labels: (T,) 1 for a target trial.
        resolution: points nearer than about this on both axes are merged into one, so that the
            size of the curve depends on the picture and not on T.

    Returns:
        x, y (P,), finite: rates of 0 and 1 are moved just outside the widest plot, so that
        a curve leaves the picture in the right direction.
    """
    _, fnr, fpr = operating_points(scores, labels)
    outside = probit(LOWEST / 100) - 1
    x, y = (np.clip(probit(rate), outside, -outside) for rate in (fpr, fnr))
    cells = np.stack([x, y]) // resolution
    is_new = np.append(True, (np.diff(cells) != 0).any(axis=0))
    is_new[-1] = True
    return x[is_new], y[is_new]


def det_curve(
    systems: dict[str, tuple[np.ndarray, np.ndarray]],
    path: str | os.PathLike | None = None,
    title: str | None = None,
    p_target: float | None = None,
) -> "Figure":
    """Draw the detection error trade-off of one or more systems, each with its EER (circle).

    Args:
        systems: name in the legend -> (scores (T,), labels (T,)).
        path: PNG file to write.
        p_target: also mark the minDCF operating point for this prior and unit costs (triangle).

    Raises:
        DataError: there is no system, or the scores of one cannot be evaluated.
        UserError: matplotlib is not installed.
    """
    if not systems:
        raise DataError("no system to plot: give det_curve at least one name with its scores")
    figure, axes = new_figure(6.0, 6.0, title)
    looks = itertools.cycle(itertools.product(LINE_STYLES, COLOURS))
    marks: list[tuple[float, float, str, str]] = []  # FPR, FNR, shape, colour
    for (name, (scores, labels)), (style, colour) in zip(systems.items(), looks, strict=False):
        _, fnr, fpr = operating_points(scores, labels)
        rate = equal_error(fnr, fpr)
        marks.append((rate, rate, "o", colour))
        label = f"{name}: EER {100 * rate:.2f} %"
        if p_target is not None:
            cost = dcf(fnr, fpr, p_target)
            best = int(cost.argmin())
            marks.append((float(fpr[best]), float(fnr[best]), "^", colour))
            label += f", minDCF({p_target:g}) {cost[best]:.3f}"
        x, y = det_coordinates(scores, labels)
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, label=label)

    low, high = _det_limits([rate for mark in marks for rate in mark[:2]])
    for *point, shape, colour in marks:
        x, y = probit(np.clip(point, low, high))
        # On the frame and whole where the rate is outside it, such as an error rate of 0.
        axes.plot(
            x,
            y,
            shape,
            color=colour,
            markersize=9,
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
        )
    _det_axes(axes, low, high)
    shapes = "● EER" if p_target is None else "● EER   ▲ minDCF"
    legend_below(axes, title=shapes)
    return save(figure, path)


def score_histogram(
    scores: np.ndarray,
    labels: np.ndarray,
    path: str | os.PathLike | None = None,
    threshold: float | Mapping[str, float] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw how the scores (T,) of target and non-target trials are distributed.

    Each class is a density of its own, so that a few targets can be seen beside many non-targets.

    Args:
        path: PNG file to write.
        threshold: a score to mark, such as the one at which decisions are made; or several by name.

    Raises:
        DataError: the scores cannot be evaluated.
        UserError: matplotlib is not installed.
    """
    scores, labels = check(scores, labels)
    figure, axes = new_figure(7.0, 4.2, title)
    rarer = min(labels.sum(), (~labels).sum())
    edges = np.histogram_bin_edges(scores, bins=int(np.clip(2 * np.sqrt(rarer), 10, 120)))
    for name, chosen, colour in (
        ("non-target", ~labels, COLOURS[1]),
        ("target", labels, COLOURS[0]),
    ):
        density, _ = np.histogram(scores[chosen], edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(density, edges, color=colour, label=f"{name} (n = {chosen.sum():,})")
    if isinstance(threshold, Mapping):
        threshold = {f"{name}:": score for name, score in threshold.items()}
    else:
        threshold = {} if threshold is None else {"threshold": threshold}
    span = edges[-1] - edges[0]
    for (name, score), style in zip(threshold.items(), itertools.cycle(LINE_STYLES[1:])):
        axes.axvline(score, color="black", linestyle=style, label=f"{name} {_short(score, span)}")
    axes.set(xlabel="score", ylabel="density")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    legend_below(axes, ncols=3)
    return save(figure, path)


def _short(score: float, span: float) -> str:
    """With three digits of what tells it from other scores, which reach over ``span``."""
    common = np.log10(max(abs(score), 1e-12) / max(span, 1e-12))
    return f"{score:.{3 + int(np.clip(np.floor(common) + 1, 0, 9))}g}"


def thresholds(scores: np.ndarray, labels: np.ndarray, p_target: float = 0.05) -> dict[str, float]:
    """Thresholds to mark, by name: of the EER, of minDCF at ``p_target``, and the one that accepts
    1 % of non-targets; without those that reject all."""
    scores_at, fnr, fpr = operating_points(scores, labels)
    found = {
        "EER": eer_threshold(scores, labels),
        f"minDCF({p_target:g})": float(scores_at[dcf(fnr, fpr, p_target).argmin()]),
        "FPR 1 %": fpr_threshold(scores, labels, 0.01),
    }
    return {name: score for name, score in found.items() if np.isfinite(score)}


def embedding_map(
    embeddings: np.ndarray,
    groups: np.ndarray,
    path: str | os.PathLike | None = None,
    title: str | None = None,
    plural: str = "speakers",
    seed: int = 0,
) -> "Figure":
    """Draw embeddings (N, D) in the plane by t-SNE of their cosines, a colour and shape for each of
    ``groups`` (N,), which are ``plural``. Near points are alike; distances between clusters mean
    nothing.

    Raises:
        DataError: fewer than 3 embeddings.
        UserError: matplotlib is not installed.
    """
    points = tsne(embeddings, seed)
    figure, axes = new_figure(6.0, 6.0, title)
    looks = itertools.cycle(itertools.product(SHAPES, COLOURS))
    for group, (shape, colour) in zip(np.unique(groups), looks, strict=False):
        x, y = points[groups == group].T
        axes.plot(x, y, shape, color=colour, markersize=5, markeredgewidth=0, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    count = len(np.unique(groups))
    axes.set_xlabel(f"t-SNE of {len(points)} embeddings of {count} {plural}")
    return save(figure, path)


def tsne(embeddings: np.ndarray, seed: int = 0, start: np.ndarray | None = None) -> np.ndarray:
    """Places (N, 2) of embeddings (N, D) in a plane, the same for the same seed.

    ``start``: places (N, 2) of the same points in another map, from which the search starts and by
    which its result is turned, or mirrored, so that both lie alike; else it starts at random.
    """
    from sklearn.manifold import TSNE

    count = len(embeddings)
    if count < LEAST_OF_A_MAP:
        raise DataError(f"a map needs {LEAST_OF_A_MAP} embeddings or more, got {count}")
    perplexity = min(30.0, (count - 1) / 3)
    init: Any = "random"
    if start is not None:  # as small as a random start, or points would stay where they are
        init = 1e-4 * (start - start.mean(axis=0)) / max(float(start.std(axis=0).max()), 1e-12)
    how = {"metric": "cosine", "init": init, "random_state": seed}
    places = TSNE(perplexity=perplexity, **how).fit_transform(np.asarray(embeddings, np.float64))
    return places if start is None else _turned(places, start)


def _turned(places: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Points (N, 2), turned and mirrored to be as near to others as they can."""
    from scipy.linalg import orthogonal_procrustes

    places = places - places.mean(axis=0)
    turn, _ = orthogonal_procrustes(places, like - like.mean(axis=0))
    return places @ turn


def confusion(
    true: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw which labels (codes (N,) into ``names``) are taken for which: shares of each row.

    Only labels that are met are drawn, the ``MOST_LABELS`` most frequent ones; counts are written
    into the cells where there is room.

    Raises:
        DataError: there is nothing to draw.
        UserError: matplotlib is not installed.
    """
    if not len(true):
        raise DataError("no predictions to draw")
    seen = np.bincount(np.concatenate([true, predicted]), minlength=len(names))
    met = np.sort(np.argsort(-seen, kind="stable")[: min(MOST_LABELS, int((seen > 0).sum()))])
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true, predicted), 1)
    counts = counts[np.ix_(met, met)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.55 * len(met) + 2, 4, 12))
    figure, axes = new_figure(side, side, title)
    axes.grid(False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [names[code] for code in met]
    rotation = 0 if max(map(len, labels)) < 5 and len(labels) < 12 else 90
    axes.set_xticks(range(len(met)), labels, rotation=rotation)
    axes.set_yticks(range(len(met)), labels)
    axes.set(xlabel="taken for", ylabel="true")
    if len(met) <= 20:
        for i, j in np.ndindex(counts.shape):
            colour = "white" if shares[i, j] > 0.6 else "black"
            axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color=colour, fontsize=9)
    return save(figure, path)


def _det_limits(marked: list[float]) -> tuple[float, float]:
    """Limits of both axes: 0.1 to 50 %, or wider where a marked rate lies near or beyond them."""
    inside = [rate for rate in marked if 0 < rate < 1]
    low = next((low for low in (1e-3, 1e-4) if all(rate > 1.5 * low for rate in inside)), 1e-5)
    high = next((high for high in (0.5, 0.8) if all(rate < 0.8 * high for rate in inside)), 0.99)
    return low, high


def _det_axes(axes: "Axes", low: float, high: float) -> None:
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, linestyle=":")  # FNR = FPR
    limits = probit([low, high])
    room = 0.05 * (limits[1] - limits[0])
    ticks: dict[float, str] = {}  # position -> label
    for tick in TICKS:
        position = float(probit(tick / 100))
        inside = limits[0] <= position <= limits[1]
        if inside and all(abs(position - other) > room for other in ticks):
            ticks[position] = f"{tick:g}"
    positions, names = list(ticks), list(ticks.values())
    axes.set_xticks(positions, names)
    axes.set_yticks(positions, names)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="false acceptance rate (%)", ylabel="false rejection rate (%)")
