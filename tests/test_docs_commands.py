"""Commands in the README and in docs/: a test runs them, or a mark above them says why none does.

A mark is the line ``<!-- not run by the tests: REASON -->`` directly above the block. Run or not,
the options, settings, scripts and targets that they name have to exist.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sslsv import cli
from sslsv.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_BY = {  # the test that runs all blocks of a page which have no mark
    "README.md": "test_readme.py",
    "first_steps.md": "test_first_steps.py",
    "extending.md": "test_tutorial.py",
    "evaluation.md": "test_docs_commands.py",
}
BLOCK = re.compile(r"(?:^<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"not run by the tests[^:]*: (.+)", re.DOTALL)
SHELL = ("bash", "sh", "shell", "console")
COMMAND = re.compile(r"^(\w+=\S+ )*(sslsv |python |make |pip |\./\w+\.sh )", re.MULTILINE)
SCRIPTS = {"average_model": "average", "inference": "embed", "profile_training": "profile"}
OTHERS = set("cat cut git head jupyter mkdir pip sed source tensorboard".split())


@dataclass(frozen=True)
class Block:
    """Commands of a page."""

    page: str
    line: int
    mark: str | None  # why it is not run
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """Blocks of a shell, and those of no language that hold commands."""
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            comment, language, body = match.groups()
            if language in SHELL or (not language and COMMAND.search(body)):
                mark = MARK.fullmatch(comment or "")
                line = text.count("\n", 0, match.start()) + 1
                yield Block(page.name, line, mark[1] if mark else None, body)


BLOCKS = list(blocks())
RUN_HERE = [b for b in BLOCKS if b.page == "evaluation.md" and b.mark is None]


@functools.cache
def recorded(text: str) -> tuple[tuple[str, ...], ...]:
    """The commands of a text as a shell reads them; none is run, as none is found."""
    script = "command_not_found_handle() { printf '%s\\0' \"$@\" $'\\n' >&3; }; PATH=/nowhere\n"
    script += re.sub(r"(?<!\S)\./(\w+\.sh)", r"\1", text)  # a path would be looked for elsewhere
    with tempfile.TemporaryDirectory() as folder:  # for what is redirected to files
        done = subprocess.run(
            ["bash", "-c", f"exec 3>&1 1>/dev/null\n{script}"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    commands = done.stdout.split("\0\n\0")
    assert "syntax error" not in done.stderr, f"{text}\n{done.stderr}"
    return tuple(tuple(command.split("\0")) for command in commands if command)


def command_of(argv: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """Name and arguments of a command of ``sslsv``, also by its script; None: another program."""
    program, *arguments = argv
    if program == "sslsv":
        return arguments[0], arguments[1:]
    if program in ("train_ddp.sh", "evaluate_ddp.sh"):
        return program.removesuffix("_ddp.sh"), arguments[1:]
    if program == "python" and arguments[0].startswith("sslsv/bin/"):
        name = Path(arguments[0]).stem
        return SCRIPTS.get(name, name), arguments[1:]
    return None


@functools.cache
def help_of(script: Path) -> str:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    return done.stdout


def check_script(script: Path, arguments: list[str]) -> None:
    """The options stand in its source, which is quick to read, or else in its help."""
    assert script.is_file(), f"{script}: no such script"
    for option in (word for word in arguments if word.startswith("--")):
        whole = rf"{re.escape(option)}(?![\w-])"
        known = f'"{option}"' in script.read_text() or re.search(whole, help_of(script))
        assert known, f"{script}: no option {option}"


# ------------------------------------------------------------------------------------ what is run


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(BLOCKS) > 15
    silent = [str(b) for b in BLOCKS if b.mark is None and b.page not in RUN_BY]
    assert not silent, "run them in a test, or put <!-- not run by the tests: REASON --> above"
    assert all(len(block.mark.split()) > 2 for block in BLOCKS if block.mark)
    assert {b.page for b in BLOCKS if b.mark is None} == RUN_BY.keys()
    assert all((ROOT / "tests" / test).is_file() for test in RUN_BY.values())


def test_every_mark_stands_directly_above_a_block() -> None:
    marks = sum(page.read_text().count("<!-- not run by the tests") for page in PAGES)
    assert marks == sum(block.mark is not None for block in BLOCKS)


@pytest.fixture(scope="module")
def place(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what the pages speak of: CONFIG, two runs, score files, two recordings."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(corpus, folder / "data")
    trials = (corpus / "trials").read_text()
    (folder / "data" / "LIST").write_text(trials)
    (folder / "CONFIG").mkdir()
    (folder / "CONFIG" / "config.yml").write_text(
        f"""
        encoder: {{type: resnet34, base_dim: 8, encoder_dim: 32}}
        method: {{type: simclr, enable_projector: false, temperature: 0.1}}
        trainer: {{epochs: 1, batch_size: 8}}
        dataset: {{base_path: {folder}/data, train: train.csv, ssl: true, frame_length: 8000,
                   num_workers: 0}}
        evaluation:
          test: [{{type: sv_cosine, num_frames: 1, frame_length: null, trials: [LIST]}}]
        """
    )
    for name in ("a", "b"):
        settings = [f"run_dir={folder}/runs/{name}", f"seed={ord(name)}"]
        for command in ("train", "evaluate"):
            assert cli.main([command, str(folder / "CONFIG"), *settings]) == 0
        scores = folder / f"runs/{name}/scores/trained_sv_cosine_LIST.txt"
        for copy in (f"{name}.txt", f"dev_{name}.txt", f"test_{name}.txt"):
            shutil.copy(scores, folder / copy)
        shutil.copy(corpus / f"wav/id0{ord(name) - 97}/s0/00000.wav", folder / f"{name}.wav")
    shutil.copy(folder / "a.txt", folder / "dev.txt")
    shutil.copy(folder / "b.txt", folder / "test.txt")
    shutil.copy(corpus / "train.csv", folder / "speakers.csv")
    assert cli.main(["train", str(folder / "CONFIG")]) == 0
    return folder


@pytest.mark.parametrize("block", RUN_HERE, ids=str)
def test_block_runs(
    block: Block,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "safetensors" in block.text:
        pytest.importorskip("safetensors", reason="the extra 'export' is not installed")
    if "--plots" in block.text:
        pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    monkeypatch.chdir(place)
    commands = recorded(block.text)
    assert commands
    for argv in commands:
        found = command_of(argv)
        assert found, f"{argv}: is no command of sslsv; run it in another way"
        name, arguments = found
        assert cli.main([name, *arguments]) == 0, capsys.readouterr().err


def test_python_of_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for a trained model, after the export above it."""
    pytest.importorskip("safetensors", reason="the extra 'export' is not installed")
    monkeypatch.chdir(place)
    text = (ROOT / "docs" / "evaluation.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(python, names)
    assert getattr(names["embeddings"], "shape", None) == (2, 32)
    assert names["decision"] in (True, False)


# ------------------------------------------------------------------------------ what is only named


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_options_and_settings_of_a_block_exist(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for argv in recorded(block.text):
        program, *arguments = argv
        found = command_of(argv)
        if found:
            check_command(*found)
        elif program == "python" and arguments[0] == "-m":
            continue
        elif program == "python":
            check_script(ROOT / arguments[0], arguments[1:])
        elif program == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(arguments) <= set(targets)
        else:
            assert program in OTHERS, f"{block}: {program}: a program that no page spoke of"


def check_command(name: str, arguments: list[str]) -> None:
    """Arguments parse; and of a configuration of the project the settings are keys it has."""
    assert name in cli.COMMANDS
    if "--help" in arguments:
        return
    given = cli.COMMANDS[name].parser().parse_intermixed_args(arguments)
    config = ROOT / getattr(given, "config", "none")
    if (config.is_file() or (config / "config.yml").is_file()) and given.overrides:
        load_config(config, given.overrides)


NAMED = re.compile(r"`((?:sslsv [a-z]|python |\./\w+_ddp\.sh )[^`\n]*|prepare_\w+\.py[^`\n]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_in_sentences_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in NAMED.findall(text):
        words = tuple(shlex.split(span.removeprefix("./")))
        if words[0].startswith("prepare_"):
            words = ("python", f"tools/prepare_data/{words[0]}", *words[1:])
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        found = command_of(words)
        if found:
            known = cli.COMMANDS[found[0]].parser()._option_string_actions
            assert set(options) <= known.keys(), f"{page.name}: {span}"
        elif words[1] != "-m":
            check_script(ROOT / words[1], options)


def test_a_block_that_does_not_fit_is_found() -> None:
    """The checks can fail."""
    assert recorded("A=b; ./train_ddp.sh 2 $A 'd e' # f\n") == (("train_ddp.sh", "2", "b", "d e"),)
    text = "R=x\npython sslsv/bin/train.py $R/y 'a b' > z  # c\nsslsv list methods\n"
    assert recorded(text) == (
        ("python", "sslsv/bin/train.py", "x/y", "a b"),
        ("sslsv", "list", "methods"),
    )
    with pytest.raises(SystemExit):
        check_command("train", ["CONFIG", "--epochs", "3"])
    with pytest.raises(AssertionError, match="no option --no_such"):
        check_script(ROOT / "tools" / "prepare_data" / "prepare_demo.py", ["--no_such"])
    with pytest.raises(Exception, match="did you mean 'epochs'"):
        check_command("train", [str(ROOT / "models/demo/simclr"), "trainer.epochz=3"])
