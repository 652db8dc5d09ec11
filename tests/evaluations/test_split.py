"""Held-out speakers: which rows are left to train on, which trials are drawn, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sslsv import audio, distributed
from sslsv.config import from_dict, load_config
from sslsv.datasets import views
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations.split import SplitConfig, hold_out
from sslsv.evaluations.trials import Trials
from sslsv.experiment import build_trainer, evaluate, train

Row = tuple[str, str]  # file, speaker
METRIC = "val/sv_cosine/split/eer"


def manifest_of(rows: Iterable[Row], path: Path = Path("data/train.csv")) -> Manifest:
    """What `read_manifest` makes of these rows."""
    files, labels = zip(*rows, strict=True)
    names = list(dict.fromkeys(labels))
    return Manifest(
        path=path,
        base_path=path.parent,
        files=np.char.encode(np.array(files), "utf-8"),
        labels=np.array([names.index(label) for label in labels], dtype=np.int64),
        label_names=names,
        lines=np.arange(len(files)) + 2,
    )


def rows_of(manifest: Manifest) -> list[Row]:
    names = [manifest.label_names[code] for code in manifest.labels]
    return [(manifest.file(row), name) for row, name in enumerate(names)]


def pairs_of(trials: Trials) -> list[tuple[bool, str, str]]:
    """(target, file, file) of each trial, the files in order of name."""
    found = []
    for target, *pair in zip(trials.labels, trials.enrol, trials.test, strict=True):
        first, second = sorted(trials.files[i] for i in pair)
        found.append((bool(target), first, second))
    return found


def voices(sizes: dict[str, int]) -> list[Row]:
    """As many files of each speaker, the speakers in turns."""
    most = max(sizes.values())
    return [(f"{name}/{i}.wav", name) for i in range(most) for name in sizes if i < sizes[name]]


def split_of(rows: list[Row], speakers: int, trials: int, seed: int = 0) -> tuple[Manifest, Trials]:
    return hold_out(manifest_of(rows), SplitConfig(speakers=speakers, trials=trials), seed)


# --------------------------------------------------------------------------------- known answers


def test_labels_with_one_file_are_trained_on_and_the_others_held_out() -> None:
    rows = voices({"ann": 2, "bob": 1, "cem": 2, "dan": 1})
    left, trials = split_of(rows, speakers=2, trials=4)
    assert rows_of(left) == [("bob/0.wav", "bob"), ("dan/0.wav", "dan")]
    assert left.label_names == ["bob", "dan"]
    assert left.labels.tolist() == [0, 1]
    found = pairs_of(trials)
    assert sorted(pair for target, *pair in found if target) == [
        ["ann/0.wav", "ann/1.wav"],
        ["cem/0.wav", "cem/1.wav"],
    ]
    crossed = [(a, c) for target, a, c in found if not target]
    assert len(set(crossed)) == 2
    assert all(a.startswith("ann") and c.startswith("cem") for a, c in crossed)


@pytest.mark.parametrize("seed", [0, 1])
def test_asked_for_all_pairs_it_draws_each_of_them_once(seed: int) -> None:
    rows = [*voices({"odd": 3, "even": 6}), ("c/0.wav", "c")]  # 3 + 15 targets, 18 others
    _, trials = split_of(rows, speakers=2, trials=36, seed=seed)
    held_out = [row for row in rows if row[1] != "c"]
    expected = [(a[1] == b[1], *sorted((a[0], b[0]))) for a, b in combinations(held_out, 2)]
    assert len(expected) == 36
    assert sorted(pairs_of(trials)) == sorted(expected)


def test_trials_are_what_a_list_in_a_file_gives() -> None:
    _, trials = split_of(voices(dict.fromkeys("abcdef", 5)), speakers=4, trials=50)
    assert trials.name == "split"
    assert len(trials) == 50
    assert trials.enrol.dtype == trials.test.dtype == np.int32
    assert trials.labels.dtype == bool
    together = np.stack([trials.enrol, trials.test], axis=1).reshape(-1).tolist()
    assert list(dict.fromkeys(together)) == list(range(len(trials.files)))  # by first appearance
    assert len(set(trials.files)) == len(trials.files)


def test_either_file_of_a_pair_may_be_the_enrolment() -> None:
    _, trials = split_of(voices(dict.fromkeys("abcdef", 6)), speakers=5, trials=100)
    enrol, test = (np.array(trials.files)[index] for index in (trials.enrol, trials.test))
    for kind in (trials.labels, ~trials.labels):
        share = np.mean(enrol[kind] < test[kind])
        assert 0.2 < share < 0.8


def test_only_rows_of_set_train_are_split(tmp_path: Path) -> None:
    rows = [(f"{name}/{i}.wav", name, "train") for name in "abc" for i in range(2)]
    rows += [(f"{name}/test{i}.wav", name, "test") for name in "abcd" for i in range(2)]
    text = "".join(f"{','.join(row)}\n" for row in reversed(rows))
    (tmp_path / "train.csv").write_text("File,Speaker,Set\n" + text)
    whole = read_manifest("train.csv", tmp_path)
    for seed in range(5):
        left, trials = hold_out(whole, SplitConfig(speakers=2, trials=4), seed)
        assert len(left) == 2
        assert not [file for file in trials.files if "test" in file]
        assert {file[0] for file in trials.files}.isdisjoint(left.label_names)


# ------------------------------------------------------------------------------------- properties


def capacities(rows: list[Row], speakers: Iterable[str]) -> tuple[Counter[str], int]:
    """How many pairs of two different files there are: of each speaker, and of two speakers."""
    utterances = {(file, name) for file, name in rows if name in speakers}
    kinds = [(a, b) for a, b in combinations(sorted(utterances), 2) if a[0] != b[0]]
    own = Counter(a[1] for a, b in kinds if a[1] == b[1])
    return own, sum(a[1] != b[1] for a, b in kinds)


@st.composite
def lists(draw: st.DrawFn) -> list[Row]:
    """Some files of each speaker, some of them twice, or under another label too."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=3, max_size=7))
    rows = voices(dict(zip("abcdefé", sizes, strict=False)))
    place = st.integers(0, len(rows) - 1)
    rows += [rows[i] for i in draw(st.lists(place, max_size=4))]
    if draw(st.booleans()):
        rows.append((rows[draw(place)][0], rows[draw(place)][1]))
    return draw(st.permutations(rows))


def usable(rows: list[Row]) -> set[str]:
    """Speakers with two files or more, none of which is another's too."""
    found = {name: {file for file, owner in rows if owner == name} for _, name in rows}
    others = {name: {file for file, owner in rows if owner != name} for name in found}
    return {name for name in found if len(found[name]) > 1 and not found[name] & others[name]}


@settings(max_examples=150)
@given(
    rows=lists(),
    speakers=st.integers(2, 4),
    half=st.integers(1, 20),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_split_keeps_its_promises_or_cannot_be_made(
    rows: list[Row], speakers: int, half: int, seed: int
) -> None:
    everyone, eligible = {name for _, name in rows}, usable(rows)
    if not speakers <= len(eligible) or speakers == len(everyone):
        event("too few speakers")
        with pytest.raises(ConfigError, match="lower speakers"):
            split_of(rows, speakers, 2 * half, seed)
        return
    left, _ = split_of(rows, speakers, 2, seed)  # for which any two speakers are enough
    own, others = capacities(rows, everyone - set(left.label_names))
    if min(own.total(), others) < half:
        event("too few pairs")
        with pytest.raises(ConfigError, match="lower trials or raise speakers"):
            split_of(rows, speakers, 2 * half, seed)
        return
    event("split")
    left, trials = split_of(rows, speakers, 2 * half, seed)
    _check_promises(rows, left, trials, speakers, half)
    again, same = split_of(rows, speakers, 2 * half, seed)
    assert rows_of(again) == rows_of(left)
    assert pairs_of(same) == pairs_of(trials)
    assert same.enrol.tolist() == trials.enrol.tolist()


def _check_promises(
    rows: list[Row], left: Manifest, trials: Trials, speakers: int, half: int
) -> None:
    held_out = {name for _, name in rows} - set(left.label_names)
    assert held_out <= usable(rows)
    assert len(held_out) == speakers
    assert rows_of(left) == [row for row in rows if row[1] not in held_out]
    assert {file for file, _ in rows_of(left)}.isdisjoint(trials.files)
    of = dict(rows)
    found = pairs_of(trials)
    for target, a, b in found:
        assert a != b
        assert {of[a], of[b]} <= held_out
        assert target == (of[a] == of[b])
    assert len(set(found)) == len(found) == 2 * half
    assert sum(target for target, *_ in found) == half

    own, _ = capacities(rows, held_out)
    drawn = Counter(dict.fromkeys(held_out, 0))
    drawn.update(of[a] for target, a, _ in found if target)
    for name, count in drawn.items():  # as many as another has, or all
        assert count == own[name] or count >= max(drawn.values()) - 1


def test_non_targets_are_spread_over_pairs_of_speakers() -> None:
    sizes = {"many": 40, "b": 4, "c": 4, "d": 4}
    _, trials = split_of([*voices(sizes), ("e/0.wav", "e")], speakers=4, trials=2 * 27)
    counts = Counter(
        frozenset(file.split("/")[0] for file in pair)
        for target, *pair in pairs_of(trials)
        if not target
    )
    assert sorted(counts.values()) == [4, 4, 4, 5, 5, 5]


def test_a_few_non_targets_are_of_any_speakers() -> None:
    rows = voices(dict.fromkeys("abcdef", 4))
    with_one_in_all = 0
    for seed in range(30):
        _, trials = split_of(rows, speakers=5, trials=8, seed=seed)
        pairs = [{a[0], b[0]} for target, a, b in pairs_of(trials) if not target]
        assert len(set(map(frozenset, pairs))) == 4  # of the ten pairs of speakers
        with_one_in_all += bool(set.intersection(*pairs))
    assert with_one_in_all < 5  # 5 of the 210 choices


def test_what_is_left_over_goes_to_any_speaker_that_has_more() -> None:
    """Ten targets: three of each of three speakers, one of whom has only three pairs, and one."""
    rows = [*voices({"a": 3, "b": 6, "c": 6}), ("d/0.wav", "d")]
    more = set()
    for seed in range(30):
        _, trials = split_of(rows, speakers=3, trials=20, seed=seed)
        counts = Counter(first[0] for target, first, _ in pairs_of(trials) if target)
        assert sorted(counts.values()) == [3, 3, 4]
        more.add(max(counts, key=counts.__getitem__))
    assert more == {"b", "c"}


def test_neither_order_of_rows_nor_number_of_processes_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = voices({name: 3 + i % 3 for i, name in enumerate("abcdefghij")})
    left, trials = split_of(rows, speakers=4, trials=20, seed=7)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    other_left, other = split_of(rows[::-1], speakers=4, trials=20, seed=7)
    assert rows_of(other_left) == rows_of(left)[::-1]
    assert pairs_of(other) == pairs_of(trials)
    assert other.enrol.tolist() == trials.enrol.tolist()


def test_every_speaker_and_every_pair_has_its_chance() -> None:
    rows = voices(dict.fromkeys("abcdefgh", 4))
    speakers: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for seed in range(200):
        left, trials = split_of(rows, speakers=2, trials=4, seed=seed)
        speakers.update(set("abcdefgh") - set(left.label_names))
        pairs.update((a, b) for target, a, b in pairs_of(trials) if target and a[0] == b[0])
    assert speakers.total() == 400
    assert all(20 < speakers[name] < 80 for name in "abcdefgh")  # 50 expected
    assert len(pairs) == 8 * 6
    assert max(pairs.values()) < 30  # 400 / 48 expected


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("speakers", 1, "speakers: must be at least 2, got 1"),
        ("trials", 0, "trials: must be at least 2, got 0"),
        ("trials", -2, "trials: must be at least 2, got -2"),
        ("trials", 7, "trials: must be even, half of them are targets, got 7"),
    ],
)
def test_sizes_that_cannot_be_are_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SplitConfig(**{field: value})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("sizes", "speakers", "trials", "message"),
    [
        (
            {"a": 2, "b": 1, "c": 2},
            3,
            2,
            "3 speakers are to be held out, but of the 3 labels of data/train.csv only 2 have two "
            "files or more and share none with another label; lower speakers",
        ),
        (
            {"a": 2, "b": 2},
            2,
            2,
            "2 speakers are all of data/train.csv, so none is left to train on; lower speakers",
        ),
        (
            {"a": 2, "b": 2, "c": 1},
            2,
            6,
            "6 trials take 3 target ones, but the held-out speakers have only 2 such pairs of "
            "files; lower trials or raise speakers",
        ),
        (
            {"a": 2, "b": 9, "c": 1},
            2,
            38,
            "38 trials take 19 non-target ones, but the held-out speakers have only 18 such pairs "
            "of files; lower trials or raise speakers",
        ),
    ],
)
def test_lists_that_are_too_small_are_refused(
    sizes: dict[str, int], speakers: int, trials: int, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        split_of(voices(sizes), speakers, trials)
    assert str(error.value) == f"evaluation.validation, section split: {message}"
    if "only 2 such" in message or "only 18" in message:
        split_of(voices(sizes), speakers, trials - 2)  # all that there are can be had


VALIDATION = """\
    - type: sv_cosine
      trials: [split]
      split: {speakers: 3, trials: 12}
"""
Edit = Callable[[str, str], Path]


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value).replace(str(path), "FILE")


def test_a_section_under_validation_loads_with_its_place(edit_config: Edit) -> None:
    path = edit_config("evaluation:\n", f"evaluation:\n  validation:\n{VALIDATION}")
    config = load_config(path, [f"trainer.tracked_metric={METRIC}"])
    (task,) = config.evaluation.validation
    assert task.split == SplitConfig(speakers=3, trials=12)  # type: ignore[attr-defined]
    assert config.evaluation.test[0].split is None  # type: ignore[attr-defined]
    said = refused(path, "evaluation.validation.0.split.trials=3")
    assert said.startswith("evaluation.validation.0.split.trials: must be even")
    said = refused(path, "evaluation.validation.0.split.speaker=3")
    assert said.startswith("evaluation.validation.0.split.speaker: unknown key; did you mean")


def test_a_section_under_test_is_refused(edit_config: Edit) -> None:
    path = edit_config(
        "      trials: [trials]\n", "      trials: [trials, split]\n      split: {speakers: 3}\n"
    )
    line = path.read_text().splitlines().index("      split: {speakers: 3}") + 1
    assert refused(path) == (
        f"FILE line {line}: evaluation.test.0.split: held-out speakers are for "
        "evaluation.validation only, while a model is trained; test on lists of trials in files"
    )


@pytest.mark.parametrize("place", ["validation", "test"])
def test_the_name_without_the_section_is_refused(place: str, edit_config: Edit) -> None:
    path = edit_config("  test:\n", f"  {place}:\n")
    line = path.read_text().splitlines().index("      trials: [trials]") + 1
    assert refused(path, f"evaluation.{place}.0.trials=[trials,split]") == (
        f"evaluation.{place}.0.trials: 'split' stands for held-out speakers of dataset.train and "
        "needs a section split: {speakers: 40, trials: 4000} beside it, under "
        "evaluation.validation; a file of this name has to be renamed (given on the command line)"
    )
    edit_config("[trials]", "[split]")
    assert refused(path).startswith(f"FILE line {line}: evaluation.{place}.0.trials: 'split'")


@pytest.mark.parametrize("trials", ["trials: [a]", "metrics: [eer]"])
def test_the_section_without_the_name_is_refused(trials: str, edit_config: Edit) -> None:
    path = edit_config(
        "evaluation:\n",
        f"evaluation:\n  validation:\n{VALIDATION.replace('trials: [split]', trials)}",
    )
    assert refused(path).endswith(
        "evaluation.validation.0.split: nothing uses it; write trials: [split], or remove it"
    )


# ------------------------------------------------------------------------------ the whole training


def experiment(corpus: Path, run_dir: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """SimCLR on five of eight synthetic voices, validated on the other three."""
    data: dict[str, dict[str, Any]] = {
        "encoder": {"type": "resnet34", "base_dim": 8, "encoder_dim": 32},
        "method": {"type": "simclr", "enable_projector": False, "temperature": 0.1},
        "trainer": {"epochs": 3, "batch_size": 10, "tracked_metric": METRIC},
        "dataset": {
            "base_path": str(corpus),
            "train": "train.csv",
            "ssl": True,
            "frame_length": 8000,
            "num_workers": 0,
        },
        "evaluation": {
            "validation": [
                {
                    "type": "sv_cosine",
                    "trials": ["split"],
                    "split": {"speakers": 3, "trials": 24},
                    "num_frames": 1,
                    "frame_length": 16000,
                }
            ]
        },
    }
    for name, section in sections.items():
        data[name] = data[name] | section
    return data | {"run_dir": str(run_dir)}


def history(run_dir: Path) -> dict[str, dict[str, float]]:
    return json.loads((run_dir / "training.json").read_text())


def test_a_training_is_validated_on_speakers_that_it_never_hears(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: set[str] = set()

    def spy(path: Path, **options: Any) -> audio.AudioFile:
        heard.add(str(path.relative_to(corpus)))
        return audio.AudioFile(path, **options)

    monkeypatch.setattr(views, "audio", SimpleNamespace(AudioFile=spy))
    config = from_dict(experiment(corpus, tmp_path))
    config.check()
    train(config)

    epochs = history(tmp_path)
    errors = [epochs[str(k)][METRIC] for k in (1, 2, 3)]
    assert all(0 <= error <= 100 for error in errors)
    assert {f"val/sv_cosine/split/{name}" for name in ("eer", "mindcf")} <= epochs["1"].keys()
    best = torch.load(tmp_path / "checkpoints" / "model_best.pt", weights_only=True)
    assert best["best_metric"] == min(errors)
    assert best["epoch"] == 1 + errors.index(min(errors))

    whole = read_manifest("train.csv", corpus)
    left, trials = hold_out(whole, SplitConfig(speakers=3, trials=24), config.seed)
    assert heard == {left.file(row) for row in range(20)}
    assert {Path(file).parts[1] for file in trials.files}.isdisjoint(left.label_names)


def test_everything_that_counts_rows_or_labels_counts_those_left(
    corpus: Path, tmp_path: Path
) -> None:
    ssps = {"start_epoch": 0, "kmeans_nb_prototypes": 20, "metric_columns": ["Speaker"]}
    data = experiment(corpus, tmp_path, dataset={"ssps": True}, method={"ssps": ssps})
    trainer = build_trainer(from_dict(data))
    assert trainer.ssps is not None
    assert trainer.ssps.cluster.shape == (20,)
    assert sorted(set(trainer.ssps.codes0.tolist())) == [0, 1, 2, 3, 4]
    assert len(trainer.loader) == 2
    whole = read_manifest("train.csv", corpus)
    left, _ = hold_out(whole, SplitConfig(speakers=3, trials=24), 1717)
    assert [trainer.name_row(row) for row in range(20)] == [left.file(row) for row in range(20)]
    ssps["kmeans_nb_prototypes"] = 21
    with pytest.raises(ConfigError, match="made of the 20 rows"):
        build_trainer(from_dict(data))

    method = {"type": "supervised", "nb_classes": 5}
    data = experiment(corpus, tmp_path, dataset={"ssl": False}) | {"method": method}
    rows = build_trainer(from_dict(data)).loader
    assert sorted({label for batch in rows for label in batch.labels.tolist()}) == [0, 1, 2, 3, 4]
    method["nb_classes"] = 4
    with pytest.raises(ConfigError, match="4 is less than the 5 labels"):
        build_trainer(from_dict(data))


def test_held_out_files_that_are_missing_stop_a_training_even_where_others_are_skipped(
    corpus: Path, tmp_path: Path
) -> None:
    whole = read_manifest("train.csv", corpus)
    _, trials = hold_out(whole, SplitConfig(speakers=3, trials=24), 1717)
    rows = [f"{whole.file(row)},{whole.file(row).split('/')[1]}\n" for row in range(len(whole))]
    (tmp_path / "train.csv").write_text("File,Speaker\n" + "".join(rows))
    for file in {whole.file(row) for row in range(len(whole))} - {trials.files[0]}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).symlink_to(corpus / file)
    data = experiment(tmp_path, tmp_path / "run", dataset={"on_error": "skip"})
    with pytest.raises(DataError) as error:
        build_trainer(from_dict(data))
    assert str(error.value).startswith(f"{tmp_path}/train.csv: 1 of ")
    assert f"not found under '{tmp_path}': {trials.files[0]}; check" in str(error.value)


def test_without_a_training_there_are_no_held_out_speakers(corpus: Path, tmp_path: Path) -> None:
    data = experiment(corpus, tmp_path)
    data["evaluation"]["test"] = data["evaluation"]["validation"]
    with pytest.raises(ConfigError, match="'split' is only known while a model is trained"):
        evaluate(from_dict(data))  # which skips the check that a file goes through


# --------------------------------------------------------------- what a run without labels tracks


def offered(data: dict[str, Any]) -> list[str]:
    """The metrics that a run says it may track."""
    config = from_dict(data)
    config.trainer.tracked_metric = "train/never"
    with pytest.raises(ConfigError) as error:
        config.check()
    listed = str(error.value).partition(" measures: ")[2].partition(" (")[0]
    return listed.split(", ")


SIGNALS = ["train/effective_rank", "train/embedding_std", "train/uniformity", "train/alignment"]
SSPS = {
    "start_epoch": 1,
    "pos_queue_size": 20,
    "kmeans_nb_prototypes": 4,
    "metric_columns": ["Speaker"],
}


def test_which_signals_are_offered(corpus: Path, tmp_path: Path) -> None:
    def of(**sections: dict[str, Any]) -> list[str]:
        data = experiment(corpus, tmp_path, evaluation={"validation": []}, **sections)
        listed = offered(data)
        assert listed[0] == "train/loss"
        return listed[1:]

    assert of() == SIGNALS
    nmi = "train/ssps_kmeans_nmi_speaker"
    both = {"dataset": {"ssps": True}}
    assert of(**both, method={"ssps": SSPS}) == [*SIGNALS, nmi]
    assert of(**both, method={"ssps": SSPS | {"metric_columns": []}}) == SIGNALS
    assert of(**both, method={"ssps": SSPS | {"sampling": "knn"}}) == SIGNALS  # no clusters
    assert of(**both, method={"ssps": SSPS | {"start_epoch": 3}}) == SIGNALS  # after the last epoch
    single = {"type": "supervised", "nb_classes": 8}
    data = experiment(corpus, tmp_path, dataset={"ssl": False}) | {"method": single}
    assert offered(data)[3:] == SIGNALS[:3]  # one view has none to be aligned with
    data["trainer"]["batch_size"] = 1
    assert offered(data)[2:] == ["train/loss"]  # nor is one embedding spread


def test_what_is_offered_is_measured_and_chooses_the_best_model(
    corpus: Path, tmp_path: Path
) -> None:
    trainer = {"tracked_metric": "train/effective_rank", "tracked_mode": "max"}
    data = experiment(
        corpus, tmp_path, trainer=trainer, dataset={"ssps": True}, method={"ssps": SSPS}
    )
    names = offered(data)
    config = from_dict(data)
    for name in names:
        config.trainer.tracked_metric = name
        config.check()
    train(from_dict(data))
    epochs = history(tmp_path)
    assert set(names) <= epochs["3"].keys()
    values = [epochs[str(k)]["train/effective_rank"] for k in (1, 2, 3)]
    best = torch.load(tmp_path / "checkpoints" / "model_best.pt", weights_only=True)
    assert best["best_metric"] == max(values)
    assert best["epoch"] == 1 + values.index(max(values))


def test_one_view_is_measured_as_offered(corpus: Path, tmp_path: Path) -> None:
    method = {"type": "supervised", "nb_classes": 5}
    data = experiment(corpus, tmp_path, dataset={"ssl": False}, trainer={"epochs": 1})
    data["method"] = method
    names = offered(data)
    train(from_dict(data))
    measured = history(tmp_path)["1"].keys()
    assert set(names) <= measured
    assert "train/alignment" not in measured
