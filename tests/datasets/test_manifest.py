"""Training lists: which rows are used, how labels are coded, what is refused."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslsv import audio
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.errors import DataError

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write ``train.csv``; gives the folder it is in."""

    def write(content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / "train.csv").write_bytes(data)
        return tmp_path

    return write


def refusal(base_path: Path, **options: object) -> str:
    """The message with which ``train.csv`` is refused, without the folder."""
    with pytest.raises(DataError) as error:
        read_manifest("train.csv", base_path, **options)  # type: ignore[arg-type]
    return str(error.value).replace(f"{base_path}/", "")


# ------------------------------------------------------------------------------------ what is read


def test_rows_in_order_with_codes_by_first_appearance(write: Write) -> None:
    base = write("File,Speaker,Age\nb/2.wav,zoe,30\na/1.wav,adam,41\nb/1.wav,zoe,30\n")
    manifest = read_manifest("train.csv", base)
    assert [manifest.file(row) for row in range(len(manifest))] == ["b/2.wav", "a/1.wav", "b/1.wav"]
    assert manifest.labels.tolist() == [0, 1, 0]
    assert manifest.labels.dtype == np.int64
    assert manifest.label_names == ["zoe", "adam"]
    assert manifest.lines.tolist() == [2, 3, 4]


def test_only_rows_of_set_train_are_used_and_coded(write: Write) -> None:
    base = write("Set,File,Speaker\ntest,a,x\ntrain,b,y\nval,c,z\ntrain,d,x\n")
    manifest = read_manifest("train.csv", base)
    assert [manifest.file(row) for row in range(len(manifest))] == ["b", "d"]
    assert manifest.label_names == ["y", "x"]
    assert manifest.labels.tolist() == [0, 1]
    assert manifest.lines.tolist() == [3, 5]


CELL = st.text("aé,\"' ./-0", min_size=1, max_size=5)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(CELL, CELL, CELL, st.sampled_from(["train", "Train", "test", ""])), max_size=12
    ).filter(lambda rows: any(row[3] == "train" for row in rows)),
    label_key=st.sampled_from(["Speaker", "Video"]),
    max_samples=st.none() | st.integers(1, 15),
)
def test_any_list_is_read_as_written(
    write: Write, rows: list[tuple[str, ...]], label_key: str, max_samples: int | None
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("File", "Speaker", "Video", "Set"), *rows])
    base = write(text.getvalue())
    manifest = read_manifest("train.csv", base, label_key, max_samples)

    kept = [(i + 2, row) for i, row in enumerate(rows) if row[3] == "train"][:max_samples]
    labels = [row[1 if label_key == "Speaker" else 2] for _, row in kept]
    names = list(dict.fromkeys(labels))
    assert [manifest.file(row) for row in range(len(manifest))] == [row[0] for _, row in kept]
    assert manifest.label_names == names
    assert manifest.labels.tolist() == [names.index(label) for label in labels]
    assert manifest.lines.tolist() == [line for line, _ in kept]


def test_words_that_mean_nothing_to_pandas_are_names(write: Write) -> None:
    manifest = read_manifest("train.csv", write("File,Speaker\nnull,NA\nnan,007\nb,7\n"))
    assert manifest.label_names == ["NA", "007", "7"]
    assert manifest.file(1) == "nan"


def test_max_samples_takes_the_first_training_rows(write: Write) -> None:
    base = write("File,Speaker,Set\na,x,test\nb,y,train\nc,z,train\nd,w,train\n")
    manifest = read_manifest("train.csv", base, max_samples=2)
    assert [manifest.file(row) for row in range(len(manifest))] == ["b", "c"]
    assert manifest.label_names == ["y", "z"]


def test_selected_rows_are_a_list_without_the_others(write: Write) -> None:
    """But for the numbers of its lines, which stay those of the file."""
    rows = ["a,x,k,30", "b,y,l,41", "c,z,k,41", "long/d,x,m,30", "e,z,l,52", "f,w,l,30"]
    header = "File,Speaker,Video,Age\n"
    columns = ["Age", "Video"]
    kept = np.array([False, False, True, False, True, True])
    base = write(header + "".join(f"{row}\n" for row in rows))
    selected = read_manifest("train.csv", base, columns=columns).select(kept)
    write(header + "".join(f"{row}\n" for row, keep in zip(rows, kept, strict=True) if keep))
    alone = read_manifest("train.csv", base, columns=columns)
    assert len(selected) == 3
    assert [selected.file(row) for row in range(3)] == [alone.file(row) for row in range(3)]
    assert selected.label_names == alone.label_names == ["z", "w"]
    assert selected.labels.tolist() == alone.labels.tolist() == [0, 0, 1]
    assert selected.labels.dtype == alone.labels.dtype
    assert selected.columns.keys() == alone.columns.keys()
    for name, codes in alone.columns.items():
        assert selected.columns[name].tolist() == codes.tolist()
        assert selected.columns[name].dtype == codes.dtype
    assert selected.lines.tolist() == [4, 6, 7]
    assert (selected.path, selected.base_path) == (alone.path, alone.base_path)


# --------------------------------------------------------------------------------- what is refused


def test_missing_list(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert message.startswith("train.csv: training list not found")
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Path,Speaker\na,x\n", "train.csv: no column 'File'; its columns are Path, Speaker"),
        (
            "File,Spk\na,x\n",
            "train.csv: no column 'Speaker'; its columns are File, Spk "
            "(dataset.label_key names the label column)",
        ),
        ("File,Speaker\na,x\nb,\nc,\n", "train.csv line 3: empty File or Speaker"),
        ("File,Speaker\na,x\n,y\n", "train.csv line 3: empty File or Speaker"),
        ("File,Speaker\na,x\n\nb,y\n", "train.csv line 3: empty File or Speaker"),
        ("File,Speaker\na,x\nb\n", "train.csv line 3: empty File or Speaker"),
        (
            "File,Speaker,Set\n,x,test\na,x,train\nb,x,test\n,x,train\n",
            "train.csv line 5: empty File or Speaker",
        ),
        ("File,Speaker\n", "train.csv: no rows to train on"),
        ("File,Speaker,Set\na,x,test\n", "train.csv: no rows to train on"),
        ("File,Speaker\na,x,\nb,y,\n", "train.csv line 2: more fields than the header's 2"),
        ("File,Speaker\na,x,1\n", "train.csv line 2: more fields than the header's 2"),
    ],
)
def test_refused_with_the_place(write: Write, content: str, message: str) -> None:
    assert refusal(write(content)) == message


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe",
        b"",
        b'File,Speaker\n"a,x\n',
        b"File,Speaker\na,x\nb,y,z\n",
    ],
    ids=["binary", "nothing", "open quote", "surplus field"],
)
def test_not_a_csv(write: Write, content: bytes) -> None:
    message = refusal(write(content))
    assert message.startswith("train.csv: cannot be read as CSV (")
    assert "\n" not in message


# --------------------------------------------------------------------------- whether audio is there


@pytest.fixture
def manifest(write: Write) -> Manifest:
    """Thirteen good files."""
    names = [f"{i}.wav" for i in range(13)]
    base = write("File,Speaker\n" + "".join(f"{name},x\n" for name in names))
    for name in names:
        audio.write(base / name, np.full(100, 0.1))
    return read_manifest("train.csv", base)


def test_good_files_pass(manifest: Manifest) -> None:
    manifest.check()


def test_all_missing_files_are_counted_and_ten_listed_with_their_lines(manifest: Manifest) -> None:
    for i in range(13):
        if i != 1:
            (manifest.base_path / f"{i}.wav").unlink()
    with pytest.raises(DataError) as error:
        manifest.check()
    listed = [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert str(error.value) == (
        f"{manifest.path}: 12 of 13 files not found below {manifest.base_path}/ "
        "(check dataset.base_path): "
        + ", ".join(f"line {i + 2}: {i}.wav" for i in listed)
        + " (and 2 more)"
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "cannot be read as audio"),
        ("8 kHz", "the sample rate is 8000 Hz where 16000 Hz is expected"),
        ("empty", "the audio is empty"),
    ],
)
def test_unusable_headers_are_found(manifest: Manifest, kind: str, message: str) -> None:
    path = manifest.base_path / "7.wav"
    if kind == "text":
        path.write_text("not audio")
    else:
        samples = np.zeros(0) if kind == "empty" else np.zeros(50)
        sf.write(path, samples, 8000 if kind == "8 kHz" else 16000)
    with pytest.raises(DataError) as error:
        manifest.check()
    assert str(error.value).startswith(f"{path}: {message}")


def test_another_sample_rate_is_accepted_where_it_is_converted(manifest: Manifest) -> None:
    sf.write(manifest.base_path / "7.wav", np.zeros(50), 8000)
    manifest.check(resample=True)
