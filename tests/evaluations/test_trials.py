import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslsv.errors import DataError
from sslsv.evaluations.trials import Trials, check_files, read_scores, read_trials, write_scores


@pytest.fixture
def write(tmp_path):
    def write(text, name="trials.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def as_tuple(trials):
    columns = (trials.enrol.tolist(), trials.test.tolist(), trials.labels.tolist())
    return trials.files, *columns


def test_reads_indices_into_the_files_in_order_of_appearance(write):
    trials = read_trials(write("1 b.wav a.wav\n0 a.wav c/d.wav\n0 b.wav b.wav\n", "vox_O"))
    assert trials.files == ["b.wav", "a.wav", "c/d.wav"]
    assert trials.enrol.tolist() == [0, 1, 0]
    assert trials.test.tolist() == [1, 2, 0]
    assert trials.labels.tolist() == [True, False, False]
    assert trials.enrol.dtype == trials.test.dtype == np.int32
    assert trials.labels.dtype == bool
    assert trials.name == "vox_O"
    assert len(trials) == 3


@pytest.mark.parametrize(
    "text",
    [
        "1 a b\n0 a c",  # no newline at the end
        "1 a b\n0 a c\n\n  \n",  # blank lines at the end
        "1\ta   b \n 0 a c\n",  # any white space
        "1 a b\r\n0 a c\r\n",  # Windows
        "\ufeff1 a b\n0 a c\n",  # byte order mark
    ],
)
def test_white_space_and_line_ends_do_not_matter(write, text):
    assert as_tuple(read_trials(write(text))) == (["a", "b", "c"], [0, 0], [1, 2], [True, False])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trials.txt: the list is empty"),
        ("\n \n", "the list is empty"),
        ("1 a b\n0 a\n", r"line 2: expected 3 fields \(label enrol test\), found 2: '0 a'"),
        ("1 a b\n\n0 a c\n", "line 2: expected 3 fields .* found 0"),
        ("1 a b\n0 a c 0.3\n", "line 2: .* found 4: '0 a c 0.3'"),
        ("1 a b\n0 a c\n2 a b\n", r"line 3: the label must be 1 \(target\) or 0: '2 a b'"),
        ("label enrol test\n1 a b\n", "line 1: the label must be .*: 'label enrol test'"),
        ("a b 1\n", "line 1: the label must be"),
        ("1 a b\n1 a c\n", r"no non-target \(0\) trial among its 2"),
        ("0 a b\n", r"no target \(1\) trial among its 1"),
        (b"1 \xff\xfe b\n", "not a text file"),
    ],
)
def test_bad_lists_are_refused(write, text, message):
    with pytest.raises(DataError, match=message):
        read_trials(write(text))


def test_missing_and_unreadable_paths_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere/list: file not found"):
        read_trials(tmp_path / "nowhere" / "list")
    with pytest.raises(DataError, match="cannot be read"):
        read_trials(tmp_path)


def test_check_files_lists_what_is_missing(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.wav").touch()
    check_files(["here/a.wav"], tmp_path, "vox_O")
    files = ["here/a.wav", "here", *(f"x{i}.wav" for i in range(12))]
    with pytest.raises(DataError) as caught:
        check_files(files, tmp_path, "vox_O")
    message = str(caught.value)
    assert message.startswith(f"vox_O: 13 of 14 files not found under '{tmp_path}': here, x0.wav")
    assert "x8.wav (and 3 more); check dataset.base_path" in message
    assert "x9.wav" not in message


def example():
    return Trials(
        files=["a.wav", "b.wav", "c.wav"],
        enrol=np.array([0, 0, 2], dtype=np.int32),
        test=np.array([1, 2, 1], dtype=np.int32),
        labels=np.array([True, False, False]),
        name="vox_O",
    )


def test_score_file_format(tmp_path):
    path = tmp_path / "scores" / "vox_O.txt"
    write_scores(path, example(), np.array([0.25, -1.5, 1e-20]))
    assert path.read_text() == "a.wav b.wav 0.25 1\na.wav c.wav -1.5 0\nc.wav b.wav 1e-20 0\n"
    assert [file.name for file in path.parent.iterdir()] == ["vox_O.txt"]


@settings(deadline=None)  # writes a file
@given(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3))
def test_scores_survive_the_round_trip_exactly(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("scores") / "vox_O"
    write_scores(path, example(), np.array(scores))
    trials, found = read_scores(path)
    assert as_tuple(trials) == as_tuple(example())
    assert trials.name == "vox_O"
    assert found.tobytes() == np.array(scores, dtype=np.float64).tobytes()


def test_single_precision_scores_survive_too(tmp_path):
    scores = np.random.default_rng(0).normal(size=3).astype(np.float32)
    write_scores(tmp_path / "s", example(), scores)
    assert (read_scores(tmp_path / "s")[1].astype(np.float32) == scores).all()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "s"
    path.write_text("old")
    broken = example()
    broken.files.pop()  # an index now points nowhere
    with pytest.raises(IndexError):
        write_scores(path, broken, np.zeros(3))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_scores_must_match_the_trials(tmp_path):
    with pytest.raises(DataError, match=r"vox_O: 3 trials but scores of shape \(2,\)"):
        write_scores(tmp_path / "s", example(), np.zeros(2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b high 1\n", "line 1: the score must be a number: 'a b high 1'"),
        ("a b 0.5 1\na c 0.5\n", r"line 2: expected 4 fields \(enrol test score label\), found 3"),
        ("a b 0.5 1\na c 0.5 x\n", "line 2: the label must be"),
    ],
)
def test_bad_score_files_are_refused(write, text, message):
    with pytest.raises(DataError, match=message):
        read_scores(write(text))
