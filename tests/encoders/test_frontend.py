"""The log-mel front-end against its definition, in numpy and float64."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from sslsv.encoders import masking
from sslsv.encoders.base import EncoderConfig
from sslsv.encoders.frontend import FrontEnd, SpecAugmentConfig, log_mel
from sslsv.errors import ConfigError

RATE = 16000


def make_frontend(**fields: object) -> FrontEnd:
    return log_mel(EncoderConfig(type="any", **fields))  # type: ignore[arg-type]


def noise(length: int, rows: int = 2, seed: int = 0) -> np.ndarray:
    """Coloured noise whose level changes with time."""
    rng = np.random.default_rng(seed)
    wave = np.cumsum(rng.standard_normal((rows, length)), axis=1) * 0.01
    wave += 0.1 * rng.standard_normal((rows, length))
    return (0.2 * wave * (1 + np.sin(np.arange(length) / 700))).astype(np.float32)


def mel_triangles(n_mels: int, n_fft: int) -> np.ndarray:
    """(bins, n_mels), corners equally spaced on the HTK scale from 0 to 8000 Hz, peaks of 1."""
    top = 2595 * np.log10(1 + 8000 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    f = np.linspace(0, RATE / 2, n_fft // 2 + 1)[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (f - left) / (centre - left), (right - f) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


def oracle(
    wave: np.ndarray, n_mels: int, window: str, n_fft: int = 512, length: int = 400, hop: int = 160
) -> np.ndarray:
    """(B, T) -> (B, n_mels, 1 + T // hop)."""
    x = np.log(power(wave, window, n_fft, length, hop) @ mel_triangles(n_mels, n_fft) + 1e-6)
    x = x.swapaxes(1, 2)  # (B, M, F)
    mean, var = x.mean(axis=2, keepdims=True), x.var(axis=2, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def power(
    wave: np.ndarray, window: str = "hamming", n_fft: int = 512, length: int = 400, hop: int = 160
) -> np.ndarray:
    """Spectrogram, (B, T) -> (B, 1 + T // hop, bins)."""
    a = {"hamming": 0.54, "hann": 0.5}[window]
    periodic = a - (1 - a) * np.cos(2 * np.pi * np.arange(length) / length)
    left = (n_fft - length) // 2
    taper = np.pad(periodic, (left, n_fft - length - left))
    padded = np.pad(wave.astype(np.float64), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    frames = sliding_window_view(padded, n_fft, axis=1)[:, ::hop]  # (B, F, n_fft)
    return np.abs(np.fft.rfft(frames * taper)) ** 2


@pytest.mark.parametrize("window", ["hamming", "hann"])
@pytest.mark.parametrize("n_mels", [40, 80])
def test_equals_the_definition(window, n_mels):
    wave = noise(RATE)
    features = make_frontend(mel_n_mels=n_mels, mel_win_fn=window)(torch.from_numpy(wave))
    np.testing.assert_allclose(features.numpy(), oracle(wave, n_mels, window), atol=1e-3)


@given(length=st.integers(512, 4000), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_equals_the_definition_at_any_length(length, seed):
    wave = noise(length, rows=1, seed=seed)
    features = make_frontend()(torch.from_numpy(wave))
    assert features.shape == (1, 40, 1 + length // 160)
    np.testing.assert_allclose(features.numpy(), oracle(wave, 40, "hamming"), atol=1e-3)


def test_window_hop_and_transform_sizes_are_obeyed():
    wave = noise(5000)
    sizes = {"mel_n_fft": 1024, "mel_win_length": 320, "mel_hop_length": 100}
    features = make_frontend(mel_n_mels=16, **sizes)(torch.from_numpy(wave))
    np.testing.assert_allclose(
        features.numpy(), oracle(wave, 16, "hamming", 1024, 320, 100), atol=1e-3
    )


def test_two_seconds_are_201_frames():
    assert make_frontend()(torch.zeros(3, 2 * RATE)).shape == (3, 40, 201)


def test_silence_gives_zeros():
    assert make_frontend()(torch.zeros(1, 4000)).abs().max() < 1e-2


def test_level_and_the_other_rows_do_not_matter():
    frontend, wave = make_frontend(), torch.randn(2, 8000)
    features = frontend(wave)
    torch.testing.assert_close(frontend(20 * wave), features, atol=1e-3, rtol=0)
    torch.testing.assert_close(frontend(wave[1:]), features[1:])


def test_float32_whatever_autocast_says():
    frontend, wave = make_frontend(), torch.from_numpy(noise(8000))
    expected = frontend(wave)
    with torch.autocast("cpu", torch.bfloat16):
        features = frontend(wave)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_no_gradient_and_nothing_to_train():
    frontend = make_frontend()
    wave = torch.from_numpy(noise(4000)).requires_grad_()
    assert not frontend(wave).requires_grad
    assert not list(frontend.parameters())


class TestSpecAugment:
    WAVE = torch.from_numpy(noise(3 * RATE, rows=64))
    SECTION = SpecAugmentConfig(time_masks=2, time_width=30, frequency_masks=1, frequency_width=8)

    def hidden(self, frontend: FrontEnd) -> tuple[torch.Tensor, torch.Tensor]:
        """Which bands (B, M) and which frames (B, F) are hidden."""
        features = frontend.train()(self.WAVE)
        zero = features == 0
        bands, frames = zero.all(dim=2), zero.all(dim=1)
        assert torch.equal(zero, bands[:, :, None] | frames[:, None, :])
        clean = frontend.eval()(self.WAVE)
        assert torch.equal(features[~zero], clean[~zero])
        return bands, frames

    def test_off_by_default(self):
        frontend = make_frontend()
        assert torch.equal(frontend.train()(self.WAVE), frontend.eval()(self.WAVE))
        assert len(frontend) == 2

    def test_bands_and_stretches_are_hidden_in_training_only(self):
        bands, frames = self.hidden(make_frontend(spec_augment=self.SECTION))
        assert not (make_frontend(spec_augment=self.SECTION).eval()(self.WAVE) == 0).any()
        widths = bands.sum(dim=1)
        assert set(widths.tolist()) == set(range(9))
        edges = bands.int().diff(dim=1).abs().sum(dim=1)
        assert edges.max() <= 2  # one interval
        assert frames.sum(dim=1).max() <= 60
        assert frames.int().diff(dim=1).abs().sum(dim=1).max() <= 4
        assert len({tuple(row.tolist()) for row in frames}) > 50

    def test_positions_are_even(self):
        counts = torch.zeros(40)
        section = SpecAugmentConfig(time_masks=0, frequency_masks=1, frequency_width=1)
        frontend = make_frontend(spec_augment=section)
        for _ in range(40):
            counts += self.hidden(frontend)[0].sum(dim=0)
        expected = 64 * 40 / 2 / 40
        assert ((counts - expected).abs() < 5 * expected**0.5).all()

    def test_masks_follow_the_state_of_the_generator(self):
        frontend = make_frontend(spec_augment=self.SECTION)
        state = torch.get_rng_state()
        first, second = self.hidden(frontend), self.hidden(frontend)
        torch.set_rng_state(state)
        again = self.hidden(frontend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[1], second[1])

    def test_wider_than_the_features(self):
        section = SpecAugmentConfig(time_width=10**6, frequency_width=1000)
        assert make_frontend(spec_augment=section).train()(self.WAVE).shape == (64, 40, 301)

    def test_no_weights_are_added(self):
        plain, masked = make_frontend(), make_frontend(spec_augment=self.SECTION)
        assert plain.state_dict().keys() == masked.state_dict().keys()

    def test_config_is_checked(self):
        with pytest.raises(ConfigError, match="time_width: must be 0 or more, got -1"):
            SpecAugmentConfig(time_width=-1)
        with pytest.raises(ConfigError, match="spec_augment: masks log-mel features"):
            EncoderConfig(type="any", extract_mel_features=False, spec_augment=self.SECTION)


@given(bands=st.integers(1, 200), size=st.sampled_from([400, 512, 1024]))
def test_bands_that_would_be_empty_are_refused(bands, size):
    edges = torchaudio.functional.melscale_fbanks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are empty ones
        empty = not edges(size // 2 + 1, 0.0, 8000.0, bands, 16000).any(dim=0).all()
    context = pytest.raises(ConfigError, match="mel_n_mels") if empty else nullcontext()
    with context:
        EncoderConfig(type="any", mel_n_mels=bands, mel_n_fft=size)


class TestLevelNorm:
    """``mel_norm: level``, one mean and one variance for all bands of an utterance."""

    @staticmethod
    def expected(wave: np.ndarray) -> np.ndarray:
        x = np.log(power(wave) @ mel_triangles(40, 512) + 1e-6).swapaxes(1, 2)
        return np.stack([(row - row.mean()) / np.sqrt(row.var() + 1e-5) for row in x])

    @given(length=st.integers(512, 4000), seed=st.integers(0, 100))
    @settings(max_examples=10)
    def test_equals_the_definition(self, length, seed):
        wave = noise(length, seed=seed)
        features = make_frontend(mel_norm="level")(torch.from_numpy(wave))
        np.testing.assert_allclose(features.numpy(), self.expected(wave), atol=1e-3)

    def test_loudness_goes_and_colour_stays(self):
        frontend, wave = make_frontend(mel_norm="level"), torch.randn(2, 8000).cumsum(1)
        features = frontend(wave)
        torch.testing.assert_close(frontend(20 * wave), features, atol=1e-3, rtol=0)
        assert features.mean(dim=2).std(dim=1).min() > 0.3
        assert make_frontend()(wave).mean(dim=2).abs().max() < 1e-3

    def test_rows_of_different_lengths_as_if_alone(self):
        frontend, wave = make_frontend(mel_norm="level"), torch.from_numpy(noise(8000))
        found = masking.run(frontend, wave, [8000, 4321])
        alone = frontend(wave[1:, :4321])
        torch.testing.assert_close(found[1:, :, : alone.shape[2]], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[:1], frontend(wave[:1]), atol=1e-4, rtol=1e-4)
