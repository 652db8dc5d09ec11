"""The machine, and the disk that checkpoints take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from sslsv import audio, distributed
from sslsv.config import Config
from sslsv.doctor.report import Report
from sslsv.errors import UserError
from sslsv.methods.base import Method
from sslsv.trainer.precision import has_bfloat16

_SPARE = 1.05  # disk space to ask for, times what is needed


def about_machine(config: Config, checkpoints: int, report: Report) -> None:
    report.title("Machine")
    device = distributed.default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU is seen"
    cores = os.cpu_count() or 1
    report.note(f"trains on {device.type} ({name}), {cores} CPU cores")
    if config.dataset.num_workers > cores:
        text = f"dataset.num_workers: {config.dataset.num_workers} processes on {cores} CPU cores"
        report.warn(text, f"lower it to {cores} or less")
    mixed = config.trainer.mixed_precision
    if mixed in (True, "bf16") and not has_bfloat16(device):
        slow = f"trainer.mixed_precision: {device.type} has no bfloat16 here"
        if mixed is True:
            report.note(f"{slow}; float32 is used")
        else:
            report.warn(f"{slow} and is many times slower with it", "set it to true or false")
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
    text = f"{gigabytes(free)} free for {config.run_dir}, checkpoints take {gigabytes(needed)}"
    if not os.access(folder, os.W_OK):
        report.problem(f"{folder} cannot be written", "give another run_dir")
    if free < needed * _SPARE:
        report.problem(text, "free space, give another run_dir, or set trainer.keep_last_n")
    else:
        report.note(text)


def checkpoint_bytes(config: Config, method: Method, memories: int) -> int:
    """Of all that a run still writes, with ``memories`` of so many bytes.

    Weights of epochs, of the best one and of the mean; twice, as the latest and the one before,
    weights, moments, memories and the sums of the mean. A file takes the place of the old one only
    when it is complete, so there is one more at times.
    """
    trainer = config.trainer
    weights = bytes_of(method.state_dict().values())
    trainable = bytes_of(p for p in method.parameters() if p.requires_grad)
    moments = trainable * (2 if trainer.optimizer in ("adam", "adamw") else 1)
    floats = sum(x.numel() for x in method.state_dict().values() if x.is_floating_point())
    sums = 8 * floats if trainer.avg_count else 0  # float64
    full = weights + moments + memories + sums

    epochs = last_epoch(config)
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


def last_epoch(config: Config) -> int:
    return min(config.trainer.epochs, config.trainer.stop_at_epoch or config.trainer.epochs)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
