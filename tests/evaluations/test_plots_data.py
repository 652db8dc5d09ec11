"""Statistics of lists: known files, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sslsv import audio
from sslsv.errors import DataError
from sslsv.evaluations.plots_data import MOST_BARS, read_list, shared, statistics_plot, summary

pytest.importorskip("matplotlib")

FILES = {  # name: seconds, rate, amplitude
    "a/s1/0.wav": (1.0, 16000, 0.5),
    "a/s1/1.wav": (2.0, 16000, 0.05),
    "a/s2/0.wav": (3.0, 8000, 0.5),
    "b/s1/0.wav": (4.0, 16000, 0.5),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (seconds, rate, amplitude) in FILES.items():
        time = np.arange(int(seconds * rate)) / rate
        audio.write(tmp_path / name, amplitude * np.sin(2 * np.pi * 100 * time), rate)
    rows = [f"{name},{name[0]}" for name in FILES]
    (tmp_path / "list.csv").write_text("\n".join(["File,Speaker", *rows]) + "\n")
    (tmp_path / "other.csv").write_text("File,Speaker,Session\nb/s1/0.wav,b,x\na/s1/0.wav,c,x\n")
    return tmp_path


def test_a_list_is_read_with_what_its_files_are(folder: Path) -> None:
    table = read_list("list.csv", folder)
    assert table["seconds"].tolist() == pytest.approx([1, 2, 3, 4], abs=1e-3)
    assert table["rate"].tolist() == [16000, 16000, 8000, 16000]
    assert table["channels"].tolist() == [1] * 4
    assert table["Session"].tolist() == ["a/s1", "a/s1", "a/s2", "b/s1"]
    loud = 20 * np.log10(0.5 / np.sqrt(2))  # a sine's mean square is half of its square
    assert table["level"].tolist() == pytest.approx([loud, loud - 20, loud, loud], abs=0.02)
    assert "level" not in read_list("list.csv", folder, levels=False)
    assert read_list("list.csv", folder, most=2)["File"].tolist() == ["a/s1/0.wav", "b/s1/0.wav"]


def test_a_column_for_sessions_comes_before_folders(folder: Path) -> None:
    assert read_list("other.csv", folder)["Session"].tolist() == ["x", "x"]


def test_totals(folder: Path) -> None:
    tables = {"one": read_list("list.csv", folder), "two": read_list("other.csv", folder)}
    found = summary(tables)
    assert found["one"].to_dict() == {
        "files": "4",
        "speakers": "2",
        "sessions": "3",
        "hours": "0.00",
        "shortest (s)": "1.00",
        "median (s)": "2.50",
        "longest (s)": "4.00",
        "files a speaker, median": "2",
        "sessions a speaker, median": "1.5",
        "sample rates (Hz)": "8000: 1, 16000: 3",
        "channels": "1",
    }
    assert found["two"]["sessions"] == "2"  # of one name, but of two speakers
    assert found["two"]["sample rates (Hz)"] == "16000"


def test_what_lists_share(folder: Path) -> None:
    one, two = read_list("list.csv", folder), read_list("other.csv", folder)
    assert shared({"one": one, "two": two}) == {"one and two": (1, 2)}
    assert shared({"one": one}) == {}


def test_shares_of_files_and_speakers_are_drawn(folder: Path) -> None:
    tables = {"one": read_list("list.csv", folder), "two": read_list("other.csv", folder)}
    figure = statistics_plot(tables)
    durations, levels, utterances, sessions = figure.axes
    for axes in (durations, levels):
        for steps in axes.patches:
            assert steps.get_data().values.sum() == pytest.approx(100)
    values, edges, _ = durations.patches[0].get_data()
    assert edges[[0, -1]].tolist() == pytest.approx([1, 4], abs=1e-3)
    assert values[values > 0].tolist() == [25] * 4
    assert [bar.get_height() for bar in utterances.patches] == [50, 50, 100, 0]  # one, then two
    assert [text.get_text() for text in utterances.get_xticklabels()] == ["1", "3"]
    assert [bar.get_height() for bar in sessions.patches] == [50, 50, 100, 0]
    assert [text.get_text() for text in sessions.get_xticklabels()] == ["1", "2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_counts_of_many_values_become_a_histogram(folder: Path) -> None:
    table = read_list("list.csv", folder)
    many = table.iloc[np.zeros(sum(range(MOST_BARS + 3)), int)].copy()
    many["Speaker"] = np.repeat(np.arange(MOST_BARS + 3), np.arange(MOST_BARS + 3)).astype(str)
    utterances = statistics_plot({"many": many}).axes[2]
    (steps,) = utterances.patches
    assert steps.get_data().values.sum() == pytest.approx(100)


def test_without_levels_their_place_is_empty(folder: Path) -> None:
    figure = statistics_plot({"one": read_list("list.csv", folder, levels=False)})
    assert [axes.axison for axes in figure.axes] == [True, False, True, True]


def test_lists_that_cannot_be_used_are_refused(folder: Path) -> None:
    (folder / "no_speaker.csv").write_text("File\na/s1/0.wav\n")
    (folder / "empty.csv").write_text("File,Speaker\n")
    with pytest.raises(DataError, match="no column 'Speaker'; it has File"):
        read_list("no_speaker.csv", folder)
    with pytest.raises(DataError, match="the list is empty"):
        read_list("empty.csv", folder)
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_list("none.csv", folder)
    with pytest.raises(DataError, match="no list to plot"):
        statistics_plot({})
