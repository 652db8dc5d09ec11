"""SimpleAudioCNN: sizes, names, order of operations, a sequence for methods such as CPC."""

import pytest
import torch
import torch.nn.functional as F
from encoder_parts import (
    State,
    backward_of_all,
    batch_norm,
    norm_keys,
    randomise_norms,
    state_of,
    trainable,
    without_gradient,
)
from torch import Tensor

from sslsv.config import from_dict
from sslsv.encoders.simple_audio_cnn import SimpleAudioCNN, SimpleAudioCNNConfig
from sslsv.errors import ConfigError, DataError

LAYERS = [(10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1)]  # kernel, stride, padding


def make_encoder(**fields: object) -> SimpleAudioCNN:
    encoder = SimpleAudioCNN(SimpleAudioCNNConfig(type="simpleaudiocnn", **fields))  # type: ignore[arg-type]
    randomise_norms(encoder)
    return encoder


def test_parameter_count_of_the_reference():
    assert trainable(make_encoder()) == 5_253_120


@pytest.mark.parametrize("dim", [512, 12])
def test_shape_for_two_seconds(dim):
    assert make_encoder(encoder_dim=dim)(torch.randn(2, 32000)).shape == (2, dim, 200)


def test_names_and_shapes_of_the_state():
    state = make_encoder(encoder_dim=12).state_dict()
    names = [{f"blocks.{i}.conv.weight"} | norm_keys(f"blocks.{i}.bn") for i in range(5)]
    assert state.keys() == set().union(*names)
    shapes = [tuple(state[f"blocks.{i}.conv.weight"].shape) for i in range(5)]
    assert shapes == [(512, 1, 10), (512, 512, 8), (512, 512, 4), (512, 512, 4), (12, 512, 4)]


def oracle(s: State, wave: Tensor, train: bool) -> Tensor:
    x = wave[:, None]
    for i, (_, stride, padding) in enumerate(LAYERS):
        x = F.conv1d(x, s[f"blocks.{i}.conv.weight"], stride=stride, padding=padding)
        x = batch_norm(s, f"blocks.{i}.bn", x, train).clamp(min=0)
    return x


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_operations_in_their_order(train):
    encoder = make_encoder(encoder_dim=12).double().train(train)
    wave = torch.randn(2, 1500, dtype=torch.float64)
    expected = oracle(state_of(encoder), wave, train)
    assert expected.std() > 1e-2
    torch.testing.assert_close(encoder(wave), expected, rtol=1e-9, atol=1e-9)


def test_gradient_reaches_every_parameter():
    encoder = make_encoder()
    backward_of_all(encoder, torch.randn(2, 3200))
    assert without_gradient(encoder) == []


def test_shortest_waveform_gives_one_frame():
    encoder = make_encoder(encoder_dim=12).eval()
    shortest = encoder.config.min_samples
    assert encoder.embed(torch.randn(2, shortest)).shape == (2, 12, 1)
    with pytest.raises(DataError, match=f"shorter than the encoder can take \\({shortest}\\)"):
        encoder.embed(torch.randn(2, shortest - 1))
    with pytest.raises(RuntimeError):  # which that prevents
        encoder(torch.randn(2, shortest - 1))


def test_mel_features_are_refused():
    with pytest.raises(ConfigError, match="extract_mel_features: simpleaudiocnn sees the waveform"):
        make_encoder(extract_mel_features=True)


def test_configured_from_a_file():
    config = from_dict(
        {"encoder": {"type": "simpleaudiocnn"}, "method": {"type": "simclr"}}
    ).encoder
    assert config == SimpleAudioCNNConfig(type="simpleaudiocnn")
    assert config.gives_sequence
    assert not config.extract_mel_features
