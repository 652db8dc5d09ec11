"""What an evaluation leaves and says: lists, error bars, files, text, pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from sslsv import experiment
from sslsv.config import load_config
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations import bootstrap, metrics, plots, verification
from sslsv.evaluations.base import EvaluationConfig, Map, Measures, Predictions, Result, Scores
from sslsv.evaluations.bootstrap import codes_of_files
from sslsv.evaluations.compare import read_speakers
from sslsv.evaluations.plda import PLDA
from sslsv.evaluations.results import Lists, plot, save, summary
from sslsv.evaluations.transforms import Chain, UnitLength
from sslsv.evaluations.trials import Trials, make_trials, read_scores
from sslsv.files import read_json, write_json

FILES = [f"{speaker}{i}.wav" for speaker in "abcdef" for i in range(3)]
PAIRS = [(a, b) for i, a in enumerate(FILES) for b in FILES[i + 1 :]]
COSTS = (0.2, 2.0, 1.0)


def trials_of(name: str, pairs: list[tuple[str, str]]) -> Trials:
    """The first letter of a file is its speaker."""
    labels = np.array([a[0] == b[0] for a, b in pairs])
    return make_trials(name, [a for a, _ in pairs], [b for _, b in pairs], labels)


TRIALS = trials_of("list", PAIRS)


def scores_of(trials: Trials, prefix: str = "sv_cosine/list", seed: int = 0) -> Scores:
    scores = np.random.default_rng(seed).standard_normal(len(trials)) + trials.labels
    return Scores(trials, scores, prefix, COSTS, ("eer", "mindcf", "avgrprec"))


def result_of(*all_scores: tuple[str, Scores]) -> Result:
    return Result(scores=dict(all_scores))


def lists_of(*lists: Trials, base_path: Path = Path("nowhere"), **fields: Any) -> Lists:
    return Lists(lists, EvaluationConfig(**{"resamples": 100} | fields), base_path)


def write_speakers(path: Path, speaker: Callable[[str], str] = lambda file: file[0]) -> str:
    rows = [f"{file},{speaker(file)}\n" for file in FILES]
    path.write_text("File,Speaker\n" + "".join(rows))
    return path.name


def listed_hash(trials: Trials) -> str:
    """As ``LC_ALL=C sort LIST | sha256sum`` would begin."""
    files = trials.files
    rows = zip(trials.labels, trials.enrol, trials.test, strict=True)
    lines = sorted(f"{label:d} {files[a]} {files[b]}\n".encode() for label, a, b in rows)
    return hashlib.sha256(b"".join(lines)).hexdigest()[:8]


# ------------------------------------------------------------------------------------------- lists


def test_a_list_is_told_by_hash_sizes_and_speakers() -> None:
    facts = lists_of(TRIALS).facts
    assert list(facts) == ["list"]
    found = facts["list"]
    assert found.hash == listed_hash(TRIALS)
    assert (found.trials, found.targets, found.speakers) == (153, 18, 6)


def test_without_a_csv_speakers_are_what_target_trials_join(tmp_path: Path) -> None:
    """Files of c are joined by no target trial: by the trials they are three speakers."""
    pairs = [(a, b) for a, b in PAIRS if not (a[0] == b[0] == "c")]
    trials = trials_of("list", pairs)
    assert lists_of(trials).facts["list"].speakers == 8
    csv = write_speakers(tmp_path / "who.csv")
    named = lists_of(trials, base_path=tmp_path, speakers=csv)
    assert named.facts["list"].speakers == 6
    assert named.facts["list"].hash == listed_hash(trials)


def test_an_enrolment_id_is_of_the_speaker_of_its_files(tmp_path: Path) -> None:
    pairs = [("ida", "a1.wav"), ("ida", "b1.wav"), ("idb", "b2.wav"), ("idb", "c2.wav")]
    models = {"ida": ("a0.wav", "a2.wav"), "idb": ("b0.wav",)}
    labels = np.array([True, False, True, False])
    trials = make_trials("list", [a for a, _ in pairs], [b for _, b in pairs], labels, models)
    csv = write_speakers(tmp_path / "who.csv")
    assert lists_of(trials, base_path=tmp_path, speakers=csv).facts["list"].speakers == 3


def test_every_list_has_facts_of_its_own() -> None:
    other = trials_of("folder/list", PAIRS[::2])
    facts = lists_of(TRIALS, other, TRIALS).facts
    assert list(facts) == ["list", "folder/list"]
    assert (facts["list"].trials, facts["folder/list"].trials) == (153, 77)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"who\.csv: cannot be read"),
        ("File,Name\na0.wav,a\n", r"who\.csv: no column Speaker"),
        ("File,Speaker\na0.wav,a\n", "list: 17 of 18 files have no speaker: a1.wav, a2.wav, b0"),
    ],
)
def test_speakers_that_cannot_be_used_are_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content:
        (tmp_path / "who.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        lists_of(TRIALS, base_path=tmp_path, speakers="who.csv")


CONTRADICTING = make_trials(
    "list", ["a0", "a1", "a0", "b"], ["a1", "a2", "a2", "a0"], np.array([True, True, False, False])
)
CONTRADICTING_TOO = replace(CONTRADICTING, name="bad")


def test_target_trials_that_contradict_each_other_cost_the_error_bars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = replace(TRIALS, name="good")
    lists = lists_of(CONTRADICTING, other)
    said = capsys.readouterr().out
    assert said.startswith(
        "warning: no error bars for list: list: 1 of 4 labels contradict the target trials; "
    )
    assert "'0 a0 a2'" in said
    assert said.count("\n") == 1
    assert lists.facts["list"].speakers is None
    assert lists.facts["list"].targets == 2
    scored = Scores(CONTRADICTING, np.arange(4.0), "sv_cosine/list", metrics=("eer",))
    fine = scores_of(other, "sv_cosine/good")
    bars = lists.bars(result_of(("sv_cosine/list", scored), ("sv_cosine/good", fine)))
    assert list(bars) == ["sv_cosine/good/eer", "sv_cosine/good/mindcf"]


def test_speakers_that_contradict_the_labels_are_an_error(tmp_path: Path) -> None:
    csv = write_speakers(tmp_path / "who.csv", lambda file: "x" if file == "b2.wav" else file[0])
    message = "list: 2 of 153 labels contradict the speakers; correct the list or the speakers: "
    with pytest.raises(DataError, match=re.escape(message)):
        lists_of(TRIALS, base_path=tmp_path, speakers=csv)


@pytest.mark.parametrize("resamples", [-1, 1, 99])
def test_a_few_resamples_are_refused(resamples: int) -> None:
    with pytest.raises(ConfigError) as error:
        EvaluationConfig(resamples=resamples)
    assert str(error.value) == f"resamples: must be 0 or at least 100, got {resamples}"
    assert EvaluationConfig(resamples=100).resamples == 100


# ------------------------------------------------------------------------------------- error bars


def test_error_bars_are_those_of_the_bootstrap() -> None:
    raw, normed = scores_of(TRIALS), scores_of(TRIALS, "sv_cosine_s-norm/list", seed=1)
    lists = lists_of(TRIALS, resamples=150)
    bars = lists.bars(result_of(("sv_cosine/list", raw), ("sv_cosine/s-norm/list", normed)))
    codes = np.array([["abcdef".index(file[0]) for file in pair] for pair in PAIRS]).T
    expected = {}
    for scored in (raw, normed):
        intervals = bootstrap.intervals(
            scored.scores, TRIALS.labels, codes, ["eer", "mindcf"], resamples=150, costs=COSTS
        )
        expected |= {f"{scored.prefix}/{name}": bar for name, bar in intervals.items()}
    assert bars == expected  # and none of avgrprec
    assert all(low < high for low, high in bars.values())


def test_error_bars_are_by_the_speakers_of_the_csv(tmp_path: Path) -> None:
    """Where the trials do not join the files of a speaker, they would be too narrow."""
    pairs = [(a, b) for a, b in PAIRS if a[0] != b[0] or (a[1], b[1]) == ("0", "1")]
    trials = trials_of("list", pairs)
    scored = result_of(("sv_cosine/list", scores_of(trials)))
    csv = write_speakers(tmp_path / "who.csv")
    named = lists_of(trials, base_path=tmp_path, speakers=csv).bars(scored)
    codes = np.array([[ord(file[0]) for file in pair] for pair in pairs]).T
    scores = scored.scores["sv_cosine/list"].scores
    expected = bootstrap.intervals(scores, trials.labels, codes, ["eer"], resamples=100)
    assert named["sv_cosine/list/eer"] == expected["eer"]
    assert named != lists_of(trials).bars(scored)


def test_lists_of_one_file_name_have_their_own_speakers() -> None:
    other = trials_of("folder/list", PAIRS[5:])
    scored = scores_of(other, "sv_cosine/folder/list")
    alone = lists_of(other).bars(result_of(("sv_cosine/folder/list", scored)))
    beside = lists_of(other, TRIALS).bars(result_of(("sv_cosine/folder/list", scored)))
    assert alone == beside
    assert len(alone) == 2


def test_no_resamples_are_no_error_bars() -> None:
    assert lists_of(TRIALS, resamples=0).bars(result_of(("x/list", scores_of(TRIALS)))) == {}


def test_conditions_have_no_error_bars_and_odd_names_of_lists_do() -> None:
    odd = replace(TRIALS, name="at@home")
    found = lists_of(TRIALS, odd).bars(
        result_of(
            ("sv_cosine@mulaw/list", scores_of(TRIALS)),
            ("sv_cosine/at@home", scores_of(odd, "sv_cosine/at@home")),
        )
    )
    assert list(found) == ["sv_cosine/at@home/eer", "sv_cosine/at@home/mindcf"]


def test_too_few_speakers_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    pair = trials_of("list", [("a0", "a1"), ("a0", "b0")])
    scored = Scores(pair, np.array([1.0, 0.0]), "sv_cosine/list", metrics=("eer",))
    assert lists_of(pair).bars(result_of(("sv_cosine/list", scored))) == {}
    said = capsys.readouterr().out
    assert re.match(
        r"warning: no error bars for sv_cosine/list: \d+ of 100 resamples of 2 sp", said
    )


# ------------------------------------------------------------------------------------------- files


def saved(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "evaluation.json").read_text())


def test_metrics_of_all_systems_stand_beside_facts_and_intervals(tmp_path: Path) -> None:
    lists = lists_of(TRIALS, CONTRADICTING_TOO)
    found = {
        "trained": Result(metrics={"sv_cosine/list/eer": 12.5, "linear/words/accuracy": 0.75}),
        "mfcc": Result(metrics={"sv_cosine/list/eer": 31.0}),
    }
    bars = {"trained": {"sv_cosine/list/eer": (10.0, 15.0)}, "mfcc": {}}
    save(tmp_path, found, bars, lists, {"epoch": 3}, {"test/other/list/eer": 1.0})
    assert saved(tmp_path) == {
        "epoch": 3,
        "test/other/list/eer": 1.0,
        "test/sv_cosine/list/eer": 12.5,
        "test/sv_cosine/list/eer_low": 10.0,
        "test/sv_cosine/list/eer_high": 15.0,
        "test/linear/words/accuracy": 0.75,
        "mfcc/sv_cosine/list/eer": 31.0,
        "lists/list/hash": listed_hash(TRIALS),
        "lists/list/trials": 153,
        "lists/list/targets": 18,
        "lists/list/speakers": 6,
        "lists/bad/hash": listed_hash(CONTRADICTING),
        "lists/bad/trials": 4,
        "lists/bad/targets": 2,
        "lists/bad/speakers": None,
    }


def test_intervals_of_an_earlier_value_do_not_stay(tmp_path: Path) -> None:
    name, kept = "test/sv_cosine/list/eer", "test/sv_plda/list/eer"
    earlier = {
        **dict.fromkeys((name, f"{name}_low", f"{name}_high"), 1.0),
        **dict.fromkeys((kept, f"{kept}_low", f"{kept}_high"), 2.0),
        "mfcc/sv_cosine/list/eer_low": 3.0,
    }
    measured = {"trained": Result(metrics={"sv_cosine/list/eer": 9.0})}
    save(tmp_path, measured, {"trained": {}}, lists_of(), {}, earlier)
    assert saved(tmp_path) == {
        name: 9.0,
        **dict.fromkeys((kept, f"{kept}_low", f"{kept}_high"), 2.0),  # was not measured
        "mfcc/sv_cosine/list/eer_low": 3.0,
    }
    bars = {"trained": {"sv_cosine/list/eer": (8.0, 10.0)}}
    save(tmp_path, measured, bars, lists_of(), {}, read_json(tmp_path / "evaluation.json"))
    assert saved(tmp_path)[f"{name}_low"] == 8.0
    assert saved(tmp_path)[f"{name}_high"] == 10.0


@pytest.mark.parametrize("now", [{"checkpoint": "b", "epoch": 3}, {"checkpoint": "a", "epoch": 4}])
def test_results_of_another_checkpoint_do_not_stay(tmp_path: Path, now: dict[str, Any]) -> None:
    earlier = {"checkpoint": "a", "epoch": 3, "test/sv_plda/list/eer": 1.0, "mfcc/x/list/eer": 2.0}
    measured = {"trained": Result(metrics={"sv_cosine/list/eer": 9.0})}
    save(tmp_path, measured, {"trained": {}}, lists_of(), now, earlier)
    assert saved(tmp_path) == {**now, "mfcc/x/list/eer": 2.0, "test/sv_cosine/list/eer": 9.0}


def test_two_embeddings_make_no_map(tmp_path: Path) -> None:
    few = Map(np.eye(2), np.arange(2))
    plot(tmp_path, {"trained": Result(maps={"sv_cosine/list": few})})
    assert not list(tmp_path.rglob("*.png"))


def test_scores_measures_predictions_and_backends_have_a_file_each(tmp_path: Path) -> None:
    scored = scores_of(TRIALS)
    model = PLDA(np.zeros(2), np.ones((2, 1)), np.eye(2))
    full = Result(
        scores={"sv_plda/folder/list": scored},
        measures={"sv_cosine/s-norm/cohort": Measures(["a"], {"mean": np.array([0.5])})},
        predictions={
            "classification/knn/words": Predictions(
                ["a"], ["x"], np.zeros(1, int), np.zeros(1, int)
            )
        },
        backends={"sv_plda/plda": model, "sv_plda/transforms": Chain((UnitLength(),))},
    )
    plain = Result(scores={"sv_plda/folder/list": scores_of(TRIALS, seed=1)})
    nobody = {"trained": {}, "mfcc": {}}
    save(tmp_path, {"trained": full, "mfcc": plain}, nobody, lists_of(TRIALS), {}, {})
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == [
        "backends/trained_sv_plda_plda.npz",
        "backends/trained_sv_plda_transforms.npz",
        "evaluation.json",
        "scores/mfcc_sv_plda_folder_list.txt",
        "scores/trained_classification_knn_words.csv",
        "scores/trained_classification_knn_words_confusion.csv",
        "scores/trained_sv_cosine_s-norm_cohort.csv",
        "scores/trained_sv_plda_folder_list.txt",
    ]
    for system, result in {"trained": full, "mfcc": plain}.items():
        _, scores = read_scores(tmp_path / f"scores/{system}_sv_plda_folder_list.txt")
        assert np.array_equal(scores, result.scores["sv_plda/folder/list"].scores)
    loaded = PLDA.load(tmp_path / "backends/trained_sv_plda_plda.npz")
    assert np.array_equal(loaded.loading, model.loading)
    steps = Chain.load(tmp_path / "backends/trained_sv_plda_transforms.npz").steps
    assert [step.kind for step in steps] == ["unit_length"]


# -------------------------------------------------------------------------------------------- text


def wide_list(speakers: int, copies: int) -> Trials:
    """Each of 40 speakers has one target trial, and a thousand non-target ones and more."""
    names = [f"{i:02d}" for i in range(speakers)]
    enrol = [f"{name}a" for name in names] + copies * [f"{name}a" for name in names]
    test = [f"{name}b" for name in names]
    test += [f"{names[(i + k + 1) % speakers]}a" for k in range(copies) for i in range(speakers)]
    return make_trials("wide", enrol, test, np.arange(len(enrol)) < speakers)


def test_the_summary_letter_by_letter() -> None:
    wide = wide_list(40, 30)
    lists = lists_of(TRIALS, wide, CONTRADICTING_TOO, resamples=200)
    found = {
        "trained": Result(
            metrics={
                "sv_cosine/list/eer": 3.14159,
                "sv_cosine/list/mindcf": 0.5,
                "sv_cosine@mulaw/list/eer": 6.25,
                "sv_cosine@mulaw/list/mindcf": 0.75,
                "knn/words/accuracy": 0.5,
            }
        ),
        "mfcc": Result(metrics={"sv_cosine/list/eer": 30.0, "sv_cosine/list/mindcf": 1.0}),
    }
    bars = {"trained": {"sv_cosine/list/eer": (1.0, 12.345)}, "mfcc": {}}
    hashes = [listed_hash(trials) for trials in (TRIALS, wide, CONTRADICTING)]
    assert summary(found, bars, lists).splitlines() == [
        "evaluation      system              EER (%)  minDCF",
        "--------------  -------  ------------------  ------",
        "sv_cosine/list  trained  3.14 [1.00, 12.35]  0.5000",
        "sv_cosine/list  mfcc                  30.00  1.0000",
        "",
        "evaluation  system   accuracy",
        "----------  -------  --------",
        "knn/words   trained    0.5000",
        "",
        "EER (%)         system   clean  mulaw",
        "--------------  -------  -----  -----",
        "sv_cosine/list  trained   3.14   6.25",
        "",
        f"list: 153 trials, 18 of them targets, 6 speakers; list {hashes[0]}",
        f"wide: 1,240 trials, 40 of them targets, 40 speakers; list {hashes[1]}",
        f"bad: 4 trials, 2 of them targets; list {hashes[2]}",
        "[...]: 95 % intervals by 200 resamples of the speakers",
        "fewer than 40 speakers make them too narrow: list",
    ]


def test_nothing_is_said_of_intervals_where_there_are_none() -> None:
    found = {"trained": Result(metrics={"sv_cosine/list/eer": 3.0})}
    text = summary(found, {"trained": {}}, lists_of(TRIALS, resamples=0))
    assert text.splitlines() == [
        "evaluation      system   EER (%)",
        "--------------  -------  -------",
        "sv_cosine/list  trained     3.00",
        "",
        f"list: 153 trials, 18 of them targets, 6 speakers; list {listed_hash(TRIALS)}",
    ]


def test_enough_speakers_are_not_called_few() -> None:
    found = {"trained": Result(metrics={"sv_cosine/wide/eer": 3.0})}
    bars = {"trained": {"sv_cosine/wide/eer": (2.0, 4.0)}}
    lines = summary(found, bars, lists_of(wide_list(40, 1))).splitlines()
    assert lines[-1] == "[...]: 95 % intervals by 100 resamples of the speakers"
    lines = summary(found, bars, lists_of(wide_list(39, 1))).splitlines()
    assert lines[-1] == "fewer than 40 speakers make them too narrow: wide"


def test_classes_alone_need_no_list() -> None:
    found = {"trained": Result(metrics={"words/f1_macro": 0.25})}
    assert summary(found, {"trained": {}}, lists_of()).splitlines() == [
        "evaluation  system   F1, macro",
        "----------  -------  ---------",
        "words       trained     0.2500",
    ]


# ---------------------------------------------------------------------------------------- pictures


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures saved, by name of the file."""
    pytest.importorskip("matplotlib")
    drawn: dict[str, Any] = {}
    plain = plots.save

    def note(figure: Any, path: Path) -> None:
        drawn[Path(path).name] = figure
        plain(figure, path)

    monkeypatch.setattr(plots, "save", note)
    return drawn


def test_pictures_of_all_that_was_found(
    tmp_path: Path, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.image import imread

    keys = ["sv_cosine/list", "sv_cosine/s-norm/list", "sv_cosine@mulaw/folder/list"]
    rng = np.random.default_rng(0)
    trained, mfcc = (
        result_of(*((key, scores_of(TRIALS, seed=i + 10 * k)) for i, key in enumerate(keys)))
        for k in range(2)
    )
    trained.maps["sv_cosine/list"] = Map(rng.standard_normal((12, 3)), np.arange(12) // 4)
    trained.predictions["classification/knn/words"] = Predictions(
        ["a", "b", "c"], ["x", "y"], np.array([0, 1, 1]), np.array([0, 0, 1])
    )
    mfcc.maps["sv_cosine/list"] = Map(np.zeros((1, 3)), np.zeros(1, int))  # not looked at
    plot(tmp_path, {"trained": trained, "mfcc": mfcc})
    assert capsys.readouterr().out == f"Plots: {tmp_path / 'plots'}\n"
    names = [key.replace("/", "_") for key in keys]
    expected = [f"{kind}_{name}.png" for name in names for kind in ("det", "scores")]
    expected += ["map_sv_cosine_list.png", "confusion_classification_knn_words.png"]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == sorted(expected)
    for name in expected:
        pixels = imread(tmp_path / "plots" / name)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels[..., :3])) > 3

    for key, name in zip(keys, names, strict=True):
        axes = figures[f"det_{name}.png"].axes[0]
        assert axes.get_title() == key.partition("/")[2]
        shown = [text.get_text() for text in axes.get_legend().get_texts()]
        for system, result in {"trained": trained, "mfcc": mfcc}.items():
            eer = metrics.eer(result.scores[key].scores, TRIALS.labels)
            assert f"{system}: EER {eer:.2f} %" in shown
        axes = figures[f"scores_{name}.png"].axes[0]
        threshold = metrics.eer_threshold(trained.scores[key].scores, TRIALS.labels)
        shown = [text.get_text() for text in axes.get_legend().get_texts()]
        assert shown[-1] == f"threshold {threshold:.3g}"
    axes = figures["map_sv_cosine_list.png"].axes[0]
    assert axes.get_xlabel() == "t-SNE of 12 embeddings of 3 speakers"
    axes = figures["confusion_classification_knn_words.png"].axes[0]
    assert axes.get_title() == "knn/words"
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), [[1, 0], [0.5, 0.5]])


# ------------------------------------------------------------------------------- whole evaluations


def test_speakers_are_checked_before_a_model_is_read(config_file: Path, tmp_path: Path) -> None:
    """No model was trained here, which would be told next."""
    path = tmp_path / "who.csv"
    rows = [f"wav/id{s:02d}/s{i % 2}/{i:05d}.wav,{s // 2}\n" for s in range(8) for i in range(4)]
    path.write_text("File,Speaker\n" + "".join(rows))
    with pytest.raises(DataError, match=r"trials: \d+ of \d+ labels contradict the speakers; corr"):
        experiment.evaluate(load_config(config_file, [f"evaluation.speakers={path}"]))


def test_an_evaluation_by_plda_and_cosine(
    config_file: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder").mkdir()
    lines = (corpus / "trials").read_text().splitlines(keepends=True)
    (tmp_path / "folder/trials").write_text("".join(lines[::2]))
    other = str(tmp_path / "folder/trials")
    task = {"num_frames": 1, "frame_length": 4000, "trials": ["trials", other]}
    yaml = YAML()
    values = yaml.load(config_file)
    fields = {
        "transforms": ["whitening", "length"],
        "whitening_dim": 8,
        "rank": 4,
        "fit_on": "train.csv",
    }
    values["evaluation"] = {
        "test": [{"type": "sv_plda", **task, **fields}, {"type": "sv_cosine", **task}],
        "conditions": ["mulaw"],
        "resamples": 100,
        "speakers": "train.csv",
    }
    values["trainer"]["epochs"] = 1
    values["dataset"]["max_samples"] = 8
    yaml.dump(values, config_file)
    config = load_config(config_file)
    experiment.train(config)
    folder = config_file.parent
    write_json(folder / "evaluation.json", {"test/sv_plda@mulaw/trials/eer_low": 1.0, "mine": 2})
    told: list[Any] = []

    def codes(trials: Trials, speakers: Mapping[str, str] | None) -> np.ndarray:
        told.append(speakers)
        return codes_of_files(trials, speakers)

    monkeypatch.setattr(verification, "codes_of_files", codes)  # as maps take them
    experiment.evaluate(config)
    assert told == [read_speakers(corpus / "train.csv")] * 4  # 2 lists, 2 tasks, no condition
    text = capsys.readouterr().out

    found = saved(folder)
    assert found["mine"] == 2
    assert "test/sv_plda@mulaw/trials/eer_low" not in found
    for name, count in {"trials": len(lines), other: len(lines[::2])}.items():
        assert found[f"lists/{name}/trials"] == count
        assert found[f"lists/{name}/speakers"] >= 8
        for kind in ("sv_plda", "sv_cosine"):
            assert f"test/{kind}@mulaw/{name}/eer_low" not in found
            low, high = (found[f"test/{kind}/{name}/eer_{end}"] for end in ("low", "high"))
            assert f" {found[f'test/{kind}/{name}/eer']:.2f} [{low:.2f}, {high:.2f}]" in text
            assert low < high
    assert found["lists/trials/hash"] != found[f"lists/{other}/hash"]
    assert PLDA.load(folder / "backends/trained_sv_plda_plda.npz").loading.shape == (8, 4)
    trials, scores = read_scores(folder / "scores/trained_sv_plda_trials.txt")
    assert metrics.eer(scores, trials.labels) == found["test/sv_plda/trials/eer"]
