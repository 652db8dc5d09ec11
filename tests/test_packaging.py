"""What is built for others, and that files beside the code agree with pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import sslsv

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
DECOYS = (  # what a working folder has beside the package
    "data/a.wav",
    "runs/first/checkpoints/model_latest.pt",
    "models/demo/simclr/config.yml",
    "models/demo/simclr/checkpoints/model_latest.pt",
    "models/demo/simclr/evaluation.json",
    "site/index.html",
    "tests/test_decoy.py",
    "tests/methods/test_decoy.py",
    "wandb/run.log",
)


def setuptools_path(folder: Path) -> str:
    """What PYTHONPATH has to begin with so that setuptools is as new as pyproject.toml asks."""
    needed = re.search(r'requires = \["setuptools>=(\d+)"\]', PYPROJECT)
    assert needed
    if int(importlib.metadata.version("setuptools").partition(".")[0]) >= int(needed[1]):
        return ""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, f"setuptools>={needed[1]}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(
            f"needs setuptools {needed[1]}, which cannot be installed: {done.stderr[-200:]}"
        )
    return str(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist of a working folder with traces of work."""
    folder = tmp_path_factory.mktemp("packaging")
    project = folder / "project"
    project.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, project)
    for name in ("sslsv", "tools", "docs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    for name in DECOYS:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("decoy")
    tools = setuptools_path(folder / "tools")
    for hook in ("build_sdist", "build_wheel"):  # in a process each, as pip and build do
        code = f"from setuptools import build_meta; build_meta.{hook}('../dist')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=project,
            env={**os.environ, "PYTHONPATH": tools},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return folder / "dist"


def package_files() -> set[str]:
    found = {path for path in (ROOT / "sslsv").rglob("*") if path.is_file()}
    return {p.relative_to(ROOT).as_posix() for p in found if "__pycache__" not in p.parts}


def test_the_wheel_holds_all_of_the_package_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        info = f"sslsv-{sslsv.__version__}.dist-info"
        assert {name for name in names if not name.startswith(f"{info}/")} == package_files()
        assert f"{info}/licenses/LICENSE.md" in names
        assert "sslsv = sslsv.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def names_in_sdist(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        return {m.name.partition("/")[2] for m in sdist.getmembers() if m.isfile()}


def test_the_sdist_holds_all_of_the_package_and_no_data_or_runs(built: Path) -> None:
    names = names_in_sdist(built)
    assert package_files() | {"README.md", "LICENSE.md", "pyproject.toml"} <= names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders - {"tests"} == {"sslsv", "sslsv.egg-info"}


def test_the_sdist_holds_no_tests(built: Path) -> None:
    assert not [name for name in names_in_sdist(built) if name.startswith("tests/")]


def test_continuous_integration_runs_the_ends_of_what_is_allowed() -> None:
    workflow = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "ci.yml")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    python = re.search(r'requires-python = ">=(3\.\d+),<3\.(\d+)"', PYPROJECT)
    assert python
    assert matrix["python"] == [python[1], f"3.{int(python[2]) - 1}"]
    oldest = re.search(r'"torch>=([\d.]+)"', PYPROJECT)
    newest = re.search(r"^torch==([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert oldest
    assert newest
    assert matrix["torch"] == [f"{oldest[1]}.0", newest[1]]


def test_hooks_check_what_make_lint_checks() -> None:
    hooks = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    tools = re.findall(r"-m (ruff \w+|mypy)", lint[1])
    assert [re.sub(r"^.* -m ", "", hook["entry"]) for hook in hooks] == tools


def test_citation_and_change_log_know_the_version() -> None:
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["version"] == sslsv.__version__
    titles = {reference["title"] for reference in citation["references"]}
    assert titles == set(
        re.findall(r"^ +title += \{(.*)\}", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{sslsv.__version__.partition('.dev')[0]}] - unreleased" in changes
