"""Supervised training: which of the known speakers it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.errors import ConfigError
from sslsv.methods.base import Method, MethodConfig, Metrics, Outputs
from sslsv.methods.margins import ArcFace, MarginConfig
from sslsv.registry import register_method


@dataclass(kw_only=True)
class SupervisedConfig(MethodConfig):
    nb_classes: int = 5994  # C, at least the number of labels in the training list
    classifier: Literal["speaker", "linear"] = "speaker"  # AAM-softmax, or plain softmax
    freeze_encoder: bool = False  # only the classifier is trained
    aam_scale: float = 30.0  # s
    aam_margin: float = 0.2  # m, radians
    aam_margin_scheduler: bool = False  # the margin grows over the first half of the training

    def __post_init__(self) -> None:
        if self.nb_classes < 2:
            raise ConfigError(f"nb_classes: must be at least 2, got {self.nb_classes}")
        self.require_positive("aam_scale")
        if not 0 <= self.aam_margin < math.pi:
            raise ConfigError(f"aam_margin: must be from 0 to pi, got {self.aam_margin}")
        if self.aam_margin_scheduler and self.classifier != "speaker":
            raise ConfigError(
                f"aam_margin_scheduler: classifier '{self.classifier}' has no margin; set it to "
                "false"
            )

    def check_labels(self, count: int) -> None:
        if count > self.nb_classes:
            raise ConfigError(
                f"method.nb_classes: {self.nb_classes} is less than the {count} labels of "
                f"dataset.label_key in dataset.train; set it to {count} or more"
            )


class SpeakerClassifier(nn.Module):
    """Cosines to a learnt vector for each class: (N, D) -> (N, C)."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classifier_weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_uniform_(self.classifier_weight)

    def forward(self, y: Tensor) -> Tensor:
        w = self.classifier_weight
        with torch.autocast(y.device.type, enabled=False):  # 8 bits are too few for a cosine
            return F.normalize(y.to(w.dtype), dim=-1) @ F.normalize(w, dim=-1).T


@register_method("supervised", SupervisedConfig)
class Supervised(Method):
    """Softmax over the speakers of the training list, or over any other label.

    ``speaker``: additive angular margin (AAM-softmax, ArcFace, arXiv 1801.07698, eq. 3).
    ``linear``: a linear layer and cross entropy. A frozen encoder stays in evaluation mode, so
    that neither its weights nor its batch norms change, and nothing is dropped out.
    """

    views = "single"
    config: SupervisedConfig

    def __init__(self, config: SupervisedConfig, encoder: Encoder):
        super().__init__(config, encoder)
        dim, classes = encoder.encoder_dim, config.nb_classes
        self.classifier: nn.Module
        if config.classifier == "speaker":
            self.classifier = SpeakerClassifier(dim, classes)
        else:
            self.classifier = nn.Linear(dim, classes)
        self.margin = ArcFace(
            MarginConfig(
                loss="nt-xent-arcface",
                scale=config.aam_scale,
                margin=config.aam_margin,
                margin_scheduler=config.aam_margin_scheduler,
            )
        )
        if config.freeze_encoder:
            self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Supervised:
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
        return self

    def forward(self, views: list[Tensor]) -> Outputs:
        y = self.encoder(views[0])  # (N, D)
        return {"logits": self.classifier(y), "norms": y.norm(dim=-1, keepdim=True)}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        logits, metrics = outputs["logits"], {}  # (N, C)
        accuracy = (logits.detach().argmax(dim=-1) == batch.labels).to(logits.dtype).mean()
        if self.config.classifier == "speaker":
            margin = self.margin.value(outputs, self.progress, outputs["norms"])
            logits = self.margin.logits(logits, batch.labels, margin, outputs["norms"])
            metrics["train/margin"] = margin
        loss = F.cross_entropy(logits, batch.labels)
        return loss, {"train/loss": loss.detach(), "train/accuracy": accuracy, **metrics}
