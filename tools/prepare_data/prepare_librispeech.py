"""Prepare LibriSpeech: download, unpack, training list and trials.

    python tools/prepare_data/prepare_librispeech.py data
    python tools/prepare_data/prepare_librispeech.py data --from ~/corpora/LibriSpeech

Real speech that needs no account: 7 GB for the default subsets, an hour of training or less. The
FLAC files (16 kHz) stay as they are:

    DATA_DIR/librispeech/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<0000>.flac
    DATA_DIR/librispeech/SPEAKERS.TXT
    DATA_DIR/librispeech_train.csv                 File,Speaker of the train-* subsets
    DATA_DIR/librispeech_test_clean, _dev_clean    <1|0> <enrol file> <test file>
    DATA_DIR/archives/<subset>.tar.gz              what was downloaded; can be removed

LibriSpeech has no trials of its own. These are half targets, half non-targets, no pair twice;
targets are from two chapters where the speaker has several, 70 % of the non-targets are of one
sex. The same seed gives the same trials. No speaker is in two subsets.

Corpus: https://www.openslr.org/12 (CC BY 4.0).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from common import download, extract, make_parser, run, verify_count, write_csv, write_lines
from corpus import check_audio, check_minimum, find_root, link
from trials import Utterance, draw_trials

from sslsv.errors import DataError, UserError

URL = "https://www.openslr.org/resources/12"
NAME = "librispeech"

# Utterances, speakers, MD5 of the archive.
SUBSETS = {
    "train-clean-100": (28539, 251, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": (104014, 921, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": (148688, 1166, "d1a0fd59409feb2c614ce4d30c387708"),
    "dev-clean": (2703, 40, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": (2864, 33, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": (2620, 40, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": (2939, 33, "fb5a50374b501bb3bac4815ee91d3135"),
}


def place(subset: str, options: argparse.Namespace) -> None:
    """Have the files of a subset below DATA_DIR: there already, linked, unpacked or downloaded."""
    target = options.data_dir / NAME / subset
    if target.is_dir() and sum(1 for _ in target.glob("*/*/*.flac")) == SUBSETS[subset][0]:
        return
    source: Path | None = options.source
    archive = (source or options.data_dir / "archives") / f"{subset}.tar.gz"
    if source is not None:
        root = find_root(source, subset)
        if root is not None:
            link(root / subset, target, options.data_dir)
            if (root / "SPEAKERS.TXT").is_file():
                link(root / "SPEAKERS.TXT", target.with_name("SPEAKERS.TXT"), options.data_dir)
            return
        if not archive.is_file():
            raise UserError(f"{source}: found neither {archive.name} nor a folder {subset}")
    else:
        download(f"{options.url}/{archive.name}", archive, md5=SUBSETS[subset][2])

    def rename(member: str) -> str | None:
        path = PurePosixPath(member)
        if path.parts[:2] in (("LibriSpeech", subset), ("LibriSpeech", "SPEAKERS.TXT")):
            return str(path.relative_to("LibriSpeech"))
        return None

    if extract(archive, options.data_dir / NAME, rename) == 0:
        raise DataError(f"{archive}: holds no LibriSpeech/{subset}/")


def read_sexes(path: Path) -> dict[str, str]:
    """Speaker -> F or M, of lines like ``14   | F | train-clean-360  | 25.03 | Name``."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: not found; it comes with every archive of LibriSpeech") from None
    rows = [line.split("|") for line in lines if line.strip() and not line.startswith(";")]
    if not all(len(row) > 2 for row in rows):
        raise DataError(f"{path}: lines are not '<speaker> | <sex> | <subset> | ...'")
    return {row[0].strip(): row[1].strip() for row in rows}


def read_subset(subset: str, options: argparse.Namespace) -> list[Utterance]:
    """The utterances of a subset, sorted; refuse other numbers than the corpus has."""
    folder = options.data_dir / NAME / subset
    sexes = read_sexes(folder.with_name("SPEAKERS.TXT"))
    utterances = []
    for path in sorted(folder.glob("*/*/*.flac")):
        speaker, chapter = path.parts[-3:-1]
        if not re.fullmatch(rf"{re.escape(f'{speaker}-{chapter}')}-\d+\.flac", path.name):
            raise DataError(f"{path}: is not named <speaker>-<chapter>-<number>.flac")
        if speaker not in sexes:
            raise DataError(f"{path}: speaker {speaker} is not in SPEAKERS.TXT")
        file = path.relative_to(options.data_dir).as_posix()
        utterances.append(Utterance(file, speaker, chapter, sexes[speaker]))
    if not utterances:
        raise DataError(f"{folder}: found no <speaker>/<chapter>/*.flac there")
    count, speakers, _ = SUBSETS[subset]
    found = len({utterance.speaker for utterance in utterances})
    verify_count(f"{subset}, utterances", len(utterances), count, options.allow_incomplete)
    verify_count(f"{subset}, speakers", found, speakers, options.allow_incomplete)
    return utterances


def prepare(options: argparse.Namespace) -> None:
    subsets = {subset: [] for subset in options.subsets}  # each once, in the order given
    check_minimum(options, trials=2, seed=0)
    for subset in subsets:
        place(subset, options)
        subsets[subset] = read_subset(subset, options)
    files = [utterance.file for utterances in subsets.values() for utterance in utterances]
    check_audio(files, options.data_dir, options.workers)

    rows = [
        (utterance.file, utterance.speaker)
        for subset, utterances in subsets.items()
        if subset.startswith("train")
        for utterance in utterances
    ]
    if rows:
        path = options.data_dir / f"{NAME}_train.csv"
        write_csv(path, ("File", "Speaker"), rows)
        print(f"{path}: {len(rows):,} utterances of {len({row[1] for row in rows}):,} speakers")
    for subset, utterances in subsets.items():
        if subset.startswith("train"):
            continue
        rng = np.random.default_rng((options.seed, list(SUBSETS).index(subset)))
        lines = draw_trials(utterances, options.trials, rng)
        path = options.data_dir / f"{NAME}_{subset.replace('-', '_')}"
        write_lines(path, lines)
        print(f"{path}: {len(lines):,} trials of {len(utterances):,} utterances")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "<subset>.tar.gz files or an unpacked LibriSpeech/")
    parser.add_argument(
        "--subsets",
        nargs="+",
        choices=list(SUBSETS),
        metavar="SUBSET",
        default=["train-clean-100", "dev-clean", "test-clean"],
        help=f"any of {', '.join(SUBSETS)}",
    )
    parser.add_argument("--trials", type=int, default=20000, help="trials of each dev/test subset")
    parser.add_argument("--seed", type=int, default=1717, help="seed of the trials")
    parser.add_argument("--url", default=URL, help="folder to download from; openslr has mirrors")
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
