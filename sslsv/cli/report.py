"""``sslsv report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslsv.cli.base import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN_DIR",
        type=Path,
        nargs="+",
        help="folder of a run that was trained or evaluated; what the page lacks because a file "
        "is missing is said in it",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="page to write"
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        nargs="+",
        default=[],
        metavar="NPZ",
        help="files of 'sslsv embed' to draw maps of; where none is given, what evaluate kept in "
        "the runs' cache/, if it is of one checkpoint and condition",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="columns File and others, such as Speaker, to colour maps by; the first folder of "
        "the path where none is given",
    )
    parser.add_argument(
        "--audio",
        type=Path,
        metavar="BASE_PATH",
        help="folder of the audio, to make the hardest pairs playable: the first 3 s of each file "
        "go into the page",
    )
    parser.add_argument(
        "--audio_mb",
        type=float,
        default=20.0,
        metavar="MB",
        help="size of all clips together; hardest pairs come first",
    )


def _run(arguments: argparse.Namespace) -> None:
    from sslsv.report import report

    a = arguments
    left_out = report(a.runs, a.out, a.embeddings, a.labels, a.audio, a.audio_mb)
    for sentence in left_out:
        print(f"note: {sentence}")
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.1f} MB; open it in a browser")


COMMAND = Command(
    name="report",
    help="Write what runs found as one HTML page.",
    details="Results, DET curves, histograms, hardest pairs, training curves, maps of\n"
    "embeddings and settings that differ; the page needs no network.",
    example="sslsv report runs/simclr runs/moco --out report.html",
    add_arguments=_add_arguments,
    run=_run,
)
