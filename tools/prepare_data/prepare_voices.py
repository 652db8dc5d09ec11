"""Prepare VOiCES: the trials of the VOiCES from a Distance Challenge 2019, or trials of the devkit.

    python tools/prepare_data/prepare_voices.py data --from ~/corpora/VOiCES

What is used of the corpus (https://iqtlabs.github.io/voices/), unpacked, wherever below DIR it is:

    sid_dev/, sid_eval/                                audio, 16 kHz WAV
    dev-enroll.lst, eval-enroll.lst                    <model> <file>
    dev-trial-keys.lst                                 <model> <file> <tgt|imp>
    VOiCES_challenge_2019_eval.SID.trial-keys.lst      released after the challenge
    VOiCES_devkit/distant-16k/speech/test/<room>/<noise>/<speaker>/*.wav

This writes

    DATA_DIR/voices/{sid_dev,sid_eval,devkit_test}/    links to the corpus
    DATA_DIR/voices2019_dev, voices2019_eval           <1|0> <enrol file> <test file>
    DATA_DIR/voices_devkit_test                        the same

Results are reported on the challenge's trials. The devkit has none of its own: they are drawn, half
targets (of two chapters where the speaker has several), half non-targets, the same for a seed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from common import make_parser, run, verify_count, write_lines
from corpus import check_audio, check_minimum, find_root, link
from trials import Utterance, draw_trials, read_fields, read_keys

from sslsv.errors import DataError, listing

NAME = "voices"
DEVKIT = "distant-16k/speech/test"
DEVKIT_NAME = re.compile(r"Lab41-SRI-VOiCES-.+-(?P<speaker>sp\d+)-(?P<chapter>ch\d+)-.+\.wav")
DEPTH = 5  # Development_Data/Speaker_Recognition/sid_dev_lists_and_keys, in a folder or two
KEYS = {
    "dev": "dev-trial-keys.lst",
    "eval": "VOiCES_challenge_2019_eval.SID.trial-keys.lst",
}


def find(start: Path, name: str) -> Path:
    root = find_root(start, name, depth=DEPTH)
    if root is None:
        raise DataError(f"{start}: found no {name} there (looked {DEPTH} folders deep)")
    return root / name


def check_tests(tests: Path, tested: set[str]) -> None:
    """Refuse keys that do not test every file of the corpus's own list of tests."""
    missing = {fields[0] for fields in read_fields(tests, "file")} - tested
    if missing:
        raise DataError(
            f"{tests}: {len(missing)} of its files have no trial: {listing(sorted(missing), 3)} "
            "(--allow_incomplete goes on with what there is)"
        )


def prepare_subset(start: Path, subset: str, options: argparse.Namespace) -> None:
    trials = read_keys(find(start, f"{subset}-enroll.lst"), find(start, KEYS[subset]))
    folder = f"sid_{subset}"

    def path(file: str) -> str:
        """Lists name files with or without the folder in front."""
        parts = PurePosixPath(file).parts
        parts = parts[1:] if parts[0] == folder else parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise DataError(f"{KEYS[subset]}: {file!r} is not the path of a file below {folder}/")
        return "/".join((NAME, folder, *parts))

    pairs = [(label, path(enrol), path(test)) for label, enrol, test in trials]
    tests = find_root(start, f"{subset}-test.lst", depth=DEPTH)
    if tests is not None and not options.allow_incomplete:
        check_tests(tests / f"{subset}-test.lst", {test for _, _, test in trials})
    link(find(start, folder), options.data_dir / NAME / folder, options.data_dir)
    files = sorted({file for pair in pairs for file in pair[1:]})
    check_audio(files, options.data_dir, options.workers)
    target = options.data_dir / f"{NAME}2019_{subset}"
    write_lines(target, (f"{label} {enrol} {test}" for label, enrol, test in pairs))
    targets = sum(label for label, _, _ in pairs)
    print(f"{target}: {len(pairs):,} trials of {len(files):,} files, {targets:,} targets")


def prepare_devkit(start: Path, options: argparse.Namespace) -> None:
    source, folder = find(start, DEVKIT), options.data_dir / NAME / "devkit_test"
    utterances = []
    for path in sorted(source.glob("*/*/*/*.wav")):
        match = DEVKIT_NAME.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path}: is not named Lab41-SRI-VOiCES-...-sp<n>-ch<n>-....wav")
        file = (folder / path.relative_to(source)).relative_to(options.data_dir).as_posix()
        utterances.append(Utterance(file, match["speaker"], match["chapter"]))
    if not utterances:
        raise DataError(f"{source}: found no <room>/<noise>/<speaker>/*.wav there")
    rng = np.random.default_rng(options.seed)
    lines = draw_trials(utterances, options.trials, rng)
    verify_count("devkit, trials", len(lines), options.trials, options.allow_incomplete)
    link(source, folder, options.data_dir)
    used = sorted({file for line in lines for file in line.split()[1:]})
    check_audio(used, options.data_dir, options.workers)
    target = options.data_dir / f"{NAME}_devkit_test"
    write_lines(target, lines)
    print(f"{target}: {len(lines):,} trials of {len(used):,} files")


def prepare(options: argparse.Namespace) -> None:
    check_minimum(options, trials=2, seed=0)
    start = options.source or options.data_dir / NAME
    for subset in dict.fromkeys(options.subsets):
        if subset == "devkit":
            prepare_devkit(start, options)
        else:
            prepare_subset(start, subset, options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "the corpus, unpacked; else DATA_DIR/voices")
    add = parser.add_argument
    add("--subsets", nargs="+", choices=[*KEYS, "devkit"], default=["dev"], help="what to prepare")
    add("--trials", type=int, default=20000, help="trials to draw from the devkit")
    add("--seed", type=int, default=1717, help="seed of these trials")
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
