"""docs/configuration.md says what the dataclasses say, and links of documents lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import pytest
from ruamel.yaml import YAML

from sslsv.config import Config, from_dict
from sslsv.config_files import parse_value
from sslsv.registry import ENCODERS, EVALUATIONS, METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


def load_script() -> Any:
    path = ROOT / "tools" / "make_config_reference.py"
    spec = importlib.util.spec_from_file_location("make_config_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


script = load_script()
TEXT = script.PAGE.read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)


def anchors(text: str) -> list[str]:
    """Of the headings, by the rules of GitHub."""
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings(text)]


def rows(title: str) -> dict[str, list[str]]:
    """Cells of the table below a heading of the page, by key."""
    part = re.split(r"^#+ ", TEXT, flags=re.MULTILINE)
    (found,) = [p for p in part if p.partition("\n")[0] == title]
    lines = [line for line in found.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {c[0].strip("` "): c[1:] for c in cells}


class TestPage:
    def test_is_what_the_script_writes_now(self) -> None:
        assert script.page() == TEXT, "run python tools/make_config_reference.py"

    @pytest.mark.parametrize(
        ("title", "registry", "base"),
        [
            ("encoder", ENCODERS, "encoder"),
            ("method", METHODS, "method"),
            ("evaluation task", EVALUATIONS, "evaluation task"),
        ],
    )
    def test_has_every_key_of_every_type_once(self, title: str, registry: Any, base: str) -> None:
        for name in registry.names():
            own, shared = rows(f"{title}: {name}"), rows(base)
            fields = {f.name for f in dataclasses.fields(registry.get(name).config)}
            assert own.keys() | shared.keys() == fields
            assert "type" not in own

    def test_has_every_section_that_a_configuration_can_have(self) -> None:
        nested = "trainer, dataset, dataset.augmentation, dataset.sampler, evaluation, method.ssps"
        nested += ", method.loss, encoder.spec_augment, evaluation.validation.N.split"
        assert {*nested.split(", "), "method.Y_losses, method.Z_losses"} <= set(headings(TEXT))
        assert rows("Top level").keys() == {f.name for f in dataclasses.fields(Config)}

    def test_defaults_are_values_that_mean_the_same_in_a_file(self) -> None:
        """Every default of ``trainer`` and ``dataset``, read from the page and given as YAML."""
        needed = {"encoder": {"type": "resnet34"}, "method": {"type": "simclr"}}
        given: dict[str, Any] = {}
        for section in ("trainer", "dataset"):
            given[section] = {
                key: parse_value(cells[1].strip("`")) for key, cells in rows(section).items()
            }
        assert len(given["trainer"]) > 20
        assert from_dict(needed | given) == from_dict(needed)

    def test_a_key_whose_default_a_type_changes_stands_in_its_table(self) -> None:
        assert rows("encoder: tdnn").keys() == {"channels", "kernel_sizes", "dilations"}
        assert rows("encoder: simpleaudiocnn")["extract_mel_features"][1] == "`false`"
        assert rows("encoder")["extract_mel_features"][1] == "`true`"

    def test_every_key_is_explained_but_for_those_that_are_known_not_to_be(self) -> None:
        silent: dict[str, set[str]] = {}
        for section in script.sections():
            for row in script.fields_of(section):
                if not row.description:
                    declaring = [c for c in section.config.__mro__ if dataclasses.is_dataclass(c)]
                    declaring = [c for c in declaring if row.name in c.__annotations__]
                    silent.setdefault(declaring[-1].__name__, set()).add(row.name)
        assert silent == {}


@dataclass(kw_only=True)
class Below:
    """A section
    of two lines.

    And more."""

    inner: int = 1


@dataclass(kw_only=True)
class Base:
    kept: int = 1  # of the base
    changed: float = 0.5  # what it was
    both: list[str] = field(  # in the middle
        default_factory=lambda: ["a"]
    )
    silent: str = "# no comment"


@dataclass(kw_only=True)
class Example(Base):
    # One line above,
    # and another.
    above: Literal["a|b", "c"] = "c"
    changed: float = 1e-5
    section: Below | None = None
    needed: tuple[int, float]  # has no default


class TestScript:
    def test_reads_comments_beside_within_above_and_of_the_class_that_has_one(self) -> None:
        found = {row.name: row.description for row in script.fields_of(script.Section("", Example))}
        assert found == {
            "kept": "of the base",
            "changed": "what it was",
            "both": "in the middle",
            "silent": "",
            "above": "One line above, and another.",
            "section": "A section of two lines.",
            "needed": "has no default",
        }

    def test_leaves_out_what_the_base_has_just_so(self) -> None:
        found = script.fields_of(script.Section("", Example, Base))
        assert [row.name for row in found] == ["changed", "above", "section", "needed"]

    def test_words_for_types_and_values(self) -> None:
        found = {row.name: row for row in script.fields_of(script.Section("", Example))}
        kinds = {name: script.kind(row.hint, {Below: "x"}) for name, row in found.items()}
        assert kinds["above"] == "<code>a&#124;b</code>, `c`"
        assert kinds["section"] == "[section](#x) or null"
        assert kinds["needed"] == "[integer, number]"
        assert kinds["both"] == "list of texts"
        shown = {name: script.shown(row.default) for name, row in found.items()}
        assert shown["needed"] == "must be given"
        assert (shown["changed"], shown["both"], shown["section"]) == ("`1e-05`", "`[a]`", "`null`")

    def test_check_tells_a_page_that_is_not_up_to_date(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(script, "ROOT", tmp_path)
        monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
        monkeypatch.setattr(script, "page", lambda: "new\n")
        monkeypatch.setattr(sys, "argv", ["make_config_reference.py", "--check"])
        with pytest.raises(SystemExit, match="is not up to date"):
            script.main()
        monkeypatch.setattr(sys, "argv", ["make_config_reference.py"])
        script.main()
        assert (tmp_path / "page.md").read_text() == "new\n"
        monkeypatch.setattr(sys, "argv", ["make_config_reference.py", "--check"])
        script.main()


class TestDocuments:
    @pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
    def test_links_lead_to_files_and_headings(self, path: Path) -> None:
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("http://", "https://")):
                continue
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            if anchor:
                assert anchor in anchors(target.read_text()), link

    @pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
    def test_pictures_are_there_and_need_nothing_from_elsewhere(self, path: Path) -> None:
        text = path.read_text()
        for name in re.findall(r'<img src="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)', text):
            picture = path.parent / "".join(name)
            assert picture.is_file(), picture
            if picture.suffix == ".svg":
                ElementTree.parse(picture)
                assert not re.search(r"(href|src|url)\s*[=(]\s*[\"']?https?:", picture.read_text())

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_no_two_headings_of_a_page_have_one_anchor(self, path: Path) -> None:
        found = anchors(path.read_text())
        assert len(found) == len(set(found))

    def test_every_page_is_in_the_navigation_of_the_site(self) -> None:
        site = (ROOT / "mkdocs.yml").read_text()
        listed = re.findall(r"^  - .*?: (\S+\.md)$", site, re.MULTILINE)
        assert sorted(listed) == [path.name for path in PAGES]

    def test_every_method_has_a_section_with_configurations_that_exist(self) -> None:
        text = (ROOT / "docs" / "methods.md").read_text()
        sections = dict(re.findall(r"^## .*?\(`(\w+)`\)\n(.*?)(?=^## |\Z)", text, re.S | re.M))
        assert sections.keys() == {*METHODS.names(), "ssps"}
        for name, section in sections.items():
            folders = re.findall(r"`(models/[^`]+)`", section)
            assert folders, name
            for folder in folders:
                assert list((ROOT / folder).rglob("config.yml")), folder

    def test_published_figures_of_the_methods_page_are_those_of_the_tables(self) -> None:
        text = (ROOT / "docs" / "methods.md").read_text()
        parts = {part.partition(" (`")[0]: part for part in text.split("\n## ")}
        tables = YAML(typ="safe").load(ROOT / "models" / "published.yml")["tables"]
        in_sections, in_table = [], []
        for name, table in tables.items():
            for entry in table["models"].values():
                method, eer, mindcf = entry["method"], entry["eer"], entry["mindcf"]
                in_table.append(f"{eer:.2f} / {mindcf:.4f}")
                if name == "ssps":
                    row = rf"\| \[{method} with SSPS\]\(\S+\) \| \| {eer:.2f} / {mindcf:.4f} \|"
                    section, said = "SSPS", f"{eer:.2f} % ({method}, ECAPA-TDNN)"
                else:
                    encoder = name.removeprefix("ssl ")
                    column = "" if encoder == "Fast ResNet-34" else r" [^|]*\|"
                    row = rf"\| \[{method}\]\(\S+\) \|{column} {eer:.2f} / {mindcf:.4f} \|"
                    section, said = method, f"{eer:.2f} % ({encoder})"
                assert re.search(row, text), row
                assert said in " ".join(parts[section].split())
                in_sections.append(said)
        assert sorted(re.findall(r"\d+\.\d\d / \d\.\d{4}", text)) == sorted(in_table)
        found = [" ".join(x.split()) for x in re.findall(r"\d+\.\d\d\s+%\s+\([^)]*\)", text)]
        assert sorted(found) == sorted(in_sections), "and nothing else"
