"""MFCC statistics against the textbook, in numpy."""

import numpy as np
import pytest
import scipy.fft
import torch

from sslsv.evaluations.baselines import mfcc_statistics

RATE, FFT, WINDOW, HOP, BANDS = 16000, 512, 400, 160, 40


def hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)  # HTK


def mel_filters() -> np.ndarray:
    """Triangles of height 1 between neighbours spaced evenly in mel, (BANDS, FFT // 2 + 1)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = hertz(np.linspace(0, top, BANDS + 2))
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    return np.array([np.interp(bins, edges[b : b + 3], [0, 1, 0]) for b in range(BANDS)])


def textbook(wave: np.ndarray) -> np.ndarray:
    """One wave (T,) -> mean and standard deviation of c1 .. c19, (38,)."""
    emphasised = np.append(wave[0], wave[1:] - 0.97 * wave[:-1])
    padded = np.pad(emphasised, FFT // 2, mode="reflect")
    window = np.zeros(FFT)
    inside = (FFT - WINDOW) // 2
    window[inside : inside + WINDOW] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = [
        np.abs(np.fft.rfft(window * padded[start : start + FFT])) ** 2
        for start in range(0, len(padded) - FFT + 1, HOP)
    ]
    mels = np.log(np.array(frames) @ mel_filters().T + 1e-6)
    cepstra = scipy.fft.dct(mels, type=2, norm="ortho", axis=1)[:, 1:20]
    return np.concatenate((cepstra.mean(axis=0), cepstra.std(axis=0, ddof=1)))


@pytest.mark.parametrize("length", [1600, 16000, 16001, 23456])
def test_agrees_with_the_textbook(length: int) -> None:
    rng = np.random.default_rng(length)
    t = np.arange(length) / RATE
    tones = np.sin(2 * np.pi * np.array([[300.0], [900.0], [140.0]]) * t * (1 + t))
    waves = 0.1 * tones + 0.01 * rng.standard_normal((3, length))
    found = mfcc_statistics(torch.from_numpy(waves).float()).numpy()
    assert found.shape == (3, 38)
    expected = np.array([textbook(wave) for wave in waves])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_rows_of_different_lengths_are_those_of_each_alone() -> None:
    waves, lengths = torch.randn(4, 9000), [9000, 4000, 8999, 4000]
    alone = [mfcc_statistics(wave[None, :n]) for wave, n in zip(waves, lengths, strict=True)]
    torch.testing.assert_close(mfcc_statistics(waves, lengths), torch.cat(alone))


def test_the_level_is_left_out() -> None:
    wave = torch.randn(1, 16000)
    torch.testing.assert_close(
        mfcc_statistics(wave), mfcc_statistics(3 * wave), rtol=1e-3, atol=1e-3
    )


def test_the_wave_is_left_as_it_is() -> None:
    wave = torch.randn(2, 4000)
    before = wave.clone()
    mfcc_statistics(wave)
    assert torch.equal(wave, before)
