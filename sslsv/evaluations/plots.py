"""Pictures of results (PNG): DET curves, score histograms, maps of embeddings, confusions."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sslsv.errors import DataError, UserError
from sslsv.evaluations.metrics import check, dcf, equal_error, operating_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow is too pale here.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
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
    path: str | os.PathLike,
    title: str | None = None,
    p_target: float | None = None,
) -> None:
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
    figure, axes = _new_figure(6.0, 6.0, title)
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
    _legend_below(axes, title=shapes)
    _save(figure, path)


def score_histogram(
    scores: np.ndarray,
    labels: np.ndarray,
    path: str | os.PathLike,
    threshold: float | None = None,
    title: str | None = None,
) -> None:
    """Draw how the scores (T,) of target and non-target trials are distributed.

    Each class is a density of its own, so that a few targets can be seen beside many non-targets.

    Args:
        path: PNG file to write.
        threshold: a score to mark, such as the one at which decisions are made.

    Raises:
        DataError: the scores cannot be evaluated.
        UserError: matplotlib is not installed.
    """
    scores, labels = check(scores, labels)
    figure, axes = _new_figure(7.0, 4.2, title)
    rarer = min(labels.sum(), (~labels).sum())
    edges = np.histogram_bin_edges(scores, bins=int(np.clip(2 * np.sqrt(rarer), 10, 120)))
    for name, chosen, colour in (
        ("non-target", ~labels, COLOURS[1]),
        ("target", labels, COLOURS[0]),
    ):
        density, _ = np.histogram(scores[chosen], edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(density, edges, color=colour, label=f"{name} (n = {chosen.sum():,})")
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(xlabel="score", ylabel="density")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    _legend_below(axes, ncols=3)
    _save(figure, path)


def embedding_map(
    embeddings: np.ndarray,
    groups: np.ndarray,
    path: str | os.PathLike,
    title: str | None = None,
    plural: str = "speakers",
    seed: int = 0,
) -> None:
    """Draw embeddings (N, D) in the plane by t-SNE of their cosines, a colour and shape for each of
    ``groups`` (N,), which are ``plural``. Near points are alike; distances between clusters mean
    nothing.

    Raises:
        DataError: fewer than 3 embeddings.
        UserError: matplotlib is not installed.
    """
    points = tsne(embeddings, seed)
    figure, axes = _new_figure(6.0, 6.0, title)
    looks = itertools.cycle(itertools.product(SHAPES, COLOURS))
    for group, (shape, colour) in zip(np.unique(groups), looks, strict=False):
        x, y = points[groups == group].T
        axes.plot(x, y, shape, color=colour, markersize=5, markeredgewidth=0, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    count = len(np.unique(groups))
    axes.set_xlabel(f"t-SNE of {len(points)} embeddings of {count} {plural}")
    _save(figure, path)


def tsne(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places (N, 2) of embeddings (N, D) in a plane, the same for the same seed."""
    from sklearn.manifold import TSNE

    count = len(embeddings)
    if count < LEAST_OF_A_MAP:
        raise DataError(f"a map needs {LEAST_OF_A_MAP} embeddings or more, got {count}")
    perplexity = min(30.0, (count - 1) / 3)
    how = {"metric": "cosine", "init": "random", "random_state": seed}
    return TSNE(perplexity=perplexity, **how).fit_transform(np.asarray(embeddings, np.float64))


def confusion(
    true: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike,
    title: str | None = None,
) -> None:
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
    figure, axes = _new_figure(side, side, title)
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
    _save(figure, path)


def _new_figure(width: float, height: float, title: str | None) -> "tuple[Figure, Axes]":
    # Figure alone, without pyplot: no window system is asked for and no figure stays in memory.
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install sslsv[plots]") from None
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.add_subplot()
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title)
    return figure, axes


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


def _legend_below(axes: "Axes", **options: Any) -> None:
    """Under the axis label (4 lines down), where it hides no curve however long the names are."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, frameon=False, **options
    )


def _save(figure: "Figure", path: str | os.PathLike) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15)
