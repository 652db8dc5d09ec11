"""Metrics as a table to read."""

from __future__ import annotations

_TITLES = {"eer": "EER (%)", "mindcf": "minDCF", "actdcf": "actDCF", "cllr": "Cllr"}
_TITLES |= {"avgrprec": "AvgRPrec"}
_DECIMALS = {"eer": 2}  # four for all others


def format_table(results: dict[str, dict[str, float]]) -> str:
    """``{system: {"<task>/<list>/<metric>": value}}`` -> one row for each list and system."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for system, values in results.items():
        for name, value in values.items():
            place, _, metric = name.rpartition("/")
            cells = rows.setdefault((place, system), {})
            cells[metric] = f"{value:.{_DECIMALS.get(metric, 4)}f}"
    metrics = list(dict.fromkeys(metric for cells in rows.values() for metric in cells))
    table = [["evaluation", "system", *(_TITLES.get(m, m) for m in metrics)]]
    for (place, system), cells in sorted(rows.items(), key=lambda row: row[0][0]):
        table.append([place, system, *(cells.get(m, "-") for m in metrics)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
