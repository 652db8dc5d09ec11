"""``sslsv doctor``: each fault that there can be is found, named and given a fix."""

from __future__ import annotations

import os
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sslsv import cli
from sslsv.config import load_config
from sslsv.datasets.manifest import read_manifest
from sslsv.doctor import files, machine
from sslsv.evaluations import split as split_module
from sslsv.evaluations.split import split_of

Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class Diagnosis:
    code: int
    report: str
    problems: list[str]
    warnings: list[str]
    error: str


Diagnose = Callable[..., Diagnosis]


@pytest.fixture
def data(corpus: Path, tmp_path: Path, config_file: Path) -> Path:
    """A copy of the corpus to spoil: six speakers are trained on, two are in the trials."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    rows = (corpus / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(rows[:25]) + "\n")
    test = [row.split(",") for row in rows[25:]]
    trials = [f"{int(a[1] == b[1])} {a[0]} {b[0]}" for a in test for b in test if a < b]
    (folder / "trials").write_text("\n".join(trials) + "\n")
    config_file.write_text(config_file.read_text().replace(str(corpus), str(folder)))
    return folder


@pytest.fixture
def diagnose(data: Path, config_file: Path, capsys: pytest.CaptureFixture[str]) -> Diagnose:
    """``diagnose("--full", "a=b")`` is ``sslsv doctor CONFIG --full a=b``."""

    def diagnose(*arguments: str) -> Diagnosis:
        before = sorted(config_file.parent.rglob("*"))
        code = cli.main(["doctor", str(config_file), *arguments])
        report, error = capsys.readouterr()
        assert sorted(config_file.parent.rglob("*")) == before
        report = report.replace(f"{data}/", "")
        problems = re.findall("^  PROBLEM: (.*)$", report, re.MULTILINE)
        warnings = re.findall("^  warning: (.*)$", report, re.MULTILINE)
        assert code == (2 if problems else 0)
        assert len(problems + warnings) <= report.count("->") + len(problems)
        if problems:
            plural = "s" * (len(problems) > 1)
            assert error.startswith(f"error: {len(problems)} problem{plural} would stop a run")
            assert error.count("\n") == 1
        return Diagnosis(code, report, problems, warnings, error)

    return diagnose


def test_all_is_well(diagnose: Diagnose, data: Path) -> None:
    found = diagnose("dataset.augmentation.enable=true", "--full")
    assert (found.problems, found.warnings, found.error) == ([], [], "")
    assert "24 utterances of 6 labels (Speaker); a label has 4 / 4 / 4 " in found.report
    assert "3 batches of 8 an epoch" in found.report
    assert "28 trials, 12 of them targets, of 8 files" in found.report
    assert "no speaker of it is trained on" in found.report
    assert "simulated_rirs: 2 files, 0.00 hours, 16000 Hz" in found.report
    assert "musan_split/music: 2 files" in found.report
    assert "CPU cores" in found.report
    assert found.report.endswith("Ready to train; 0 warnings.\n")


def test_durations_are_those_of_the_files(diagnose: Diagnose, data: Path) -> None:
    rows = (data / "train.csv").read_text().splitlines()[1:]
    seconds = sorted(sf.info(data / row.split(",")[0]).duration for row in rows)
    report = diagnose("dataset.frame_length=19200").report
    median = (seconds[11] + seconds[12]) / 2
    assert f"a file has {seconds[0]:.2f} / {median:.2f} / {seconds[-1]:.2f} s" in report
    assert f"{sum(seconds) / 3600:.1f} hours" in report
    below = sum(s < 1 for s in seconds)
    assert re.search(rf"0 to 1 s +#+ +{below} \({below / 24:.1%}\)", report)
    assert re.search(rf"1 to 2 s +#{{40}} +{24 - below} ", report)
    short = sum(s < 1.2 for s in seconds)
    assert f"{short} files are shorter than a crop of 1.2 s (dataset.frame_length)" in report


def listed(data: Path) -> Path:
    """The first file of the training list."""
    return data / (data / "train.csv").read_text().splitlines()[1].split(",")[0]


def in_trials(data: Path) -> Path:
    return data / (data / "trials").read_text().split()[1]


def remove(data: Path) -> None:
    listed(data).unlink()


def remove_tested(data: Path) -> None:
    in_trials(data).unlink()


def make_text(data: Path) -> None:
    listed(data).write_text("no audio")


def make_empty(data: Path) -> None:
    sf.write(listed(data), np.zeros(0), 16000)


def make_slow(data: Path) -> None:
    sf.write(listed(data), np.zeros(9000), 8000)


def lose_list(data: Path) -> None:
    (data / "train.csv").unlink()


def lose_column(data: Path) -> None:
    (data / "train.csv").write_text("Path\na\n")


def lose_trials(data: Path) -> None:
    (data / "trials").unlink()


def break_trials(data: Path) -> None:
    (data / "trials").write_text("1 a\n")


def lose_music(data: Path) -> None:
    shutil.rmtree(data / "musan_split/music")


def slow_noise(data: Path) -> None:
    sf.write(data / "musan_split/noise/made/0.wav", np.zeros(9000), 8000)


NOT_FOUND = r"1 of 24 files not found: wav/id00/s0/00000\.wav"
UNUSABLE = r"1 of 24 files cannot be used: wav/id00/s0/00000\.wav: "


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, NOT_FOUND),
        (remove_tested, r"1 of 8 files not found: wav/id06/s0/00000\.wav"),
        (make_text, UNUSABLE + "cannot be read as audio"),
        (make_empty, UNUSABLE + "the audio is empty"),
        (make_slow, r"1 of 24 files are at 8000 Hz: wav/id00/s0/00000\.wav"),
        (lose_list, r"train\.csv: training list not found"),
        (lose_column, r"train\.csv: no column 'File'"),
        (lose_trials, "trials: file not found"),
        (break_trials, "trials line 1: expected 3 fields"),
        (lose_music, r"musan_split/music: 0 files \*/\*\.wav where at least 1 are needed"),
        (slow_noise, r"1 of 2 files are at 8000 Hz: musan_split/noise/made/0\.wav"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_stop_a_run(diagnose: Diagnose, data: Path, spoil: Spoil, message: str) -> None:
    spoil(data)
    found = diagnose("dataset.augmentation.enable=true")
    (problem,) = found.problems
    assert re.match(message, problem)
    assert "Machine" in found.report  # it goes on to the end


@pytest.mark.parametrize("spoil", [remove, make_text, make_empty, make_slow])
def test_what_is_skipped_is_a_warning(diagnose: Diagnose, data: Path, spoil: Spoil) -> None:
    spoil(data)
    found = diagnose("dataset.on_error=skip")
    assert found.problems == []
    assert "1 of 24 files" in found.warnings[0]


def test_but_not_if_it_is_everything(diagnose: Diagnose, data: Path) -> None:
    for speaker in range(6):
        shutil.rmtree(data / f"wav/id{speaker:02d}")
    (problem,) = diagnose("dataset.on_error=skip").problems
    assert problem.startswith("24 of 24 files not found: ")
    assert problem.endswith("(and 14 more)")


def nan(path: Path) -> None:
    sf.write(path, np.full(16000, np.nan), 16000, subtype="FLOAT")


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 20000)
    sf.write(path, noise, 16000, format="FLAC", subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize("spoil", [nan, truncated])
def test_only_decoding_finds_what_a_header_hides(
    diagnose: Diagnose, data: Path, spoil: Spoil
) -> None:
    spoil(listed(data))
    assert diagnose().problems == []
    (problem,) = diagnose("--full").problems
    assert re.match(UNUSABLE, problem)


def test_other_rates_and_channels_that_are_converted(diagnose: Diagnose, data: Path) -> None:
    sf.write(listed(data), np.zeros((40000, 2)), 8000)
    found = diagnose("dataset.resample=true", "--full")
    assert found.problems == []
    assert "1 of 24 files are at 8000 Hz: " in found.report
    assert "1 files have several channels, which are averaged" in found.report
    assert "/ 5.00 s (shortest / median / longest)" in found.report


def test_a_file_listed_twice(diagnose: Diagnose, data: Path) -> None:
    path = data / "train.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, rows[3], rows[3]]) + "\n")
    (warning,) = diagnose().warnings
    assert warning.startswith("1 files are listed more than once: line 4: wav/id00/")


def test_a_trial_twice_and_a_file_against_itself(diagnose: Diagnose, data: Path) -> None:
    path = data / "trials"
    trials = path.read_text().splitlines()
    a, b = trials[2].split()[1:]
    path.write_text("\n".join([*trials, trials[2], f"0 {a} {b}", f"1 {a} {a}"]) + "\n")
    twice, itself = diagnose().warnings
    assert twice == (
        "1 trials stand there more than once: line 3; 1 of them as target and as non-target"
    )
    assert itself == "1 trials compare a file with itself"


def test_files_and_speakers_in_both(diagnose: Diagnose, data: Path) -> None:
    rows = (data / "train.csv").read_text().splitlines()
    file = (data / "trials").read_text().split()[1]
    (data / "train.csv").write_text("\n".join([*rows, f"{file},id06"]) + "\n")
    files, speakers = diagnose().warnings
    assert files == f"1 of 8 files are trained on as well: {file}"
    assert speakers == "1 speakers of this list are trained on as well: id06"


def test_speakers_that_no_folder_names(diagnose: Diagnose, data: Path) -> None:
    path = data / "train.csv"
    path.write_text(path.read_text().replace(",id", ",speaker"))
    found = diagnose()
    assert found.warnings == []
    assert "no speaker of it is seen in training, but only 0 of 6 labels are names" in found.report


def test_labels_with_one_utterance_are_counted(diagnose: Diagnose, data: Path) -> None:
    rows = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join(rows[:14]) + "\n")
    report = diagnose().report
    assert "13 utterances of 4 labels (Speaker); a label has 1 / 4 / 4 " in report
    assert "1 labels have one" in report


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.batch_size=32", "trainer.batch_size: 32 is more than the 24 rows"),
        (
            "dataset.sampler={prevent_class_collisions: true}",
            "dataset.sampler.prevent_class_collisions: a batch of 8 needs as many labels",
        ),
    ],
)
def test_batches_that_cannot_be_made(diagnose: Diagnose, setting: str, message: str) -> None:
    (problem,) = diagnose(setting).problems
    assert problem.startswith(message)


def test_a_full_disk(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 8, 10**6))
    (problem,) = diagnose("trainer.epochs=1000").problems
    assert problem.startswith("0.00 GB free for ")


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: has)
    true, named = (diagnose(f"trainer.mixed_precision={value}") for value in ("true", "bf16"))
    assert ("has no bfloat16 here; float32 is used" in true.report) == (not has)
    assert len(named.warnings) == len(true.warnings) + (not has)
    assert any("many times slower" in warning for warning in named.warnings) == (not has)


SSPS = "{start_epoch: 1, kmeans_nb_prototypes: 4, pos_queue_size: 20000}"
REFERENCE = ["dataset.ssps=true", "dataset.ssps_frame_length=8000"]
SPLIT = (
    "evaluation.validation=[{type: sv_cosine, trials: [split], num_frames: 1, frame_length: null, "
    "split: {speakers: %d, trials: %d}}]"
)
SETTINGS: dict[str, list[str]] = {
    "plain": [],
    "lars": ["trainer.optimizer=lars"],
    "kept": ["trainer.epochs=4", "trainer.keep_last_n=1"],
    "all-kept": ["trainer.keep_last_n=9"],
    "best": ["trainer.tracked_metric=train/loss"],
    "average": ["trainer.epochs=3", "trainer.avg_count=2"],
    "stopped": ["trainer.epochs=100", "trainer.stop_at_epoch=2"],
    "validated": [SPLIT % (2, 8), "trainer.tracked_metric=val/sv_cosine/split/eer"],
    "ssps": [*REFERENCE, f"method.ssps={SSPS}"],
    "ssps-knn": [*REFERENCE, f"method.ssps={SSPS.replace('{', '{sampling: knn, ')}"],
    "deepcluster": [
        "method={type: deepcluster, projector_hidden_dim: 8, projector_output_dim: 8000, "
        "nb_prototypes: [3, 4]}"
    ],
    "moco": ["method={type: moco, enable_projector: false, queue_size: 8000}"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_checkpoints_take_the_disk_that_is_said(
    config_file: Path,
    diagnose: Diagnose,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
) -> None:
    """The most that they ever take, counted whenever a file takes the place of another."""
    needed: list[int] = []
    disk = machine._disk
    monkeypatch.setattr(
        machine, "_disk", lambda c, n, report: needed.append(n) or disk(c, n, report)
    )
    assert diagnose(*SETTINGS[setting]).problems == []

    folder = config_file.parent / "checkpoints"
    totals: list[int] = []
    plain = os.replace

    def replace(source: Path, target: Path) -> None:
        stats = [path.stat() for path in folder.glob("*")]
        totals.append(sum({stat.st_ino: stat.st_size for stat in stats}.values()))
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert cli.main(["train", str(config_file), *SETTINGS[setting]]) == 0
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    epoch = min(size for name, size in sizes.items() if "epoch" in name)
    # File headers are not counted, and these are perhaps not replaced when most is there.
    replaced = epoch * any(f"model_{name}.pt" in sizes for name in ("best", "avg"))
    assert 0.93 * max(totals) < needed[0] < 1.01 * (max(totals) + replaced)

    capsys.readouterr()
    diagnose(*SETTINGS[setting])
    assert needed[1] == pytest.approx(epoch + sizes["model_latest.pt"], rel=0.1)  # one set more


# ---------------------------------------------------------------------------- held-out speakers


def hold_out(*, speakers: int = 2, trials: int = 8) -> list[str]:
    """Settings."""
    return [SPLIT % (speakers, trials), "trainer.tracked_metric=val/sv_cosine/split/eer"]


def held_out_files(config_file: Path, settings: list[str]) -> list[str]:
    """In trials, as a training takes them."""
    config = load_config(config_file, settings)
    manifest = read_manifest("train.csv", config.dataset.base_path)
    split = split_of(config.evaluation.validation)
    assert split
    return split_module.hold_out(manifest, split, config.seed)[1].files


def test_held_out_speakers_are_not_trained_on(diagnose: Diagnose, config_file: Path) -> None:
    found = diagnose(*hold_out())
    assert (found.problems, found.warnings) == ([], [])
    assert "2 labels with 8 utterances are held out for validation" in found.report
    assert "16 utterances of 4 labels (Speaker); a label has 4 / 4 / 4 " in found.report
    assert "2 batches of 8 an epoch" in found.report
    count = len(held_out_files(config_file, hold_out()))
    title = "\nTrials of the held-out speakers of train.csv\n"
    part = found.report.partition(title)[2].partition("\n\n")[0]
    assert f"  8 trials, 4 of them targets, of {count} files\n" in part
    assert "no speaker of it is trained on" in part


def test_only_what_is_left_to_train_on_counts_as_seen(
    diagnose: Diagnose, data: Path, config_file: Path
) -> None:
    """The test list is of the speakers of the training list."""
    rows = [row.split(",") for row in (data / "train.csv").read_text().splitlines()[1:]]
    trials = [f"{int(a[1] == b[1])} {a[0]} {b[0]}" for a in rows for b in rows if a < b]
    (data / "trials").write_text("\n".join(trials) + "\n")
    files, speakers = diagnose().warnings
    assert files.startswith("24 of 24 files are trained on as well: ")
    assert speakers.startswith("6 speakers of this list are trained on as well: ")
    files, speakers = diagnose(*hold_out()).warnings
    assert files.startswith("16 of 24 files are trained on as well: ")
    assert speakers.startswith("4 speakers of this list are trained on as well: ")
    held_out = {file.split("/")[1] for file in held_out_files(config_file, hold_out())}
    assert len(held_out) == 2
    assert not any(name in speakers for name in held_out)


def test_batches_are_made_of_what_is_left(diagnose: Diagnose) -> None:
    assert diagnose("trainer.batch_size=24").problems == []
    (problem,) = diagnose("trainer.batch_size=24", *hold_out()).problems
    assert problem.startswith("trainer.batch_size: 24 is more than the 16 rows")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (hold_out(speakers=40), "40 speakers are to be held out, but of the 6 labels of train.csv"),
        (hold_out(speakers=6), "6 speakers are all of train.csv, so none is left"),
        (hold_out(trials=400), "400 trials take 200 target ones, but the held-out speakers"),
    ],
)
def test_speakers_that_cannot_be_held_out(
    diagnose: Diagnose, settings: list[str], message: str
) -> None:
    found = diagnose(*settings)
    (problem,) = found.problems
    assert problem.startswith(f"evaluation.validation, section split: {message}")
    assert "24 utterances of 6 labels" in found.report  # it goes on to the end
    assert "Machine" in found.report


def test_held_out_speakers_of_a_list_that_cannot_be_read(diagnose: Diagnose, data: Path) -> None:
    lose_list(data)
    (problem,) = diagnose(*hold_out()).problems
    assert problem.startswith("train.csv: training list not found")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("no sound")])
def test_training_skips_a_file_and_validation_does_not(
    diagnose: Diagnose, data: Path, config_file: Path, spoil: Spoil
) -> None:
    file = held_out_files(config_file, hold_out())[0]
    spoil(data / file)
    found = diagnose("dataset.on_error=skip", *hold_out())
    (problem,) = found.problems
    assert re.fullmatch(
        rf"1 of \d files cannot be used, which training skips and an evaluation does not: {file}",
        problem,
    )
    assert len(found.warnings) == 1  # of the training list
    (problem,) = diagnose(*hold_out()).problems  # not once more where it stops the training
    assert problem.startswith("1 of 24 files ")


# ---------------------------------------------------------------------------- methods


def test_memories_are_counted(diagnose: Diagnose) -> None:
    queue = 2_000_000
    settings = [*REFERENCE, f"method.ssps={SSPS.replace('20000', str(queue))}"]
    expected = queue * (32 * 4 + 8)  # a positive of 32 dimensions in float32, and its row
    assert f"{expected / 1e9:.2f} GB are kept of the utterances" in diagnose(*settings).report
    assert "; 0.00 GB are kept of the utterances" in diagnose().report


KMEANS = "{sampling: kmeans, start_epoch: 1, kmeans_nb_prototypes: 4}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [*REFERENCE, "method.ssps={start_epoch: 1}"],
            "method.ssps.kmeans_nb_prototypes: 50000 clusters cannot be made of the 24 rows",
        ),
        (
            [*REFERENCE, "method.ssps={start_epoch: 1, kmeans_nb_prototypes: 21}", *hold_out()],
            "method.ssps.kmeans_nb_prototypes: 21 clusters cannot be made of the 16 rows",
        ),
        (
            [*REFERENCE, "method={type: simclr, projector_output_dim: 8, ssps: " + KMEANS],
            "method.ssps.sampling: kmeans takes centroids of embeddings as positives",
        ),
        (
            [*REFERENCE, "method.ssps={start_epoch: 1, kmeans_nb_prototypes: 2, "
             "metric_columns: [Video]}"],
            "train.csv: no column 'Video'",
        ),
        (
            ["method={type: deepcluster, enable_projector: false, nb_prototypes: [3, 25]}"],
            "method.nb_prototypes: 25 clusters cannot be made of the 24 rows",
        ),
        (
            ["method={type: supervised, nb_classes: 5}", "dataset.ssl=false"],
            "method.nb_classes: 5 is less than the 6 labels",
        ),
    ],
)  # fmt: skip
def test_sizes_of_a_method_that_do_not_fit_the_list(
    diagnose: Diagnose,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    message: str,
) -> None:
    (problem,) = diagnose(*settings).problems
    assert problem.startswith(message)
    assert cli.main(["train", str(config_file), *settings]) == 2  # and it would stop
    assert message.removeprefix("train.csv") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (
            "method={type: deepcluster, enable_projector: false, nb_prototypes: [3, %d]}",
            "method.nb_prototypes",
        ),
        (
            "method={type: simclr, enable_projector: false, ssps: {start_epoch: 1, "
            "kmeans_nb_prototypes: %d}}",
            "method.ssps.kmeans_nb_prototypes",
        ),
    ],
)
def test_more_clusters_than_an_epoch_has_utterances(
    diagnose: Diagnose,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    name: str,
) -> None:
    """Batches of 10 leave 4 of 24 utterances out."""
    settings = ["trainer.batch_size=10", *(REFERENCE if "ssps" in name else [])]
    assert diagnose(*settings, method % 20).problems == []
    (problem,) = diagnose(*settings, method % 21).problems
    assert problem == (
        f"{name}: 21 clusters cannot be made of the 20 utterances that are in the batches of an "
        "epoch"
    )
    assert cli.main(["train", str(config_file), *settings, method % 21]) == 2
    assert "21 clusters cannot be made of 20 rows" in capsys.readouterr().err


def test_positives_that_are_never_replaced(diagnose: Diagnose) -> None:
    settings = [*REFERENCE, "method.ssps={start_epoch: 2, kmeans_nb_prototypes: 4}"]
    found = diagnose(*settings)  # of 2 epochs
    (warning,) = found.warnings
    assert found.problems == []
    assert warning.startswith("method.ssps.start_epoch: 2 epochs come before it and the training")
    assert diagnose(*settings, "trainer.epochs=3").warnings == []
    assert len(diagnose(*settings, "trainer.epochs=3", "trainer.stop_at_epoch=2").warnings) == 1


def test_a_queue_of_positives_smaller_than_a_batch(diagnose: Diagnose) -> None:
    ssps = "method.ssps={start_epoch: 1, kmeans_nb_prototypes: 4, pos_queue_size: %d}"
    (warning,) = diagnose(*REFERENCE, ssps % 7).warnings
    assert warning.startswith("method.ssps.pos_queue_size: 7 places are too few for the 8 utt")
    assert diagnose(*REFERENCE, ssps % 8).warnings == []


# ---------------------------------------------------------------------------- other evaluations

CLASSIFICATION = "evaluation.test=[{type: classification, csv: %s, key: Speaker}]"
BY_HEAD = ["method={type: supervised, nb_classes: 6}", "dataset.ssl=false"]


def test_a_trained_head_is_known(diagnose: Diagnose, data: Path) -> None:
    assert diagnose(*BY_HEAD, CLASSIFICATION % "train.csv").problems == []
    rows = (data / "train.csv").read_text().replace(",id00", ",id99")
    (data / "others.csv").write_text(rows)
    (problem,) = diagnose(*BY_HEAD, CLASSIFICATION % "others.csv").problems
    assert "id99" in problem


def test_files_of_enrolment_ids_are_looked_for(diagnose: Diagnose, data: Path) -> None:
    rows = [line.split() for line in (data / "trials").read_text().splitlines()]
    models = {file: f"model{i}" for i, file in enumerate(dict.fromkeys(row[1] for row in rows))}
    (data / "trials").write_text(
        "".join(f"{label} {models[enrol]} {test}\n" for label, enrol, test in rows)
    )
    (data / "trials.enrol").write_text("".join(f"{m} {file}\n" for file, m in models.items()))
    found = diagnose()
    assert (found.problems, found.warnings) == ([], [])
    assert "28 trials, 12 of them targets, of 8 files" in found.report
    (data / next(iter(models))).unlink()
    (problem,) = diagnose().problems
    assert problem.startswith("1 of 8 files not found: ")


# ---------------------------------------------------------------------------- the machine


def test_too_many_workers(diagnose: Diagnose) -> None:
    (warning,) = diagnose(f"dataset.num_workers={(os.cpu_count() or 1) + 1}").warnings
    assert warning.startswith("dataset.num_workers: ")


def test_a_wrong_configuration_is_one_sentence(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(config_file), "trainer.epoch=3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: trainer.epoch: unknown key; did you mean 'epochs'?")


def test_processes_find_the_same(
    diagnose: Diagnose, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(data)
    nan(data / "wav/id03/s1/00001.wav")
    alone = diagnose("--full")
    monkeypatch.setattr(files, "_CHUNK", 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = diagnose("--full")
    assert together.problems == alone.problems
    assert len(alone.problems) == 2
    # Up to the machine, whose disk others fill meanwhile.
    assert together.report.partition("\nMachine")[0] == alone.report.partition("\nMachine")[0]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("score_norm: as-norm", "score_norm_cohort_size: 300 is more than the cohort's 24"),
        (
            "fit_on: nowhere.csv, transforms: [lda]",
            "nowhere.csv: list not found; fit_on is looked up below",
        ),
    ],
)
def test_lists_that_scores_are_fitted_on_are_looked_at(
    diagnose: Diagnose, setting: str, problem: str
) -> None:
    task = f"{{type: sv_cosine, num_frames: 1, frame_length: null, trials: [trials], {setting}}}"
    (found,) = diagnose(f"evaluation.test=[{task}]").problems
    assert found.startswith(problem)


def test_a_list_that_plda_can_be_fitted_on_is_no_problem(diagnose: Diagnose) -> None:
    task = "{type: sv_plda, num_frames: 1, frame_length: null, trials: [trials]}"
    assert diagnose(f"evaluation.test=[{task}]").problems == []
