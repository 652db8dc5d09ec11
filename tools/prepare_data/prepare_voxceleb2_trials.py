"""Draw trials from the training part of VoxCeleb2, to fit score fusion and calibration on.

    python tools/prepare_data/prepare_voxceleb2_trials.py data --hold_out

Run prepare_voxceleb.py first. This reads DATA_DIR/voxceleb2_train.csv and writes

    DATA_DIR/voxceleb2_trials                       <1|0> <enrol file> <test file>
    DATA_DIR/voxceleb2_train_without_trials.csv     with --hold_out: the rows of all other speakers

Half of the trials are targets (of two videos), half non-targets, no pair twice. The same seed gives
the same speakers and trials. A model that was trained on these speakers scores them better than it
scores others: train on the second list where that matters.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from common import make_parser, run, verify_count, write_csv, write_lines
from corpus import check_audio, check_minimum
from trials import Utterance, draw_trials

from sslsv.errors import DataError, UserError

TRAIN, TRIALS = "voxceleb2_train.csv", "voxceleb2_trials"
HELD_OUT = "voxceleb2_train_without_trials.csv"


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a training list."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; prepare_voxceleb.py writes it") from None
    except ValueError:  # nothing to unpack, or no UTF-8
        raise DataError(f"{path}: is empty or not text") from None
    for column in ("File", "Speaker"):
        if column not in header:
            raise DataError(f"{path}: no column '{column}'; its columns are {', '.join(header)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise DataError(f"{path} line {number}: {len(row)} fields, {len(header)} expected")
    return header, rows


def prepare(options: argparse.Namespace) -> None:
    check_minimum(options, trials=2, speakers=2, seed=0)
    source = (options.source or options.data_dir) / TRAIN
    header, rows = read_rows(source)
    file, speaker = header.index("File"), header.index("Speaker")
    speakers = sorted({row[speaker] for row in rows})
    if len(speakers) <= options.speakers:
        raise UserError(
            f"--speakers {options.speakers}: {source} has {len(speakers)}, and some are to remain"
        )
    rng = np.random.default_rng(options.seed)
    chosen = set(rng.choice(speakers, options.speakers, replace=False).tolist())
    utterances = [
        Utterance(row[file], row[speaker], PurePosixPath(row[file]).parent.name)
        for row in rows
        if row[speaker] in chosen
    ]
    lines = draw_trials(utterances, options.trials, rng)
    verify_count("trials", len(lines), options.trials, options.allow_incomplete)
    used = sorted({name for line in lines for name in line.split(" ")[1:]})
    check_audio(used, options.data_dir, options.workers)
    write_lines(options.data_dir / TRIALS, lines)
    print(f"{options.data_dir / TRIALS}: {len(lines):,} trials of {len(chosen)} speakers")
    if options.hold_out:
        rest = [row for row in rows if row[speaker] not in chosen]
        write_csv(options.data_dir / HELD_OUT, header, rest)
        print(f"{options.data_dir / HELD_OUT}: {len(rest):,} utterances of the other speakers")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, f"{TRAIN}; else DATA_DIR")
    add = parser.add_argument
    add("--speakers", type=int, default=50, help="speakers that the trials are of")
    add("--trials", type=int, default=40000, help="trials, half of them targets")
    add("--seed", type=int, default=1717, help="seed of speakers and trials")
    add("--hold_out", action="store_true", help="write a training list without these speakers")
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
