"""Prepare Speakers in the Wild (SITW): trials, and audio that is not 16 kHz mono converted.

    python tools/prepare_data/prepare_sitw.py data --from ~/corpora/sitw_database.v4

The corpus is distributed on request (http://www.speech.sri.com/projects/sitw/). What is used of it:

    {dev,eval}/audio/<name>.flac
    {dev,eval}/lists/enroll-core.lst     <model> <file>
    {dev,eval}/keys/core-core.lst        <model> <file> <tgt|imp>

This writes

    DATA_DIR/sitw/{dev,eval}/audio/      a link to the corpus; FLAC at 16 kHz is read as it is
    DATA_DIR/sitw/{dev,eval}/wav/        only files that had to be converted
    DATA_DIR/sitw_eval_core-core, sitw_dev_core-core
                                         <1|0> <enrol file> <test file>

Other conditions, such as core-multi, are trials with several people in the test recording. Those
that enrol from a part of a recording (assist) are not supported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import soundfile
from common import make_parser, parallel_map, run, verify_count, write_lines
from corpus import link, open_corpus
from trials import read_keys

from sslsv import audio
from sslsv.errors import DataError

NAME = "sitw"
SUBSETS = ("eval", "dev")
CONDITIONS = ("core-core", "core-multi")
TARGETS = {("eval", "core-core"): 3_658, ("dev", "core-core"): 2_597}
NON_TARGETS = {("eval", "core-core"): 718_130, ("dev", "core-core"): 335_629}


def convert(data_dir: Path, file: str) -> str:
    """The path of ``file`` (sitw/<subset>/audio/<name>) as 16 kHz mono, converted if need be."""
    path = data_dir / file
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError:
        audio.probe(path)  # says what is wrong with it
        raise
    if (info.samplerate, info.channels) == (audio.SAMPLE_RATE, 1):
        return file
    target = path.parents[1] / "wav" / f"{path.stem}.wav"
    if not target.is_file():
        audio.write(target, audio.read(path, resample=True))
    return target.relative_to(data_dir).as_posix()


def prepare_subset(root: Path, subset: str, options: argparse.Namespace) -> None:
    lists = {}
    for condition in dict.fromkeys(options.conditions):
        models = root / subset / "lists" / "enroll-core.lst"
        trials = read_keys(models, root / subset / "keys" / f"{condition}.lst")
        name = f"{subset} {condition}"
        targets = sum(label for label, _, _ in trials)
        for what, found, counts in (
            ("targets", targets, TARGETS),
            ("non-targets", len(trials) - targets, NON_TARGETS),
        ):
            if (subset, condition) in counts:
                expected = counts[subset, condition]
                verify_count(f"{name}, {what}", found, expected, options.allow_incomplete)
        lists[condition] = trials

    files = sorted({file for trials in lists.values() for trial in trials for file in trial[1:]})
    strange = [file for file in files if Path(file).parent != Path("audio")]
    if strange:
        raise DataError(f"{root / subset}: the lists name {strange[0]}, not audio/<name>")
    if not (root / subset / "audio").is_dir():
        raise DataError(f"{root / subset / 'audio'}: no such folder; the corpus is not complete")
    link(root / subset / "audio", options.data_dir / NAME / subset / "audio", options.data_dir)
    found = parallel_map(
        partial(convert, options.data_dir),
        [f"{NAME}/{subset}/{file}" for file in files],
        options.workers,
        f"Audio of {subset}",
    )
    paths = dict(zip(files, found, strict=True))
    for condition, trials in lists.items():
        path = options.data_dir / f"{NAME}_{subset}_{condition}"
        write_lines(
            path, (f"{label} {paths[enrol]} {paths[test]}" for label, enrol, test in trials)
        )
        print(f"{path}: {len(trials):,} trials of {len(files):,} files")


def prepare(options: argparse.Namespace) -> None:
    subsets = list(dict.fromkeys(options.subsets))
    markers = [f"{subset}/lists/enroll-core.lst" for subset in subsets]
    root = open_corpus(options, NAME, "sitw*", *markers)
    for subset in subsets:
        prepare_subset(root, subset, options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "sitw_database.v4/, or its archive sitw*; else DATA_DIR/sitw")
    add = parser.add_argument
    add("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS), help="parts to prepare")
    add("--conditions", nargs="+", choices=CONDITIONS, default=["core-core"], help="trials to make")
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
