"""Run the notebooks of notebooks/ on a small corpus, and keep them with their outputs.

    pip install -e .[notebooks]
    python tools/run_notebooks.py [NAME ...] [--check]

Below ``<work>/runs/notebooks/`` (``--work``; by default the project's own folder) a corpus is
spoken by tools/prepare_data/prepare_demo.py, and the trainings of notebooks/demo/ are run on it,
two at a time; what is finished is not done again. Then every notebook is executed from its first
cell to its last, in ``<work>/notebooks``, so that paths in it lead to the same places as when it is
opened in the project. Outputs are made small and free of anything of this machine. With ``--check``
the files stay as they are, and it is an error if outputs of another kind than the kept ones appear.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without installing

from sslsv.errors import UserError  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
CONFIGS = NOTEBOOKS / "demo"
RUNS = Path("runs/notebooks")  # below the work folder, as the configurations say
DATA = RUNS / "data"
HELD_OUT_SESSION = 3  # of a training speaker, for the notebook on few labels
FROZEN = ("trainer.learning_rate=0.03",)  # of a classifier alone
TIMEOUT = 600  # seconds of a cell
COLOURS = 256  # of a picture that is kept
THUMBNAIL = (640, 640)  # pixels at most of a picture in the documentation
SHOWN = {"05": 2}  # which picture of a notebook that is; of others the first
# A path of a machine: of its root, and no end of an HTML tag, fraction or part of a longer path.
ABSOLUTE = re.compile(r"(?<![\w.<~/:{}])/(?:\w[\w.-]*/)+[\w.-]*|\b[A-Z]:\\")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of corpus and trainings."""

    corpus: dict[str, int]  # options of prepare_demo.py
    fractions: tuple[str, ...]  # of labelled utterances
    seeds: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]  # of a configuration, over those of its file


FULL = Size(  # some minutes
    corpus={"train_voices": 24, "test_voices": 16, "utterances": 12, "noises": 8, "rooms": 2},
    fractions=("0.1", "0.25", "0.5", "1"),
    seeds=("1", "2", "3"),
    settings={},
)
TINY = Size(  # to see whether all works
    corpus={"train_voices": 8, "test_voices": 6, "utterances": 12, "noises": 2, "rooms": 1},
    fractions=("0.25", "1"),
    seeds=("1",),
    settings={
        "simclr": ("trainer.epochs=4",),
        "simclr_ssps": ("trainer.epochs=4", "method.ssps.start_epoch=2"),
        "supervised": ("trainer.epochs=2",),
        "labels": ("trainer.epochs=2",),
    },
)

# The corpus and the trainings --------------------------------------------------------------------


def prepare(work: Path, size: Size = FULL, jobs: int = 2) -> None:
    """Corpus, lists and trainings below ``work``; the output of each goes to a file beside it.

    Raises:
        UserError: one fails.
    """
    (work / RUNS).mkdir(parents=True, exist_ok=True)
    sizes = [f"--{name}={value}" for name, value in size.corpus.items()]
    script = ROOT / "tools" / "prepare_data" / "prepare_demo.py"
    command = [sys.executable, str(script), str(DATA), *sizes, "--workers", str(jobs)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the corpus cannot be made: {done.stderr.strip()[-500:]}")
    write_lists(work / DATA)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, os.chdir, (work,)) as pool:
        started = {chain.__name__: pool.submit(logged, chain, size) for chain in CHAINS}
        for name, future in started.items():
            try:
                future.result()
            except Exception as error:
                log = work / RUNS / f"{name}.log"
                raise UserError(f"the training '{name}' fails ({error}); see {log}") from error


def write_lists(data: Path) -> None:
    """Lists of the corpus: training, test, trials of each half of the test speakers."""
    files = sorted(path.relative_to(data).as_posix() for path in data.glob("demo/*/*/*.wav"))
    parts = [file.split("/") for file in files]
    table = pd.DataFrame({"File": files, "Speaker": [speaker for _, speaker, _, _ in parts]})
    table["Session"] = [f"{speaker}/{session}" for _, speaker, session, _ in parts]
    is_train = table["Speaker"] < "sp2"
    held_out = table["Session"].str.endswith(str(HELD_OUT_SESSION))
    lists = {
        "train": is_train,
        "test": ~is_train,
        "labelled_train": is_train & ~held_out,
        "labelled_test": is_train & held_out,
    }
    for name, chosen in lists.items():
        table[chosen].to_csv(data / f"{name}.csv", index=False)
    speakers = sorted(set(table["Speaker"][~is_train]))
    middle = len(speakers) // 2
    for name, half in (("dev", speakers[:middle]), ("test", speakers[middle:])):
        rows = table[table["Speaker"].isin(half)]
        pairs = itertools.combinations(zip(rows["File"], rows["Speaker"], strict=True), 2)
        lines = [f"{int(a == b)} {first} {second}\n" for (first, a), (second, b) in pairs]
        (data / name).write_text("".join(lines))


def logged(chain: Callable[[Size], None], size: Size) -> None:
    """Run ``chain`` with what it says in a file."""
    with (
        open(RUNS / f"{chain.__name__}.log", "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        chain(size)


def train_and_test(name: str, size: Size, baselines: bool = False) -> None:
    from sslsv.config import load_config
    from sslsv.experiment import evaluate, train

    config = load_config(CONFIGS / f"{name}.yml", size.settings.get(name, ()))
    train(config)
    evaluate(config, baselines=baselines)


def few_labels(size: Size, *options: str) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import label_efficient

    study = [str(CONFIGS / "labels.yml"), "--fractions", *size.fractions, "--seeds", *size.seeds]
    if label_efficient.main([*study, *size.settings.get("labels", ()), *options]):
        raise UserError("tools/label_efficient.py refuses")


def simclr(size: Size) -> None:
    """And the classifier on its encoder."""
    train_and_test("simclr", size, baselines=True)
    weights = RUNS / "simclr" / "checkpoints" / "model_latest.pt"
    few_labels(size, "--frozen", f"trainer.init_weights={weights}", *FROZEN)


def simclr_ssps(size: Size) -> None:
    train_and_test("simclr_ssps", size)


def supervised(size: Size) -> None:
    train_and_test("supervised", size)


def labels(size: Size) -> None:
    few_labels(size)


CHAINS = (simclr, simclr_ssps, labels, supervised)


# The notebooks -----------------------------------------------------------------------------------


def find(names: Sequence[str] = ()) -> list[Path]:
    """All notebooks, or those whose names begin with one of ``names``."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            raise UserError(
                f"{name}: no such notebook; there are: {', '.join(path.stem for path in paths)}"
            )
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def execute(path: Path, work: Path) -> Any:
    """The notebook with outputs of now, cleaned.

    Raises:
        UserError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    folder = work / NOTEBOOKS.name
    folder.mkdir(exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors; it warns of the transport
    )
    try:
        client.execute(env=environment(work))
    except CellExecutionError as error:
        raise UserError(f"{path.name}: {error}") from None
    return clean(notebook, work)


def environment(work: Path) -> dict[str, str]:
    """Of a kernel: the package of this folder, whatever else is installed, and no history."""
    before = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, (str(ROOT), before)))
    return {**os.environ, "PYTHONPATH": paths, "IPYTHONDIR": str(work / RUNS / "ipython")}


def clean(notebook: Any, work: Path) -> Any:
    """Without this machine's paths and versions, and with small pictures."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type != "stream":
                output.metadata = {}
            for kind, content in output.get("data", {}).items():
                if kind == "image/png":
                    output.data[kind] = small(content)
                elif isinstance(content, str):
                    output.data[kind] = content.replace(f"{work}/", "")
            if "text" in output:
                output.text = output.text.replace(f"{work}/", "")
    return notebook


def small(png: str) -> str:
    """A picture (base64) of few colours: of curves and text the eye sees no difference."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    return base64.b64encode(few_colours(picture)).decode()


def few_colours(picture: Any) -> bytes:
    """PNG of a picture of Pillow. An octree keeps thin lines of two colours apart."""
    from PIL import Image

    out = io.BytesIO()
    how = {"method": Image.Quantize.FASTOCTREE, "dither": Image.Dither.NONE}
    picture.convert("RGB").quantize(COLOURS, **how).save(out, "PNG", optimize=True)
    return out.getvalue()


def pictures(notebook: Any) -> list[bytes]:
    """The PNGs of a notebook, in order."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    found = (output.get("data", {}).get("image/png") for output in outputs)
    return [base64.b64decode(png) for png in found if png]


def illustrate(paths: Sequence[Path]) -> None:
    """Small pictures for docs/notebooks.md of notebooks that have just been run."""
    import nbformat
    from PIL import Image

    for path in paths:
        png = pictures(nbformat.read(path, as_version=4))[SHOWN.get(path.stem[:2], 0)]
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
        target = ROOT / "docs" / "img" / f"notebook_{path.stem[:2]}.png"
        target.write_bytes(few_colours(picture))


def problems(notebook: Any) -> list[str]:
    """What must not be in a notebook that is kept: cells without a run, errors, absolute paths."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not run from its first cell to its last")
    if not any(cell.outputs for cell in code):
        found.append("has no outputs")
    for number, cell in enumerate(notebook.cells, start=1):
        texts = [cell.source]
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"cell {number}: {output.ename}: {output.evalue}")
            texts.append(output.get("text", ""))
            texts += [x for kind, x in output.get("data", {}).items() if is_text(kind, x)]
        for text in texts:
            text = re.sub(r"base64,[\w+/=]+", "", text)  # sounds and pictures in HTML
            found += [f"cell {number}: path {path[0]}" for path in ABSOLUTE.finditer(text)]
    return found


def is_text(kind: str, content: Any) -> bool:
    return kind.startswith("text/") and isinstance(content, str)


def kinds(notebook: Any) -> list[list[str]]:
    """Which outputs each cell has."""
    return [
        [" ".join([output.output_type, *sorted(output.get("data", {}))]) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def run(path: Path, work: Path, check: bool) -> str:
    """Execute a notebook, and keep it or compare; says what was done.

    Raises:
        UserError: a cell fails, outputs hold what they must not, or are not those that are kept.
    """
    import nbformat

    notebook = execute(path, work)
    if found := problems(notebook):
        raise UserError(f"{path.name}: {'; '.join(found)}")
    if not check:
        nbformat.write(notebook, path)
        return f"{path.name}: {path.stat().st_size / 1000:.0f} kB"
    kept = nbformat.read(path, as_version=4)
    if kinds(kept) != kinds(notebook):
        raise UserError(
            f"{path.name}: its outputs are not those of its cells; run python "
            f"tools/run_notebooks.py {path.stem}"
        )
    return f"{path.name}: runs"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="such as 01 (default: all)")
    parser.add_argument("--work", type=Path, default=ROOT, help="folder for corpus and trainings")
    parser.add_argument("--check", action="store_true", help="do not change the notebooks")
    parser.add_argument("--tiny", action="store_true", help="less data, only to see that all works")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: 2)")
    options = parser.parse_args(arguments)
    if options.tiny and not options.check:
        parser.error("--tiny: is for --check; outputs of so little data show nothing")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # jobs share the cores
    work = options.work.resolve()
    try:
        paths = find(options.names)
        prepare(work, TINY if options.tiny else FULL, options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            for line in pool.map(lambda path: run(path, work, options.check), paths):
                print(line)
        if not options.check:
            illustrate(paths)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
