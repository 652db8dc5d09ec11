"""``sslsv doctor``: what would stop or spoil a training, found before it starts."""

from __future__ import annotations

import glob
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslsv import audio, distributed
from sslsv.config import Config
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.samplers import Batches, make_batches
from sslsv.errors import ConfigError, DataError, UserError, listing
from sslsv.evaluations.base import TaskConfig
from sslsv.evaluations.classification import Classification, ClassificationConfig
from sslsv.evaluations.split import SPLIT, hold_out, split_of
from sslsv.evaluations.trials import Trials, read_trials
from sslsv.evaluations.verification import SVConfig
from sslsv.experiment import build_method, positive_shapes
from sslsv.methods.base import Method
from sslsv.methods.deepcluster import DeepClusterConfig
from sslsv.methods.ssps import SSPS, SSPSConfig
from sslsv.methods.supervised import SupervisedConfig
from sslsv.registry import EVALUATIONS
from sslsv.trainer.tracking import progress_bar, say

_CHUNK = 512  # files that a process looks at before it reports; so few need no processes
_BLOCK = 1 << 20  # samples decoded at a time
_DURATIONS = [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60, 120, 300, np.inf]  # seconds, of the bars
_BAR = 40  # characters of the longest bar
_SPARE = 1.05  # disk space to ask for, times what is needed


def examine(config: Config, full: bool = False) -> None:
    """Print a report. With ``full`` every file is decoded, not only its header read.

    Raises DataError where something would stop the training or the evaluation.
    """
    report = Report()
    heard = _Audio(config, full)
    manifest, batches, held_out = _list(config, report), None, None
    if manifest:
        whole = manifest
        manifest, held_out = _without_held_out(config, whole, report)
        batches = _labels(config, manifest, report)
        _audio_of_list(config, whole, heard, report)
    for name, trials in _trial_lists(config, manifest, held_out, report).items():
        _trials(config, name, trials, heard, report)
        if manifest:
            _overlap(manifest, trials, report)
    _augmentation(config, heard, report)
    method = build_method(config)
    memories = _method(config, method, manifest, batches, report)
    _machine(config, _checkpoint_bytes(config, method, memories), report)
    report.close()


@dataclass
class Report:
    """What is printed, and how much of it is bad."""

    problems: int = 0  # would stop a run
    warnings: int = 0  # may spoil it

    def title(self, text: str) -> None:
        say(f"\n{text}")

    def note(self, text: str) -> None:
        say(f"  {text}")

    def warn(self, text: str, fix: str) -> None:
        self.warnings += 1
        say(f"  warning: {text}\n    -> {fix}")

    def problem(self, text: str, fix: str = "") -> None:
        self.problems += 1
        say(f"  PROBLEM: {text}" + (f"\n    -> {fix}" if fix else ""))

    def fault(self, text: str, fix: str, stops: bool) -> None:
        """A problem if it stops a run, else a warning."""
        (self.problem if stops else self.warn)(text, fix)

    def close(self) -> None:
        warnings = f"{self.warnings} warning{'s' * (self.warnings != 1)}"
        if self.problems:
            raise DataError(
                f"{self.problems} problem{'s' * (self.problems != 1)} would stop a run and are to "
                f"be mended first (see the report); {warnings}"
            )
        say(f"\nReady to train; {warnings}.")


# ---------------------------------------------------------------------------- audio files


@dataclass
class Heard:
    """What F files are like, in the order they were given."""

    seconds: np.ndarray  # (F,) float64, 0 where a file cannot be used
    rates: np.ndarray  # (F,) int64, Hz
    channels: np.ndarray  # (F,) int64
    errors: dict[int, str] = field(default_factory=dict)  # by index


class _Audio:
    """Looks at files, each only once however many lists it is in."""

    def __init__(self, config: Config, full: bool):
        self.resample, self.full = config.dataset.resample, full
        self.skipped: set[str] = set()  # paths that cannot be used, of which one stops no run
        self._known: set[str] = set()

    def new(self, paths: Iterable[str]) -> list[str]:
        """Those of ``paths`` that have not been looked at."""
        fresh = list(dict.fromkeys(path for path in paths if path not in self._known))
        self._known.update(fresh)
        return fresh

    def look(self, paths: Sequence[str]) -> Heard:
        chunks = [(paths[i : i + _CHUNK], self.full) for i in range(0, len(paths), _CHUNK)]
        heard = Heard(np.zeros(len(paths)), *np.zeros((2, len(paths)), dtype=np.int64))
        done = 0
        bar = progress_bar(len(paths), "Decoding" if self.full else "Headers", unit="file")
        for part in self._map(chunks):
            end = done + len(part.seconds)
            heard.seconds[done:end] = part.seconds
            heard.rates[done:end] = part.rates
            heard.channels[done:end] = part.channels
            heard.errors |= {done + i: error for i, error in part.errors.items()}
            bar.update(end - done)
            done = end
        bar.close()
        return heard

    def _map(self, chunks: list[tuple[Sequence[str], bool]]) -> Iterable[Heard]:
        processes = min(len(chunks), os.cpu_count() or 1)
        if processes < 2:
            yield from map(_look, chunks)
            return
        with multiprocessing.Pool(processes) as pool:
            yield from pool.imap(_look, chunks)

    def report(self, paths: Sequence[str], heard: Heard, stops: bool, report: Report) -> None:
        """Say which files cannot be used; ``stops`` is whether one is enough to stop a run."""
        if not stops:
            self.skipped |= {paths[i] for i in heard.errors}
        stops = stops or len(heard.errors) == len(paths)
        missing = [paths[i] for i, error in heard.errors.items() if error.endswith(_MISSING)]
        if missing:
            text = f"{len(missing)} of {len(paths)} files not found: {listing(missing)}"
            report.fault(text, "check dataset.base_path, or remove them from the list", stops)
        bad = [error for error in heard.errors.values() if not error.endswith(_MISSING)]
        if bad:
            text = f"{len(bad)} of {len(paths)} files cannot be used: {listing(bad)}"
            report.fault(text, "re-encode the files or remove them from the list", stops)
        others = np.flatnonzero((heard.rates > 0) & (heard.rates != audio.SAMPLE_RATE)).tolist()
        if others:
            rates = ", ".join(f"{rate} Hz" for rate in np.unique(heard.rates[others]))
            named = listing([paths[i] for i in others])
            text = f"{len(others)} of {len(paths)} files are at {rates}: {named}"
            if self.resample:
                report.note(f"{text}; they are resampled")
            else:
                self.skipped |= set() if stops else {paths[i] for i in others}
                fix = f"set dataset.resample: true or convert the files to {audio.SAMPLE_RATE} Hz"
                report.fault(text, fix, stops or len(others) == len(paths))
        if many := int((heard.channels > 1).sum()):
            report.note(f"{many} files have several channels, which are averaged")


_MISSING = ": file not found"


def _look(chunk: tuple[Sequence[str], bool]) -> Heard:
    paths, full = chunk
    heard = Heard(np.zeros(len(paths)), *np.zeros((2, len(paths)), dtype=np.int64))
    for i, path in enumerate(paths):
        try:
            with audio.AudioFile(path, resample=True) as file:
                rate, channels, samples = file.file_rate, file.channels, file.length
            if full:
                _decode(path, rate)
        except DataError as error:
            heard.errors[i] = str(error)
            continue
        heard.seconds[i] = samples / audio.SAMPLE_RATE
        heard.rates[i], heard.channels[i] = rate, channels
    return heard


def _decode(path: str, rate: int) -> None:
    with audio.AudioFile(path, rate) as file:
        for start in range(0, file.length, _BLOCK):
            file.read(start, min(_BLOCK, file.length - start))


# ---------------------------------------------------------------------------- the training list


def _list(config: Config, report: Report) -> Manifest | None:
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


def _without_held_out(
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


def _labels(config: Config, manifest: Manifest, report: Report) -> Batches | None:
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


def _audio_of_list(config: Config, manifest: Manifest, heard: _Audio, report: Report) -> None:
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


# ---------------------------------------------------------------------------- evaluations


def _trial_lists(
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


def _trials(config: Config, name: str, trials: Trials, heard: _Audio, report: Report) -> None:
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


def _overlap(manifest: Manifest, trials: Trials, report: Report) -> None:
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


# ---------------------------------------------------------------------------- the rest


def _augmentation(config: Config, heard: _Audio, report: Report) -> None:
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


def _method(
    config: Config,
    method: Method,
    manifest: Manifest | None,
    batches: Batches | None,
    report: Report,
) -> int:
    """Whether its sizes fit the training list; returns bytes of what it keeps of each row."""
    report.title(f"Method {config.method.type}")
    if manifest is None:
        report.note("needs the training list to be looked at")
        return 0
    memories: list[Tensor] = []
    clusters: dict[str, tuple[int, int]] = {}  # setting: how many, at the start of which epoch
    try:
        config.method.check_labels(len(manifest.label_names))
    except ConfigError as error:
        report.problem(str(error))
    try:
        with torch.device("meta"):  # sizes only
            method.on_data(len(manifest))
        memories += method.memories().values()
        if isinstance(config.method, DeepClusterConfig):
            clusters["method.nb_prototypes"] = max(config.method.nb_prototypes), 0
    except ConfigError as error:
        report.problem(str(error))
    if ssps := config.method.ssps:
        try:
            shapes, dim = positive_shapes(config, method), config.encoder.encoder_dim
            with torch.device("meta"):  # as a training makes it, without its memory
                made = SSPS(ssps, len(manifest), dim, shapes)
            memories += made.memories().values()
            if ssps.clusters:
                clusters["method.ssps.kmeans_nb_prototypes"] = (
                    ssps.kmeans_nb_prototypes,
                    ssps.start_epoch,
                )
        except ConfigError as error:
            report.problem(str(error))
        _ssps_settings(config, ssps, report)
    for name, (count, epoch) in clusters.items():
        _enough_rows(config, batches, name, count, epoch, report)
    size = _bytes(memories)
    millions = sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6
    report.note(
        f"{millions:,.2f} M parameters are trained; {_gigabytes(size)} are kept of the utterances, "
        "on the device and in checkpoints"
    )
    return size


def _ssps_settings(config: Config, ssps: SSPSConfig, report: Report) -> None:
    last, batch = _last_epoch(config), config.trainer.batch_size // config.trainer.accumulation
    if ssps.start_epoch >= last:
        report.warn(
            f"method.ssps.start_epoch: {ssps.start_epoch} epochs come before it and the training "
            f"has {last}, so that no positive is ever replaced",
            "lower it, or raise trainer.epochs (and trainer.stop_at_epoch)",
        )
    if ssps.sampling != "kmeans" and ssps.pos_queue_size < batch:
        report.warn(
            f"method.ssps.pos_queue_size: {ssps.pos_queue_size} places are too few for the {batch} "
            "utterances of a batch, of which some are lost",
            "raise it, to many batches",
        )


def _enough_rows(
    config: Config, batches: Batches | None, name: str, count: int, epoch: int, report: Report
) -> None:
    """Whether an epoch sees as many utterances as clusters are made at the start of ``epoch``.

    Those of the epoch before, or of a pass over the data where there is none before.
    """
    if batches is None or epoch >= _last_epoch(config):
        return
    batches.set_epoch(epoch - 1 if epoch else config.trainer.epochs)
    rows = batches.plan().rows[: len(batches) * batches.batch_size]
    if count > (seen := len(np.unique(rows))):
        report.problem(
            f"{name}: {count} clusters cannot be made of the {seen} utterances that are in the "
            "batches of an epoch",
            "use fewer",
        )


def _machine(config: Config, checkpoints: int, report: Report) -> None:
    report.title("Machine")
    device = distributed.default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU is seen"
    cores = os.cpu_count() or 1
    report.note(f"trains on {device.type} ({name}), {cores} CPU cores")
    if config.dataset.num_workers > cores:
        text = f"dataset.num_workers: {config.dataset.num_workers} processes on {cores} CPU cores"
        report.warn(text, f"lower it to {cores} or less")
    if config.dataset.resample:
        try:
            audio.torchaudio()
        except UserError as error:
            report.problem(str(error))
    _disk(config, checkpoints, report)


def _disk(config: Config, needed: int, report: Report) -> None:
    assert config.run_dir is not None
    folder = config.run_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{_gigabytes(free)} free for {config.run_dir}, checkpoints take {_gigabytes(needed)}"
    if not os.access(folder, os.W_OK):
        report.problem(f"{folder} cannot be written", "give another run_dir")
    if free < needed * _SPARE:
        report.problem(text, "free space, give another run_dir, or set trainer.keep_last_n")
    else:
        report.note(text)


def _checkpoint_bytes(config: Config, method: Method, memories: int) -> int:
    """Of all that a run still writes, with ``memories`` of so many bytes.

    Weights of epochs, of the best one and of the mean; twice, as the latest and the one before,
    weights, moments, memories and the sums of the mean. A file takes the place of the old one only
    when it is complete, so there is one more at times.
    """
    trainer = config.trainer
    weights = _bytes(method.state_dict().values())
    trainable = _bytes(p for p in method.parameters() if p.requires_grad)
    moments = trainable * (2 if trainer.optimizer in ("adam", "adamw") else 1)
    floats = sum(x.numel() for x in method.state_dict().values() if x.is_floating_point())
    sums = 8 * floats if trainer.avg_count else 0  # float64
    full = weights + moments + memories + sums

    epochs = _last_epoch(config)
    if trainer.keep_last_n:  # an old one goes when the new one is there
        epochs = min(epochs, trainer.keep_last_n + 1)
    tracked = bool(config.evaluation.validation) or trainer.tracked_metric.startswith("train/")
    replaced = tracked + (trainer.avg_count > 0)  # model_best.pt, model_avg.pt
    total = weights * (epochs + replaced + (replaced > 0)) + 2 * full
    return max(weights + full, total - _there(config))


def _there(config: Config) -> int:
    """Bytes of the checkpoints that are there already, of hard links once."""
    assert config.run_dir is not None
    stats = [path.stat() for path in Path(config.run_dir, "checkpoints").glob("model_*.pt")]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def _last_epoch(config: Config) -> int:
    return min(config.trainer.epochs, config.trainer.stop_at_epoch or config.trainer.epochs)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
