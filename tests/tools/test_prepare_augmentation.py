"""MUSAN and the simulated responses in miniature: pieces, layout, counts, restart, downloads."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import common  # noqa: E402
import prepare_augmentation  # noqa: E402

RATE = 16000
SECONDS = {  # of each recording; 16.9 ends in a piece that is too short
    "noise/free-sound/noise-free-sound-0000": 3.0,
    "noise/free-sound/noise-free-sound-0001": 0.5,
    "noise/sound-bible/noise-sound-bible-0000": 8.0,
    "speech/us-gov/speech-us-gov-0000": 17.0,
    "music/fma/music-fma-0000": 16.9,
}
PIECES = {
    "noise/free-sound/noise-free-sound-0000_00000": (0, 3),
    "noise/free-sound/noise-free-sound-0001_00000": (0, 0.5),
    "noise/sound-bible/noise-sound-bible-0000_00000": (0, 8),
    "speech/us-gov/speech-us-gov-0000_00000": (0, 8),
    "speech/us-gov/speech-us-gov-0000_00008": (8, 16),
    "speech/us-gov/speech-us-gov-0000_00016": (16, 17),
    "music/fma/music-fma-0000_00000": (0, 8),
    "music/fma/music-fma-0000_00008": (8, 16),
}
RESPONSES = [
    f"{size}room/Room00{room}/Room00{room}-0000{number}.wav"
    for size in ("small", "medium", "large")
    for room in (1, 2)
    for number in (1, 2)
]
OUTPUT = {f"musan_split/{name}.wav" for name in PIECES} | {"musan_split/.complete"}
OUTPUT |= {f"simulated_rirs/{name}" for name in RESPONSES}


def ramp(seconds: float) -> np.ndarray:
    """Samples that say where they are from."""
    return np.arange(round(seconds * RATE)).astype(np.int16)


def wav(wave: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


RESPONSE = wav(np.array([9000, 100, 10], np.int16))
MUSAN = {f"musan/{name}.wav": wav(ramp(seconds)) for name, seconds in SECONDS.items()}
MUSAN |= {"musan/README": b"read me", "musan/noise/free-sound/LICENSE": b"text"}
RIRS = {f"RIRS_NOISES/simulated_rirs/{name}": RESPONSE for name in RESPONSES}
RIRS |= {
    "RIRS_NOISES/simulated_rirs/smallroom/rir_list": b"text",
    "RIRS_NOISES/real_rirs_isotropic_noises/a.wav": RESPONSE,
    "RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav": RESPONSE,
}


def archives(*more: tarfile.TarInfo) -> dict[str, bytes]:
    tar_file, zip_file = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w:gz") as archive:
        for name, data in MUSAN.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    with zipfile.ZipFile(zip_file, "w") as archive:
        for name, data in RIRS.items():
            archive.writestr(name, data)
    return {"musan.tar.gz": tar_file.getvalue(), "rirs_noises.zip": zip_file.getvalue()}


ARCHIVES = archives()


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts and checksums of the miniature, no waiting."""
    counts = {"noise": 3, "speech": 1, "music": 1}
    monkeypatch.setattr(prepare_augmentation, "MUSAN_FILES", counts)
    rooms = dict.fromkeys(prepare_augmentation.RIR_FILES, 4)
    monkeypatch.setattr(prepare_augmentation, "RIR_FILES", rooms)
    for name in ("MUSAN", "RIRS"):
        address, _ = getattr(prepare_augmentation, name)
        md5 = hashlib.md5(ARCHIVES[Path(address).name]).hexdigest()
        monkeypatch.setattr(prepare_augmentation, name, (address, md5))
    monkeypatch.setattr(common, "ATTEMPTS", 1)
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def run(out: Path, *options: str | Path, workers: int = 1) -> int:
    return prepare_augmentation.main([str(out), f"--workers={workers}", *map(str, options)])


def check(out: Path) -> None:
    assert tree(out) == OUTPUT
    for name, (start, end) in PIECES.items():
        recording = name.rpartition("_")[0]
        wave, rate = soundfile.read(out / "musan_split" / f"{name}.wav", dtype="int16")
        assert rate == RATE
        expected = ramp(SECONDS[recording])[round(start * RATE) : round(end * RATE)]
        np.testing.assert_array_equal(wave, expected)
        assert soundfile.info(out / "musan_split" / f"{name}.wav").subtype == "PCM_16"
    for name in RESPONSES:
        assert (out / "simulated_rirs" / name).read_bytes() == RESPONSE


@pytest.mark.parametrize("files", [ARCHIVES, MUSAN | RIRS], ids=["archives", "unpacked"])
@pytest.mark.parametrize("workers", [1, 2])
def test_from(tmp_path: Path, files: dict[str, bytes], workers: int) -> None:
    source, out = write(tmp_path / "source", files), tmp_path / "data"
    assert run(out, "--from", source, "--delete_sources", workers=workers) == 0
    check(out)
    assert tree(source) == set(files)  # what the user brought stays


def test_again_without_sources(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = write(tmp_path / "source", ARCHIVES), tmp_path / "data"
    assert run(out, "--from", source) == 0
    assert run(out, "--url", "http://127.0.0.1:9") == 0  # nothing is fetched
    check(out)
    (out / "musan_split" / f"{next(iter(PIECES))}.wav").unlink()
    (out / "simulated_rirs" / RESPONSES[0]).unlink()
    assert run(out, "--url", "http://127.0.0.1:9") == 2
    assert run(out, "--from", source) == 0
    check(out)


@pytest.mark.parametrize("files", [ARCHIVES, MUSAN | RIRS], ids=["archives", "unpacked"])
def test_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    source, out = write(tmp_path / "source", files), tmp_path / "data"
    real, allowed, starts = os.replace, [0], 0

    def replace(old: Path, new: Path) -> None:
        if allowed[0] == 0:
            raise KeyboardInterrupt
        allowed[0] -= 1
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    while True:
        allowed[0], starts = 3, starts + 1
        code = run(out, "--from", source)
        for path in out.rglob("*.wav"):
            assert soundfile.info(path).frames > 0  # under its name: whole
        if code == 0:
            break
        assert code == 130
        assert starts < 20
    assert starts > 5
    check(out)


def test_the_folder_itself_as_source(tmp_path: Path) -> None:
    """Pieces are not taken for recordings, nor responses copied onto themselves."""
    out = write(tmp_path / "data", ARCHIVES)
    assert run(out, "--from", out) == 0
    assert run(out, "--from", out) == 0
    assert tree(out) == OUTPUT | set(ARCHIVES)


def test_one_part(tmp_path: Path) -> None:
    source = write(tmp_path / "source", ARCHIVES)
    for part, folder in (("musan", "musan_split"), ("rirs", "simulated_rirs")):
        assert run(tmp_path / part, "--from", source, "--parts", part) == 0
        assert tree(tmp_path / part) == {name for name in OUTPUT if name.startswith(folder)}


def test_wrong_counts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = dict(list(MUSAN.items())[1:]) | dict(list(RIRS.items())[1:])
    source, out = write(tmp_path / "source", files), tmp_path / "data"
    assert run(out, "--from", source) == 2
    assert "MUSAN: files of noise: 2 found, 3 expected" in capsys.readouterr().err
    assert not out.exists()
    assert run(out, "--from", source, "--parts", "rirs") == 2
    assert "simulated_rirs: files of smallroom: 3 found, 4" in capsys.readouterr().err
    assert run(out, "--from", source, "--allow_incomplete") == 0
    assert capsys.readouterr().err.count("warning: ") == 2
    write(source, MUSAN | RIRS)  # what was incomplete can be completed
    assert run(out, "--from", source) == 0
    check(out)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no audio", "cannot be read as audio"),
        (wav(ramp(1), 8000), "16000 samples at 8000 Hz in 1 channels; MUSAN is 16000 Hz mono"),
        (wav(ramp(0)), "0 samples"),
    ],
)
def test_bad_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture, data: bytes, message: str
) -> None:
    files = MUSAN | {next(iter(MUSAN)): data}
    source = write(tmp_path / "source", files)
    assert run(tmp_path / "data", "--from", source) == 2
    error = capsys.readouterr().err
    assert message in error
    assert next(iter(MUSAN)) in error


def test_unsafe_archive(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    link = tarfile.TarInfo("musan/noise/free-sound/link-0000.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    source = write(tmp_path / "source", archives(link))
    assert run(tmp_path / "data", "--from", source) == 2
    assert "unsafe member 'musan/noise/free-sound/link-0000.wav'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "data", "--from", tmp_path) == 2
    assert "neither musan.tar.gz nor its files found" in capsys.readouterr().err


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_download(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = {"17/musan.tar.gz": ARCHIVES["musan.tar.gz"]}
    files |= {"28/rirs_noises.zip": ARCHIVES["rirs_noises.zip"]}
    root, out = write(tmp_path / "served", files), tmp_path / "data"
    handler = functools.partial(Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        assert run(out, "--url", url) == 0
        assert tree(out) == OUTPUT | {f"archives/{name}" for name in ARCHIVES}
        assert run(tmp_path / "data2", "--url", url, "--delete_sources") == 0
        check(tmp_path / "data2")
        write(root, {"17/musan.tar.gz": ARCHIVES["rirs_noises.zip"]})
        assert run(tmp_path / "data3", "--url", url) == 2
        assert "musan.tar.gz: its md5 is" in capsys.readouterr().err
        assert tree(tmp_path / "data3") == set()
    finally:
        server.shutdown()
        server.server_close()


def test_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        prepare_augmentation.main(["--help"])
    assert exit_.value.code == 0
    assert "(default: https://www.openslr.org/resources)" in " ".join(
        capsys.readouterr().out.split()
    )
