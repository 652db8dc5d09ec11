"""Prepare what augmentation adds to speech: MUSAN in pieces, and simulated room responses.

    python tools/prepare_data/prepare_augmentation.py data                      downloads 12 GB
    python tools/prepare_data/prepare_augmentation.py data --from ~/downloads   archives or unpacked

This writes, all 16 kHz mono 16-bit WAV,

    DATA_DIR/musan_split/{noise,speech,music}/<collection>/<name>_<start>.wav    8 s each
    DATA_DIR/simulated_rirs/{small,medium,large}room/<room>/<file>.wav

<start> is in seconds. The last piece of a recording is what is left, unless under a second. MUSAN
(openslr.org/17) and the responses (openslr.org/28) are public. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import soundfile
from common import (
    DataError,
    UserError,
    add_downloads,
    download,
    downloads,
    extract,
    files_below,
    make_parser,
    parallel_map,
    place,
    run,
    verify_count,
    whole,
    write_lines,
)
from tqdm import tqdm

OPENSLR = "https://www.openslr.org/resources"
MUSAN = ("17/musan.tar.gz", "0c472d4fc0c5141eca47ad1ffeb2a7df")
RIRS = ("28/rirs_noises.zip", "e6f48e257286e05de56413b4779d8ffb")
MUSAN_FILES = {"noise": 930, "speech": 426, "music": 660}
RIR_FILES = {"smallroom": 20_000, "mediumroom": 20_000, "largeroom": 20_000}

RECORDING = re.compile(r"(?:^|/)((?:noise|speech|music)/[^/]+/[^/._]+)\.wav$")
PIECE = re.compile(r"(?:^|/)((?:noise|speech|music)/[^/]+/[^/._]+_\d{5})\.wav$")
RESPONSE = re.compile(r"(?:^|/)simulated_rirs/((?:small|medium|large)room/[^/]+/[^/]+\.wav)$")

SAMPLE_RATE = 16000
PIECE_SECONDS = 8
SHORTEST = SAMPLE_RATE  # samples of a last piece
STAMP = ".complete"  # holds the number of pieces once all are there


def locate(pattern: re.Pattern[str], source: Path | None) -> dict[str, Path]:
    """What the first group of ``pattern`` says of a path -> the file."""
    paths = files_below(source) if source else ()
    return {m[1]: path for path in paths if (m := pattern.search(path.as_posix()))}


def member_of(pattern: re.Pattern[str], suffix: str, member: str) -> str | None:
    match = pattern.search(member)
    return match[1] + suffix if match else None


def get_archive(options: argparse.Namespace, address: str, md5: str) -> Path:
    """The archive in the folder of ``--from``, else downloaded."""
    name = Path(address).name
    if options.source:
        for path in files_below(options.source):
            if path.name == name:
                return path
        raise UserError(f"--from {options.source}: neither {name} nor its files found")
    return download(f"{options.url.rstrip('/')}/{address}", downloads(options) / name, md5=md5)


def discard(options: argparse.Namespace, archive: Path | None) -> None:
    if archive and options.delete_sources and options.source is None:  # not what the user brought
        archive.unlink()


def verify_counts(
    names: dict[str, Path], expected: dict[str, int], what: str, allow_incomplete: bool
) -> None:
    found = Counter(name.partition("/")[0] for name in names)
    for group, count in expected.items():
        verify_count(f"{what}: files of {group}", found[group], count, allow_incomplete)


# MUSAN -------------------------------------------------------------------------------------------


def pieces(length: int) -> list[tuple[int, int]]:
    """Start and end, in samples, of the pieces of a recording of ``length`` samples."""
    step = PIECE_SECONDS * SAMPLE_RATE
    starts = [s for s in range(0, length, step) if s == 0 or length - s >= SHORTEST]
    return [(start, min(start + step, length)) for start in starts]


def split(job: tuple[str, Path], target: Path) -> int:
    """Cut one recording; return its number of pieces."""
    name, path = job
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path}: cannot be read as audio ({error})") from None
    if info.samplerate != SAMPLE_RATE or info.channels != 1 or info.frames == 0:
        raise DataError(
            f"{path}: {info.frames} samples at {info.samplerate} Hz in {info.channels} channels; "
            f"MUSAN is {SAMPLE_RATE} Hz mono"
        )
    cuts = pieces(info.frames)
    for start, end in cuts:
        piece = target / f"{name}_{start // SAMPLE_RATE:05d}.wav"
        if piece.is_file():
            continue
        wave, _ = soundfile.read(path, end - start, start, dtype="int16")
        with whole(piece) as temporary:
            soundfile.write(temporary, wave, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return len(cuts)


def prepare_musan(options: argparse.Namespace) -> None:
    target = options.data_dir / "musan_split"
    if stamped(target):
        print(f"{target}: complete")
        return
    recordings = locate(RECORDING, options.source)
    archive = unpacked = None
    if not recordings:
        archive = get_archive(options, *MUSAN)
        unpacked = downloads(options) / "musan"
        extract(archive, unpacked, partial(member_of, RECORDING, ".wav"))
        recordings = locate(RECORDING, unpacked)
    verify_counts(recordings, MUSAN_FILES, "MUSAN", options.allow_incomplete)
    cut = partial(split, target=target)
    counts = parallel_map(cut, list(recordings.items()), options.workers, "musan_split")
    found = len(locate(PIECE, target))
    verify_count(f"{target}: pieces", found, sum(counts), options.allow_incomplete)
    if len(recordings) == sum(MUSAN_FILES.values()) and found == sum(counts):
        write_lines(target / STAMP, [str(found)])
    if unpacked is not None:
        shutil.rmtree(unpacked)
    discard(options, archive)
    print(f"{target}: {found:,} pieces of {len(recordings):,} recordings")


def stamped(target: Path) -> bool:
    stamp = target / STAMP
    return stamp.is_file() and stamp.read_text().strip() == str(len(locate(PIECE, target)))


# Room impulse responses --------------------------------------------------------------------------


def prepare_rirs(options: argparse.Namespace) -> None:
    target = options.data_dir / "simulated_rirs"
    archive = None
    if len(locate(RESPONSE, target)) < sum(RIR_FILES.values()):
        responses = locate(RESPONSE, options.source)
        for name, path in tqdm(responses.items(), desc="simulated_rirs", disable=not responses):
            place(path, target / name)
        if not responses:
            archive = get_archive(options, *RIRS)
            extract(archive, target, partial(member_of, RESPONSE, ""))
    responses = locate(RESPONSE, target)
    verify_counts(responses, RIR_FILES, "simulated_rirs", options.allow_incomplete)
    discard(options, archive)
    print(f"{target}: {len(responses):,} responses")


# Command line ------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> None:
    if "musan" in options.parts:
        prepare_musan(options)
    if "rirs" in options.parts:
        prepare_rirs(options)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "the archives, or what they hold")
    add = parser.add_argument
    names = ["musan", "rirs"]
    add("--parts", nargs="+", choices=names, default=names, help="what to prepare")
    add("--url", default=OPENSLR, help="address of the archives, or of a mirror")
    add_downloads(parser)
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
