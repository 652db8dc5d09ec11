"""Fast ResNet-34: sizes, names and order of operations that published checkpoints rely on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError

BLOCKS, STRIDES = (3, 4, 6, 3), (1, 2, 2, 1)
MODES: list[dict[str, object]] = [{}, {"pooling_mode": "stats"}, {"pooling": False}]


def make_encoder(**fields: object) -> ResNet34:
    return ResNet34(ResNet34Config(type="resnet34", **fields))  # type: ignore[arg-type]


def small(**fields: object) -> ResNet34:
    """As little work as possible, with batch norms that are not the identity."""
    encoder = make_encoder(**{"base_dim": 8, "encoder_dim": 12, "mel_n_mels": 20} | fields)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
    return encoder


# ---------------------------------------------------------------------------- sizes and names


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 1_437_078),
        ({"pooling_mode": "stats"}, 2_010_262),
        ({"pooling_mode": "stats", "mel_n_mels": 80}, 2_665_622),
        ({"pooling": False}, 1_682_582),
        ({"base_dim": 8, "encoder_dim": 256}, 360_987),
        ({"enable_last_bn": True}, 1_437_078 + 2 * 512),
    ],
)
def test_parameter_counts_of_the_reference(fields, count):
    encoder = make_encoder(**fields)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("last_bn", [False, True])
@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (2, 12)),
        ({"pooling_mode": "stats"}, (2, 12)),
        ({"pooling_mode": "stats", "mel_n_mels": 21}, (2, 12)),  # not a multiple of 8
        ({"pooling": False}, (2, 12, 51)),
        ({"pooling_mode": None}, (2, 12, 51)),
    ],
)
def test_shapes_for_two_seconds(fields, shape, last_bn):
    assert small(**fields, enable_last_bn=last_bn)(torch.randn(2, 32000)).shape == shape


def test_pooling_false_is_pooling_mode_null():
    keys = small(pooling=False).state_dict().keys()
    assert keys == small(pooling_mode=None).state_dict().keys()


def _norm(name: str) -> set[str]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.{part}" for part in parts}


def _linear(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


def test_names_of_the_state_are_those_of_published_checkpoints():
    expected = {"conv.weight"} | _norm("bn") | _linear("fc") | _norm("last_bn")
    expected |= {"pooling.attention"} | _linear("pooling.sap_linear")
    expected |= {f"features_extractor.0.{x}" for x in ("spectrogram.window", "mel_scale.fb")}
    for stage, blocks in enumerate(BLOCKS, start=1):
        for i in range(blocks):
            block = f"block{stage}.{i}"
            expected |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
            expected |= _norm(f"{block}.bn1") | _norm(f"{block}.bn2")
            expected |= _linear(f"{block}.se.fc.0") | _linear(f"{block}.se.fc.2")
        if stage > 1:  # the first stage changes neither size nor channels
            expected |= {f"block{stage}.0.downsample.0.weight"}
            expected |= _norm(f"block{stage}.0.downsample.1")
    state = make_encoder(enable_last_bn=True).state_dict()
    assert state.keys() == expected
    shapes = {
        "features_extractor.0.spectrogram.window": (400,),
        "features_extractor.0.mel_scale.fb": (257, 40),
        "conv.weight": (16, 1, 7, 7),
        "block2.0.downsample.0.weight": (32, 16, 1, 1),
        "block4.2.conv1.weight": (128, 128, 3, 3),
        "block4.2.se.fc.0.weight": (16, 128),
        "pooling.attention": (128, 1),
        "pooling.sap_linear.weight": (128, 128),
        "fc.weight": (512, 128),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


# ---------------------------------------------------------------------------- operations


def oracle(s: dict[str, Tensor], x: Tensor, mode: str | None, train: bool) -> Tensor:
    """The network as a function of its state ``s`` and features x (B, M, F)."""

    def conv(name: str, x: Tensor, stride: int | tuple[int, int] = 1) -> Tensor:
        weight = s[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        mean = x.mean(axes) if train else s[f"{name}.running_mean"]
        var = x.var(axes, correction=0) if train else s[f"{name}.running_var"]
        gain = s[f"{name}.weight"] / (var + 1e-5).sqrt()
        return (x - mean.view(shape)) * gain.view(shape) + s[f"{name}.bias"].view(shape)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def relu(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def block(name: str, x: Tensor, stride: int) -> Tensor:
        out = norm(f"{name}.bn1", relu(conv(f"{name}.conv1", x, stride)))
        out = norm(f"{name}.bn2", conv(f"{name}.conv2", out))
        gate = relu(linear(f"{name}.se.fc.0", out.mean(dim=(2, 3))))
        out = out * linear(f"{name}.se.fc.2", gate).sigmoid()[:, :, None, None]
        if f"{name}.downsample.0.weight" in s:
            x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
        return relu(out + x)

    x = relu(norm("bn", conv("conv", x[:, None], (2, 1))))
    for stage, (blocks, stride) in enumerate(zip(BLOCKS, STRIDES, strict=True), start=1):
        for i in range(blocks):
            x = block(f"block{stage}.{i}", x, stride if i == 0 else 1)
    if mode == "sap":
        x = x.mean(dim=2).transpose(1, 2)  # (B, F, C)
        w = (linear("pooling.sap_linear", x).tanh() @ s["pooling.attention"]).softmax(dim=1)
        x = linear("fc", (x * w).sum(dim=1))
    else:
        x = x.reshape(len(x), -1, x.shape[-1])  # channel-major: (B, C·M, F)
        if mode == "stats":
            std = x.var(dim=2, correction=0).clamp(min=1e-5).sqrt()
            x = linear("fc", torch.cat((x.mean(dim=2), std), dim=1))
        else:
            x = linear("fc", x.transpose(1, 2)).transpose(1, 2)
    return norm("last_bn", x) if "last_bn.weight" in s else x


@pytest.mark.parametrize("last_bn", [False, True])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("mode", ["sap", "stats", None])
def test_operations_are_those_of_published_checkpoints(mode, train, last_bn):
    encoder = small(pooling_mode=mode, enable_last_bn=last_bn).double().train(train)
    wave = torch.randn(3, 4000, dtype=torch.float64)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    expected = oracle(state, encoder.features_extractor(wave), mode, train)
    assert expected.std() > 1e-2
    torch.testing.assert_close(encoder(wave), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields", MODES, ids=["sap", "stats", "sequence"])
def test_gradient_reaches_every_parameter(fields):
    encoder = make_encoder(**fields, enable_last_bn=True)
    (encoder(torch.randn(4, 8000)) * torch.randn(())).square().sum().backward()
    missing = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_rows_do_not_see_each_other_in_evaluation():
    encoder, wave = small().eval(), torch.randn(3, 8000)
    torch.testing.assert_close(encoder(wave)[1:2], encoder(wave[1:2]), rtol=1e-4, atol=1e-5)


def test_kaiming_initialisation_by_fan_out():
    encoder = make_encoder()
    for name in ("block4.0.conv1", "block4.2.conv2"):
        weight = encoder.get_parameter(f"{name}.weight")
        expected = (2 / (weight.shape[0] * 9)) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05)


# ---------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_dim": 4}, "base_dim: must be at least 8 .* got 4"),
        ({"mel_n_mels": 4}, "mel_n_mels: .* at least 8 bands, got 4"),
        ({"mel_n_mels": 128}, "mel_n_mels: 128 bands are too narrow for mel_n_fft 512, . of them"),
        ({"extract_mel_features": False}, "extract_mel_features: resnet34 needs the mel"),
        ({"encoder_dim": 0}, "encoder_dim: must be at least 1, got 0"),
        ({"mel_win_length": 600}, "mel_win_length: 600 is longer than mel_n_fft 512"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_encoder(**fields)
