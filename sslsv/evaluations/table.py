"""Metrics as a table to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_TITLES = {
    "eer": "EER (%)",
    "eer_rocch": "EER, ROC hull (%)",
    "mindcf": "minDCF",
    "actdcf": "actDCF",
    "cllr": "Cllr",
    "mincllr": "minCllr",
    "avgrprec": "AvgRPrec",
    "f1_score": "F1, weighted",
    "f1_macro": "F1, macro",
}
_DECIMALS = {"eer": 2, "eer_rocch": 2}  # four for all others
_OF_CLASSES = {"accuracy", "f1_score", "f1_macro"}  # stand in a table of their own


def format_table(
    results: Mapping[str, Mapping[str, float]],
    bars: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> str:
    """``{system: {"<task>/<list>/<metric>": value}}`` -> one row for each list and system, with
    intervals ``bars`` of the same names."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for system, values in results.items():
        for name, value in values.items():
            place, _, metric = name.rpartition("/")
            digits = _DECIMALS.get(metric, 4)
            cell = f"{value:.{digits}f}"
            if bar := (bars or {}).get(system, {}).get(name):
                cell += " [{:.{d}f}, {:.{d}f}]".format(*bar, d=digits)
            rows.setdefault((place, system), {})[metric] = cell
    groups: list[dict[tuple[str, str], dict[str, str]]] = [{}, {}]
    for row, cells in rows.items():
        groups[not _OF_CLASSES.isdisjoint(cells)][row] = cells
    return "\n\n".join(_table(group) for group in groups if group)


def _table(rows: dict[tuple[str, str], dict[str, str]]) -> str:
    metrics = list(dict.fromkeys(metric for cells in rows.values() for metric in cells))
    table = [["evaluation", "system", *(_TITLES.get(m, m) for m in metrics)]]
    for (place, system), cells in sorted(rows.items(), key=lambda row: row[0][0]):
        table.append([place, system, *(cells.get(m, "-") for m in metrics)])
    return align(table)


def align(table: Sequence[Sequence[str]]) -> str:
    """Lines of a table whose first row is its head; two columns of names, then numbers."""
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for row in table:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
