"""The page of ``sslsv report``: what it shows is what the folders of runs hold, safely written."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from sslsv import cli
from sslsv.evaluations import metrics, plots
from sslsv.report import clips, maps, runs

EVIL = "</script><script>alert(1)</script>/<b>&amp;.wav"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
NAMES = ["s0/a.wav", "s0/b.wav", "s1/a.wav", "s1/b.wav", EVIL]


def make_scores(seed: int, count: int = 60) -> list[tuple[str, str, float, int]]:
    rng = np.random.default_rng(seed)
    return [
        (NAMES[i % 5], NAMES[(i * 2 + 1) % 5], float(rng.normal() + 1.5 * (i % 2)), i % 2)
        for i in range(count)
    ]


def make_run(folder: Path, seed: int, batch_size: int = 8) -> Path:
    """A run with two systems on one list, one of them under a condition."""
    (folder / "scores").mkdir(parents=True)
    (folder / "resolved_config.yml").write_text(
        "encoder: {type: resnet34, compile: false}\nmethod: {type: simclr}\n"
        f"trainer: {{batch_size: {batch_size}, epochs: 2}}\n"
        "evaluation: {test: [{type: sv_cosine, trials: [trials]}]}\n"
    )
    training = {
        str(epoch): {"train/lr": 0.1, "train/loss": seed + 1 / epoch, "train/rank": None}
        for epoch in (10, 9, 1)
    }
    (folder / "training.json").write_text(json.dumps(training))
    results: dict[str, Any] = {"checkpoint": "model_latest.pt", "epoch": 10}
    for n, task in enumerate(["sv_cosine", "sv_cosine_as-norm@reverb"]):
        rows = make_scores(seed + 10 * n)
        lines = "".join(f"{a} {b} {score!r} {label}\n" for a, b, score, label in rows)
        (folder / f"scores/trained_{task}_trials.txt").write_text(lines)
        scores, labels = [row[2] for row in rows], [row[3] for row in rows]
        prefix = f"test/{task}/trials"
        results[f"{prefix}/eer"] = metrics.eer(scores, labels)
        results[f"{prefix}/mindcf"] = metrics.min_dcf(scores, labels)
    results |= {"test/sv_cosine/trials/eer_low": 1.25, "test/sv_cosine/trials/eer_high": 33.5}
    results |= {"test/knn/emotion/accuracy": 0.75}
    trials = "".join(sorted(f"{label} {a} {b}\n" for a, b, _, label in make_scores(0)))
    digest = hashlib.sha256(trials.encode()).hexdigest()[:8]
    results |= {"lists/trials/hash": digest, "lists/trials/trials": 60, "lists/trials/targets": 30}
    (folder / "evaluation.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / "a", 1), make_run(tmp_path / "b", 2, batch_size=16)]


Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs the command; gives its exit code, the page (or nothing) and what it said of errors."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        out = tmp_path / "out/report.html"
        code = cli.main(["report", *map(str, arguments), "--out", str(out)])
        return code, out.read_text() if out.exists() else "", capsys.readouterr().err

    return run


def shown(page: str) -> Any:
    """The JSON in the page, as a browser's parser cuts it out."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.S)
    assert found is not None
    return json.loads(found[1])


class TestContents:
    def test_results_are_those_of_evaluation_json(self, report: Report, pair: list[Path]) -> None:
        code, page, _ = report(*pair)
        assert code == 0
        data = shown(page)
        assert [run["name"] for run in data["runs"]] == ["a", "b"]
        for row in data["results"]:
            system = data["systems"][row["system"]]
            written = json.loads((pair[system["run"]] / "evaluation.json").read_text())
            prefix = f"test/{system['name']}/trials"
            for metric, values in row["metrics"].items():
                ends = [written.get(f"{prefix}/{metric}_{end}") for end in ("low", "high")]
                assert values == [written[f"{prefix}/{metric}"], *ends]
            listed = data["lists"][row["list"]]
            assert (listed["name"], listed["hash"]) == ("trials", written["lists/trials/hash"])
        assert len(data["results"]) == 4
        assert len(data["lists"]) == 1  # also what the score files hold has this hash
        assert [o["values"] for o in data["others"]] == [[0.75, None, None]] * 2

    def test_systems_under_conditions_are_off_at_first(
        self, report: Report, pair: list[Path]
    ) -> None:
        systems = shown(report(*pair)[1])["systems"]
        assert [(s["run"], s["name"], s["shown"], s["look"]) for s in systems] == [
            (0, "sv_cosine", True, 0),
            (0, "sv_cosine_as-norm@reverb", False, 2),
            (1, "sv_cosine", True, 1),
            (1, "sv_cosine_as-norm@reverb", False, 3),
        ]

    def test_curves_are_those_of_the_score_files(self, report: Report, pair: list[Path]) -> None:
        data = shown(report(*pair)[1])
        assert len(data["scores"]) == 4
        for row in data["scores"]:
            system = data["systems"][row["system"]]
            stressed = "@" in system["name"]
            rows = make_scores(system["run"] + 1 + 10 * stressed)
            scores, labels = np.array([r[2] for r in rows]), np.array([r[3] for r in rows])
            x, y = plots.det_coordinates(scores, labels, runs.RESOLUTION)
            assert row["det"] == [pytest.approx(x, abs=6e-5), pytest.approx(y, abs=6e-5)]
            assert row["eer"] == pytest.approx(metrics.eer(scores, labels) / 100)
            assert row["threshold"] == metrics.eer_threshold(scores, labels)
            width = (row["edges"][1] - row["edges"][0]) / len(row["density"]["target"])
            for name, label in (("target", 1), ("nontarget", 0)):
                assert sum(row["density"][name]) * width == pytest.approx(1, rel=1e-3)
                ordered = sorted((r[2] for r in rows if r[3] == label), reverse=not label)
                assert [p[0] for p in row["hardest"][name]] == ordered[:10]
                known = {(r[2], r[0], r[1]) for r in rows}
                assert all(tuple(p) in known for p in row["hardest"][name])

    def test_training_is_in_the_order_of_epochs(self, report: Report, pair: list[Path]) -> None:
        signals = shown(report(*pair)[1])["signals"]
        assert [s["name"] for s in signals] == ["train/loss", "train/lr", "train/rank"]
        assert signals[0]["curves"][1] == {"run": 1, "x": [1, 9, 10], "y": [3, 2 + 1 / 9, 2.1]}
        assert signals[2]["curves"][0]["y"] == [None, None, None]

    def test_only_keys_that_differ(self, report: Report, pair: list[Path]) -> None:
        rows = shown(report(*pair)[1])["configuration"]
        assert rows == [{"key": "trainer.batch_size", "values": ["8", "16"]}]

    def test_size_is_bounded_whatever_the_number_of_trials(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        labels = np.arange(200_000) % 2 == 0
        trials = runs.Trials(["a"], *np.zeros((2, 200_000), int), labels, "t")
        drawn = runs.curves(trials, rng.normal(size=200_000) + labels)
        assert len(json.dumps(drawn)) < 60_000

    def test_an_interrupted_write_leaves_the_old_page(
        self, report: Report, pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, before, _ = report(pair[0])
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
        code, after, said = report(*pair)
        assert (code, after == before) == (2, True)
        assert "cannot be written (disk full)" in said
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]


class TestSafety:
    def test_names_stay_text(self, report: Report, pair: list[Path]) -> None:
        _, page, _ = report(*pair)
        assert "alert(1)" in page  # the name is there
        seen: list[tuple[str, dict[str, str | None]]] = []

        class Parser(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                seen.append((tag, dict(attrs)))

        Parser().feed(page)
        assert [a.get("type") for tag, a in seen if tag == "script"] == ["application/json", None]
        assert not [tag for tag, _ in seen if tag == "b"]
        files = {f for s in shown(page)["scores"] for p in s["hardest"]["target"] for f in p[1:]}
        assert EVIL in files

    def test_nothing_is_loaded_from_elsewhere(self, report: Report, pair: list[Path]) -> None:
        _, page, _ = report(*pair)
        assert "http://" not in page
        assert "https://" not in page
        assert not re.search(r"<(link|iframe|img|script[^>]+src)|@import|url\((?!#)", page)
        assert "default-src 'none'" in page
        assert "innerHTML" not in page


class TestAudio:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        for i, name in enumerate(NAMES[:4]):
            path = tmp_path / "audio" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rate = 8000 if i == 0 else 16000
            sf.write(path, np.linspace(-0.5, 0.5, rate * (5 if i == 1 else 1)), rate)
        return tmp_path / "audio"

    def test_clips_hold_the_beginning_of_each_file(
        self, report: Report, pair: list[Path], base: Path
    ) -> None:
        data = shown(report(*pair, "--audio", base)[1])
        assert sorted(data["clips"]) == sorted(NAMES[:4])
        assert any("1 files cannot be read" in text for text in data["missing"]["hardest"])
        for name, seconds in zip(NAMES, (1, 3, 1, 1), strict=False):
            content = base64.b64decode(data["clips"][name].removeprefix("data:audio/wav;base64,"))
            wave, rate = sf.read(io.BytesIO(content))
            assert (rate, len(wave)) == (16000, 16000 * seconds)
        source, _ = sf.read(base / NAMES[1])
        content = base64.b64decode(data["clips"][NAMES[1]].partition(",")[2])
        assert np.array_equal(sf.read(io.BytesIO(content))[0], source[:48000])

    def test_their_size_is_bounded_and_said(
        self, report: Report, pair: list[Path], base: Path
    ) -> None:
        data = shown(report(*pair, "--audio", base, "--audio_mb", 0.1)[1])
        assert 0 < sum(map(len, data["clips"].values())) <= 100_000
        assert any("at most 0.1 MB" in text for text in data["missing"]["hardest"])

    def test_systems_that_are_shown_come_first(self, tmp_path: Path, base: Path) -> None:
        found = runs.Findings([], {})
        found.systems = [{"shown": False}, {"shown": True}]
        found.scores = [
            {"system": i, "hardest": {"target": [[0.0, name, name]], "nontarget": []}}
            for i, name in enumerate((NAMES[0], NAMES[2]))
        ]
        said: dict[str, list[str]] = {"hardest": []}
        assert list(clips.clips(found, base, 0.05, said)) == [NAMES[2]]
        assert said["hardest"][0].startswith("1 of 2 files have no clip")

    def test_the_hardest_pairs_come_first(self) -> None:
        scored = [
            {"hardest": {"target": [[0, f"{n}{rank}", "x"] for rank in (0, 1)], "nontarget": []}}
            for n in "ab"
        ]
        order = [file for file in clips._hardest_first(scored) if file != "x"]
        assert order == ["a0", "b0", "a1", "b1"]


class TestMaps:
    def save(self, path: Path) -> list[str]:
        files = [f"id{i % 4}/{i}.wav" for i in range(40)]
        rng = np.random.default_rng(0)
        centres = 10 * np.eye(4, 8)
        embeddings = np.stack([centres[i % 4] for i in range(40)]) + rng.normal(size=(40, 8))
        np.savez(path, files=np.array(files), embeddings=embeddings.astype(np.float32))
        return files

    def test_speakers_are_apart(self, report: Report, pair: list[Path], tmp_path: Path) -> None:
        files = self.save(tmp_path / "e.npz")
        (tmp_path / "l.csv").write_text(
            "File,Speaker,Sex\n" + "".join(f"{f},{f[:3]},f\n" for f in files)
        )
        arguments = ("--embeddings", tmp_path / "e.npz", "--labels", tmp_path / "l.csv")
        (found,) = shown(report(*pair, *arguments)[1])["maps"]
        assert found["files"] == files
        assert found["columns"] == {"Speaker": [f[:3] for f in files], "Sex": ["f"] * 40}
        points = np.stack([found["x"], found["y"]], 1)
        assert np.abs(points).max() == 1
        distances = np.linalg.norm(points[:, None] - points, axis=-1) + 9 * np.eye(40)
        assert all(i % 4 == j % 4 for i, j in enumerate(distances.argmin(1)))

    def test_the_cache_is_used_where_it_is_of_one_model(
        self, report: Report, pair: list[Path]
    ) -> None:
        names = [f"id{i % 2}/{i}.wav" for i in range(9)]
        cache = pair[0] / "cache"
        cache.mkdir()
        arrays = {
            "names": np.frombuffer("\0".join(names).encode(), np.uint8),
            "embeddings": np.random.default_rng(0).normal(size=(9, 4)),
        }
        np.savez(cache / "aa-1.npz", **arrays)
        data = shown(report(*pair)[1])
        assert data["maps"][0]["columns"] == {"first folder": [n[:3] for n in names]}
        assert data["missing"]["map"] == ["b: no embeddings are kept in cache/; give --embeddings."]
        np.savez(cache / "bb-1.npz", **arrays)
        assert "several checkpoints" in shown(report(*pair)[1])["missing"]["map"][0]

    def test_few_files_of_the_largest_groups_are_chosen(self) -> None:
        groups = ["big"] * 100 + [f"g{i}" for i in range(30) for _ in range(2)] + ["one"]
        rows = maps.choose(groups)
        assert len(rows) == 20 + 19 * 2
        assert (rows[0], rows[19]) == (0, 99)
        assert len(groups) - 1 not in rows


class TestBadInput:
    def test_one_sentence_and_no_page(
        self, report: Report, pair: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        new = make_run(tmp_path / "new", 3)
        for name in ("training.json", "evaluation.json"):
            (new / name).unlink()
        (tmp_path / "bad.csv").write_text("Name\nx\n")
        for arguments, message in (
            ([tmp_path / "none"], "no such folder"),
            ([tmp_path / "empty"], "not the folder of a run (it has no resolved_config.yml)"),
            ([new], "no results yet"),
            ([pair[0], pair[0]], "named twice"),
            ([pair[0], "--audio", tmp_path / "none"], "no such folder"),
            ([pair[0], "--audio", tmp_path / "empty"], "none of the 5 files can be read there"),
            ([pair[0], "--labels", tmp_path / "bad.csv"], "needs a column File"),
            ([pair[0], "--embeddings", tmp_path / "bad.csv"], "not a file of 'sslsv embed'"),
        ):
            code, page, said = report(*arguments)
            assert (code, page) == (2, "")
            assert said.startswith("error: ")
            assert said.count("\n") == 1
            assert message in said

    def test_missing_parts_are_left_out_and_said(self, report: Report, pair: list[Path]) -> None:
        shutil.rmtree(pair[0] / "scores")
        (pair[0] / "training.json").unlink()
        path = pair[1] / "scores/trained_sv_cosine_trials.txt"
        path.write_text("a b nan 1\na c 1.0 0\n")
        code, page, _ = report(*pair)
        assert code == 0
        data = shown(page)
        assert len(data["scores"]) == 1
        assert "no scores/trained_sv_cosine_trials.txt" in data["missing"]["det"][0]
        assert "not finite" in " ".join(data["missing"]["det"])
        assert data["missing"]["training"] == ["a: no training.json, so there are no curves."]


@pytest.mark.skipif(not BROWSER, reason="no Chromium to open the page with")
class TestInABrowser:
    def open(self, page: Path, folder: Path) -> tuple[str, str]:
        """The document once the scripts have run, and what was logged."""
        done = subprocess.run(
            [
                *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"),
                *(f"--user-data-dir={folder / 'profile'}", f"file://{page}#selftest"),
            ],
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.stdout, done.stderr

    def test_charts_are_drawn_and_systems_can_be_switched(
        self, report: Report, pair: list[Path], tmp_path: Path
    ) -> None:
        TestMaps().save(tmp_path / "e.npz")
        report(*pair, "--embeddings", tmp_path / "e.npz")
        document, log = self.open(tmp_path / "out/report.html", tmp_path)
        assert "CONSOLE" not in log
        assert "Uncaught" not in log
        assert document.count('class="point"') == 40
        assert document.count('class="threshold"') == 2
        found = re.search(r'<pre id="selftest">(.*?)</pre>', document)
        assert found is not None
        tested = json.loads(found[1])
        assert tested["toggled"] is True
        # DET curves, rows of results; the runs' training curves (two have values) go with the run.
        on = {"curves": 2, "results": 2, "training": 4}
        one = {"curves": 1, "results": 1}
        expected = {
            "a": one | {"training": 2},
            "sv_cosine": one | {"training": 4},
            "sv_cosine_as-norm@reverb": {"curves": 3, "results": 3, "training": 4},
        }
        for entry, name in zip(tested["found"], [*expected, *expected], strict=True):
            assert entry["name"] == (name if name != "a" else entry["name"])
            assert entry["steps"] == [on, expected[name], on]
