"""``sslsv list``: the methods, encoders and configurations there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sslsv import catalogue, cli
from sslsv.registry import ENCODERS, METHODS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "method:\n  type: {}\nencoder:\n  type: {}\n"
PUBLISHED = """\
tables:
  one:
    list: VoxCeleb1-O
    source: a paper
    models:
      here/a: {method: A, eer: 5.25, mindcf: 0.5}
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three configurations, one of which builds on another and one of which is published."""
    for name, text in {
        "here/a": CONFIG.format("simclr", "resnet34"),
        "here/b": "base: ../a/config.yml\nencoder:\n  type: tdnn\n",
        "c": CONFIG.format("not_known", "neither"),  # which is for 'sslsv doctor' to say
    }.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.yml").write_text(text)
    (tmp_path / "models" / "published.yml").write_text(PUBLISHED)
    return tmp_path / "models"


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["list", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def objects(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    return json.loads(listed(capsys, *arguments, "--json"))


@pytest.mark.parametrize(("kind", "registry"), [("methods", METHODS), ("encoders", ENCODERS)])
def test_parts_are_those_of_the_registry(
    kind: str, registry: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text, found = listed(capsys, kind), objects(capsys, kind)
    assert [item["name"] for item in found] == registry.names()
    assert [line.split()[0] for line in text.splitlines() if line[0] != " "] == registry.names()
    flat = " ".join(text.split())
    for item in found:
        assert item["about"].endswith(".")
        assert item["about"] in " ".join(registry.get(item["name"]).cls.__doc__.split())
        assert f"{item['name']} {item['about']}".replace("- ", "-") in flat.replace("- ", "-")
    assert max(map(len, text.splitlines())) <= 80


def test_a_sentence_ends_where_the_next_begins() -> None:
    text = """SimCLR with crops (arXiv 2104.14294, sec. 3.1): from
    short to long. Anchors are short.

    And more."""
    expected = "SimCLR with crops (arXiv 2104.14294, sec. 3.1): from short to long."
    assert catalogue._first_sentence(text) == expected


def test_configs(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [tuple(item.values()) for item in objects(capsys, "configs", models)]
    assert found == [
        (f"{models}/c", "not_known", "neither", None),
        (f"{models}/here/a", "simclr", "resnet34", 5.25),
        (f"{models}/here/b", "simclr", "tdnn", None),
    ]
    head, *rows, note = listed(capsys, "configs", models / "here").splitlines()
    assert head.split() == ["method", "encoder", "EER", "(%)*", "path"]
    assert [row.split() for row in rows] == [
        ["simclr", "resnet34", "5.25", f"{models}/here/a"],
        ["simclr", "tdnn", "-", f"{models}/here/b"],
    ]
    assert note.startswith("* published, not measured here")


def test_models_here_come_before_those_of_the_clone(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models.parent)
    paths = [item["path"] for item in objects(capsys, "configs")]
    assert paths == ["models/c", "models/here/a", "models/here/b"]
    monkeypatch.chdir(models / "here")
    found = {item["path"]: item["published_eer"] for item in objects(capsys, "configs")}
    assert len(found) == len(list((ROOT / "models").rglob("config.yml")))
    assert found[f"{ROOT}/models/ssl/voxceleb2/simclr/simclr_proj-none_t-0.03"] == 9.05


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["configs", "nowhere"], "nowhere: no such folder; give the one that"),
        (["configs", "models/here/a/empty"], "models/here/a/empty: no config.yml in it or below"),
        (["methods", "models"], "models: only 'sslsv list configs' takes a folder"),
        (["configs", "odd"], "odd/config.yml: method.type: is missing"),
        (["configs", "text"], "text/config.yml line 2: not valid YAML"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models.parent)
    (models / "here/a/empty").mkdir()
    for name, text in {"odd": "method: simclr\n", "text": "a: [\n"}.items():
        Path(name).mkdir()
        Path(name, "config.yml").write_text(text)
    assert cli.main(["list", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1


def test_without_models_or_a_clone_the_folder_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "_CLONE", tmp_path / "site-packages" / "models")
    (tmp_path / "site-packages" / "models").mkdir(parents=True)  # of another project
    assert cli.main(["list", "configs"]) == 2
    assert capsys.readouterr().err.startswith("error: models: no such folder")


@pytest.mark.parametrize("arguments", [["list", "methods"], ["--help"]])
def test_a_reader_that_has_seen_enough(arguments: list[str]) -> None:
    """As ``| head`` is."""
    code = f"import sys; from sslsv.cli import main; sys.exit(main({arguments}))"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert (done.returncode, done.stderr) == (0, "")
