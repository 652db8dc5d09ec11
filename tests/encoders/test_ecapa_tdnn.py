"""ECAPA-TDNN: sizes, names and order of operations that published checkpoints rely on."""

import pytest
import torch
from encoder_parts import (
    FRONTEND_KEYS,
    State,
    backward_of_all,
    batch_norm,
    linear_keys,
    mirrored_conv,
    norm_keys,
    randomise_norms,
    state_of,
    trainable,
    without_gradient,
)
from torch import Tensor

from sslsv.config import from_dict
from sslsv.encoders.ecapa_tdnn import ECAPATDNN, ECAPATDNNConfig
from sslsv.errors import ConfigError, DataError

SMALL = {
    "channels": [8, 8, 12, 12, 20],  # the second block changes the channels: it has a shortcut
    "kernel_sizes": [5, 3, 5, 3, 3],
    "dilations": [1, 2, 3, 4, 2],
    "groups": [2, 1, 4, 3, 4],
    "attention_channels": 6,
    "res2net_scale": 4,
    "se_channels": 5,
    "encoder_dim": 9,
    "mel_n_mels": 10,
}
MODES = [{}, {"global_context": False}, {"pooling": False}]
MODE_NAMES = ["context", "no-context", "sequence"]


def make_encoder(**fields: object) -> ECAPATDNN:
    return ECAPATDNN(ECAPATDNNConfig(type="ecapatdnn", **fields))  # type: ignore[arg-type]


def small(**fields: object) -> ECAPATDNN:
    encoder = make_encoder(**SMALL | fields)
    randomise_norms(encoder)
    return encoder


# ---------------------------------------------------------------------------- sizes and names


@pytest.mark.parametrize(
    ("width", "last", "mels", "count"),
    [
        (512, 1536, 40, 7_075_008),
        (1024, 3072, 40, 22_529_152),
        (1024, 3072, 80, 22_733_952),
        (1024, 1536, 80, 15_643_776),
    ],
)
def test_parameter_counts_of_the_reference(width, last, mels, count):
    encoder = make_encoder(channels=[width] * 4 + [last], mel_n_mels=mels)
    assert trainable(encoder) == count


def test_512_channels_are_the_default():
    assert trainable(make_encoder()) == 7_075_008


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (2, 9)),
        ({"encoder_dim": 30}, (2, 30)),
        ({"global_context": False}, (2, 9)),
        ({"channels": [4, 8, 12], "kernel_sizes": [1] * 3, "dilations": [1] * 3}, (2, 9)),
        ({"pooling": False}, (2, 9, 201)),
    ],
)
def test_shapes_for_two_seconds(fields, shape):
    layers = len(fields.get("channels", SMALL["channels"]))
    encoder = small(**{"groups": SMALL["groups"][:1] + [1] * (layers - 1)} | fields)
    assert encoder(torch.randn(2, 32000)).shape == shape
    assert encoder.config.gives_sequence == (len(shape) == 3)


def _unit(name: str) -> set[str]:
    return linear_keys(f"{name}.conv.conv") | norm_keys(f"{name}.norm")


def test_names_of_the_state_are_those_of_published_checkpoints():
    expected = FRONTEND_KEYS | _unit("blocks.0") | _unit("mfa")
    for block in ("blocks.1", "blocks.2", "blocks.3"):
        expected |= _unit(f"{block}.tdnn1") | _unit(f"{block}.tdnn2")
        expected |= linear_keys(f"{block}.se_block.conv1.conv")
        expected |= linear_keys(f"{block}.se_block.conv2.conv")
        for part in range(7):
            expected |= _unit(f"{block}.res2net_block.blocks.{part}")
    pooled = _unit("asp.tdnn") | linear_keys("asp.conv.conv") | norm_keys("asp_bn")
    expected |= linear_keys("fc.conv")

    state = make_encoder().state_dict()
    assert state.keys() == expected | pooled
    shapes = {
        "blocks.0.conv.conv.weight": (512, 40, 5),
        "blocks.1.tdnn1.conv.conv.weight": (512, 512, 1),
        "blocks.2.res2net_block.blocks.6.conv.conv.weight": (64, 64, 3),
        "blocks.3.se_block.conv1.conv.weight": (128, 512, 1),
        "mfa.conv.conv.weight": (1536, 1536, 1),
        "asp.tdnn.conv.conv.weight": (128, 3 * 1536, 1),
        "asp.conv.conv.weight": (1536, 128, 1),
        "asp_bn.weight": (3072,),
        "fc.conv.weight": (512, 3072, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes

    sequence = make_encoder(pooling=False).state_dict()
    assert sequence.keys() == expected  # nothing of a pooling that is not done
    assert tuple(sequence["fc.conv.weight"].shape) == (512, 1536, 1)
    no_context = make_encoder(global_context=False).state_dict()
    assert tuple(no_context["asp.tdnn.conv.conv.weight"].shape) == (128, 1536, 1)


def test_a_block_that_changes_the_channels_has_a_shortcut():
    state = small().state_dict()
    shortcuts = {name: tuple(x.shape) for name, x in state.items() if "shortcut" in name}
    assert shortcuts == {
        "blocks.2.shortcut.conv.weight": (12, 8, 1),
        "blocks.2.shortcut.conv.bias": (12,),
    }


# ---------------------------------------------------------------------------- operations


def oracle(s: State, x: Tensor, config: ECAPATDNNConfig, train: bool) -> Tensor:
    """The network as a function of its state ``s`` and features x (B, M, F)."""

    def conv(name: str, x: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
        return mirrored_conv(s, f"{name}.conv", x, dilation, groups)

    def unit(name: str, x: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
        out = conv(f"{name}.conv", x, dilation, groups).clamp(min=0)
        return batch_norm(s, f"{name}.norm", out, train)

    def block(name: str, x: Tensor, dilation: int, groups: int) -> Tensor:
        out = unit(f"{name}.tdnn1", x, groups=groups)
        size = out.shape[1] // config.res2net_scale
        y = [out[:, :size]]
        for i in range(1, config.res2net_scale):
            part = out[:, i * size : (i + 1) * size]
            if i > 1:
                part = part + y[-1]
            y.append(unit(f"{name}.res2net_block.blocks.{i - 1}", part, dilation))
        out = unit(f"{name}.tdnn2", torch.cat(y, dim=1), groups=groups)
        gate = conv(f"{name}.se_block.conv1", out.mean(dim=2, keepdim=True)).clamp(min=0)
        out = out / (1 + (-conv(f"{name}.se_block.conv2", gate)).exp())
        return out + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.conv.bias" in s else x)

    def deviation(x: Tensor, mean: Tensor, weights: Tensor | float) -> Tensor:
        return (weights * (x - mean) ** 2).sum(dim=2, keepdim=True).clamp(min=1e-12).sqrt()

    x = unit("blocks.0", x, config.dilations[0], config.groups[0])
    outputs = []
    for i in range(1, len(config.channels) - 1):
        x = block(f"blocks.{i}", x, config.dilations[i], config.groups[i])
        outputs.append(x)
    x = unit("mfa", torch.cat(outputs, dim=1), config.dilations[-1], config.groups[-1])
    if not config.pooling:
        return conv("fc", x)

    frames, seen = x.shape[2], x
    if config.global_context:
        mean = x.mean(dim=2, keepdim=True)
        std = deviation(x, mean, 1 / frames)
        seen = torch.cat((x, mean.repeat(1, 1, frames), std.repeat(1, 1, frames)), dim=1)
    scores = conv("asp.conv", unit("asp.tdnn", seen).tanh()).exp()
    weights = scores / scores.sum(dim=2, keepdim=True)
    mean = (weights * x).sum(dim=2, keepdim=True)
    pooled = torch.cat((mean, deviation(x, mean, weights)), dim=1)
    return conv("fc", batch_norm(s, "asp_bn", pooled, train))[:, :, 0]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("fields", MODES, ids=MODE_NAMES)
def test_operations_are_those_of_published_checkpoints(fields, train):
    encoder = small(**fields).double().train(train)
    wave = torch.randn(3, 4000, dtype=torch.float64)
    state = state_of(encoder)
    expected = oracle(state, encoder.features_extractor(wave), encoder.config, train)
    assert expected.std() > 1e-2
    torch.testing.assert_close(encoder(wave), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields", MODES, ids=MODE_NAMES)
def test_gradient_reaches_every_parameter(fields):
    encoder = small(**fields)
    backward_of_all(encoder, torch.randn(6, 8000))
    constant = {"asp.conv.conv.bias"}  # added to all frames before a softmax over them
    assert set(without_gradient(encoder)) - constant == set()
    assert all(p.grad is not None for p in encoder.parameters())


def test_shortest_waveform_is_what_mirroring_needs():
    encoder = small(dilations=[1, 2, 3, 8, 2]).eval()  # 8 frames to either side
    shortest = encoder.config.min_samples
    assert shortest == 8 * 160  # 9 frames
    assert encoder.embed(torch.randn(2, shortest)).isfinite().all()
    with pytest.raises(DataError, match=f"shorter than the encoder can take \\({shortest}\\)"):
        encoder.embed(torch.randn(2, shortest - 1))
    with pytest.raises(RuntimeError):  # which that prevents
        encoder(torch.randn(2, shortest - 1))
    assert make_encoder().config.min_samples == 640
    assert make_encoder(dilations=[1] * 5).config.min_samples == 512  # a Fourier window


# ---------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": [512] * 4}, "kernel_sizes: describes 5 layers but channels 4"),
        ({"groups": [1] * 4}, "groups: describes 4 layers but channels 5"),
        ({"kernel_sizes": [5, 3, 3, 3, 0]}, "kernel_sizes: needs numbers of at least 1"),
        ({"kernel_sizes": [5, 3, 4, 3, 1]}, "kernel_sizes: 4 with a dilation of 3 cannot be"),
        ({"channels": [512, 512, 500, 512, 1536]}, "channels: 500 .* multiple of res2net_scale 8"),
        ({"res2net_scale": 1}, "res2net_scale: must be at least 2, got 1"),
        ({"se_channels": 0}, "se_channels: must be at least 1, got 0"),
        ({"attention_channels": 0}, "attention_channels: must be at least 1, got 0"),
        ({"groups": [16, 1, 1, 1, 1]}, r"groups: 16 of layer 0 .* 40 channels \(mel_n_mels\)"),
        ({"groups": [1, 3, 1, 1, 1]}, r"groups: 3 of layer 1 .* 512 channels \(channels\)"),
        ({"groups": [1, 1, 1, 1, 5]}, r"groups: 5 of layer 4 .* 1536 channels \(channels\)"),
        ({"extract_mel_features": False}, "extract_mel_features: ecapatdnn needs the mel"),
        ({"encoder_dim": 0}, "encoder_dim: must be at least 1, got 0"),
        ({"mel_n_mels": 128}, "mel_n_mels: 128 bands are too narrow"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_encoder(**fields)


def test_fewer_than_three_layers_are_refused():
    lists = {name: SMALL[name][:2] for name in ("channels", "kernel_sizes", "dilations", "groups")}
    with pytest.raises(ConfigError, match="channels: needs at least 3 numbers"):
        make_encoder(**lists)


def test_configured_from_a_file():
    section = {"type": "ecapatdnn", **SMALL, "pooling": False}
    config = from_dict({"encoder": section, "method": {"type": "simclr"}}).encoder
    assert config == small(pooling=False).config
    assert config.gives_sequence
    with pytest.raises(ConfigError, match=r"encoder\.groups: 3 of layer 4"):
        from_dict({"encoder": section | {"groups": [1, 1, 1, 1, 3]}, "method": {"type": "simclr"}})
