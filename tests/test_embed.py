"""``sslsv embed``: files of embeddings as other programs read them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sslsv import audio, cli
from sslsv import embed as embed_module
from sslsv.config import load_config, to_dict
from sslsv.embed import read_sources
from sslsv.errors import DataError
from sslsv.experiment import build_method
from sslsv.trainer import checkpoint

ROOT = Path(__file__).resolve().parents[1]
Embed = Callable[..., int]
Vector = Callable[..., np.ndarray]


@pytest.fixture
def run_dir(config_file: Path) -> Path:
    """The folder of a run with two checkpoints, of random weights."""
    config = load_config(config_file)
    for epoch in (1, 2):
        config.seed = epoch
        model = build_method(config).state_dict()
        state = {"model": model, "epoch": epoch, "config": json.dumps(to_dict(config))}
        for suffix in (f"epoch-{epoch}", "latest"):
            checkpoint.save(checkpoint.checkpoint_path(config_file.parent, suffix), state)
    return config_file.parent


@pytest.fixture
def embed(run_dir: Path) -> Embed:
    """``embed("--list", …)`` is ``sslsv embed CONFIG --list …``."""
    return lambda *arguments: cli.main(["embed", str(run_dir), *map(str, arguments)])


@pytest.fixture
def refused(embed: Embed, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert embed(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return refused


@pytest.fixture
def vector(run_dir: Path) -> Vector:
    """The embedding of a file, alone: the mean over frames."""

    def vector(
        path: Path, suffix: str = "latest", starts: Sequence[int] = (0,), size: int | None = None
    ):
        config = load_config(run_dir)
        method = build_method(config)
        state = checkpoint.load(checkpoint.checkpoint_path(run_dir, suffix))
        method.load_state_dict(state["model"])
        wave = audio.read(path)
        frames = np.stack([wave[s : s + (size or len(wave))] for s in starts])
        with torch.no_grad():
            found = method.eval().embed(torch.from_numpy(frames)).double()
        return (found / found.norm(dim=1, keepdim=True)).mean(dim=0).numpy()

    return vector


def files_of(corpus: Path) -> list[str]:
    return [line.split(",")[0] for line in (corpus / "train.csv").read_text().split()[1:]]


def read_npz(path: Path) -> tuple[list[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"files", "embeddings"}
        return arrays["files"].tolist(), arrays["embeddings"]


def read_ark(path: Path) -> dict[str, list[float]]:
    """By the description of the format: a key up to a space, \\0B, the type FV and a space, the
    bytes of an integer (4), that integer, as many floats."""
    found = {}
    with open(path, "rb") as file:
        while True:
            key = b""
            while (byte := file.read(1)) not in (b" ", b""):
                key += byte
            if not key:
                return found
            found[key.decode()] = read_vector(file)


def read_vector(file) -> list[float]:
    assert file.read(2) == b"\0B"
    assert file.read(3) == b"FV "
    (size,) = struct.unpack("<b", file.read(1))
    assert size == 4
    (count,) = struct.unpack("<i", file.read(4))
    return [struct.unpack("<f", file.read(4))[0] for _ in range(count)]


# -------------------------------------------------------------------------------- what is written


def test_npz_holds_the_embedding_of_each_file(
    embed: Embed, vector: Vector, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "x.npz"
    assert embed("--list", "train.csv", "--output", output) == 0
    names, embeddings = read_npz(output)
    assert names == files_of(corpus)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (32, 32)
    for name, found in list(zip(names, embeddings, strict=True))[::5]:
        np.testing.assert_allclose(found, vector(corpus / name), atol=1e-4)
    assert len(np.unique(embeddings.round(3), axis=0)) == 32
    assert os.listdir(output.parent) == ["x.npz"]


def test_a_list_may_be_read_by_name(embed: Embed, corpus: Path, tmp_path: Path) -> None:
    """As README says: a dictionary from files to embeddings."""
    assert embed("--list", "train.csv", "--output", tmp_path / "x.npz") == 0
    arrays = np.load(tmp_path / "x.npz")
    by_file = dict(zip(arrays["files"], arrays["embeddings"], strict=True))
    assert by_file[files_of(corpus)[3]].shape == (32,)


def test_ark_and_scp_are_as_kaldi_reads_them(embed: Embed, corpus: Path, tmp_path: Path) -> None:
    ark, scp, npz = (tmp_path / f"x.{kind}" for kind in ("ark", "scp", "npz"))
    assert embed("--list", "train.csv", "--output", ark) == 0
    assert embed("--list", "train.csv", "--output", npz) == 0
    names, embeddings = read_npz(npz)
    found = read_ark(ark)
    assert list(found) == names
    np.testing.assert_array_equal(list(found.values()), embeddings)
    lines = scp.read_text().splitlines()
    assert len(lines) == len(names)
    for line, name, expected in zip(lines, names, embeddings, strict=True):
        key, place = line.split(" ")
        path, _, offset = place.rpartition(":")
        assert (key, path) == (name, str(ark))
        with open(path, "rb") as file:
            file.seek(int(offset))
            assert read_vector(file) == expected.tolist()


@pytest.mark.parametrize("suffix", ["latest", "epoch-1"])
def test_the_checkpoint_and_the_frames_are_those_asked_for(
    embed: Embed, vector: Vector, corpus: Path, tmp_path: Path, suffix: str
) -> None:
    name = files_of(corpus)[0]
    output = tmp_path / "x.npz"
    how = ["--num_frames", "3", "--frame_length", "8000", "--batch_size", "2"]
    assert embed("--list", name, "--output", output, "--model_suffix", suffix, *how) == 0
    (_,), (found,) = read_npz(output)
    room = audio.probe(corpus / name) - 8000
    expected = vector(corpus / name, suffix, [0, room // 2, room], 8000)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.linalg.norm(expected) < 1 - 1e-4  # frames differ, and their mean stays as it is


def test_bf16_is_close_and_not_the_same(embed: Embed, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.npz"
        assert embed("--list", "train.csv", "--output", output, "--precision", precision) == 0
    exact, rounded = (read_npz(tmp_path / f"{p}.npz")[1] for p in ("fp32", "bf16"))
    assert rounded.dtype == np.float32
    cosines = (exact * rounded).sum(axis=1)
    assert cosines.min() > 0.99
    assert np.abs(exact - rounded).max() > 1e-4


def test_overrides_reach_the_configuration(embed: Embed, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/wav").symlink_to(corpus / "wav")
    (tmp_path / "base/some.csv").write_text(f"File\n{files_of(corpus)[7]}\n")
    base = f"dataset.base_path={tmp_path / 'base'}"
    assert embed("--list", "some.csv", "--output", tmp_path / "x.npz", base) == 0
    assert read_npz(tmp_path / "x.npz")[0] == [files_of(corpus)[7]]


def test_nothing_is_left_behind_but_the_output(
    embed: Embed, run_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    before = sorted(run_dir.rglob("*"))
    assert embed("--list", files_of(corpus)[0], "--output", tmp_path / "x.ark") == 0
    assert sorted(run_dir.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.glob("x*")) == ["x.ark", "x.scp"]
    assert not list(tmp_path.rglob("*.tmp"))


# ------------------------------------------------------------------------------------ which files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a command runs; ``base`` is beside it."""
    for name in ("here", "base"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_sources_are_lists_and_files_in_order_each_once(here: Path) -> None:
    base = here.parent / "base"
    for path in ("here/a.wav", "here/both.wav", "base/both.wav", "base/b.flac", "base/c d.wav"):
        (here.parent / path).touch()
    (base / "list.csv").write_text("Speaker,File\n1,c d.wav\n\n2,b.flac\n1,c d.wav\n")
    (here / "own.CSV").write_bytes('\ufeffFile\r\n"b.flac"\r\n'.encode())
    absolute = str(base / "b.flac")
    sources = ["a.wav", "list.csv", "own.CSV", "both.wav", absolute]
    assert read_sources(sources, base) == {
        "a.wav": str(here / "a.wav"),
        "c d.wav": "c d.wav",
        "b.flac": "b.flac",
        "both.wav": str(here / "both.wav"),  # here before there
        absolute: absolute,
    }
    assert list(read_sources(sources, base)) == ["a.wav", "c d.wav", "b.flac", "both.wav", absolute]
    assert read_sources(["b.flac"], base) == {"b.flac": "b.flac"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--list: x.csv: file not found, here or under "),
        ("", "x.csv: no column 'File'; its columns are none"),
        ("file,Speaker\na.wav,1\n", "x.csv: no column 'File'; its columns are file, Speaker"),
        ("File\n", "x.csv: the list is empty"),
        ("Speaker,File\n1,a.wav\n2\n", "x.csv row 3: no value in column 'File'"),
        ("Speaker,File\n1,\n", "x.csv row 2: no value in column 'File'"),
        (b"File\n\xff\xfe.wav\n", "x.csv: cannot be read as CSV ("),
    ],
)
def test_bad_lists_are_refused(here: Path, text: str | bytes | None, message: str) -> None:
    if text is not None:
        (here / "x.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as error:
        read_sources(["x.csv"], here.parent / "base")
    assert str(error.value).startswith(message)


def test_missing_files_are_counted(here: Path) -> None:
    base = here.parent / "base"
    (base / "a.wav").touch()
    rows = "".join(f"{i}.wav\n" for i in range(12))
    (base / "list.csv").write_text(f"File\na.wav\n{rows}")
    with pytest.raises(DataError) as error:
        read_sources(["list.csv", "other.wav"], base)
    text = str(error.value)
    assert text.startswith(f"--list: 13 of 14 files not found here or under '{base}': 0.wav, 1.wav")
    assert text.endswith("9.wav (and 3 more); check dataset.base_path")


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["x", "x.npy", "x.npz.gz", "x.scp"])
def test_a_name_that_tells_no_format_is_refused(
    refused: Callable[..., str], tmp_path: Path, name: str
) -> None:
    said = refused("--list", "train.csv", "--output", tmp_path / name)
    assert said == (
        f"--output: {tmp_path / name}: the format is told by the end of the name; make it "
        ".npz or .ark"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_frames", "0"], "--num_frames: must be at least 1, got 0"),
        (["--batch_size", "-1"], "--batch_size: must be at least 1, got -1"),
        (["--frame_length", "511"], "--frame_length: must be at least 512 samples, one analysis"),
        (["--model_suffix", "best"], "CHECKPOINTS/model_best.pt: no such checkpoint (there are: "),
        (["encoder.base_dim=16"], "CHECKPOINTS/model_latest.pt: does not fit this configuration"),
    ],
)
def test_bad_settings_are_refused(
    refused: Callable[..., str], run_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    said = refused("--list", "train.csv", "--output", tmp_path / "x.npz", *arguments)
    assert said.startswith(message.replace("CHECKPOINTS", str(run_dir / "checkpoints")))
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("kind", ["ark", "npz"])
def test_white_space_cannot_be_in_a_key(
    embed: Embed, refused: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    audio.write(tmp_path / "a b.wav", np.full(8000, 0.1))
    arguments = ["--list", tmp_path / "a b.wav", "--output", tmp_path / f"x.{kind}"]
    if kind == "npz":
        assert embed(*arguments) == 0
        assert read_npz(tmp_path / "x.npz")[0] == [str(tmp_path / "a b.wav")]
        return
    said = refused(*arguments)
    assert said.startswith("--output: 1 of 1 names have white space, which ends a key in a Kaldi")
    assert "a b.wav; write .npz" in said


@pytest.mark.parametrize("kind", ["npz", "ark"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    refused: Callable[..., str], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "extract", lambda *_: pytest.fail("work was done"))
    (tmp_path / "file").touch()
    said = refused("--list", "train.csv", "--output", tmp_path / f"file/x.{kind}")
    assert f"x.{'scp' if kind == 'ark' else kind}: cannot be written (" in said
    (tmp_path / f"folder.{kind}").mkdir()
    said = refused("--list", "train.csv", "--output", tmp_path / f"folder.{kind}")
    assert said == f"--output: {tmp_path}/folder.{kind}: is a folder; give another name"


@pytest.mark.parametrize("kind", ["npz", "ark"])
def test_a_failure_leaves_the_old_output(
    refused: Callable[..., str], tmp_path: Path, corpus: Path, kind: str
) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    olds = [tmp_path / f"x.{k}" for k in (["npz"] if kind == "npz" else ["ark", "scp"])]
    for old in olds:
        old.write_text("old")
    sources = [files_of(corpus)[0], tmp_path / "bad.wav"]
    said = refused("--list", *sources, "--output", olds[0])
    assert said.startswith(f"{tmp_path}/bad.wav: cannot be read as audio")
    assert [old.read_text() for old in olds] == ["old"] * len(olds)
    assert not list(tmp_path.rglob("*.tmp"))


def test_list_and_output_must_be_given(embed: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        embed()
    assert "the following arguments are required: --list, --output" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- the script


def test_the_script_does_the_same_in_two_processes(
    embed: Embed, run_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    script = ROOT / "sslsv/bin/inference.py"
    arguments = [str(run_dir), "--list", "train.csv", "--output"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    output = tmp_path / "two.npz"
    done = subprocess.run(
        [*launch, str(script), *arguments, str(output)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{output}: 32 embeddings of 32 values\n" in done.stdout
    assert embed(*arguments[1:], tmp_path / "one.npz") == 0
    (names, found), (expected_names, expected) = map(read_npz, (output, tmp_path / "one.npz"))
    assert names == expected_names == files_of(corpus)
    np.testing.assert_allclose(found, expected, atol=1e-6)
