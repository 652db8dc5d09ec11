"""What a list of audio files holds: durations, speakers, sessions, rates and levels."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sslsv import audio
from sslsv.errors import DataError
from sslsv.evaluations.figures import COLOURS, new_panels, save, share_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

SESSION = "Session"
MOST_BARS = 40


def read_list(
    name: str, base_path: str | os.PathLike, levels: bool = True, most: int | None = None
) -> "DataFrame":
    """A row for each file of the CSV ``base_path/name`` (columns File and Speaker).

    Columns: those of the CSV, ``Session`` (where it has none: the file's folder), ``seconds``,
    ``rate`` (Hz), ``channels`` and, with ``levels``, which reads all the audio, ``level`` (dB
    of the mean square, 0 is full scale).

    Args:
        most: read so many files only, evenly spaced in the list.

    Raises:
        DataError: the list or a file cannot be read.
    """
    import pandas as pd

    path = Path(base_path) / name
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({str(error).strip()})") from None
    for column in ("File", "Speaker"):
        if column not in table.columns:
            raise DataError(f"{path}: no column '{column}'; it has {', '.join(table.columns)}")
    if table.empty:
        raise DataError(f"{path}: the list is empty")
    if most is not None and most < len(table):
        table = table.iloc[np.linspace(0, len(table) - 1, most).round().astype(int)]
    table = table.reset_index(drop=True)
    if SESSION not in table.columns:
        table[SESSION] = [os.path.dirname(file) for file in table["File"]]
    facts = [_facts(Path(base_path) / file, levels) for file in table["File"]]
    return table.join(pd.DataFrame(facts))


def _facts(path: Path, levels: bool) -> dict[str, float]:
    with audio.AudioFile(path, resample=True) as file:
        facts: dict[str, float] = {
            "seconds": file.length / audio.SAMPLE_RATE,
            "rate": file.file_rate,
            "channels": file.channels,
        }
        if levels:
            power = float(np.mean(np.square(file.read(0, file.length), dtype=np.float64)))
            facts["level"] = 10 * np.log10(max(power, 1e-12))
    return facts


def summary(lists: Mapping[str, "DataFrame"]) -> "DataFrame":
    """A column of totals and medians for each list."""
    import pandas as pd

    columns = {}
    for name, table in lists.items():
        by_speaker = table.groupby("Speaker")
        columns[name] = {
            "files": f"{len(table):,}",
            "speakers": f"{table['Speaker'].nunique():,}",
            "sessions": f"{len(_sessions(table)):,}",
            "hours": f"{table['seconds'].sum() / 3600:.2f}",
            "shortest (s)": f"{table['seconds'].min():.2f}",
            "median (s)": f"{table['seconds'].median():.2f}",
            "longest (s)": f"{table['seconds'].max():.2f}",
            "files a speaker, median": f"{by_speaker.size().median():g}",
            "sessions a speaker, median": f"{by_speaker[SESSION].nunique().median():g}",
            "sample rates (Hz)": _counts(table["rate"]),
            "channels": _counts(table["channels"]),
        }
    return pd.DataFrame(columns)


def _sessions(table: "DataFrame") -> "DataFrame":
    """Names of sessions may come again with another speaker."""
    return table[["Speaker", SESSION]].drop_duplicates()


def _counts(values: "Series") -> str:
    found = values.value_counts().sort_index()
    if len(found) == 1:
        return f"{found.index[0]}"
    return ", ".join(f"{value}: {count:,}" for value, count in found.items())


def shared(lists: Mapping[str, "DataFrame"]) -> dict[str, tuple[int, int]]:
    """Of each pair of lists, how many speakers and files are in both: no test speaker should be."""
    names = list(lists)
    found = {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = lists[first], lists[second]
            speakers, files = (len(set(a[c]) & set(b[c])) for c in ("Speaker", "File"))
            found[f"{first} and {second}"] = (speakers, files)
    return found


def statistics_plot(
    lists: Mapping[str, "DataFrame"],
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw durations and levels of files, and utterances and sessions of speakers, as shares of
    each list.

    Raises:
        DataError: there is no list.
        UserError: matplotlib is not installed.
    """
    if not lists:
        raise DataError("no list to plot: give at least one")
    with_levels = all("level" in table for table in lists.values())
    figure, grid = new_panels(8.4, 6.0, 2, 2, title)
    (durations, levels), (utterances, sessions) = grid
    _histogram(durations, {n: t["seconds"].to_numpy() for n, t in lists.items()})
    durations.set(xlabel="duration (s)", ylabel="files (%)")
    if with_levels:
        _histogram(levels, {n: t["level"].to_numpy() for n, t in lists.items()})
        levels.set(xlabel="level (dB, 0 is full scale)", ylabel="files (%)")
    else:
        levels.set_axis_off()
    _bars(utterances, {n: t.groupby("Speaker").size().to_numpy() for n, t in lists.items()})
    utterances.set(xlabel="utterances of a speaker", ylabel="speakers (%)")
    per_speaker = {n: t.groupby("Speaker")[SESSION].nunique().to_numpy() for n, t in lists.items()}
    _bars(sessions, per_speaker)
    sessions.set(xlabel="sessions of a speaker", ylabel="speakers (%)")
    share_legend(figure, [durations], 4)
    return save(figure, path)


def _histogram(axes: "Axes", samples: Mapping[str, np.ndarray]) -> None:
    together = np.concatenate(list(samples.values()))
    edges = np.histogram_bin_edges(together, bins=20)
    for (name, values), colour in zip(samples.items(), COLOURS, strict=False):
        counts, _ = np.histogram(values, edges)
        axes.stairs(100 * counts / len(values), edges, color=colour, linewidth=1.6, label=name)
    axes.set_ylim(bottom=0)


def _bars(axes: "Axes", samples: Mapping[str, np.ndarray]) -> None:
    """Of whole numbers: a bar for each, side by side; of many different ones a histogram."""
    values = np.unique(np.concatenate(list(samples.values())))
    if len(values) > MOST_BARS:
        _histogram(axes, samples)
        return
    width = min(0.8 / len(samples), 0.25)
    for i, ((_, found), colour) in enumerate(zip(samples.items(), COLOURS, strict=False)):
        shares = [100 * np.mean(found == value) for value in values]
        offset = (i - (len(samples) - 1) / 2) * width
        axes.bar(np.arange(len(values)) + offset, shares, width, color=colour)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.grid(False, axis="x")
