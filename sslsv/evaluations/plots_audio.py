"""What a training hears: crops of an utterance before and after augmentation."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sslsv.errors import DataError, UserError
from sslsv.evaluations.figures import new_panels, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sslsv.datasets.augmentation import Recipe

RATE = 16000  # samples a second, of all waves
FRAME, HOP = 400, 160  # samples of an analysis window, and from one to the next
RANGE_DB = 70  # of a spectrogram, below its loudest point


@dataclass(frozen=True)
class AugmentedView:
    """One view of an utterance, as a training would get it."""

    epoch: int
    number: int  # of the view, from 1
    crop: np.ndarray  # (T,) as it was read
    wave: np.ndarray  # (T,) as it is trained on
    added: str  # what augmentation did, in words

    @property
    def name(self) -> str:
        return f"epoch {self.epoch}, view {self.number}"


def augmented_views(
    run: str | os.PathLike, row: int = 0, epochs: Sequence[int] = (1,)
) -> list[AugmentedView]:
    """All views of a row of the training list in each of ``epochs`` (the first is 1), drawn just as
    in the training.

    Args:
        run: folder of a run, or a configuration.
        row: of ``dataset.train``, from 0.

    Raises:
        UserError: the configuration, the list or the audio cannot be used, or has no such row.
    """
    from sslsv.config import RESOLVED_NAME, load_config
    from sslsv.datasets.manifest import read_manifest
    from sslsv.datasets.samplers import Draw
    from sslsv.datasets.views import SpeechDataset

    path = Path(run) / RESOLVED_NAME if Path(run).is_dir() else Path(run)
    config = load_config(path)
    dataset = config.dataset
    manifest = read_manifest(dataset.train, dataset.base_path, dataset.label_key)
    if not 0 <= row < len(manifest):
        raise DataError(f"{manifest.path}: has rows 0 to {len(manifest) - 1}, not {row}")
    speech = SpeechDataset(manifest, dataset, config.seed, augment_later=True)
    views = []
    for epoch in epochs:
        batch = speech[Draw(epoch - 1, row)]
        if isinstance(batch, UserError):
            raise batch
        waves = batch.augmented().views
        recipes = batch.recipes or [None] * len(waves)
        for number, (crop, wave, recipe) in enumerate(
            zip(batch.views, waves, recipes, strict=True), start=1
        ):
            added = describe(recipe)
            views.append(AugmentedView(epoch, number, crop[0].numpy(), wave[0].numpy(), added))
    return views


def describe(recipe: "Recipe | None") -> str:
    """What a recipe for one frame does, in words."""
    if recipe is None:
        return "as it is"
    parts = ["reverberation"] if len(recipe.rir_rows) else []
    parts += [f"noise at {snr:.0f} dB" for snr in recipe.snr_db.tolist()]
    return " and ".join(parts) or "as it is"


def spectrogram_db(wave: np.ndarray) -> np.ndarray:
    """Power (F, N) in dB of windows of 25 ms each 10 ms of ``wave`` (T,), of frequencies from 0 to
    8 kHz; T must be a window or more."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP] * np.hanning(FRAME)
    return 10 * np.log10(np.abs(np.fft.rfft(frames, 512)).T ** 2 + 1e-12)


def spectrograms(
    views: Sequence[AugmentedView],
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw each view in a row: the crop as it was read, and as it is trained on.

    Raises:
        DataError: there is no view.
        UserError: matplotlib is not installed.
    """
    if not views:
        raise DataError("no view to draw: give at least one")
    figure, grid = new_panels(8.4, 1.9 * len(views) + 0.5, len(views), 2, title)
    figure.set_dpi(100)  # pictures of noise take much room
    for row, view in zip(grid, views, strict=True):
        for axes, wave, what in zip(row, (view.crop, view.wave), ("crop", view.added), strict=True):
            power = spectrogram_db(wave)
            top = power.max()
            extent = (0, len(wave) / RATE, 0, RATE / 2000)
            look: dict[str, Any] = {"origin": "lower", "aspect": "auto", "cmap": "magma"}
            look |= {"vmin": top - RANGE_DB, "vmax": top, "interpolation": "nearest"}
            axes.imshow(power, extent=extent, **look)
            axes.grid(False)
            axes.set_title(f"{view.name}: {what}", fontsize=10)
        row[0].set_ylabel("kHz")
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    return save(figure, path)


def player(wave: np.ndarray) -> Any:
    """A player of ``wave`` (T,) for a notebook, as MP3: some 4 kB a second.

    Raises:
        UserError: libsndfile cannot write MP3.
    """
    import soundfile
    from IPython.display import Audio

    if not soundfile.check_format("MP3", "MPEG_LAYER_III"):
        raise UserError("the installed libsndfile writes no MP3: pip install -U soundfile")
    stream = io.BytesIO()
    loudest = max(float(np.abs(wave).max()), 1e-9)
    soundfile.write(stream, 0.7 * wave / loudest, RATE, "MPEG_LAYER_III", format="MP3")
    found = Audio(stream.getvalue())
    found.mimetype = "audio/mpeg"  # it would say WAV of any bytes
    return found
