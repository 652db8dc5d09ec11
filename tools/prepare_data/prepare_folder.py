"""Prepare recordings of your own: a training list, and trials of speakers who are not trained on.

    python tools/prepare_data/prepare_folder.py data/mine --from recordings

DIR has a folder for each speaker, with .wav or .flac files in it at any depth. Where a speaker has
folders, each is taken as a session, and target trials join two of them. This writes

    DATA_DIR/<name of DIR>/   a link to DIR
    DATA_DIR/train.csv        File,Speaker
    DATA_DIR/test_trials      <1|0> <enrolment> <test>, half of them of one speaker

The same seed gives the same lists. With --test_speakers 0 all speakers are trained on and no trials
are written; then a folder need not be that of a speaker, as training without labels asks for none.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import files_below, parallel_map, run, write_csv, write_lines
from corpus import check_minimum, link
from trials import Utterance, draw_trials

from sslsv import audio
from sslsv.errors import DataError, listing

FORMATS = (".wav", ".flac")
SHARE = 0.1  # of the speakers to test on


def find_utterances(folder: Path) -> list[Utterance]:
    """The recordings of a folder of folders of speakers, by path; says what it leaves out."""
    found, others = [], Counter[str]()
    for path in files_below(folder):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() not in FORMATS:
            others[path.suffix.lower() or "without an ending"] += 1
        elif len(parts) == 1:
            raise DataError(f"{path}: is in no speaker's folder; put it into one")
        else:
            session = "/".join(parts[1:-1]) or parts[-1]
            found.append(Utterance("/".join((folder.resolve().name, *parts)), parts[0], session))
    if not found:
        raise DataError(
            f"{folder}: no .wav or .flac file below it; convert what there is, such as by "
            "'ffmpeg -i x.mp3 -ac 1 -ar 16000 x.wav'"
        )
    if others:
        print(f"left out, as neither WAV nor FLAC: {others.total():,} ({listing(sorted(others))})")
    return found


def choose_speakers(
    utterances: Sequence[Utterance], wanted: int | None, rng: np.random.Generator
) -> set[str]:
    """Speakers to test on, drawn from those with two recordings; None: a tenth, at least two."""
    counts = Counter(utterance.speaker for utterance in utterances)
    able = sorted(speaker for speaker, count in counts.items() if count > 1)
    count = max(2, round(SHARE * len(counts))) if wanted is None else wanted
    if count == 1:
        raise DataError(
            "--test_speakers 1: trials take two speakers; give 2 or more, or 0 for none"
        )
    if count > len(able) or count >= len(counts):
        raise DataError(
            f"{len(counts)} speakers, {len(able)} of them with two recordings or more: too few to "
            f"keep {count} of these for a test and train on others; --test_speakers 0 trains on "
            "all and writes no trials"
        )
    return {able[position] for position in rng.permutation(len(able))[:count]}


def prepare(options: argparse.Namespace) -> None:
    check_minimum(options, trials=2, seed=0)
    if options.test_speakers is not None:
        check_minimum(options, test_speakers=0)
    utterances = find_utterances(options.source)
    rng = np.random.default_rng(options.seed)
    chosen = choose_speakers(utterances, options.test_speakers, rng)
    train = [utterance for utterance in utterances if utterance.speaker not in chosen]
    test = [utterance for utterance in utterances if utterance.speaker in chosen]
    for utterance in test:
        if len(utterance.file.split()) > 1:
            raise DataError(
                f"{utterance.file}: has a space, which ends a path in a list of trials; rename "
                "files and folders"
            )
    readable = functools.partial(audio.probe, resample=True)  # the rate is for 'sslsv doctor'
    folder = options.source.resolve().parent
    paths = [str(folder / utterance.file) for utterance in utterances]
    parallel_map(readable, paths, options.workers, "Checking audio")

    link(options.source, options.data_dir / options.source.resolve().name, options.data_dir)
    path = options.data_dir / "train.csv"
    write_csv(path, ("File", "Speaker"), [(u.file, u.speaker) for u in train])
    print(f"{path}: {_described(train)} to train on")
    if test:
        path = options.data_dir / "test_trials"
        lines = draw_trials(test, options.trials, rng)
        write_lines(path, lines)
        print(f"{path}: {len(lines):,} trials of {_described(test)}")


def _described(utterances: Sequence[Utterance]) -> str:
    speakers = {utterance.speaker for utterance in utterances}
    return f"{len(utterances):,} recordings of {len(speakers):,} speakers"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("data_dir", type=Path, metavar="DATA_DIR", help="folder to write to")
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder with a folder for each speaker",
    )
    add(
        "--test_speakers",
        type=int,
        metavar="N",
        help="how many to test on and not to train on (default: a tenth, at least 2)",
    )
    add("--trials", type=int, metavar="N", default=10_000, help="at most (default: %(default)s)")
    add("--seed", type=int, metavar="N", default=1717, help="of draws (default: %(default)s)")
    add(
        "--workers",
        type=int,
        metavar="N",
        default=os.cpu_count(),
        help="processes (default: %(default)s)",
    )
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
