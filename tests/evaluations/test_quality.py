"""Measures of files: written, read, taken from audio, refused."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sslsv.errors import DataError
from sslsv.evaluations.base import Measures
from sslsv.evaluations.quality import log_durations, read_measures, write_measures


def test_measures_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3))
    files = ["a.wav", "b,c.wav", 'd"e.wav']
    write_measures(tmp_path / "m.csv", Measures(files, dict(zip("xy", values, strict=True))))
    found = read_measures([tmp_path / "m.csv"])
    assert found == {n: dict(zip(files, v, strict=True)) for n, v in zip("xy", values, strict=True)}
    assert read_measures([tmp_path / "m.csv"], ["y"]) == {"y": found["y"]}


def test_measures_of_several_files_are_joined(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("File,x\na,1\nb,2\n")
    (tmp_path / "2.csv").write_text("x,File,y\n2,b,5\n3,c,6\n")
    found = read_measures([tmp_path / "1.csv", tmp_path / "2.csv"])
    assert found == {"x": {"a": 1, "b": 2, "c": 3}, "y": {"b": 5, "c": 6}}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (None, None, "1.csv: file not found"),
        ("x,y\n1,2\n", None, "1.csv: no column 'File'; its columns are x, y"),
        ("File\na\n", None, "1.csv: no column beside 'File'"),
        ("File,x\na,1\nb,loud\n", None, "1.csv line 3: 'loud' in column 'x' is not a finite"),
        ("File,x\na,inf\n", None, "1.csv line 2: 'inf' in column 'x' is not a finite"),
        ("File,x\na,1\n", ["z"], "no column 'z' in .*1.csv; there are: none"),
        ("File,x\na,1\na,2\n", None, "1.csv line 3: another 'x' of a was read before"),
        ("", None, "1.csv: cannot be read as CSV"),
    ],
)
def test_measures_that_cannot_be_used(
    tmp_path: Path, text: str | None, columns: list[str] | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "1.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_measures([tmp_path / "1.csv"], columns)


def test_durations_are_those_of_the_audio(corpus: Path) -> None:
    files = ["wav/id00/s0/00000.wav", "wav/id03/s1/00001.wav"]
    found = log_durations(files, corpus)
    assert found == {f: pytest.approx(log(sf.info(corpus / f).duration)) for f in files}


def test_what_is_enrolled_is_as_long_as_its_files_together(corpus: Path) -> None:
    files = ["wav/id00/s0/00000.wav", "wav/id03/s1/00001.wav"]
    seconds = [sf.info(corpus / file).duration for file in files]
    found = log_durations(["model", files[1]], corpus, {"model": files, "another": ["none.wav"]})
    assert found == pytest.approx({"model": log(sum(seconds)), files[1]: log(seconds[1])})
