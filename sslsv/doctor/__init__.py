"""``sslsv doctor``: what would stop or spoil a training, found before it starts."""

from __future__ import annotations

from sslsv.config import Config
from sslsv.doctor.evaluations import overlap, trial_lists, trials_of
from sslsv.doctor.files import Audio
from sslsv.doctor.machine import about_machine, checkpoint_bytes
from sslsv.doctor.method import method_sizes
from sslsv.doctor.report import Report
from sslsv.doctor.training_list import (
    audio_of_list,
    augmentation,
    labels,
    read_list,
    without_held_out,
)
from sslsv.experiment import build_method


def examine(config: Config, full: bool = False) -> None:
    """Print a report. With ``full`` every file is decoded, not only its header read.

    Raises DataError where something would stop the training or the evaluation.
    """
    report = Report()
    heard = Audio(config, full)
    manifest, batches, held_out = read_list(config, report), None, None
    if manifest:
        whole = manifest
        manifest, held_out = without_held_out(config, whole, report)
        batches = labels(config, manifest, report)
        audio_of_list(config, whole, heard, report)
    for name, trials in trial_lists(config, manifest, held_out, report).items():
        trials_of(config, name, trials, heard, report)
        if manifest:
            overlap(manifest, trials, report)
    augmentation(config, heard, report)
    method = build_method(config)
    memories = method_sizes(config, method, manifest, batches, report)
    about_machine(config, checkpoint_bytes(config, method, memories), report)
    report.close()
