"""Whether the sizes of a method fit the training list."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sslsv.config import Config
from sslsv.datasets.manifest import Manifest
from sslsv.datasets.samplers import Batches
from sslsv.doctor.machine import bytes_of, gigabytes, last_epoch
from sslsv.doctor.report import Report
from sslsv.errors import ConfigError
from sslsv.experiment import positive_shapes
from sslsv.methods.base import Method
from sslsv.methods.deepcluster import DeepClusterConfig
from sslsv.methods.ssps import SSPS, SSPSConfig


def method_sizes(
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
    size = bytes_of(memories)
    millions = sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6
    report.note(
        f"{millions:,.2f} M parameters are trained; {gigabytes(size)} are kept of the utterances, "
        "on the device and in checkpoints"
    )
    return size


def _ssps_settings(config: Config, ssps: SSPSConfig, report: Report) -> None:
    last, batch = last_epoch(config), config.trainer.batch_size // config.trainer.accumulation
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
    if batches is None or epoch >= last_epoch(config):
        return
    batches.set_epoch(epoch - 1 if epoch else config.trainer.epochs)
    rows = batches.plan().rows[: len(batches) * batches.batch_size]
    if count > (seen := len(np.unique(rows))):
        report.problem(
            f"{name}: {count} clusters cannot be made of the {seen} utterances that are in the "
            "batches of an epoch",
            "use fewer",
        )
