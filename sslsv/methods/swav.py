"""SwAV."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.heads import Prototypes, by_length
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.methods.sinkhorn import sinkhorn
from sslsv.registry import register_method

_ASSIGNED = 2  # long views, which are assigned to prototypes


@dataclass(kw_only=True)
class SwAVConfig(SiameseConfig):
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    temperature: float = 0.1  # tau
    nb_prototypes: int = 3000  # K
    sk_nb_iters: int = 3  # of Sinkhorn-Knopp
    sk_epsilon: float = 0.05  # epsilon, weight of the entropy
    queue_size: int = 3840  # earlier embeddings of each view that are assigned too; 0: none
    queue_start_epoch: int = 15  # epochs without the queue
    freeze_prototypes_epochs: int = 1  # first epochs, in which prototypes stay as they are

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "nb_prototypes", "sk_nb_iters", "sk_epsilon")
        for name in ("queue_size", "queue_start_epoch", "freeze_prototypes_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if self.queue_size % batch_size:
            raise ConfigError(
                f"method.queue_size: {self.queue_size} is not a multiple of trainer.batch_size "
                f"{batch_size}; use {-(-self.queue_size // batch_size) * batch_size} or another one"
            )
        if dataset.sampling == "multicrop" and dataset.ssl_dino_global_count != _ASSIGNED:
            raise ConfigError(
                f"dataset.ssl_dino_global_count: method.type {self.type} needs {_ASSIGNED}, got "
                f"{dataset.ssl_dino_global_count}"
            )


def swapped_prediction(scores: Tensor, codes: list[Tensor], temperature: float) -> Tensor:
    """``-q_s . log softmax(z_t . C / tau)``, mean over rows, over views t other than s, and over s
    (arXiv 2006.09882, eq. 1-2; with more than two views eq. 6).

    scores: (N, V, K) of all views; codes: (N, K) of each of the first ones, q.
    """
    log_p = (scores / temperature).log_softmax(dim=-1)
    terms = []
    for s, q in enumerate(codes):
        others = [t for t in range(scores.shape[1]) if t != s]
        terms.append(-torch.einsum("nk,nvk->nv", q, log_p[:, others]).mean())
    return torch.stack(terms).mean()


@register_method("swav", SwAVConfig)
class SwAV(Siamese):
    """Swapping Assignments between Views (arXiv 2006.09882): from one view the code of the other
    is predicted, a soft assignment to prototypes that uses all of them alike.

    Codes are computed over the batch of all processes and, once it is full, a queue of earlier
    embeddings. With multi-crop the short views predict the codes of the two long ones.
    """

    also_views = ("multicrop",)
    positives = ("z1", "z2")
    config: SwAVConfig
    queue: Tensor
    queue_ptr: Tensor
    queue_filled: Tensor

    def __init__(self, config: SwAVConfig, encoder: Encoder):
        super().__init__(config, encoder)
        dim = config.projector_output_dim if config.enable_projector else encoder.encoder_dim
        self.prototypes = Prototypes(dim, config.nb_prototypes)
        self.register_buffer("queue", torch.zeros(2, config.queue_size, dim))  # of each view
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))  # the oldest
        self.register_buffer("queue_filled", torch.zeros(1, dtype=torch.int64))

    def forward(self, views: list[Tensor]) -> Outputs:
        y = by_length(self.encoder, views)
        z = F.normalize(self.projector(torch.cat(y)), dim=-1)
        scores = self.prototypes(z).unflatten(0, (len(views), -1)).transpose(0, 1)  # (N, V, K)
        z1, z2 = z.detach().unflatten(0, (len(views), -1))[:_ASSIGNED]
        return {"scores": scores, "z1": z1, "z2": z2}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        codes = [self._codes(outputs[name], view) for view, name in enumerate(("z1", "z2"))]
        loss = swapped_prediction(outputs["scores"], codes, self.config.temperature)
        return loss, {"train/loss": loss.detach()}

    @torch.no_grad()
    def _codes(self, z: Tensor, view: int) -> Tensor:
        """(N, D) -> (N, K)"""
        valid = None
        rows = z
        if self._queueing:
            share = self.queue[view].chunk(distributed.world_size())[distributed.rank()]
            rows = torch.cat((z, share))
            full = self.queue_filled >= self.config.queue_size
            valid = torch.cat((full.new_ones(len(z)), full.expand(len(share))))
        scores = self.prototypes(rows)
        return sinkhorn(scores, self.config.sk_epsilon, self.config.sk_nb_iters, valid)[: len(z)]

    @property
    def _queueing(self) -> bool:
        started = self.progress.epoch >= self.config.queue_start_epoch
        return started and self.config.queue_size > 0

    def on_gradients(self) -> None:
        if self.progress.epoch < self.config.freeze_prototypes_epochs:
            self.prototypes.weight_v.grad = None

    @torch.no_grad()
    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        """Embeddings of all processes take the place of the oldest."""
        if not self._queueing:
            return
        z = distributed.gather(torch.stack((outputs["z1"], outputs["z2"]), dim=1))  # (W·N, 2, D)
        size, kept = self.config.queue_size, frozen > 0
        places = (self.queue_ptr + torch.arange(len(z), device=z.device)) % size
        new = torch.where(kept, self.queue[:, places], z.transpose(0, 1).to(self.queue))
        self.queue[:, places] = new
        for counter, moved in (
            (self.queue_ptr, (self.queue_ptr + len(z)) % size),
            (self.queue_filled, (self.queue_filled + len(z)).clamp(max=size)),
        ):
            counter.copy_(torch.where(kept, counter, moved))
