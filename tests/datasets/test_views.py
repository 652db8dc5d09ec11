"""From a row of the list to its views: lengths, positions, and that nothing else matters."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import soundfile as sf
import torch

from sslsv import audio
from sslsv.datasets.augmentation import AugmentationConfig
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.samplers import Draw, SamplerConfig
from sslsv.datasets.views import Batch, DatasetConfig, SpeechDataset, View
from sslsv.errors import ConfigError, DataError

SEED = 11
FRAME = 3000


def make_dataset(base_path: Path, seed: int = SEED, **fields: object) -> SpeechDataset:
    fields = {"ssl": True, "frame_length": FRAME, "base_path": base_path} | fields
    config = DatasetConfig(**fields)  # type: ignore[arg-type]
    return SpeechDataset(read_manifest("train.csv", base_path), config, seed)


def read(dataset: SpeechDataset, *draws: tuple[int, int]) -> Batch:
    batch = dataset.__getitems__([Draw(*draw) for draw in draws])
    assert isinstance(batch, Batch)
    return batch


def whole_file(manifest: Manifest, row: int) -> np.ndarray:
    wave, rate = sf.read(manifest.base_path / manifest.file(row), dtype="float32")
    assert rate == 16000
    return wave


def find(crop: np.ndarray, wave: np.ndarray) -> int:
    """The one place where ``crop`` stands in ``wave``, sample for sample."""
    places = np.flatnonzero(wave[: len(wave) - len(crop) + 1] == crop[0])
    (place,) = (p for p in places if np.array_equal(wave[p : p + len(crop)], crop))
    return int(place)


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A list of two rows for one file of white noise with so many samples."""
    made: dict[int, Path] = {}

    def folder(samples: int) -> Path:
        if samples not in made:
            base = made[samples] = tmp_path_factory.mktemp("noise")
            rng = np.random.default_rng(samples)
            audio.write(base / "noise.wav", rng.uniform(-1, 1, samples))
            (base / "train.csv").write_text("File,Speaker\nnoise.wav,a\nnoise.wav,a\n")
        return made[samples]

    return folder


@pytest.mark.parametrize("length", [2000, 5000, 9000])
def test_audio_goes_round_to_the_wrap_length(noise_folder, length: int) -> None:
    """Crops are those of the file repeated to 8000 samples, evenly over all places."""
    dataset = make_dataset(noise_folder(length), wrap_length=8000)
    wave = np.resize(whole_file(dataset.manifest, 0), max(8000, length))
    crops = [view[0].numpy() for epoch in range(150) for view in read(dataset, (epoch, 0)).views]
    places = []
    for crop in crops:
        starts = np.flatnonzero(wave[: len(wave) - FRAME + 1] == crop[0])
        fitting = [s for s in starts if np.array_equal(wave[s : s + FRAME], crop)]
        assert fitting
        places.append(fitting[0])
    if length > FRAME:  # in a shorter file a crop stands in several places
        last = len(wave) - FRAME
        assert scipy.stats.kstest(places, "uniform", (0, last)).pvalue > 1e-3


# ----------------------------------------------------------------------------------- which views

CROPS = {
    "ssl_dino_global_count": 2,
    "ssl_dino_global_length": 4000,
    "ssl_dino_local_count": 3,
    "ssl_dino_local_length": 1500,
    "frame_sampling": "dino",
}
PLAIN, LONG, SHORT = View(FRAME), View(4000), View(1500)
CLEAN = View(5000, augmented=False)


@pytest.mark.parametrize(
    ("fields", "sampling", "views"),
    [
        ({"ssl": False}, "single", [PLAIN]),
        ({"ssl": False, "frame_sampling": "dino"}, "single", [PLAIN]),
        ({}, "siamese", [PLAIN, PLAIN]),
        (CROPS, "multicrop", [LONG, LONG, SHORT, SHORT, SHORT]),
        (CROPS | {"ssl_dino_local_count": 0}, "multicrop", [LONG, LONG]),
        ({"ssps": True, "ssps_frame_length": 5000}, "siamese", [PLAIN, PLAIN, CLEAN]),
        (
            CROPS | {"ssps": True, "ssps_frame_length": 5000},
            "multicrop",
            [LONG, LONG, SHORT, SHORT, SHORT, CLEAN],
        ),
    ],
)
def test_views_have_their_true_lengths(
    corpus: Path, fields: dict[str, object], sampling: str, views: list[View]
) -> None:
    config = DatasetConfig(**({"ssl": True, "frame_length": FRAME} | fields))  # type: ignore[arg-type]
    assert config.sampling == sampling
    assert config.views() == views
    assert set(config.lengths().values()) == {view.samples for view in views}
    batch = read(make_dataset(corpus, **fields), (0, 3), (0, 30), (0, 9))
    assert [tuple(view.shape) for view in batch.views] == [(3, view.samples) for view in views]
    assert {view.dtype for view in batch.views} == {torch.float32}


def test_a_batch_says_which_rows_and_labels_it_holds(corpus: Path) -> None:
    batch = read(make_dataset(corpus), (0, 30), (0, 0), (0, 9))
    assert batch.rows.tolist() == [30, 0, 9]
    assert batch.labels.tolist() == [7, 0, 2]  # four files a speaker
    assert batch.rows.dtype == batch.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("frame_length", 0, 1),
        ("ssl_dino_global_count", 0, 1),
        ("ssl_dino_global_length", 0, 1),
        ("ssl_dino_local_count", -1, 0),
        ("ssl_dino_local_length", 0, 1),
        ("ssps_frame_length", 0, 1),
        ("num_workers", -1, 0),
        ("max_samples", 0, 1),
    ],
)
def test_config_is_checked(field: str, value: int, least: int) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must be at least {least}, got {value}$"):
        DatasetConfig(**{field: value})  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- which samples


@pytest.mark.parametrize("fields", [{"ssl": False}, {}, CROPS | {"ssps": True}])
def test_views_are_slices_of_the_file(corpus: Path, fields: dict[str, object]) -> None:
    dataset = make_dataset(corpus, ssps_frame_length=9000, **fields)
    rows = range(0, 32, 3)
    batch = read(dataset, *((4, row) for row in rows))
    for i, row in enumerate(rows):
        wave = whole_file(dataset.manifest, row)
        places = [find(view[i].numpy(), wave) for view in batch.views]
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("length", [700, FRAME - 1, FRAME])
def test_a_short_file_is_repeated_to_the_length(
    noise_folder: Callable[[int], Path], length: int
) -> None:
    dataset = make_dataset(noise_folder(length))
    wave = whole_file(dataset.manifest, 0)
    batch = read(dataset, (0, 0), (1, 1))
    for view in batch.views:
        for row in view.numpy():
            np.testing.assert_array_equal(row, wave[np.arange(FRAME) % length])


def test_positions_cover_the_whole_range_evenly_and_independently(
    noise_folder: Callable[[int], Path],
) -> None:
    room, count = 7, 6400
    dataset = make_dataset(noise_folder(200 + room), frame_length=200)
    wave = whole_file(dataset.manifest, 0)
    batch = read(dataset, *((epoch, 0) for epoch in range(count)))
    places = {wave[start]: start for start in range(room + 1)}  # told by the first sample
    assert len(places) == room + 1
    starts = [[places[value] for value in view[:, 0].numpy()] for view in batch.views]
    pairs = np.zeros((room + 1, room + 1))  # of the positions of the two views
    np.add.at(pairs, tuple(starts), 1)
    assert scipy.stats.chisquare(pairs.sum(axis=0)).pvalue > 1e-3
    assert scipy.stats.chisquare(pairs.sum(axis=1)).pvalue > 1e-3
    assert scipy.stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_row_epoch_seed_and_view_each_change_the_position(
    noise_folder: Callable[[int], Path],
) -> None:
    base = noise_folder(16000)
    wave = whole_file(read_manifest("train.csv", base), 0)
    starts = [
        find(view[i].numpy(), wave)
        for seed in (1, 2)
        for view in read(make_dataset(base, seed), (0, 0), (0, 1), (1, 0), (1, 1)).views
        for i in range(4)
    ]
    assert len(set(starts)) == 16


def test_audio_of_another_rate_is_converted_only_if_asked(tmp_path: Path) -> None:
    audio.write(tmp_path / "8k.wav", 0.5 * np.sin(2 * np.pi * 440 / 8000 * np.arange(4000)), 8000)
    (tmp_path / "train.csv").write_text("File,Speaker\n8k.wav,a\n")
    refused = make_dataset(tmp_path).__getitems__([Draw(0, 0)])
    assert isinstance(refused, DataError)
    assert "8k.wav: the sample rate is 8000 Hz" in str(refused)
    batch = read(make_dataset(tmp_path, resample=True, frame_length=8000), (0, 0))
    tone = 0.5 * np.sin(2 * np.pi * 440 / 16000 * np.arange(8000))
    inner = slice(100, -100)  # the filter reaches beyond the ends
    np.testing.assert_allclose(batch.views[0][0].numpy()[inner], tone[inner], atol=0.005)


# --------------------------------------------------- a sample depends on seed, epoch, row and view


def augmentation(strategy: str = "all") -> AugmentationConfig:
    return AugmentationConfig(strategy=strategy, musan_noise_num=(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{}, CROPS | {"ssps": True, "ssps_frame_length": 5000}])
def test_a_sample_does_not_depend_on_its_neighbours(
    corpus: Path, fields: dict[str, object]
) -> None:
    dataset = make_dataset(corpus, **fields)
    together = read(dataset, *((2, row) for row in (5, 0, 31, 17)))
    for i, row in enumerate((5, 0, 31, 17)):
        alone = dataset[Draw(2, row)]
        assert isinstance(alone, Batch)
        for one, many in zip(alone.views, together.views, strict=True):
            assert torch.equal(one[0], many[i])


def test_an_augmented_sample_does_not_depend_on_its_neighbours(corpus: Path) -> None:
    dataset = make_dataset(corpus, augmentation=augmentation())
    together = read(dataset, *((2, row) for row in range(16)))
    for row in range(16):
        alone = read(dataset, (2, row))
        for one, many in zip(alone.views, together.views, strict=True):
            assert torch.equal(one[0], many[row])


def test_augmentation_moves_no_crop_and_spares_the_clean_one(corpus: Path) -> None:
    fields = {"ssps": True, "ssps_frame_length": 5000}
    draws = [(1, row) for row in range(32)]
    clean = read(make_dataset(corpus, **fields), *draws)
    noisy = read(make_dataset(corpus, augmentation=augmentation(), **fields), *draws)
    assert torch.equal(noisy.views[2], clean.views[2])
    same = torch.stack([(noisy.views[v] == clean.views[v]).all(dim=1) for v in (0, 1)])
    assert 0 < same.float().mean() < 0.6  # "all" leaves a quarter as it is, at the same position
    assert (same[0] != same[1]).any()  # each view has a draw of its own


def test_augmentation_that_is_not_enabled_needs_no_folders(
    noise_folder: Callable[[int], Path],
) -> None:
    off = AugmentationConfig(enable=False)
    base = noise_folder(16000)
    batch = read(make_dataset(base, augmentation=off), (0, 0))
    assert torch.equal(batch.views[1], read(make_dataset(base), (0, 0)).views[1])


# ------------------------------------------------------------------------------------------ speed


def seconds_of_a_count(view: torch.Tensor) -> float:
    """Slope of a ramp: samples of the file to one of the view."""
    inner = view[200:-200]
    return float(np.polyfit(np.arange(len(inner)), inner.numpy(), 1)[0]) * 32768


def test_speed_is_drawn_for_a_sample_and_the_clean_view_keeps_its_own(tmp_path: Path) -> None:
    ramp = np.arange(-16000, 16000) / 32768
    audio.write(tmp_path / "ramp.wav", ramp)
    (tmp_path / "train.csv").write_text("File,Speaker\nramp.wav,a\nramp.wav,a\n")
    fields = {"ssps": True, "ssps_frame_length": 4000}
    config = AugmentationConfig(aug_prob=0, speed_perturb=[0.8, 1.0, 1.25])
    draws = [(epoch, row) for epoch in range(60) for row in (0, 1)]
    dataset = make_dataset(tmp_path, augmentation=config, **fields)
    views = read(dataset, *draws).views
    slopes = [[seconds_of_a_count(row) for row in view] for view in views]
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-3)
    np.testing.assert_allclose(slopes[2], 1, atol=1e-3)
    counts = [int(np.isclose(slopes[0], speed, atol=1e-3).sum()) for speed in (0.8, 1.0, 1.25)]
    assert sum(counts) == len(draws)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # What is read at its own speed is the crop that it would be without the option.
    plain = read(make_dataset(tmp_path, **fields), *draws).views
    same = np.isclose(slopes[0], 1, atol=1e-3)
    assert torch.equal(views[0][same], plain[0][same])
    assert torch.equal(views[2], plain[2])


# --------------------------------------------------------------------------------- unusable audio


def test_errors_are_handed_over_not_raised(tmp_path: Path) -> None:
    audio.write(tmp_path / "here.wav", np.full(4000, 0.1))
    (tmp_path / "train.csv").write_text("File,Speaker\nhere.wav,a\ngone.wav,a\n")
    result = make_dataset(tmp_path).__getitems__([Draw(0, 0), Draw(0, 1)])
    assert isinstance(result, DataError)
    assert str(result) == f"{tmp_path / 'gone.wav'}: file not found"


# ------------------------------------------------------------------------ pairs of utterances

PAIRS = {"sampler": SamplerConfig(create_contrastive_pairs=True)}


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, [0, 1]),
        (CROPS, [0, 0, 1, 1, 1]),
        (CROPS | {"ssl_dino_global_count": 3}, [0, 0] + 4 * [1]),
    ],
)
def test_later_views_of_a_pair_come_from_the_second_utterance(
    corpus: Path, fields: dict[str, object], seconds: list[int]
) -> None:
    dataset = make_dataset(corpus, **fields, **PAIRS)
    both = (Draw(4, 9, second=11), Draw(4, 20, second=21))
    batch = dataset.__getitems__(both)
    assert isinstance(batch, Batch)
    assert batch.rows.tolist() == [9, 20]
    assert batch.labels.tolist() == [2, 5]
    for i, draw in enumerate(both):
        waves = [whole_file(dataset.manifest, row) for row in (draw.row, draw.second or 0)]
        for view, second in zip(batch.views, seconds, strict=True):
            find(view[i].numpy(), waves[second])


def test_a_view_of_a_pair_depends_on_its_own_utterance_alone(corpus: Path) -> None:
    dataset = make_dataset(corpus, augmentation=augmentation(), **PAIRS)
    pair, mirrored, single = (
        dataset[draw] for draw in (Draw(4, 9, 11), Draw(4, 11, 9), Draw(4, 9))
    )
    assert isinstance(pair, Batch)
    assert isinstance(mirrored, Batch)
    assert isinstance(single, Batch)
    assert torch.equal(pair.views[0], single.views[0])
    assert torch.equal(mirrored.views[1], single.views[1])


def test_a_copy_has_crops_of_its_own(corpus: Path) -> None:
    dataset = make_dataset(corpus)
    batch = dataset.__getitems__([Draw(4, 9, copy=copy) for copy in range(3)])
    assert isinstance(batch, Batch)
    wave = whole_file(dataset.manifest, 9)
    places = {find(view[i].numpy(), wave) for view in batch.views for i in range(3)}
    assert len(places) == 6
    assert torch.equal(batch.views[1][0], read(dataset, (4, 9)).views[1][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ssl": False}, "sampler.create_contrastive_pairs: pairs need several views"),
        ({"ssps": True}, "ssps: has no reference view where dataset.sampler.create_contrastive"),
    ],
)
def test_pairs_are_refused_where_they_mean_nothing(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        DatasetConfig(**({"ssl": True} | PAIRS | fields))  # type: ignore[arg-type]
    off = {"sampler": SamplerConfig(enable=False, create_contrastive_pairs=True)}
    DatasetConfig(**({"ssl": True} | off | fields))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ on_error: skip


@pytest.fixture
def faulty(corpus: Path, tmp_path: Path) -> Path:
    """The corpus without the first utterance of each of the eight speakers."""
    (tmp_path / "train.csv").symlink_to(corpus / "train.csv")
    shutil.copytree(corpus / "wav", tmp_path / "wav")
    for speaker in range(8):
        (tmp_path / f"wav/id{speaker:02d}/s0/00000.wav").unlink()
    return tmp_path


SKIP = {"on_error": "skip"}


def test_what_cannot_be_used_is_replaced_the_same_way_every_time(faulty: Path) -> None:
    dataset = make_dataset(faulty, **SKIP)
    draws = [(epoch, row) for epoch in range(5) for row in range(32)]
    batch = read(dataset, *draws)
    again = read(dataset, *reversed(draws))
    assert torch.equal(batch.rows, again.rows.flip(0))
    assert torch.equal(batch.views[1], again.views[1].flip(0))
    for (_, row), used in zip(draws, batch.rows.tolist(), strict=True):
        assert used == row if row % 4 else used % 4  # the first of each four is gone
    assert batch.labels.tolist() == [row // 4 for row in batch.rows.tolist()]
    assert {skipped.row for skipped in batch.skipped} == set(range(0, 32, 4))
    assert all(s.reason.endswith("/00000.wav: file not found") for s in batch.skipped)
    others = {used for (_, row), used in zip(draws, batch.rows.tolist(), strict=True) if row == 0}
    assert len(others) > 2  # another one every epoch


def test_a_substitute_has_crops_of_its_own(faulty: Path) -> None:
    dataset = make_dataset(faulty, **SKIP)
    batch = read(dataset, (0, 0))
    row = int(batch.rows[0])
    assert not torch.equal(batch.views[0], read(dataset, (0, row)).views[0])


def test_with_a_sampler_the_substitute_is_of_the_same_label(faulty: Path) -> None:
    dataset = make_dataset(faulty, sampler=SamplerConfig(balance=True), **SKIP)
    batch = read(dataset, *((0, row) for row in range(32)))
    assert batch.labels.tolist() == [row // 4 for row in range(32)]


def test_and_among_the_utterances_in_use(faulty: Path) -> None:
    sampler = SamplerConfig(nb_samples_per_spk=2)
    dataset = make_dataset(faulty, sampler=sampler, **SKIP)
    batch = read(dataset, *((epoch, 0) for epoch in range(20)))
    assert {row % 4 for row in batch.rows.tolist()} == {1}


def utterances(dataset: SpeechDataset, batch: Batch, rows: tuple[int, ...]) -> list[int]:
    """From which of ``rows`` each view of the one sample is."""
    waves = {row: whole_file(dataset.manifest, row) for row in rows}
    return [
        next(row for row, wave in waves.items() if wave_has(wave, view[0].numpy()))
        for view in batch.views
    ]


def test_half_a_pair_is_replaced_by_another_of_the_label(faulty: Path) -> None:
    dataset = make_dataset(faulty, **PAIRS, **SKIP)
    for epoch in range(6):
        for draw, kept in ((Draw(epoch, 8, 9), 1), (Draw(epoch, 9, 8), 0)):
            batch = dataset[draw]
            assert isinstance(batch, Batch)
            assert {skipped.row for skipped in batch.skipped} == {8}
            found = utterances(dataset, batch, (9, 10, 11))
            assert found[kept] == 9
            assert found[1 - kept] in (10, 11)
            assert batch.rows.tolist() == [found[0]]
            assert batch.labels.tolist() == [2]


def test_the_last_of_a_label_is_its_own_partner(faulty: Path) -> None:
    for name in ("s1/00001.wav", "s0/00002.wav"):
        (faulty / "wav/id02" / name).unlink()
    dataset = make_dataset(faulty, **PAIRS, **SKIP)
    for draw in (Draw(0, 8, 11), Draw(0, 11, 9), Draw(1, 9, 10)):
        batch = dataset[draw]
        assert isinstance(batch, Batch)
        assert utterances(dataset, batch, (11,)) == [11, 11]
        assert 11 not in {skipped.row for skipped in batch.skipped}


def test_a_label_of_which_nothing_is_left_is_replaced_by_another(faulty: Path) -> None:
    shutil.rmtree(faulty / "wav/id02")
    dataset = make_dataset(faulty, **PAIRS, **SKIP)
    batch = dataset[Draw(0, 8, 9)]
    assert isinstance(batch, Batch)
    assert batch.labels.tolist() != [2]
    rows = tuple(row for row in range(32) if row % 4 and row // 4 != 2)
    first, second = utterances(dataset, batch, rows)
    assert first // 4 == second // 4


def wave_has(wave: np.ndarray, crop: np.ndarray) -> bool:
    places = np.flatnonzero(wave[: len(wave) - len(crop) + 1] == crop[0])
    return any(np.array_equal(wave[p : p + len(crop)], crop) for p in places)


def test_where_nothing_can_be_used_the_first_reason_is_given(faulty: Path) -> None:
    shutil.rmtree(faulty / "wav")
    result = make_dataset(faulty, **SKIP).__getitems__([Draw(0, 5)])
    assert isinstance(result, DataError)
    text = str(result)
    assert text.startswith(f"{faulty}/wav/id01/")
    assert ": file not found (dataset.on_error: skip, but none of 10 others can be used" in text
