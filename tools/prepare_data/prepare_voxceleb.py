"""Prepare VoxCeleb1 and VoxCeleb2: audio, training lists and trials.

From a folder with the archives (whole or in parts), or with the audio already unpacked:

    python tools/prepare_data/prepare_voxceleb.py data --from ~/downloads

Or from the address that comes with your access to the corpus: a folder, to which the name of each
part is added, or an address that says where name and key go. The password (or key) is read from
the variable VOXCELEB_PASSWORD, or asked for; it is neither stored nor shown.

    python tools/prepare_data/prepare_voxceleb.py data --url https://HOST/FOLDER --user NAME
    python tools/prepare_data/prepare_voxceleb.py data \\
        --url 'https://HOST/download?key={password}&file={file}'

This writes

    DATA_DIR/voxceleb1/<speaker>/<video>/<utterance>.wav    dev and test part
    DATA_DIR/voxceleb2/<speaker>/<video>/<utterance>.wav    dev part, converted from m4a by ffmpeg
    DATA_DIR/voxceleb1_train.csv, voxceleb2_train.csv       File,Speaker
    DATA_DIR/voxceleb1_test_{O,E,H}, the same with _cleaned, voxsrc2021_val
                                                            <1|0> <enrol file> <test file>

The speakers of VoxCeleb1-O are not in voxceleb1_train.csv. (Those of E, H and VoxSRC-21 are: train
on VoxCeleb2 for these.) The test part of VoxCeleb2, a folder "test", is left out. A run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

from common import (
    DataError,
    UserError,
    add_downloads,
    ask_password,
    download,
    downloads,
    extract,
    files_below,
    make_parser,
    parallel_map,
    place,
    require,
    run,
    to_wav,
    verify_count,
    write_csv,
    write_lines,
)
from tqdm import tqdm

PASSWORD = "VOXCELEB_PASSWORD"
LISTS_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb"

# <speaker>/<video>/<utterance>, whatever is before it: wav/, dev/aac/, aac/ ...
UTTERANCE = re.compile(r"(?:^|/)(id\d{5}/[^/]+/[^/.]+)\.(wav|m4a)$")
FIRST_VOXCELEB1_ID = "id10001"  # those of VoxCeleb2 are below
TEST_O = {f"id{number}" for number in range(10270, 10310)}  # the 40 speakers of VoxCeleb1-O


@dataclass(frozen=True)
class Archive:
    """A published archive: its parts in order with their md5s, and the utterances in it."""

    name: str
    parts: dict[str, str]
    files: int
    test_o: bool = False  # whether its speakers are those of VoxCeleb1-O

    @property
    def is_m4a(self) -> bool:
        return self.name.endswith("_aac.zip")

    def complete(self, have: Iterable[str]) -> bool:
        return sum((speaker(u) in TEST_O) == self.test_o for u in have) >= self.files


@dataclass(frozen=True)
class Corpus:
    """A corpus as it is published; ``name`` is its folder below DATA_DIR."""

    name: str
    archives: tuple[Archive, ...]
    train_speakers: int

    @property
    def files(self) -> int:
        return sum(archive.files for archive in self.archives)

    @property
    def train_files(self) -> int:
        return sum(archive.files for archive in self.archives if not archive.test_o)

    def owns(self, utterance: str) -> bool:
        return (utterance >= FIRST_VOXCELEB1_ID) == (self.name == "voxceleb1")


VOX1_DEV = Archive(
    "vox1_dev_wav.zip",
    {
        "vox1_dev_wav_partaa": "e395d020928bc15670b570a21695ed96",
        "vox1_dev_wav_partab": "bbfaaccefab65d82b21903e81a8a8020",
        "vox1_dev_wav_partac": "017d579a2a96a077f40042ec33e51512",
        "vox1_dev_wav_partad": "7bb1e9f70fddc7a678fa998ea8b3ba19",
    },
    files=148_642,
)
VOX1_TEST = Archive(
    "vox1_test_wav.zip",
    {"vox1_test_wav.zip": "185fdc63c3c739954633d50379a3d102"},
    files=4_874,
    test_o=True,
)
VOX2_DEV = Archive(
    "vox2_dev_aac.zip",
    {
        "vox2_dev_aac_partaa": "da070494c573e5c0564b1d11c3b20577",
        "vox2_dev_aac_partab": "17fe6dab2b32b48abaf1676429cdd06f",
        "vox2_dev_aac_partac": "1de58e086c5edf63625af1cb6d831528",
        "vox2_dev_aac_partad": "5a043eb03e15c5a918ee6a52aad477f9",
        "vox2_dev_aac_partae": "cea401b624983e2d0b2a87fb5d59aa60",
        "vox2_dev_aac_partaf": "fc886d9ba90ab88e7880ee98effd6ae9",
        "vox2_dev_aac_partag": "d160ecc3f6ee3eed54d55349531cb42e",
        "vox2_dev_aac_partah": "6b84a81b9af72a9d9eecbb3b1f602e65",
    },
    files=1_092_009,
)
CORPORA = {
    "voxceleb1": Corpus("voxceleb1", (VOX1_DEV, VOX1_TEST), train_speakers=1_211),
    "voxceleb2": Corpus("voxceleb2", (VOX2_DEV,), train_speakers=5_994),
}

# name -> (path below the address of the lists, trials or None where no published count is known)
TRIALS = {
    "voxceleb1_test_O": ("meta/veri_test.txt", 37_720),
    "voxceleb1_test_O_cleaned": ("meta/veri_test2.txt", 37_611),
    "voxceleb1_test_H": ("meta/list_test_hard.txt", 552_536),
    "voxceleb1_test_H_cleaned": ("meta/list_test_hard2.txt", 550_894),
    "voxceleb1_test_E": ("meta/list_test_all.txt", 581_480),
    "voxceleb1_test_E_cleaned": ("meta/list_test_all2.txt", 579_818),
    "voxsrc2021_val": ("data_workshop_2021/voxsrc2021_val.txt", None),
}


def speaker(utterance: str) -> str:
    return utterance.partition("/")[0]


# Audio -------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What a folder holds: archives and lists by name, and audio by utterance."""

    named: dict[str, Path]
    audio: dict[str, Path]  # <speaker>/<video>/<utterance> -> file


def look_into(folder: Path | None) -> Found:
    """What is below ``folder``; of an utterance in both formats the wav."""
    archives = [archive for corpus in CORPORA.values() for archive in corpus.archives]
    names = {name for archive in archives for name in (archive.name, *archive.parts)}
    names |= {Path(path).name for path, _ in TRIALS.values()}
    found = Found({}, {})
    for path in files_below(folder) if folder else ():
        if path.name in names:
            found.named[path.name] = path
            continue
        match = UTTERANCE.search(path.as_posix())
        if match and match[1] < FIRST_VOXCELEB1_ID and "test" in path.relative_to(folder).parts:
            continue  # the test part of VoxCeleb2 is not used
        if match and (match[2] == "wav" or match[1] not in found.audio):
            found.audio[match[1]] = path
    return found


def wavs(folder: Path) -> list[str]:
    """Utterances of which ``folder`` has the wav, in order."""
    paths = (path.relative_to(folder).as_posix() for path in files_below(folder))
    return [m[1] for path in paths if (m := UTTERANCE.search(path)) and m[2] == "wav"]


class Supply:
    """Where archives come from: ``--from``, what was downloaded before, or ``--url``."""

    def __init__(self, options: argparse.Namespace, found: Found) -> None:
        self.found = found
        self.downloads = downloads(options)
        self.url: str | None = options.url
        self.user: str | None = options.user
        self.password: str | None = None
        self.md5 = read_md5(options.md5)
        if self.user and not self.url:
            raise UserError(f"--user {self.user}: of no use without --url")
        if self.url and "{password}" in self.url.partition("?")[0]:
            raise UserError("--url: {password} has to be in the query, after '?'")

    def ask(self) -> None:
        if self.user or "{password}" in (self.url or ""):
            self.password = ask_password(PASSWORD)

    def local(self, archive: Archive) -> list[Path]:
        """The parts that need no download, or the archive where it is in one piece."""
        if archive.name in self.found.named:
            return [self.found.named[archive.name]]
        return [path for part in archive.parts if (path := self._local(part))]

    def get(self, archive: Archive) -> list[Path]:
        """The archive or all of its parts; nothing where there is no place to get it from."""
        paths = self.local(archive)
        if archive.name in self.found.named or len(paths) == len(archive.parts):
            return paths
        if self.url:
            return [self._local(part) or self._download(archive, part) for part in archive.parts]
        if paths:
            missing = ", ".join(part for part in archive.parts if not self._local(part))
            raise DataError(f"{archive.name}: parts not found: {missing}")
        return []

    def discard(self, paths: list[Path]) -> None:
        """Delete what was downloaded, never what the user brought."""
        for path in paths:
            if path not in self.found.named.values():
                path.unlink()

    def _local(self, part: str) -> Path | None:
        path = self.found.named.get(part, self.downloads / part)
        return path if path.is_file() else None

    def _download(self, archive: Archive, part: str) -> Path:
        url = self.url
        if "{file}" not in url:
            split = urlsplit(url)
            url = split._replace(path=f"{split.path.rstrip('/')}/{{file}}").geturl()
        url = url.replace("{file}", part).replace("{password}", quote(self.password or "", safe=""))
        md5 = self.md5.get(part, archive.parts[part])
        path = self.downloads / part
        return download(url, path, md5=md5, user=self.user, password=self.password)


def read_md5(path: Path | None) -> dict[str, str]:
    """File names and their md5s, from a list as md5sum writes it."""
    if path is None:
        return {}
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError):
        raise UserError(f"--md5 {path}: not readable as text") from None
    if any(len(row) != 2 or not re.fullmatch(r"[0-9a-f]{32}", row[0]) for row in rows):
        raise UserError(f"--md5 {path}: each line has to be <md5> <file>")
    return {Path(name.lstrip("*")).name: md5 for md5, name in rows}


def prepare_audio(corpus: Corpus, options: argparse.Namespace) -> None:
    """Verify the counts of ``DATA_DIR/<corpus>`` and write its training list."""
    utterances = wavs(options.data_dir / corpus.name)
    if not utterances:
        raise UserError(
            f"{corpus.name}: no audio; give --from DIR with its archives or its audio, or --url"
        )
    train = [u for u in utterances if speaker(u) not in TEST_O]
    speakers = len({speaker(u) for u in train})
    for what, found, expected in (
        ("files", len(utterances), corpus.files),
        ("training files", len(train), corpus.train_files),
        ("training speakers", speakers, corpus.train_speakers),
    ):
        verify_count(f"{corpus.name}: {what}", found, expected, options.allow_incomplete)
    rows = ((f"{corpus.name}/{u}.wav", speaker(u)) for u in train)
    write_csv(options.data_dir / f"{corpus.name}_train.csv", ("File", "Speaker"), rows)
    print(f"{corpus.name}_train.csv: {len(train):,} files, {speakers:,} speakers")


def gather(corpus: Corpus, options: argparse.Namespace, supply: Supply) -> None:
    """Link, unpack and convert what there is of the corpus and not yet in its folder."""
    target = options.data_dir / corpus.name
    audio = {u: path for u, path in supply.found.audio.items() if corpus.owns(u)}
    add(audio, target, options.workers)
    for archive in corpus.archives:
        have = set(wavs(target))
        if archive.complete(have) or not (paths := supply.get(archive)):
            continue
        if archive.is_m4a:
            unpacked = supply.downloads / f"{corpus.name}_m4a"
            extract(paths, unpacked, partial(wanted, have))
            add(look_into(unpacked).audio, target, options.workers, delete=True)
            shutil.rmtree(unpacked)
        else:
            extract(paths, target, partial(wanted, have))
        if options.delete_sources:
            supply.discard(paths)


def wanted(have: Container[str], member: str) -> str | None:
    """Where a member of an archive goes; None where it is no audio or not needed any more."""
    match = UTTERANCE.search(member)
    return None if match is None or match[1] in have else f"{match[1]}.{match[2]}"


def add(audio: dict[str, Path], target: Path, workers: int, delete: bool = False) -> None:
    """Link or convert to ``target`` what it lacks; ``delete`` what has been converted."""
    have = set(wavs(target))
    jobs = [(path, target / f"{u}.wav") for u, path in audio.items() if u not in have]
    m4a = [job for job in jobs if job[0].suffix == ".m4a"]
    for source, wav in tqdm(jobs, desc=f"{target.name}: linking", disable=len(jobs) == len(m4a)):
        if source.suffix == ".wav":
            place(source, wav)
    parallel_map(partial(convert, delete=delete), m4a, workers, f"{target.name}: m4a to wav")


def convert(job: tuple[Path, Path], delete: bool) -> None:
    source, wav = job
    to_wav(source, wav)
    if delete:  # at once: there may be no place for all of both
        source.unlink()


# Trials ------------------------------------------------------------------------------------------


def prepare_trials(options: argparse.Namespace, found: Found) -> None:
    for name, (address, count) in TRIALS.items():
        target, list_name = options.data_dir / name, Path(address).name
        if list_name in found.named:
            source = found.named[list_name]
        elif target.is_file():
            continue
        else:
            source = downloads(options) / list_name
            try:
                download(f"{options.lists_url.rstrip('/')}/{address}", source)
            except UserError as error:
                raise UserError(f"{error}, or put {list_name} into the folder of --from") from None
        trials = list(read_trials(source))
        if count is not None:
            verify_count(f"{source}: trials", len(trials), count, options.allow_incomplete)
        write_lines(target, trials)
        print(f"{name}: {len(trials):,} trials")


def read_trials(path: Path) -> Iterator[str]:
    """The lines of a published list as ours: ``<1|0> voxceleb1/... voxceleb1/...``."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        files = [UTTERANCE.search(field) for field in fields[1:]]
        if fields[0] not in ("0", "1") or len(files) != 2 or None in files:
            raise DataError(f"{path} line {number}: not a trial (<1|0> <file> <file>)")
        yield f"{fields[0]} " + " ".join(f"voxceleb1/{file[1]}.wav" for file in files)
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: no trials in it")


# Command line ------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> None:
    found = look_into(options.source)
    supply = Supply(options, found)
    corpora = [CORPORA[name] for name in options.parts if name in CORPORA]
    todo = [c for c in corpora if len(wavs(options.data_dir / c.name)) < c.files]
    if any(will_convert(corpus, supply) for corpus in todo):
        require("ffmpeg", "VoxCeleb2 is m4a; apt install ffmpeg, or conda install ffmpeg")
    if todo:
        supply.ask()
    for corpus in corpora:
        if corpus in todo:
            gather(corpus, options, supply)
        prepare_audio(corpus, options)
    if "trials" in options.parts:
        prepare_trials(options, found)


def will_convert(corpus: Corpus, supply: Supply) -> bool:
    archives = [archive for archive in corpus.archives if archive.is_m4a]
    if any(supply.url or supply.local(archive) for archive in archives):
        return True
    return any(p.suffix == ".m4a" and corpus.owns(u) for u, p in supply.found.audio.items())


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "archives, unpacked audio or trial lists")
    add = parser.add_argument
    names = [*CORPORA, "trials"]
    add("--parts", nargs="+", choices=names, default=names, help="what to prepare")
    add("--url", help="address of the archives; may hold {file} and, after '?', {password}")
    add("--user", help=f"user name for --url; the password is asked for, or ${PASSWORD}")
    add("--lists_url", default=LISTS_URL, help="address of the trial lists")
    add("--md5", type=Path, help="md5s in place of the known ones, as md5sum writes them")
    add_downloads(parser)
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
