"""The command line: ``sslsv COMMAND``, and the scripts in ``sslsv/bin`` that call it.

Exit codes: 0 done, 2 bad input (one sentence says what), 130 interrupted; a training that was asked
to stop and has saved ends with 143 (SIGTERM) or 130 (SIGINT).
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslsv.errors import UserError
from sslsv.interrupt import Interrupted


def main(argv: Sequence[str] | None = None, prog: str = "sslsv") -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(prog))
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(COMMANDS)}"
        print(f"error: unknown command '{name}'; {hint}", file=sys.stderr)
        return 2
    return run_command(name, rest, f"{prog} {name}")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse ``argv`` for command ``name`` and run it; errors a user can mend are one line."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog, description=command.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        command.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:  # which has been said
        return interrupted.code
    except KeyboardInterrupt:
        hint = "; the same command goes on from the last checkpoint" if name == "train" else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True)
class Command:
    """A command: what it says of itself, its arguments, what it does."""

    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the folder of config.yml")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings to change, such as trainer.epochs=10, "
        "evaluation.test.0.trials=[a,b] or run_dir=PATH",
    )


def _train(arguments: argparse.Namespace) -> None:
    from sslsv import distributed
    from sslsv.config import load_config
    from sslsv.experiment import train

    with distributed.session():
        train(load_config(arguments.config, arguments.overrides))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--model_suffix", default="latest", help="which checkpoint: latest, best, avg or epoch-N"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also score the untrained encoder and MFCC statistics",
    )
    parser.add_argument(
        "--plots",
        action="store_true",
        help="also draw DET curves, score histograms, maps of embeddings, confusion matrices",
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from sslsv import distributed
    from sslsv.config import load_config
    from sslsv.experiment import evaluate

    with distributed.session():
        config = load_config(arguments.config, arguments.overrides)
        evaluate(config, arguments.model_suffix, arguments.baselines, arguments.plots)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--list",
        nargs="+",
        required=True,
        dest="sources",
        metavar="FILE",
        help="lists, FILE.csv with a column File of paths below dataset.base_path, or audio files",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="X.npz (arrays files and embeddings) or X.ark (Kaldi, with X.scp beside it)",
    )
    parser.add_argument(
        "--model_suffix", default="latest", help="which checkpoint: latest, best, avg or epoch-N"
    )
    parser.add_argument("--num_frames", type=int, default=1, help="evenly spaced frames of a file")
    parser.add_argument(
        "--frame_length", type=int, help="samples of a frame; the whole file where none is given"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="files embedded together")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the encoder"
    )


def _embed(arguments: argparse.Namespace) -> None:
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


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--full", action="store_true", help="also decode every file to its end")


def _doctor(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.doctor import examine

    examine(load_config(arguments.config, arguments.overrides), arguments.full)


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--format", required=True, metavar="FORMAT", help="onnx (a graph) or safetensors (weights)"
    )
    parser.add_argument(
        "--model_suffix", default="latest", help="which checkpoint: latest, best, avg or epoch-N"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="file to write; model_<suffix>.<format> in the run's folder where none is given",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="SCORES",
        help="score file of this checkpoint to calibrate scores on, of this or the run's folder, "
        "such as scores/trained_sv_cosine_<list>.txt",
    )


def _export(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.export import export

    config = load_config(arguments.config, arguments.overrides)
    a = arguments
    export(config, a.format, a.model_suffix, a.output, a.calibrate)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="audio file")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help=".safetensors or .onnx file of 'sslsv export', folder of a run, or its config.yml",
    )
    parser.add_argument(
        "--model_suffix", help="which checkpoint of a run: latest, best, avg or epoch-N"
    )
    parser.add_argument(
        "--prior", type=float, default=0.5, help="share of pairs that are of one speaker"
    )
    parser.add_argument(
        "--threshold", type=float, help="cosine from which on to decide for one speaker"
    )
    parser.add_argument(
        "--resample",
        action="store_true",
        default=None,
        help="convert audio of another rate, whatever dataset.resample was",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _verify(arguments: argparse.Namespace) -> None:
    import json

    from sslsv.model import format_verdict, load, verify

    a = arguments
    model = load(a.model, a.model_suffix, a.resample)
    found = verify(a.a, a.b, model, a.prior, a.threshold)
    for remark in (*model.remarks, *(model.calibration.remarks if model.calibration else ())):
        print(f"warning: {remark}", file=sys.stderr)
    print(json.dumps(found, indent=2) if a.json else format_verdict(found))


def _add_average(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--count", type=int, default=10, help="how many epochs")
    parser.add_argument("--limit_nb_epochs", type=int, help="use none after this epoch")


def _average(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.trainer.averaging import average_epochs

    config = load_config(arguments.config, arguments.overrides)
    assert config.run_dir is not None
    path = average_epochs(config.run_dir, arguments.count, arguments.limit_nb_epochs)
    print(f"{path}: mean of {arguments.count} epochs; evaluate it with --model_suffix avg")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--steps", type=int, default=20, help="how many steps to measure")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, not measured")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="trace to write, profile.json goes beside it; profile/trace.json in the run's folder "
        "where none is given",
    )


def _profile(arguments: argparse.Namespace) -> None:
    from sslsv.config import load_config
    from sslsv.profiling import profile

    config = load_config(arguments.config, arguments.overrides)
    profile(config, arguments.steps, arguments.warmup, arguments.trace)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--fit",
        type=Path,
        nargs="+",
        default=[],
        metavar="SCORES",
        help="score file to fit on; several, one a system, are fused",
    )
    source.add_argument("--model", type=Path, metavar="JSON", help="what an earlier call fitted")
    parser.add_argument(
        "--apply",
        type=Path,
        nargs="+",
        required=True,
        metavar="SCORES",
        help="score file to calibrate; of several systems in the order of --fit",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="score file to write; what was fitted goes beside it, as .json",
    )
    parser.add_argument(
        "--prior", type=float, default=0.01, help="of a target trial, to fit and measure for"
    )
    parser.add_argument(
        "--quality",
        type=Path,
        nargs="+",
        default=[],
        metavar="CSV",
        help="measures of files, as columns beside File: used as they are, of both files of a "
        "trial (scores/*_cohort.csv has some, where score_norm is set)",
    )
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="columns of --quality to use")
    parser.add_argument(
        "--durations",
        type=Path,
        metavar="FOLDER",
        help="also use the logarithms of both files' durations; paths in lists are below FOLDER",
    )


def _calibrate(arguments: argparse.Namespace) -> None:
    from sslsv.evaluations.calibration import calibrate

    a = arguments
    calibration, table = calibrate(
        a.apply, a.output, a.fit, a.model, a.prior, a.quality, a.columns, a.durations
    )
    for remark in calibration.remarks:
        print(f"warning: {remark}", file=sys.stderr)
    print(table)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="score file, or the folder of a run")
    parser.add_argument("b", metavar="B", type=Path, help="another, with the same trials")
    parser.add_argument(
        "--metric", default="eer", help="eer, eer_rocch, mindcf, actdcf, cllr or mincllr"
    )
    parser.add_argument(
        "--speakers",
        type=Path,
        metavar="FILE.csv",
        help="columns File and Speaker; where none is given, files that target trials join are "
        "one speaker",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the speakers")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument(
        "--p_target", type=float, default=0.01, help="prior of a target trial, for detection costs"
    )


def _compare(arguments: argparse.Namespace) -> None:
    from sslsv.evaluations.compare import compare, format_report

    print(format_report(compare(**vars(arguments))))


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN_DIR",
        type=Path,
        nargs="+",
        help="folder of a run; one without training.json and evaluation.json is refused, and a "
        "part of the page whose files are missing is left out with a sentence there",
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
        help="size of all clips; hardest pairs first",
    )


def _report(arguments: argparse.Namespace) -> None:
    from sslsv.report import report

    a = arguments
    left_out = report(a.runs, a.out, a.embeddings, a.labels, a.audio, a.audio_mb)
    for sentence in left_out:
        print(f"note: {sentence}")
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.1f} MB; open it in a browser")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        nargs="?",
        default=Path("models"),
        help="runs are looked for in it and below",
    )
    parser.add_argument(
        "--list",
        nargs="+",
        default=[],
        dest="lists",
        metavar="NAME",
        help="lists of trials to show; where none is given, of each run the first one it was "
        "tested on",
    )
    parser.add_argument(
        "--format", choices=["markdown", "json"], default="markdown", help="of the table"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="instead write the tables of FOLDER/published.yml between the markers "
        "'results:begin NAME' and 'results:end' of this file",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --readme: write nothing, and end with 2 where something would change",
    )


def _results(arguments: argparse.Namespace) -> None:
    from sslsv.results_table import results, update_readme

    a = arguments
    if a.check and a.readme is None:
        raise UserError("--check: needs --readme FILE, the file to check")
    if a.readme is not None:
        print(update_readme(a.readme, a.folder, a.check))
    else:
        print(results(a.folder, a.lists, a.format))


COMMANDS = {
    "train": Command(
        "Train a model, or go on where the last run in its folder stopped.",
        "sslsv train models/demo/simclr/config.yml trainer.epochs=10",
        _add_config,
        _train,
    ),
    "average": Command(
        "Average the weights of a run's last epochs.",
        "sslsv average models/demo/simclr/config.yml --count 3",
        _add_average,
        _average,
    ),
    "evaluate": Command(
        "Run the test evaluations of a trained model.",
        "sslsv evaluate models/demo/simclr/config.yml --baselines",
        _add_evaluate,
        _evaluate,
    ),
    "embed": Command(
        "Write the embeddings of audio files, as npz or Kaldi ark.",
        "sslsv embed models/demo/simclr/config.yml --list test.csv --output test.npz",
        _add_embed,
        _embed,
    ),
    "calibrate": Command(
        "Turn scores into log-likelihood ratios, of one system or several together.",
        "sslsv calibrate --fit dev.txt --apply test.txt --output test_llr.txt",
        _add_calibrate,
        _calibrate,
    ),
    "compare": Command(
        "Say whether two systems differ on the same trials, with error bars.",
        "sslsv compare runs/simclr runs/moco --metric eer",
        _add_compare,
        _compare,
    ),
    "report": Command(
        "Write what runs found as one HTML page.",
        "sslsv report runs/simclr runs/moco --out report.html",
        _add_report,
        _report,
    ),
    "results": Command(
        "Make a table of all runs below a folder, beside what is published of them.",
        "sslsv results models --format json",
        _add_results,
        _results,
    ),
    "export": Command(
        "Write a trained model as one file for other programs.",
        "sslsv export models/demo/simclr/config.yml --format onnx",
        _add_export,
        _export,
    ),
    "verify": Command(
        "Say whether two files are of one speaker: score, probability and decision.",
        "sslsv verify a.wav b.wav --model models/demo/simclr/model_latest.safetensors",
        _add_verify,
        _verify,
    ),
    "doctor": Command(
        "Look for what would stop or spoil a training, and say how to mend it.",
        "sslsv doctor models/demo/simclr/config.yml --full",
        _add_doctor,
        _doctor,
    ),
    "profile": Command(
        "Time the stages of a training step, and write a trace of a few steps.",
        "sslsv profile models/demo/simclr/config.yml --steps 50",
        _add_profile,
        _profile,
    ),
}


def _overview(prog: str) -> str:
    lines = [f"usage: {prog} COMMAND ...", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:10s}{command.help}", f"{'':12s}{command.example}"]
    return "\n".join([*lines, "", f"'{prog} COMMAND --help' lists the arguments of a command."])
