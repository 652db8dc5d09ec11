"""How all pictures look: colours, a new figure, a legend below it, writing it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslsv.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow is too pale here.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
SHAPES = ("o", "s", "^", "D", "v", "P", "X")


def new_figure(width: float, height: float, title: str | None = None) -> "tuple[Figure, Axes]":
    """A figure of so many inches with one pair of axes. UserError: matplotlib is not installed."""
    figure, ((axes,),) = new_panels(width, height, title=title)
    return figure, axes


def new_panels(
    width: float, height: float, rows: int = 1, columns: int = 1, title: str | None = None
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure of so many inches with rows of axes.

    Raises:
        UserError: matplotlib is not installed.
    """
    # Figure alone, without pyplot: no window system is asked for and no figure stays in memory.
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install sslsv[plots]") from None
    layout: Any = "constrained" if rows * columns > 1 else None
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(True, color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    if title and rows * columns == 1:
        grid[0, 0].set_title(title)
    elif title:
        figure.suptitle(title)
    return figure, [list(row) for row in grid]


def legend_below(axes: "Axes", **options: Any) -> None:
    """Under the axis label (4 lines down), where it hides no curve however long the names are."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, frameon=False, **options
    )


def share_legend(figure: "Figure", panels: "Sequence[Axes]", columns: int, **options: Any) -> None:
    """One legend below all panels of `new_panels`, in which a name looks alike."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    ncols = min(columns, len(handles))
    options |= {"loc": "outside lower center", "ncols": ncols, "frameon": False}
    figure.legend(list(handles.values()), list(handles), **options)


def save(figure: "Figure", path: str | os.PathLike | None) -> "Figure":
    """Write ``figure`` as PNG where there is a path; returns it, for a notebook to show."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15)
    return figure
