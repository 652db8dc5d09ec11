"""DINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.methods.base import Metrics, Outputs
from sslsv.methods.heads import Prototypes, by_length
from sslsv.methods.momentum import Momentum, MomentumConfig
from sslsv.methods.siamese import unit_std
from sslsv.registry import register_method

_CENTER_MOMENTUM = 0.9
_DIAGNOSE_EVERY = 25  # steps


@dataclass(kw_only=True)
class DINOConfig(MomentumConfig):
    global_count: int = 2  # long views, the first ones; the teacher sees these
    local_count: int = 4  # short views
    start_tau: float = 0.996  # lambda of the paper
    enable_projector: bool = True  # false: the loss compares the embeddings' dimensions
    head_hidden_dim: int = 2048  # width of the head's first two layers
    head_bottleneck_dim: int = 256  # of the features before the last layer
    head_output_dim: int = 65536  # K
    freeze_last_layer: int = 1  # first epochs, in which the last layer stays as it is
    clip_grad: float = 3.0  # largest norm of the gradient of each tensor; 0: no limit
    student_temperature: float = 0.1  # tau_s
    teacher_temperature: float = 0.04  # tau_t; 1: no sharpening
    teacher_temperature_warmup: float = 0.04  # in the first epoch, from where it rises
    teacher_temperature_warmup_epochs: int = 10  # in which it rises evenly
    centering: bool = True  # false: the teacher's outputs are not centred

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive(
            *("head_hidden_dim", "head_bottleneck_dim", "head_output_dim"),
            *("student_temperature", "teacher_temperature", "teacher_temperature_warmup"),
        )
        if self.global_count < 2:
            raise ConfigError(f"global_count: must be at least 2, got {self.global_count}")
        least = ("local_count", "freeze_last_layer", "clip_grad")
        for name in (*least, "teacher_temperature_warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        for kind in ("global", "local"):
            own = getattr(self, f"{kind}_count")
            given = getattr(dataset, f"ssl_dino_{kind}_count")
            if own != given:
                raise ConfigError(
                    f"method.{kind}_count: {own} but dataset.ssl_dino_{kind}_count is {given}; "
                    "make them equal"
                )


class Head(nn.Module):
    """Three layers and prototypes: embeddings (…, D) -> bottleneck features of unit length ->
    scores with K prototypes (arXiv 2104.14294, appendix C)."""

    def __init__(self, config: DINOConfig, dim: int):
        super().__init__()
        hidden = config.head_hidden_dim
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, config.head_bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(config.head_bottleneck_dim, config.head_output_dim)

    def features(self, x: Tensor) -> Tensor:
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(self.features(x))


class NoHead(nn.Module):
    """The same for the embeddings themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.last_layer = nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Distillation(torch.autograd.Function):
    """See ``distillation``. Loss and gradient are made together, one view after the other: beside
    the gradient nothing is stored that has the size of the scores."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        n, v, g = *student.shape[:2], teacher.shape[1]
        weight = 1 / (n * g * (v - 1))  # of a row of a pair of views
        everyone = teacher.sum(dim=1)  # (N, K)
        loss, gradient = student.new_zeros(()), torch.empty_like(student)
        for view in range(v):
            own = view < g  # the teacher has seen this very view, which is no pair
            target = everyone - teacher[:, view] if own else everyone
            log_q = F.log_softmax(student[:, view] / temperature, dim=-1)
            loss -= weight * torch.linalg.vecdot(target, log_q).sum()
            part = torch.exp(log_q, out=gradient[:, view]).mul_(g - own)
            part.sub_(target).mul_(weight / temperature)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * upstream, None, None


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``-sum_k p_k log softmax(student / tau_s)_k``, mean over rows and over pairs of a teacher's
    view with another view of the student (arXiv 2104.14294, eq. 3).

    student: (N, V, K) scores; teacher: (N, G, K) probabilities p, of the first G views, which get
    no gradient. The cross entropy is linear in p, so the teachers of a view are added up first.
    """
    return _Distillation.apply(student, teacher, temperature)


@register_method("dino", DINOConfig)
class DINO(Momentum):
    """Self-distillation with no labels (arXiv 2104.14294): from any view the student is to give the
    distribution over prototypes that the teacher gives from a long one.

    What the teacher gives is centred and sharpened so that it does not collapse. It is kept as
    features, 256 numbers, and only the loss makes K scores of them.
    """

    views = "multicrop"
    positives = ("teacher",)
    embeds_with = "encoder_momentum"
    config: DINOConfig
    encoder_momentum: Encoder
    head_momentum: Any
    center: Tensor

    def __init__(self, config: DINOConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.head = Head(config, encoder.encoder_dim) if config.enable_projector else NoHead()
        self.add_teachers("encoder", "head")
        dim = config.head_output_dim if config.enable_projector else encoder.encoder_dim
        self.register_buffer("center", torch.zeros(1, dim))

    def forward(self, views: list[Tensor]) -> Outputs:
        y = torch.cat(by_length(self.encoder, views))
        student = self.head(y).unflatten(0, (len(views), -1))
        with torch.no_grad():
            seen = views[: self.config.global_count]
            y = torch.cat(by_length(self.encoder_momentum, seen))
            teacher = self.head_momentum.features(y).unflatten(0, (len(seen), -1))
        return {
            "student": student.transpose(0, 1),  # (N, V, K), scores
            "teacher": teacher.transpose(0, 1),  # (N, G, 256), features
        }

    @property
    def teacher_temperature(self) -> float:
        """Of the epoch at hand: rises evenly over the first epochs."""
        c, epoch = self.config, self.progress.epoch
        start, end = c.teacher_temperature_warmup, c.teacher_temperature
        last = c.teacher_temperature_warmup_epochs - 1
        return end if epoch >= last else start + (end - start) * epoch / last

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        student, temperature = outputs["student"], self.teacher_temperature
        with torch.no_grad():
            teacher = self.head_momentum.last_layer(outputs["teacher"])
            logits = (teacher - self.center) / temperature
            p = logits.softmax(dim=-1)
        loss = distillation(student, p, self.config.student_temperature)
        metrics: dict[str, Tensor | float] = {"train/loss": loss.detach(), "train/tau": self.tau}
        if self.progress.step % _DIAGNOSE_EVERY == 0:
            entropy = torch.special.entr(p).sum(dim=-1).mean()
            metrics["train/teacher_h"] = entropy
            metrics["train/kl_div"] = loss.detach() - entropy  # of the student from the teacher
            metrics["train/teacher_std"] = unit_std(teacher.flatten(0, 1))
        return loss, metrics

    def param_groups(self) -> list[dict[str, Any]]:
        """Biases and batch norm without weight decay."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1]},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def on_gradients(self) -> None:
        if self.config.clip_grad:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            norms = torch._foreach_norm(grads)
            shares = [(self.config.clip_grad / (norm + 1e-6)).clamp(max=1) for norm in norms]
            torch._foreach_mul_(grads, shares)
        if self.progress.epoch < self.config.freeze_last_layer:
            for p in self.head.last_layer.parameters():
                p.grad = None

    @torch.no_grad()
    def on_step_end(self, outputs: Outputs, batch: Batch, frozen: Tensor) -> None:
        """The centre follows the mean of the teacher's scores, and the teacher the student.

        The last layer is linear: the mean of scores is the score of the mean of features.
        """
        if self.config.centering:
            features = outputs["teacher"].flatten(0, 1).mean(dim=0, keepdim=True)
            scores = self.head_momentum.last_layer(distributed.reduce_mean(features))
            moved = self.center.lerp(scores.to(self.center), 1 - _CENTER_MOMENTUM)
            self.center.copy_(torch.where(frozen > 0, self.center, moved))
        super().on_step_end(outputs, batch, frozen)
