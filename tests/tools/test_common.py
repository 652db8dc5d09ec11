"""Downloads, archives and the rest that the preparation scripts share, against a local server."""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.server
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

import common  # noqa: E402

from sslsv.errors import DataError, UserError  # noqa: E402

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()
SECRET = "s3cret-pa55"


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; keeps what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.ranges = True  # whether it can go on in the middle
        self.stop_after: list[int] = []  # bytes after which the next answers break off
        self.elsewhere = ""  # where /redirect leads
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        stop = self.server.stop_after.pop(0) if self.server.stop_after else len(body)
        self.wfile.write(body[:stop])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.path, dict(self.headers)))
        expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        if path == "/private" and self.headers.get("Authorization") != expected:
            return self.answer(401, WWW_Authenticate='Basic realm="corpus"')
        if path == "/missing":
            return self.answer(404)
        if path == "/page":
            return self.answer(200, b"<p>Log in", Content_Type="text/html")
        if path == "/redirect":
            return self.answer(302, Location=self.server.elsewhere)
        span = self.headers.get("Range", "")
        start = int(span[6:-1]) if span and self.server.ranges else 0
        if start >= len(CONTENT):
            return self.answer(416, Content_Range=f"bytes */{len(CONTENT)}")
        if start:
            rest = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            return self.answer(206, CONTENT[start:], Content_Range=rest)
        return self.answer(200, CONTENT)


def serve() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


server = pytest.fixture(serve, name="server")
other_server = pytest.fixture(serve, name="other_server")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "ATTEMPTS", 2)
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)


# Downloads ---------------------------------------------------------------------------------------


def test_download(server: Server, tmp_path: Path) -> None:
    path = common.download(f"{server.url}/file", tmp_path / "new" / "a.zip", md5=MD5)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.zip"]
    common.download(f"{server.url}/file", path, md5=MD5)
    assert len(server.requests) == 1  # what is there is not asked for again


def test_download_goes_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:300_000])
    assert common.download(f"{server.url}/file", tmp_path / "a", md5=MD5).read_bytes() == CONTENT
    assert server.requests[0][1]["Range"] == "bytes=300000-"


def test_download_goes_on_where_the_connection_breaks(server: Server, tmp_path: Path) -> None:
    server.stop_after = [200_000, 300_000]
    assert common.download(f"{server.url}/file", tmp_path / "a", md5=MD5).read_bytes() == CONTENT
    assert [r[1].get("Range") for r in server.requests] == [None, "bytes=200000-", "bytes=500000-"]


def test_download_that_cannot_go_on_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.part").write_bytes(b"other" * 1000)
    assert common.download(f"{server.url}/file", tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("partial", [CONTENT, CONTENT + b"too long"])
def test_download_already_whole(server: Server, tmp_path: Path, partial: bytes) -> None:
    (tmp_path / "a.part").write_bytes(partial)
    assert common.download(f"{server.url}/file", tmp_path / "a", md5=MD5).read_bytes() == CONTENT


def test_download_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.stop_after = [100_000] + [0] * 10
    with pytest.raises(UserError, match=r"a from http://127\.0\.0\.1.*again to go on"):
        common.download(f"{server.url}/file", tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.part"]
    assert (tmp_path / "a.part").stat().st_size == 100_000


@pytest.mark.parametrize("check", [{"md5": "0" * 32}, {"size": 3}])
def test_download_that_is_not_the_file(server: Server, tmp_path: Path, check: dict) -> None:
    with pytest.raises(DataError, match=r"a: .* expected; it was removed"):
        common.download(f"{server.url}/file", tmp_path / "a", **check)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "HTTP 404 Not Found; check the address"),
        ("private", "HTTP 401 Unauthorized; check the user and password"),
        ("page", "a web page came"),
    ],
)
def test_download_refused(server: Server, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        common.download(f"{server.url}/{path}?key={SECRET}", tmp_path / "a", user="me")
    assert SECRET not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/hosts", "data/a.zip", "http://", "http://[::1", ""])
def test_download_from_no_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="must look like https://"):
        common.download(url, tmp_path / "a")


def test_download_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Connection refused") as error:
        common.download(f"http://127.0.0.1:9/a?key={SECRET}", tmp_path / "a")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("inside", [True, False])
def test_credentials(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture, inside: bool
) -> None:
    if inside:
        url, given = server.url.replace("//", f"//me:{SECRET}@") + "/private", {}
    else:
        url, given = f"{server.url}/private", {"user": "me", "password": SECRET}
    (tmp_path / "a.part").write_bytes(CONTENT[:1000])
    assert common.download(url, tmp_path / "a", md5=MD5, **given).read_bytes() == CONTENT
    assert SECRET not in "".join(capfd.readouterr())


def test_credentials_stay_with_their_host(
    server: Server, other_server: Server, tmp_path: Path
) -> None:
    server.elsewhere = f"{other_server.url}/private"
    with pytest.raises(UserError, match="401"):
        common.download(
            f"{server.url}/redirect",
            tmp_path / "a",
            user="me",
            password=SECRET,
            headers={"X-Key": SECRET},
        )
    assert server.requests[0][1]["X-Key"] == SECRET
    assert SECRET not in str(other_server.requests)
    assert "Authorization" not in other_server.requests[0][1]


def test_redirect_to_what_is_no_web_address(server: Server, tmp_path: Path) -> None:
    server.elsewhere = f"file:///etc/hosts?{SECRET}"
    with pytest.raises(UserError, match="HTTP 302") as error:
        common.download(f"{server.url}/redirect", tmp_path / "a")
    assert SECRET not in str(error.value)


def test_visible() -> None:
    assert common.visible(f"https://me:{SECRET}@host:8/a/b?key={SECRET}#x") == "https://host:8/a/b"


def test_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UserError, match="environment variable SOME_PASSWORD"):
        common.ask_password("SOME_PASSWORD")
    monkeypatch.setenv("SOME_PASSWORD", SECRET)
    assert common.ask_password("SOME_PASSWORD") == SECRET


# Archives ----------------------------------------------------------------------------------------

FILES = {"wav/a/1.wav": b"one" * 9000, "wav/a/2.wav": b"", "wav/b c/3.wav": b"three"}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wav/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        folder = tarfile.TarInfo("wav")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


MAKERS = {"a.zip": make_zip, "a.tar": make_tar, "a.tar.gz": make_tar, "a.tgz": make_tar}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", MAKERS)
def test_extract(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    assert common.extract(archive, tmp_path / "out") == 3
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", MAKERS)
def test_extract_parts(tmp_path: Path, name: str) -> None:
    data = MAKERS[name](tmp_path / name).read_bytes()
    edges = [0, 10, len(data) // 2, len(data) // 2, len(data)]
    parts = [tmp_path / f"part{letter}" for letter in "abcd"]
    for part, start, end in zip(parts, edges, edges[1:], strict=False):
        part.write_bytes(data[start:end])
    common.extract(parts, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


def test_extract_renamed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip")
    pick = {"wav/a/1.wav": "1.wav", "wav/b c/3.wav": "x/3.wav"}.get
    assert common.extract(archive, tmp_path / "out", pick) == 2
    assert set(contents(tmp_path / "out")) == {"1.wav", "x/3.wav"}
    with pytest.raises(DataError, match="unsafe member"):
        common.extract(archive, tmp_path / "out", lambda name: f"../{name}")


def test_extract_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, out = make_zip(tmp_path / "a.zip"), tmp_path / "out"
    copied, copy = [], shutil.copyfileobj

    def killed(source, target, length) -> None:
        target.write(b"half")
        target.flush()
        if copied:
            raise KeyboardInterrupt
        copied.append(target.name)
        target.seek(0)
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt):
        common.extract(archive, out)
    assert contents(out) == {"wav/a/1.wav": FILES["wav/a/1.wav"]}  # nothing half written
    (out / "wav/a/2.wav").write_bytes(b"cut short before the name was right")

    def counted(source, target, length) -> None:
        copied.append(target.name)
        copy(source, target, length)

    copied.clear()
    monkeypatch.setattr(shutil, "copyfileobj", counted)
    common.extract(archive, out)
    assert contents(out) == FILES
    assert len(copied) == 2
    common.extract(archive, out)
    assert len(copied) == 2


def special(name: str, kind: bytes, aim: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, aim
    return info


@pytest.mark.parametrize("name", ["../evil", "/evil", "wav/../../evil", "C:/evil", "wav\\..\\evil"])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_members_outside_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / kind, {**FILES, name: b"evil"})
    with pytest.raises(DataError, match=r"unsafe member .*outside the folder"):
        common.extract(archive, tmp_path / "out")
    assert set(contents(tmp_path)) == {kind}  # not even the safe ones before it


@pytest.mark.parametrize(
    "member",
    [
        special("wav/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("wav/link", tarfile.SYMTYPE, "a/1.wav"),
        special("wav/link", tarfile.LNKTYPE, "wav/a/1.wav"),
        special("wav/device", tarfile.CHRTYPE),
        special("wav/pipe", tarfile.FIFOTYPE),
        special("../folder", tarfile.DIRTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}-{info.linkname}",
)
def test_members_that_are_no_files_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = make_tar(tmp_path / "a.tar", FILES, member)
    with pytest.raises(DataError, match=r"unsafe member .*nothing unpacked"):
        common.extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("wav/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(make_zip(tmp_path / "a.zip"), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="a link or device"):
        common.extract(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_archives_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    noise = np.random.default_rng(0).bytes(40_000)  # incompressible: what is changed is data
    archive = MAKERS[name](tmp_path / name, {"a": noise})
    data = bytearray(archive.read_bytes())
    if damage == "changed":
        if name == "a.tar":
            pytest.skip("a plain tar has no checksum of its data")
        data[20_000] ^= 255
    archive.write_bytes(data[: {"cut": 30_000, "changed": None, "empty": 0}[damage]])
    with pytest.raises(DataError, match="download it again"):
        common.extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"a\.zip needs 0\.0 GB there"):
        common.extract(make_zip(tmp_path / "a.zip"), tmp_path / "out")


# Files, lists, processes, command line -----------------------------------------------------------


def test_lists(tmp_path: Path) -> None:
    common.write_lines(tmp_path / "new" / "trials", ["1 a b", "0 a c"])
    assert (tmp_path / "new" / "trials").read_text() == "1 a b\n0 a c\n"
    common.write_csv(tmp_path / "a.csv", ("File", "Speaker"), [("a/1.wav", "a"), ("b, c", "b")])
    assert (tmp_path / "a.csv").read_bytes() == b'File,Speaker\na/1.wav,a\n"b, c",b\n'


def test_a_list_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    common.write_lines(tmp_path / "trials", ["old"])
    with pytest.raises(ZeroDivisionError):
        common.write_lines(tmp_path / "trials", (str(1 // n) for n in (1, 0)))
    assert contents(tmp_path) == {"trials": b"old\n"}


def test_files_below_and_place(tmp_path: Path) -> None:
    for name in ("b/2", "b/.hidden", ".cache/3", "a/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = list(common.files_below(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/1", "b/2"]
    new = tmp_path / "new" / "x"
    for _ in range(2):
        common.place(found[0], new)
    assert contents(new.parent) == {"x": b"a/1"}
    assert not new.is_symlink()


def test_place_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"a")
    for _ in range(2):
        common.place(tmp_path / "a", tmp_path / "new" / "x")
    assert contents(tmp_path / "new") == {"x": b"a"}
    assert (tmp_path / "new" / "x").readlink() == tmp_path / "a"


def square(number: int) -> int:
    if number < 0:
        raise DataError(f"{number}: negative")
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_map(workers: int) -> None:
    assert common.parallel_map(square, range(50), workers, "squares") == [n**2 for n in range(50)]
    assert common.parallel_map(square, [], workers, "squares") == []
    with pytest.raises(DataError, match="-3: negative"):
        common.parallel_map(square, [1, 2, -3, 4], workers, "squares")


def test_parallel_map_survives_no_killed_process() -> None:
    with pytest.raises(UserError, match="fewer --workers"):
        common.parallel_map(os._exit, [1, 2, 3], 2, "exits")


WAITS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from common import parallel_map
def wait(number):
    print("here", flush=True)
    time.sleep(60)
    print("still here", flush=True)
if __name__ == "__main__":
    parallel_map(wait, range(2), 2, "waits")
"""


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "waits.py", TOOLS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
    process.kill()
    assert process.stdout.read() == ""  # returns once all of them are gone
    process.wait()
    process.stdout.close()


def test_counts(capsys: pytest.CaptureFixture) -> None:
    common.verify_count("a: files", 3, 3)
    with pytest.raises(DataError, match=r"a: files: 2,000 found, 3,000 expected \(--allow_inco"):
        common.verify_count("a: files", 2000, 3000)
    common.verify_count("a: files", 2, 3, allow_incomplete=True)
    assert capsys.readouterr().err == "warning: a: files: 2 found, 3 expected\n"


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    common.require("sh", "")
    with pytest.raises(UserError, match="no-such is not installed or not on PATH: buy it"):
        common.require("no-such", "buy it")


def fail(error: BaseException):
    def action(options: argparse.Namespace) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("mend this"), 2, "error: mend this"),
        (PermissionError(13, "Permission denied", "data/x"), 2, "data/x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here"),
    ],
)
def test_run(error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture) -> None:
    parser = common.make_parser("Prepare.\n\nMore.", "archives")
    assert common.run(fail(error), parser, ["data"]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert common.run(lambda options: None, parser, ["data"]) == 0


@pytest.mark.parametrize("options", [["--workers", "0"], ["--from", "no-such-folder"]])
def test_run_refuses(options: list[str], capsys: pytest.CaptureFixture) -> None:
    parser = common.make_parser("Prepare.", "archives")
    assert common.run(fail(AssertionError()), parser, ["data", *options]) == 2
    assert f"error: {' '.join(options)}: " in capsys.readouterr().err


# Conversion --------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on PATH")
def test_to_wav(tmp_path: Path) -> None:
    wave = np.sin(np.arange(44100) / 20)
    source, target = tmp_path / "a.flac", tmp_path / "new" / "a.wav"
    soundfile.write(source, np.stack([wave, wave], axis=1) / 2, 44100)
    common.to_wav(source, target)
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert abs(info.frames - 16000) < 10
    assert target.stat().st_size == 44 + 2 * info.frames
    source.write_bytes(b"no audio")
    common.to_wav(source, target)  # it is there
    with pytest.raises(DataError, match=r"a\.flac: ffmpeg cannot convert it"):
        common.to_wav(source, tmp_path / "b.wav")
    assert set(contents(tmp_path)) == {"a.flac", "new/a.wav"}
