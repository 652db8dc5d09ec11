"""Pretrained encoders, on tiny models that the tests write as transformers saves them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from encoder_parts import backward_of_all, state_of, without_gradient
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sslsv.config import from_dict, load_config, to_dict
from sslsv.encoders import huggingface
from sslsv.encoders.huggingface import HuggingFace, HuggingFaceConfig, S3PRLConfig
from sslsv.errors import CheckpointError, ConfigError, DataError
from sslsv.experiment import build_method

transformers = pytest.importorskip("transformers", reason="the extra 'foundation' is missing")

FAMILIES = {
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
}
LAYERS, CHANNELS, DIM = 3, 16, 6  # of hidden states, of one, of an embedding
SIZES: dict[str, Any] = {
    "hidden_size": CHANNELS,
    "num_hidden_layers": LAYERS - 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.9,
    "mask_time_prob": 0.5,
    "mask_feature_prob": 0.5,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0
)
KINDS = [(family, norm) for family in FAMILIES for norm in ("base", "large")]
ONE_LAYER = ["none", "stats", "tdnn", "resnet", "ecapa"]
POOLINGS = [*ONE_LAYER, "wap", "mhfa"]
COMBINATIONS = [(*kind, "mhfa") for kind in KINDS] + [("wavlm", "large", p) for p in POOLINGS[:-1]]
RECEPTIVE, HOP = 10 + (3 - 1) * 5 + (2 - 1) * 10, 20  # samples


def write(
    folder: Path,
    family: str = "wavlm",
    norm: str = "base",
    normalise: bool | None = None,
    **more: Any,
) -> nn.Module:
    """A model of random weights in ``folder``; returned in evaluation mode."""
    kind, model_class = FAMILIES[family]
    torch.manual_seed(1)
    model = model_class(kind(**SIZES | (LARGE if norm == "large" else {}) | more))
    for parameter in model.parameters():  # norms and biases that are not the identity
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    if normalise is not None:
        about = {"do_normalize": normalise, "sampling_rate": 16000}
        (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return model.eval()


def fields(folder: Path, pooling: str | None = "mhfa", **more: Any) -> dict[str, Any]:
    """``avg_layer_features`` where the pooling needs it, unless given."""
    average = pooling in ONE_LAYER and more.get("multilayer_features", True)
    known = {"type": "huggingface", "model": str(folder), "encoder_dim": DIM, "pooling": pooling}
    return known | {"avg_layer_features": average} | more


def build(folder: Path, pooling: str | None = "mhfa", **more: Any) -> HuggingFace:
    torch.manual_seed(2)
    return HuggingFace(HuggingFaceConfig(**fields(folder, pooling, **more)))


def waves(rows: int = 3, samples: int = 800, seed: int = 3) -> Tensor:
    """Of different levels, none around zero."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, samples, generator=generator)
    return noise * torch.logspace(-2, 0, rows)[:, None] + 0.1


# ---------------------------------------------------------------------------- what it gives


def hidden_states(model: nn.Module, wave: Tensor) -> list[Tensor]:
    """What enters the first layer, what each but the last gives, and the output: (B, F, C) each."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for layer in model.encoder.layers
    ]
    with torch.no_grad():
        seen.append(model(wave)[0])
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_features_are_the_inputs_of_all_layers_and_the_output(family, norm, frozen, tmp_path):
    model = write(tmp_path, family, norm, normalise=False)
    expected = hidden_states(model, waves())
    assert len(expected) == LAYERS
    encoder = build(tmp_path, frozen=frozen).eval()
    found = encoder.features(waves())
    assert found.shape == (3, LAYERS, CHANNELS, (800 - RECEPTIVE) // HOP + 1)
    for layer, x in enumerate(expected):
        torch.testing.assert_close(found[:, layer].transpose(1, 2), x, rtol=1e-5, atol=1e-6)
    differ = [(found[:, i] - found[:, i + 1]).abs().max().item() for i in range(LAYERS - 1)]
    assert min(differ) > 1e-2

    alone = build(tmp_path, frozen=frozen, multilayer_features=False).eval().features(waves())
    torch.testing.assert_close(alone, found[:, -1:])


@pytest.mark.parametrize("norm", ["base", "large"])
@pytest.mark.parametrize("normalise", [True, False, None])
def test_waveforms_are_normalised_where_the_model_wants_it(normalise, norm, tmp_path):
    model = write(tmp_path, "wav2vec2", norm, normalise)
    x = waves().double().numpy()
    if normalise or (normalise is None and norm == "large"):
        x = np.stack([(row - row.mean()) / np.sqrt(row.var() + 1e-7) for row in x])
    expected = hidden_states(model, torch.from_numpy(x).float())[-1]
    found = build(tmp_path).features(waves())[:, -1].transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_normalisation_shows(tmp_path):
    """Else the test above could not fail."""
    features = []
    for normalise in (True, False):
        write(tmp_path / str(normalise), "wav2vec2", "large", normalise)
        features.append(build(tmp_path / str(normalise)).features(waves()))
    assert (features[0] - features[1]).abs().max() > 1e-2


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def pooled(s: dict[str, np.ndarray], x: np.ndarray, pooling: str) -> np.ndarray:
    """One utterance's x (L, C, F) -> (D,), or (D, F) without pooling."""

    def linear(name: str, v: np.ndarray) -> np.ndarray:
        return s[f"{name}.weight"] @ v + s[f"{name}.bias"]

    def summed(weights: np.ndarray) -> np.ndarray:  # (C, F)
        return sum(w * layer for w, layer in zip(softmax(weights), x, strict=True))

    if pooling == "wap":
        return linear("pooling.fc", summed(s["pooling.weights"]).mean(axis=1))
    if pooling == "mhfa":
        keys, values = summed(s["pooling.weights_k"]), summed(s["pooling.weights_v"])
        keys = np.stack([linear("pooling.cmp_linear_k", k) for k in keys.T])
        values = np.stack([linear("pooling.cmp_linear_v", v) for v in values.T])  # (F, K)
        scores = np.stack([linear("pooling.att_head", k) for k in keys])  # (F, H)
        heads = [softmax(scores[:, h]) @ values for h in range(scores.shape[1])]
        return linear("pooling.pooling_fc", np.concatenate(heads))
    frames = summed(s["layer_weights"])
    if pooling == "stats":
        std = np.sqrt(np.maximum(frames.var(axis=1), 1e-5))
        return linear("pooling.1", np.concatenate((frames.mean(axis=1), std)))
    s["pooling.weight"] = s["pooling.weight"][:, :, 0]
    return np.stack([linear("pooling", frame) for frame in frames.T], axis=1)


@pytest.mark.parametrize("pooling", ["wap", "mhfa", "stats", "none"])
def test_poolings_equal_loops(pooling, tmp_path):
    write(tmp_path)
    encoder = build(tmp_path, pooling).double().eval()
    for name, parameter in encoder.named_parameters():
        if "weights" in name:  # of layers: not all the same
            nn.init.normal_(parameter)
    x = waves().double()
    s = {name: p.detach().numpy() for name, p in encoder.named_parameters()}
    features = encoder.features(x).numpy()
    expected = np.stack([pooled(dict(s), row, pooling) for row in features])
    found = encoder(x).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert found.shape == ((3, DIM, features.shape[-1]) if pooling == "none" else (3, DIM))
    assert encoder.config.gives_sequence == (pooling == "none")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_all_weight_on_one_layer(layer, pooling, tmp_path):
    """It then makes no difference what the others give."""
    write(tmp_path)
    encoder = build(tmp_path, pooling).eval()
    weights = [p for name, p in encoder.named_parameters() if "weights" in name]
    assert [w.shape for w in weights] == [(LAYERS,)] * (2 if pooling == "mhfa" else 1)
    for w in weights:
        w.data[layer] += 200
    features, wave = encoder.features(waves()), waves()
    expected = encoder(wave)
    for other in range(LAYERS):
        changed = features.clone()
        changed[:, other] += torch.randn_like(changed[:, other])
        encoder.features = lambda _, changed=changed: changed  # type: ignore[assignment,misc]
        assert torch.equal(encoder(wave), expected) == (other != layer)


@pytest.mark.parametrize(
    ("pooling", "name", "shape"),
    [
        ("tdnn", "blocks.0.conv.weight", (512, CHANNELS, 5)),
        ("resnet", "conv.weight", (16, 1, 7, 7)),
        ("ecapa", "blocks.0.conv.conv.weight", (512, CHANNELS, 5)),
    ],
)
def test_encoders_in_default_size_on_features(pooling, name, shape, tmp_path):
    write(tmp_path)
    encoder = build(tmp_path, pooling, multilayer_features=False).eval()
    state = encoder.state_dict()
    assert state[f"pooling.{name}"].shape == shape
    assert not [key for key in state if "features_extractor" in key]
    out = encoder(waves())
    assert out.shape == (3, DIM)
    assert torch.equal(out, encoder.pooling(encoder.features(waves())[:, 0]))
    default = HuggingFaceConfig(type="huggingface", pooling=pooling, multilayer_features=False)
    assert default.encoder_dim == 512


def test_null_is_no_pooling(tmp_path):
    write(tmp_path)
    config = build(tmp_path, None, multilayer_features=False).config
    assert config.pooling == "none"
    assert config.gives_sequence


# ---------------------------------------------------------------------------- frozen, or not


@pytest.mark.parametrize("pooling", ["mhfa", "ecapa"])
@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_frozen_is_bit_identical_after_training(family, norm, pooling, tmp_path):
    more = {"conv_pos_batch_norm": True} if family == "hubert" else {}
    write(tmp_path, family, norm, hidden_dropout=0.5, feat_proj_dropout=0.5, **more)
    method = build_method(
        from_dict(
            {"encoder": fields(tmp_path, pooling), "method": {"type": "simclr", "temperature": 0.1}}
        )
    )
    encoder = method.encoder
    assert isinstance(encoder, HuggingFace)
    before, features = state_of(encoder.upstream), encoder.features(waves())
    assert any("running_mean" in name for name in before) == bool(more)
    trained = state_of(encoder.pooling)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0.5)
    for seed in range(3):
        method.train()
        outputs = method([waves(4, seed=2 * seed), waves(4, seed=2 * seed + 1)])
        loss, _ = method.loss(outputs, SimpleNamespace())  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    after = encoder.upstream.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(x, encoder.pooling.state_dict()[n]) for n, x in trained.items())
    for mode in (True, False):
        method.train(mode)
        assert encoder.pooling.training == mode
        assert not any(module.training for module in encoder.upstream.modules())
        assert torch.equal(encoder.features(waves()), features)


def test_frozen_keeps_nothing_for_a_backward_pass(tmp_path):
    write(tmp_path)
    encoder = build(tmp_path).train()
    assert not any(p.requires_grad for p in encoder.upstream.parameters())
    kept: list[tuple[int, ...]] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    for part, expected in ((encoder.features, False), (encoder, True)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = part(waves())
        assert bool(kept) == expected
        assert out.requires_grad == expected
    encoder.upstream.requires_grad_(True)  # by somebody else
    assert not encoder.features(waves()).requires_grad


@pytest.mark.parametrize("pooling", ["mhfa", "stats"])
@pytest.mark.parametrize("factor", [0.125, 0.3, 8.0])
def test_gradient_into_the_model_is_scaled(factor, pooling, tmp_path):
    write(tmp_path, **NO_DROPOUT)
    gradients = []
    encoder = build(tmp_path, pooling, frozen=False).train()
    assert encoder.config.global_feature_grad_mult == 1.0
    for mult in (1.0, factor):
        encoder.config.global_feature_grad_mult = mult
        encoder.zero_grad()
        torch.manual_seed(4)
        backward_of_all(encoder, waves())
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, whole in gradients[0].items():
        scaled = gradients[1][name]
        if not name.startswith("upstream."):
            assert torch.equal(scaled, whole)  # what comes after learns as before
        elif factor == 0.3:
            torch.testing.assert_close(scaled, factor * whole, rtol=1e-4, atol=1e-6)
        else:  # a power of two: not a bit of rounding
            assert torch.equal(scaled, factor * whole)
    assert gradients[0]["upstream.feature_projection.projection.weight"].abs().max() > 1e-3


@pytest.mark.parametrize(("family", "norm", "pooling"), COMBINATIONS)
def test_every_parameter_is_used_in_every_step(family, norm, pooling, tmp_path):
    """Though config.json asks for dropped layers and masks."""
    write(tmp_path, family, norm)
    encoder = build(tmp_path, pooling, frozen=False).train()
    assert not [name for name, _ in encoder.named_parameters() if "masked_spec_embed" in name]
    assert all(p.requires_grad for p in encoder.parameters())
    drawn = np.random.get_state()[1].copy()  # noqa: NPY002  what transformers would draw from
    for _ in range(3):
        encoder.zero_grad()
        backward_of_all(encoder, waves(4, 1600))
        assert all(p.grad is not None for p in encoder.parameters())
        unused = without_gradient(encoder.upstream)  # of what follows, ReLUs may be dead
        # Added to all scores before a softmax.
        assert [name for name in unused if not name.endswith("k_proj.bias")] == []
    assert np.array_equal(drawn, np.random.get_state()[1])  # noqa: NPY002


def test_not_frozen_follows_the_mode(tmp_path):
    write(tmp_path, hidden_dropout=0.5)
    encoder = build(tmp_path, frozen=False)
    first, second = (encoder.train().features(waves()) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (encoder.eval().features(waves()) for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        assert not encoder.features(waves()).requires_grad


def test_layers_are_all_there_in_training(tmp_path):
    """With nothing else that is random, training gives what evaluation does."""
    write(tmp_path, **NO_DROPOUT)
    encoder = build(tmp_path, frozen=False)
    expected = encoder.eval().features(waves())
    for _ in range(5):
        torch.testing.assert_close(encoder.train().features(waves()), expected)


# ---------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_rows_of_different_lengths_are_embedded_as_if_alone(family, norm, tmp_path):
    write(tmp_path, family, norm)
    encoder = build(tmp_path).eval()
    assert not encoder.ragged
    lengths, wave = [800, 500, 700, 500], waves(4)
    with torch.no_grad():
        found = encoder.embed(wave, lengths)
        for i, n in enumerate(lengths):
            alone = encoder.embed(wave[i : i + 1, :n])[0]
            torch.testing.assert_close(found[i], alone, rtol=1e-4, atol=1e-6)
        wave[1, 500:] = 99.0
        assert torch.equal(encoder.embed(wave, lengths), found)
        padded = encoder(wave)  # which is what must not happen
    assert (padded[1] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("pooling", "frames"),
    [("none", 1), ("wap", 1), ("mhfa", 1), ("stats", 1), ("resnet", 2), ("tdnn", 16), ("ecapa", 5)],
)
def test_shortest_waveform(pooling, frames, tmp_path):
    write(tmp_path)
    encoder = build(tmp_path, pooling).eval()
    shortest = encoder.config.min_samples
    assert shortest == RECEPTIVE + (frames - 1) * HOP
    wave = waves(2, shortest)
    assert encoder.features(wave).shape[-1] == frames
    assert encoder.embed(wave).isfinite().all()
    with pytest.raises(DataError, match=f"{shortest - 1} samples is shorter .* take .{shortest}."):
        encoder.embed(wave[:, 1:])
    if pooling == "tdnn":  # there is no deviation of one frame
        with pytest.warns(UserWarning, match="degrees of freedom"):
            assert encoder(wave[:, 1:]).isnan().any()
    elif pooling != "resnet":
        with pytest.raises(RuntimeError):
            encoder(wave[:, 1:])


def test_shortest_waveform_of_published_models():
    config = HuggingFaceConfig(type="huggingface")
    assert config.min_samples == 400
    tdnn = HuggingFaceConfig(type="huggingface", pooling="tdnn", multilayer_features=False)
    assert tdnn.min_samples == 400 + 15 * 320


# ---------------------------------------------------------------------------- as a module


@pytest.mark.parametrize("pooling", POOLINGS)
def test_state_comes_back(pooling, tmp_path):
    write(tmp_path)
    encoder = build(tmp_path, pooling, frozen=False).eval()
    for parameter in encoder.parameters():  # little, or rounding is blown up
        parameter.data += 0.02 * torch.randn_like(parameter)
    torch.save(encoder.state_dict(), tmp_path / "state.pt")
    other = build(tmp_path, pooling, frozen=True).eval()
    expected = encoder(waves())
    scale = expected.abs().max()
    assert (other(waves()) - expected).abs().max() > 0.01 * scale
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(other(waves()) / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "norm"), KINDS)
def test_a_copy_is_independent(family, norm, tmp_path):
    """As a momentum method's teacher is."""
    write(tmp_path, family, norm)
    encoder = build(tmp_path, frozen=False).eval()
    expected = encoder(waves())  # before the copy: what a first forward installs is copied, too
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.data.mul_(-0.5)
    torch.testing.assert_close(teacher(waves()), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(waves()), expected, rtol=0.1)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("family", "norm", "pooling"), COMBINATIONS)
def test_a_step_does_not_wait_for_the_device(family, norm, pooling, frozen, tmp_path, monkeypatch):
    write(tmp_path, family, norm)
    encoder = build(tmp_path, pooling, frozen=frozen).train()
    # Older versions draw on the host which layers to drop, though it is none.
    monkeypatch.setattr("torch.rand", lambda *_: 1.0)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in encoder.modules():
            for name, p in list(module._parameters.items()):
                module._parameters[name] = p if p is None else fake.from_tensor(p)
            for name, b in list(module._buffers.items()):
                module._buffers[name] = b if b is None else fake.from_tensor(b)
        encoder(fake.from_tensor(waves(3, 1600))).sum().backward()


@pytest.mark.parametrize(("family", "norm", "pooling"), COMBINATIONS)
def test_mixed_precision(family, norm, pooling, tmp_path):
    write(tmp_path, family, norm)
    # torch 2.11 on two threads corrupts memory in the backward pass of a bfloat16 convolution from
    # 3072 to 6 channels (the last one of ECAPA with DIM); 16 are well.
    encoder = build(tmp_path, pooling, frozen=False, encoder_dim=16).eval()
    expected = encoder(waves(3, 1600))
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(waves(3, 1600))
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert (found.float() - expected).norm() < 0.1 * expected.norm()


# ---------------------------------------------------------------------------- files


def test_weights_of_another_form(tmp_path):
    """As older versions wrote them: pickled, other names for the weight norm; half precision."""
    expected = build_from(tmp_path / "new", lambda state: state)(waves())

    def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"parametrizations.weight.original0": "weight_g"}
        names |= {"parametrizations.weight.original1": "weight_v"}
        for new, old in names.items():
            state = {key.replace(new, old): x for key, x in state.items()}
        assert any(key.endswith("conv.weight_g") for key in state)
        return state | {"masked_spec_embed": torch.zeros(CHANNELS)}

    old = build_from(tmp_path / "old", older)(waves())
    torch.testing.assert_close(old, expected, rtol=1e-4, atol=1e-5)
    write(tmp_path / "half").half().save_pretrained(tmp_path / "half")
    half = build(tmp_path / "half").eval()
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half(waves()), expected, rtol=0.05, atol=0.05)


def build_from(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> HuggingFace:
    """An encoder whose weights are in ``pytorch_model.bin``, changed."""
    model = write(folder)
    (folder / "model.safetensors").unlink()
    torch.save(change(model.state_dict()), folder / "pytorch_model.bin")
    return build(folder).eval()


def test_the_body_of_a_model_with_a_head(tmp_path):
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(**SIZES, vocab_size=9)
    model = transformers.Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(tmp_path)
    expected = hidden_states(model.wav2vec2, waves())[-1]
    found = build(tmp_path).features(waves())[:, -1].transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Malice:
    """Unpickling it would create the file ``path``."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_code_in_weights_is_not_run(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"transformers cannot load the model \(Weights only load failed\)$"
    ):
        build_from(tmp_path / "m", lambda state: state | {"x": Malice(tmp_path / "harm")})
    assert not (tmp_path / "harm").exists()


def test_code_beside_weights_is_not_run(tmp_path):
    write(tmp_path)
    path = tmp_path / "config.json"
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    settings = json.loads(path.read_text())
    settings["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    path.write_text(json.dumps(settings))
    assert type(build(tmp_path).upstream) is transformers.WavLMModel
    assert not (tmp_path / "harm").exists()


def drop(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: x for key, x in state.items() if name not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("layers.1.attention.out_proj.bias"), "lack 1 tensors: encoder.layers.1.attention.o"),
        (drop(""), r"lack \d+ tensors: .* \(and \d+ more\)"),
        (
            lambda s: s | {"encoder.layer_norm.bias": torch.zeros(5)},
            r"1 of their tensors differ in shape: encoder.layer_norm.bias is \(5,\), not \(16,\)$",
        ),
        (lambda s: "text", "cannot load the model"),
    ],
)
def test_weights_that_do_not_fit(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        build_from(tmp_path, change)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.9])
def test_truncated_weights(kept, tmp_path):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="transformers cannot load the model"):
        build(tmp_path)


def test_loading_prints_nothing_and_leaves_the_log_as_it_was(tmp_path, capfd):
    write(tmp_path)
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    capfd.readouterr()
    build(tmp_path)
    assert "".join(capfd.readouterr()) == ""
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        build(tmp_path)
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


# ---------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extract_mel_features": True}, "extract_mel_features: huggingface sees the waveform"),
        ({"global_feature_grad_mult": 0.0}, "global_feature_grad_mult: must be positive, got 0.0"),
        ({"global_feature_grad_mult": float("nan")}, "global_feature_grad_mult: must be positive"),
        ({"pooling": "wap", "avg_layer_features": True}, "pooling: wap has layer weights of its"),
        ({"pooling": "ecapa"}, "pooling: ecapa is for one layer, but multilayer_features gives a"),
        ({"pooling": None}, "pooling: none is for one layer"),
        (
            {"avg_layer_features": True, "multilayer_features": False, "pooling": "stats"},
            "avg_layer_features: is for all layers, but multilayer_features is false",
        ),
        ({"spec_augment": huggingface.EncoderConfig}, "spec_augment: masks log-mel features"),
        ({"encoder_dim": 0}, "encoder_dim: must be at least 1, got 0"),
        ({"model": "/no/such/folder"}, "model: there is no folder /no/such/folder; it must hold c"),
        ({"model": "nothing"}, "model: there is no folder nothing"),
        ({"model": "../a/b"}, "model: there is no folder ../a/b"),
    ],
)
def test_fields_that_cannot_work_are_refused(change, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        HuggingFaceConfig(**{"type": "huggingface"} | change)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": None}, "has no config.json; it must hold config.json, preprocessor_conf"),
        ({"config.json": "{"}, "config.json is damaged"),
        ({"config.json": "[]"}, r"config.json is damaged \(expected an object\)"),
        ({"config.json": '{"model_type": "bert"}'}, "a model of type 'bert'; choose one of: wavlm"),
        ({"config.json": "{}"}, "holds a model of type 'None'"),
        ({"model.safetensors": None}, "has no weights; it must hold"),
        (
            {"preprocessor_config.json": '{"sampling_rate": 8000}'},
            "holds a model for audio at 8000 Hz, but it is read at 16000 Hz",
        ),
        ({"preprocessor_config.json": "?"}, "preprocessor_config.json is damaged"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_at_load(files, message, tmp_path):
    write(tmp_path)
    for name, content in files.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"^model: .*{message}"):
        HuggingFaceConfig(**fields(tmp_path))


def test_a_configuration_file_names_the_line(tmp_path):
    path = tmp_path / "config.yml"
    text = "encoder:\n  type: huggingface\n  model: {}\n  mel_sample_rate: 8000\n"
    text += "method:\n  type: simclr\ndataset:\n  ssl: true\n"
    path.write_text(text.format(tmp_path / "wavlm"))
    with pytest.raises(ConfigError, match=r"config.yml line 3: encoder.model: there is no folder"):
        load_config(path)
    write(tmp_path / "wavlm")
    config = load_config(path)
    assert from_dict(to_dict(config)) == config
    assert isinstance(config.encoder, HuggingFaceConfig)
    with pytest.raises(ConfigError, match=r"dataset\.frame_length: 29 samples are shorter than"):
        load_config(path, ["dataset.frame_length=29"])
    with pytest.raises(ConfigError, match=r"encoder\.type 'huggingface' gives a sequence"):
        load_config(path, ["encoder.pooling=null", "encoder.multilayer_features=false"])


@pytest.mark.parametrize("missing", ["transformers", "huggingface_hub"])
def test_without_the_package_only_building_is_refused(missing, tmp_path, monkeypatch):
    write(tmp_path)
    name = str(tmp_path) if missing == "transformers" else "microsoft/wavlm-base-plus"
    monkeypatch.setitem(sys.modules, missing, None)
    config = HuggingFaceConfig(**fields(tmp_path) | {"model": name})
    message = rf"^encoder.type: .* need {missing}: pip install sslsv\[foundation\]$"
    with pytest.raises(ConfigError, match=message):
        HuggingFace(config)


def test_the_package_is_not_imported_before():
    code = "import sslsv.encoders, sys; sslsv.encoders.HuggingFace; sslsv.encoders.S3PRLConfig()"
    code = code.replace("S3PRLConfig()", "S3PRLConfig(type='s3prl')")
    code += "; assert not {'transformers', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# ---------------------------------------------------------------------------- s3prl


def s3prl(tmp_path: Path, upstream: str = "wavlm_base_plus", **more: Any) -> S3PRLConfig:
    known = {"download_dir": tmp_path, "upstream": upstream, "encoder_dim": DIM}
    return S3PRLConfig(type="s3prl", **known | more)  # type: ignore[arg-type]


def test_s3prl_is_the_same_encoder(tmp_path):
    write(tmp_path / "wavlm_base_plus")
    config = from_dict(
        {
            "encoder": {"type": "s3prl", "download_dir": str(tmp_path), "encoder_dim": DIM},
            "method": {"type": "simclr", "enable_projector": False},
            "seed": 2,
        }
    )
    encoder = build_method(config).encoder
    assert type(encoder) is HuggingFace
    expected = build(tmp_path / "wavlm_base_plus")
    torch.testing.assert_close(encoder.eval()(waves()), expected.eval()(waves()))
    assert encoder.config.min_samples == RECEPTIVE


def test_defaults_of_s3prl():
    config = S3PRLConfig(type="s3prl")
    assert (config.upstream, config.download_dir) == ("wavlm_base_plus", Path("s3prl_hub"))
    assert (config.frozen, config.multilayer_features, config.avg_layer_features) == (
        True,
        True,
        False,
    )
    assert config.global_feature_grad_mult == 1.0
    assert not config.extract_mel_features


def test_s3prl_loads_without_its_folder_but_is_not_built(tmp_path):
    config = s3prl(tmp_path)
    assert config.min_samples == 400
    folder = tmp_path / "wavlm_base_plus"
    message = f"encoder.upstream: there is no folder {folder}; it must hold config.json, prepr"
    with pytest.raises(ConfigError, match=message):
        HuggingFace(config)
    write(folder)
    assert HuggingFace(config).config.min_samples == RECEPTIVE  # that of the model


@pytest.mark.parametrize(
    ("upstream", "family"),
    [
        ("wavlm_large", "wavlm"),
        ("hubert_large_ll60k", "hubert"),
        ("wav2vec2_base_960", "wav2vec2"),
        ("xlsr_53", "wav2vec2"),
        ("xls_r_300m", "wav2vec2"),
    ],
)
def test_families_of_s3prl(upstream, family, tmp_path):
    assert s3prl(tmp_path, upstream).family == family
    write(tmp_path / upstream, "hubert")
    if family == "hubert":
        assert type(HuggingFace(s3prl(tmp_path, upstream)).upstream) is transformers.HubertModel
        return
    message = f"^upstream: '{upstream}' is a {family} model, but .* holds one of type 'hubert'"
    with pytest.raises(ConfigError, match=message):
        s3prl(tmp_path, upstream)


@pytest.mark.parametrize("upstream", ["fbank", "", "vq_wav2vec"])
def test_unknown_upstream(upstream, tmp_path):
    with pytest.raises(ConfigError, match=f"^upstream: '{upstream}' is not known; .* wavlm"):
        s3prl(tmp_path, upstream)


def test_s3prl_has_no_keys_of_the_other_way(tmp_path):
    section = {"type": "s3prl", "model": "a/b"}
    with pytest.raises(ConfigError, match=r"encoder\.model: unknown key"):
        from_dict({"encoder": section, "method": {"type": "simclr"}})


# ---------------------------------------------------------------------------- the hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_cache(cache: Path, name: str) -> Path:
    """Where the cache has the files of a model."""
    root = cache / ("models--" + name.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return root / "snapshots" / ("0" * 40)


def test_a_name_is_looked_up_in_the_cache(cache):
    write(in_cache(cache, "some/tiny-hubert"), "hubert")
    config = HuggingFaceConfig(type="huggingface", model="some/tiny-hubert", encoder_dim=DIM)
    assert config.min_samples == 400  # not looked up yet
    encoder = HuggingFace(config)
    assert type(encoder.upstream) is transformers.HubertModel
    assert encoder.config.min_samples == RECEPTIVE


def test_a_name_that_is_not_in_the_cache(cache):
    config = HuggingFaceConfig(type="huggingface")
    message = "^encoder.model: 'microsoft/wavlm-base-plus' is neither a folder nor a name in the "
    with pytest.raises(ConfigError, match=message + "hub's cache; local_files_only: false downl"):
        HuggingFace(config)


def test_another_model_of_the_hub_is_refused(cache):
    folder = in_cache(cache, "some/bert")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"^encoder.model: .* a model of type 'bert'"):
        HuggingFace(HuggingFaceConfig(type="huggingface", model="some/bert"))


@pytest.mark.parametrize("safe", [True, False])
def test_the_network_is_used_where_it_is_asked_for(safe, tmp_path, monkeypatch):
    """And of the weights one form alone is downloaded, the safer one where there is one."""
    model = write(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    asked = []

    def download(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, allow_patterns[-1], local_files_only))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = HuggingFaceConfig(type="huggingface", model="a/b", local_files_only=False)
    assert asked == []
    HuggingFace(config)
    HuggingFace(config)  # they are known by now
    patterns = ["model*.safetensors*", "pytorch_model*.bin*"][: 1 if safe else 2]
    assert asked == [("a/b", pattern, False) for pattern in patterns]


def test_a_network_that_fails(monkeypatch):
    def download(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = HuggingFaceConfig(type="huggingface", model="a/b", local_files_only=False)
    with pytest.raises(ConfigError, match=r"'a/b' is neither .* a name in the hub \(no route\)$"):
        HuggingFace(config)
