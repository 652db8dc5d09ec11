"""Reading, probing and writing audio files."""

import math
import os
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from sslsv import audio
from sslsv.audio import AudioFile
from sslsv.errors import DataError, UserError

LENGTH = 5000


def make_wave(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Noise that 16 bits hold exactly."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-20000, 20000, length) / 32768).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audio")


@pytest.fixture(scope="module", params=["wav", "flac"])
def stored(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, np.ndarray]:
    path = folder / f"noise.{request.param}"
    audio.write(path, make_wave())
    return path, make_wave()


def test_whole_file_is_read_back_exactly(stored: tuple[Path, np.ndarray]) -> None:
    path, wave = stored
    assert audio.probe(path) == LENGTH
    result = audio.read(path)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, wave)


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, LENGTH - 1), frames=st.integers(1, 3 * LENGTH))
def test_crop_is_a_slice_that_wraps_around(
    stored: tuple[Path, np.ndarray], start: int, frames: int
) -> None:
    path, wave = stored
    with AudioFile(path) as file:
        crop = file.read(start, frames)
    np.testing.assert_array_equal(crop, wave[np.arange(start, start + frames) % LENGTH])


def test_several_crops_from_one_open_file(stored: tuple[Path, np.ndarray]) -> None:
    path, wave = stored
    with AudioFile(path) as file:
        for start in (3000, 10, 1010, 4000):
            np.testing.assert_array_equal(file.read(start, 1000), wave[start : start + 1000])


def test_a_crop_decodes_no_more_than_itself(
    stored: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    for reader in (sf.SoundFile, audio._PlainWav):

        def spy(self: Any, frames: int, read: Any = reader.read, **options: Any) -> np.ndarray:
            asked.append(frames)
            return read(self, frames, **options)

        monkeypatch.setattr(reader, "read", spy)
    with AudioFile(stored[0]) as file:
        file.read(4500, 100)
        file.read(4950, 100)
    assert asked == [100, 50, 50]


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks))


SAMPLES = make_wave(seed=8)
PCM = np.rint(SAMPLES * 32768).clip(-32768, 32767).astype("<i2").tobytes()
FORMAT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16))


class TestPlainWav:
    """Those that are read without libsndfile, and those that it must be left to."""

    @pytest.mark.parametrize(
        ("content", "plain"),
        [
            (riff(FORMAT, chunk(b"data", PCM)), True),
            (riff(FORMAT, chunk(b"LIST", b"odd"), chunk(b"data", PCM)), True),
            (riff(FORMAT, chunk(b"data", PCM), chunk(b"LIST", b"after")), True),
            (riff(FORMAT, chunk(b"LIST", b"x" * 600), chunk(b"data", PCM)), False),  # far away
            (riff(FORMAT, b"data" + b"\xff" * 4 + PCM), False),  # as a stream is written
            (riff(FORMAT, b"data" + struct.pack("<I", 2 * LENGTH + 50) + PCM), False),
        ],
    )
    def test_is_what_libsndfile_reads(self, tmp_path: Path, content: bytes, plain: bool) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(content)
        with AudioFile(path) as file:
            assert isinstance(file._file, audio._PlainWav) == plain
            assert file.length == sf.info(path).frames
            expected = sf.read(path, dtype="float32")[0]
            np.testing.assert_array_equal(file.read(7, 2000), expected[7:2007])

    @pytest.mark.parametrize(
        ("subtype", "channels"), [("PCM_24", 1), ("FLOAT", 1), ("PCM_U8", 1), ("PCM_16", 2)]
    )
    def test_other_formats_are_left_to_libsndfile(
        self, tmp_path: Path, subtype: str, channels: int
    ) -> None:
        path = tmp_path / "a.wav"
        sf.write(path, np.stack([make_wave()] * channels, axis=1), 16000, subtype=subtype)
        with AudioFile(path) as file:
            assert isinstance(file._file, sf.SoundFile)
            expected = sf.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
            np.testing.assert_allclose(file.read(0, LENGTH), expected, atol=1e-7)

    def test_a_file_that_became_shorter(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        audio.write(path, make_wave())
        with AudioFile(path) as file:
            os.truncate(path, 2000)
            with pytest.raises(DataError, match="the audio ends before the length in its header"):
                file.read(900, 200)


class TestSpeed:
    @pytest.mark.parametrize("factor", [0.9, 1.1, 1.25])
    def test_a_tone_is_shorter_and_higher(self, tmp_path: Path, factor: float) -> None:
        speed = Fraction(factor).limit_denominator(100)
        t = np.arange(16000) / 16000
        audio.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 400 * t))
        with AudioFile(tmp_path / "a.wav", speed=speed) as file:
            assert file.length == math.ceil(16000 / speed)
            wave = file.read(0, file.length)
            crop = file.read(3001, 1000)
        tone = 0.5 * np.sin(2 * np.pi * 400 * factor * np.arange(len(wave)) / 16000)
        np.testing.assert_allclose(wave[100:-100], tone[100:-100], atol=0.005)
        np.testing.assert_allclose(crop, wave[3001:4001], atol=1e-6)

    def test_it_multiplies_the_rate_of_the_file(self, tmp_path: Path) -> None:
        audio.write(tmp_path / "a.wav", make_wave(), 8000)
        with AudioFile(tmp_path / "a.wav", 16000, True, Fraction(9, 10)) as file:
            wave = file.read(0, file.length)
        expected = resample(torch.from_numpy(make_wave()), 7200, 16000).numpy()
        np.testing.assert_allclose(wave, expected[: len(wave)], atol=1e-4)


@pytest.mark.parametrize("start", [-1, LENGTH])
def test_start_outside_the_file(stored: tuple[Path, np.ndarray], start: int) -> None:
    with AudioFile(stored[0]) as file, pytest.raises(ValueError, match="start must be in"):
        file.read(start, 10)


def test_channels_are_averaged(folder: Path) -> None:
    left, right = make_wave(seed=1), make_wave(seed=2)
    path = folder / "stereo.wav"
    sf.write(path, np.stack((left, right), axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(path), (left + right) / 2, atol=1e-7)


class TestResampling:
    @pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
    def test_crop_is_a_slice_of_the_resampled_file(self, folder: Path, rate: int) -> None:
        path = folder / f"{rate}.wav"
        wave = make_wave(rate)
        audio.write(path, wave, rate)
        whole = resample(torch.from_numpy(wave), rate, 16000).numpy()
        assert audio.probe(path, resample=True) == len(whole) == 16000
        with AudioFile(path, resample=True) as file:
            for start, frames in ((0, 16000), (0, 1), (7001, 3210), (15990, 10), (123, 15000)):
                expected = whole[start : start + frames]
                np.testing.assert_allclose(file.read(start, frames), expected, atol=1e-5)
            np.testing.assert_allclose(
                file.read(15000, 3000), np.append(whole[15000:], whole[:2000]), atol=1e-5
            )

    def test_length_is_that_of_the_resampled_file(self, folder: Path) -> None:
        for length in (1, 2, 441, 1000, 1001):
            path = folder / f"odd{length}.wav"
            audio.write(path, make_wave(length), 44100)
            whole = resample(torch.from_numpy(make_wave(length)), 44100, 16000)
            assert audio.probe(path, resample=True) == len(whole)
            assert len(audio.read(path, resample=True)) == len(whole)

    def test_only_the_neighbourhood_is_decoded(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder / "long48k.wav"
        audio.write(path, make_wave(480000), 48000)
        asked: list[int] = []
        decode = AudioFile._decode

        def spy(self: AudioFile, start: int, frames: int) -> np.ndarray:
            asked.append(frames)
            return decode(self, start, frames)

        monkeypatch.setattr(AudioFile, "_decode", spy)
        with AudioFile(path, resample=True) as file:
            file.read(80000, 1000)
        assert 3000 < asked[0] < 3100

    def test_wrong_rate_is_refused_with_the_remedy(self, folder: Path) -> None:
        path = folder / "8k.wav"
        audio.write(path, make_wave(), 8000)
        with pytest.raises(DataError) as error:
            audio.probe(path)
        assert str(error.value) == (
            f"{path}: the sample rate is 8000 Hz where 16000 Hz is expected; "
            "set `dataset.resample: true` or convert the file"
        )


class TestBadFiles:
    def test_missing(self) -> None:
        with pytest.raises(DataError, match=r"^voices/none\.wav: file not found$"):
            audio.probe("voices/none.wav")

    @pytest.mark.parametrize("name", ["text.wav", "nothing.flac", "samples.raw"])
    def test_not_audio(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(b"" if name == "nothing.flac" else b"hello, this is no audio at all")
        with pytest.raises(DataError, match=r"cannot be read as audio \(.+\); convert") as error:
            audio.probe(path)
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).count(str(path)) == 1

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read as audio"):
            audio.probe(tmp_path)

    def test_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.wav"
        sf.write(path, np.zeros(0), 16000)
        with pytest.raises(DataError, match=r"empty\.wav: the audio is empty"):
            audio.probe(path)

    def test_flac_cut_short_is_found_when_decoded(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.flac"
        audio.write(path, make_wave(48000))
        path.write_bytes(path.read_bytes()[:40000])
        assert audio.probe(path) == 48000
        with pytest.raises(DataError, match=r"cut\.flac: .*; remove or re-encode the file"):
            audio.read(path)
        with AudioFile(path) as file:
            file.read(0, 1000)
            with pytest.raises(DataError, match=r"cut\.flac: .*; remove or re-encode the file"):
                file.read(40000, 1000)

    def test_stream_without_a_length(self, tmp_path: Path) -> None:
        path = tmp_path / "stream.flac"
        audio.write(path, make_wave())
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
        content[22:26] = bytes(4)
        path.write_bytes(content)
        with pytest.raises(DataError, match="the header gives no length; re-encode the file"):
            audio.probe(path)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_samples_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        path = tmp_path / "broken.wav"
        wave = make_wave()
        wave[3000] = value
        sf.write(path, wave, 16000, subtype="FLOAT")
        with AudioFile(path) as file:
            file.read(0, 3000)
            with pytest.raises(DataError, match=r"broken\.wav: there are NaN or infinite samples"):
                file.read(2500, 1000)


class TestWrite:
    def test_clips_and_stores_16_bits(self, tmp_path: Path) -> None:
        path = tmp_path / "loud.wav"
        audio.write(path, np.array([2.0, 1.0, 0.5, -1.0, -2.0]), 8000)
        assert (sf.info(path).subtype, sf.info(path).samplerate) == ("PCM_16", 8000)
        samples, _ = sf.read(path, dtype="int16")
        assert samples.tolist() == [32767, 32767, 16384, -32768, -32768]

    def test_failure_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "kept.flac"
        audio.write(path, make_wave())
        before = path.read_bytes()

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match=r"kept\.flac: cannot be written \(No space left"):
            audio.write(path, make_wave(seed=1))
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["kept.flac"]

    @pytest.mark.parametrize("name", ["a.mp3", "a.xyz", "a"])
    def test_format(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=r"name the file \.wav or \.flac"):
            audio.write(tmp_path / name, make_wave())

    def test_samples_that_are_not_finite(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.wav: not written, there are NaN"):
            audio.write(tmp_path / "a.wav", np.array([0.0, np.nan]))
        assert not os.listdir(tmp_path)

    @pytest.mark.parametrize("wave", [np.zeros((1, 5)), np.zeros(5, dtype=np.int16)])
    def test_what_is_no_wave(self, tmp_path: Path, wave: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"expected floats of shape \(T,\)"):
            audio.write(tmp_path / "a.wav", wave)


def test_real_speech() -> None:
    data = Path(os.environ.get("SSLSV_TEST_DATA", "../shared/data"))
    path = next(data.glob("*/*/*.flac"), None)
    if path is None:
        pytest.skip(f"no speech in {data}; set SSLSV_TEST_DATA to a folder with <spk>/<ses>/*.flac")
    whole = audio.read(path)
    assert len(whole) == audio.probe(path)
    assert 0.01 < np.abs(whole).max() <= 1
    with AudioFile(path) as file:
        middle = len(whole) // 2
        np.testing.assert_array_equal(file.read(middle, 1000), whole[middle : middle + 1000])


def test_torchaudio_that_does_not_fit_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # what import meets is an ImportError
    with pytest.raises(UserError, match=r"pip install torch==2\.11\.0 torchaudio==2\.11\.0"):
        audio.torchaudio()
