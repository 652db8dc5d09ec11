"""YAML and overrides -> the tree of dataclasses, and a sentence for whatever they cannot mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from sslsv import config as config_module
from sslsv import distributed
from sslsv.config import Config, differences, from_dict, load_config, save_resolved, to_dict
from sslsv.errors import ConfigError
from sslsv.evaluations.base import TaskConfig

ROOT = Path(__file__).resolve().parents[1]
MINIMAL = """\
encoder:
  type: resnet34
method:
  type: simclr
dataset:
  ssl: true
"""  # what a test adds starts on line 7

RAW = "trainer.tracked_metric=val/sv_cosine/split/eer"

Load = Callable[..., Config]
Refuse = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """``load(text, "a=b")`` loads MINIMAL with ``text`` after it and an override."""

    def load(text: str = "", *overrides: str, minimal: str = MINIMAL) -> Config:
        path = tmp_path / "config.yml"
        path.write_text(minimal + text)
        return load_config(path, overrides)

    return load


@pytest.fixture
def refuse(load: Load, tmp_path: Path) -> Refuse:
    """The one line in which ``load`` refuses; FILE stands for the path of the configuration."""

    def refuse(text: str = "", *overrides: str, minimal: str = MINIMAL) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, minimal=minimal)
        sentence = str(caught.value)
        assert "\n" not in sentence
        return sentence.replace(str(tmp_path / "config.yml"), "FILE")

    return refuse


# What the published schema says of every key: its name, its default, and so its type.
PUBLISHED: dict[str, Any] = {
    "seed": 1717,
    "reproducibility": False,
    "encoder": {
        "type": "resnet34",
        "encoder_dim": 512,
        "extract_mel_features": True,
        "mel_n_mels": 40,
        "mel_n_fft": 512,
        "mel_win_fn": "hamming",
        "mel_win_length": 400,
        "mel_hop_length": 160,
        "mel_sample_rate": 16000,
        "spec_augment": None,
        "compile": False,
        "pooling": True,
        "pooling_mode": "sap",
        "base_dim": 16,
        "enable_last_bn": False,
    },
    "method": {
        "type": "simclr",
        "enable_projector": True,
        "projector_hidden_dim": 2048,
        "projector_output_dim": 128,
        "projector_layers": 3,
        "temperature": 0.5,
    },
    "trainer": {
        "epochs": 100,
        "stop_at_epoch": None,
        "batch_size": 256,
        "learning_rate": 0.001,
        "learning_rate_sched": "default",
        "learning_rate_min": 1e-5,
        "learning_rate_warmup": 10,
        "weight_decay": 0.0,
        "optimizer": "adam",
        "patience": 100,
        "tracked_metric": "val/sv_cosine/voxceleb1_test_O/eer",
        "tracked_mode": "min",
        "ddp_sync_batchnorm": True,
        "mixed_precision": False,
        "init_weights": None,
        "last_checkpoint": None,
        "wandb_id": None,
        "wandb_project": "sslsv",
    },
    "dataset": {
        "ssl": False,
        "ssl_dino_global_count": 2,
        "ssl_dino_global_length": 64000,
        "ssl_dino_local_count": 4,
        "ssl_dino_local_length": 32000,
        "ssps": False,
        "ssps_frame_length": 64000,
        "augmentation": None,
        "sampler": None,
        "frame_length": 32000,
        "frame_sampling": "default",
        "max_samples": None,
        "train": "voxceleb2_train.csv",
        "label_key": "Speaker",
        "base_path": "data",
        "num_workers": 8,
        "pin_memory": True,
    },
    "evaluation": {"validation": [], "test": []},
}
AUGMENTATION = {
    "enable": True,
    "aug_prob": 1.0,
    "strategy": "reverb+noise",
    "musan_noise_snr": [0, 15],
    "musan_speech_snr": [13, 20],
    "musan_music_snr": [5, 15],
    "musan_noise_num": [1, 1],
    "musan_speech_num": [1, 1],
    "musan_music_num": [1, 1],
    "speed_perturb": None,
}
SAMPLER = {
    "enable": True,
    "balance": False,
    "nb_utterances": None,
    "nb_speakers": None,
    "nb_samples_per_spk": None,
    "create_contrastive_pairs": False,
    "prevent_class_collisions": False,
    "randomize_at_each_epoch": False,
}
SV_COSINE = {
    "type": "sv_cosine",
    "batch_size": 64,
    "num_frames": 10,
    "frame_length": 64000,
    "trials": ["voxceleb1_test_O"],
    "metrics": ["eer", "mindcf"],
    "mindcf_p_target": 0.01,
    "mindcf_c_miss": 1.0,
    "mindcf_c_fa": 1.0,
    "score_norm": None,
    "score_norm_cohort_size": 300,
}


def spelt_out() -> dict[str, Any]:
    """Every published key with its default, but for what SimCLR or a missing feature forbids."""
    dataset = PUBLISHED["dataset"] | {
        "ssl": True,
        "augmentation": AUGMENTATION,
        "sampler": SAMPLER | {"enable": False},
    }
    return PUBLISHED | {"dataset": dataset, "evaluation": {"validation": [], "test": [SV_COSINE]}}


def typed(value: Any) -> Any:
    """``value`` with the type of everything in it, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return {key: typed(v) for key, v in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else (type(value), value)


class TestSchema:
    def test_defaults_are_the_published_ones(self) -> None:
        sections = {"encoder": {"type": "resnet34"}, "method": {"type": "simclr"}}
        ours = to_dict(from_dict(sections))
        for name, value in PUBLISHED.items():
            if isinstance(value, dict):
                ours[name] = {key: ours[name][key] for key in value}  # we may have more keys
            assert typed(ours[name]) == typed(value)

    def test_defaults_of_sections_that_are_off_by_default(self, load: Load) -> None:
        text = "  augmentation:\n    enable: true\n  sampler:\n    enable: false\n"
        config = to_dict(load(text + "evaluation:\n  test:\n    - type: sv_cosine\n"))
        assert config["dataset"]["augmentation"] == AUGMENTATION
        assert typed(config["dataset"]["sampler"]) == typed(SAMPLER | {"enable": False})
        (task,) = config["evaluation"]["test"]  # with keys that are not published ones
        own = {"split": None, "score_norm_cohort": "utterance", "precision": "fp32"}
        own |= {"transforms": [], "whitening_dim": None, "lda_dim": None, "fit_on": None}
        own |= {"mindcf_priors": []}
        assert {name: task.pop(name) for name in own} == own
        assert typed(config["evaluation"]["test"]) == typed([SV_COSINE])

    def test_defaults_of_tasks_other_than_verification(self) -> None:
        task = TaskConfig(type="any")
        assert (task.batch_size, task.num_frames, task.frame_length) == (64, 1, 64000)

    def test_every_published_key_loads_from_yaml(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yml"
        with path.open("w") as file:
            YAML(typ="safe", pure=True).dump(spelt_out(), file)
        assert load_config(path) == from_dict(spelt_out() | {"run_dir": str(tmp_path)})

    @pytest.mark.parametrize("norm", ["z-norm", "t-norm", "s-norm", "as-norm"])
    def test_normalised_scores_can_be_tracked_where_they_are_measured(
        self, load: Load, refuse: Refuse, norm: str
    ) -> None:
        normalised = f"val/sv_cosine_{norm}/split/eer"
        task = "type: sv_cosine, trials: [split], split: {}"
        tracked = f"trainer.tracked_metric={normalised}"
        config = load("", f"evaluation.validation=[{{{task}, score_norm: {norm}}}]", tracked)
        assert config.trainer.tracked_metric == normalised
        load("", f"evaluation.validation=[{{{task}, score_norm: {norm}}}]", RAW)
        said = refuse("", f"evaluation.validation=[{{{task}}}]", tracked)
        assert f"trainer.tracked_metric: '{normalised}' is not among what this run" in said

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("score_norm: asnorm", "score_norm: expected one of z-norm, t-norm, s-norm, as-norm"),
            ("score_norm_cohort: speaker", "score_norm_cohort: expected one of utterance, label"),
            ("score_norm_cohort_size: 1", "score_norm_cohort_size: must be at least 2"),
        ],
    )
    def test_score_normalisation_is_checked(
        self, refuse: Refuse, setting: str, message: str
    ) -> None:
        said = refuse("", f"evaluation.test=[{{type: sv_cosine, {setting}}}]")
        assert said.startswith(f"evaluation.test.0.{message}")

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["dataset.ssps=true"], "dataset.ssps: nothing uses the reference view without"),
            (["method.ssps={start_epoch: 3}"], "method.ssps: needs the reference view; set datas"),
            (
                ["method.ssps={inter_sampling_size: 5, kmeans_nb_prototypes: 5}"],
                "method.ssps.inter_sampling_size: a cluster has 4 others",
            ),
            (["method.ssps={pos_queue_size: 0}"], "method.ssps.pos_queue_size: must be at least 1"),
            (
                ["method.ssps={sampling: kmean}"],
                "method.ssps.sampling: expected one of knn, kmeans",
            ),
        ],
    )
    def test_positives_of_other_utterances_need_both_sections(
        self, refuse: Refuse, overrides: list[str], message: str
    ) -> None:
        assert message in refuse("", *overrides)

    def test_numbers_are_those_of_yaml_1_2(self, load: Load) -> None:
        config = load("trainer:\n  learning_rate: 1e-3\n  weight_decay: 0\n  epochs: 0x10\n")
        assert typed(config.trainer.learning_rate) == (float, 1e-3)
        assert typed(config.trainer.weight_decay) == (float, 0.0)
        assert config.trainer.epochs == 16

    def test_ranges_and_paths_can_be_set(self, load: Load) -> None:
        text = "  base_path: /some/where\n  augmentation:\n    musan_noise_snr: [-5, 2.5]\n"
        dataset = load(text + "    musan_music_num: [2, 3]\n").dataset
        assert dataset.base_path == Path("/some/where")
        assert dataset.augmentation is not None
        assert typed(list(dataset.augmentation.musan_noise_snr)) == typed([-5.0, 2.5])
        assert dataset.augmentation.musan_music_num == (2, 3)

    def test_an_empty_section_is_its_defaults(self, load: Load) -> None:
        assert load("trainer:\nevaluation:\n") == load()


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainr: {}\n", "line 7: trainr: unknown key; did you mean 'trainer'?"),
            (
                "trainer:\n  optimzer: sgd\n",
                "line 8: trainer.optimzer: unknown key; did you mean 'optimizer'?",
            ),
            (
                "  augmentation:\n\n    aug_prb: 1\n",
                "line 9: dataset.augmentation.aug_prb: unknown key; did you mean 'aug_prob'?",
            ),
            (
                "evaluation:\n  test:\n    - type: sv_cosine\n      trial: [a]\n",
                "line 10: evaluation.test.0.trial: unknown key; did you mean 'trials'?",
            ),
            ("1: x\n", "line 7: 1: unknown key; known keys: encoder, method, trainer, dataset, "),
            ("? [a, b]\n: c\n", ": ('a', 'b'): unknown key; known keys: encoder, "),
        ],
    )
    def test_are_refused_at_every_depth(self, refuse: Refuse, text: str, message: str) -> None:
        assert refuse(text).removeprefix("FILE").lstrip().startswith(message)

    def test_no_far_fetched_suggestion(self, refuse: Refuse) -> None:
        said = refuse("", "encoder.temperature=1")
        assert said.startswith("encoder.temperature: unknown key; known keys: type, encoder_dim, ")


TYPES = {
    # an unacceptable value (YAML): what was expected and what was got
    "trainer.epochs": {
        "ten": "a whole number, got 'ten' (str)",
        "true": "a whole number, got True (bool)",
        "1.0": "a whole number, got 1.0 (float)",
        "[1]": "a whole number, got [1] (list)",
        "null": "a whole number, got null",
        "": "a whole number, got null",
    },
    "trainer.learning_rate": {
        "fast": "a number, got 'fast' (str)",
        "true": "a number, got True (bool)",
        "{a: 1}": "a number, got {'a': 1} (dict)",
        "1" + 400 * "0": "a number, got 1" + 99 * "0" + "... (int)",
    },
    "trainer.stop_at_epoch": {
        "true": "a whole number or null, got True (bool)",
        "2.5": "a whole number or null, got 2.5 (float)",
    },
    "trainer.mixed_precision": {
        "1": "one of true, false, bf16, fp16, got 1 (int)",
        "yes": "one of true, false, bf16, fp16, got 'yes' (str)",
    },
    "trainer.ddp_sync_batchnorm": {"1": "true or false, got 1 (int)"},
    "trainer.optimizer": {
        "adm": "one of adam, sgd, adamw, lars, got 'adm' (str)",
        "null": "one of adam, sgd, adamw, lars, got null",
        "[adam]": "one of adam, sgd, adamw, lars, got ['adam'] (list)",
    },
    "trainer.init_weights": {"[a]": "a path or null, got ['a'] (list)"},
    "trainer": {"3": "a section of 'key: value' lines, got 3 (int)"},
    "encoder.pooling_mode": {"max": "one of sap, stats or null, got 'max' (str)"},
    "dataset.train": {
        "[a.csv]": "text, got ['a.csv'] (list)",
        "2024": "text, got 2024 (int)",
        "2024-01-31": "text, got datetime.date(2024, 1, 31) (date)",
    },
    "dataset.base_path": {"3": "a path, got 3 (int)", "null": "a path, got null"},
    "dataset.augmentation": {
        "true": "a section of 'key: value' lines, got True (bool)",
        "[a]": "a section of 'key: value' lines, got ['a'] (list)",
    },
    "dataset.augmentation.musan_noise_snr": {
        "5": "a list of 2 (each a number), got 5 (int)",
        "loud": "a list of 2 (each a number), got 'loud' (str)",
        "[1]": "a list of 2 (each a number), got [1] (list)",
        "[1, 2, 3]": "a list of 2 (each a number), got [1, 2, 3] (list)",
        "{a: 1, b: 2}": "a list of 2 (each a number), got {'a': 1, 'b': 2} (dict)",
    },
    "evaluation.test": {
        "sv_cosine": "a list of sections ('- type: ...'), got 'sv_cosine' (str)",
        "{type: sv_cosine}": "a list of sections ('- type: ...'), got {'type': 'sv_cosine'} (dict)",
        "null": "a list of sections ('- type: ...'), got null",
    },
}


def in_yaml(key: str, value: str) -> str:
    """``a.b`` and ``c`` -> a file of lines ``a:`` and ``  b: c``."""
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(key.split("."))]
    return "\n".join(lines) + f" {value}\n"


class TestWrongTypes:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [(key, value, message) for key, cases in TYPES.items() for value, message in cases.items()],
    )
    def test_key_line_and_both_types_are_named(
        self, refuse: Refuse, key: str, value: str, message: str
    ) -> None:
        text = in_yaml(key, value)
        sections = {"encoder": "  type: resnet34\n", "method": "  type: simclr\n", "dataset": ""}
        others = [f"{name}:\n{line}" for name, line in sections.items() if f"{name}:" not in text]
        text += sections.get(key.split(".")[0], "") + "".join(others)
        line = len(key.split("."))
        assert refuse(text, minimal="") == f"FILE line {line}: {key}: expected {message}"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("dataset.augmentation.musan_noise_snr=[a, 2]", "musan_noise_snr.0: expected a number"),
            ("dataset.augmentation.musan_noise_num=[1, 1.5]", "musan_noise_num.1: expected a"),
            ("evaluation.test=[{type: sv_cosine, trials: [a, 1]}]", "0.trials.1: expected text"),
            ("evaluation.test=[{type: sv_cosine, metrics: [err]}]", "0.metrics.0: expected one of"),
            ("evaluation.test=[{type: sv_cosine, metrics: eer}]", "metrics: expected a list (each"),
            ("evaluation.test=[sv_cosine]", "evaluation.test.0: expected a section"),
        ],
    )
    def test_elements_of_lists(self, refuse: Refuse, override: str, message: str) -> None:
        assert message in refuse("", override)


class TestTypeKeys:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("encoder:\n  type: resnet34\n", "FILE: method: missing; this section must be given"),
            ("encoder: {}\n", "FILE line 1: encoder.type: missing; choose one of: "),
            ("encoder:\n  base_dim: 8\n", "FILE line 1: encoder.type: missing; choose one of: "),
            ("encoder:\n  type:\n", "FILE line 2: encoder.type: missing; choose one of: "),
            (
                "encoder:\n  type: ResNet34\n",
                "FILE line 2: encoder.type: unknown encoder 'ResNet34'; did you mean 'resnet34'? ",
            ),
            ("encoder:\n  type: [a]\n", "FILE line 2: encoder.type: unknown encoder '['a']'; "),
        ],
    )
    def test_missing_or_unknown(self, refuse: Refuse, text: str, message: str) -> None:
        assert refuse(text, minimal="").startswith(message)

    def test_unknown_method_and_evaluation_suggest_the_nearest(self, refuse: Refuse) -> None:
        assert "unknown method 'simclrr'; did you mean 'simclr'?" in refuse(
            "", "method.type=simclrr"
        )
        assert "unknown evaluation 'sv_cosin'; did you mean 'sv_cosine'?" in refuse(
            "", "evaluation.test.0.type=sv_cosin"
        )


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", ": the file is empty"),
            ("# nothing\n", ": the file is empty"),
            ("- a\n", r": expected 'key: value' sections, got \['a'\] \(list\)$"),
            ("text\n", r": expected 'key: value' sections, got 'text' \(str\)$"),
            ("a: 1\nb: 2\na: 3\n", 'line 3: not valid YAML: .*found duplicate key "a"$'),
            ("a:\n  b: 1\n  b: {}\n", 'line 3: not valid YAML: .*found duplicate key "b"$'),
            ("a: b: c\n", "line 1: not valid YAML: mapping values are not allowed here"),
            ("a: [1\n", "line 2: not valid YAML: .*expected ',' or ']'"),
            ("a:\n\tb: 1\n", "line 2: not valid YAML: "),
            ("a: *b\n", "line 1: not valid YAML: found undefined alias 'b'"),
            ("a: 1\n---\nb: 2\n", "line 2: not valid YAML: .*found another document"),
            ("a: \x01\n", ": not valid YAML: "),
            ("a: 2024-13-45\n", ": not valid YAML: month must be in 1..12"),
            ("a: &a [*a]\n", ": not valid YAML: maximum recursion depth exceeded"),
            (1000 * "[", ": not valid YAML: maximum recursion depth exceeded"),
        ],
    )
    def test_a_file_that_is_no_mapping_is_refused(
        self, refuse: Refuse, text: str, message: str
    ) -> None:
        said = refuse(text, minimal="")
        assert re.match(f"FILE ?{message}", said), said

    @pytest.mark.parametrize("tag", ["object:os.system x", "object/apply:os.abort []"])
    def test_tags_that_would_run_code_are_refused(self, refuse: Refuse, tag: str) -> None:
        said = refuse(f"a: !!python/{tag}\n")
        assert said.startswith("FILE line 7: not valid YAML: could not determine a constructor")
        assert "is not a YAML value" in refuse("", f"seed=!!python/{tag}")

    def test_missing_unreadable_and_foreign_files(self, tmp_path: Path) -> None:
        (tmp_path / "binary.yml").write_bytes(b"a: \xff\xfe")
        for path, reason in {
            tmp_path / "nowhere.yml": "No such file or directory",
            tmp_path / "binary.yml" / "below": "Not a directory",
            tmp_path / "binary.yml": "'utf-8' codec can't decode byte 0xff",
        }.items():
            with pytest.raises(ConfigError) as caught:
                load_config(path)
            assert str(caught.value).startswith(f"{path}: cannot read the configuration ({reason}")

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path, load: Load) -> None:
        config = load()
        path = tmp_path / "config.yml"
        path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
        assert load_config(path) == config

    def test_bare_name_and_folder(
        self, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load()
        monkeypatch.chdir(tmp_path)
        assert load_config("config.yml").run_dir == Path()
        assert load_config(tmp_path).run_dir == tmp_path
        assert load_config(str(tmp_path) + "/").run_dir == tmp_path


BASED = "base: ../common.yml\n"  # what a test writes as the file that builds on it


class TestBase:
    """common.yml and runs/config.yml, which builds on it; COMMON and FILE stand for their paths."""

    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[..., Path]:
        """``write(text, common, **{"more.yml": text})``; returns the file of the first one."""

        def write(text: str, common: str = MINIMAL, **more: str) -> Path:
            path = tmp_path / "runs" / "config.yml"
            path.parent.mkdir(exist_ok=True)
            for name, content in {"runs/config.yml": text, "common.yml": common, **more}.items():
                (tmp_path / name).write_text(content)
            return path

        return write

    @pytest.fixture
    def said(self, write: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
        """The line in which what ``write`` takes is refused."""

        def said(*texts: str, overrides: tuple[str, ...] = (), **more: str) -> str:
            path = write(*texts, **more)
            with pytest.raises(ConfigError) as caught:
                load_config(path, overrides)
            assert "\n" not in str(caught.value)
            sentence = str(caught.value).replace(str(path), "FILE")
            sentence = sentence.replace(str(tmp_path / "common.yml"), "COMMON")
            return sentence.replace(f"{tmp_path}/", "")

        return said

    def test_is_what_the_file_does_not_say(self, write: Callable[..., Path], load: Load) -> None:
        common = MINIMAL + "  frame_length: 16000\ntrainer:\n  epochs: 7\n  batch_size: 32\n"
        path = write(f"{BASED}trainer:\n  batch_size: 64\n", common)
        config = load_config(path)
        expected = load(common.removeprefix(MINIMAL), "trainer.batch_size=64")
        assert differences(to_dict(expected), to_dict(config)) == {
            "run_dir": f"{expected.run_dir} -> {path.parent}"
        }

    def test_sections_are_merged_at_every_depth(self, write: Callable[..., Path]) -> None:
        common = MINIMAL + "  augmentation:\n    strategy: noise\n    aug_prob: 0.5\n"
        path = write(f"{BASED}dataset:\n  augmentation:\n    aug_prob: 0.25\n", common)
        dataset = load_config(path).dataset
        assert dataset.ssl
        assert dataset.augmentation is not None
        assert (dataset.augmentation.strategy, dataset.augmentation.aug_prob) == ("noise", 0.25)

    def test_lists_are_replaced(self, write: Callable[..., Path]) -> None:
        common = MINIMAL + "evaluation:\n  test:\n    - {type: sv_cosine, trials: [a, b]}\n"
        common += "    - {type: sv_plda, trials: [c]}\n  resamples: 0\n"
        text = BASED + "evaluation:\n  test:\n    - {type: sv_cosine, trials: [d]}\n"
        evaluation = load_config(write(text, common)).evaluation
        assert [task.metric_names() for task in evaluation.test] == [
            ["sv_cosine/d/eer", "sv_cosine/d/mindcf"]
        ]
        assert evaluation.resamples == 0

    def test_a_section_of_another_type_is_replaced(self, write: Callable[..., Path]) -> None:
        common = MINIMAL.replace("simclr", "simclr\n  temperature: 0.03\n  enable_projector: false")
        config = load_config(write(f"{BASED}method:\n  type: vicreg\n  inv_weight: 2\n", common))
        assert (
            to_dict(config)["method"]
            == to_dict(
                from_dict(
                    {"encoder": {"type": "resnet34"}, "method": {"type": "vicreg", "inv_weight": 2}}
                )
            )["method"]
        )

    def test_a_section_of_the_same_type_is_merged(self, write: Callable[..., Path]) -> None:
        common = MINIMAL.replace("simclr", "simclr\n  temperature: 0.03")
        text = f"{BASED}method:\n  type: simclr\n  enable_projector: false\n"
        method: Any = load_config(write(text, common)).method
        assert (method.temperature, method.enable_projector) == (0.03, False)

    def test_a_type_for_fields_of_the_base_that_has_none(self, write: Callable[..., Path]) -> None:
        common = MINIMAL.replace("type: resnet34", "mel_n_mels: 80")
        encoder = load_config(write(f"{BASED}encoder:\n  type: ecapatdnn\n", common)).encoder
        assert (encoder.type, encoder.mel_n_mels) == ("ecapatdnn", 80)

    def test_a_section_without_a_value_has_its_defaults(self, write: Callable[..., Path]) -> None:
        common = MINIMAL + "  augmentation:\n    strategy: noise\ntrainer:\n  epochs: 7\n"
        config = load_config(write(f"{BASED}trainer:\ndataset:\n  augmentation: null\n", common))
        assert (config.trainer.epochs, config.dataset.augmentation) == (100, None)
        assert config.dataset.ssl

    def test_of_a_base_in_another_folder_and_by_an_absolute_path(
        self, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "lib").mkdir()
        common = "base: lib/first.yml\nencoder:\n  base_dim: 8\n"
        first = MINIMAL.replace("simclr", "simclr\n  temperature: 0.03") + "seed: 5\n"
        path = write(BASED, common, **{"lib/first.yml": first})
        config: Any = load_config(path)
        assert (config.encoder.base_dim, config.method.temperature, config.seed) == (8, 0.03, 5)
        path.write_text(f"base: {tmp_path / 'common.yml'}\n")
        assert load_config(path) == config
        monkeypatch.chdir(path.parent)
        assert load_config("config.yml").seed == 5

    def test_the_run_folder_is_that_of_the_file_and_its_own(
        self, write: Callable[..., Path]
    ) -> None:
        """As where the base is the resolved configuration of another run."""
        common = MINIMAL + "run_dir: /elsewhere\n"
        path = write(BASED, common)
        assert load_config(path).run_dir == path.parent
        assert load_config(path, ["run_dir=/there"]).run_dir == Path("/there")
        assert load_config(write(f"{BASED}run_dir: /mine\n", common)).run_dir == Path("/mine")

    def test_overrides_come_last(self, write: Callable[..., Path]) -> None:
        path = write(f"{BASED}trainer:\n  epochs: 6\n", MINIMAL + "trainer:\n  epochs: 5\n")
        assert load_config(path).trainer.epochs == 6
        assert load_config(path, ["trainer.epochs=7"]).trainer.epochs == 7

    def test_the_resolved_file_needs_no_base(self, write: Callable[..., Path]) -> None:
        path = write(f"{BASED}seed: 3\n")
        config = load_config(path)
        assert "base" not in to_dict(config)
        saved = save_resolved(config)
        (path.parents[1] / "common.yml").unlink()
        assert "base:" not in saved.read_text()
        assert load_config(saved) == config

    @pytest.mark.parametrize(
        ("text", "common", "message"),
        [
            # of the base, by its own line
            (
                BASED,
                MINIMAL + "trainer:\n  epochz: 1\n",
                "COMMON line 8: trainer.epochz: unknown key; did you mean 'epochs'? "
                "(FILE builds on this file)",
            ),
            (
                f"{BASED}trainer:\n  epochs: 5\n",
                MINIMAL + "trainer:\n  batch_size: many\n",
                "COMMON line 8: trainer.batch_size: expected a whole number, got 'many' (str) "
                "(FILE builds on this file)",
            ),
            # of the file, though the base has the key too
            (
                f"{BASED}# none\ntrainer:\n  epochs: no\n",
                MINIMAL + "trainer:\n  epochs: 5\n",
                "FILE line 4: trainer.epochs: expected a whole number, got 'no' (str)",
            ),
            # of a section that both have
            (
                f"{BASED}encoder:\n  base_dim: 16\n",
                MINIMAL.replace("type: resnet34", "base_dim: 8"),
                "FILE line 2: encoder.type: missing; choose one of: ",
            ),
            # of a list that is shorter than the base's
            (
                BASED + "evaluation:\n  test: [{type: sv_cosine}, {typ: sv_cosine}]\n",
                MINIMAL + "evaluation:\n  test:\n    - type: sv_cosine\n    - type: sv_cosin\n",
                "FILE line 3: evaluation.test.1.type: missing; choose one of: classification, "
                "sv_cosine, sv_plda",
            ),
            # of a section that was replaced: its lines in the base count no more
            (
                f"{BASED}method:\n  type: moco\n",
                MINIMAL.replace("type: simclr", "type: simclr\n  queue_size: 1")
                + "trainer:\n  batch_size: 100\n",
                "FILE line 2: method.queue_size: 65536 is not a multiple of trainer.batch_size "
                "100; use 65600 or another one",
            ),
            # of neither
            (BASED, "seed: 1\n", "FILE: encoder: missing; this section must be given"),
            # of the base as a file
            (BASED, "a: b: c\n", "COMMON line 1: not valid YAML: mapping values are not allowed"),
            (BASED, "", "COMMON: the file is empty"),
            (BASED, "- a\n", "COMMON: expected 'key: value' sections, got ['a'] (list)"),
            (
                "\nbase: none.yml\n",
                MINIMAL,
                "FILE line 2: base: runs/none.yml: cannot read the configuration (No such file or ",
            ),
            (
                "base: ..\n",
                MINIMAL,
                "FILE line 1: base: ROOT: cannot read the configuration (Is a directory)",
            ),
            (
                "base: [a.yml]\n",
                MINIMAL,
                "FILE line 1: base: expected the path of a YAML file, got ['a.yml'] (list)",
            ),
            ("base:\n", MINIMAL, "FILE line 1: base: expected the path of a YAML file, got null"),
            # a base is a file's, not a section's
            (f"{BASED}trainer:\n  base: a.yml\n", MINIMAL, "FILE line 3: trainer.base: unknown ke"),
        ],
    )
    def test_mistakes_are_found_in_the_file_that_makes_them(
        self, said: Callable[..., str], tmp_path: Path, text: str, common: str, message: str
    ) -> None:
        assert said(text, common).replace(str(tmp_path), "ROOT").startswith(message)

    @pytest.mark.parametrize(
        ("common", "more", "message"),
        [
            (
                "seed: 1\nbase: runs/config.yml\n",
                {},
                "COMMON line 2: base: files cannot build on each other in a circle "
                "(FILE -> COMMON -> FILE)",
            ),
            (
                "base: ./common.yml\n",
                {},
                "COMMON line 1: base: files cannot build on each other in a circle "
                "(FILE -> COMMON -> COMMON)",
            ),
            (
                "base: more.yml\n",
                {"more.yml": "base: common.yml\n"},
                "more.yml line 1: base: files cannot build on each other in a circle "
                "(FILE -> COMMON -> more.yml -> COMMON)",
            ),
        ],
    )
    def test_circles_are_refused(
        self, said: Callable[..., str], common: str, more: dict[str, str], message: str
    ) -> None:
        assert said(BASED, common, **more) == message

    def test_two_ways_to_one_file_are_no_circle(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = write(BASED, MINIMAL + "seed: 4\n")
        (tmp_path / "again.yml").write_text("base: runs/config.yml\n")
        assert load_config(tmp_path / "again.yml").seed == load_config(path).seed == 4

    def test_the_command_line_names_none(self, said: Callable[..., str]) -> None:
        assert said(BASED, overrides=("base=x.yml",)) == (
            "override 'base=x.yml': a base can only be named in a file"
        )

    def test_mistakes_of_the_base_on_the_command_line_are_said_to_be_there(
        self, said: Callable[..., str]
    ) -> None:
        found = said(BASED, MINIMAL + "trainer:\n  epochs: 5\n", overrides=("trainer.epochs=x",))
        assert found.startswith("trainer.epochs: expected a whole number")
        assert found.endswith("(given on the command line)")


class TestRanges:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("seed=-1", "must be from 0 to 2^63 - 1, got -1"),
            (f"seed={2**63}", f"must be from 0 to 2^63 - 1, got {2**63}"),
            ("encoder.encoder_dim=0", "must be at least 1, got 0"),
            ("encoder.mel_n_mels=0", "must be at least 1, got 0"),
            ("encoder.mel_hop_length=-160", "must be at least 1, got -160"),
            ("encoder.mel_win_length=513", "513 is longer than mel_n_fft 512"),
            ("encoder.base_dim=4", "must be at least 8 "),
            ("method.temperature=0", "must be positive, got 0.0"),
            ("method.temperature=.nan", "must be positive, got nan"),
            ("method.projector_output_dim=-1", "must be positive, got -1"),
            ("trainer.epochs=0", "must be at least 1, got 0"),
            ("trainer.batch_size=-8", "must be at least 1, got -8"),
            ("trainer.patience=0", "must be at least 1, got 0"),
            ("trainer.stop_at_epoch=0", "must be at least 1, got 0"),
            ("trainer.learning_rate=0", "must be positive, got 0.0"),
            ("trainer.learning_rate=.inf", "must be positive, got inf"),
            ("trainer.weight_decay=-0.1", "must be 0 or more, got -0.1"),
            ("trainer.learning_rate_sched=linear", "expected one of default, cosine, warmup+"),
            ("trainer.tracked_mode=lowest", "expected one of min, max"),
            ("dataset.frame_length=0", "must be at least 1, got 0"),
            ("dataset.ssl_dino_global_count=0", "must be at least 1, got 0"),
            ("dataset.ssl_dino_local_count=-1", "must be at least 0, got -1"),
            ("dataset.num_workers=-1", "must be at least 0, got -1"),
            ("dataset.max_samples=0", "must be at least 1, got 0"),
            ("dataset.frame_sampling=random", "expected one of default, dino"),
            ("dataset.augmentation.aug_prob=1.5", "must be between 0 and 1, got 1.5"),
            ("dataset.augmentation.strategy=rain", "expected one of reverb, noise, reverb|noise"),
            ("dataset.augmentation.musan_noise_snr=[15, 0]", "the lowest comes first, got [15.0,"),
            ("dataset.augmentation.musan_music_snr=[0, .nan]", "must be finite numbers, got [0.0"),
            ("dataset.augmentation.musan_speech_num=[0, 1]", "must be at least 1, got [0, 1]"),
        ],
    )
    def test_out_of_range(self, refuse: Refuse, override: str, message: str) -> None:
        key = override.partition("=")[0]
        said = refuse("", override)
        assert said.startswith(f"{key}: {message}")
        assert said.endswith(" (given on the command line)")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("num_frames", "0", "must be at least 1, got 0"),
            ("frame_length", "0", "must be at least 1, got 0"),
            ("trials", "[]", "give at least one"),
            ("metrics", "[]", "give at least one"),
            ("mindcf_p_target", "1", "must be between 0 and 1, got 1.0"),
            ("mindcf_c_miss", "0", "must be positive, got 0.0"),
        ],
    )
    def test_out_of_range_in_a_task(
        self, refuse: Refuse, key: str, value: str, message: str
    ) -> None:
        text = f"evaluation:\n  test:\n    - type: sv_cosine\n      {key}: {value}\n"
        assert refuse(text) == f"FILE line 10: evaluation.test.0.{key}: {message}"

    def test_limits_of_the_schedule_are_checked_where_they_apply(
        self, load: Load, refuse: Refuse
    ) -> None:
        outside = ("trainer.learning_rate_min=1", "trainer.learning_rate_warmup=200")
        assert load("", *outside).trainer.learning_rate_min == 1
        said = refuse("", outside[0], "trainer.learning_rate_sched=cosine")
        assert said.startswith("trainer.learning_rate_min: must be between 0 and learning_rate")
        said = refuse("", outside[1], "trainer.learning_rate_sched=warmup+cosine")
        assert said.startswith("trainer.learning_rate_warmup: must be at least 0 and less than")

    def test_a_list_is_measured_once_by_a_task(self, load: Load, refuse: Refuse) -> None:
        text = "evaluation:\n  test:\n    - type: sv_cosine\n    - type: sv_cosine\n"
        assert refuse(text) == (
            "FILE line 8: evaluation.test: 'sv_cosine' is listed twice with the same list, so that "
            "'sv_cosine/voxceleb1_test_O/eer' would mean two things; remove one"
        )
        assert len(load(text + "      trials: [another]\n").evaluation.test) == 2


class TestSectionsThatContradict:
    @pytest.mark.parametrize(
        ("override", "given"),
        [("dataset.ssl=false", "single"), ("dataset.frame_sampling=dino", "multicrop")],
    )
    def test_views_that_the_method_does_not_take(
        self, refuse: Refuse, override: str, given: str
    ) -> None:
        assert refuse("", override) == (
            f"FILE line 4: method.type: 'simclr' needs siamese views but the dataset gives {given} "
            "ones; set dataset.ssl: true and dataset.frame_sampling: default"
        )

    def test_an_encoder_without_pooling_where_vectors_are_needed(self, refuse: Refuse) -> None:
        assert refuse("", "encoder.pooling=false") == (
            "FILE line 4: method.type: 'simclr' needs one vector for each utterance but "
            "encoder.type 'resnet34' gives a sequence of frames; set encoder.pooling: true, or "
            "choose an encoder that pools over time"
        )

    def test_crops_of_too_few_frames_for_cpc(self, load: Load, refuse: Refuse) -> None:
        cpc = ("method.type=cpc", "encoder.pooling=false")
        load("", *cpc, "dataset.frame_length=2560")  # 17 frames, two strides of 2: 5
        assert refuse("  frame_length: 2559\n", *cpc) == (
            "FILE line 3: method.nb_t_to_predict: 4 needs at least 5 frames, one for the context, "
            "but dataset.frame_length 2559 gives 4; raise the latter or lower the former"
        )

    def test_batch_that_does_not_divide_over_processes(
        self, load: Load, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(distributed, "world_size", lambda: 3)
        assert refuse("trainer:\n  batch_size: 256\n") == (
            "FILE line 8: trainer.batch_size: 256 does not divide over 3 processes; "
            "use a multiple of 3"
        )
        assert load("trainer:\n  batch_size: 255\n").trainer.batch_size == 255

    def test_frames_shorter_than_a_window(self, load: Load, refuse: Refuse) -> None:
        message = "511 samples are shorter than one analysis window of the encoder (512)"
        assert refuse("  frame_length: 511\n") == f"FILE line 7: dataset.frame_length: {message}"
        text = "evaluation:\n  {}:\n    - type: sv_cosine\n      frame_length: {}\n"
        for name in ("validation", "test"):
            said = refuse(text.format(name, 511))
            assert said == f"FILE line 10: evaluation.{name}.0.frame_length: {message}"
        load("  frame_length: 512\n" + text.format("test", 512))
        load(text.format("test", "null"))
        assert refuse("", "encoder.mel_n_fft=32001").startswith("FILE line 5: dataset.frame_length")

    def test_tracked_metric_that_validation_does_not_give(self, load: Load, refuse: Refuse) -> None:
        text = "evaluation:\n  validation:\n    - type: sv_cosine\n      trials: [a, b]\n"
        assert refuse(text, "trainer.tracked_metric=val/sv_cosine/c/eer") == (
            "trainer.tracked_metric: 'val/sv_cosine/c/eer' is not among what this run measures: "
            "val/sv_cosine/a/eer, val/sv_cosine/a/mindcf, val/sv_cosine/b/eer, "
            "val/sv_cosine/b/mindcf, train/loss, train/effective_rank, train/embedding_std, "
            "train/uniformity, train/alignment (evaluation.validation adds to them) "
            "(given on the command line)"
        )
        for known in ("val/sv_cosine/b/mindcf", "train/loss"):
            load(text, f"trainer.tracked_metric={known}")
        load("", "trainer.tracked_metric=val/never")  # nothing is validated, nothing is tracked
        assert "not among" in refuse("", "trainer.tracked_metric=train/never")

    def test_simclr_needs_a_negative(self, refuse: Refuse) -> None:
        said = refuse("", "trainer.batch_size=1")
        assert said.startswith("trainer.batch_size: 1 leaves simclr no negatives")

    def test_rate_at_which_audio_is_not_read(self, refuse: Refuse) -> None:
        said = refuse("", "encoder.mel_sample_rate=8000")
        assert said.startswith("encoder.mel_sample_rate: must be 16000, the rate at which audio is")


class TestOverrides:
    TASK = "evaluation:\n  test:\n    - type: sv_cosine\n      trials: [a]\n"

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("trainer.epochs=7", 7),
            ("trainer.epochs= 7", 7),
            ("trainer.learning_rate=2e-4", 2e-4),
            ("trainer.stop_at_epoch=null", None),
            ("trainer.stop_at_epoch=", None),
            ("dataset.train=a=b.csv", "a=b.csv"),
            ("dataset.base_path=/some/where", "/some/where"),
            ("dataset.augmentation.aug_prob=0.5", 0.5),
            ("evaluation.test.0.trials=[a,b]", ["a", "b"]),
            ("evaluation.test.0.trials.0=b", "b"),
            ("evaluation.test.0.trials.1=b", "b"),
            ("evaluation.test=[]", []),
            ("evaluation.validation.0.type=sv_cosine", "sv_cosine"),
            ("run_dir=/some/run", "/some/run"),
        ],
    )
    def test_set_one_value(self, load: Load, override: str, expected: Any) -> None:
        config = to_dict(load(self.TASK, override, "trainer.tracked_metric=train/loss"))
        for part in override.partition("=")[0].split("."):
            config = config[int(part) if part.isdecimal() else part]
        assert config == expected

    def test_change_nothing_else(self, load: Load) -> None:
        before, after = to_dict(load(self.TASK)), to_dict(load(self.TASK, "trainer.epochs=7"))
        assert differences(before, after) == {"trainer.epochs": "100 -> 7"}

    def test_beat_the_file_and_the_last_one_wins(self, load: Load) -> None:
        text = "trainer:\n  epochs: 5\n"
        assert load(text).trainer.epochs == 5
        assert load(text, "trainer.epochs=6", "trainer.epochs=7").trainer.epochs == 7

    def test_cure_a_bad_value_in_the_file(self, load: Load, refuse: Refuse) -> None:
        text = "trainer:\n  epochs: many\n"
        assert refuse(text).startswith("FILE line 8: trainer.epochs: expected a whole number")
        assert load(text, "trainer.epochs=7").trainer.epochs == 7

    def test_of_an_anchor_leave_its_alias_alone(self, load: Load) -> None:
        text = "evaluation:\n  validation: &tasks\n    - type: sv_cosine\n  test: *tasks\n"
        tracked = "trainer.tracked_metric=train/loss"
        evaluation = load(text, "evaluation.test.0.num_frames=3", tracked).evaluation
        assert [task.num_frames for task in evaluation.validation + evaluation.test] == [10, 3]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("trainer.epochz=1", "trainer.epochz: unknown key; did you mean 'epochs'?"),
            ("trainer.epochs=x", "trainer.epochs: expected a whole number, got 'x' (str)"),
            ("trainer.epochs.x=3", "trainer.epochs: expected a whole number, got {'x': 3} (dict)"),
            ("trainer={epochz: 1}", "trainer.epochz: unknown key; did you mean 'epochs'?"),
            ("dataset.frame_length=3", "dataset.frame_length: 3 samples are shorter than one "),
            ("encoder=null", "encoder.type: missing; choose one of: "),
            ("evaluation.validation.0.trials=[a]", "evaluation.validation.0.type: missing; "),
            ("evaluation.test.0=null", "evaluation.test.0.type: missing; "),
        ],
    )
    def test_mistakes_are_said_to_be_on_the_command_line(
        self, refuse: Refuse, override: str, message: str
    ) -> None:
        said = refuse(self.TASK, override)
        assert said.startswith(message)
        assert said.endswith(" (given on the command line)")

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("trainer.epochs", "expected key.sub=value"),
            ("=3", "expected key.sub=value"),
            ("trainer..epochs=3", "expected key.sub=value"),
            ("trainer.epochs=[1", "'[1' is not a YAML value"),
            ("trainer={a: 1, a: 2}", "'{a: 1, a: 2}' is not a YAML value"),
            ("encoder.type.x=3", "encoder.type has no keys below it"),
            *[
                (
                    f"evaluation.test.{index}.trials=[a]",
                    "evaluation.test is a list of 1; use a number from 0 to 1 (1 adds an entry), "
                    f"not '{index}'",
                )
                for index in ("2", "-1", "x", "\u00b2")
            ],
        ],
    )
    def test_that_cannot_be_applied(self, refuse: Refuse, override: str, message: str) -> None:
        assert refuse(self.TASK, override) == f"override '{override}': {message}"

    @settings(max_examples=50)
    @given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
    def test_floats_as_python_prints_them_are_exact(self, value: float) -> None:
        data: dict[str, Any] = {}
        config_module._apply_override(data, f"trainer.learning_rate={value!r}")
        assert typed(data) == typed({"trainer": {"learning_rate": value}})


names = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30)
decibels = st.lists(st.floats(-100, 100), min_size=2, max_size=2).map(sorted)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    data = spelt_out()
    trainer = {"learning_rate": draw(st.floats(1e-10, 1e3)), "wandb_project": draw(names)}
    dataset: dict[str, Any] = {
        "label_key": draw(names),
        "base_path": draw(names),
        "max_samples": draw(st.none() | st.integers(1, 2**40)),
        "augmentation": draw(st.none() | decibels.map(lambda x: {"musan_noise_snr": x})),
    }
    lists = names.filter(lambda name: name != "split")  # which asks for more
    task = {"trials": draw(st.lists(lists, min_size=1, max_size=3))}
    data["trainer"] = data["trainer"] | trainer
    data["dataset"] = data["dataset"] | dataset
    data["evaluation"] = {"validation": [], "test": [SV_COSINE | task]}
    return data | {"seed": draw(st.integers(0, 2**63 - 1))}


class TestRoundTrips:
    @settings(max_examples=25)
    @given(configurations())
    def test_the_resolved_file_is_the_same_configuration(
        self, tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "resolved"
        config = from_dict(data | {"run_dir": str(folder)})
        path = save_resolved(config)
        assert path == folder / "resolved_config.yml"
        assert load_config(path) == config

    @settings(max_examples=50)
    @given(configurations())
    def test_to_dict_and_from_dict_are_inverse_through_json(self, data: dict[str, Any]) -> None:
        config = from_dict(data)
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config

    def test_the_resolved_file_holds_every_value_in_the_order_of_the_schema(
        self, load: Load
    ) -> None:
        config = load("", "trainer.epochs=7")
        saved = YAML(typ="safe", pure=True).load(save_resolved(config).read_text())
        assert saved == to_dict(config)
        assert list(saved) == list(to_dict(config))
        assert list(saved["trainer"])[:3] == ["epochs", "stop_at_epoch", "batch_size"]

    def test_from_dict_refuses_as_files_are_refused(self) -> None:
        data = {"encoder": {"type": "resnet34"}, "method": {"type": "simclr", "temprature": 1}}
        with pytest.raises(ConfigError, match=r"^method.temprature: unknown key; did you mean"):
            from_dict(data)


class TestDifferences:
    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ({"a": 1}, {"a": 1}, {}),
            ({"a": 1}, {"a": 2}, {"a": "1 -> 2"}),
            ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, {"a.b.c": "1 -> 2"}),
            ({"a": [1, 2]}, {"a": [1, 3]}, {"a": "[1, 2] -> [1, 3]"}),
            ({"a": None}, {"a": {"b": 1}}, {"a": "null -> a section"}),
            ({"a": 1}, {"b": 1}, {"a": "1 -> null", "b": "null -> 1"}),
            ({"a": None}, {}, {}),
        ],
    )
    def test_names_the_keys(self, old: Any, new: Any, expected: dict[str, str]) -> None:
        assert differences(old, new) == expected
