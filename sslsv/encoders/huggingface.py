"""Pretrained foundation models: WavLM, wav2vec 2.0 and HuBERT, by the package transformers."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv.audio import SAMPLE_RATE
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.ecapa_tdnn import ECAPATDNN, ECAPATDNNConfig
from sslsv.encoders.pooling import (
    MultiHeadFactorizedAttentivePooling,
    StatisticsPooling,
    WeightedAveragePooling,
)
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.encoders.tdnn import TDNN, TDNNConfig
from sslsv.errors import CheckpointError, ConfigError, listing
from sslsv.registry import register_encoder

_FAMILIES = ("wavlm", "wav2vec2", "hubert")
_WEIGHTS = [
    f"{name}{end}"
    for name in ("model.safetensors", "pytorch_model.bin")
    for end in ("", ".index.json")  # a list of the files over which a large model is spread
]
_WANTED = (
    "it must hold config.json, preprocessor_config.json and model.safetensors or "
    "pytorch_model.bin, as transformers saves a WavLM, wav2vec 2.0 or HuBERT model"
)
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Kernel sizes and strides of all published models, for one whose files are not at hand.
_CONVOLUTIONS = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]

# What would leave layers or parameters out of a step, which DistributedDataParallel does not allow,
# draw from numpy's generator, which no checkpoint holds, or change what a layer is.
_OFF = {
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "add_adapter": False,
    "gradient_checkpointing": False,
}

_LAYER_POOLINGS = {
    "wap": WeightedAveragePooling,
    "mhfa": MultiHeadFactorizedAttentivePooling,
}
_NETWORKS: dict[str, tuple[type[Encoder], type[EncoderConfig]]] = {
    "tdnn": (TDNN, TDNNConfig),
    "resnet": (ResNet34, ResNet34Config),
    "ecapa": (ECAPATDNN, ECAPATDNNConfig),
}


@dataclass(frozen=True)
class ModelFiles:
    """A folder with a pretrained model, and what the files beside its weights say."""

    folder: Path
    family: str
    convolutions: list[tuple[int, int]]  # kernel size and stride, in frames of what each sees
    normalise: bool  # the model wants waveforms of zero mean and unit variance

    @classmethod
    def read(cls, folder: Path, field: str) -> ModelFiles:
        """ConfigError, which names ``field``, where the folder cannot be used."""
        if not folder.is_dir():
            raise ConfigError(f"{field}: there is no folder {folder}; {_WANTED}")
        if not (folder / "config.json").exists():
            raise ConfigError(f"{field}: folder {folder} has no config.json; {_WANTED}")
        model = _read_json(folder / "config.json", field)
        family = model.get("model_type")
        if family not in _FAMILIES:
            raise ConfigError(
                f"{field}: folder {folder} holds a model of type '{family}'; choose one of: "
                f"{', '.join(_FAMILIES)}"
            )
        if not any((folder / name).exists() for name in _WEIGHTS):
            raise ConfigError(f"{field}: folder {folder} has no weights; {_WANTED}")
        convolutions = _CONVOLUTIONS
        if "conv_kernel" in model and "conv_stride" in model:
            convolutions = list(zip(model["conv_kernel"], model["conv_stride"], strict=False))

        # The file that transformers needs for this may be missing, since save_pretrained of a model
        # does not write it. Published models with layer norms in their convolutions were trained
        # on normalised waveforms; the others have a norm over time, which does it again.
        normalise = model.get("feat_extract_norm") == "layer"
        if (folder / "preprocessor_config.json").exists():
            extractor = _read_json(folder / "preprocessor_config.json", field)
            normalise = extractor.get("do_normalize", normalise)
            if (rate := extractor.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
                raise ConfigError(
                    f"{field}: folder {folder} holds a model for audio at {rate} Hz, but it is "
                    f"read at {SAMPLE_RATE} Hz; choose another model"
                )
        return cls(folder, family, convolutions, normalise)


def _read_json(path: Path, field: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{field}: {path} is damaged ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{field}: {path} is damaged (expected an object)")
    return content


@dataclass(kw_only=True)
class FoundationConfig(EncoderConfig):
    """Fields of both ways to say where a pretrained model is."""

    extract_mel_features: bool = False  # must be: the model sees the waveform
    frozen: bool = True  # the pretrained model stays as it is; what comes after it is trained
    multilayer_features: bool = True  # what all its layers give; false: the last one alone
    avg_layer_features: bool = False  # of all layers one weighted sum; the weights are trained
    global_feature_grad_mult: float = 1.0  # factor of the gradient that enters it if not frozen
    # Over time. none, the same as null: a sequence (B, D, F) for methods such as CPC.
    pooling: Literal["none", "wap", "mhfa", "stats", "tdnn", "resnet", "ecapa"] | None = "mhfa"

    source: ClassVar[str]  # the field that says where the files are

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extract_mel_features:
            raise ConfigError(f"extract_mel_features: {self.type} sees the waveform, set false")
        if not 0 < self.global_feature_grad_mult < math.inf:
            raise ConfigError(
                f"global_feature_grad_mult: must be positive, got {self.global_feature_grad_mult}; "
                "frozen: true lets no gradient through"
            )
        self.pooling = self.pooling or "none"
        self._check_layers()
        self._files = self.find_files(now=False)

    def _check_layers(self) -> None:
        """A pooling takes all layers, or one."""
        if self.avg_layer_features and not self.multilayer_features:
            raise ConfigError(
                "avg_layer_features: is for all layers, but multilayer_features is false; "
                "set both to true, or both to false"
            )
        if self.pooling in _LAYER_POOLINGS and self.avg_layer_features:
            raise ConfigError(
                f"pooling: {self.pooling} has layer weights of its own; set avg_layer_features: "
                "false"
            )
        one_layer = self.avg_layer_features or not self.multilayer_features
        if self.pooling not in _LAYER_POOLINGS and not one_layer:
            raise ConfigError(
                f"pooling: {self.pooling} is for one layer, but multilayer_features gives all; set "
                "avg_layer_features: true for a weighted sum of them or multilayer_features: false "
                "for the last one, or choose mhfa or wap"
            )

    def find_files(self, now: bool) -> ModelFiles | None:
        """The model's files; None where it is too early to ask for them (``now`` is false)."""
        raise NotImplementedError

    def model_files(self) -> ModelFiles:
        """The model's files, downloaded if need be."""
        self._files = self._files or self.find_files(now=True)
        assert self._files is not None
        return self._files

    @property
    def min_samples(self) -> int:
        """What the convolutions make of as many frames as the pooling needs."""
        length = 1
        if self.pooling in _NETWORKS:
            # From that many samples its own front-end, hop 1, would make 1 more frames.
            length += network_config(self.pooling, 1, self.encoder_dim).min_samples
        convolutions = self._files.convolutions if self._files else _CONVOLUTIONS
        for size, stride in reversed(convolutions):
            length = (length - 1) * stride + size
        return length

    @property
    def gives_sequence(self) -> bool:
        return self.pooling == "none"

    def frames(self, samples: int) -> int | None:
        for size, stride in self._files.convolutions if self._files else _CONVOLUTIONS:
            samples = (samples - size) // stride + 1
        return samples


@dataclass(kw_only=True)
class HuggingFaceConfig(FoundationConfig):
    model: str = "microsoft/wavlm-base-plus"  # a folder, or else a name on the Hugging Face hub
    local_files_only: bool = True  # a name must be in the hub's cache; false: it is downloaded

    source = "model"

    def find_files(self, now: bool) -> ModelFiles | None:
        folder = Path(self.model)
        if folder.is_dir() or not _HUB_NAME.fullmatch(self.model):
            return ModelFiles.read(folder, self.source)
        return ModelFiles.read(self._download(), self.source) if now else None

    def _download(self) -> Path:
        """The folder in the hub's cache."""
        hub = _package("huggingface_hub")
        for weights in ("model*.safetensors*", "pytorch_model*.bin*"):
            try:
                folder = hub.snapshot_download(
                    self.model,
                    allow_patterns=["config.json", "preprocessor_config.json", weights],
                    local_files_only=self.local_files_only,
                )
            except Exception as error:  # what a network raises has no common base
                where = "the hub's cache; local_files_only: false downloads it"
                raise ConfigError(
                    f"{self.source}: '{self.model}' is neither a folder nor a name in "
                    f"{where if self.local_files_only else 'the hub'} ({_brief(error)})"
                ) from None
            if list(Path(folder).glob(weights)):
                break
        return Path(folder)


@dataclass(kw_only=True)
class S3PRLConfig(FoundationConfig):
    """As the reference system has it, where the package s3prl loads the model."""

    upstream: str = "wavlm_base_plus"  # begins with wavlm, wav2vec2, xlsr, xls_r or hubert
    download_dir: Path = Path("s3prl_hub")  # the model is in its folder ``upstream``

    source = "upstream"

    @property
    def family(self) -> str:
        """Of which architecture ``upstream`` is."""
        name = re.sub(r"^xls_?r", "wav2vec2", self.upstream)
        return next((family for family in _FAMILIES if name.startswith(family)), "")

    def find_files(self, now: bool) -> ModelFiles | None:
        if not self.family:
            raise ConfigError(
                f"upstream: '{self.upstream}' is not known; it must begin with wavlm, wav2vec2, "
                "xlsr, xls_r or hubert"
            )
        folder = self.download_dir / self.upstream
        if not folder.is_dir() and not now:  # a configuration loads also where its model is not
            return None
        files = ModelFiles.read(folder, self.source)
        if files.family != self.family:
            raise ConfigError(
                f"upstream: '{self.upstream}' is a {self.family} model, but {folder} holds one of "
                f"type '{files.family}'"
            )
        return files


def network_config(name: str, channels: int, dim: int) -> Any:
    """Of a whole encoder that sees features, ``channels`` of them, in place of mel bands."""
    config = _NETWORKS[name][1](type=name, encoder_dim=dim)
    # Changed afterwards, since the encoders themselves are for mel bands and accept nothing else.
    config.extract_mel_features, config.mel_n_mels, config.mel_hop_length = False, channels, 1
    return config


@register_encoder("s3prl", S3PRLConfig)
@register_encoder("huggingface", HuggingFaceConfig)
class HuggingFace(Encoder):
    """WavLM (arXiv 2110.13900), wav2vec 2.0 (arXiv 2006.11477) or HuBERT (arXiv 2106.07447), and
    on top of its layers a pooling: (B, T) -> (B, D); without one (B, D, F), a frame for every 320
    samples.

    ``pooling``: ``mhfa`` and ``wap`` weigh layers themselves; ``stats`` is mean and standard
    deviation, then a linear layer; ``tdnn``, ``resnet`` and ``ecapa`` are those encoders in their
    default sizes on what one layer gives.

    A frozen model is always in evaluation mode: neither its weights nor what it gives change. One
    that is not frozen has its dropout in training, but no layer is dropped and nothing is masked.
    Its convolutions see beyond the end of a row, so rows of different lengths do not share a batch.
    """

    config: FoundationConfig

    def __init__(self, config: FoundationConfig):
        super().__init__(config)
        try:
            files = config.model_files()
            self.upstream = load_model(files.folder)
        except ConfigError as error:
            raise ConfigError(f"encoder.{error}") from None
        self.normalise = files.normalise
        if config.frozen:
            self.upstream.requires_grad_(False).eval()
        layers = self.upstream.config.num_hidden_layers + 1 if config.multilayer_features else 1
        channels, dim = self.upstream.config.hidden_size, config.encoder_dim
        self.layer_weights = None
        if config.avg_layer_features:
            self.layer_weights = nn.Parameter(torch.ones(layers))

        self.pooling: nn.Module
        if config.pooling in _LAYER_POOLINGS:
            self.pooling = _LAYER_POOLINGS[config.pooling](layers, channels, dim)
        elif config.pooling in _NETWORKS:
            network = _NETWORKS[config.pooling][0]
            self.pooling = network(network_config(config.pooling, channels, dim))
        elif config.pooling == "stats":
            self.pooling = nn.Sequential(StatisticsPooling(), nn.Linear(2 * channels, dim))
        else:
            self.pooling = nn.Conv1d(channels, dim, 1)

    def train(self, mode: bool = True) -> HuggingFace:
        super().train(mode)
        if self.config.frozen:
            self.upstream.eval()
        return self

    def forward(self, wave: Tensor) -> Tensor:
        x = self.features(wave)  # (B, L, C, F)
        if self.layer_weights is not None:
            share = self.layer_weights.softmax(dim=0)
            x = (share @ x.flatten(2)).unflatten(1, x.shape[2:])  # (B, C, F)
        elif self.config.pooling not in _LAYER_POOLINGS:
            x = x.squeeze(1)
        return self.pooling(x)

    def features(self, wave: Tensor) -> Tensor:
        """What enters the first layer and what each one gives, or the last alone: (B, L, C, F)."""
        config = self.config
        if self.normalise:
            wave = F.layer_norm(wave, wave.shape[1:], eps=1e-7)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.frozen):
            found = self.upstream(wave, output_hidden_states=config.multilayer_features)
        layers = [found.last_hidden_state]
        if config.multilayer_features:
            # Where the model ends with a norm, versions of transformers have it in the last of
            # these or not.
            layers = [*found.hidden_states[:-1], *layers]
        x = torch.stack(layers, dim=1).transpose(2, 3)
        if x.requires_grad and config.global_feature_grad_mult != 1:
            x.register_hook(lambda gradient: config.global_feature_grad_mult * gradient)
        return x


def load_model(folder: Path) -> Any:
    """The model in ``folder``, with float32 weights, read without running code.

    CheckpointError where the weights are damaged or do not fit config.json.
    """
    transformers = _package("transformers")
    try:
        with _silenced(transformers.utils.logging):
            settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            for name, value in _OFF.items():
                setattr(settings, name, value)
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                config=settings,
                dtype=torch.float32,
                local_files_only=True,
                weights_only=True,
                ignore_mismatched_sizes=True,  # they are refused below
                output_loading_info=True,
            )
    except Exception as error:  # damaged files raise anything
        raise CheckpointError(
            f"{folder}: transformers cannot load the model ({_brief(error)})"
        ) from error
    problems = []
    if missing := sorted(report["missing_keys"]):
        problems.append(f"they lack {len(missing)} tensors: {listing(missing, 3)}")
    if other := sorted(
        f"{name} is {tuple(there)}, not {tuple(wanted)}"
        for name, there, wanted in report["mismatched_keys"]
    ):
        problems.append(f"{len(other)} of their tensors differ in shape: {listing(other, 3)}")
    if problems:
        raise CheckpointError(
            f"{folder}: the weights are not of the model in config.json; {'; '.join(problems)}"
        )
    return model


@contextmanager
def _silenced(log: Any) -> Iterator[None]:
    """No progress bars, and no warnings about weights: what matters of them is an error here."""
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _package(name: str) -> Any:
    """An optional package, imported when such an encoder is built."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"type: pretrained models need {name}: pip install sslsv[foundation]"
        ) from None


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
