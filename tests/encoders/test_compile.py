"""``torch.compile`` takes every encoder in one graph, front-end included."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torchaudio

from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.ecapa_tdnn import ECAPATDNN, ECAPATDNNConfig
from sslsv.encoders.frontend import SpecAugmentConfig, log_mel
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.encoders.simple_audio_cnn import SimpleAudioCNN, SimpleAudioCNNConfig
from sslsv.encoders.tdnn import TDNN, TDNNConfig

DIM, MELS = 12, 20


def resnet34(**fields: object) -> ResNet34:
    sizes = {"type": "resnet34", "base_dim": 8, "encoder_dim": DIM, "mel_n_mels": MELS}
    return ResNet34(ResNet34Config(**sizes | fields))  # type: ignore[arg-type]


def ecapa(**fields: object) -> ECAPATDNN:
    sizes = {"type": "ecapatdnn", "encoder_dim": DIM, "mel_n_mels": MELS}
    sizes |= {"channels": [16, 16, 24, 48], "kernel_sizes": [5, 3, 3, 1], "res2net_scale": 4}
    sizes |= {"dilations": [1, 2, 3, 1], "groups": [1] * 4}
    return ECAPATDNN(ECAPATDNNConfig(**sizes | fields))  # type: ignore[arg-type]


def tdnn(**fields: object) -> TDNN:
    sizes = {"type": "tdnn", "encoder_dim": DIM, "mel_n_mels": MELS}
    return TDNN(TDNNConfig(**sizes | {"channels": [16] * 4 + [24]} | fields))  # type: ignore[arg-type]


def simple_audio_cnn() -> SimpleAudioCNN:
    return SimpleAudioCNN(SimpleAudioCNNConfig(type="simpleaudiocnn", encoder_dim=DIM))


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "resnet34": resnet34,
    "tdnn": tdnn,
    "ecapatdnn": ecapa,
    "simpleaudiocnn": simple_audio_cnn,
}
VARIANTS: dict[str, Callable[[], Encoder]] = {
    "resnet34-stats-bn": lambda: resnet34(pooling_mode="stats", enable_last_bn=True),
    "resnet34-sequence": lambda: resnet34(pooling=False),
    "tdnn-spec_augment": lambda: tdnn(spec_augment=SpecAugmentConfig()),
    "ecapatdnn-no-context": lambda: ecapa(global_context=False),
    "ecapatdnn-sequence": lambda: ecapa(pooling=False),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_one_graph(encoder: Encoder, amp: bool) -> None:
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")  # a graph break raises
    wave = torch.randn(2, 4000)
    outputs = []
    with torch.autocast("cpu", torch.bfloat16, amp):
        for forward in (encoder, compiled):
            torch.manual_seed(1)  # of the masks
            outputs.append(forward(wave))
    assert outputs[0].dtype == (torch.bfloat16 if amp else torch.float32)
    assert torch.equal(*outputs)
    outputs[1].float().square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ENCODERS)
def test_one_graph_with_the_same_output(name, train, amp):
    check_one_graph(ENCODERS[name]().train(train), amp)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_graph_for_every_variant(name):
    check_one_graph(VARIANTS[name]().train(), amp=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_and_lengths_may_change(name):
    encoder = ENCODERS[name]().eval()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for shape in [(2, 4000), (3, 5001)]:
        wave = torch.randn(shape)
        torch.testing.assert_close(compiled(wave), encoder(wave))


@pytest.mark.parametrize("make", [tdnn, ecapa])
def test_ragged_batches_go_on_beside_a_compiled_encoder(make):
    encoder, wave, lengths = make().eval(), torch.randn(2, 6000), [6000, 4001]
    alone = torch.cat([encoder(wave[i : i + 1, :n]) for i, n in enumerate(lengths)])
    encoder.compile(fullgraph=True, backend="eager")
    for _ in range(2):
        whole = encoder.embed(wave)
        torch.testing.assert_close(whole[:1], alone[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.embed(wave, lengths), alone, rtol=1e-4, atol=1e-5)


def test_the_spectrogram_is_still_that_of_torchaudio():
    ours = log_mel(EncoderConfig(type="any"))[0]
    theirs = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=400, hop_length=160, n_mels=40, window_fn=torch.hamming_window
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    wave = torch.randn(2, 8000)
    assert torch.equal(ours(wave), theirs(wave))
