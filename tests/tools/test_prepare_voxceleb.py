"""VoxCeleb in miniature: archives, conversion, lists, downloads, restart, what is refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import io
import os
import shutil
import sys
import threading
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import common  # noqa: E402
import prepare_voxceleb  # noqa: E402

from sslsv.datasets.manifest import read_manifest  # noqa: E402
from sslsv.evaluations.trials import read_trials  # noqa: E402

SECRET = "s3cret/pa55 word"


def make_wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800, np.int16), 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


WAV = make_wav()
DEV1 = [f"id{s}/vid-_{s}/{u:05d}" for s in (10001, 11251) for u in (1, 2)]
TEST1 = ["id10270/x6uYqmx31kE/00001", "id10309/0cYFdtyWVds/00005"]
DEV2 = [f"id{s}/21Uxsk56VDQ/{u:05d}" for s in ("00012", "09272") for u in (1, 2, 3)]
LINES = [
    "1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav",
    "0 id10309/0cYFdtyWVds/00005.wav id10296/Y-qKARMSO7k/00001.wav",
]
TRIALS = "".join(line.replace(" id", " voxceleb1/id") + "\n" for line in LINES)
CSV1 = "File,Speaker\n" + "".join(f"voxceleb1/{u}.wav,{u[:7]}\n" for u in DEV1)
CSV2 = "File,Speaker\n" + "".join(f"voxceleb2/{u}.wav,{u[:7]}\n" for u in DEV2)
LISTS = {
    **{f"voxceleb1_test_{x}": TRIALS for x in "OEH"},
    **{f"voxceleb1_test_{x}_cleaned": TRIALS for x in "OEH"},
    "voxsrc2021_val": TRIALS,
}

FFMPEG = """#!{python} -I
import sys, wave
source, target = sys.argv[sys.argv.index("-i") + 1], sys.argv[-1]
data = open(source, "rb").read()
if not data.startswith(b"m4a"):
    sys.exit("header\\nInvalid data found when processing input")
with wave.open(target, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2)
    file.setframerate(int(sys.argv[sys.argv.index("-ar") + 1]))
    file.writeframes(data * 2)
"""


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The counts of the miniature, a stand-in for ffmpeg, one password, no waiting."""
    corpora = {}
    files = {"vox1_dev_wav.zip": 4, "vox1_test_wav.zip": 2, "vox2_dev_aac.zip": 6}
    for name, corpus in prepare_voxceleb.CORPORA.items():
        archives = tuple(dataclasses.replace(a, files=files[a.name]) for a in corpus.archives)
        corpora[name] = dataclasses.replace(corpus, archives=archives, train_speakers=2)
    monkeypatch.setattr(prepare_voxceleb, "CORPORA", corpora)
    trials = {k: (address, 2) for k, (address, _) in prepare_voxceleb.TRIALS.items()}
    monkeypatch.setattr(prepare_voxceleb, "TRIALS", trials)
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("VOXCELEB_PASSWORD", SECRET)
    monkeypatch.setattr(common, "ATTEMPTS", 1)
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)


def packed(prefix: str, utterances: list[str], suffix: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for utterance in utterances:
            data = WAV if suffix == "wav" else b"m4a" + utterance.encode()
            archive.writestr(f"{prefix}/{utterance}.{suffix}", data)
        archive.writestr(f"{prefix}/read me.txt", b"not audio")
    return file.getvalue()


def published() -> dict[str, bytes]:
    """The files of the corpora as they are published: parts and lists."""
    lists = "".join(f"{line}\n" for line in LINES).encode()
    files = {Path(path).name: lists for path, _ in prepare_voxceleb.TRIALS.values()}
    files["vox1_test_wav.zip"] = packed("wav", TEST1, "wav")
    for name, data, letters in (
        ("vox1_dev_wav", packed("wav", DEV1, "wav"), "abcd"),
        ("vox2_dev_aac", packed("dev/aac", DEV2, "m4a"), "abcdefgh"),
    ):
        size = -(-len(data) // len(letters))
        for index, letter in enumerate(letters):
            files[f"{name}_parta{letter}"] = data[index * size : (index + 1) * size]
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def audio() -> set[str]:
    voxceleb1 = {f"voxceleb1/{u}.wav" for u in DEV1 + TEST1}
    return voxceleb1 | {f"voxceleb2/{u}.wav" for u in DEV2}


def everything() -> set[str]:
    return audio() | {"voxceleb1_train.csv", "voxceleb2_train.csv", *LISTS}


def run(out: Path, *options: str | Path, workers: int = 1) -> int:
    return prepare_voxceleb.main([str(out), f"--workers={workers}", *map(str, options)])


def check(out: Path) -> None:
    assert tree(out) == everything()
    assert (out / "voxceleb1_train.csv").read_text() == CSV1
    assert (out / "voxceleb2_train.csv").read_text() == CSV2
    for name, text in LISTS.items():
        assert (out / name).read_text() == text
    for path in out.rglob("*.wav"):
        assert soundfile.info(path).samplerate == 16000


def test_from_parts(tmp_path: Path) -> None:
    source, out = write(tmp_path / "source", published()), tmp_path / "data"
    before = tree(source)
    assert run(out, "--from", source, "--delete_sources", workers=2) == 0
    check(out)
    assert tree(source) == before  # what the user brought stays
    assert len(read_manifest("voxceleb1_train.csv", out)) == 4
    assert len(read_trials(out / "voxceleb1_test_O")) == 2
    with wave.open(str(out / "voxceleb2" / f"{DEV2[0]}.wav")) as file:
        assert b"m4a" + DEV2[0].encode() in file.readframes(1000)


def test_from_whole_archives_and_any_folder(tmp_path: Path) -> None:
    files = {
        "a/vox1_dev_wav.zip": packed("wav", DEV1, "wav"),
        "a/vox1_test_wav.zip": packed("wav", TEST1, "wav"),
        "b/c/vox2_dev_aac.zip": packed("dev/aac", DEV2, "m4a"),
    }
    source, out = write(tmp_path / "source", files), tmp_path / "data"
    assert run(out, "--from", source, "--parts", "voxceleb1", "voxceleb2") == 0
    assert tree(out) == audio() | {"voxceleb1_train.csv", "voxceleb2_train.csv"}


@pytest.mark.parametrize("suffix", ["m4a", "wav"])
def test_from_unpacked(tmp_path: Path, suffix: str) -> None:
    files = {f"vox1/dev/wav/{u}.wav": WAV for u in DEV1}
    files |= {f"vox1/test/wav/{u}.wav": WAV for u in TEST1}
    files |= {f"vox2/dev/aac/{u}.{suffix}": WAV if suffix == "wav" else b"m4a" for u in DEV2}
    files["vox2/test/aac/id00017/5MkXgwdrmJw/00001.m4a"] = b"m4a"  # not used
    files |= {f"lists/{n}": d for n, d in published().items() if n.endswith(".txt")}
    source, out = write(tmp_path / "source", files), tmp_path / "data"
    assert run(out, "--from", source) == 0
    check(out)
    assert tree(source) == set(files)


def test_in_place(tmp_path: Path) -> None:
    """DATA_DIR has the audio already: the lists are written, nothing else happens."""
    out = write(tmp_path / "data", dict.fromkeys(audio(), WAV))
    assert run(out, "--parts", "voxceleb1", "voxceleb2") == 0
    assert tree(out) == audio() | {"voxceleb1_train.csv", "voxceleb2_train.csv"}
    assert run(out, "--from", out, "--parts", "voxceleb1", "voxceleb2") == 0
    assert (out / "voxceleb1_train.csv").read_text() == CSV1


def test_m4a_beside_wav(tmp_path: Path) -> None:
    """A folder converted in part, m4a and wav side by side."""
    files = {f"voxceleb2/{u}.m4a": b"m4a" for u in DEV2}
    out = write(tmp_path / "data", files | {f"voxceleb2/{DEV2[0]}.wav": WAV})
    assert run(out, "--from", out, "--parts", "voxceleb2") == 0
    assert (out / f"voxceleb2/{DEV2[0]}.wav").read_bytes() == WAV
    assert (out / "voxceleb2_train.csv").read_text() == CSV2


def test_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at points all along the way, it ends the same."""
    source, out = write(tmp_path / "source", published()), tmp_path / "data"
    real, allowed, starts = os.replace, [0], 0

    def replace(old: Path, new: Path) -> None:
        if allowed[0] == 0:
            raise KeyboardInterrupt
        allowed[0] -= 1
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    while True:
        allowed[0], starts = 3 + starts, starts + 1  # lists are written each time
        code = run(out, "--from", source)
        for name in tree(out):
            assert name in everything() or "/voxceleb2_m4a/" in name  # under its name: whole
            assert not name.endswith(".wav") or soundfile.info(out / name).samplerate == 16000
        if code == 0:
            break
        assert code == 130
        assert starts < 20
    assert starts > 5
    check(out)


def test_killed_ffmpeg_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = {f"aac/{u}.m4a": b"m4a" for u in DEV2} | {f"aac/{DEV2[1]}.m4a": b"broken"}
    source, out = write(tmp_path / "source", files), tmp_path / "data"
    assert run(out, "--from", source, "--parts", "voxceleb2") == 2
    error = capsys.readouterr().err
    assert f"{DEV2[1]}.m4a: ffmpeg cannot convert it (Invalid data found" in error
    assert tree(out) == {f"voxceleb2/{DEV2[0]}.wav"}


def test_no_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, out = write(tmp_path / "source", published()), tmp_path / "data"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert run(out, "--from", source) == 2
    captured = capsys.readouterr()
    assert ": error: ffmpeg is not installed" in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()  # checked before any work
    assert run(out, "--from", source, "--parts", "voxceleb1", "trials") == 0


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on PATH")
def test_real_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / "ffmpeg").unlink()
    source, out = tmp_path / "source", tmp_path / "data"
    for utterance in DEV2:
        path = source / f"{utterance}.m4a"
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = "sine=frequency=440:duration=1:sample_rate=44100"
        os.spawnlp(
            os.P_WAIT, "ffmpeg", "ffmpeg", "-v", "error", "-f", "lavfi", "-i", tone, str(path)
        )
    assert run(out, "--from", source, "--parts", "voxceleb2") == 0
    for path in out.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert abs(info.duration - 1) < 0.1


# Counts and trials -------------------------------------------------------------------------------


def test_wrong_counts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = write(tmp_path / "data", {f"voxceleb1/{u}.wav": WAV for u in DEV1[1:] + TEST1})
    options = (out, "--parts", "voxceleb1")
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert "voxceleb1: files: 5 found, 6 expected (--allow_incomplete" in error
    assert not (out / "voxceleb1_train.csv").exists()
    assert run(*options, "--allow_incomplete") == 0
    assert capsys.readouterr().err.count("warning: voxceleb1: ") == 2
    rows = CSV1.splitlines()
    assert (out / "voxceleb1_train.csv").read_text().splitlines() == [rows[0], *rows[2:]]


def test_the_published_counts() -> None:
    """Independent of the miniature: dev and test of VoxCeleb1 make 153,516 files."""
    assert prepare_voxceleb.VOX1_DEV.files + prepare_voxceleb.VOX1_TEST.files == 153_516
    assert len(prepare_voxceleb.TEST_O) == 40
    archives = (prepare_voxceleb.VOX1_DEV, prepare_voxceleb.VOX2_DEV, prepare_voxceleb.VOX1_TEST)
    md5s = [md5 for archive in archives for md5 in archive.parts.values()]
    assert len(set(md5s)) == 13
    assert all(len(md5) == 32 for md5 in md5s)


def test_nothing_to_prepare(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "data") == 2
    assert "voxceleb1: no audio; give --from DIR" in capsys.readouterr().err


def test_a_part_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = published()
    del files["vox1_dev_wav_partab"], files["vox1_dev_wav_partad"]
    source = write(tmp_path / "source", files)
    assert run(tmp_path / "data", "--from", source) == 2
    error = capsys.readouterr().err
    assert "vox1_dev_wav.zip: parts not found: vox1_dev_wav_partab, vox1_dev_wav_partad" in error


def test_unsafe_archive(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "../../id10001/evil-_10001/00001"
    source = write(tmp_path / "source", {"vox1_test_wav.zip": packed("wav", [*TEST1, name], "wav")})
    assert run(tmp_path / "data", "--from", source, "--parts", "voxceleb1") == 2
    assert "unsafe member" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LINES[0]}\n2 {LINES[0][2:]}\n", "veri_test.txt line 2: not a trial"),
        (f"{LINES[0]} more\n", "veri_test.txt line 1: not a trial"),
        ("1 id10270/a.wav id10270/b.wav\n", "veri_test.txt line 1: not a trial"),
        ("\n", "veri_test.txt: no trials in it"),
        (f"{LINES[0]}\n", "veri_test.txt: trials: 1 found, 2 expected"),
    ],
)
def test_bad_trials(tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str) -> None:
    source = write(tmp_path / "source", {"veri_test.txt": text.encode()})
    assert run(tmp_path / "data", "--from", source, "--parts", "trials") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("prefix", ["", "voxceleb1/", "wav/"])
def test_prefixes_of_trials(tmp_path: Path, prefix: str) -> None:
    lines = "".join(line.replace(" id", f" {prefix}id") + "\r\n" for line in LINES)
    path = tmp_path / "list.txt"
    path.write_bytes(lines.encode())
    assert "".join(f"{line}\n" for line in prepare_voxceleb.read_trials(path)) == TRIALS


# Downloads ---------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Archives for who has the password, by Basic authentication or in the query; lists for all."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        name = query.get("file", Path(address.path).name)
        self.asked.append(name)
        expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        known = self.headers.get("Authorization") == expected or query.get("key") == SECRET
        if not known and not name.endswith(".txt"):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="VoxCeleb"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.files[name]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:])


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    handler = type("Own", (Handler,), {"files": published(), "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def md5_list(folder: Path) -> Path:
    rows = (f"{hashlib.md5(d).hexdigest()}  {n}\n" for n, d in published().items())
    (folder / "md5").write_text("".join(rows))
    return folder / "md5"


@pytest.mark.parametrize("key_in_query", [True, False])
def test_download(
    server: http.server.HTTPServer, tmp_path: Path, capfd: pytest.CaptureFixture, key_in_query: bool
) -> None:
    base, out = f"http://127.0.0.1:{server.server_port}", tmp_path / "data"
    access = ["--url", f"{base}/vox1a/", "--user", "me"]
    if key_in_query:
        access = ["--url", base + "/download?key={password}&file={file}"]
    options = (*access, "--lists_url", base, "--md5", md5_list(tmp_path))
    part = published()["vox1_dev_wav_partaa"][:10]
    write(out / "archives", {"vox1_dev_wav_partaa.part": part})  # of an earlier run
    assert run(out, *options) == 0
    archives = {f"archives/{name}" for name in published()}
    assert tree(out) == everything() | archives
    shown = "".join(capfd.readouterr())
    for secret in (SECRET, "s3cret", base64.b64encode(f"me:{SECRET}".encode()).decode()):
        assert secret not in shown
        assert all(secret.encode() not in p.read_bytes() for p in out.rglob("*") if p.is_file())
    asked = len(server.RequestHandlerClass.asked)
    assert run(out, *options, "--delete_sources") == 0
    assert len(server.RequestHandlerClass.asked) == asked


def test_delete_sources(server: http.server.HTTPServer, tmp_path: Path) -> None:
    base, out = f"http://127.0.0.1:{server.server_port}", tmp_path / "data"
    options = ["--url", base, "--user", "me", "--lists_url", base, "--md5", md5_list(tmp_path)]
    assert run(out, *options, "--delete_sources", "--downloads", tmp_path / "down") == 0
    check(out)
    assert all(name.endswith(".txt") for name in tree(tmp_path / "down"))


def test_checksum_mismatch(
    server: http.server.HTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base, out = f"http://127.0.0.1:{server.server_port}", tmp_path / "data"
    assert run(out, "--url", base, "--user", "me") == 2  # the miniature is not the real corpus
    error = capsys.readouterr().err.splitlines()[-1]
    assert "vox1_dev_wav_partaa: its md5 is" in error
    assert "e395d020928bc15670b570a21695ed96 expected" in error
    assert tree(tmp_path) == {"bin/ffmpeg"}


@pytest.mark.parametrize("access", [["--user", "me"], ["--url", "{base}/?key={{password}}"], []])
def test_wrong_password(
    server: http.server.HTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    access: list[str],
) -> None:
    monkeypatch.setenv("VOXCELEB_PASSWORD", "wr0ng")
    base = f"http://127.0.0.1:{server.server_port}"
    options = [option.format(base=base) for option in access]
    assert run(tmp_path / "data", "--url", f"{base}/vox1a", *options) == 2
    shown = "".join(capfd.readouterr())
    assert "HTTP 401 Unauthorized; check the user and password" in shown
    assert "wr0ng" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--user", "me"], "--user me: of no use without --url"),
        (["--url", "http://h/{password}/{file}"], "{password} has to be in the query"),
        (["--url", "h/vox", "--user", "me"], "must look like https://host/path"),
        (["--md5", "no-such-list"], "--md5 no-such-list: not readable"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert run(tmp_path / "data", *options) == 2
    assert message in capsys.readouterr().err


def test_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("VOXCELEB_PASSWORD")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(tmp_path / "data", "--url", "http://127.0.0.1:9", "--user", "me") == 2
    assert "set the environment variable VOXCELEB_PASSWORD" in capsys.readouterr().err


def test_lists_cannot_be_had(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--parts", "trials", "--lists_url", "http://127.0.0.1:9"]
    assert run(tmp_path / "data", *options) == 2
    assert "or put veri_test.txt into the folder of --from" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        prepare_voxceleb.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "Prepare VoxCeleb1 and VoxCeleb2" in text
    assert "(default: https://www.robots.ox.ac.uk" in " ".join(text.split())
