"""Notebooks run from their first cell to their last, and are kept with small, clean outputs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import run_notebooks as tool  # noqa: E402

from sslsv.errors import UserError  # noqa: E402

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NAMES = ["evaluation", "embeddings_over_training", "augmented_views", "dataset_statistics"]
NAMES += ["ssps_pseudo_positives", "label_efficient", "fusion_and_calibration"]
PATHS = [tool.NOTEBOOKS / f"{i:02d}_{name}.ipynb" for i, name in enumerate(NAMES, start=1)]
MOST_LINES = 12  # of a code cell
MOST_BYTES = {"one": 400_000, "all": 1_500_000, "pictures": 400_000}

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny corpus and the trainings that notebooks look at."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # two jobs at a time
        tool.prepare(folder, tool.TINY)
    return folder


@pytest.fixture(scope="module")
def outcomes(work: Path) -> dict[str, str]:
    """What became of each notebook."""

    def outcome(path: Path) -> str:
        try:
            return tool.run(path, work, check=True)
        except UserError as error:
            return f"error: {error}"

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("OMP_NUM_THREADS", "1")
        return dict(zip((p.stem for p in PATHS), pool.map(outcome, PATHS), strict=True))


def test_all_notebooks_are_known() -> None:
    assert tool.find() == PATHS
    assert tool.find(["03", "01_eval"]) == [PATHS[0], PATHS[2]]
    with pytest.raises(UserError, match="no such notebook; there are: 01_evaluation"):
        tool.find(["99"])


@each
def test_runs_and_gives_outputs_like_those_that_are_kept(
    path: Path, outcomes: dict[str, str]
) -> None:
    assert outcomes[path.stem] == f"{path.name}: runs"


@each
def test_is_kept_with_clean_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert tool.problems(notebook) == []
    assert tool.pictures(notebook)
    assert path.stat().st_size < MOST_BYTES["one"]
    for cell in notebook.cells:
        assert cell.metadata == {}


@each
def test_is_prose_and_calls(path: Path) -> None:
    notebook = read(path)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert max(len(source.splitlines()) for source in code) <= MOST_LINES
    assert not re.search(r"^\s*(def|class|while|import matplotlib)\b", "\n".join(code), re.M)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[:4] == ["markdown", "code", "markdown", "code"]
    assert notebook.cells[2].source.startswith("**Change this cell**")  # the one that follows
    assert "runs/notebooks" in code[1]
    assert not any("runs/notebooks" in source for source in code[2:])


def test_they_are_small_together() -> None:
    assert sum(path.stat().st_size for path in PATHS) < MOST_BYTES["all"]
    images = list((ROOT / "docs" / "img").glob("notebook_*.png"))
    assert sorted(image.stem[-2:] for image in images) == [path.stem[:2] for path in PATHS]
    assert sum(image.stat().st_size for image in images) < MOST_BYTES["pictures"]


def test_the_page_shows_each_of_them() -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text()
    for path in PATHS:
        assert f"(../notebooks/{path.name})" in page
        assert f"(img/notebook_{path.stem[:2]}.png)" in page


def test_extras_have_what_notebooks_need() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in ("notebooks", "dev"):
        (packages,) = re.findall(rf"^{extra} = \[(.*?)\]\n", text, re.DOTALL | re.MULTILINE)
        for name in ("nbclient", "nbformat", "ipykernel"):
            assert f'"{name}>=' in packages


# ------------------------------------------------------------------------------ what is looked for


@pytest.fixture
def notebook() -> Any:
    """One that was run."""
    v4 = nbformat.v4
    output = v4.new_output("stream", name="stdout", text="runs/a 1/2 http://x.org/y/z\n")
    cell = v4.new_code_cell("print(1)", execution_count=1, outputs=[output])
    return v4.new_notebook(cells=[v4.new_markdown_cell("prose"), cell])


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda cell: cell.update(outputs=[]), "has no outputs"),
        (lambda cell: cell.update(execution_count=3), "was not run from its first cell"),
        (lambda cell: cell.update(source="open('/home/me/x')"), "path /home/me/x"),
        (lambda cell: cell.outputs[0].update(text="saved to /tmp/run/y.pt"), "path /tmp/run/y.pt"),
        (
            lambda cell: cell.outputs.append(
                nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
            ),
            "cell 2: ValueError: no",
        ),
    ],
)
def test_a_notebook_that_must_not_be_kept(
    notebook: Any, spoil: Callable[[Any], None], found: str
) -> None:
    assert tool.problems(notebook) == []
    spoil(notebook.cells[1])
    (problem,) = tool.problems(notebook)
    assert found in problem


def test_cleaning_takes_out_what_is_of_the_machine(notebook: Any, tmp_path: Path) -> None:
    cell = notebook.cells[1]
    cell.metadata = {"execution": {"iopub.status.busy": "2020-01-01"}}
    cell.outputs[0].text = f"{tmp_path}/runs/a\n"
    notebook.metadata = {"language_info": {"name": "python", "version": "3.12.1"}}
    cleaned = tool.clean(notebook, tmp_path)
    assert cleaned.cells[1].outputs[0].text == "runs/a\n"
    assert cleaned.cells[1].metadata == {}
    assert cleaned.metadata.language_info == {"name": "python"}


def test_outputs_of_another_kind_are_noticed(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "01_x.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    monkeypatch.setattr(tool, "execute", lambda *_: notebook)
    assert tool.run(path, tmp_path, check=True) == "01_x.ipynb: runs"
    changed = nbformat.from_dict(notebook)
    changed.cells[1].outputs = [nbformat.v4.new_output("display_data", {"text/plain": "x"})]
    monkeypatch.setattr(tool, "execute", lambda *_: changed)
    with pytest.raises(UserError, match="its outputs are not those of its cells"):
        tool.run(path, tmp_path, check=True)
    assert path.read_bytes() == before
    tool.run(path, tmp_path, check=False)
    assert tool.kinds(read(path)) == [["display_data text/plain"]]


def test_a_cell_that_fails_is_one_sentence_with_its_error(tmp_path: Path) -> None:
    v4 = nbformat.v4
    path = tmp_path / "01_x.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(UserError, match=r"01_x.ipynb: (?s:.*)ZeroDivisionError"):
        tool.execute(path, tmp_path)
