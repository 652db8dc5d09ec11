"""What the preparation scripts share: downloads, archives, conversion, lists, counts, errors.

Everything can be killed and started again: a file has its final name only once it is whole, and
what is already there is not made again.
"""

from __future__ import annotations

import argparse
import csv
import getpass
import gzip
import hashlib
import http.client
import io
import multiprocessing.connection
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works without installing

from sslsv.errors import DataError, UserError
from sslsv.files import atomic_write

ATTEMPTS = 5  # in a row that bring no byte before a download is given up
TIMEOUT = 60  # seconds without an answer
CHUNK = 1 << 20  # bytes
NETWORK_ERRORS = (
    http.client.HTTPException,
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    ValueError,  # of an answer that makes no sense
)

Item, Result = TypeVar("Item"), TypeVar("Result")


# Command line ------------------------------------------------------------------------------------


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        named = action.default is not None and action.default is not False
        return super()._get_help_string(action) if named else action.help


def make_parser(description: str | None, source: str) -> argparse.ArgumentParser:
    """A parser with what every script takes; ``source`` says what ``--from`` may hold."""
    parser = argparse.ArgumentParser(
        description=(description or "").split("\n\n")[0],
        formatter_class=_Help,
    )
    add = parser.add_argument
    add("data_dir", type=Path, metavar="DATA_DIR", help="folder to write to")
    add("--from", dest="source", type=Path, metavar="DIR", help=f"folder with {source}")
    add("--allow_incomplete", action="store_true", help="warn where counts are not the corpus's")
    add("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser


def add_downloads(parser: argparse.ArgumentParser) -> None:
    """The options of scripts that download archives."""
    add = parser.add_argument
    add("--downloads", type=Path, metavar="DIR", help="folder for downloads (DATA_DIR/archives)")
    add("--delete_sources", action="store_true", help="delete downloads once they are unpacked")


def downloads(options: argparse.Namespace) -> Path:
    return options.downloads or options.data_dir / "archives"


def run(
    action: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse and act; return the exit code. What a user can mend is one sentence and code 2."""
    options = parser.parse_args(arguments)
    try:
        if options.workers < 1:
            raise UserError(f"--workers {options.workers}: must be at least 1")
        if options.source is not None and not options.source.is_dir():
            raise UserError(f"--from {options.source}: no such folder")
        action(options)
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or options.data_dir}: {error.strerror or error}"
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    else:
        return 0
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return 2


def require(program: str, hint: str) -> None:
    """Refuse to start without ``program``; ``hint`` says how to get it."""
    if shutil.which(program) is None:
        raise UserError(f"{program} is not installed or not on PATH: {hint}")


def verify_count(what: str, found: int, expected: int, allow_incomplete: bool = False) -> None:
    """Refuse a count that is not the corpus's, or only warn where a subset is wanted."""
    if found == expected:
        return
    message = f"{what}: {found:,} found, {expected:,} expected"
    if not allow_incomplete:
        raise DataError(f"{message} (--allow_incomplete goes on with what there is)")
    print(f"warning: {message}", file=sys.stderr)


# Lists -------------------------------------------------------------------------------------------


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_write(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


# Work in parallel --------------------------------------------------------------------------------


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> list[Result]:
    """``function`` of each item, in order, with a progress bar; the first error ends it.

    ``function`` has to be one that processes can be sent: of a module, or a partial of one.
    """
    bar = {"total": len(items), "desc": title, "disable": not items}
    if workers == 1 or len(items) < 2:
        return list(tqdm(map(function, items), **bar))
    chunk = max(1, min(32, len(items) // (8 * workers)))
    fresh = multiprocessing.get_context("spawn")  # a fork hangs where torch or others have threads
    with ProcessPoolExecutor(min(workers, len(items)), fresh, _start_worker) as pool:
        try:
            return list(tqdm(pool.map(function, items, chunksize=chunk), **bar))
        except BrokenProcessPool:
            raise UserError(f"{title}: a process was killed; try fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it: a restart would work beside this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place once the block ends without an error.

    Unlike ``atomic_write`` it does not wait for the disk: it is for very many files, which a
    restart checks by their size. A kill may leave the hidden temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below ``folder``, in order, links to folders followed; hidden ones left out."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def place(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``: a hard link, or a symbolic one."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    with whole(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # on another disk, or someone else's file
            temporary.symlink_to(source.resolve())


def to_wav(source: Path, target: Path) -> None:
    """Convert any audio to 16 kHz mono 16-bit WAV with ffmpeg, unless ``target`` is there."""
    if target.is_file() and target.stat().st_size > 44:  # more than a header
        return
    with whole(target) as temporary:
        command = ["ffmpeg", "-nostdin", "-y", "-v", "error", "-threads", "1", "-i", str(source)]
        command += ["-vn", "-ac", "1", "-ar", "16000", "-acodec", "pcm_s16le"]
        command += ["-bitexact", "-f", "wav", str(temporary)]  # no tags: a plain 44-byte header
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not temporary.is_file() or temporary.stat().st_size <= 44:
            reason = (result.stderr.strip().splitlines() or ["no audio came out"])[-1]
            raise DataError(f"{source}: ffmpeg cannot convert it ({reason})")


# Downloads ---------------------------------------------------------------------------------------


def visible(url: str) -> str:
    """The address without what may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def ask_password(variable: str) -> str:
    """The password in an environment variable, or typed; it is kept nowhere."""
    if variable in os.environ:
        return os.environ[variable]
    if not sys.stdin.isatty():
        raise UserError(f"no password: set the environment variable {variable}")
    return getpass.getpass(f"Password ({variable} is not set): ")


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"md5 {path.name}")
    with open(path, "rb") as file, bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    size: int | None = None,
    user: str | None = None,
    password: str | None = None,
    headers: dict[str, str] | None = None,
) -> Path:
    """Fetch ``url`` to ``path``, going on from ``path.part`` where an earlier run stopped.

    A file of the name ``path`` has been checked already and is kept. Credentials go to the host of
    ``url`` alone, never to where it redirects, and are neither written nor shown.
    """
    if path.is_file():
        return path
    opener, url = _opener(url, user, password)
    shown = f"{path.name} from {visible(url)}"
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while failures < ATTEMPTS:
        before = part.stat().st_size if part.exists() else 0
        try:
            missing = _fetch(opener, url, part, headers or {})
            reason = "the connection closed early"
        except urllib.error.HTTPError as error:
            missing, reason = True, f"HTTP {error.code} {http.client.responses.get(error.code, '')}"
            if error.code < 500:
                hint = "user and password" if error.code in (401, 403) else "address"
                raise UserError(f"{shown}: {reason}; check the {hint}") from None
        except NETWORK_ERRORS as error:
            cause = getattr(error, "reason", error)  # only an OSError's text holds no address
            missing, reason = True, str(cause) if isinstance(cause, OSError) else "no valid answer"
        if not missing:
            break
        moved = part.exists() and part.stat().st_size > before
        failures = 0 if moved else failures + 1
        time.sleep(0 if moved else min(2**failures / 10, 10))
    else:
        raise UserError(f"{shown}: {reason}; run the same command again to go on")
    _verify_download(part, md5, size)
    os.replace(part, path)
    return path


def _opener(
    url: str, user: str | None, password: str | None
) -> tuple[urllib.request.OpenerDirector, str]:
    """An opener that knows the credentials, and the address without them."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError("an address to download from must look like https://host/path")
    user = user or (parts.username and unquote(parts.username))
    password = password or (parts.password and unquote(parts.password))
    manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if user:
        manager.add_password(None, f"{parts.scheme}://{host}/", user, password or "")
    basic, digest = urllib.request.HTTPBasicAuthHandler, urllib.request.HTTPDigestAuthHandler
    opener = urllib.request.build_opener(basic(manager), digest(manager))
    return opener, urlunsplit((parts.scheme, host, parts.path, parts.query, ""))


def _fetch(
    opener: urllib.request.OpenerDirector, url: str, part: Path, headers: dict[str, str]
) -> bool:
    """Append what ``part`` lacks; return whether something is still missing."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sslsv"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return False  # it was whole already
        part.unlink()
        return True
    with response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(
                f"{part.stem} from {visible(url)}: a web page came, not the file; "
                "check the address, user and password"
            )
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not (have and resumed and response.status == 206):
            have = 0  # the server sends all of it again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with bar, open(part, "ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            return total is not None and file.tell() < total


def _verify_download(part: Path, md5: str | None, size: int | None) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        problem = f"{found:,} bytes came, {size:,} expected"
    elif md5 is not None and (digest := md5_of(part)) != md5:
        problem = f"its md5 is {digest}, {md5} expected"
    else:
        return
    part.unlink()
    raise DataError(f"{part.stem}: {problem}; it was removed, run the same command again")


# Archives ----------------------------------------------------------------------------------------


class Parts(io.RawIOBase):
    """Files read as if they were one, as ``cat part*`` would make it, with no copy."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._files: list[BinaryIO] = [open(path, "rb") for path in paths]  # noqa: SIM115
        self._starts = [0]
        for path in paths:
            self._starts.append(self._starts[-1] + path.stat().st_size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}
        if origin[whence] + offset < 0:
            raise OSError("seek before the start")
        self._position = origin[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        for file, start, end in zip(self._files, self._starts, self._starts[1:], strict=False):
            if start <= self._position < end:
                file.seek(self._position - start)
                count = file.readinto(memoryview(buffer)[: end - self._position])  # type: ignore
                self._position += count
                return count
        return 0

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def extract(
    archive: Path | Sequence[Path],
    target: Path,
    rename: Callable[[str], str | None] = lambda name: name,
) -> int:
    """Unpack a zip or (compressed) tar below ``target``; several paths are parts of one archive.

    ``rename`` maps a member's path to the one below ``target``, or to None to leave it out. Files
    already there with their full size are kept. All members are looked at before the first is
    written: an archive with a path outside ``target``, a link or a device is refused as a whole.
    Returns the number of files that the archive has below ``target``.
    """
    paths = [archive] if isinstance(archive, Path) else list(archive)
    name = paths[0].name if len(paths) == 1 else f"{paths[0].name}..{paths[-1].name}"
    try:
        with ExitStack() as stack:
            file = stack.enter_context(io.BufferedReader(Parts(paths), CHUNK))
            members, read = _open_archive(stack, file, name)
            wanted = []  # (member, size, target)
            for path, size, member in members:
                new = rename(path)
                if new is not None:
                    _refuse_unsafe(new, name)
                    wanted.append((member, size, target / new))
            todo = [w for w in wanted if not (w[2].is_file() and w[2].stat().st_size == w[1])]
            _verify_space(target, sum(size for _, size, _ in todo), name)
            for member, _, path in tqdm(todo, desc=name, disable=not todo):
                with whole(path) as temporary, open(temporary, "wb") as out, read(member) as data:
                    shutil.copyfileobj(data, out, CHUNK)
            return len(wanted)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: damaged archive ({error}); download it again") from None


Member = tuple[str, int, Any]  # path, size in bytes, the archive's own object


def _open_archive(
    stack: ExitStack, file: BinaryIO, name: str
) -> tuple[list[Member], Callable[[Any], Any]]:
    """Return the files of an archive, all of them safe, and the function that opens one."""
    if zipfile.is_zipfile(file):
        package = stack.enter_context(zipfile.ZipFile(file))
        for info in package.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            _refuse_unsafe(info.filename, name, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if info.flag_bits & 1:
                raise DataError(f"{name}: {info.filename} is encrypted; unpack it by hand")
        files = [info for info in package.infolist() if not info.is_dir()]
        return [(info.filename, info.file_size, info) for info in files], package.open
    file.seek(0)
    try:
        tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:*"))  # noqa: SIM115
    except tarfile.ReadError:
        raise DataError(f"{name}: no zip or tar archive, or cut short; download it again") from None
    for info in tar.getmembers():
        _refuse_unsafe(info.name, name, info.isreg() or info.isdir())
    while tar.fileobj.read(CHUNK):  # to the end: only there is the checksum of a .gz
        pass
    files = [info for info in tar.getmembers() if info.isreg()]
    return [(info.name, info.size, info) for info in files], tar.extractfile


def _refuse_unsafe(path: str, archive: str, regular: bool = True) -> None:
    parts = PurePosixPath(path).parts
    outside = not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path
    if outside or re.match(r"[A-Za-z]:", path):
        raise DataError(f"{archive}: unsafe member {path!r} (outside the folder); nothing unpacked")
    if not regular:
        raise DataError(f"{archive}: unsafe member {path!r} (a link or device); nothing unpacked")


def _verify_space(target: Path, needed: int, archive: str) -> None:
    folder = next(p for p in (target, *target.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{target}: {archive} needs {needed / 1e9:.1f} GB there, {free / 1e9:.1f} GB are free"
        )
