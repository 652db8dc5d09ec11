"""Prepare VoxLingua107: the list of its segments with their languages.

    python tools/prepare_data/prepare_voxlingua107.py data --from ~/downloads/voxlingua107

DIR holds the archives of https://bark.phon.ioc.ee/voxlingua107/ (<language>.zip, and dev.zip, the
segments that people have verified), or what is in them, unpacked: <language>/ or train/<language>/,
and dev/<language>/. All languages are 1 TB. This writes

    DATA_DIR/voxlingua107/train/<language>/<video>__U__S<...>.wav
    DATA_DIR/voxlingua107/test/<language>/...       the segments of dev.zip
    DATA_DIR/voxlingua107_train.csv                       File,Language,Set (train or test)

What is unpacked in DIR is linked, not copied. For training set dataset.label_key to Language; only
rows with Set train are then used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from common import extract, make_parser, parallel_map, run, verify_count, write_csv
from corpus import link

from sslsv.errors import DataError, listing

NAME = "voxlingua107"
LANGUAGES = """ab af am ar as az ba be bg bn bo br bs ca ceb cs cy da de el en eo es et eu fa fi fo
fr gl gn gu gv ha haw hi hr ht hu hy ia id is it iw ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk
ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sco sd si sk sl sn so sq sr su sv sw ta te tg
th tk tl tr tt uk ur uz vi war yi yo zh""".split()
TEST_SEGMENTS, TEST_LANGUAGES = 1_609, 33


def unpack(job: tuple[Path, Path]) -> None:
    """Unpack an archive into a folder with a folder for each language."""
    archive, target = job

    def rename(member: str) -> str | None:
        path = PurePosixPath(member)
        if path.suffix != ".wav":
            return None
        language = archive.stem if archive.stem != "dev" else path.parent.name
        if language not in LANGUAGES:
            raise DataError(f"{archive}: {member} is in no folder of a language")
        return f"{language}/{path.name}"

    if extract(archive, target, rename) == 0:
        raise DataError(f"{archive}: holds no .wav file")


def language_folders(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in LANGUAGES if (folder / name).is_dir()}


def place(start: Path, options: argparse.Namespace) -> None:
    """Have train/<language>/ and test/<language>/ below DATA_DIR: linked, or unpacked.

    What is there from an earlier run is unpacked again as far as it is not whole.
    """
    places = {"train": (start / "train", start), "test": (start / "test", start / "dev")}
    jobs = []
    for part, folders in places.items():
        target = options.data_dir / NAME / part
        folder = next((folder for folder in folders if language_folders(folder)), target)
        found = {} if folder == target else language_folders(folder)
        for language in sorted(set(found) & set(options.languages)):
            link(found[language], target / language, options.data_dir)
        if part == "train":
            archives = [f"{name}.zip" for name in dict.fromkeys(options.languages) - found.keys()]
        else:
            archives = [] if found else ["dev.zip"]
        jobs += [(start / name, target) for name in sorted(archives) if (start / name).is_file()]
    parallel_map(unpack, jobs, options.workers, "Archives")


def list_part(part: str, options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Rows of the CSV, sorted."""
    rows = []
    for language, folder in language_folders(options.data_dir / NAME / part).items():
        if language in options.languages:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".wav"))
            rows += [
                (f"{NAME}/{part}/{language}/{name}", language, part)
                for name in names
                if not name.startswith(".")
            ]
    return rows


def prepare(options: argparse.Namespace) -> None:
    if "all" in options.languages:
        options.languages = LANGUAGES
    unknown = sorted(set(options.languages) - set(LANGUAGES))
    if unknown:
        raise DataError(f"--languages {unknown[0]}: not one of {' '.join(LANGUAGES)}")
    start = options.source or options.data_dir / NAME
    place(start, options)
    train, test = list_part("train", options), list_part("test", options)
    if not train:
        raise DataError(
            f"{start}: found neither <language>.zip nor <language>/*.wav nor "
            "train/<language>/*.wav; --from DIR says where the corpus is"
        )
    missing = sorted(set(options.languages) - {language for _, language, _ in train})
    expected = len(set(options.languages))
    what = f"languages to train on (without {listing(missing)})" if missing else "languages"
    verify_count(what, expected - len(missing), expected, options.allow_incomplete)
    if set(options.languages) == set(LANGUAGES):
        languages = len({language for _, language, _ in test})
        verify_count("test segments", len(test), TEST_SEGMENTS, options.allow_incomplete)
        verify_count("test languages", languages, TEST_LANGUAGES, options.allow_incomplete)
    path = options.data_dir / f"{NAME}_train.csv"
    write_csv(path, ("File", "Language", "Set"), train + test)
    print(f"{path}: {len(train):,} segments to train on, {len(test):,} to test")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "<language>.zip and dev.zip, or the same unpacked")
    parser.add_argument(
        "--languages", nargs="+", metavar="CODE", default=["all"], help="those to prepare"
    )
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
