"""What a run is tested and validated on, and what it shares with the training list."""

from __future__ import annotations

import numpy as np

from sslsv.config import Config
from sslsv.datasets.manifest import Manifest
from sslsv.doctor.files import Audio
from sslsv.doctor.report import Report
from sslsv.errors import DataError, UserError, listing
from sslsv.evaluations.base import TaskConfig
from sslsv.evaluations.classification import Classification, ClassificationConfig
from sslsv.evaluations.split import SPLIT
from sslsv.evaluations.trials import Trials, read_trials
from sslsv.evaluations.verification import SVConfig
from sslsv.methods.supervised import SupervisedConfig
from sslsv.registry import EVALUATIONS


def trial_lists(
    config: Config, manifest: Manifest | None, held_out: Trials | None, report: Report
) -> dict[str, Trials]:
    """The trials of all tasks by list; a task of another kind looks at its lists itself."""
    lists: dict[str, Trials] = {}
    refused: set[str] = set()
    for task in [*config.evaluation.validation, *config.evaluation.test]:
        if not hasattr(task, "trials"):
            _other_task(config, task, manifest, report)
            continue
        before = len(refused)
        for name in task.trials:
            if name in lists or name in refused:
                continue
            if name == SPLIT:  # not the name of a file
                lists |= {name: held_out} if held_out else {}
                continue
            try:
                lists[name] = read_trials(config.dataset.base_path / name)
            except DataError as error:
                refused.add(name)
                report.title(f"Trials {name}")
                report.problem(str(error), "correct the list, or the name in evaluation.*.trials")
        if manifest and isinstance(task, SVConfig) and len(refused) == before:
            _fitted(config, task, manifest, held_out, report)
    return lists


def _fitted(
    config: Config, task: SVConfig, train: Manifest, held_out: Trials | None, report: Report
) -> None:
    """Whether lists suffice for what the task fits to them: cohorts, transforms, PLDA."""
    if not task.needs_train and not task.fits:
        return
    try:
        EVALUATIONS.get(task.type).cls(task, config.dataset, held_out, train)
    except UserError as error:
        report.title(f"Evaluation {task.type}")
        report.problem(str(error))


def _other_task(
    config: Config, task: TaskConfig, manifest: Manifest | None, report: Report
) -> None:
    more = {}
    if isinstance(task, ClassificationConfig):
        more["has_head"] = isinstance(config.method, SupervisedConfig)
    try:
        built = EVALUATIONS.get(task.type).cls(task, config.dataset, **more)
        if isinstance(built, Classification) and built.by_head and manifest:
            built.set_labels(manifest.label_names)
    except UserError as error:
        report.title(f"Evaluation {task.type}")
        report.problem(str(error))


def trials_of(config: Config, name: str, trials: Trials, heard: Audio, report: Report) -> None:
    base_path = config.dataset.base_path
    held_out = f"of the held-out speakers of {base_path / config.dataset.train}"
    report.title(f"Trials {held_out if name == SPLIT else base_path / name}")
    targets = int(trials.labels.sum())
    report.note(
        f"{len(trials):,} trials, {targets:,} of them targets, of {len(trials.audio):,} files"
    )
    pairs = trials.enrol.astype(np.int64) * len(trials.files) + trials.test
    _, first, inverse, counts = np.unique(
        pairs, return_index=True, return_inverse=True, return_counts=True
    )
    twice = np.flatnonzero(counts > 1)
    if len(twice):
        of_pair = np.bincount(inverse, trials.labels)
        both = int(((of_pair > 0) & (of_pair < counts)).sum())
        text = f"{len(twice)} trials stand there more than once: " + listing(
            [f"line {first[i] + 1}" for i in twice]
        )
        text += f"; {both} of them as target and as non-target" if both else ""
        report.warn(text, "remove the repetitions: they count more often than others")
    if same := int((trials.enrol == trials.test).sum()):
        report.warn(f"{same} trials compare a file with itself", "remove them: they are no test")
    if bad := [file for file in trials.audio if str(base_path / file) in heard.skipped]:
        report.problem(
            f"{len(bad)} of {len(trials.audio)} files cannot be used, which training skips and an "
            f"evaluation does not: {listing(bad)}",
            "re-encode the files or remove them from the lists",
        )
    paths = heard.new(str(base_path / file) for file in trials.audio)
    heard.report(paths, heard.look(paths), True, report)


def overlap(manifest: Manifest, trials: Trials, report: Report) -> None:
    trained = set(manifest.files.tolist())
    shared = [file for file in trials.audio if file.encode() in trained]
    if shared:
        report.warn(
            f"{len(shared)} of {len(trials.audio)} files are trained on as well: {listing(shared)}",
            "results on this list do not count as a test; remove its files from the training list",
        )
    known = _labels_that_are_folders(manifest)
    tested = {part for file in trials.audio for part in _folders(file)} & known
    if tested:
        report.warn(
            f"{len(tested)} speakers of this list are trained on as well: "
            + listing(sorted(tested)),
            "remove them from the training list, unless that is meant",
        )
    elif len(known) == len(manifest.label_names):
        report.note("no speaker of it is trained on")
    else:
        report.note(
            "no speaker of it is seen in training, but only "
            f"{len(known):,} of {len(manifest.label_names):,} labels are names of folders"
        )


def _labels_that_are_folders(manifest: Manifest) -> set[str]:
    """Labels with a file in a folder of that name, as in the VoxCeleb corpora.

    Only such labels can be looked for in the paths of trials.
    """
    codes, first = np.unique(manifest.labels, return_index=True)
    pairs = zip(codes.tolist(), first.tolist(), strict=True)
    return {
        manifest.label_names[code]
        for code, row in pairs
        if manifest.label_names[code] in _folders(manifest.file(row))
    }


def _folders(file: str) -> list[str]:
    return file.split("/")[:-1]
