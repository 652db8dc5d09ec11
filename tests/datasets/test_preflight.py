"""What a training looks for before it starts, how often, and what it says of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sslsv import audio, distributed
from sslsv.datasets import preflight as module
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.preflight import preflight
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import DataError

RAISE, SKIP = DatasetConfig(), DatasetConfig(on_error="skip")
Read = Callable[[], Manifest]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve good files."""
    names = [f"{i}.wav" for i in range(12)]
    (tmp_path / "train.csv").write_text("File,Speaker\n" + "".join(f"{n},x\n" for n in names))
    for name in names:
        audio.write(tmp_path / name, np.full(100, 0.1))
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Read:
    return lambda: read_manifest("train.csv", folder)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every list whose files are looked for; short lists are remembered too."""
    calls: list[int] = []
    plain = Manifest.missing

    def missing(manifest: Manifest) -> list[int]:
        calls.append(len(manifest))
        return plain(manifest)

    monkeypatch.setattr(Manifest, "missing", missing)
    monkeypatch.setattr(module, "_REMEMBERED_FROM", 12)
    return calls


def test_a_complete_list_is_looked_through_once(read: Read, looked: list[int]) -> None:
    for _ in range(3):
        preflight(read(), RAISE)
    assert looked == [12]


def test_a_list_that_changes_is_looked_through_again(
    folder: Path, read: Read, looked: list[int]
) -> None:
    preflight(read(), RAISE)
    with (folder / "train.csv").open("a") as file:
        file.write("gone.wav,x\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 13 files not found.*line 14: gone\.wav"):
            preflight(read(), RAISE)
    assert looked == [12, 13, 13]  # what is not complete is not remembered


def test_the_place_counts_too(folder: Path, looked: list[int], tmp_path: Path) -> None:
    preflight(read_manifest("train.csv", folder), RAISE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(DataError, match="12 of 12 files not found"):
        preflight(read_manifest(folder / "train.csv", elsewhere), RAISE)


def test_short_lists_are_always_looked_through(
    read: Read, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_FROM", 13)
    for _ in range(2):
        preflight(read(), RAISE)
    assert looked == [12, 12]


def test_a_cache_that_cannot_be_written_is_done_without(
    read: Read, looked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        preflight(read(), RAISE)
    assert looked == [12, 12]


def test_skipping_says_what_is_missing_and_goes_on(
    folder: Path, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "3.wav").unlink()
    (folder / "5.wav").write_text("no audio")
    with pytest.raises(DataError, match="1 of 12 files not found"):
        preflight(read(), RAISE)
    preflight(read(), SKIP)
    out = capsys.readouterr().out
    assert "1 of 12 files not found" in out
    assert "line 5: 3.wav; they are skipped (dataset.on_error)" in out
    assert "2 of 12 headers looked at cannot be used, such as " in out


def test_nothing_usable_is_refused_even_then(folder: Path, read: Read) -> None:
    for i in range(12):
        (folder / f"{i}.wav").write_text("no audio")
    with pytest.raises(DataError, match=r"/0\.wav: cannot be read as audio"):
        preflight(read(), SKIP)
    for i in range(12):
        (folder / f"{i}.wav").unlink()
    with pytest.raises(DataError, match="12 of 12 files not found"):
        preflight(read(), SKIP)


def test_only_the_main_process_looks_and_all_raise_what_it_found(
    folder: Path, read: Read, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    preflight(read(), RAISE)
    monkeypatch.setattr(distributed, "broadcast", lambda value: DataError("what rank 0 found"))
    with pytest.raises(DataError, match="what rank 0 found"):
        preflight(read(), RAISE)
    assert looked == []
