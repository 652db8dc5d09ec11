"""Figures: panels, legends that are shared, and how they are written or handed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslsv.evaluations.figures import legend_below, new_figure, new_panels, save, share_legend

pytest.importorskip("matplotlib")


def test_a_title_stands_over_the_axes_or_over_all_panels() -> None:
    _, axes = new_figure(3, 3, "one")
    assert axes.get_title() == "one"
    figure, grid = new_panels(6, 3, 2, 3, title="six")
    assert (len(grid), len(grid[0])) == (2, 3)
    assert figure.get_suptitle() == "six"
    assert [axes.get_title() for row in grid for axes in row] == [""] * 6


def test_a_shared_legend_has_each_name_once() -> None:
    figure, (row,) = new_panels(6, 3, columns=2)
    for axes, names in zip(row, (["a", "b"], ["b", "c"]), strict=True):
        for name in names:
            axes.plot([0, 1], label=name)
    share_legend(figure, row, 4)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]


def test_a_legend_below_lies_under_the_axes() -> None:
    figure, axes = new_figure(4, 3)
    axes.plot([0, 1], label="a name")
    legend_below(axes)
    figure.canvas.draw()
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0


def test_save_writes_where_there_is_a_path_and_returns_the_figure(tmp_path: Path) -> None:
    figure, _ = new_figure(2, 2)
    assert save(figure, None) is figure
    assert not list(tmp_path.iterdir())
    assert save(figure, tmp_path / "new" / "x.png") is figure
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(b"\x89PNG")
