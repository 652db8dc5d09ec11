"""Rows of different lengths in one batch against each row alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoder_parts import randomise_norms
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv.encoders import masking
from sslsv.encoders.base import Encoder
from sslsv.encoders.ecapa_tdnn import ECAPATDNN, ECAPATDNNConfig
from sslsv.encoders.pooling import (
    AttentiveStatisticsPooling,
    MeanPooling,
    MultiHeadFactorizedAttentivePooling,
    SelfAttentivePooling,
    StatisticsPooling,
    WeightedAveragePooling,
)
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.encoders.simple_audio_cnn import SimpleAudioCNN, SimpleAudioCNNConfig
from sslsv.encoders.tdnn import TDNN, TDNNConfig
from sslsv.errors import DataError
from sslsv.registry import ENCODERS

RATE = 16000
LONGEST = 23  # frames
LENGTHS = st.lists(st.integers(4, LONGEST), min_size=1, max_size=5)  # 4: what REACH needs
REACH = 3
SEEDS = st.integers(0, 1000)


def rows(lengths: list[int], seed: int, *shape: int) -> tuple[Tensor, list[np.ndarray]]:
    """(B, *shape, F) in float64 with rubbish beyond the end of each row, and the rows alone."""
    rng = np.random.default_rng(seed)
    alone = [rng.standard_normal((*shape, n)) for n in lengths]
    batch = np.full((len(lengths), *shape, max(lengths)), 1e200)
    for i, row in enumerate(alone):
        batch[i, ..., : lengths[i]] = row
    return torch.from_numpy(batch), alone


def ragged(function: Callable[[Tensor], Tensor], x: Tensor, lengths: list[int]) -> Tensor:
    """``function(x)`` while rows fill ``lengths`` of the last axis of ``x``, its rubbish kept."""
    wave = torch.zeros(len(x), x.shape[-1])
    return masking.run(lambda _: function(x), wave, lengths)


def compare(found: Tensor, expected: list[np.ndarray]) -> None:
    """Each row up to the size of what is expected of it."""
    assert len(found) == len(expected)
    for row, true in zip(found.detach().numpy(), expected, strict=True):
        part = row[tuple(slice(n) for n in true.shape)]
        np.testing.assert_allclose(part, true, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------- functions


@given(lengths=LENGTHS, seed=SEEDS)
def test_sums_over_time(lengths, seed):
    x, alone = rows(lengths, seed, 3)
    compare(ragged(masking.mean, x, lengths), [row.mean(axis=1) for row in alone])
    compare(ragged(masking.softmax, x, lengths), [_softmax(row) for row in alone])
    compare(ragged(masking.last, x, lengths), [row[:, -1] for row in alone])
    for correction in (0, 1):
        found = ragged(lambda x, c=correction: masking.var(x, c), x, lengths)
        compare(found, [row.var(axis=1, ddof=correction) for row in alone])


def _softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row)
    return powers / powers.sum(axis=-1, keepdims=True)


@given(lengths=LENGTHS, seed=SEEDS)
def test_mean_over_several_axes(lengths, seed):
    x, alone = rows(lengths, seed, 3, 2)
    found = ragged(lambda x: masking.mean(x, dim=(2, 3), keepdim=True), x, lengths)
    compare(found, [row.mean(axis=(1, 2), keepdims=True) for row in alone])


@given(lengths=LENGTHS, seed=SEEDS)
def test_what_lies_beyond_becomes_zero(lengths, seed):
    x, alone = rows(lengths, seed, 2)
    expected = [np.pad(row, ((0, 0), (0, max(lengths) - row.shape[1]))) for row in alone]
    compare(ragged(masking.zero_beyond, x, lengths), expected)


@given(lengths=LENGTHS, seed=SEEDS, before=st.integers(0, 3), after=st.integers(0, 3))
def test_reflection_at_the_end_of_each_row(lengths, seed, before, after):
    x, alone = rows(lengths, seed, 2)
    found = ragged(lambda x: masking.reflect(x, before, after), x, lengths)
    compare(found, [np.pad(row, ((0, 0), (before, after)), mode="reflect") for row in alone])
    assert found.shape[-1] == max(lengths) + before + after


def test_ordinary_batches_get_the_ordinary_functions():
    x = torch.randn(2, 3, 9)
    assert masking.filled(9) is None
    assert masking.zero_beyond(x) is x
    assert torch.equal(masking.mean(x), x.mean(dim=-1))
    assert torch.equal(masking.var(x, 1), x.var(dim=-1))
    assert torch.equal(masking.softmax(x), x.softmax(dim=-1))
    assert torch.equal(masking.last(x), x[..., -1])
    assert torch.equal(masking.reflect(x, 2, 1), F.pad(x, (2, 1), mode="reflect"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_type_of_the_input(dtype):
    x = torch.randn(2, 3, 300).to(dtype)
    for function in (masking.mean, masking.var, masking.softmax, masking.last):
        found = ragged(function, x, [300, 257])
        assert found.dtype == dtype
        alone = function(x[1:, :, :257])
        part = found[1:, :, :257] if found.ndim == 3 else found[1:]
        torch.testing.assert_close(part, alone)


# ---------------------------------------------------------------------------- layers


CONVOLUTIONS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))


@given(lengths=LENGTHS, seed=SEEDS, sizes=st.lists(CONVOLUTIONS, min_size=1, max_size=3))
@example(lengths=[5, 3], seed=0, sizes=[(1, 2, 2, 1)])  # 5 frames stay 5, but 3 become 4
def test_stacked_convolutions(lengths, seed, sizes):
    """Zero padding, strides and dilations, on a row that is long enough for all of them."""
    ours, theirs = [], []
    for kernel, stride, padding, dilation in sizes:
        layer = masking.Conv1d(2, 2, kernel, stride, padding, dilation).double()
        ours.append(layer)
        theirs.append((layer, stride, padding, dilation))

    def alone(row: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(row)[None]
        for layer, stride, padding, dilation in theirs:
            x = F.conv1d(x, layer.weight, layer.bias, stride, padding, dilation)
        return x[0].detach().numpy()

    x, each = rows(lengths, seed, 2)
    try:
        expected = [alone(row) for row in each]
    except RuntimeError:  # shorter than a kernel
        reject()
    compare(ragged(nn.Sequential(*ours), x, lengths), expected)


@given(lengths=LENGTHS, seed=SEEDS, stride=st.integers(1, 2), size=st.sampled_from([1, 3]))
def test_convolutions_over_two_axes(lengths, seed, stride, size):
    layer = masking.Conv2d(2, 3, size, (1, stride), size // 2).double()
    x, alone = rows(lengths, seed, 2, 5)
    expected = [
        F.conv2d(torch.from_numpy(row)[None], layer.weight, layer.bias, (1, stride), size // 2)[0]
        for row in alone
    ]
    compare(ragged(layer, x, lengths), [row.detach().numpy() for row in expected])


@given(
    lengths=LENGTHS,
    seed=SEEDS,
    shape=st.sampled_from([(1, 1, 1), (1, 4, 2), (3, 1, 1), (5, 1, 2), (3, 3, 1)]),
)
def test_convolutions_with_mirrored_ends(lengths, seed, shape):
    kernel, dilation, groups = shape
    layer = masking.ReflectConv1d(4, 6, kernel, dilation, groups).double()
    reach = dilation * (kernel - 1) // 2
    assert reach <= REACH
    weight, bias = layer.conv.weight.detach().numpy(), layer.conv.bias.detach().numpy()
    x, alone = rows(lengths, seed, 4)
    expected = []
    for row in alone:
        padded = np.pad(row, ((0, 0), (reach, reach)), mode="reflect")
        out = np.zeros((6, row.shape[1]))
        for o in range(6):
            first = o // (6 // groups) * (4 // groups)  # channels that this output sees
            for t in range(row.shape[1]):
                seen = padded[first : first + 4 // groups, t : t + 2 * reach + 1 : dilation]
                out[o, t] = bias[o] + (weight[o] * seen).sum()
        expected.append(out)
    compare(ragged(layer, x, lengths), expected)
    compare(layer(torch.from_numpy(alone[0])[None]), expected[:1])


@pytest.mark.parametrize(
    "pooling",
    [
        MeanPooling(),
        StatisticsPooling(),
        StatisticsPooling(correction=1, floor=1e-12),
        SelfAttentivePooling(3),
        AttentiveStatisticsPooling(3, 4),
        AttentiveStatisticsPooling(3, 4, global_context=False),
    ],
    ids=lambda pooling: type(pooling).__name__,
)
@given(lengths=LENGTHS, seed=SEEDS)
@settings(max_examples=20)
def test_pooling(pooling, lengths, seed):
    pooling = pooling.double().eval()
    x, alone = rows(lengths, seed, 3)
    x[x == 1e200] = 5.0  # as large as what layers make of silence
    expected = [pooling(torch.from_numpy(row)[None])[0].detach().numpy() for row in alone]
    compare(ragged(pooling, x, lengths), expected)


@pytest.mark.parametrize(
    "pooling",
    [WeightedAveragePooling(2, 3, 4), MultiHeadFactorizedAttentivePooling(2, 3, 4, 2, 3)],
    ids=lambda pooling: type(pooling).__name__,
)
@given(lengths=LENGTHS, seed=SEEDS)
@settings(max_examples=20)
def test_pooling_over_layers(pooling, lengths, seed):
    pooling = pooling.double()
    x, alone = rows(lengths, seed, 2, 3)
    x[x == 1e200] = 5.0
    expected = [pooling(torch.from_numpy(row)[None])[0].detach().numpy() for row in alone]
    compare(ragged(pooling, x, lengths), expected)


# ---------------------------------------------------------------------------- run


@pytest.mark.parametrize("lengths", [[4], [4, 5, 6], [0, 5], [5, 10]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(DataError, match=r"do not fit waveforms of shape \(2, 9\)"):
        masking.run(masking.mean, torch.zeros(2, 9), lengths)


def test_rows_that_fill_the_batch_are_an_ordinary_batch():
    for lengths in (None, [9, 9]):
        assert masking.run(
            lambda x: torch.tensor(masking.filled(9) is None), torch.ones(2, 9), lengths
        )


def test_an_error_leaves_ordinary_batches_behind():
    def fail(wave: Tensor) -> Tensor:
        assert masking.filled(9) is not None
        raise ValueError("of the encoder")

    with pytest.raises(ValueError, match="of the encoder"):
        masking.run(fail, torch.zeros(2, 9), [9, 4])
    assert masking.filled(9) is None


def test_what_lies_beyond_the_waveforms_is_not_seen_even_if_it_is_infinite():
    x, alone = rows([9, 5], 0)
    x[1, 5:] = torch.inf
    compare(
        masking.run(lambda wave: (wave * wave).sum(dim=1), x, [9, 5]),
        [(a * a).sum() for a in alone],
    )


@given(lengths=LENGTHS, seed=SEEDS)
def test_rows_of_one_length_run_by_themselves_if_not_together(lengths, seed):
    """What knows nothing of masking; it sees each length once, and no padding."""
    x, alone = rows(lengths, seed)
    seen: list[tuple[int, ...]] = []

    def embed(wave: Tensor) -> Tensor:
        seen.append(tuple(wave.shape))
        return torch.stack((wave.mean(dim=1), wave[:, -1]), dim=1)

    found = masking.run(embed, x, lengths, together=False)
    compare(found, [np.array([row.mean(), row[-1]]) for row in alone])
    assert sorted(seen) == sorted((lengths.count(n), n) for n in set(lengths))


# ---------------------------------------------------------------------------- encoders


def resnet34(**fields: object) -> ResNet34:
    return ResNet34(ResNet34Config(type="resnet34", **fields))  # type: ignore[arg-type]


def tdnn(**fields: object) -> TDNN:
    return TDNN(TDNNConfig(type="tdnn", **fields))  # type: ignore[arg-type]


def ecapa(**fields: object) -> ECAPATDNN:
    return ECAPATDNN(ECAPATDNNConfig(type="ecapatdnn", **fields))  # type: ignore[arg-type]


SMALL: dict[str, Callable[[], Encoder]] = {
    "resnet34 sap": lambda: resnet34(base_dim=8),
    "resnet34 stats": lambda: resnet34(base_dim=8, pooling_mode="stats", enable_last_bn=True),
    "tdnn": lambda: tdnn(channels=[32, 32, 32, 32, 60]),
    "ecapatdnn": lambda: ecapa(channels=[32, 32, 32, 32, 96]),
    "ecapatdnn no context": lambda: ecapa(
        channels=[16, 16, 24, 48],
        kernel_sizes=[5, 3, 5, 3],
        dilations=[1, 2, 3, 1],
        groups=[1, 2, 1, 1],
        global_context=False,
    ),
}
REAL: dict[str, Callable[[], Encoder]] = {
    "resnet34 sap": resnet34,
    "resnet34 stats": lambda: resnet34(pooling_mode="stats", mel_n_mels=80),
    "tdnn": tdnn,
    "ecapatdnn": ecapa,
}
SEQUENCES: dict[str, Callable[[], Encoder]] = {
    "resnet34": lambda: resnet34(base_dim=8, pooling=False),
    "ecapatdnn": lambda: ecapa(
        channels=[16, 16, 16, 48],
        kernel_sizes=[5, 3, 3, 1],
        dilations=[1, 2, 3, 1],
        groups=[1] * 4,
        pooling=False,
    ),
    "simpleaudiocnn": lambda: SimpleAudioCNN(
        SimpleAudioCNNConfig(type="simpleaudiocnn", encoder_dim=16)
    ),
}


def prepare(make: Callable[[], Encoder]) -> Encoder:
    torch.manual_seed(0)
    encoder = make()
    randomise_norms(encoder)
    return encoder.eval()


def speech_like(lengths: list[int], seed: int) -> Tensor:
    """Coloured noise that grows and fades, and rubbish beyond the end of each row."""
    rng = np.random.default_rng(seed)
    wave = 10 * rng.standard_normal((len(lengths), max(lengths)))
    for row, n in zip(wave, lengths, strict=True):
        noise = np.convolve(rng.standard_normal(n), np.ones(4) / 4)[:n]
        row[:n] = 0.1 * noise * (1.1 + np.sin(np.arange(n) / rng.uniform(500, 5000)))
    return torch.from_numpy(wave).float()


def check_invariance(encoder: Encoder, lengths: list[int], seed: int) -> None:
    wave = speech_like(lengths, seed)
    with torch.inference_mode():
        together = encoder.embed(wave, lengths).double()
        alone = [encoder(wave[i : i + 1, :n]).double() for i, n in enumerate(lengths)]
        padded = encoder(wave).double()
    expected = torch.cat(alone)
    assert _distance(together, expected).max() < 1e-5
    # All embeddings of an untrained encoder point one way; without what they share, the bound
    # means something: to take the padding for speech breaks it. (That padding changes nothing at
    # all is shown in float64, below; here rounding differs with the processor.)
    shared = expected.mean(dim=0)
    assert _distance(together - shared, expected - shared).max() < 1e-4
    shorter = [i for i, n in enumerate(lengths) if n < max(lengths)]
    assert _distance(padded - shared, expected - shared)[shorter].min() > 1e-3


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b)


def test_every_encoder_that_says_so_is_tested_here():
    claimed = {name for name in ENCODERS.names() if ENCODERS.get(name).cls.ragged}  # type: ignore[attr-defined]
    assert claimed == {make().config.type for make in (SMALL | SEQUENCES).values()}


@pytest.mark.parametrize("name", SMALL)
@given(seconds=st.lists(st.floats(1, 20), min_size=2, max_size=4, unique=True), seed=SEEDS)
@settings(max_examples=4)
def test_a_padded_batch_changes_no_embedding(name, seconds, seed):
    check_invariance(prepare(SMALL[name]), [int(s * RATE) for s in seconds], seed)


@pytest.mark.parametrize("name", REAL)
def test_a_padded_batch_changes_no_embedding_at_real_width(name):
    check_invariance(prepare(REAL[name]), [RATE, 2 * RATE + 4321, 5 * RATE], seed=0)


@pytest.mark.parametrize("name", SMALL)
def test_in_float64_padding_changes_nothing_at_all(name):
    """So that what float32 hides shows."""
    encoder = prepare(SMALL[name]).double()
    lengths = [encoder.config.min_samples, 9000, 8999, 8960, 16000]
    wave = speech_like(lengths, 0).double()
    with torch.inference_mode():
        together = encoder.embed(wave, lengths)
        alone = [encoder(wave[i : i + 1, :n]) for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SMALL)
def test_a_padded_batch_in_bfloat16_is_as_exact_as_that_type(name):
    encoder, lengths = prepare(SMALL[name]).eval(), [16000, 9000, 12345]
    wave = speech_like(lengths, seed=3)
    with torch.no_grad():
        expected = torch.cat([encoder(wave[i : i + 1, :n]) for i, n in enumerate(lengths)])
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder.embed(wave, lengths).float()
    assert ((found - expected).norm(dim=1) < 0.05 * expected.norm(dim=1)).all()


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_padded_batch_changes_no_frame_of_a_sequence(name):
    encoder = prepare(SEQUENCES[name]).double()
    lengths = [encoder.config.min_samples, 9000, 8999, 8960, 16000]
    wave = speech_like(lengths, 0).double()
    with torch.inference_mode():
        together = masking.run(encoder.forward, wave, lengths)
        alone = [encoder(wave[i : i + 1, :n])[0].numpy() for i, n in enumerate(lengths)]
    compare(together, alone)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_a_padded_batch_are_those_of_each_row(name):
    encoder = prepare(SMALL[name]).double()
    lengths = [6000, 4001]
    wave = speech_like(lengths, 0).double()
    found = []
    for together in (True, False):
        parts = [encoder(wave[i : i + 1, :n]) for i, n in enumerate(lengths)]
        out = encoder.embed(wave, lengths) if together else torch.cat(parts)
        encoder.zero_grad()
        out.square().sum().backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters()})
    for name_, expected in found[1].items():
        torch.testing.assert_close(found[0][name_], expected, rtol=1e-6, atol=1e-9)
