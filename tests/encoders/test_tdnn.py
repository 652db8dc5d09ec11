"""x-vector TDNN: sizes, names and order of operations that published checkpoints rely on."""

import pytest
import torch
import torch.nn.functional as F
from encoder_parts import (
    FRONTEND_KEYS,
    State,
    backward_of_all,
    batch_norm,
    linear,
    linear_keys,
    norm_keys,
    randomise_norms,
    state_of,
    trainable,
    without_gradient,
)
from torch import Tensor

from sslsv.config import from_dict
from sslsv.encoders.tdnn import TDNN, TDNNConfig
from sslsv.errors import ConfigError, DataError

SMALL = {"channels": [6, 7, 8], "kernel_sizes": [5, 3, 1], "dilations": [1, 3, 2]}
LOST = 4 + 6  # frames, by the convolutions of SMALL


def make_encoder(**fields: object) -> TDNN:
    return TDNN(TDNNConfig(type="tdnn", **fields))  # type: ignore[arg-type]


def small(**fields: object) -> TDNN:
    encoder = make_encoder(**SMALL | {"encoder_dim": 12, "mel_n_mels": 10} | fields)
    randomise_norms(encoder)
    return encoder


def test_parameter_count_of_the_reference():
    assert trainable(make_encoder()) == 4_516_244


@pytest.mark.parametrize("dim", [512, 192])
def test_shape_for_two_seconds(dim):
    assert make_encoder(encoder_dim=dim)(torch.randn(2, 32000)).shape == (2, dim)


def test_names_of_the_state_are_those_of_published_checkpoints():
    expected = FRONTEND_KEYS | linear_keys("linear1") | norm_keys("bn1") | linear_keys("linear2")
    for i in range(5):
        expected |= linear_keys(f"blocks.{i}.conv") | norm_keys(f"blocks.{i}.bn")
    state = make_encoder().state_dict()
    assert state.keys() == expected
    shapes = {
        "blocks.0.conv.weight": (512, 40, 5),
        "blocks.2.conv.weight": (512, 512, 3),
        "blocks.4.conv.weight": (1500, 512, 1),
        "blocks.4.bn.running_var": (1500,),
        "linear1.weight": (512, 3000),
        "linear2.weight": (512, 512),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def oracle(s: State, x: Tensor, dilations: list[int], train: bool) -> Tensor:
    """The network as a function of its state ``s`` and features x (B, M, F)."""
    for i, dilation in enumerate(dilations):
        x = F.conv1d(x, s[f"blocks.{i}.conv.weight"], s[f"blocks.{i}.conv.bias"], dilation=dilation)
        x = batch_norm(s, f"blocks.{i}.bn", torch.where(x > 0, x, 0.01 * x), train)
    frames = x.shape[2]
    mean = x.sum(dim=2) / frames
    std = ((x - mean[:, :, None]) ** 2).sum(dim=2).div(frames - 1).sqrt()
    x = linear(s, "linear1", torch.cat((mean, std), dim=1)).clamp(min=0)
    return linear(s, "linear2", batch_norm(s, "bn1", x, train))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_operations_are_those_of_published_checkpoints(train):
    encoder = small().double().train(train)
    wave = torch.randn(3, 5000, dtype=torch.float64)
    state = state_of(encoder)
    expected = oracle(state, encoder.features_extractor(wave), SMALL["dilations"], train)
    assert expected.std() > 1e-2
    torch.testing.assert_close(encoder(wave), expected, rtol=1e-9, atol=1e-9)


def test_gradient_reaches_every_parameter():
    encoder = make_encoder()
    backward_of_all(encoder, torch.randn(4, 8000))
    assert without_gradient(encoder) == []


def test_silence_has_an_embedding_and_a_gradient():
    """All frames are then equal, and the deviation of each channel is 0."""
    encoder = small()
    backward_of_all(encoder, torch.zeros(2, 8000))
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_shortest_waveform():
    encoder = small().eval()
    shortest = encoder.config.min_samples
    assert shortest == (LOST + 1) * 160  # LOST + 2 frames
    assert encoder.embed(torch.randn(2, shortest)).isfinite().all()
    with pytest.raises(DataError, match=f"of {shortest - 1} samples is shorter than .*{shortest}"):
        encoder.embed(torch.randn(2, shortest - 1))
    with pytest.warns(UserWarning, match="degrees of freedom"):  # which that prevents
        assert encoder(torch.randn(2, shortest - 1)).isnan().all()
    assert make_encoder(kernel_sizes=[1] * 5).config.min_samples == 512  # a Fourier window


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": [8] * 4}, "kernel_sizes: describes 5 layers but channels 4"),
        ({"dilations": [1] * 6}, "dilations: describes 6 layers but channels 5"),
        ({"dilations": [1, 2, 3, 0, 1]}, "dilations: needs numbers of at least 1, one a layer"),
        ({"channels": [], "kernel_sizes": [], "dilations": []}, "channels: needs numbers"),
        ({"extract_mel_features": False}, "extract_mel_features: tdnn needs the mel front-end"),
        ({"encoder_dim": 0}, "encoder_dim: must be at least 1, got 0"),
        ({"mel_n_mels": 128}, "mel_n_mels: 128 bands are too narrow"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_encoder(**fields)


def test_configured_from_a_file():
    section = {"type": "tdnn", **SMALL, "encoder_dim": 12, "mel_n_mels": 10}
    config = from_dict({"encoder": section, "method": {"type": "simclr"}}).encoder
    assert config == small().config
    assert not config.gives_sequence
    with pytest.raises(ConfigError, match=r"encoder\.channels: needs numbers of at least 1"):
        from_dict({"encoder": section | {"channels": [0, 1, 2]}, "method": {"type": "simclr"}})
