"""Noise and reverberation: what is drawn, and what the batched operations make of it."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslsv import audio
from sslsv.datasets.augmentation import (
    Augmentation,
    AugmentationConfig,
    Draw,
    fft_size,
    mix,
    reverberate,
)
from sslsv.errors import ConfigError, DataError

LENGTH = 4000
CATEGORIES = ("noise", "speech", "music")
FILES_PER_CATEGORY = 4
SHORT = 900  # samples of the shortest noise file


def make_wave(length: int, seed: int, level: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(length) * level).astype(np.float32)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus")
    for c, category in enumerate(CATEGORIES):
        for i in range(FILES_PER_CATEGORY):
            path = base / "musan_split" / category / f"part{i % 2}" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            audio.write(path, make_wave(SHORT if i == 0 else 7000 + 100 * i, seed=10 * c + i))
    for i, length in enumerate((300, 1600, 5000)):  # the last is longer than the frames
        path = base / "simulated_rirs" / "smallroom" / "Room001" / f"rir{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        decay = np.exp(-np.arange(length) / (length / 6), dtype=np.float32)
        audio.write(path, make_wave(length, seed=100 + i) * decay)
    return base


def make_augmentation(base_path: Path, **fields: object) -> Augmentation:
    return Augmentation(AugmentationConfig(**fields), base_path)  # type: ignore[arg-type]


def make_draws(augmentation: Augmentation, count: int, length: int = LENGTH) -> list[Draw]:
    return [augmentation.draw(np.random.default_rng([7, row]), length) for row in range(count)]


def make_batch(rows: int, length: int = LENGTH) -> torch.Tensor:
    return torch.from_numpy(make_wave(rows * length, seed=1).reshape(rows, length))


# ------------------------------------------------------------------------------------ the oracle


def power_db(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(wave**2) + 1e-4))


def augment_one(augmentation: Augmentation, wave: np.ndarray, draw: Draw) -> np.ndarray:
    """One row in float64 from the description, sharing no code with the batched form."""
    wave = wave.astype(np.float64)
    if draw.rir is not None:
        assert augmentation.rirs is not None
        rir = audio.read(augmentation.rirs.files()[draw.rir]).astype(np.float64)
        rir /= np.sqrt(np.sum(rir**2))
        wave = scipy.signal.convolve(wave, rir, mode="full")[: len(wave)]
    total = wave.copy()
    for noise in draw.noises:
        whole = audio.read(augmentation.noises[noise.category].files()[noise.file]).astype(
            np.float64
        )
        start = int(noise.offset * (max(len(whole) - len(wave), 0) + 1))
        crop = whole[np.arange(start, start + len(wave)) % len(whole)]
        total += crop * 10 ** ((power_db(wave) - power_db(crop) - noise.snr_db) / 20)
    return total


@pytest.mark.parametrize("strategy", ["reverb", "noise", "reverb|noise", "reverb+noise", "all"])
def test_batch_agrees_with_the_oracle(base_path: Path, strategy: str) -> None:
    augmentation = make_augmentation(base_path, strategy=strategy, musan_speech_num=(2, 4))
    batch = make_batch(24)
    draws = make_draws(augmentation, 24)
    before = batch.clone()
    result = augmentation(batch, draws)
    assert result.dtype == torch.float32
    assert result.shape == batch.shape
    assert torch.equal(batch, before)
    for wave, draw, row in zip(batch.numpy(), draws, result.numpy(), strict=True):
        expected = augment_one(augmentation, wave, draw)
        assert np.abs(row - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_row_does_not_depend_on_its_batch(base_path: Path) -> None:
    augmentation = make_augmentation(base_path, strategy="all", musan_noise_num=(1, 3))
    batch = make_batch(16)
    draws = make_draws(augmentation, 16)
    together = augmentation(batch, draws)
    for row in range(16):
        alone = augmentation(batch[row : row + 1], draws[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_rows_without_a_draw_stay_bit_identical(base_path: Path) -> None:
    augmentation = make_augmentation(base_path, strategy="all")
    batch = make_batch(32)
    draws = make_draws(augmentation, 32)
    result = augmentation(batch, draws)
    untouched = [row for row, draw in enumerate(draws) if draw == Draw(LENGTH)]
    assert 0 < len(untouched) < 32
    assert torch.equal(result[untouched], batch[untouched])


@pytest.mark.parametrize("fields", [{"aug_prob": 0.0}, {"enable": False}])
def test_nothing_to_do_needs_no_folders(tmp_path: Path, fields: dict[str, object]) -> None:
    augmentation = make_augmentation(tmp_path, **fields)
    batch = make_batch(8)
    assert torch.equal(augmentation(batch, make_draws(augmentation, 8)), batch)


def test_draws_of_other_frames_are_refused(base_path: Path) -> None:
    augmentation = make_augmentation(base_path)
    draws = make_draws(augmentation, 4)
    with pytest.raises(ValueError, match="4 draws do not fit a batch of 3 frames"):
        augmentation(make_batch(3), draws)
    with pytest.raises(ValueError, match="the draws are not those of frames of 4001 samples"):
        augmentation(make_batch(4, LENGTH + 1), draws)


# ------------------------------------------------------------- independence of everything else


@pytest.mark.parametrize("length", [4000, 8000, 9999])
@pytest.mark.parametrize("threads", [1, 2])
def test_neither_threads_nor_neighbours_change_a_bit(
    base_path: Path, length: int, threads: int
) -> None:
    augmentation = make_augmentation(base_path, strategy="all", musan_music_num=(1, 3))
    batch, draws = make_batch(23, length), make_draws(augmentation, 23, length)
    expected = augmentation(batch, draws)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (1, 2, 3, 5, 8, 11, 23):
            parts = [
                augmentation(batch[i : i + size], draws[i : i + size]) for i in range(0, 23, size)
            ]
            assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(augmentation(batch.flip(0), draws[::-1]).flip(0), expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_recipe_holds_copies_and_no_results(base_path: Path) -> None:
    augmentation = make_augmentation(base_path, strategy="all", musan_noise_num=(2, 2))
    draws = make_draws(augmentation, 40)
    recipe = augmentation.gather(draws, LENGTH)
    reverberated = [row for row, draw in enumerate(draws) if draw.rir is not None]
    assert recipe.rir_rows.tolist() == reverberated
    assert recipe.rirs.shape == (len(reverberated), LENGTH)  # the longest has 5000 samples
    assert recipe.rirs.dtype == torch.float32
    assert recipe.noise_rows.tolist() == [row for row, d in enumerate(draws) for _ in d.noises]
    assert recipe.snr_db.tolist() == pytest.approx([n.snr_db for d in draws for n in d.noises])
    assert recipe.noises.dtype == torch.int16
    crop, noise = recipe.noises[0], next(draw.noises[0] for draw in draws if draw.noises)
    whole = audio.read(augmentation.noises[noise.category].files()[noise.file])
    start = int(noise.offset * (max(len(whole) - LENGTH, 0) + 1))
    expected = whole[np.arange(start, start + LENGTH) % len(whole)]
    np.testing.assert_array_equal(crop.numpy() / 32768, expected)


def test_responses_have_one_length_whichever_are_drawn(base_path: Path) -> None:
    augmentation = make_augmentation(base_path)
    for length, expected in ((1000, 1000), (4000, 4000), (20000, 5000)):
        for rir in range(3):
            recipe = augmentation.gather([Draw(length, rir=rir)], length)
            assert recipe.rirs.shape == (1, expected)


# ------------------------------------------------------------------------------------- the parts


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 700),
    taps=st.integers(1, 900),
    rows=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_reverberate_is_a_convolution(length: int, taps: int, rows: int, seed: int) -> None:
    wave = make_wave(rows * length, seed).reshape(rows, length)
    rirs = make_wave(rows * taps, seed + 1).reshape(rows, taps)
    result = reverberate(torch.from_numpy(wave), torch.from_numpy(rirs)).numpy()
    for row in range(rows):
        expected = scipy.signal.convolve(wave[row].astype(np.float64), rirs[row])[:length]
        np.testing.assert_allclose(result[row], expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(snr_db=st.floats(-20, 40), level=st.floats(0.01, 1.0), seed=st.integers(0, 999))
def test_mix_scales_by_the_formula(snr_db: float, level: float, seed: int) -> None:
    wave = torch.from_numpy(make_wave(2000, seed))[None]
    noise = torch.from_numpy(make_wave(2000, seed + 1, level))[None]
    added = mix(wave, noise, torch.tensor([0]), torch.tensor([snr_db])) - wave
    gain = torch.vdot(added[0], noise[0]) / torch.vdot(noise[0], noise[0])
    reached = power_db(wave.numpy()) - power_db(noise.numpy()) - 20 * np.log10(gain.item())
    assert reached == pytest.approx(snr_db, abs=0.02)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.5])
def test_measured_snr_of_loud_audio(snr_db: float) -> None:
    wave, noise = (torch.from_numpy(make_wave(16000, seed, 0.5))[None] for seed in (1, 2))
    added = mix(wave, noise, torch.tensor([0]), torch.tensor([snr_db])) - wave
    measured = 10 * torch.log10(wave.square().mean() / added.square().mean())
    assert measured.item() == pytest.approx(snr_db, abs=0.01)


def test_mix_sums_the_noises_of_a_row_against_the_row_as_given() -> None:
    wave, noises = make_batch(2, 1000), make_batch(3, 1000).flip(0)
    snr_db = torch.tensor([0.0, 10.0, 5.0])
    result = mix(wave, noises, torch.tensor([1, 1, 0]), snr_db)
    added = [
        mix(wave, noises[k : k + 1], torch.tensor([row]), snr_db[k : k + 1]) - wave
        for k, row in enumerate((1, 1, 0))
    ]
    torch.testing.assert_close(result, wave + sum(added))


def test_silence_gives_finite_values() -> None:
    silence = torch.zeros(1, 100)
    assert torch.equal(mix(silence, silence, torch.tensor([0]), torch.tensor([0.0])), silence)


@pytest.mark.parametrize("minimum", [1, 2, 7, 31, 1000, 33601, 63999])
def test_fft_size(minimum: int) -> None:
    assert fft_size(minimum) == scipy.fft.next_fast_len(minimum, real=True)


# -------------------------------------------------------------------------------------- the draws


def test_draw_is_a_pure_function_of_the_generator(base_path: Path) -> None:
    augmentation = make_augmentation(base_path, strategy="all", musan_music_num=(1, 4))
    draws = make_draws(augmentation, 50)
    assert make_draws(augmentation, 50) == draws
    another = Augmentation(augmentation.config, base_path)
    assert make_draws(another, 50) == draws
    assert len(set(draws)) > 20


def test_draw_reads_no_file(base_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base_path, copy)
    augmentation = make_augmentation(copy)
    shutil.rmtree(copy)
    assert make_draws(augmentation, 10) == make_draws(make_augmentation(base_path), 10)


def test_augmentation_and_draws_can_be_sent_to_a_worker(base_path: Path) -> None:
    augmentation = make_augmentation(base_path)
    draws = make_draws(augmentation, 3)
    again, sent = pickle.loads(pickle.dumps((augmentation, draws)))
    assert torch.equal(again(make_batch(3), sent), augmentation(make_batch(3), draws))


@pytest.mark.parametrize(
    ("strategy", "expected"),  # chances of (reverb?, noise?)
    [
        ("reverb", {(True, False): 1}),
        ("noise", {(False, True): 1}),
        ("reverb|noise", {(True, False): 1 / 2, (False, True): 1 / 2}),
        ("reverb+noise", {(True, True): 1}),
        ("all", dict.fromkeys([(a, b) for a in (True, False) for b in (True, False)], 1 / 4)),
    ],
)
@pytest.mark.parametrize("aug_prob", [1.0, 0.6])
def test_strategy_frequencies(
    base_path: Path, strategy: str, expected: dict[tuple[bool, bool], float], aug_prob: float
) -> None:
    augmentation = make_augmentation(base_path, strategy=strategy, aug_prob=aug_prob)
    rng = np.random.default_rng(3)
    count = 3000
    seen: Counter[tuple[bool, bool]] = Counter()
    for _ in range(count):
        draw = augmentation.draw(rng, LENGTH)
        seen[draw.rir is not None, bool(draw.noises)] += 1
    chances = {outcome: aug_prob * chance for outcome, chance in expected.items()}
    chances[False, False] = chances.get((False, False), 0) + 1 - aug_prob
    assert set(seen) <= {outcome for outcome, chance in chances.items() if chance > 0}
    for outcome, chance in chances.items():
        assert abs(seen[outcome] - count * chance) <= 4 * np.sqrt(count * chance * (1 - chance))


def test_drawn_values_cover_their_ranges(base_path: Path) -> None:
    config = {f"musan_{category}_num": (1, 3) for category in CATEGORIES}
    augmentation = make_augmentation(base_path, **config)
    rng = np.random.default_rng(4)
    draws = [augmentation.draw(rng, LENGTH) for _ in range(3000)]
    assert {draw.rir for draw in draws} == {0, 1, 2}
    categories = Counter(draw.noises[0].category for draw in draws)
    assert all(
        abs(categories[category] - 1000) < 4 * np.sqrt(3000 * 2 / 9) for category in CATEGORIES
    )
    assert {len(draw.noises) for draw in draws} == {1, 2, 3}
    for draw in draws:
        assert len({(noise.category, noise.file) for noise in draw.noises}) == len(draw.noises)
        assert len({noise.category for noise in draw.noises}) == 1
    for category, (low, high) in {"noise": (0, 15), "speech": (13, 20), "music": (5, 15)}.items():
        noises = [n for draw in draws for n in draw.noises if n.category == category]
        assert {noise.file for noise in noises} == set(range(FILES_PER_CATEGORY))
        snrs = np.array([noise.snr_db for noise in noises])
        assert low <= snrs.min() < low + 0.1
        assert high - 0.1 < snrs.max() <= high
        assert abs(snrs.mean() - (low + high) / 2) < 0.5
        offsets = np.array([noise.offset for noise in noises])
        assert 0 <= offsets.min() < 0.02
        assert 0.98 < offsets.max() < 1


@settings(max_examples=40, deadline=None)
@given(
    snr=st.tuples(st.floats(-30, 60), st.floats(0, 30)),
    num=st.tuples(st.integers(1, FILES_PER_CATEGORY), st.integers(0, 3)),
    seed=st.integers(0, 2**32),
)
def test_drawn_values_stay_in_any_range(
    base_path: Path, snr: tuple[float, float], num: tuple[int, int], seed: int
) -> None:
    snr_range = (snr[0], snr[0] + snr[1])
    num_range = (num[0], min(sum(num), FILES_PER_CATEGORY))
    ranges = {f"musan_{c}_snr": snr_range for c in CATEGORIES}
    ranges |= {f"musan_{c}_num": num_range for c in CATEGORIES}
    augmentation = make_augmentation(base_path, strategy="noise", **ranges)
    draw = augmentation.draw(np.random.default_rng(seed), LENGTH)
    assert num_range[0] <= len(draw.noises) <= num_range[1]
    assert all(snr_range[0] <= noise.snr_db <= snr_range[1] for noise in draw.noises)


# ----------------------------------------------------------------------------- configuration, files


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aug_prob": 1.5}, "aug_prob: must be between 0 and 1, got 1.5"),
        ({"aug_prob": float("nan")}, "aug_prob: must be between 0 and 1, got nan"),
        ({"strategy": "noises"}, "strategy: must be one of reverb, noise, .*, got 'noises'"),
        ({"musan_noise_snr": (15, 0)}, r"musan_noise_snr: the lowest comes first, got \[15, 0\]"),
        ({"musan_music_snr": (0, float("inf"))}, "musan_music_snr: must be finite numbers"),
        ({"musan_speech_snr": (1, 2, 3)}, r"musan_speech_snr: must be \[lowest, highest\]"),
        ({"speed_perturb": [1.0, 3.0]}, "speed_perturb: must be between 0.5 and 2, got 3.0"),
        ({"musan_speech_num": (0, 2)}, r"musan_speech_num: must be at least 1, got \[0, 2\]"),
    ],
)
def test_config_is_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        AugmentationConfig(**fields)  # type: ignore[arg-type]


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        make_augmentation(tmp_path, strategy="reverb")
    assert str(error.value) == (
        f"{tmp_path / 'simulated_rirs'}: no */*/*.wav found here, which augmentation needs; "
        "put noises or responses there, or set `dataset.augmentation.enable: false`"
    )
    with pytest.raises(DataError, match=r"musan_split.noise: no \*/\*\.wav found here"):
        make_augmentation(tmp_path, strategy="noise")


def test_only_the_needed_folders_are_looked_at(base_path: Path, tmp_path: Path) -> None:
    (tmp_path / "simulated_rirs").symlink_to(base_path / "simulated_rirs")
    assert make_augmentation(tmp_path, strategy="reverb").noises == {}
    with pytest.raises(DataError, match="musan_split"):
        make_augmentation(tmp_path, strategy="all")


def test_fewer_files_than_are_mixed(base_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 files found where `.*\.musan_music_num` mixes up to 5"):
        make_augmentation(base_path, musan_music_num=(3, 5))
