"""``sslsv embed``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslsv.cli.base import Command, add_config, add_model_suffix


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--list",
        nargs="+",
        required=True,
        dest="sources",
        metavar="FILE",
        help="lists (FILE.csv with a column File of paths below dataset.base_path) or audio files",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="X.npz (arrays files and embeddings) or X.ark (Kaldi, with X.scp beside it)",
    )
    add_model_suffix(parser)
    parser.add_argument(
        "--num_frames",
        metavar="N",
        type=int,
        default=1,
        help="evenly spaced frames of a file, whose embeddings are averaged",
    )
    parser.add_argument(
        "--frame_length",
        metavar="SAMPLES",
        type=int,
        help="length of a frame; that of the whole file where none is given",
    )
    parser.add_argument(
        "--batch_size", metavar="N", type=int, default=64, help="files embedded together"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the encoder"
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv import distributed
    from sslsv.config import load_config
    from sslsv.embed import Frames, embed

    a = arguments
    frames = Frames(
        batch_size=a.batch_size,
        num_frames=a.num_frames,
        frame_length=a.frame_length,
        precision=a.precision,
    )
    with distributed.session():
        embed(load_config(a.config, a.overrides), a.sources, a.output, a.model_suffix, frames)


COMMAND = Command(
    name="embed",
    help="Write the embeddings of audio files, as npz or Kaldi ark.",
    details="CONFIG comes first: what follows --list are files.",
    example="sslsv embed models/demo/simclr --list a.wav --output a.npz",
    add_arguments=_add_arguments,
    run=_run,
)
