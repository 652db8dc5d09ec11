"""Batches from worker processes: the same as without them, and what workers meet is raised."""

import copy
import multiprocessing
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from sslsv import audio
from sslsv.datasets.augmentation import AugmentationConfig
from sslsv.datasets.loader import Loader
from sslsv.datasets.manifest import read_manifest
from sslsv.datasets.samplers import Draw, ShuffledBatches
from sslsv.datasets.views import Batch, DatasetConfig, SpeechDataset
from sslsv.errors import DataError

SEED, ROWS, BATCH = 11, 32, 8

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # few cores


def make_dataset(base_path: Path, augment: bool = False) -> SpeechDataset:
    augmentation = AugmentationConfig(strategy="all") if augment else None
    config = DatasetConfig(
        ssl=True, frame_length=2000, base_path=base_path, augmentation=augmentation
    )
    return SpeechDataset(read_manifest("train.csv", base_path), config, SEED)


def samples(batches: list[Batch]) -> dict[tuple[int, int], torch.Tensor]:
    """Waves by (row, view)."""
    return {
        (int(row), v): view[i]
        for batch in batches
        for v, view in enumerate(batch.views)
        for i, row in enumerate(batch.rows)
    }


def load(
    dataset: SpeechDataset, workers: int = 0, rank: int = 0, world: int = 1, start: int = 0
) -> list[Batch]:
    """What one process reads of epoch 3, from a batch on."""
    sampler = ShuffledBatches(ROWS, BATCH, SEED, rank, world)
    sampler.set_epoch(3, start)
    return list(Loader(dataset, sampler, workers))


# ----------------------------------------------- a sample is a function of (seed, epoch, row, view)


@pytest.fixture(scope="module", params=[False, True], ids=["clean", "augmented"])
def dataset(request: pytest.FixtureRequest, corpus: Path) -> SpeechDataset:
    return make_dataset(corpus, augment=request.param)


@pytest.fixture(scope="module")
def expected(dataset: SpeechDataset) -> dict[tuple[int, int], torch.Tensor]:
    """Every sample of epoch 3, each read by itself and in another order."""
    alone = [dataset[Draw(3, row)] for row in reversed(range(ROWS))]
    return samples([batch for batch in alone if isinstance(batch, Batch)])


WAYS: dict[str, Callable[[SpeechDataset], list[Batch]]] = {
    "in the process itself": lambda dataset: load(dataset),
    "by one worker": lambda dataset: load(dataset, workers=1),
    "by three workers": lambda dataset: load(dataset, workers=3),
    "by two processes": lambda dataset: list(
        chain(load(dataset, rank=0, world=2), load(dataset, rank=1, world=2))
    ),
    "by four processes with a worker each": lambda dataset: list(
        chain.from_iterable(load(dataset, 1, rank, 4) for rank in range(4))
    ),
    "with a break in the middle": lambda dataset: [
        *load(dataset)[:2],
        *load(dataset, workers=2, start=2),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_is_the_same_however_it_is_read(
    dataset: SpeechDataset, expected: dict[tuple[int, int], torch.Tensor], way: str
) -> None:
    found = samples(WAYS[way](dataset))
    assert found.keys() == expected.keys()
    for key, wave in expected.items():
        assert torch.equal(found[key], wave)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_on_the_device_is_that_of_the_worker(
    dataset: SpeechDataset, expected: dict[tuple[int, int], torch.Tensor], workers: int
) -> None:
    later = copy.copy(dataset)
    later.augment_later = True
    batches = load(later, workers)
    clean = samples(load(make_dataset(dataset.manifest.base_path)))
    for key, wave in samples(batches).items():
        assert torch.equal(wave, clean[key])
    device = torch.device("cpu")
    found = samples([batch.to(device).augmented() for batch in batches])
    for key, wave in expected.items():
        assert torch.equal(found[key], wave)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit_of_a_batch(dataset: SpeechDataset, workers: int) -> None:
    for one, other in zip(load(dataset), load(dataset, workers), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_workers_that_stay_alive_follow_the_epoch(corpus: Path) -> None:
    data = make_dataset(corpus)
    sampler = ShuffledBatches(ROWS, BATCH, SEED)
    loader = Loader(data, sampler, num_workers=2)
    assert len(loader) == 4
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        draws = [draw for batch in sampler for draw in batch]
        found = samples(list(loader))
        one = data[draws[5]]
        assert isinstance(one, Batch)
        assert draws[5].epoch == epoch
        assert torch.equal(found[draws[5].row, 1], one.views[1][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(corpus: Path, workers: int) -> None:
    """Otherwise dropout after a resume would depend on the number of workers."""
    before = torch.get_rng_state()
    load(make_dataset(corpus), workers)
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------------- unusable audio


def spoil_nan(path: Path) -> None:
    wave = np.full(20000, 0.1, dtype=np.float32)
    wave[::500] = np.nan
    sf.write(path, wave, 16000, subtype="FLOAT")


def spoil_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 20000)
    sf.write(path, noise, 16000, format="FLAC", subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:300])


def spoil_empty(path: Path) -> None:
    sf.write(path, np.zeros(0), 16000)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nan, "there are NaN or infinite samples; remove or re-encode the file"),
        (spoil_truncated, "; remove or re-encode the file"),
        (spoil_empty, "the audio is empty; remove the file from the list"),
        (Path.unlink, "file not found"),
    ],
    ids=["NaN", "truncated", "empty", "missing"],
)
def test_unusable_audio_is_one_sentence_in_the_main_process(
    tmp_path: Path, workers: int, spoil: Callable[[Path], None], message: str
) -> None:
    for name in ("good.wav", "bad.wav"):
        audio.write(tmp_path / name, np.full(4000, 0.1))
    (tmp_path / "train.csv").write_text("File,Speaker\ngood.wav,a\nbad.wav,a\n")
    dataset = make_dataset(tmp_path)
    spoil(tmp_path / "bad.wav")
    good, bad = Draw(0, 0), Draw(0, 1)
    batches = iter(Loader(dataset, [[good, good], [good, bad], [good, good]], workers))
    assert next(batches).rows.tolist() == [0, 0]
    with pytest.raises(DataError) as error:
        next(batches)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'bad.wav'}: ")
    assert text.endswith(message)
    assert "\n" not in text
    assert "Traceback" not in text


def test_workers_end_with_the_error(tmp_path: Path) -> None:
    """Left to the garbage collector, it may close their queues first and then wait for them."""
    (tmp_path / "train.csv").write_text("File,Speaker\nbad.wav,a\n")
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError) as error:
        list(Loader(make_dataset(tmp_path), [[Draw(0, 0)]] * 5, num_workers=2))
    assert set(multiprocessing.active_children()) <= before
    assert error.value.__traceback__  # still held


def test_the_loader_can_be_used_again_after_an_error(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("File,Speaker\ngood.wav,a\nbad.wav,a\n")
    audio.write(tmp_path / "good.wav", np.full(4000, 0.1))
    loader = Loader(make_dataset(tmp_path), [[Draw(0, 0)], [Draw(0, 1)], [Draw(0, 0)]], 2)
    with pytest.raises(DataError, match=r"bad\.wav: file not found"):
        list(loader)
    audio.write(tmp_path / "bad.wav", np.full(4000, 0.1))
    assert [batch.rows.tolist() for batch in loader] == [[0], [1], [0]]


# ---------------------------------------------------------------------------- on_error: skip


@pytest.mark.parametrize("spoil", [spoil_nan, spoil_truncated, spoil_empty, Path.unlink])
def test_unusable_audio_is_skipped_where_that_is_asked_for(
    tmp_path: Path, corpus: Path, spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(corpus / "wav", tmp_path / "wav")
    shutil.copy(corpus / "train.csv", tmp_path)
    rows = read_manifest("train.csv", tmp_path)
    for bad in (3, 17):
        spoil(tmp_path / rows.file(bad))
    config = DatasetConfig(ssl=True, frame_length=2000, base_path=tmp_path, on_error="skip")
    dataset = SpeechDataset(rows, config, SEED)
    alone, workers = load(dataset), load(dataset, workers=2)
    assert [len(batch.rows) for batch in alone] == [BATCH] * 4
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
        assert one.skipped == other.skipped
    assert {skipped.row for batch in alone for skipped in batch.skipped} == {3, 17}
    used = {row for batch in alone for row in batch.rows.tolist()}
    assert set(range(ROWS)) - used == {3, 17}
