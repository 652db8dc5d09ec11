"""Prepare CREMA-D: the list of its clips with speaker, emotion and set.

    git clone https://github.com/CheyneyComputerScience/CREMA-D  # with git LFS: the audio
    python tools/prepare_data/prepare_cremad.py data --from CREMA-D

What is used of the corpus is AudioWAV/<speaker>_<sentence>_<emotion>_<level>.wav, 16 kHz. This
writes

    DATA_DIR/cremad/AudioWAV/      a link to the corpus
    DATA_DIR/cremad_train.csv            File,Speaker,Emotion,Set (train or test)

Disgust is left out: anger, fear, happiness, neutral and sadness remain. A tenth is for testing: of
the clips by default, so that speakers are in both sets; with --split speaker a tenth of the
speakers, none of whom is trained on, which is what tells about new speakers. The same seed gives
the same sets. For training set dataset.label_key to Emotion; only rows with Set train are then
used.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from common import make_parser, run, verify_count, write_csv
from corpus import check_audio, check_minimum, link, open_corpus

from sslsv.errors import DataError

NAME = "cremad"
FOLDER = "AudioWAV"
CLIPS, SPEAKERS = 7_442, 91
EMOTIONS = {
    "ANG": "Anger",
    "FEA": "Fear",
    "HAP": "Happiness",
    "NEU": "Neutral",
    "SAD": "Sadness",
    "DIS": None,  # left out
}
SILENT = "1076_MTI_SAD_XX.wav"  # the corpus's own documentation: no audio
CLIP = re.compile(rf"(\d{{4}})_([A-Z]{{3}})_({'|'.join(EMOTIONS)})_([A-Z]{{1,2}})\.wav")


def held_out(names: Sequence[str], share: float, rng: np.random.Generator) -> set[str]:
    """``share`` of ``names``, at least one and not all."""
    count = min(max(1, round(len(names) * share)), len(names) - 1)
    if count == 0:
        raise DataError("a single clip or speaker cannot be split into two sets")
    return {names[position] for position in rng.permutation(len(names))[:count]}


def prepare(options: argparse.Namespace) -> None:
    check_minimum(options, seed=0)
    folder = open_corpus(options, NAME, "*crema*", FOLDER) / FOLDER
    clips = {}
    for path in sorted(folder.glob("*.wav")):
        match = CLIP.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path}: is not named <speaker>_<sentence>_<emotion>_<level>.wav")
        clips[path.name] = match[1], EMOTIONS[match[3]]
    if not clips:
        raise DataError(f"{folder}: found no .wav file there")
    speakers = len({speaker for speaker, _ in clips.values()})
    verify_count("clips", len(clips), CLIPS, options.allow_incomplete)
    verify_count("speakers", speakers, SPEAKERS, options.allow_incomplete)

    clips = {name: clip for name, clip in clips.items() if clip[1] and name != SILENT}
    rng = np.random.default_rng(options.seed)
    if options.split == "utterance":
        test = held_out(sorted(clips), 0.1, rng)
    else:
        chosen = held_out(sorted({speaker for speaker, _ in clips.values()}), 0.1, rng)
        test = {name for name, (speaker, _) in clips.items() if speaker in chosen}

    link(folder, options.data_dir / NAME / FOLDER, options.data_dir)
    rows = [
        (f"{NAME}/{FOLDER}/{name}", speaker, emotion, "test" if name in test else "train")
        for name, (speaker, emotion) in clips.items()
    ]
    check_audio([row[0] for row in rows], options.data_dir, options.workers)
    path = options.data_dir / f"{NAME}_train.csv"
    write_csv(path, ("File", "Speaker", "Emotion", "Set"), rows)
    sets = Counter(row[3] for row in rows)
    print(f"{path}: {sets['train']:,} clips to train on, {sets['test']:,} to test")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "AudioWAV/, or an archive *crema*; else DATA_DIR/cremad")
    add = parser.add_argument
    add(
        "--split",
        choices=("utterance", "speaker"),
        default="utterance",
        help="what a tenth of is for testing",
    )
    add("--seed", type=int, default=1717, help="seed of the split")
    return run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
