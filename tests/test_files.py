"""Files are written whole or not at all."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslsv.errors import UserError
from sslsv.files import atomic_write, read_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"  # folders are made
    with atomic_write(path, "w") as file:
        file.write("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_a_reader_meets_the_old_file_until_then(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as early:
        with atomic_write(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
        assert early.read() == b"old"  # it was replaced, not overwritten
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_passes_on(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_a_user_error_that_names_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with (
        pytest.raises(UserError, match=r"file: cannot be written \(No space left on device\)"),
        atomic_write(path),
    ):
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), atomic_write(tmp_path / "file" / "x"):
        pass


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"1": {"loss": math.nan, "eer": 2.5}, "list": [math.inf, (-math.inf, 1)]})
    assert json.loads(path.read_text()) == {
        "1": {"loss": None, "eer": 2.5},
        "list": [None, [None, 1]],
    }
    assert path.read_text().endswith("}\n")


def strictly(value: object) -> object:
    """What JSON should make of ``value``."""
    if isinstance(value, dict):
        return {key: strictly(v) for key, v in value.items()}
    if isinstance(value, list):
        return [strictly(v) for v in value]
    return None if value in (math.inf, -math.inf) or value != value else value


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.dictionaries(st.text(), VALUES))
def test_any_value_is_written_as_strict_json_and_read_back(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, value)
    assert json.loads(path.read_text(), parse_constant=refuse) == strictly(value)
    assert read_json(path) == strictly(value)


def test_no_file_reads_as_empty(tmp_path):
    assert read_json(tmp_path / "none.json") == {}


@pytest.mark.parametrize("content", ["[1]", "3", "null"])
def test_json_that_is_not_an_object_is_a_user_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a.json: holds no JSON object"):
        read_json(path)


@pytest.mark.parametrize("content", [b'{"1": ', b"", b"\xff"])
def test_damaged_json_is_a_user_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.json: not readable as JSON .* move it away"):
        read_json(path)
