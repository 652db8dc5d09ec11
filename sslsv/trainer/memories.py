"""A pass over the data that fills the memories of a method, or of SSPS, and trains nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sslsv.datasets.views import Batch
from sslsv.methods.ssps import SSPS, reference_embeddings
from sslsv.trainer.tracking import progress_bar

if TYPE_CHECKING:
    from sslsv.trainer.trainer import Trainer


def fill_memories(trainer: Trainer) -> None:
    """Fill what the epoch at hand needs and is empty.

    Crops and augmentation are those of no epoch: were they those of the first one, its targets
    would be in the very noise that it sees.
    """
    method, ssps = trainer.method.wants_pass(), trainer.ssps
    if ssps and not ssps.wants_pass(trainer.epoch):
        ssps = None
    if not method and not ssps:
        return
    trainer.sampler.set_epoch(trainer.config.epochs + trainer.epoch)
    with progress_bar(trainer.steps_per_epoch, "Filling memories") as bar:
        for batch in trainer.loader:
            batch = batch.to(trainer.device).augmented()
            with trainer.autocast():
                if method:
                    trainer.method.observe(batch)
                if ssps:
                    _keep_positives(trainer, ssps, batch)
            bar.update()
    trainer.sampler.set_epoch(trainer.epoch)


@torch.no_grad()
def _keep_positives(trainer: Trainer, ssps: SSPS, batch: Batch) -> None:
    *views, reference_view = batch.views
    references = reference_embeddings(trainer.method.embedder, reference_view)
    trainer.method.eval()
    outputs = trainer.method(views)
    trainer.method.train()
    ssps.keep(outputs, batch.rows.to(trainer.device), references, trainer.guard.frozen)
