import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sslsv import cli
from sslsv.errors import DataError
from sslsv.evaluations import metrics
from sslsv.evaluations.bootstrap import METRICS, intervals, paired, speaker_codes
from sslsv.evaluations.compare import compare, list_hash, read_speakers
from sslsv.evaluations.trials import Trials, make_trials, write_scores

SPEAKERS, FILES = 45, 3  # of each speaker


def some_trials(name: str = "trials.txt", seed: int = 0) -> Trials:
    """All target trials, so that they join the files of a speaker, and some others."""
    names = [[f"s{s:02d}/{f}.wav" for f in range(FILES)] for s in range(SPEAKERS)]
    pairs = [(own[a], own[b]) for own in names for a in range(FILES) for b in range(a)]
    labels = [True] * len(pairs)
    rng = np.random.default_rng(seed)
    for s in range(SPEAKERS):
        for t in rng.choice(np.delete(np.arange(SPEAKERS), s), 6, replace=False):
            pairs.append((names[s][rng.integers(FILES)], names[t][rng.integers(FILES)]))
            labels.append(False)
    enrol, test = zip(*pairs, strict=True)
    return make_trials(name, list(enrol), list(test), np.array(labels))


def some_scores(trials: Trials, noise: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 2 * trials.labels + rng.normal(size=len(trials)) * noise


TRIALS = some_trials()
GOOD, BAD = some_scores(TRIALS, 0.7), some_scores(TRIALS, 2.0, seed=2)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "good.txt", tmp_path / "bad.txt"
    for path, scores in zip(paths, (GOOD, BAD), strict=True):
        write_scores(path, TRIALS, scores)
    return paths


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with two lists in common, and one of its own each."""
    paths = tmp_path / "run_a", tmp_path / "run_b"
    for run, scores, own in zip(paths, (GOOD, BAD), ("v", "w"), strict=True):
        for name in ("sv_cosine_o", "sv_cosine_e.txt", own):
            write_scores(run / "scores" / f"trained_{name}.txt", TRIALS, scores)
        write_scores(run / "scores" / "untrained_sv_cosine_o.txt", TRIALS, scores)
    return paths


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = cli.main(["compare", *map(str, arguments)])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run):
    """Runs a comparison that must end with code 2 and one sentence, which is returned."""

    def refused(*arguments: object) -> str:
        ended = run(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        return ended.err.removeprefix("error: ").rstrip("\n")

    return refused


def spoil(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")


class TestTable:
    def test_shows_values_intervals_difference_and_p(self, run, files) -> None:
        ended = run(*files, "--resamples", 200, "--seed", 3)
        assert (ended.code, ended.err) == (0, "")
        lines = ended.out.splitlines()
        assert lines[:3] == [
            f"A: {files[0]}",
            f"B: {files[1]}",
            "EER (%), 95 % intervals and two-sided p: 200 resamples of the speakers, seed 3",
        ]
        codes = speaker_codes(TRIALS)
        found = paired(GOOD, BAD, TRIALS.labels, codes, resamples=200, seed=3)
        cells = lines[6].split("  ")
        assert [cell.strip() for cell in cells if cell] == [
            "good, bad",
            list_hash(TRIALS),
            str(len(TRIALS)),
            str(SPEAKERS),
            f"{metrics.eer(GOOD, TRIALS.labels):.2f} "
            f"[{found.interval_a[0]:.2f}, {found.interval_a[1]:.2f}]",
            f"{metrics.eer(BAD, TRIALS.labels):.2f} "
            f"[{found.interval_b[0]:.2f}, {found.interval_b[1]:.2f}]",
            f"{found.a - found.b:+.2f} [{found.interval[0]:+.2f}, {found.interval[1]:+.2f}]",
            f"{2 / 201:.4f}",
        ]
        assert lines[4].split("  ")[0] == "list"
        assert set(lines[5]) == {"-", " "}
        assert max(map(len, lines[4:7])) == len(lines[5])  # the columns stand below their titles

    def test_has_every_list_that_two_runs_share(self, run, runs) -> None:
        ended = run(*runs, "--resamples", 100)
        assert (ended.code, ended.err) == (0, "")
        rows = [line.split("  ")[0] for line in ended.out.splitlines()[6:8]]
        assert rows == ["sv_cosine_e.txt", "sv_cosine_o"]
        notes = [line for line in ended.out.splitlines() if line.startswith("note: ")]
        assert notes[:2] == [
            f"note: only in {runs[0]}, not compared: v",
            f"note: only in {runs[1]}, not compared: w",
        ]

    def test_of_detection_costs_names_the_prior(self, run, files) -> None:
        ended = run(*files, "--metric", "mindcf", "--p_target", 0.05, "--resamples", 100)
        assert ended.out.splitlines()[2].startswith("minDCF (p_target 0.05), 95 % intervals")
        assert f" {metrics.min_dcf(BAD, TRIALS.labels, 0.05):.4f} [" in ended.out

    @pytest.mark.parametrize("metric", ["actdcf", "cllr"])
    def test_tells_of_scores_that_are_not_calibrated(self, run, files, metric: str) -> None:
        ended = run(*files, "--metric", metric, "--resamples", 100)
        assert f"note: {files[1]}: scores are not calibrated" in ended.out
        assert "not calibrated" not in run(*files, "--metric", "mincllr", "--resamples", 100).out

    def test_says_what_speakers_are_where_none_are_named(self, run, files, tmp_path) -> None:
        assert "note: speakers are files joined by target trials" in run(*files).out
        path = tmp_path / "speakers.csv"
        rows = [f"{file},{file.split('/')[0]}\n" for file in TRIALS.files]
        path.write_text("File,Speaker\n" + "".join(rows))
        assert "note" not in run(*files, "--speakers", path).out

    def test_tells_of_few_speakers(self, run, tmp_path) -> None:
        kept = [s < "s12" for s in (f.split("/")[0] for f in TRIALS.files)]
        rows = [kept[a] and kept[b] for a, b in zip(TRIALS.enrol, TRIALS.test, strict=True)]
        few = make_trials(
            "few",
            [TRIALS.files[i] for i in TRIALS.enrol[rows]],
            [TRIALS.files[i] for i in TRIALS.test[rows]],
            TRIALS.labels[rows],
        )
        write_scores(tmp_path / "few.txt", few, GOOD[rows])
        ended = run(tmp_path / "few.txt", tmp_path / "few.txt", "--resamples", 100)
        assert "note: few: only 12 speakers, so intervals and p are too optimistic" in ended.out

    def test_is_the_same_each_time_and_follows_the_seed(self, run, files) -> None:
        first = run(*files)
        assert first == run(*files, "--metric", "eer", "--resamples", 1000, "--seed", 0)
        assert first.out != run(*files, "--seed", 1).out


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_compared(metric: str, files: tuple[Path, Path]) -> None:
    (row,) = compare(*files, metric, resamples=100).rows
    own = intervals(GOOD, TRIALS.labels, speaker_codes(TRIALS), [metric], resamples=100)
    assert row.found.interval_a == own[metric]


def test_the_help_names_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compare", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(METRICS) <= set(words)


def test_trials_may_be_in_another_order(files: tuple[Path, Path], tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(len(TRIALS))
    lines = files[1].read_text().splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines[i] for i in order) + "\n")
    (row,) = compare(*files, resamples=100).rows
    (shuffled,) = compare(files[0], other, resamples=100).rows
    assert (shuffled.hash, shuffled.found) == (row.hash, row.found)


def test_a_trial_that_stands_twice_is_two_trials(files: tuple[Path, Path], tmp_path: Path) -> None:
    first = files[0].read_text().splitlines()[0]
    twice = tmp_path / "twice.txt"
    twice.write_text(f"{files[0].read_text()}{first}\n")
    with pytest.raises(DataError, match=r"differ.*: 1 of 406 trials only in .*twice.txt: '1 s00/1"):
        compare(files[0], twice)
    (row,) = compare(twice, twice, resamples=100).rows
    assert row.trials == len(TRIALS) + 1


def test_speakers_of_a_csv_are_used(tmp_path: Path) -> None:
    # Without the targets of the last file of a speaker, only the CSV says who speaks there.
    last = f"/{FILES - 1}.wav"
    kept = ~TRIALS.labels | [not TRIALS.files[i].endswith(last) for i in TRIALS.enrol]
    rows = TRIALS.enrol[kept], TRIALS.test[kept]
    fewer = make_trials(
        "fewer", *([TRIALS.files[i] for i in side] for side in rows), TRIALS.labels[kept]
    )
    paths = tmp_path / "a.txt", tmp_path / "b.txt"
    for path, scores in zip(paths, (GOOD, BAD), strict=True):
        write_scores(path, fewer, scores[kept])
    speakers = tmp_path / "speakers.csv"
    lines = [f"x,{file},{file.split('/')[0]}\n" for file in (*TRIALS.files, "unused/0.wav")]
    speakers.write_text("\ufeffSet,File,Speaker\n" + "".join(lines), encoding="utf-8")
    assert read_speakers(speakers)["s03/1.wav"] == "s03"

    (joined,) = compare(*paths, resamples=100).rows
    (named,) = compare(*paths, speakers=speakers, resamples=100).rows
    alone = {file for file in fewer.files if file.endswith(last)}
    assert named.speakers == SPEAKERS
    assert joined.speakers == SPEAKERS + len(alone) > SPEAKERS
    codes = np.array([int(file[1:3]) for file in fewer.files])[np.stack([fewer.enrol, fewer.test])]
    by_name = paired(GOOD[kept], BAD[kept], fewer.labels, codes, resamples=100)
    assert named.found == by_name != joined.found


def test_the_hash_is_that_of_the_sorted_list(tmp_path: Path) -> None:
    rows = zip(TRIALS.labels, TRIALS.enrol, TRIALS.test, strict=True)
    lines = [f"{label:d} {TRIALS.files[a]} {TRIALS.files[b]}\n" for label, a, b in rows]
    path = tmp_path / "list.txt"
    path.write_text("".join(lines))
    found = list_hash(TRIALS)
    assert found == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:8]
    command = f"LC_ALL=C sort {path} | sha256sum"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(found)
    assert list_hash(some_trials(seed=1)) != found


class TestRefused:
    def test_lists_that_differ(self, refused, files) -> None:
        spoil(files[1], 3, "s00/1.wav", "s00/9.wav")
        spoil(files[1], len(TRIALS), " 0", " 1")
        message = refused(*files)
        last = f"{TRIALS.files[TRIALS.enrol[-1]]} {TRIALS.files[TRIALS.test[-1]]}"
        assert message == (
            "the lists differ, so their results cannot be compared: "
            f"2 of 405 trials only in {files[0]}: '0 {last}', '1 s00/2.wav s00/1.wav'; "
            f"2 of 405 trials only in {files[1]}: '1 s00/2.wav s00/9.wav', '1 {last}'"
        )

    def test_a_list_that_lacks_trials(self, refused, files) -> None:
        lines = files[1].read_text().splitlines()
        files[1].write_text("\n".join(lines[1:]))
        assert refused(*files).endswith(
            f": 1 of 405 trials only in {files[0]}: '1 s00/1.wav s00/0.wav'"
        )

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_scores_that_are_not_finite(self, refused, files, value: str) -> None:
        for line in (2, 5):
            score = files[1].read_text().splitlines()[line - 1].split()[2]
            spoil(files[1], line, score, value)
        assert refused(*files) == (
            f"{files[1]}: 2 of 405 scores are not finite numbers: "
            f"line 2 (s00/2.wav s00/0.wav {value}), line 5 (s01/2.wav s01/0.wav {value})"
        )

    def test_one_class(self, refused, files) -> None:
        targets = files[0].read_text().splitlines()[: 3 * SPEAKERS]
        files[0].write_text("\n".join(targets))
        assert refused(*files).startswith(f"{files[0]}: the list has no non-target (0) trial")

    def test_an_empty_file(self, refused, files) -> None:
        files[1].write_text("\n")
        assert refused(*files) == f"{files[1]}: the list is empty"

    def test_a_malformed_line(self, refused, files) -> None:
        spoil(files[1], 4, " 1", "")
        assert refused(*files).startswith(f"{files[1]} line 4: expected 4 fields")

    def test_what_does_not_exist(self, refused, files, tmp_path) -> None:
        missing = tmp_path / "missing.txt"
        assert refused(files[0], missing) == f"{missing}: no such file or folder"

    def test_a_run_and_a_file(self, refused, files, runs) -> None:
        wanted = f"{runs[0]} is a folder and {files[0]} a file; give two score files, or two"
        assert refused(runs[0], files[0]).startswith(wanted)
        assert refused(files[0], runs[0]).startswith(wanted)

    def test_a_run_that_was_not_evaluated(self, refused, runs, tmp_path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        assert refused(runs[0], empty) == (
            f"{empty}: no {empty}/scores/trained_*.txt; run 'sslsv evaluate' on it first"
        )

    def test_runs_without_a_list_in_common(self, refused, runs) -> None:
        for run in runs:
            for path in (run / "scores").glob("trained_sv_*"):
                path.unlink()
        assert refused(*runs) == (f"no list in common: {runs[0]} has v; {runs[1]} has w")

    def test_one_wrong_list_of_two_before_any_result(self, refused, runs) -> None:
        path = runs[1] / "scores" / "trained_sv_cosine_o.txt"
        spoil(path, 1, "s00/1.wav", "s00/9.wav")
        assert "'1 s00/9.wav s00/0.wav'" in refused(*runs)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--metric", "mindfc"], "metric: 'mindfc' has no intervals; did you mean 'mindcf'?"),
            (["--resamples", "10"], "resamples: must be at least 100, got 10"),
            (["--seed", "-1"], "seed: must not be negative, got -1"),
            (["--p_target", "1"], "p_target must lie strictly between 0 and 1, got 1.0"),
        ],
    )
    def test_impossible_options(self, refused, files, arguments, message) -> None:
        assert refused(*files, *arguments) == message

    def test_files_without_a_speaker(self, refused, files, tmp_path) -> None:
        path = tmp_path / "speakers.csv"
        path.write_text("File,Speaker\n" + "".join(f"{f},x{f[:3]}\n" for f in TRIALS.files[1:]))
        assert refused(*files, "--speakers", path) == (
            f"good.txt: 1 of {len(TRIALS.files)} files have no speaker: {TRIALS.files[0]}"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", ": no column File and no column Speaker; it has: nothing"),
            ("File,Label\na,b\n", ": no column Speaker; it has: File, Label"),
            ("File,Speaker\na,b\nc,\n", " line 3: expected a File, a Speaker and 2 fields"),
            ("File,Speaker\na\n", " line 2: expected a File, a Speaker and 2 fields"),
            ("File,Speaker\na,b,c\n", " line 2: expected a File, a Speaker and 2 fields"),
            ("File,Speaker\na,b\na,c\n", " line 3: a has the speaker c here and b above"),
            ('File,Speaker\n"a,b\n', ": not a CSV in UTF-8 ("),
        ],
    )
    def test_a_csv_that_does_not_name_speakers(
        self, refused, files, tmp_path, text: str, message: str
    ) -> None:
        path = tmp_path / "speakers.csv"
        path.write_text(text)
        assert refused(*files, "--speakers", path).startswith(f"{path}{message}")

    def test_a_csv_that_cannot_be_read(self, refused, files, tmp_path) -> None:
        path = tmp_path / "speakers.csv"
        assert refused(*files, "--speakers", path) == (
            f"{path}: cannot be read (No such file or directory)"
        )
        path.write_bytes(b"File,Speaker\n\xff,a\n")
        assert refused(*files, "--speakers", path).startswith(f"{path}: not a CSV in UTF-8 (")
