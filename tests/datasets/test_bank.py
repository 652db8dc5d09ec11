"""Banks: the same sounds as in the files, built once, and again whenever the files differ."""

import errno
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from sslsv import audio
from sslsv.datasets import bank as bank_module
from sslsv.datasets.bank import Bank, Kind, open_bank
from sslsv.errors import DataError, UserError

LENGTHS = (900, 7100, 20, 16000)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for i, length in enumerate(LENGTHS):
        path = tmp_path / "data" / "sounds" / f"part{i % 2}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, np.random.default_rng(i).uniform(-1, 1, length))
    return tmp_path / "data"


def open_sounds(base: Path, kind: Kind = "noise", resample: bool = False) -> Bank:
    return open_bank(base, "sounds", "*/*.wav", kind, 16000, resample)


def packed(bank: Bank) -> list[np.ndarray]:
    return [bank[i].copy() for i in range(len(bank))]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    names: list[str] = []
    read = audio.read

    def spy(path: str, *arguments: Any) -> np.ndarray:
        names.append(os.path.basename(path))
        return read(path, *arguments)

    monkeypatch.setattr(audio, "read", spy)
    return names


# -------------------------------------------------------------------------------- what is in it


def test_noises_are_the_samples_of_the_sorted_files(base: Path) -> None:
    bank = open_sounds(base)
    assert bank.files() == sorted(str(path) for path in base.glob("sounds/*/*.wav"))
    assert bank.lengths.tolist() == [900, 20, 7100, 16000]
    for path, sound in zip(bank.files(), packed(bank), strict=True):
        assert sound.dtype == np.int16
        np.testing.assert_array_equal(sound, sf.read(path, dtype="int16")[0])


def test_responses_have_unit_energy_as_a_whole(base: Path) -> None:
    bank = open_sounds(base, "rir")
    for path, rir in zip(bank.files(), packed(bank), strict=True):
        assert rir.dtype == np.float32
        assert np.sum(rir.astype(np.float64) ** 2) == pytest.approx(1, abs=1e-5)
        wave = sf.read(path)[0]
        np.testing.assert_allclose(rir * np.sqrt(np.sum(wave**2)), wave, atol=1e-5)


def test_audio_that_is_not_16_bit_is_rounded_and_clipped(base: Path) -> None:
    path = base / "sounds" / "part0" / "0.wav"
    wave = np.array([0.5, -1.5, 1.5, 1.4 / 32768, -1.6 / 32768])
    sf.write(path, wave, 16000, subtype="FLOAT")
    assert open_sounds(base)[0].tolist() == [16384, -32768, 32767, 1, -2]


@pytest.mark.parametrize("offset", [0.0, 0.3, float(np.nextafter(1, 0))])
@pytest.mark.parametrize("frames", [5, 20, 7000, 16000, 40000])
def test_crops(base: Path, frames: int, offset: float) -> None:
    bank = open_sounds(base)
    for index, path in enumerate(bank.files()):
        whole = sf.read(path, dtype="int16")[0]
        start = int(offset * (max(len(whole) - frames, 0) + 1))
        out = np.zeros(frames, np.int16)
        bank.crop(index, offset, out)
        np.testing.assert_array_equal(out, whole[np.arange(start, start + frames) % len(whole)])


def test_a_bank_is_mapped_not_sent(base: Path) -> None:
    bank = open_sounds(base)
    sent = pickle.dumps(bank)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again.files() == bank.files()
    for a, b in zip(packed(again), packed(bank), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="read-only"):
        bank[0][0] = 1


# ------------------------------------------------------------------------------ when it is built


def test_it_is_built_once(base: Path, decoded: list[str]) -> None:
    open_sounds(base)
    assert sorted(decoded) == ["0.wav", "1.wav", "2.wav", "3.wav"]
    open_sounds(base)
    assert len(decoded) == 4


def add(folder: Path) -> None:
    audio.write(folder / "part0" / "00.wav", np.full(50, 0.25))


def remove(folder: Path) -> None:
    (folder / "part0" / "0.wav").unlink()


def rename(folder: Path) -> None:
    (folder / "part0" / "0.wav").rename(folder / "part1" / "9.wav")


def rewrite(folder: Path) -> None:
    """The same size and another time of change."""
    path = folder / "part0" / "0.wav"
    before = path.stat()
    audio.write(path, np.random.default_rng(5).uniform(-1, 1, LENGTHS[0]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


def lengthen(folder: Path) -> None:
    """Another size and the same time of change."""
    path = folder / "part0" / "0.wav"
    before = path.stat()
    audio.write(path, np.full(901, 0.5))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [add, remove, rename, rewrite, lengthen])
def test_it_is_built_again_when_files_change(base: Path, change: Any) -> None:
    old = open_sounds(base)
    before = packed(old)
    change(base / "sounds")
    bank = open_sounds(base)
    assert bank.files() == sorted(str(path) for path in base.glob("sounds/*/*.wav"))
    for path, sound in zip(bank.files(), packed(bank), strict=True):
        np.testing.assert_array_equal(sound, sf.read(path, dtype="int16")[0])
    # The earlier bank is gone from the disk, and still there for who has it open.
    assert len(list((base / ".sslsv").glob("sounds-*"))) == 1
    for a, b in zip(packed(old), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["samples.bin", "index.npz"])
@pytest.mark.parametrize("damage", ["shorter", "empty", "gone"])
def test_a_damaged_bank_is_built_again(
    base: Path, decoded: list[str], name: str, damage: str
) -> None:
    bank = open_sounds(base)
    before = packed(bank)
    path = bank.path / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 100 if damage == "shorter" else 0])
    for a, b in zip(packed(open_sounds(base)), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(decoded) == 8


def test_what_a_killed_process_left_is_removed(base: Path) -> None:
    left = base / ".sslsv" / ".sounds-0123456789abcdef.1.tmp"
    left.mkdir(parents=True)
    bank = open_sounds(base)
    assert sorted(path.name for path in bank.path.parent.iterdir()) == sorted(
        ["sounds.lock", bank.path.name]
    )


def build(base: Path, made: Any, start: Any) -> None:
    start.wait()
    read = audio.read

    def spy(*arguments: Any) -> np.ndarray:
        with made.get_lock():
            made.value += 1
        return read(*arguments)

    audio.read = spy
    assert len(open_sounds(base)) == len(LENGTHS)


def test_processes_that_start_together_build_it_once(base: Path) -> None:
    context = multiprocessing.get_context("fork")
    made, start = context.Value("i", 0), context.Event()
    processes = [context.Process(target=build, args=(base, made, start)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * 4
    assert made.value == len(LENGTHS)


# ---------------------------------------------------------------------------- where it is written


@pytest.fixture
def read_only(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The data folder on a disk that cannot be written to; gives the user's cache."""
    mkdir = Path.mkdir

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        if base in self.parents:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_read_only_folder_has_its_bank_in_the_cache(
    base: Path, read_only: Path, decoded: list[str]
) -> None:
    bank = open_sounds(base)
    assert read_only / "sslsv" in bank.path.parents
    assert not (base / ".sslsv").exists()
    assert open_sounds(base).path == bank.path
    assert len(decoded) == 4


def test_a_folder_without_write_permission_stays_as_it_is(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base.chmod(0o555)  # root could write all the same
    try:
        bank = open_sounds(base)
    finally:
        base.chmod(0o755)
    assert tmp_path / "cache" in bank.path.parents
    assert not (base / ".sslsv").exists()


def test_two_folders_do_not_share_a_place_in_the_cache(base: Path, read_only: Path) -> None:
    shutil.copytree(base, base.parent / "other")
    places = {bank_module._cache(base), bank_module._cache(base.parent / "other")}
    assert len(places) == 2


def test_a_bank_in_a_read_only_folder_is_used(base: Path, read_only: Path) -> None:
    place = base / ".sslsv"
    bank = open_sounds(base)  # in the cache
    os.makedirs(place)
    shutil.move(bank.path, place / bank.path.name)
    assert open_sounds(base).path.parent == place


def test_a_full_disk_is_one_sentence(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as error:
        open_sounds(base)
    assert str(error.value) == (
        f"{base}/.sslsv: the bank of {base}/sounds cannot be written (No space left on device); "
        "it takes about 0.0 GB"
    )
    assert [path.name for path in (base / ".sslsv").iterdir()] == ["sounds.lock"]


# ------------------------------------------------------------------------------- unusable sounds


def test_a_file_at_another_rate_is_resampled_only_if_asked(base: Path) -> None:
    path = base / "sounds" / "part0" / "0.wav"
    audio.write(path, 0.5 * np.sin(np.arange(400) / 20), 8000)
    with pytest.raises(DataError, match="the sample rate is 8000 Hz where 16000") as error:
        open_sounds(base)
    assert str(error.value).startswith(f"{path}: ")
    bank = open_sounds(base, resample=True)
    assert bank.lengths[0] == 800
    expected = np.rint(audio.read(path, 16000, True) * 32768)
    np.testing.assert_array_equal(bank[0], expected)
    with pytest.raises(DataError, match="the sample rate is 8000 Hz where 16000"):
        open_sounds(base)


def test_a_silent_response_is_refused_and_silent_noise_is_not(base: Path) -> None:
    audio.write(base / "sounds" / "part1" / "silent.wav", np.zeros(100))
    open_sounds(base, "noise")
    with pytest.raises(DataError, match=r"silent\.wav: the impulse response is silent; remove"):
        open_sounds(base, "rir")


def test_a_damaged_file_is_named(base: Path) -> None:
    path = base / "sounds" / "part1" / "bad.wav"
    path.write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"part1/bad\.wav: cannot be read as audio"):
        open_sounds(base)
    assert [path.name for path in (base / ".sslsv").iterdir()] == ["sounds.lock"]


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sounds: no \*/\*\.wav found here"):
        open_sounds(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_with_special_characters(base: Path) -> None:
    odd = base.parent / "data[1]* é"
    shutil.copytree(base, odd)
    bank = open_sounds(odd)
    assert bank.files() == sorted(bank.files())
    assert len(bank) == len(LENGTHS)
