"""What a training hears: the very views of the dataset, and how they are described and drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sslsv.config import load_config
from sslsv.datasets.augmentation import Recipe
from sslsv.datasets.manifest import read_manifest
from sslsv.datasets.samplers import Draw
from sslsv.datasets.views import SpeechDataset
from sslsv.errors import DataError
from sslsv.evaluations.plots_audio import (
    RATE,
    AugmentedView,
    augmented_views,
    describe,
    player,
    spectrogram_db,
    spectrograms,
)

pytest.importorskip("matplotlib")


@pytest.fixture
def augmented(edit_config: Callable[[str, str], Path]) -> Path:
    return edit_config(
        "  num_workers: 0", "  num_workers: 0\n  augmentation: {strategy: reverb+noise}"
    )


def test_views_are_those_of_the_training(augmented: Path) -> None:
    config = load_config(augmented)
    manifest = read_manifest("train.csv", config.dataset.base_path)
    dataset = SpeechDataset(manifest, config.dataset, config.seed)
    views = augmented_views(augmented, row=5, epochs=[1, 3])
    assert [(view.epoch, view.number) for view in views] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    for view in views:
        batch = dataset[Draw(view.epoch - 1, 5)]
        np.testing.assert_array_equal(view.wave, batch.views[view.number - 1][0].numpy())
        assert "reverberation and noise at " in view.added
        assert np.abs(view.crop - view.wave).max() > 1e-4
    assert views[0].name == "epoch 1, view 1"


def test_without_augmentation_a_view_is_the_crop(config_file: Path) -> None:
    for view in augmented_views(config_file):
        np.testing.assert_array_equal(view.crop, view.wave)
        assert view.added == "as it is"


def test_a_row_that_is_not_there_is_refused(config_file: Path) -> None:
    with pytest.raises(DataError, match="has rows 0 to 31, not 32"):
        augmented_views(config_file, row=32)


def test_a_recipe_in_words() -> None:
    def recipe(rirs: int, *snr_db: float) -> Recipe:
        none = torch.zeros(0)
        return Recipe(none, torch.zeros(rirs), none, none, torch.tensor(snr_db))

    assert describe(recipe(1, 4.6)) == "reverberation and noise at 5 dB"
    assert describe(recipe(0, 10, 3)) == "noise at 10 dB and noise at 3 dB"
    assert describe(recipe(1)) == "reverberation"
    assert describe(recipe(0)) == describe(None) == "as it is"


def test_a_tone_is_a_line_at_its_frequency() -> None:
    time = np.arange(RATE) / RATE
    power = spectrogram_db(np.sin(2 * np.pi * 2000 * time))
    assert power.shape[0] == 257
    middle = power[:, power.shape[1] // 2]
    assert middle.argmax() == 64  # of bins of 31.25 Hz
    assert middle.max() - np.median(middle) > 60


def test_a_row_of_spectrograms_a_view() -> None:
    rng = np.random.default_rng(0)
    views = [
        AugmentedView(2, i, rng.standard_normal(RATE), rng.standard_normal(RATE), "added")
        for i in (1, 2)
    ]
    figure = spectrograms(views)
    assert [axes.get_title() for axes in figure.axes] == [
        "epoch 2, view 1: crop",
        "epoch 2, view 1: added",
        "epoch 2, view 2: crop",
        "epoch 2, view 2: added",
    ]
    waves = [wave for view in views for wave in (view.crop, view.wave)]
    for axes, wave in zip(figure.axes, waves, strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), spectrogram_db(wave))
        assert image.get_extent() == [0, 1, 0, 8]
    with pytest.raises(DataError, match="no view to draw"):
        spectrograms([])


def test_a_player_holds_the_wave_in_few_bytes() -> None:
    pytest.importorskip("IPython")
    time = np.arange(2 * RATE) / RATE
    found = player(0.01 * np.sin(2 * np.pi * 440 * time))
    assert len(found.data) < 20_000
    assert 'src="data:audio/mpeg;base64,' in found._repr_html_()
    wave, rate = soundfile.read(io.BytesIO(found.data))
    assert rate == RATE
    assert len(wave) / RATE == pytest.approx(2, abs=0.15)
    spectrum = np.abs(np.fft.rfft(wave[: 2 * RATE]))
    assert spectrum.argmax() * RATE / len(wave[: 2 * RATE]) == pytest.approx(440, abs=1)
    assert 0.6 < np.abs(wave).max() < 0.8  # loud enough to hear
