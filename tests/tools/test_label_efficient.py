"""Label-efficient protocol: what is drawn, trainings on it, their summary, going on, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import label_efficient as tool  # noqa: E402

from sslsv.config import Config, load_config  # noqa: E402
from sslsv.experiment import build_method  # noqa: E402
from sslsv.interrupt import Interrupted  # noqa: E402
from sslsv.trainer import checkpoint  # noqa: E402

METRICS = [f"test/{name}" for name in ("accuracy", "f1_score", "f1_macro")]

# ------------------------------------------------------------------------------------------- draws


def test_shares_of_an_example_worked_by_hand() -> None:
    """One each; the other five by 9 : 4 : 0, which are 3.46, 1.54 and 0."""
    assert tool.share_out(np.array([10, 5, 1]), 8, np.zeros(3)).tolist() == [4, 3, 1]
    assert tool.share_out(np.array([10, 5, 1]), 2, np.zeros(3)).tolist() == [1, 1, 1]
    assert tool.share_out(np.array([10, 5, 1]), 16, np.zeros(3)).tolist() == [10, 5, 1]
    equal = np.array([3, 3, 3])
    assert tool.share_out(equal, 4, np.array([0.1, 0.3, 0.2])).tolist() == [1, 2, 1]
    assert tool.share_out(np.array([1, 1]), 2, np.zeros(2)).tolist() == [1, 1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.floats(0, 1))
def test_shares_are_in_proportion_and_within_bounds(sizes: list[int], part: float) -> None:
    count = round(part * sum(sizes))
    shares = tool.share_out(np.array(sizes), count, np.random.default_rng(0).random(len(sizes)))
    assert shares.sum() == max(count, len(sizes))
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    more, others = max(0, count - len(sizes)), sum(sizes) - len(sizes)
    for share, size in zip(shares, sizes, strict=True):
        assert abs(share - 1 - more * (size - 1) / max(1, others)) < 1


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.floats(0.01, 1), st.integers(0, 99))
def test_every_label_keeps_rows_of_its_own(codes: list[int], fraction: float, seed: int) -> None:
    _, labels = np.unique(codes, return_inverse=True)
    rows = tool.draw(labels, fraction, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(labels[rows]) == set(labels)
    assert len(rows) == max(round(fraction * len(labels)), len(set(labels)))
    assert rows.tolist() == tool.draw(labels, fraction, seed).tolist()


def test_a_seed_draws_first_what_a_smaller_fraction_has() -> None:
    labels = np.arange(200) % 5
    draws = [set(tool.draw(labels, f, seed=3).tolist()) for f in (0.1, 0.25, 0.6, 1.0)]
    assert [len(rows) for rows in draws] == [20, 50, 120, 200]
    assert draws[0] < draws[1] < draws[2] < draws[3]
    assert draws[0] != set(tool.draw(labels, 0.1, seed=4).tolist())


def test_each_row_of_a_label_is_as_likely_as_another() -> None:
    labels = np.array([0] * 8 + [1] * 4)
    taken = Counter(int(r) for seed in range(600) for r in tool.draw(labels, 0.5, seed))
    assert sum(taken.values()) == 600 * 6
    for rows, share in ((range(8), 4 / 8), (range(8, 12), 2 / 4)):
        for row in rows:  # 1 + 4 * 7/10 = 3.8 and 1 + 4 * 3/10 = 2.2, rounded
            assert abs(taken[row] / 600 - share) < 0.09


# --------------------------------------------------------------------------------------- trainings


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]
TASK = """\
  test:
    - type: classification
      csv: test.csv
      key: Speaker
      frame_length: 8000
"""


@pytest.fixture
def data(corpus: Path, tmp_path: Path, edit_config: Callable[[str, str], Path]) -> Path:
    """A copy of the corpus: 24 files to train on, among them the rows of another set, and eight to
    test; a configuration that trains on it in a moment."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    path = edit_config(str(corpus), str(folder))
    text = path.read_text()
    text = text[: text.index("  test:")] + TASK
    for old, new in {
        "type: simclr\n  enable_projector: false\n  temperature: 0.1": "type: supervised\n"
        "  nb_classes: 8",
        "ssl: true": "ssl: false",
        "epochs: 2": "epochs: 1",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    rows = [line.split(",") for line in (corpus / "train.csv").read_text().split()[1:]]
    lines = [f"{file},train,{speaker},{i}" for i, (file, speaker) in enumerate(rows) if i % 4]
    lines.insert(3, f"{rows[0][0]},valid,{rows[0][1]},0")
    (folder / "train.csv").write_text("File,Set,Speaker,Number\n" + "\n".join(lines) + "\n")
    lines = [f"{file},{speaker}" for file, speaker in rows[::4]]
    (folder / "test.csv").write_text("File,Speaker\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def run(config_file: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(...)`` is ``label_efficient.py CONFIG ...``."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = tool.main([str(config_file), *map(str, arguments)])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What is trained from now on."""
    configs: list[Config] = []
    train = tool.train

    def noted(config: Config) -> None:
        configs.append(config)
        train(config)

    monkeypatch.setattr(tool, "train", noted)
    return configs


def folder_of(config_file: Path, fraction: str, seed: int) -> Path:
    return config_file.parent.with_name(f"run_label-efficient-{fraction}") / f"seed-{seed}"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


HALF = ("--fractions", 0.5, "--seeds", 1, 2)


def test_each_fraction_is_trained_with_each_seed(
    run: Run, data: Path, config_file: Path, trained: list[Config]
) -> None:
    ended = run("--fractions", 0.5, 1.0, "--seeds", 1, 2, "trainer.learning_rate=0.002")
    assert (ended.code, ended.err) == (0, "")
    header, *lines = (data / "train.csv").read_text().splitlines()
    train = [line for line in lines if ",train," in line]
    drawn, values = {}, {}
    for fraction in ("0.5", "1.0"):
        for seed in (1, 2):
            folder = folder_of(config_file, fraction, seed)
            first, *drawn[fraction, seed] = (folder / "train.csv").read_text().splitlines()
            assert first == header
            assert [x for x in train if x in drawn[fraction, seed]] == drawn[fraction, seed]
            assert len({x.split(",")[2] for x in drawn[fraction, seed]}) == 8
            values[fraction, seed] = read_json(folder / "evaluation.json")
    assert [len(rows) for rows in drawn.values()] == [12, 12, 24, 24]
    assert drawn["0.5", 1] != drawn["0.5", 2]
    assert [(c.seed, c.trainer.learning_rate) for c in trained] == [(1, 0.002), (2, 0.002)] * 2

    found = read_json(config_file.parent.with_name("run_label-efficient.json"))
    assert [entry["fraction"] for entry in found["fractions"]] == [0.5, 1]
    assert [entry["utterances"] for entry in found["fractions"]] == [12, 24]
    for entry, fraction in zip(found["fractions"], ("0.5", "1.0"), strict=True):
        assert entry["seeds"] == [1, 2]
        assert list(entry["metrics"]) == METRICS
        for name, metric in entry["metrics"].items():
            a, b = (values[fraction, seed][f"test/{name}"] for seed in (1, 2))
            assert metric["values"] == [a, b]
            assert metric["mean"] == pytest.approx((a + b) / 2)
            assert metric["std"] == pytest.approx(abs(a - b) / 2**0.5)
            row = f"{metric['mean']:.4f}  {metric['std']:.4f}"
            assert row in next(
                line
                for line in ended.out.splitlines()
                if line.split()[:4]
                == [f"{entry['fraction']:g}", str(entry["utterances"]), "2", name]
            )


def test_what_is_finished_is_not_done_again(
    run: Run, config_file: Path, trained: list[Config]
) -> None:
    first = run(*HALF)
    assert first.code == 0
    assert len(trained) == 2
    again = run(*HALF, "dataset.num_workers=1")
    assert again.code == 0
    assert len(trained) == 2
    assert again.out.splitlines()[2:] == first.out.splitlines()[-len(again.out.splitlines()) + 2 :]
    assert run("--fractions", 0.5, "--seeds", 2, 3).code == 0
    assert [c.seed for c in trained] == [1, 2, 3]
    found = read_json(config_file.parent.with_name("run_label-efficient.json"))
    assert found["fractions"][0]["seeds"] == [2, 3]


def test_a_single_seed_has_no_spread(run: Run, config_file: Path) -> None:
    ended = run("--fractions", 0.5, "--seeds", 1)
    found = read_json(config_file.parent.with_name("run_label-efficient.json"))
    assert found["fractions"][0]["metrics"][METRICS[0]]["std"] is None
    assert sum(line.endswith("  -") for line in ended.out.splitlines()) == 3


def test_an_interrupted_study_goes_on(
    run: Run, config_file: Path, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tool.train

    def stopped(config: Config) -> None:
        if config.seed == 2:
            raise Interrupted("stopped", 143)
        train(config)

    monkeypatch.setattr(tool, "train", stopped)
    assert run(*HALF).code == 143
    monkeypatch.setattr(tool, "train", train)
    assert run(*HALF).code == 0
    assert [c.seed for c in trained] == [1, 2]
    marker = folder_of(config_file, "0.5", 1) / "label_efficient.json"
    before = marker.read_text()
    marker.unlink()  # trained, but not yet evaluated
    ended = run(*HALF)
    assert "already trained for 1 of 1 epochs" in ended.out
    assert marker.read_text() == before


@pytest.mark.parametrize("frozen", [False, True])
def test_an_encoder_is_given(
    run: Run, config_file: Path, trained: list[Config], tmp_path: Path, frozen: bool
) -> None:
    given = build_method(load_config(config_file, ["seed=5"])).state_dict()
    path = tmp_path / "given.pt"
    checkpoint.save(path, {"model": given, "config": "{}"})
    more = ["--frozen"] if frozen else []
    weights = f"trainer.init_weights={path}"
    assert run("--fractions", 0.5, "--seeds", 1, *more, weights).code == 0
    assert trained[0].trainer.learning_rate == pytest.approx(1e-4)
    suffix = "-frozen" if frozen else ""
    folder = folder_of(config_file, f"0.5{suffix}", 1)
    made = checkpoint.load(checkpoint.checkpoint_path(folder, "latest"))["model"]
    same = {key: torch.equal(x, given[key]) for key, x in made.items() if x.is_floating_point()}
    assert all(same[key] for key in same if key.startswith("encoder.")) == frozen
    assert not same["classifier.classifier_weight"]
    assert config_file.parent.with_name(f"run_label-efficient{suffix}.json").exists()
    explicit = ["trainer.learning_rate=0.003", weights, f"run_dir={tmp_path}/other"]
    assert run("--fractions", 0.5, "--seeds", 1, *more, *explicit).code == 0
    assert trained[1].trainer.learning_rate == 0.003


# ---------------------------------------------------------------------------------------- refusals


@pytest.fixture
def refused(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The sentence of a run that must end with code 2 without training."""

    def refused(*arguments: object) -> str:
        monkeypatch.setattr(tool, "train", None)
        before = set(data.parent.rglob("*"))
        ended = run(*arguments)
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert ended.err.index("\n") == len(ended.err) - 1, "one line"
        assert set(data.parent.rglob("*")) == before
        return ended.err.removeprefix("error: ").rstrip("\n")

    return refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", 0], "--fractions 0: must be above 0 and at most 1"),
        (["--fractions", 1.5], "--fractions 1.5: must be above 0 and at most 1"),
        (["--fractions", "nan"], "--fractions nan: must be above 0 and at most 1"),
        (["--fractions", 0.5, 0.5], "--fractions: one is given twice"),
        (["--seeds", 1, -1], "--seeds -1: must be at least 0"),
        (
            ["--fractions", 1.0, 0.01, "trainer.batch_size=12"],
            "--fractions 0.01: takes 8 of the 24 rows of {data}/train.csv, fewer than "
            "trainer.batch_size, 12; lower it, or leave this fraction out",
        ),
        (
            ["--frozen"],
            "--frozen: an encoder that is not trained has to be trained before; give its "
            "checkpoint as trainer.init_weights=PATH",
        ),
        (["trainer.init_weights=none.pt"], "none.pt: no such checkpoint"),
        (["trainer.last_checkpoint=none.pt"], "trainer.last_checkpoint: would go on with"),
        (["method={type: simclr}", "dataset.ssl=true"], "method.type: 'simclr' learns from no"),
        (["evaluation.test=[]"], "evaluation.test: is empty, so nothing would be measured"),
        (["method.nb_classes=7"], "method.nb_classes: 7 is less than the 8 labels"),
        (["evaluation.test.0.csv=no.csv"], "{data}/no.csv: list not found"),
        (
            ["evaluation.test.0.key=File"],
            "{data}/test.csv: labels that are unknown to the trained classifier: ",
        ),
        (["trainer.epoch=1"], "trainer.epoch: unknown key; did you mean 'epochs'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    refused: Callable[..., str], data: Path, arguments: list[object], message: str
) -> None:
    assert message.format(data=data) in refused(*arguments)


def test_a_folder_of_other_settings_is_refused(run: Run, refused: Callable[..., str]) -> None:
    assert run(*HALF).code == 0
    message = refused(*HALF, "trainer.epochs=2")
    assert "was made with other settings (trainer.epochs 1 -> 2); undo the change" in message
    assert "(model_suffix latest -> best)" in refused(*HALF, "--model_suffix", "best")


def test_a_folder_of_another_list_is_refused(
    run: Run, refused: Callable[..., str], data: Path
) -> None:
    assert run(*HALF).code == 0
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("Number", "Count"))
    assert "train.csv, which has changed; restore it, or give another run_dir" in refused(*HALF)


def test_settings_may_stand_anywhere(config_file: Path, data: Path) -> None:
    settings = ["trainer.epochs=1", "dataset.frame_length=4000"]
    first, second = settings
    for words in (
        [first, "--seeds", "1", "--fractions", "0.5", second],
        ["--fractions", "0.5", second, "--seeds", "1", first],
    ):
        run_dir = f"run_dir={data}/{len(words[0])}"
        assert tool.main([str(config_file), *words, run_dir]) == 0
        made = read_json(Path(f"{run_dir[8:]}_label-efficient-0.5/seed-1/label_efficient.json"))
        assert made["settings"]["dataset"]["frame_length"] == 4000
