"""DeepCluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import distributed
from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.memory import RowMemory
from sslsv.methods.siamese import Siamese, SiameseConfig
from sslsv.randomness import generator
from sslsv.registry import register_method


@dataclass(kw_only=True)
class DeepClusterConfig(SiameseConfig):
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    temperature: float = 0.1  # tau
    nb_prototypes: list[int] = field(default_factory=lambda: [3000, 3000, 3000])  # of each set
    kmeans_nb_iters: int = 10  # of each clustering

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "kmeans_nb_iters")
        if not self.nb_prototypes or min(self.nb_prototypes) < 1:
            raise ConfigError(
                f"nb_prototypes: give the number of clusters of each set, got {self.nb_prototypes}"
            )


def assignment_loss(z: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``-log softmax(z . C / tau)`` of each row's cluster, mean over rows of all processes that
    have one.

    z: (N, D) unit vectors; prototypes: (K, D); targets: (N,) int64, -1 where there is none.
    """
    losses = F.cross_entropy(
        z @ prototypes.T / temperature, targets, reduction="none", ignore_index=-1
    )
    known = distributed.reduce_sum((targets >= 0).sum())
    return losses.sum() * distributed.world_size() / known.clamp(min=1)


@register_method("deepcluster", DeepClusterConfig)
class DeepCluster(Siamese):
    """DeepCluster-v2 (arXiv 1807.05520; second version in arXiv 2006.09882, appendix D): both views
    are to be told to belong to the utterance's cluster, by scalar products with centroids.

    At the start of each epoch, spherical k-means of the embeddings that utterances had when they
    were last seen: set k of prototypes from the first views if k is even, from the second ones
    otherwise. A pass over the data fills the memory before the first epoch. It is by utterance and
    the same in every process; 2 R D numbers of 16 bits, 0.6 GB for VoxCeleb2 with D = 128.
    """

    positives = ()
    config: DeepClusterConfig
    assignments: Tensor

    def __init__(self, config: DeepClusterConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.dim = config.projector_output_dim if config.enable_projector else encoder.encoder_dim
        self.prototypes = nn.ModuleList(
            nn.Linear(self.dim, count, bias=False).requires_grad_(False)
            for count in config.nb_prototypes
        )

    def on_data(self, rows: int) -> None:
        if max(self.config.nb_prototypes) > rows:
            raise ConfigError(
                f"method.nb_prototypes: {max(self.config.nb_prototypes)} clusters cannot be made "
                f"of the {rows} rows of dataset.train; use fewer"
            )
        self.memory1, self.memory2 = RowMemory(rows, self.dim), RowMemory(rows, self.dim)
        unknown = torch.full((len(self.prototypes), rows), -1)
        self.register_buffer("assignments", unknown, persistent=False)  # of each set

    @property
    def _layers(self) -> list[nn.Linear]:
        return [layer for layer in self.prototypes if isinstance(layer, nn.Linear)]

    def memories(self) -> dict[str, Tensor]:
        return {n: x for n, x in self.named_buffers() if n.startswith(("memory", "assignments"))}

    def wants_pass(self) -> bool:
        return not bool(self.memory1.filled.any())

    @torch.no_grad()
    def observe(self, batch: Batch) -> None:
        self._keep(self(batch.views), batch, frozen=batch.views[0].new_zeros(()))

    @torch.no_grad()
    def on_epoch_start(self) -> None:
        """Cluster anew; rows that were never seen have no cluster."""
        for k, layer in enumerate(self._layers):
            rng = generator("deepcluster", self.progress.seed, self.progress.epoch, k)
            seed = int(rng.integers(2**62))
            memory = self.memory2 if k % 2 else self.memory1
            count = self.config.nb_prototypes[k]
            found = memory.cluster(count, self.config.kmeans_nb_iters, seed)
            layer.weight.copy_(found.centroids)
            self.assignments[k] = found.cluster

    def forward(self, views: list[Tensor]) -> Outputs:
        return {name: F.normalize(z, dim=-1) for name, z in super().forward(views).items()}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        targets = self.assignments[:, batch.rows.to(self.assignments.device)]  # (sets, N)
        losses = [
            assignment_loss(z, layer.weight, its, self.config.temperature)
            for layer, its in zip(self._layers, targets, strict=True)
            for z in (outputs["z1"], outputs["z2"])
        ]
        loss = torch.stack(losses).mean()
        return loss, {"train/loss": loss.detach()}

    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        self._keep(outputs, batch, frozen)

    def _keep(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        rows = batch.rows.to(self.assignments.device, non_blocking=True)
        self.memory1.write(rows, outputs["z1"], frozen)
        self.memory2.write(rows, outputs["z2"], frozen)
