"""CPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import distributed
from sslsv.datasets.views import Batch, DatasetConfig
from sslsv.encoders import masking
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError, DataError
from sslsv.methods.base import Method, MethodConfig, Metrics, Outputs
from sslsv.registry import register_method


@dataclass(kw_only=True)
class CPCConfig(MethodConfig):
    bidirectional: bool = False  # also predict the past, from audio that runs backwards
    nb_t_to_predict: int = 4  # K, frames of the encoder
    aggregator_type: Literal["gru", "lstm"] = "gru"  # g_ar
    aggregator_nb_layers: int = 1  # of the recurrent network
    aggregator_dim: int = 256  # size of the context c_t, which is the embedding
    target: Literal["same_view", "other_view"] = "other_view"  # whose last K frames are predicted

    needs_sequence: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.require_positive("nb_t_to_predict", "aggregator_nb_layers", "aggregator_dim")

    def check(self, batch_size: int, encoder: EncoderConfig, dataset: DatasetConfig) -> None:
        if batch_size < 2:
            raise ConfigError("trainer.batch_size: 1 leaves cpc no negatives; use 2 or more")
        frames, least = encoder.frames(dataset.frame_length), self.nb_t_to_predict + 1
        if frames is not None and frames < least:
            raise ConfigError(
                f"method.nb_t_to_predict: {self.nb_t_to_predict} needs at least {least} frames, "
                f"one for the context, but dataset.frame_length {dataset.frame_length} gives "
                f"{frames}; raise the latter or lower the former"
            )


def info_nce(predictions: Tensor, futures: Tensor) -> Tensor:
    """InfoNCE (arXiv 1807.03748, eq. 4) with ``f_k = exp(z_{t+k} . W_k c_t)``, a scalar.

    predictions, futures: (N, P, K, D), of N utterances P pairs of a context and K steps. Mean over
    all of them; negatives are the futures of the other utterances of all processes, of the same
    pair and step.
    """
    keys = distributed.gather(futures)  # (W·N, P, K, D)
    logits = torch.einsum("npkd,mpkd->pknm", predictions, keys)
    own = torch.arange(len(predictions), device=keys.device) + distributed.rank() * len(predictions)
    return F.cross_entropy(logits.flatten(0, 2), own.repeat(logits.shape[0] * logits.shape[1]))


class Aggregator(nn.Module):
    """The state of a recurrent network after the last frame: (B, D, F) -> (B, H)."""

    def __init__(self, config: CPCConfig, in_dim: int):
        super().__init__()
        kind = nn.GRU if config.aggregator_type == "gru" else nn.LSTM
        self.aggregator = kind(
            in_dim, config.aggregator_dim, config.aggregator_nb_layers, batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.aggregator(x.transpose(1, 2))  # (B, F, H)
        return masking.last(states.transpose(1, 2))


class Predictor(nn.Module):
    """A linear map W_k for each step: (B, H) -> (B, K, D)."""

    def __init__(self, config: CPCConfig, out_dim: int):
        super().__init__()
        self.predictors = nn.ModuleList(
            nn.Linear(config.aggregator_dim, out_dim) for _ in range(config.nb_t_to_predict)
        )

    def forward(self, context: Tensor) -> Tensor:
        return torch.stack([predict(context) for predict in self.predictors], dim=1)


@register_method("cpc", CPCConfig)
class CPC(Method):
    """Representation Learning with Contrastive Predictive Coding (arXiv 1807.03748).

    The context is that of all frames but the last K, once for each crop, instead of one for each
    frame. With ``target: other_view``, that of view 1 predicts the last frames of view 2, another
    part of the utterance under another noise. With ``same_view``, as in the paper, it predicts the
    K frames that follow, and each of the two views is a sample of its own; but frames of resnet34
    have seen the whole crop (instance norm, squeeze-and-excitation), so that this is solved without
    knowing the speaker.
    """

    views = "siamese"
    config: CPCConfig

    def __init__(self, config: CPCConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.aggregator = Aggregator(config, encoder.encoder_dim)
        self.predictor = Predictor(config, encoder.encoder_dim)
        if config.bidirectional:
            self.aggregator_r = Aggregator(config, encoder.encoder_dim)
            self.predictor_r = Predictor(config, encoder.encoder_dim)

    def forward(self, views: list[Tensor]) -> Outputs:
        waves, rows = torch.cat(views), len(views[0])
        if self.config.bidirectional:
            waves = torch.cat((waves, waves.flip(-1)))
        frames = self.encoder(waves).unflatten(0, (-1, rows)).transpose(0, 1)  # (N, 2 or 4, D, F)
        self._refuse_few(frames.shape[-1], waves.shape[-1])
        parts = [self._predict(frames[:, :2], self.aggregator, self.predictor)]
        if self.config.bidirectional:
            parts.append(self._predict(frames[:, 2:], self.aggregator_r, self.predictor_r))
        predictions, futures = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return {"predictions": predictions, "futures": futures}  # (N, pairs, K, D) each

    def _predict(
        self, frames: Tensor, aggregator: nn.Module, predictor: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Frames of two views (N, 2, D, F) -> predictions and what comes, (N, 1 or 2, K, D)."""
        steps = self.config.nb_t_to_predict
        past, futures = frames[..., :-steps], frames[..., -steps:].transpose(2, 3)
        if self.config.target == "other_view":
            past, futures = past[:, :1], futures[:, 1:]
        predictions = predictor(aggregator(past.flatten(0, 1)))
        return predictions.unflatten(0, futures.shape[:2]), futures

    def _refuse_few(self, frames: int, samples: int) -> None:
        steps = self.config.nb_t_to_predict
        if frames <= steps:
            raise DataError(
                f"the encoder makes {frames} frames of the {samples} samples of a view, but "
                f"method.nb_t_to_predict {steps} needs at least {steps + 1}, one for the context; "
                "raise dataset.frame_length or lower method.nb_t_to_predict"
            )

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = info_nce(outputs["predictions"], outputs["futures"])
        return loss, {"train/loss": loss.detach()}

    def embed(self, wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """The context of the whole waveform; that of the reversed one beside it if bidirectional:
        (B, T) -> (B, H) or (B, 2H)."""
        self.encoder.check_wave(wave, lengths)
        encode = self.encoder.forward if lengths else self.encoder  # see Encoder.embed

        def context(wave: Tensor) -> Tensor:
            state = self.aggregator(encode(wave))
            if not self.config.bidirectional:
                return state
            return torch.cat((state, self.aggregator_r(encode(_reversed(wave)))), dim=1)

        return masking.run(context, wave, lengths, self.encoder.ragged)


def _reversed(wave: Tensor) -> Tensor:
    """Each row (B, T) backwards, starting from its own end."""
    lengths = masking.filled(wave.shape[-1])
    if lengths is None:
        return wave.flip(-1)
    place = lengths[:, None] - 1 - torch.arange(wave.shape[-1], device=wave.device)
    return masking.zero_beyond(wave.gather(-1, place.clamp(min=0)))
