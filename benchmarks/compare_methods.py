"""Every method of models/small trained on one small corpus under one budget, and evaluated.

    python benchmarks/compare_methods.py --data ../shared/data
    python benchmarks/compare_methods.py simclr vicreg --data ../shared/data --seeds 1 2 3
    python benchmarks/compare_methods.py simclr --data ../shared/data --no-augmentation
    python benchmarks/compare_methods.py --table

The same encoder, epochs, batches, augmentation and learning rate for all; what is remembered or
clustered is made to fit a thousand files (SIZES). Methods that need labels learn from train.csv,
the others from pool.csv. A run that is there already is not made again, one that was stopped goes
on, and each result is a line in docs/comparison.jsonl as soon as it is known. ``--table`` prints
these lines as Markdown, with what losses and embeddings did.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from scipy.stats import spearmanr

from sslsv import distributed
from sslsv.config import Config, load_config
from sslsv.experiment import evaluate, train
from sslsv.files import read_json
from sslsv.trainer.precision import choose

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "comparison.jsonl"
LISTS = ("trials.txt", "trials_fsdd.txt", "trials_emodb.txt")
SPEAKERS = "metadata.csv"  # of the corpus: who speaks in each file of the lists
PROJECTOR = ["method.projector_hidden_dim=512", "method.projector_output_dim=128"]
MULTICROP = ["dataset.ssl_dino_local_count=2"]
SSPS = [
    "trainer.last_checkpoint=null",
    "method.ssps.start_epoch={start}",
    "method.ssps.pos_queue_size=1024",
    "method.ssps.kmeans_nb_prototypes=250",
]
SWAV = [
    "method.nb_prototypes=80",
    "method.sk_epsilon=0.02",
    "method.queue_size=640",
    "method.queue_start_epoch=5",
]
# Of a method whose memories, clusters or heads would not suit a thousand files.
SIZES: dict[str, list[str]] = {
    "barlow_twins": PROJECTOR,
    "byol": [*PROJECTOR, "method.predictor_hidden_dim=512", "method.start_tau=0.99"],
    "combiner": PROJECTOR,
    "deepcluster": [*PROJECTOR, "method.nb_prototypes=[150,150,150]"],
    "dino": [
        *MULTICROP,
        "method.local_count=2",
        "method.head_hidden_dim=512",
        "method.head_bottleneck_dim=64",
        "method.head_output_dim=256",
        "method.start_tau=0.99",
        "method.teacher_temperature=0.02",
        "method.teacher_temperature_warmup=0.02",
    ],
    "lim": PROJECTOR,
    "moco": ["method.queue_size=512", "method.start_tau=0.99"],
    "moco_margins": ["method.queue_size=512", "method.start_tau=0.99"],
    "simclr_multiviews": MULTICROP,
    "simclr_ssps": SSPS,
    "simsiam": [
        "method.projector_hidden_dim=512",
        "method.projector_output_dim=512",
        "method.pred_hidden_dim=128",
    ],
    "supervised": [  # as many steps on its smaller list
        "dataset.train=train.csv",
        "method.nb_classes=167",
        "trainer.epochs={supervised}",
    ],
    "swav": [*PROJECTOR, *SWAV],
    "swav_ssps": [*PROJECTOR, *SSPS, *SWAV],
    "vibcreg": PROJECTOR,
    "vicreg": PROJECTOR,
    "vicreg_ssps": [*PROJECTOR, *SSPS],
    "wmse": ["method.projector_hidden_dim=512"],
}


def main() -> None:
    known = sorted(path.parent.name for path in (ROOT / "models" / "small").glob("*/config.yml"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all: " + ", ".join(known))
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="the corpus, with pool.csv",
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "comparison", help="where runs are kept"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="a run for each; %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=20, help="of each run; %(default)s")
    parser.add_argument(
        "--base_dim", type=int, default=8, help="channels of the encoder; %(default)s"
    )
    parser.add_argument(
        "--augmentation",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reverberation and noise on every crop",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="a line for each run; docs/comparison.jsonl"
    )
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    parser.add_argument("--curves", type=Path, metavar="FILE.png", help="draw the losses of runs")
    options = parser.parse_args()
    if unknown := set(options.methods) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.table or options.curves:
        if options.table:
            lines = read_results(options.results)
            print(f"{table(lines)}\n\n{signals(lines)}")
        if options.curves:
            draw(read_results(options.results), options.curves)
        return
    for seed in options.seeds:
        for method in options.methods or known:
            done = read_results(options.results)
            if not any(same(line, method, seed, options) for line in done):
                add(options.results, measure(method, seed, options, first=not done))


def same(line: dict[str, Any], method: str, seed: int, options: argparse.Namespace) -> bool:
    """Whether ``line`` is the result of this run, with the sizes as they are now."""
    asked = {"method": method, "seed": seed, "epochs": options.epochs, "base_dim": options.base_dim}
    asked |= {"augmentation": options.augmentation, "changed": sizes_of(method, options.epochs)}
    return all(line[key] == value for key, value in asked.items())


def settings(method: str, seed: int, options: argparse.Namespace) -> Config:
    """Of one run."""
    name = f"{method}_{options.base_dim}_{options.epochs}_{seed}"
    folder = options.runs / (name if options.augmentation else f"{name}_clean")
    common = [
        f"run_dir={folder}",
        f"seed={seed}",
        f"encoder.base_dim={options.base_dim}",
        "encoder.encoder_dim=256",
        f"trainer.epochs={options.epochs}",
        "trainer.batch_size=64",
        f"dataset.base_path={options.data.resolve()}",
        "dataset.train=pool.csv",
        "dataset.wrap_length=64000",
        f"dataset.augmentation.enable={options.augmentation}",
        f"evaluation.speakers={SPEAKERS}",
        f"evaluation.test.0.trials=[{','.join(LISTS)}]",
    ]
    sizes = sizes_of(method, options.epochs)
    return load_config(ROOT / "models" / "small" / method, [*common, *sizes])


def sizes_of(method: str, epochs: int) -> list[str]:
    """What of SIZES depends on the budget is filled in."""
    known = {"start": epochs * 3 // 4, "supervised": math.ceil(epochs * 1070 / 617)}
    return [text.format(**known) for text in SIZES.get(method, [])]


def measure(method: str, seed: int, options: argparse.Namespace, first: bool) -> dict[str, Any]:
    """Train and evaluate; the first run also measures what nobody has trained."""
    config = settings(method, seed, options)
    assert config.run_dir is not None
    train(config)
    evaluate(config, baselines=first)
    found = read_json(config.run_dir / "evaluation.json")
    history = list(read_json(config.run_dir / "training.json").values())
    timings = list(read_json(config.run_dir / "timings.json").values())
    return {
        "method": method,
        "seed": seed,
        "epochs": options.epochs,
        "base_dim": options.base_dim,
        "augmentation": options.augmentation,
        "precision": choose(config.trainer.mixed_precision, distributed.default_device()),
        "changed": sizes_of(method, options.epochs),
        "loss": [round(epoch["train/loss"], 4) for epoch in history],
        "effective_rank": [round(epoch["train/effective_rank"], 2) for epoch in history],
        "training_s": round(sum(epoch["training_seconds"] for epoch in timings)),
        "results": {
            key: value
            for key, value in found.items()
            if key.startswith(("test/", "untrained/", "mfcc/", "lists/"))
        },
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:  # one write, so that two runs may share a file
        file.write(json.dumps(line) + "\n")


Budget = tuple[str, int, int, bool]  # method, epochs, channels, augmentation


def by_budget(lines: Iterable[dict[str, Any]]) -> dict[Budget, list[dict[str, Any]]]:
    """The runs of all seeds."""
    groups: dict[Budget, list[dict[str, Any]]] = {}
    for line in lines:
        budget = (line["epochs"], line["base_dim"], line["augmentation"])
        groups.setdefault((line["method"], *budget), []).append(line)
    return groups


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each method and budget, best EER on the first list first."""
    rows = []
    for (method, epochs, base_dim, augmentation), runs in by_budget(lines).items():
        cells = [_cell([run["results"] for run in runs], "test", name) for name in LISTS]
        minutes = statistics.mean(run["training_s"] for run in runs) / 60
        place = statistics.mean(_eer(run["results"], "test", LISTS[0]) for run in runs)
        rows.append(
            (
                place,
                [
                    method,
                    f"{epochs} x {base_dim}",
                    "yes" if augmentation else "no",
                    str(len(runs)),
                    *cells,
                    f"{minutes:.0f}",
                ],
            )
        )
    for system in ("untrained", "mfcc"):
        found = [
            x["results"] for x in lines if f"{system}/sv_cosine/{LISTS[0]}/eer" in x["results"]
        ]
        if found:
            cells = [_cell(found[:1], system, name) for name in LISTS]
            rows.append((_eer(found[0], system, LISTS[0]), [f"*{system}*", *[""] * 3, *cells, ""]))
    heads = ["method", "epochs x channels", "augmented", "seeds", *LISTS, "min"]
    text = [heads, ["---"] * 4 + ["---:"] * (len(heads) - 4), *(cells for _, cells in sorted(rows))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in text)


def signals(lines: list[dict[str, Any]]) -> str:
    """Markdown: what the loss and the effective rank of the embeddings did in the first seed's run
    of each method; then how rank and EER go together with augmentation, where embeddings are
    pooled and no labels are used."""
    text = [f"| method | EER on {LISTS[0]} | loss, first and last epoch | effective rank |"]
    text.append("| --- | ---: | ---: | ---: |")
    pairs: list[tuple[float, float]] = []
    first = [line for line in lines if line["seed"] == 1]
    for line in sorted(first, key=lambda line: _eer(line["results"], "test", LISTS[0])):
        eer = _eer(line["results"], "test", LISTS[0])
        loss, rank = line["loss"], line["effective_rank"]
        text.append(
            f"| {line['method']}{_clean(line)} | {eer:.2f} | {loss[0]:.2f} → {loss[-1]:.2f} "
            f"| {rank[0]:.1f} → {rank[-1]:.1f} |"
        )
        if line["augmentation"] and line["method"] not in ("supervised", "cpc"):
            pairs.append((rank[-1], eer))
    found = spearmanr(*zip(*pairs, strict=True)).statistic
    return "\n".join(
        [*text, "", f"Spearman of last rank and EER: {found:.2f} ({len(pairs)} methods)"]
    )


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Training loss and effective rank of the embeddings by epoch: a small picture for each method
    and budget, the curves of its seeds in one."""
    from matplotlib.figure import Figure

    groups = by_budget(sorted(lines, key=lambda x: (x["method"], not x["augmentation"])))
    columns = 5
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(2.4 * columns, 1.9 * rows), dpi=120, layout="constrained")
    for place, runs in enumerate(groups.values(), 1):
        axes = figure.add_subplot(rows, columns, place)
        rank = axes.twinx()
        for run in runs:
            epochs = range(1, len(run["loss"]) + 1)
            axes.plot(epochs, run["loss"], color="#0072B2", linewidth=1)
            rank.plot(epochs, run["effective_rank"], color="#D55E00", linewidth=1, linestyle="--")
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        axes.set_title(f"{runs[0]['method']}{_clean(runs[0])}{seeds}", fontsize=8)
        axes.tick_params(labelsize=6, axis="y", labelcolor="#0072B2")
        axes.tick_params(labelsize=6, axis="x")
        rank.tick_params(labelsize=6, labelcolor="#D55E00")
    figure.supxlabel("epoch; solid: training loss, dashed: effective rank", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _clean(line: dict[str, Any]) -> str:
    return "" if line["augmentation"] else ", clean"


def _eer(results: dict[str, float], system: str, name: str) -> float:
    return results[f"{system}/sv_cosine/{name}/eer"]


def _cell(runs: Iterable[dict[str, float]], system: str, name: str) -> str:
    """Of one run its interval, of several their standard deviation."""
    runs = list(runs)
    values = [_eer(run, system, name) for run in runs]
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    low, high = (runs[0][f"{system}/sv_cosine/{name}/eer_{end}"] for end in ("low", "high"))
    return f"{values[0]:.2f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
