"""The training list: its rows, labels, audio, and the sounds that augment it."""

from __future__ import annotations

import glob
from collections.abc import Sequence

import numpy as np

from sslsv import audio
from sslsv.config import Config
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.samplers import Batches, make_batches
from sslsv.doctor.files import Audio
from sslsv.doctor.report import Report
from sslsv.errors import DataError, UserError, listing
from sslsv.evaluations.split import hold_out, split_of
from sslsv.evaluations.trials import Trials

_DURATIONS = [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60, 120, 300, np.inf]  # seconds, of the bars
_BAR = 40  # characters of the longest bar


def read_list(config: Config, report: Report) -> Manifest | None:
    dataset = config.dataset
    path = dataset.base_path / dataset.train
    report.title(f"Training list {path}")
    columns = config.method.ssps.metric_columns if config.method.ssps else []

    def read(columns: Sequence[str] = ()) -> Manifest:
        return read_manifest(
            dataset.train, dataset.base_path, dataset.label_key, dataset.max_samples, columns
        )

    try:
        manifest = read()
    except DataError as error:
        report.problem(str(error))
        return None
    try:
        read(columns)
    except DataError as error:
        report.problem(str(error), "correct method.ssps.metric_columns")
    names, first, counts = np.unique(manifest.files, return_index=True, return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if len(twice):
        named = [f"line {manifest.lines[first[i]]}: {names[i].decode()}" for i in twice[:11]]
        text = f"{len(twice)} files are listed more than once: {listing(named, 10)}"
        report.warn(text, "remove the repetitions: they are trained on more often than others")
    return manifest


def without_held_out(
    config: Config, manifest: Manifest, report: Report
) -> tuple[Manifest, Trials | None]:
    """What is left to train on, and the trials of the speakers that validation takes from it."""
    split = split_of(config.evaluation.validation)
    if split is None:
        return manifest, None
    try:
        left, trials = hold_out(manifest, split, config.seed)
    except UserError as error:
        report.problem(str(error))
        return manifest, None
    report.note(
        f"{split.speakers} labels with {len(manifest) - len(left):,} utterances are held out for "
        "validation"
    )
    return left, trials


def labels(config: Config, manifest: Manifest, report: Report) -> Batches | None:
    counts = np.bincount(manifest.labels)
    report.note(
        f"{len(manifest):,} utterances of {len(counts):,} labels ({config.dataset.label_key}); "
        f"a label has {counts.min():,} / {int(np.median(counts)):,} / {counts.max():,} "
        f"(fewest / median / most), {int((counts == 1).sum()):,} labels have one"
    )
    try:
        batches = make_batches(
            config.dataset.sampler, manifest.labels, config.trainer.batch_size, config.seed
        )
    except UserError as error:
        report.problem(str(error))
        return None
    report.note(f"{len(batches):,} batches of {config.trainer.batch_size} an epoch")
    return batches


def audio_of_list(config: Config, manifest: Manifest, heard: Audio, report: Report) -> None:
    report.title("Audio of the training list")
    files = map(manifest.file, range(len(manifest)))
    paths = heard.new(str(manifest.base_path / file) for file in files)
    found = heard.look(paths)
    heard.report(paths, found, config.dataset.on_error == "raise", report)
    seconds = found.seconds[found.seconds > 0]
    if not len(seconds):
        return
    report.note(
        f"{seconds.sum() / 3600:,.1f} hours; a file has {seconds.min():.2f} / "
        f"{np.median(seconds):.2f} / {seconds.max():.2f} s (shortest / median / longest)"
    )
    for line in _histogram(seconds):
        report.note(line)
    name, samples = max(config.dataset.lengths().items(), key=lambda item: item[1])
    if short := int((seconds < samples / audio.SAMPLE_RATE).sum()):
        report.note(
            f"{short:,} files are shorter than a crop of {samples / audio.SAMPLE_RATE:g} s "
            f"(dataset.{name}); they are repeated to that length"
        )


def _histogram(seconds: np.ndarray) -> list[str]:
    """A bar for each range of durations, from the first to the last that is not empty."""
    counts, _ = np.histogram(seconds, _DURATIONS)
    used = np.flatnonzero(counts)
    lines = []
    for i in range(used[0], used[-1] + 1):
        low, high = _DURATIONS[i], _DURATIONS[i + 1]
        span = f"{low:g} s and more" if np.isinf(high) else f"{low:g} to {high:g} s"
        bar = "#" * -(-int(counts[i]) * _BAR // int(counts.max()))
        lines.append(f"{span:>14}  {bar:{_BAR}}  {counts[i]:,} ({counts[i] / len(seconds):.1%})")
    return lines


def augmentation(config: Config, heard: Audio, report: Report) -> None:
    section = config.dataset.augmentation
    report.title("Augmentation")
    if section is None or not section.enable or section.aug_prob == 0:
        report.note("none")
        return
    needed: dict[str, tuple[str, int]] = {}  # folder: pattern, fewest files
    if section.strategy == "all" or "reverb" in section.strategy:
        needed["simulated_rirs"] = ("*/*/*.wav", 1)
    if section.strategy == "all" or "noise" in section.strategy:
        for category in ("noise", "speech", "music"):
            needed[f"musan_split/{category}"] = ("*/*.wav", section.num_range(category)[1])
    for name, (pattern, fewest) in needed.items():
        folder = config.dataset.base_path / name
        files = sorted(glob.glob(pattern, root_dir=folder))
        if len(files) < fewest:
            report.problem(
                f"{folder}: {len(files)} files {pattern} where at least {fewest} are needed",
                "put sounds there (tools/prepare_data makes them), or set "
                "dataset.augmentation.enable: false",
            )
            continue
        found = heard.look(paths := [str(folder / file) for file in files])
        rates = ", ".join(f"{rate} Hz" for rate in np.unique(found.rates[found.rates > 0]))
        hours = found.seconds.sum() / 3600
        report.note(f"{name}: {len(files):,} files, {hours:,.2f} hours, {rates}")
        heard.report(paths, found, True, report)
