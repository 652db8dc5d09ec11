"""Files to embeddings: the same as one by one, however the work is cut up."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed, nn

from sslsv import audio
from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import DataError
from sslsv.evaluations import embeddings
from sslsv.evaluations.base import Embed, TaskConfig
from sslsv.evaluations.conditions import Condition
from sslsv.evaluations.embeddings import Extraction, bucketed, extract

CPU = torch.device("cpu")
LENGTHS = [3000, 2500, 3000, 2999, 4001, 2500, 3000, 16000, 9000]  # samples
FILES = [f"{i}.wav" for i in range(len(LENGTHS))]


def features(wave: np.ndarray) -> np.ndarray:
    """An embedding that shows any shift of the frame by one sample."""
    middle = len(wave) // 2
    return np.array([wave[0], wave[middle], wave[-1], wave.std(), np.abs(wave).max()])


def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    lengths = lengths or [waves.shape[1]] * len(waves)
    rows = zip(waves.numpy(), lengths, strict=True)
    return torch.from_numpy(np.stack([features(wave[:n]) for wave, n in rows]))


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


Seen = list[tuple[tuple[int, ...], Sequence[int] | None]]


def recorded(seen: Seen) -> Embed:
    """An ``embed`` that notes the shape and the lengths of each batch."""

    def record(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        seen.append((tuple(waves.shape), lengths))
        return embed(waves, lengths)

    return record


def test_whole_files_share_batches_of_similar_length(folder: Path) -> None:
    seen: Seen = []
    extract(recorded(seen), FILES, Extraction(base_path=folder), CPU)
    assert seen == [  # longest first: what does not fit into memory fails at once
        ((1, 16000), None),
        ((1, 9000), None),
        ((1, 4001), None),
        ((6, 3000), [3000, 3000, 3000, 2999, 2500, 2500]),
    ]
    seen.clear()
    extract(recorded(seen), FILES, Extraction(base_path=folder, batch_size=2), CPU)
    assert seen[3:] == [((2, 3000), None), ((2, 3000), [3000, 2999]), ((2, 2500), None)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_files_end_in_zeros(folder: Path, num_workers: int) -> None:
    found: list[Tensor] = []

    def keep(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        found.append(waves.clone())
        return embed(waves, lengths)

    how = Extraction(base_path=folder, num_workers=num_workers)
    extract(keep, ["0.wav", "1.wav"], how, CPU)
    (waves,) = found
    for row, name in zip(waves.numpy(), ("0.wav", "1.wav"), strict=True):
        wave = audio.read(folder / name)
        np.testing.assert_array_equal(row, np.pad(wave, (0, 3000 - len(wave))))


@given(st.lists(st.integers(1, 400_000), max_size=200), st.integers(1, 70))
def test_batches_are_bounded_and_hold_every_file_once(lengths: list[int], size: int) -> None:
    batches = bucketed(lengths, size)
    in_order = [i for batch in batches for i in batch]
    assert sorted(in_order) == list(range(len(lengths)))
    sizes = [lengths[i] for i in in_order]
    assert sizes == sorted(lengths, reverse=True)
    for batch in batches:
        padded = len(batch) * lengths[batch[0]]
        assert len(batch) <= size
        assert len(batch) == 1 or padded <= size * 64000
        assert sum(lengths[i] for i in batch) >= 0.8 * padded


@given(st.lists(st.integers(1, 400_000), min_size=2, max_size=100), st.integers(1, 70))
def test_no_batch_could_take_the_next_file(lengths: list[int], size: int) -> None:
    batches = bucketed(lengths, size)
    for batch, after in itertools.pairwise(batches):
        longest, following = lengths[batch[0]], lengths[after[0]]
        full = len(batch) == size or (len(batch) + 1) * longest > size * 64000
        assert full or following < 0.8 * longest


class Alone(Encoder):
    """Knows nothing of lengths: a mean over time, and a convolution that pads with zeros."""

    def __init__(self) -> None:
        super().__init__(EncoderConfig(type="alone", encoder_dim=8, extract_mel_features=False))
        self.conv = nn.Conv1d(1, 8, 401, padding=200)

    def forward(self, wave: Tensor) -> Tensor:
        return self.conv(wave[:, None]).relu().square().mean(dim=2)


def make_resnet() -> ResNet34:
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=24))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return encoder


@pytest.mark.parametrize("make", [make_resnet, Alone])
def test_encoders_embed_whole_files_as_one_by_one(folder: Path, make: type[Encoder]) -> None:
    encoder = make().eval()
    seen: list[int] = []

    def count(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        seen.append(len(waves))
        return encoder.embed(waves, lengths)

    found = extract(count, FILES, Extraction(base_path=folder), CPU)
    assert max(seen) == 6
    for vector, name in zip(found.astype(np.float64), FILES, strict=True):
        with torch.no_grad():
            alone = encoder(torch.from_numpy(audio.read(folder / name))[None])[0].double().numpy()
        cosine = vector @ alone / np.linalg.norm(vector) / np.linalg.norm(alone)
        assert 1 - cosine < 1e-5
    distances = 1 - found @ found.T
    assert distances[~np.eye(len(found), dtype=bool)].max() > 1e-3  # that files differ at all


def test_the_progress_bar_counts_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    updates: list[int] = []

    class Bar:
        def update(self, count: int) -> None:
            updates.append(count)

        def close(self) -> None:
            pass

    def progress_bar(*arguments: object, **more: object) -> Bar:
        asked.append(arguments[0])
        return Bar()

    monkeypatch.setattr(embeddings, "progress_bar", progress_bar)
    extract(embed, FILES, Extraction(base_path=folder), CPU)
    assert asked == [len(FILES)]
    assert updates == [1, 1, 1, 6]


def test_batches_of_frames_hold_batch_size_files(folder: Path) -> None:
    seen: Seen = []
    how = Extraction(base_path=folder, batch_size=4, num_frames=3, frame_length=2000)
    extract(recorded(seen), FILES, how, CPU)
    assert seen == [((12, 2000), None), ((12, 2000), None), ((3, 2000), None)]


@pytest.mark.parametrize(("frame_length", "expected"), [(None, 1600), (4000, 4000)])
def test_a_very_short_file_is_repeated(
    tmp_path: Path, frame_length: int | None, expected: int
) -> None:
    audio.write(tmp_path / "short.wav", np.random.default_rng(0).uniform(-1, 1, 300))
    wave = audio.read(tmp_path / "short.wav")
    seen: list[Tensor] = []

    def keep(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        seen.append(waves.clone())
        return embed(waves, lengths)

    how = Extraction(base_path=tmp_path, num_frames=2, frame_length=frame_length)
    extract(keep, ["short.wav"], how, CPU)
    for row in seen[0].numpy():
        np.testing.assert_array_equal(row, wave[np.arange(expected) % 300])


def test_audio_of_another_rate_is_converted_only_if_asked(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 / 8000 * np.arange(4000))
    audio.write(tmp_path / "8k.wav", tone, 8000)
    with pytest.raises(DataError, match=r"8k\.wav: the sample rate is 8000 Hz"):
        extract(embed, ["8k.wav"], Extraction(base_path=tmp_path), CPU)
    seen: Seen = []
    how = Extraction(base_path=tmp_path, resample=True)
    found = extract(recorded(seen), ["8k.wav"], how, CPU)
    assert seen == [((1, 8000), None)]
    expected = features(0.5 * np.sin(2 * np.pi * 440 / 16000 * np.arange(8000)))
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=0.03)


def test_half_precision_becomes_single(folder: Path) -> None:
    how = Extraction(base_path=folder)
    found = extract(lambda *batch: embed(*batch).bfloat16(), FILES, how, CPU)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_nothing_is_kept_for_a_backward_pass(folder: Path) -> None:
    weight = torch.ones(5, requires_grad=True)

    def weigh(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        result = embed(waves, lengths) * weight
        assert not result.requires_grad
        return result

    extract(weigh, FILES[:1], Extraction(base_path=folder), CPU)


# ---------------------------------------------------------------------- precision and conditions


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bf16_is_what_the_encoder_computes_in(folder: Path, precision: str) -> None:
    weight = torch.randn(1500, 6, generator=torch.Generator().manual_seed(0))

    def project(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return waves[:, :1500] @ weight

    how = Extraction(base_path=folder, precision=precision)  # type: ignore[arg-type]
    found = extract(project, FILES, how, CPU)
    assert found.dtype == np.float32
    exact = np.stack([sf.read(folder / name)[0][:1500] @ weight.numpy() for name in FILES])
    rounded = torch.from_numpy(exact).float().bfloat16().double().numpy()
    expected = rounded if precision == "bf16" else exact
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    error = np.abs(found - expected).max()
    # Eight bits: sums are rounded once at the end, after inputs that were rounded, too.
    assert error < (1e-5 if precision == "fp32" else 0.02)
    assert (error > 1e-4) == (precision == "bf16")


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_ends_with_the_extraction(folder: Path, enabled: bool) -> None:
    seen = []

    def look(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return embed(waves, lengths)

    precision = "bf16" if enabled else "fp32"
    extract(look, FILES[:1], Extraction(base_path=folder, precision=precision), CPU)  # type: ignore[arg-type]
    assert seen == [enabled]
    assert not torch.is_autocast_enabled("cpu")


class Backwards:
    """The first 2,600 samples in reverse, times a number that depends on the name."""

    version = ""

    def __call__(self, wave: np.ndarray, file: str) -> np.ndarray:
        return wave[:2600][::-1] * np.float32(1 + int(file[0]) / 10)

    def length(self, samples: int) -> int:
        return min(samples, 2600)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("num_frames", "frame_length"), [(1, None), (1, 2000), (3, 2550), (2, 4000)]
)
def test_a_condition_changes_the_whole_file_before_it_is_cut(
    folder: Path, num_frames: int, frame_length: int | None, num_workers: int
) -> None:
    def keep_level(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return torch.cat([embed(waves, lengths), torch.ones(len(waves), 1)], dim=1)

    how = Extraction(
        base_path=folder,
        num_frames=num_frames,
        frame_length=frame_length,
        batch_size=4,
        num_workers=num_workers,
        condition=Condition("backwards", (Backwards(),)),
    )
    found = extract(keep_level, FILES, how, CPU)
    for vector, name in zip(found, FILES, strict=True):
        wave = sf.read(folder / name)[0][:2600][::-1] * (1 + int(name[0]) / 10)
        if frame_length is None:
            frames = [wave]
        else:
            last = max(0, len(wave) - frame_length)
            starts = [last * k // max(1, num_frames - 1) for k in range(num_frames)]
            frames = [wave[(s + np.arange(frame_length)) % len(wave)] for s in starts]
        vectors = [np.append(features(frame), 1) for frame in frames]
        expected = np.mean([v / np.sqrt(v @ v) for v in vectors], axis=0)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_batches_are_made_of_the_lengths_under_the_condition(folder: Path) -> None:
    seen: Seen = []
    how = Extraction(base_path=folder, condition=Condition("backwards", (Backwards(),)))
    extract(recorded(seen), FILES, how, CPU)
    assert [shape for shape, _ in seen] == [(9, 2600)]


def test_a_task_and_the_dataset_say_how() -> None:
    task = TaskConfig(type="any", batch_size=3, num_frames=4, frame_length=5000, precision="bf16")
    dataset = DatasetConfig(base_path=Path("there"), num_workers=6, resample=True)
    condition = Condition("any", ())
    expected = Extraction(Path("there"), 4, 5000, 3, 6, True, "bf16", condition)
    assert Extraction.of(task, dataset, condition) == expected


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_files_whose_embedding_is_not_finite_are_named(folder: Path, value: float) -> None:
    def fail_on_3000(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        vectors = embed(waves, lengths)
        vectors[torch.tensor(lengths or [0]) == 3000, 2] = value
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
