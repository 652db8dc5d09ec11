"""Pseudo-labels: against a computation from the embeddings, merging by hand, what is refused."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.distributed as dist

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import create_pseudolabels as tool  # noqa: E402

from sslsv import cli, distributed  # noqa: E402
from sslsv.config import load_config  # noqa: E402
from sslsv.datasets.manifest import read_manifest  # noqa: E402
from sslsv.experiment import build_method, train  # noqa: E402
from sslsv.methods.base import Method  # noqa: E402
from sslsv.methods.kmeans import spherical_kmeans  # noqa: E402
from sslsv.trainer import checkpoint  # noqa: E402

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Ended:
    """How the tool ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]
Refused = Callable[..., str]


@pytest.fixture
def data(corpus: Path, tmp_path: Path, edit_config: Callable[[str, str], Path]) -> Path:
    """A copy of the corpus to write to; the configuration uses it."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    edit_config(str(corpus), str(folder))
    return folder


@pytest.fixture
def trained(data: Path, config_file: Path) -> Method:
    """The model of the configuration, and its checkpoint."""
    return save_model(config_file, data, "latest")


def save_model(config_file: Path, data: Path, suffix: str, *overrides: str) -> Method:
    """A checkpoint of an untrained model whose embeddings point everywhere: their mean is 0."""
    method = build_method(load_config(config_file, overrides)).eval()
    with torch.no_grad():
        method.encoder.fc.bias -= outputs(method, data, read(data / "train.csv")).mean(dim=0)
    path = checkpoint.checkpoint_path(config_file.parent, suffix)
    checkpoint.save(path, {"model": method.state_dict()})
    return method


@pytest.fixture
def run(config_file: Path, trained: Method, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(...)`` is ``create_pseudolabels.py CONFIG ...``."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = tool.main([str(config_file), *map(str, arguments)])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The sentence of a run that must end with code 2, without embedding or changing a file."""

    def refused(*arguments: object) -> str:
        monkeypatch.setattr(tool, "extract", None)
        before = content(data)
        ended = run(*arguments)
        check_sentence(ended)
        assert content(data) == before
        return ended.err.removeprefix("error: ").rstrip("\n")

    return refused


def check_sentence(ended: Ended) -> None:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.index("\n") == len(ended.err) - 1, "one line"


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read(path: Path) -> Rows:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def outputs(method: Method, data: Path, rows: Rows) -> torch.Tensor:
    """What the model gives for each row (R, D), a whole file at a time."""
    waves = [sf.read(data / row["File"], dtype="float32")[0] for row in rows]
    with torch.no_grad():
        return torch.cat([method.embed(torch.from_numpy(wave)[None]) for wave in waves])


def embed(method: Method, data: Path, rows: Rows) -> torch.Tensor:
    """Unit embeddings (R, D)."""
    x = outputs(method, data, rows)
    return x / x.norm(dim=1, keepdim=True)


def average_linkage(centroids: np.ndarray, count: int) -> list[set[int]]:
    """Groups of rows: the two with the least mean cosine distance are joined until ``count``."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    groups = [{i} for i in range(len(centroids))]
    while len(groups) > count:
        a, b = min(
            combinations(groups, 2),
            key=lambda pair: np.mean([distance[i, j] for i in pair[0] for j in pair[1]]),
        )
        groups = [g for g in groups if g not in (a, b)] + [a | b]
    return groups


def members(labels: list[str]) -> set[frozenset[int]]:
    """Which rows are together, whatever the names."""
    groups = defaultdict(set)
    for row, label in enumerate(labels):
        groups[label].add(row)
    return {frozenset(rows) for rows in groups.values()}


def test_list_has_the_clusters_of_the_embeddings(run: Run, data: Path, trained: Method) -> None:
    ended = run("--clusters", 7, "--iterations", 1)
    assert (ended.code, ended.err) == (0, "")
    given, made = read(data / "train.csv"), read(data / "train_pseudo.csv")
    x = embed(trained, data, given)
    clusters = spherical_kmeans(x, 7, 1, seed=1717)
    more = spherical_kmeans(x, 7, 20, seed=1717)
    assert not torch.equal(clusters.assignments, more.assignments), "iterations matter here"
    expected = [f"cluster{c:05d}" for c in clusters.assignments.tolist()]
    assert made == [row | {"Pseudo": name} for row, name in zip(given, expected, strict=True)]
    assert not list(data.rglob("*.tmp"))

    sizes = sorted(Counter(expected).values())
    middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
    speakers: dict[str, Counter] = defaultdict(Counter)
    for row in made:
        speakers[row["Pseudo"]][row["Speaker"]] += 1
    purity = sum(max(count.values()) for count in speakers.values()) / len(made)
    joint = np.array([[c[f"id{s:02d}"] for s in range(8)] for c in speakers.values()]) / len(made)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    information = sum(
        p * np.log(p / (rows[i] * columns[j])) for (i, j), p in np.ndenumerate(joint) if p
    )
    nmi = 2 * information / -(sum(rows * np.log(rows)) + sum(columns * np.log(columns)))
    assert ended.out.splitlines()[-5:] == [
        f"{data}/train_pseudo.csv: 32 rows, {len(sizes)} clusters used of 7",
        f"rows of a cluster: smallest {sizes[0]}, median {middle:g}, largest {sizes[-1]}",
        f"mean cosine with the centroid of k-means: {clusters.similarity:.4f}",
        "for information only, not used: against the column Speaker, "
        f"NMI {nmi:.4f}, purity {purity:.4f}",
        "to train 'supervised' on it: dataset.train=train_pseudo.csv dataset.label_key=Pseudo "
        f"method.nb_classes={len(sizes)}",
    ]


def test_seed_decides(run: Run, data: Path) -> None:
    for name, seed in (("a.csv", 1), ("b.csv", 1), ("c.csv", 2)):
        assert run("--clusters", 8, "--output", name, f"seed={seed}").code == 0
    lists = [(data / name).read_bytes() for name in ("a.csv", "b.csv", "c.csv")]
    assert lists[0] == lists[1] != lists[2]


def test_checkpoint_is_the_one_named(run: Run, data: Path, config_file: Path) -> None:
    other = save_model(config_file, data, "best", "seed=5")
    assert run("--clusters", 8, "--model_suffix", "best").code == 0
    x = embed(other, data, read(data / "train.csv"))
    expected = spherical_kmeans(x, 8, 20, seed=1717).assignments.tolist()
    found = [int(row["Pseudo"][7:]) for row in read(data / "train_pseudo.csv")]
    assert found == expected


def test_merge_joins_whole_clusters_by_average_linkage(
    run: Run, data: Path, trained: Method
) -> None:
    assert run("--clusters", 12, "--output", "apart.csv").code == 0
    ended = run("--clusters", 12, "--merge", 5)
    assert ended.code == 0
    merged = [row["Pseudo"] for row in read(data / "train_pseudo.csv")]
    assert len(set(merged)) == 5
    found = spherical_kmeans(embed(trained, data, read(data / "train.csv")), 12, 20, seed=1717)
    apart = found.assignments.numpy()
    assert [row["Pseudo"] for row in read(data / "apart.csv")] == [f"cluster{c:05d}" for c in apart]
    used = np.unique(apart)
    groups = average_linkage(found.centroids.double().numpy()[used], 5)
    assert members(merged) == {
        frozenset(np.flatnonzero(np.isin(apart, used[list(group)])).tolist()) for group in groups
    }
    assert "32 rows, 5 clusters used of 5 merged from 12\n" in ended.out
    assert ended.out.endswith("method.nb_classes=5\n")


def test_merge_measures_angles_between_groups_by_their_mean() -> None:
    """Centroids on a circle; single linkage would chain 0 to 50, Ward or lengths change more."""
    degrees = np.array([0, 15, 31, 50, 90, 118, 180])
    turns = np.deg2rad(degrees)
    centroids = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (1 + np.arange(7))[:, None]
    clusters = np.array([6, 0, 3, 3, 1, 2, 4, 5, 0])
    for count in (2, 3, 4, 5, 6):
        classes = tool.merge(clusters, centroids, count)
        assert members([str(c) for c in classes]) == {
            frozenset(np.flatnonzero(np.isin(clusters, list(group))).tolist())
            for group in average_linkage(centroids, count)
        }


def test_clusters_without_rows_do_not_count_as_merged() -> None:
    centroids = np.eye(6)
    centroids[1] = centroids[0] + 0.1  # nearest to 0, and of no row
    clusters = np.array([0, 2, 3, 4, 4])
    assert len(set(tool.merge(clusters, centroids, 3).tolist())) == 3
    assert tool.merge(clusters, centroids, 4).tolist() == clusters.tolist()
    assert tool.merge(clusters, centroids, 5).tolist() == clusters.tolist()


def test_only_rows_used_are_written_with_their_columns_as_they_are(run: Run, data: Path) -> None:
    files = [row["File"] for row in read(data / "train.csv")]
    kept = [f'{name},"a, ""b""",NA,{" 007" if i else ""},train' for i, name in enumerate(files)]
    lines = ["File,Note,Note,Age,Set", *kept]
    lines[2:2] = ["missing.wav,x,y,z,test"]
    write(data / "train.csv", lines)
    ended = run("--clusters", 4, "dataset.max_samples=20")
    assert (ended.code, ended.err) == (0, "")
    made = (data / "train_pseudo.csv").read_text().splitlines()
    assert made[0] == "File,Note,Note,Age,Set,Pseudo"
    assert [re.sub(r",cluster\d{5}$", "", line) for line in made[1:]] == kept[:20]
    assert "for information only" not in ended.out  # there is no column Speaker


def test_rows_without_a_label_are_clustered_but_not_compared(run: Run, data: Path) -> None:
    header, first, *others = (data / "train.csv").read_text().splitlines()
    first = first.split(",")[0] + ","
    write(data / "train.csv", [header, first, *others])
    ended = run("--clusters", 4)
    made = read(data / "train_pseudo.csv")
    assert len(made) == 32
    speakers: dict[str, Counter] = defaultdict(Counter)
    for row in made[1:]:
        speakers[row["Pseudo"]][row["Speaker"]] += 1
    purity = sum(max(count.values()) for count in speakers.values()) / 31
    assert ended.out.splitlines()[-2].endswith(f"purity {purity:.4f}")

    write(data / "train.csv", [header, first, *(line.split(",")[0] + "," for line in others)])
    ended = run("--clusters", 4, "--overwrite")
    assert (ended.code, ended.err) == (0, "")
    assert "for information only" not in ended.out


def test_labels_given_change_nothing(run: Run, data: Path) -> None:
    assert run("--clusters", 5, "--merge", 3, "--output", "a.csv").code == 0
    text = (data / "train.csv").read_text()
    write(data / "train.csv", [re.sub(",id.*", ",same", line) for line in text.splitlines()])
    assert run("--clusters", 5, "--merge", 3, "--output", "b.csv").code == 0
    a, b = ([row["Pseudo"] for row in read(data / name)] for name in ("a.csv", "b.csv"))
    assert a == b


def test_a_file_in_two_rows_is_embedded_once(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    extract = tool.extract

    def watched(embed, files, how, device):
        seen.extend(files)
        return extract(embed, files, how, device)

    monkeypatch.setattr(tool, "extract", watched)
    lines = (data / "train.csv").read_text().splitlines()
    write(data / "train.csv", [*lines, lines[7]])
    assert run("--clusters", 8).code == 0
    assert sorted(seen) == sorted(line.split(",")[0] for line in lines[1:])
    made = read(data / "train_pseudo.csv")
    assert made[6] == made[-1]


def test_lists_in_folders(run: Run, data: Path) -> None:
    (data / "my lists").mkdir()
    (data / "train.csv").rename(data / "my lists/train.csv")
    ended = run("--clusters", 4, "dataset.train=my lists/train.csv")
    assert (data / "my lists/train_pseudo.csv").exists()
    assert "dataset.train='my lists/train_pseudo.csv' " in ended.out
    options = ("--clusters", 4, "dataset.train=my lists/train.csv", "--output", "new/x.csv")
    assert run(*options).code == 0
    assert read(data / "new/x.csv") == read(data / "my lists/train_pseudo.csv")


def test_supervised_trains_on_the_list_as_printed(
    run: Run, data: Path, tmp_path: Path, config_file: Path
) -> None:
    ended = run("--clusters", 9, "--merge", 6)
    overrides = ended.out.splitlines()[-1].partition(": ")[2].split()
    manifest = read_manifest("train_pseudo.csv", data, "Pseudo")
    made = read(data / "train_pseudo.csv")
    assert [manifest.label_names[code] for code in manifest.labels] == [r["Pseudo"] for r in made]
    assert len(manifest.label_names) == 6

    supervised = [
        "method={type: supervised}",
        "dataset.ssl=false",
        "trainer.epochs=1",
        f"trainer.init_weights={config_file.parent}/checkpoints/model_latest.pt",
        f"run_dir={tmp_path / 'supervised'}",
    ]
    assert cli.main(["train", str(config_file), *supervised, *overrides]) == 0
    assert (tmp_path / "supervised/checkpoints/model_latest.pt").exists()


def test_a_supervised_model_gives_the_next_labels(
    run: Run, data: Path, tmp_path: Path, config_file: Path
) -> None:
    """The second round: the list is the one without pseudo-labels again."""
    assert run("--clusters", 5).code == 0
    method = ["method={type: supervised, nb_classes: 5}", "dataset.ssl=false"]
    first = [*method, "dataset.train=train_pseudo.csv", "dataset.label_key=Pseudo"]
    second = [f"run_dir={tmp_path / 'supervised'}", "trainer.epochs=1"]
    train(load_config(config_file, [*first, *second]))
    assert (
        "has a column 'Pseudo' already"
        in run("--clusters", 5, "--output", "again.csv", *first, *second).err
    )
    assert run("--clusters", 5, "--output", "again.csv", *method, *second).code == 0
    assert list(read(data / "again.csv")[0]) == ["File", "Speaker", "Pseudo"]


def process(rank: int, folder: Path, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    with redirect_stdout(StringIO()) as out:
        code = tool.main(arguments)
    distributed.barrier()
    dist.destroy_process_group()
    assert code == 0
    assert ("clusters used" in out.getvalue()) == (rank == 0)


def test_two_processes_write_the_list_of_one(
    run: Run, data: Path, config_file: Path, tmp_path: Path
) -> None:
    options = ["--clusters", "9", "--merge", "4"]
    assert run(*options, "--output", "one.csv").code == 0
    arguments = [str(config_file), *options, "--output", "two.csv"]
    torch.multiprocessing.spawn(process, (tmp_path, arguments), 2)
    assert (data / "two.csv").read_bytes() == (data / "one.csv").read_bytes()


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--clusters", 1], "--clusters 1: must be at least 2"),
            (["--clusters", 5, "--merge", 1], "--merge 1: must be at least 2"),
            (["--clusters", 5, "--iterations", 0], "--iterations 0: must be at least 1"),
            (["--clusters", 5, "--merge", 5], "--merge 5: must be less than --clusters 5"),
            (["--clusters", 5, "--merge", 6], "--merge 6: must be less than --clusters 5"),
            (
                ["--clusters", 50000, "--merge", 7500],
                "--clusters 50000: --merge takes 8 bytes for each of the K x K pairs of clusters, "
                "which are 20.0 GB; use at most 20000 clusters (3.2 GB), or no --merge",
            ),
        ],
    )
    def test_numbers(self, options: list[object], message: str, refused: Refused) -> None:
        assert refused(*options) == message

    def test_more_clusters_than_rows(self, refused: Refused, data: Path) -> None:
        assert refused("--clusters", 33) == (
            f"--clusters 33: is more than the 32 rows of {data}/train.csv; lower it"
        )
        said = refused("--clusters", 9, "dataset.max_samples=8")
        assert said.startswith("--clusters 9: is more than the 8 rows")

    def test_many_clusters_may_be_merged_or_not(self, refused: Refused) -> None:
        """20,000 are not too many to merge, and 50,000 not to leave as they are."""
        for options in (["--clusters", 20000, "--merge", 2], ["--clusters", 50000]):
            assert "is more than the 32 rows" in refused(*options)

    def test_a_list_that_is_there(self, refused: Refused, run: Run, data: Path) -> None:
        (data / "train_pseudo.csv").write_text("precious")
        assert refused("--clusters", 4) == (
            f"{data}/train_pseudo.csv: is there already; choose another name with --output, or "
            "replace it with --overwrite"
        )

    def test_a_list_is_replaced_only_when_asked_to(self, run: Run, data: Path) -> None:
        (data / "train_pseudo.csv").write_text("precious")
        assert run("--clusters", 4, "--overwrite").code == 0
        assert len(read(data / "train_pseudo.csv")) == 32

    def test_a_list_that_appears_meanwhile_is_kept(
        self, run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slow(*arguments):
            (data / "train_pseudo.csv").write_text("precious")
            return spherical_kmeans(*arguments)

        monkeypatch.setattr(tool, "spherical_kmeans", slow)
        ended = run("--clusters", 4)
        check_sentence(ended)
        assert "is there already" in ended.err
        assert (data / "train_pseudo.csv").read_text() == "precious"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("../out.csv", "--output ../out.csv: must be the name of a file below dataset.base"),
            (
                "/elsewhere/out.csv",
                "--output /elsewhere/out.csv: must be the name of a file below dataset",
            ),
            ("train.csv", "--output train.csv: is the training list itself"),
            ("wav", "{data}/wav: is a folder"),
            ("trials/out.csv", "{data}/trials/out.csv: cannot be written ({data}/trials is no"),
        ],
    )
    def test_outputs(self, name: str, message: str, refused: Refused, data: Path) -> None:
        said = refused("--clusters", 4, "--output", name, "--overwrite")
        assert said.startswith(message.format(data=data))

    def test_a_folder_that_cannot_be_written(
        self, refused: Refused, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, _: Path(path) != data)
        said = refused("--clusters", 4, "--output", "a/b.csv")
        assert said == f"{data}/a/b.csv: cannot be written ({data} is no folder to write to)"

    def test_a_column_of_this_name(self, refused: Refused, data: Path) -> None:
        text = (data / "train.csv").read_text().replace("Speaker", "Pseudo", 1)
        (data / "train.csv").write_text(text)
        for label in ("Speaker", "Pseudo"):
            said = refused("--clusters", 4, f"dataset.label_key={label}")
            assert said == (
                f"{data}/train.csv: has a column 'Pseudo' already; rename it, or give the list "
                "that this one was made from (dataset.train=...)"
            )

    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_missing_files(self, on_error: str, refused: Refused, data: Path) -> None:
        (data / read(data / "train.csv")[3]["File"]).unlink()
        said = refused("--clusters", 4, f"dataset.on_error={on_error}")
        assert said.startswith(f"{data}/train.csv: 1 of 32 files not found")
        assert "line 5: wav/id00/" in said

    def test_missing_list_checkpoint_and_unknown_key(
        self, refused: Refused, data: Path, config_file: Path
    ) -> None:
        said = refused("--clusters", 4, "dataset.train=nowhere.csv")
        assert said.startswith(f"{data}/nowhere.csv: training list not found")
        said = refused("--clusters", 4, "--model_suffix", "best")
        assert said.startswith(f"{config_file.parent}/checkpoints/model_best.pt: no such checkp")
        assert refused("--clusters", 4, "trainer.epochz=3").startswith("trainer.epochz: unknown")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.ones((32, 4)), "all rows fall into one cluster"),
            (np.eye(32)[:, :31], "the embeddings of 1 files are zero and belong to no cluster"),
        ],
    )
    def test_embeddings_that_cannot_be_clustered(
        self, values: np.ndarray, message: str, run: Run, data: Path, monkeypatch
    ) -> None:
        unit = values / np.maximum(1, np.linalg.norm(values, axis=1, keepdims=True))
        monkeypatch.setattr(tool, "extract", lambda *_: unit.astype(np.float32))
        before = content(data)
        ended = run("--clusters", 4, "--merge", 2)
        check_sentence(ended)
        assert message in ended.err
        assert content(data) == before

    def test_a_failed_write_leaves_nothing(
        self, run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        before = content(data)
        ended = run("--clusters", 4)
        check_sentence(ended)
        assert "train_pseudo.csv: cannot be written (No space left on device)" in ended.err
        assert content(data) == before

    def test_an_interrupt(self, run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(tool, "extract", interrupted)
        before = content(data)
        ended = run("--clusters", 4)
        assert (ended.code, ended.err) == (130, "interrupted; nothing was written\n")
        assert content(data) == before
