"""``sslsv results``: tables of runs with known numbers, of the README, and what is published."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sslsv import cli
from sslsv.config import load_config
from sslsv.experiment import build_method
from sslsv.results_table import trainable_parameters

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
HEAD = """\
| model | method | encoder | parameters (M) | epochs | utterances/s | list | list hash | EER (%) \
| minDCF | measured | published EER (%) | published minDCF (p=0.01) | published |
| --- | --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: | --- | ---: | ---: | --- |
"""
PUBLISHED = """\
tables:
  first:
    list: VoxCeleb1-O
    source: a paper
    models:
      a/tested:
        method: Sim|CLR
        eer: 12.3
        mindcf: 0.5
        checkpoint: https://host/x?y=z
      b/untested:
        method: SimCLR
        eer: 7
        mindcf: 0.12345
  second:
    list: VoxCeleb1-H
    source: another paper
    models:
      c/classified:
        method: Supervised
        eer: 1.005
        mindcf: 1
"""
EVALUATION: dict[str, Any] = {
    "checkpoint": "model_avg.pt",
    "epoch": 7,
    "test/sv_cosine_as-norm/clean/eer": 1.0,  # before the plain one, and not shown
    "test/sv_cosine/clean/eer": 8.504,
    "test/sv_cosine/clean/eer_low": 7.0,
    "test/sv_cosine/clean/eer_high": 9.996,
    "test/sv_cosine/clean/mindcf": 0.64554,
    "test/sv_cosine/clean/mindcf_low": 0.5,
    "test/sv_cosine/clean/mindcf_high": None,  # no interval without both ends
    "test/sv_cosine/clean/mincllr": 0.3,
    "test/sv_cosine@snr-5db/clean/eer": 33.0,
    "test/sv_cosine@snr-5db/stressed only/eer": 34.0,
    "untrained/sv_cosine/clean/eer": 44.0,
    "test/sv_plda/far/field/eer": 20.0,
    "test/knn/emotion/accuracy": 0.5,
    "lists/clean/hash": "0123abcd",
    "lists/clean/trials": 100,
}
TIMINGS = [10.0, None, 1000.0, 20.0, 31.0]  # of epochs; one was not finite


def run_of(folder: Path, base: str, name: str = "config.yml", epochs: int = 3) -> Path:
    """The folder of a run of a configuration of the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"base: {MODELS / base / 'config.yml'}\ntrainer: {{epochs: {epochs}, avg_count: 0}}\n"
    (folder / name).write_text(text)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs that were tested, not at all, and on classes alone."""
    folder = tmp_path / "models"
    tested = run_of(folder / "a/tested", "small/simclr", epochs=99)
    run_of(tested, "small/simclr", "resolved_config.yml", epochs=7)  # which was what was trained
    (tested / "evaluation.json").write_text(json.dumps(EVALUATION))
    timings = {str(i): {"utterances_per_second": x} for i, x in enumerate(TIMINGS, start=1)}
    timings["6"] = {"seconds": 3.0}
    (tested / "timings.json").write_text(json.dumps(timings))
    run_of(folder / "b/untested", "small/simclr")
    classes = {"checkpoint": "model_best.pt", "epoch": None, "test/knn/emotion/accuracy": 0.5}
    classified = run_of(folder / "c/classified", "supervised/cremad/emotion_init-simclr_frozen")
    (classified / "evaluation.json").write_text(json.dumps(classes))
    (folder / "published.yml").write_text(PUBLISHED)
    return folder


@pytest.fixture
def readme(tmp_path: Path, runs: Path) -> Path:
    for model in ("a/tested", "b/untested", "c/classified"):
        assert (runs / model / "config.yml").exists()
    path = tmp_path / "README.md"
    path.write_text(
        "# é\r\n\n<!-- results:begin first -->\nold\n<!-- results:end -->\n\ntext\n"
        "  <!-- results:begin second -->\n<!-- results:end -->\nend without a line break",
        newline="",
    )
    return path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    def printed(*arguments: object) -> str:
        assert cli.main(["results", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return printed


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """The one sentence of a command that ends with 2."""

    def refused(*arguments: object) -> str:
        assert cli.main(["results", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").rstrip("\n")

    return refused


TESTED = "| a/tested | simclr | resnet34 | 1.44 | 7 | 25.5 | "
OF_TESTED = " | 12.30 | 0.5000 | VoxCeleb1-O, a paper |\n"
UNTESTED = (
    "| b/untested | simclr | resnet34 | 1.44 | 3 | - | - | - | - | - | - | 7.00 | 0.1235 "
    "| VoxCeleb1-O, a paper |\n"
)
CLASSIFIED = "| c/classified | supervised | resnet34 | 0.00 | 3 | - | - | - | - | - | {} "
CLASSIFIED += "| 1.00 | 1.0000 | VoxCeleb1-H, another paper |\n"


class TestTable:
    def test_has_what_the_files_say_letter_by_letter(self, runs: Path, printed: Any) -> None:
        clean = "clean | 0123abcd | 8.50 [7.00, 10.00] | 0.6455 | model_avg.pt, epoch 7, sv_cosine"
        expected = HEAD + TESTED + clean + OF_TESTED + UNTESTED + CLASSIFIED.format("model_best.pt")
        assert printed(runs) == expected

    def test_shows_the_lists_that_are_asked_for(self, runs: Path, printed: Any) -> None:
        """In their order; what was not measured on any of them has no measured figure."""
        clean = "clean | 0123abcd | 8.50 [7.00, 10.00] | 0.6455 | model_avg.pt, epoch 7, sv_cosine"
        far = "far/field | - | 20.00 | - | model_avg.pt, epoch 7, sv_plda"
        rest = UNTESTED + CLASSIFIED.format("-")
        both = HEAD + TESTED + far + OF_TESTED + TESTED + clean + OF_TESTED + rest
        assert printed(runs, "--list", "far/field", "clean", "far/field") == both
        assert printed(runs, "--list", "clean") == HEAD + TESTED + clean + OF_TESTED + rest

    def test_is_json_too(self, runs: Path, printed: Any) -> None:
        tested, untested, classified = json.loads(printed(runs, "--format", "json"))
        assert tested == {
            "model": "a/tested",
            "method": "simclr",
            "encoder": "resnet34",
            "trainable_parameters": 1437078,
            "epochs": 7,
            "utterances_per_second": 25.5,
            "list": "clean",
            "list_hash": "0123abcd",
            "measured": {
                "checkpoint": "model_avg.pt",
                "epoch": 7,
                "evaluation": "sv_cosine",
                "eer": 8.504,
                "eer_low": 7.0,
                "eer_high": 9.996,
                "mindcf": 0.64554,
                "mindcf_low": 0.5,
                "mindcf_high": None,
            },
            "published": {
                "method": "Sim|CLR",
                "eer": 12.3,
                "mindcf": 0.5,
                "checkpoint": "https://host/x?y=z",
                "list": "VoxCeleb1-O",
                "source": "a paper",
            },
        }
        assert (untested["measured"], untested["list"]) == (None, None)
        assert untested["published"]["checkpoint"] is None
        assert set(classified["measured"].values()) == {"model_best.pt", None}

    def test_of_a_folder_further_down_knows_what_is_published(
        self, runs: Path, printed: Any
    ) -> None:
        above = printed(runs).splitlines()
        assert printed(runs / "a").splitlines()[2] == above[2].replace("a/tested", "tested")
        assert printed(runs / "b/untested").splitlines()[2] == above[3].replace("b/un", "un")

    def test_without_anything_published(self, runs: Path, printed: Any) -> None:
        (runs / "published.yml").unlink()
        rows = printed(runs).splitlines()[2:]
        assert len(rows) == 3
        assert all(row.endswith(" | - | - | - |") for row in rows)

    def test_a_bar_in_a_name_is_no_column(self, runs: Path, printed: Any) -> None:
        run_of(runs / "d|e", "small/simclr")
        assert printed(runs).splitlines()[-1].startswith(r"| d\|e | simclr |")

    def test_of_the_repository_has_every_configuration(self, tmp_path: Path, printed: Any) -> None:
        """Without what runs may have left there."""
        paths = [path.relative_to(MODELS) for path in MODELS.rglob("*.yml")]
        for path in [path for path in paths if path.name != "resolved_config.yml"]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(MODELS / path, tmp_path / path)
        rows = json.loads(printed(tmp_path, "--format", "json"))
        by_model = {row["model"]: row for row in rows}
        configs = {path.parent.as_posix() for path in paths if path.name == "config.yml"}
        assert configs == set(by_model)
        for model in configs:
            of_weights = model.startswith("foundation/")
            assert (by_model[model]["trainable_parameters"] is None) == of_weights
        assert {model for model in configs if by_model[model]["published"]} == set(SPEC)

    def test_script_in_tools_is_the_same_command(self, runs: Path, printed: Any) -> None:
        command = [sys.executable, str(ROOT / "tools/export_results.py"), str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=runs)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == printed(runs)


class TestParameters:
    @pytest.mark.parametrize("name", "simclr moco byol simsiam dino deepcluster wmse cpc".split())
    def test_are_those_of_the_method_itself(self, name: str) -> None:
        config = load_config(MODELS / "small" / name)
        config.encoder.base_dim = 8  # type: ignore[attr-defined]
        real = sum(p.numel() for p in build_method(config).parameters() if p.requires_grad)
        assert trainable_parameters(config) == real
        assert config.encoder.extract_mel_features  # as it was

    def test_of_a_frozen_encoder_are_those_of_the_classifier(self) -> None:
        config = load_config(MODELS / "supervised/cremad/emotion_init-simclr_frozen")
        classes = config.method.nb_classes  # type: ignore[attr-defined]
        assert trainable_parameters(config) == (config.encoder.encoder_dim + 1) * classes


class TestBadInput:
    def test_unknown_list(self, runs: Path, refused: Any) -> None:
        expected = f"--list: no run below {runs} was tested on 'noisy'; choose among: "
        assert refused(runs, "--list", "clean", "noisy") == expected + "clean, far/field"
        (runs / "a/tested/evaluation.json").unlink()
        assert refused(runs, "--list", "clean").endswith("'clean'; none was tested on any")

    def test_unknown_folder(self, tmp_path: Path, refused: Any) -> None:
        path = tmp_path / "nowhere"
        assert refused(path) == f"{path}: no such folder; give the one that runs are below"
        path.mkdir()
        expected = f"{path}: holds no run; one has resolved_config.yml or config.yml"
        assert refused(path) == expected

    @pytest.mark.parametrize("name", ["evaluation.json", "timings.json"])
    @pytest.mark.parametrize("text", ['{"test/sv_cosine/clean/eer": 8.', "[1]", "\x00"])
    def test_damaged_file(self, runs: Path, refused: Any, name: str, text: str) -> None:
        path = runs / "a/tested" / name
        path.write_text(text)
        sentence = refused(runs)
        assert sentence.startswith(f"{path}: ")
        assert sentence.endswith("; move it away")

    @pytest.mark.parametrize("value", ["low", True, [1.0], float("nan")])
    def test_value_that_is_no_number(self, runs: Path, refused: Any, value: Any) -> None:
        path = runs / "a/tested/evaluation.json"
        path.write_text(json.dumps(EVALUATION | {"test/sv_cosine/clean/eer": value}))
        expected = f"{path}: test/sv_cosine/clean/eer is not a number but {value!r}; "
        assert refused(runs) == expected + "move the file away"

    def test_timings_that_are_no_epochs(self, runs: Path, refused: Any) -> None:
        path = runs / "a/tested/timings.json"
        path.write_text('{"1": 3}')
        assert refused(runs) == f"{path}: holds other things than epochs; move it away"
        path.write_text('{"1": {"utterances_per_second": "fast"}}')
        assert refused(runs).startswith(f"{path}: utterances_per_second is not a number")

    def test_configuration_that_cannot_be_read(self, runs: Path, refused: Any) -> None:
        path = runs / "b/untested/config.yml"
        path.write_text("method: {type: simclr}\n")
        assert refused(runs) == f"{path}: encoder: missing; this section must be given"

    @pytest.mark.parametrize(
        ("old", "new", "line"),
        [
            ("eer: 12.3", "eer: good", 6),
            ("mindcf: 0.5\n", "mindcf: true\n", 6),
            ("        mindcf: 0.12345\n", "", 11),
            ("checkpoint:", "link:", 6),
            ("method: SimCLR", "method: 3", 11),
        ],
    )
    def test_published_figure_that_is_none(
        self, runs: Path, refused: Any, old: str, new: str, line: int
    ) -> None:
        assert PUBLISHED.count(old) == 1
        path = runs / "published.yml"
        path.write_text(PUBLISHED.replace(old, new))
        assert refused(runs).startswith(f"{path} line {line}: ")

    @pytest.mark.parametrize(
        "text",
        [
            "a: 1\n",
            "tables: 3\n",
            "tables:\n  x: {list: a, source: b, models: 3}\n",
            "tables:\n  x: {list: a, models: {}}\n",
            "tables:\n  x:\n    models: {a: 3}\n",
            "tables:\n  x: {list: a, source: b, models: {a: 3}}\n",
        ],
    )
    def test_published_file_of_another_form(self, runs: Path, refused: Any, text: str) -> None:
        (runs / "published.yml").write_text(text)
        assert refused(runs).startswith(f"{runs / 'published.yml'}")


class TestReadme:
    EXPECTED = """\
# é\r

<!-- results:begin first -->

| Method | Model | EER (%) | minDCF (p=0.01) | Checkpoint |
| --- | --- | ---: | ---: | --- |
| Sim\\|CLR | [`a/tested`](models/a/tested) | 12.30 | 0.5000 | [:link:](https://host/x?y=z) |
| SimCLR | [`b/untested`](models/b/untested) | 7.00 | 0.1235 | - |

<!-- results:end -->

text
  <!-- results:begin second -->

| Method | Model | EER (%) | minDCF (p=0.01) | Checkpoint |
| --- | --- | ---: | ---: | --- |
| Supervised | [`c/classified`](models/c/classified) | 1.00 | 1.0000 | - |

<!-- results:end -->
end without a line break"""

    def test_gets_the_published_tables_and_keeps_all_else(
        self, runs: Path, readme: Path, printed: Any
    ) -> None:
        assert printed(runs, "--readme", readme) == f"{readme}: 2 tables written\n"
        assert readme.read_bytes().decode() == self.EXPECTED
        assert sorted(path.name for path in readme.parent.iterdir()) == ["README.md", "models"]
        same = f"{readme}: 2 tables, as they should be\n"
        assert printed(runs, "--readme", readme) == same
        assert printed(runs, "--readme", readme, "--check") == same
        assert readme.read_bytes().decode() == self.EXPECTED

    def test_links_are_relative_to_it(self, runs: Path, readme: Path, printed: Any) -> None:
        (readme.parent / "docs").mkdir()
        inner = Path(shutil.move(readme, readme.parent / "docs/README.md"))
        printed(runs, "--readme", inner)
        assert "[`a/tested`](../models/a/tested)" in inner.read_text()

    def test_check_refuses_another_table_and_changes_nothing(
        self, runs: Path, readme: Path, printed: Any, refused: Any
    ) -> None:
        printed(runs, "--readme", readme)
        other = self.EXPECTED.replace("12.30", "12.31").encode()
        readme.write_bytes(other)
        expected = f"{readme}: its tables are not those of {runs / 'published.yml'}; write them "
        expected += f"with 'sslsv results {runs} --readme {readme}'"
        assert refused(runs, "--readme", readme, "--check") == expected
        assert readme.read_bytes() == other

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            (
                "  <!-- results:begin second -->\n<!-- results:end -->\n",
                "",
                ": no marker '<!-- res",
            ),
            ("<!-- results:end -->\nend", "end", ": no '<!-- results:end -->' follows the marker"),
            ("<!-- results:end -->\n\ntext\n", "", " line 5: '<!-- results:begin second -->' doe"),
            ("text", "<!-- results:end -->", " line 7: '<!-- results:end -->' does not follow"),
            ("begin second", "begin third", " line 8: 'third' is not a table, or is there twice"),
            ("begin second", "begin first", " line 8: 'first' is not a table, or is there twice"),
        ],
    )
    def test_with_other_markers_is_left_alone(
        self, runs: Path, readme: Path, refused: Any, old: str, new: str, sentence: str
    ) -> None:
        text = readme.read_bytes().decode()
        assert text.count(old) == 1
        spoilt = text.replace(old, new).encode()
        readme.write_bytes(spoilt)
        assert refused(runs, "--readme", readme).startswith(f"{readme}{sentence}")
        assert readme.read_bytes() == spoilt

    def test_that_cannot_be_read(self, runs: Path, readme: Path, refused: Any) -> None:
        readme.write_bytes(b"\xff")
        assert refused(runs, "--readme", readme).startswith(f"{readme}: cannot be read (")
        readme.unlink()
        assert refused(runs, "--readme", readme).startswith(f"{readme}: cannot be read (")

    def test_links_to_no_folder_that_is_none(self, runs: Path, readme: Path, refused: Any) -> None:
        shutil.rmtree(runs / "b")
        expected = f"{runs / 'published.yml'}: b/untested has no config.yml there; correct its name"
        assert refused(runs, "--readme", readme) == expected

    def test_needs_something_published(self, runs: Path, readme: Path, refused: Any) -> None:
        (runs / "published.yml").unlink()
        expected = f"{runs}: no published.yml there or above; it holds the tables"
        assert refused(runs, "--readme", readme) == expected

    def test_check_needs_a_file(self, runs: Path, refused: Any) -> None:
        assert refused(runs, "--check") == "--check: needs --readme FILE, the file to check"

    def test_of_the_repository_is_up_to_date(
        self, printed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ROOT)
        expected = "README.md: 3 tables, as they should be\n"
        assert printed("--readme", "README.md", "--check") == expected


# ------------------------------------------------------------------------------- published figures

SSL, SSPS = "ssl/voxceleb2", "ssps/voxceleb2"
ECAPA = "enc-ECAPATDNN-1024"
# The three tables of the README of the reference system: EER (%), minDCF, id of the checkpoint.
SPEC: dict[str, tuple[str, str, str, str | None]] = {
    f"{SSL}/lim/lim_loss-NCE_proj-2048-BN-R-2048-BN-R-512": ("LIM", "16.13", "0.9015", None),
    f"{SSL}/cpc/cpc_t-4_agg-GRU-1-256": ("CPC", "12.77", "0.8033", None),
    f"{SSL}/simclr/simclr_proj-none_t-0.03": (
        *("SimCLR", "9.05", "0.6364"),
        "14mAactPvU819-YHsuZHxpA_QAMu3IT88",
    ),
    f"{SSL}/moco/moco_proj-none_Q-32768_t-0.03_m-0.999": (
        *("MoCo", "8.49", "0.5990"),
        "1F1HZEzeVta1n6-MOT-0F27LAupwvxqyM",
    ),
    f"{SSL}/deepcluster/deepcluster_proj-2048-BN-R-2048-BN-R-512_K-3000-3000-3000_t-0.1": (
        *("DeepCluster", "15.16", "0.8193"),
        None,
    ),
    f"{SSL}/swav/swav_proj-2048-BN-R-2048-BN-R-512_K-6000_t-0.1": (
        *("SwAV", "11.82", "0.7177"),
        "1VC1jVhWK22mfk_B3ZwFV5mxMueNIcvqb",
    ),
    f"{SSL}/wmse/wmse_proj-1024-BN-R-64_ws-128": ("W-MSE", "14.62", "0.8506", None),
    f"{SSL}/barlowtwins/barlowtwins_proj-2048-BN-R-2048-BN-R-512_lambda-0.005": (
        *("Barlow Twins", "13.22", "0.7658"),
        None,
    ),
    f"{SSL}/vicreg/vicreg_proj-2048-BN-R-2048-BN-R-512_inv-1.0_var-1.0_cov-0.1": (
        *("VICReg", "11.33", "0.6658"),
        "1AvOWDX4m9mdzI8QSpcrir1kSui0rm8I0",
    ),
    f"{SSL}/byol/byol_proj-2048-BN-R-2048-BN-R-512_pred-4096-BN-R-256_m-0.996-sched": (
        *("BYOL", "13.99", "0.7509"),
        None,
    ),
    f"{SSL}/simsiam/simsiam_proj-2048-BN-R-2048-BN-R-512-BN_pred-512-BN-R-2048": (
        *("SimSiam", "28.94", "0.9984"),
        None,
    ),
    f"{SSL}/dino/dino_proj-2048-BN-G-2048-BN-G-256-L2-65536_G-2x4_L-4x2_t-0.04": (
        *("DINO", "6.04", "0.4526"),
        "1DAvRYNlZFR7zllymsCfS2Yoa3Wt1tv0Z",
    ),
    f"{SSL}/supervised/supervised_loss-AAM_s-30_m-0.2": (
        *("Supervised", "2.95", "0.3122"),
        "1CZpeaiK6bCcOsvgdEeVj6n-XqKoiJkJs",
    ),
    f"{SSL}/simclr/simclr_{ECAPA}_proj-none_t-0.03": (
        *("SimCLR", "6.41", "0.5160"),
        "1ziVtNDFspiC1Qbj8kbqb5s9e1LW98Vmt",
    ),
    f"{SSL}/moco/moco_{ECAPA}_proj-none_Q-32768_t-0.03_m-0.999": (
        *("MoCo", "6.48", "0.5372"),
        "1obndtNWHm8I4-9rhxugS7OFlUbFhCNGh",
    ),
    f"{SSL}/swav/swav_{ECAPA}_proj-2048-BN-R-2048-BN-R-512_K-6000_t-0.1": (
        *("SwAV", "8.12", "0.6148"),
        "1_oDDza2fau84tZA060Wy8xZfy_guAy6w",
    ),
    f"{SSL}/vicreg/vicreg_{ECAPA}_proj-2048-BN-R-2048-BN-R-512_inv-1.0_var-1.0_cov-0.1": (
        *("VICReg", "7.42", "0.5659"),
        "1Ir37Nh6O38biOvHeW6pzgcMB8oOaAdEg",
    ),
    f"{SSL}/dino/dino_{ECAPA}_proj-2048-BN-G-2048-BN-G-256-L2-65536_G-2x4_L-4x2_t-0.04": (
        *("DINO", "2.82", "0.3463"),
        "1_4jkqiumnFjHfMcYrm8ckpRo85c4Gdqd",
    ),
    f"{SSL}/supervised/supervised_{ECAPA}_loss-AAM_s-30_m-0.2": (
        *("Supervised", "1.34", "0.1521"),
        "1ZTXgZeWv9dbnosLzMtHU4wSQXvg9M-SF",
    ),
    f"{SSPS}/simclr_e-ecapa/ssps_kmeans_25k_uni-1": (
        *("SimCLR", "2.57", "0.3033"),
        "1Uv09fswUNDCbhrxR8_e8kOLVa60KB2rW",
    ),
    f"{SSPS}/dino_e-ecapa/ssps_kmeans_25k_uni-1": (
        *("DINO", "2.53", "0.2843"),
        "1wgtHkaha6O0lIT0hN3Hcf8bGIk9wHBA1",
    ),
}


class TestPublished:
    @pytest.fixture(scope="class")
    def tables(self) -> dict[str, Any]:
        file = (MODELS / "published.yml").read_text()
        return dict(YAML(typ="safe", pure=True).load(file)["tables"])

    def test_rows_are_those_of_the_reference(self, tables: dict[str, Any]) -> None:
        rows = [(model, row) for table in tables.values() for model, row in table["models"].items()]
        found = {}
        for model, row in rows:
            link = row.get("checkpoint")
            if link is not None:
                start, end = "https://drive.google.com/drive/folders/", "?usp=sharing"
                assert link.startswith(start)
                assert link.endswith(end)
                link = link.removeprefix(start).removesuffix(end)
            found[model] = (row["method"], f"{row['eer']:.2f}", f"{row['mindcf']:.4f}", link)
        assert len(rows) == 21
        assert found == SPEC

    def test_tables_are_three_of_one_list(self, tables: dict[str, Any]) -> None:
        sizes = {name: len(table["models"]) for name, table in tables.items()}
        assert sizes == {"ssl Fast ResNet-34": 13, "ssl ECAPA-TDNN": 6, "ssps": 2}
        assert {table["list"] for table in tables.values()} == {"VoxCeleb1-O (Original)"}

    def test_belong_to_configurations_of_that_method_and_encoder(
        self, tables: dict[str, Any]
    ) -> None:
        encoders = {"ssl Fast ResNet-34": "resnet34"}
        for name, table in tables.items():
            for model, row in table["models"].items():
                config = load_config(MODELS / model)
                method = row["method"].replace("-", "").replace(" ", "_").lower()
                assert config.method.type == method
                assert config.encoder.type == encoders.get(name, "ecapatdnn")
                assert (config.method.ssps is not None) == (name == "ssps")

    def test_readme_shows_each_of_them_once(self) -> None:
        lines = (ROOT / "README.md").read_text().splitlines()
        for model, (method, eer, mindcf, link) in SPEC.items():
            (line,) = [line for line in lines if f"](models/{model})" in line]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert (cells[0], *cells[2:4]) == (method, eer, mindcf)
            assert cells[4] == "-" if link is None else f"/{link}?" in cells[4]
