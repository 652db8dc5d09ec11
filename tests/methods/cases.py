"""A small form of every method, for the tests of what all of them keep to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sslsv.config import from_dict
from sslsv.datasets.views import Batch
from sslsv.encoders import masking
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.methods.base import Method
from sslsv.registry import METHODS

ROWS, DIM, SAMPLES = 8, 16, 800  # utterances of a batch, size of an embedding, of a long view
VIEWS = {"single": [SAMPLES], "siamese": [SAMPLES] * 2, "multicrop": [SAMPLES] * 2 + [400] * 4}


class Tiny(Encoder):
    """Two convolutions on the waveform; a mean over time unless ``sequence``."""

    ragged = True

    def __init__(self, sequence: bool = False):
        super().__init__(EncoderConfig(type="tiny", encoder_dim=DIM, extract_mel_features=False))
        self.sequence = sequence
        self.layers = nn.Sequential(
            masking.Conv1d(1, 8, 40, stride=20),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            masking.Conv1d(8, DIM, 3, stride=2),
        )

    def forward(self, wave: Tensor) -> Tensor:
        x = self.layers(wave[:, None])  # (B, D, F)
        return x if self.sequence else masking.mean(x)


def _words(value: Any) -> str:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return ",".join(_words(part) for part in parts)
    return str(value)


@dataclass(frozen=True)
class Case:
    """A method's type, the fields of its section, and what is special about it."""

    type: str
    fields: dict[str, Any] = field(default_factory=dict)
    sampling: str | None = None  # where it is not the usual one of the method

    @property
    def name(self) -> str:
        """Different for every case."""
        return f"{self.type}-{_words(self.fields)}" + (f"-{self.sampling}" if self.sampling else "")

    @property
    def views(self) -> str:
        return self.sampling or METHODS.get(self.type).cls.views  # type: ignore[attr-defined]

    def config(self) -> Any:
        """Made as a YAML file's section is."""
        data = {"encoder": {"type": "resnet34"}, "method": {"type": self.type, **self.fields}}
        return from_dict(data).method

    def method(self, encoder: Encoder | None = None) -> Method:
        """Ready for its first step; the same weights each time."""
        torch.manual_seed(1)
        config = self.config()
        encoder = encoder or Tiny(sequence=config.needs_sequence)
        method = METHODS.get(self.type).cls(config, encoder)
        method.on_data(ROWS)
        if method.wants_pass():
            method.observe(self.batch())
        method.on_epoch_start()
        return method

    def batch(self, seed: int = 0, rows: int = ROWS, dtype: torch.dtype | None = None) -> Batch:
        """Views that differ by noise, and labels 0, 1, 2, 3, 0, 1, …"""
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(rows, SAMPLES, generator=generator, dtype=torch.float64)
        views = [
            base[:, :n] + 0.3 * torch.randn(rows, n, generator=generator, dtype=torch.float64)
            for n in VIEWS[self.views]
        ]
        dtype = dtype or torch.get_default_dtype()
        return Batch(torch.arange(rows), torch.arange(rows) % 4, [v.to(dtype) for v in views])


PROJECTOR = {"projector_hidden_dim": 12, "projector_output_dim": 10}
QUEUE = {"queue_size": 32, "temperature": 0.2}
SWAV = {"nb_prototypes": 6, "queue_start_epoch": 0, "freeze_prototypes_epochs": 0}
HEAD = {"head_hidden_dim": 12, "head_bottleneck_dim": 8, "head_output_dim": 20}
_MARGINS = "sphereface cosface arcface curricularface magface adaface".split()

CASES = [
    Case("simclr", PROJECTOR),
    Case("simclr", {"enable_projector": False}),
    Case("lim", {**PROJECTOR, "loss": "bce"}),
    Case("lim", {**PROJECTOR, "loss": "nce"}),
    Case("lim", {**PROJECTOR, "loss": "mine"}),
    Case("cpc", {"nb_t_to_predict": 2, "aggregator_dim": 6}),
    Case("cpc", {"nb_t_to_predict": 3, "aggregator_type": "lstm", "bidirectional": True}),
    Case("moco", {**PROJECTOR, **QUEUE}),
    Case("moco", {"enable_projector": False, **QUEUE, "prevent_class_collisions": True}),
    Case("wmse", {**PROJECTOR, "projector_output_dim": 3, "whitening_size": 4}),
    Case("barlow_twins", PROJECTOR),
    Case("vicreg", PROJECTOR),
    Case("vibcreg", {**PROJECTOR, "projector_output_dim": 128}),
    Case("byol", {**PROJECTOR, "predictor_hidden_dim": 12}),
    Case("simsiam", {**PROJECTOR, "pred_hidden_dim": 6}),
    Case(
        "combiner",
        {
            **PROJECTOR,
            "Y_losses": [{"type": "infonce"}],
            "Z_losses": [{"type": "vicreg", "weight": 0.5}, {"type": "barlowtwins"}],
        },
    ),
    Case("simclr_margins", {**PROJECTOR, "loss": {"loss": "nt-xent"}}),
    *(Case("simclr_margins", {**PROJECTOR, "loss": {"loss": f"nt-xent-{m}"}}) for m in _MARGINS),
    Case("simclr_margins", {"loss": {"loss": "nt-xent-cosface", "margin_learnable": True}}),
    Case("moco_margins", {**PROJECTOR, **QUEUE, "loss": {"loss": "nt-xent"}}),
    *(
        Case("moco_margins", {**PROJECTOR, **QUEUE, "loss": {"loss": f"nt-xent-{m}"}})
        for m in _MARGINS
    ),
    Case("simclr_multiviews", {**PROJECTOR, "loss": {"loss": "nt-xent-cosface"}}),
    Case("deepcluster", {**PROJECTOR, "nb_prototypes": [3, 4, 5], "kmeans_nb_iters": 3}),
    Case("swav", {**PROJECTOR, **SWAV, "queue_size": 0}),
    Case("swav", {"enable_projector": False, **SWAV, "queue_size": 16}),
    Case("swav", {**PROJECTOR, **SWAV, "queue_size": 16}, "multicrop"),
    Case("dino", HEAD),
    Case("dino", {"enable_projector": False, "centering": False, "clip_grad": 0.0}),
    Case("supervised", {"nb_classes": 4}),
    Case("supervised", {"nb_classes": 4, "classifier": "linear"}),
    Case("supervised", {"nb_classes": 4, "freeze_encoder": True}),
]
# While a method is not there yet, its cases are not either.
CASES = [case for case in CASES if case.type in METHODS.names()]
