"""Files to embeddings: the same as one by one, however the work is cut up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor, distributed

from sslsv import audio
from sslsv.errors import DataError
from sslsv.evaluations.embeddings import Extraction, extract

CPU = torch.device("cpu")
LENGTHS = [3000, 2500, 3000, 2999, 4001, 2500, 3000, 16000, 9000]  # samples
FILES = [f"{i}.wav" for i in range(len(LENGTHS))]


def features(wave: np.ndarray) -> np.ndarray:
    """An embedding that shows any shift of the frame by one sample."""
    middle = len(wave) // 2
    return np.array([wave[0], wave[middle], wave[-1], wave.std(), np.abs(wave).max()])


def embed(waves: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([features(wave) for wave in waves.numpy()]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of white noise, named FILES."""
    base = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for name, length in zip(FILES, LENGTHS, strict=True):
        audio.write(base / name, rng.uniform(-0.9, 0.9, length))
    return base


def one_by_one(folder: Path, num_frames: int, frame_length: int | None) -> np.ndarray:
    """The definition, a file and a frame at a time."""
    embeddings = []
    for name in FILES:
        wave = sf.read(folder / name)[0]
        if frame_length is None:
            frames = [wave]
        else:
            last = max(0, len(wave) - frame_length)
            starts = [last * k // max(1, num_frames - 1) for k in range(num_frames)]
            around = np.arange(frame_length)
            frames = [wave[(start + around) % len(wave)] for start in starts]
        vectors = [features(frame) for frame in frames]
        embeddings.append(np.mean([v / np.sqrt(np.sum(v**2)) for v in vectors], axis=0))
    return np.array(embeddings)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (4, 0), (64, 0), (4, 2)])
@pytest.mark.parametrize(
    ("num_frames", "frame_length"),
    [(1, 2000), (5, 2000), (5, 2999), (3, 8000), (1, None), (5, None)],
)
def test_same_as_one_by_one(
    folder: Path, num_frames: int, frame_length: int | None, batch_size: int, num_workers: int
) -> None:
    how = Extraction(
        base_path=folder,
        num_frames=num_frames,
        frame_length=frame_length,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    found = extract(embed, FILES, how, CPU)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(folder, num_frames, frame_length), atol=1e-6)


def test_order_is_that_of_the_list(folder: Path) -> None:
    how = Extraction(base_path=folder, batch_size=2)
    found = extract(embed, FILES[::-1], how, CPU)
    np.testing.assert_array_equal(found[::-1], extract(embed, FILES, how, CPU))


def recorded(shapes: list[tuple[int, ...]]) -> Callable[[Tensor], Tensor]:
    """An ``embed`` that notes the shape of each batch."""

    def record(waves: Tensor) -> Tensor:
        shapes.append(tuple(waves.shape))
        return embed(waves)

    return record


def test_whole_files_share_a_batch_only_with_their_length(folder: Path) -> None:
    shapes: list[tuple[int, ...]] = []
    extract(recorded(shapes), FILES, Extraction(base_path=folder, batch_size=2), CPU)
    assert shapes == [  # longest first: what does not fit into memory fails at once
        (1, 16000),
        (1, 9000),
        (1, 4001),
        (2, 3000),
        (1, 3000),
        (1, 2999),
        (2, 2500),
    ]


def test_batches_of_frames_hold_batch_size_files(folder: Path) -> None:
    shapes: list[tuple[int, ...]] = []
    how = Extraction(base_path=folder, batch_size=4, num_frames=3, frame_length=2000)
    extract(recorded(shapes), FILES, how, CPU)
    assert shapes == [(12, 2000), (12, 2000), (3, 2000)]


@pytest.mark.parametrize(("frame_length", "expected"), [(None, 1600), (4000, 4000)])
def test_a_very_short_file_is_repeated(
    tmp_path: Path, frame_length: int | None, expected: int
) -> None:
    audio.write(tmp_path / "short.wav", np.random.default_rng(0).uniform(-1, 1, 300))
    wave = audio.read(tmp_path / "short.wav")
    seen: list[Tensor] = []

    def keep(waves: Tensor) -> Tensor:
        seen.append(waves.clone())
        return embed(waves)

    how = Extraction(base_path=tmp_path, num_frames=2, frame_length=frame_length)
    extract(keep, ["short.wav"], how, CPU)
    for row in seen[0].numpy():
        np.testing.assert_array_equal(row, wave[np.arange(expected) % 300])


def test_audio_of_another_rate_is_converted_only_if_asked(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 / 8000 * np.arange(4000))
    audio.write(tmp_path / "8k.wav", tone, 8000)
    with pytest.raises(DataError, match=r"8k\.wav: the sample rate is 8000 Hz"):
        extract(embed, ["8k.wav"], Extraction(base_path=tmp_path), CPU)
    shapes: list[tuple[int, ...]] = []
    how = Extraction(base_path=tmp_path, resample=True)
    found = extract(recorded(shapes), ["8k.wav"], how, CPU)
    assert shapes == [(1, 8000)]
    expected = features(0.5 * np.sin(2 * np.pi * 440 / 16000 * np.arange(8000)))
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=0.03)


def test_half_precision_becomes_single(folder: Path) -> None:
    how = Extraction(base_path=folder)
    found = extract(lambda waves: embed(waves).bfloat16(), FILES, how, CPU)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_nothing_is_kept_for_a_backward_pass(folder: Path) -> None:
    weight = torch.ones(5, requires_grad=True)

    def weigh(waves: Tensor) -> Tensor:
        result = embed(waves) * weight
        assert not result.requires_grad
        return result

    extract(weigh, FILES[:1], Extraction(base_path=folder), CPU)


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_files_whose_embedding_is_not_finite_are_named(folder: Path, value: float) -> None:
    def fail_on_3000(waves: Tensor) -> Tensor:
        vectors = embed(waves)
        if waves.shape[1] == 3000:
            vectors[:, 2] = value
        return vectors

    with pytest.raises(DataError) as error:
        extract(fail_on_3000, FILES, Extraction(base_path=folder), CPU)
    assert str(error.value) == "the embeddings of 3 files are not finite: 0.wav, 2.wav, 6.wav"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("frame_length", [None, 1000])
def test_unusable_audio_is_named(
    tmp_path: Path, frame_length: int | None, num_workers: int
) -> None:
    audio.write(tmp_path / "good.wav", np.full(4000, 0.1))
    sf.write(tmp_path / "bad.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    how = Extraction(base_path=tmp_path, frame_length=frame_length, num_workers=num_workers)
    with pytest.raises(DataError, match=r"^\S+/bad\.wav: there are NaN or infinite samples; .*$"):
        extract(embed, ["good.wav", "bad.wav"], how, CPU)
    with pytest.raises(DataError, match=r"^\S+/gone\.wav: file not found$"):
        extract(embed, ["good.wav", "gone.wav"], how, CPU)


# ------------------------------------------------------------------------------ several processes


def _process(rank: int, folder: Path, results: Path) -> None:
    distributed.init_process_group("gloo", f"file://{results}/meet", rank=rank, world_size=2)
    how = Extraction(base_path=folder, batch_size=2)
    np.save(results / f"all{rank}.npy", extract(embed, FILES, how, CPU))
    np.save(results / f"one{rank}.npy", extract(embed, FILES[:1], how, CPU))
    distributed.destroy_process_group()


def test_two_processes_both_get_what_one_does(folder: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (folder, tmp_path), nprocs=2)
    expected = extract(embed, FILES, Extraction(base_path=folder, batch_size=2), CPU)
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(tmp_path / f"all{rank}.npy"), expected)
        np.testing.assert_array_equal(np.load(tmp_path / f"one{rank}.npy"), expected[:1])
