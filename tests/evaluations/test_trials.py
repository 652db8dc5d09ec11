import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslsv import audio
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import DataError
from sslsv.evaluations.conditions import Condition
from sslsv.evaluations.cosine import SVCosine, SVCosineConfig
from sslsv.evaluations.trials import (
    Sides,
    Trials,
    check_files,
    make_trials,
    read_scores,
    read_trials,
    write_scores,
)


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


# --------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize(
    "text",
    [
        "m1 a tgt\nm1 b imp\nm2 a imp\n",  # SITW, VOiCES
        "m1 a target\nm1 b nontarget\nm2 a nontarget\n",  # NIST, Kaldi
        "1 m1 a\n0 m1 b\n0 m2 a\n",  # VoxCeleb, VoxSRC
    ],
)
def test_every_form_of_a_list_is_the_same_trials(write, text):
    trials = read_trials(write(text))
    assert as_tuple(trials) == (["m1", "a", "b", "m2"], [0, 0, 3], [1, 2, 1], [True, False, False])
    assert trials.labels.dtype == bool


def test_a_file_may_be_named_like_a_label(write):
    trials = read_trials(write("1 a tgt\n0 a imp\n"))
    assert as_tuple(trials) == (["a", "tgt", "imp"], [0, 0], [1, 2], [True, False])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b tgt\n1 a b\n", r"line 2: the label must be tgt \(target\) or imp: '1 a b'"),
        ("a b tgt\na c TGT\n", "line 2: the label must be tgt .*: 'a c TGT'"),
        ("1 a b\na b tgt\n", r"line 2: the label must be 1 \(target\) or 0: 'a b tgt'"),
        ("a b tgt\na c\n", r"line 2: expected 3 fields \(enrol test label\), found 2"),
        ("a b tgt\na c tgt\n", "no imp trial among its 2"),
        ("a b imp\n", "no tgt trial among its 1"),
        ("a b\na c\n", "line 1: expected 3 fields .* a list without labels cannot be measured on"),
    ],
)
def test_bad_lists_of_other_forms_are_refused(write, text, message):
    with pytest.raises(DataError, match=message):
        read_trials(write(text))


# ----------------------------------------------------------------------- models of several files


def test_ids_stand_for_the_files_beside_the_list(write):
    write("m2 c d\nm1 a\nunused x\nm2 e\n", "trials.txt.enrol")
    trials = read_trials(write("1 m1 t1\n0 m2 t1\n1 m2 a\n"))
    assert trials.files == ["m1", "t1", "m2", "a"]
    assert trials.models == {"m1": ("a",), "m2": ("c", "d", "e")}
    assert trials.audio == ["a", "t1", "c", "d", "e"]


def test_a_list_without_models_needs_its_own_files_only(write):
    trials = read_trials(write("1 a b\n0 a c\n"))
    assert trials.models == {}
    assert trials.audio == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("enrol", "message"),
    [
        ("m1 a\n", r"trials.txt: 1 of 2 enrolment ids have no line in \S+trials.txt.enrol: m2$"),
        (
            "m1 a\nm2\n",
            r"trials.txt.enrol line 2: expected <id> <file> \[<file> ...\], found: 'm2'",
        ),
        ("m1 a\n\nm2 b\n", "trials.txt.enrol line 2: expected"),
        ("m1 a b a\nm2 b\n", "trials.txt.enrol line 1: 'm1' has a file twice: 'm1 a b a'"),
        ("m1 a\nm2 b\nm1 a\n", "trials.txt.enrol line 3: 'm1' has a file twice"),
        ("m1 a\nm2 b\nt1 c\n", "trials.txt: 1 test files have the name of an enrolment id .*: t1;"),
        ("", "trials.txt.enrol: the list is empty"),
    ],
)
def test_bad_enrolments_are_refused(write, enrol, message):
    write(enrol, "trials.txt.enrol")
    with pytest.raises(DataError, match=message):
        read_trials(write("1 m1 t1\n0 m2 t1\n"))


def test_score_files_name_the_ids(write, tmp_path):
    write("m1 a b\n", "trials.txt.enrol")
    trials = read_trials(write("1 m1 t1\n0 m1 t2\n"))
    write_scores(tmp_path / "scores", trials, np.array([0.5, -1.0]))
    assert (tmp_path / "scores").read_text() == "m1 t1 0.5 1\nm1 t2 -1.0 0\n"


# -------------------------------------------------------------------- rows of files and of models

LABELS = np.array([True, False, False])
FIRST = make_trials("A", ["m1", "m2", "m1"], ["t1", "t1", "t2"], LABELS, {"m1": ("a", "t2")})
SECOND = make_trials("B", ["b", "t1", "m2"], ["a", "b", "b"], LABELS)
NOISY, BOTH = Condition("noisy", ()), True


def embedded(files, seed=0):
    """A vector for each file and condition, and the arrays in the order of ``files``."""
    rng = np.random.default_rng(seed)
    vectors = {(c, f): rng.standard_normal(3) for c, names in files.items() for f in names}
    arrays = {c: np.array([vectors[c, f] for f in names]) for c, names in files.items()}
    return vectors, arrays


@pytest.mark.parametrize(
    ("condition", "both", "first"),
    [
        (None, False, []),
        (None, False, ["z", "t1"]),
        (NOISY, False, []),
        (NOISY, False, ["z", "t1"]),
        (NOISY, True, []),
        (NOISY, True, ["z"]),
    ],
)
def test_rows_are_those_of_the_files_or_the_mean_of_a_model(condition, both, first):
    sides = Sides([FIRST, SECOND], condition, both)
    files = sides.files(first)
    for names in files.values():
        assert len(set(names)) == len(names)
    if first:
        assert files[None][: len(first)] == first
    vectors, arrays = embedded(files)
    pooled = sides.pool(files, arrays)
    assert len(pooled) == len(sides.names)
    for trials in (FIRST, SECOND):
        found = sides.rows(trials)
        for trial in range(len(trials)):
            for side, rows in zip((trials.enrol, trials.test), found, strict=True):
                name = trials.files[side[trial]]
                under = condition if both or side is trials.test else None
                expected = sum(vectors[under, f] for f in trials.parts(name))
                expected = expected / len(trials.parts(name))
                np.testing.assert_allclose(pooled[rows[trial]], expected, atol=1e-12)
                assert sides.names[rows[trial]] == name


def test_only_what_is_needed_is_embedded():
    assert Sides([FIRST, SECOND]).files() == {None: ["a", "b", "t2", "m2", "t1"]}
    assert Sides([FIRST], NOISY).files() == {None: ["a", "t2", "m2"], NOISY: ["t1", "t2"]}
    assert Sides([FIRST], NOISY, BOTH).files() == {NOISY: ["a", "t2", "m2", "t1"]}


def test_files_in_order_are_not_copied():
    sides = Sides([SECOND])
    files = sides.files()
    _, arrays = embedded(files)
    assert sides.pool(files, arrays) is arrays[None]


def test_an_id_may_not_stand_for_other_files_in_another_list():
    other = make_trials("C", ["m1"], ["t1"], LABELS[:1], {"m1": ("a",)})
    with pytest.raises(DataError, match="C: 'm1' stands for other files than in A; rename it"):
        Sides([FIRST, other])
    file = make_trials("D", ["b"], ["m1"], LABELS[:1])
    with pytest.raises(DataError, match="D: 'm1' stands for other files than in A"):
        Sides([FIRST, file])


def test_score_of_a_model_is_the_mean_over_its_files_in_every_list(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{i}.wav" for i in range(6)]
    for name in names:
        audio.write(tmp_path / name, rng.uniform(-0.9, 0.9, 2000))
    (tmp_path / "one").write_text("1 m 3.wav\n0 m 4.wav\n0 n 0.wav\n")
    (tmp_path / "one.enrol").write_text("m 0.wav 1.wav\nm 2.wav\nn 5.wav\n")
    (tmp_path / "two").write_text("0.wav 1.wav tgt\n5.wav 1.wav imp\n")

    def embed(waves, lengths=None):
        return waves[:, :5]

    config = SVCosineConfig(
        type="sv_cosine", trials=["one", "two"], num_frames=1, frame_length=None
    )
    task = SVCosine(config, DatasetConfig(base_path=tmp_path, num_workers=0))
    found = task.run(embed, torch.device("cpu"))

    vectors = {}
    for name in names:
        vector = audio.read(tmp_path / name)[:5].astype(float)
        vectors[name] = vector / np.sqrt(vector @ vector)

    def mean_cosine(enrolled, test):
        return np.mean([vectors[file] @ vectors[test] for file in enrolled])

    m = names[:3]
    expected = [mean_cosine(m, "3.wav"), mean_cosine(m, "4.wav"), mean_cosine(["5.wav"], "0.wav")]
    np.testing.assert_allclose(found.scores["one"].scores, expected, atol=1e-6)
    expected = [mean_cosine(["0.wav"], "1.wav"), mean_cosine(["5.wav"], "1.wav")]
    np.testing.assert_allclose(found.scores["two"].scores, expected, atol=1e-6)
    assert set(found.metrics) == set(config.metric_names())


def test_missing_files_of_a_model_are_named_before_any_work(tmp_path):
    audio.write(tmp_path / "a.wav", np.full(2000, 0.1))
    (tmp_path / "list").write_text("1 m a.wav\n0 n a.wav\n")
    (tmp_path / "list.enrol").write_text("m a.wav gone.wav\nn a.wav\n")
    config = SVCosineConfig(type="sv_cosine", trials=["list"])
    with pytest.raises(DataError, match=r"list: 1 of 2 files not found .*: gone\.wav; check"):
        SVCosine(config, DatasetConfig(base_path=tmp_path))
