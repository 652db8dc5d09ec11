"""SSPS: sampling against loops, draws against their law, and with every method that allows it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import CASES, Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sslsv import distributed
from sslsv.config import from_dict
from sslsv.errors import CheckpointError, ConfigError, DataError
from sslsv.experiment import build_trainer, train
from sslsv.methods import ssps as module
from sslsv.methods.ssps import SSPS, SSPSConfig, draw_rank, nearest, reference_embeddings
from sslsv.randomness import generator
from sslsv.registry import METHODS
from sslsv.trainer.memories import fill_memories

ROWS, DIM, N = 40, 6, 8  # of the list, of a reference, of a batch
SHAPES = {"z2": torch.Size([3]), "teacher": torch.Size([2, 4])}
ON = torch.zeros(())  # the finite guard's flag is down
SPEAKERS = np.arange(ROWS) % 5


def make(sampling: str = "kmeans-repr", shapes: Any = SHAPES, **fields: Any) -> SSPS:
    fields = {"start_epoch": 0, "pos_queue_size": 20, "kmeans_nb_prototypes": 6, **fields}
    config = SSPSConfig(sampling=sampling, **fields)  # type: ignore[arg-type]
    return SSPS(config, ROWS, DIM, shapes, {"Speaker": SPEAKERS})


def references_of(rows: Tensor) -> Tensor:
    """Near one direction for each speaker."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, DIM))[SPEAKERS] + 0.5 * rng.standard_normal((ROWS, DIM))
    return F.normalize(torch.from_numpy(x).float(), dim=1)[rows]


def outputs_at(step: int, n: int = N, shapes: Any = SHAPES) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(step)
    own = {name: torch.randn(n, *shape, generator=rng) for name, shape in shapes.items()}
    return {"z1": torch.randn(n, 3, generator=rng), **own}


def rows_at(step: int, n: int = N) -> Tensor:
    return torch.from_numpy(np.random.default_rng(step).permutation(ROWS)[:n])


def filled(ssps: SSPS, steps: int = 7) -> list[tuple[int, dict[str, Tensor]]]:
    """Shown ``steps`` batches, and clustered; returns what the queue must hold, oldest first."""
    history: list[tuple[int, dict[str, Tensor]]] = []
    for step in range(steps):
        rows, outputs = rows_at(step), outputs_at(step)
        ssps.keep(outputs, rows, references_of(rows), ON)
        for i, row in enumerate(rows.tolist()):
            history.append((row, {name: outputs[name][i] for name in ssps.shapes}))
    ssps.on_epoch_start(ssps.config.start_epoch, seed=3)
    return history[-ssps.config.pos_queue_size :]


def latest(queue: list[tuple[int, dict[str, Tensor]]]) -> dict[int, dict[str, Tensor]]:
    return dict(queue)  # a later entry of a row takes the place of an earlier one


def pick(candidates: list[int], draw: float, size: int, law: str, decay: float) -> int | None:
    """From candidates in order of rank, by going through the cumulative weights."""
    candidates = candidates[:size]
    weights = [1.0 if law == "uniform" else math.exp(-decay * r) for r in range(len(candidates))]
    below = 0.0
    for candidate, weight in zip(candidates, weights, strict=True):
        below += weight / sum(weights)
        if draw < below:
            return candidate
    return candidates[-1] if candidates else None


def slow(ssps: SSPS, queue: Any, rows: Tensor, references: Tensor, step: int) -> list[int | None]:
    """The row (or, for kmeans, the cluster) to take each positive from, the obvious way."""
    c, there = ssps.config, latest(queue)
    inter = (c.inter_sampling_prob_fn, c.inter_sampling_prob_exp_lambda)
    intra = (c.intra_sampling_prob_fn, c.intra_sampling_prob_exp_lambda)
    between, within = generator("ssps", 3, step).random((2, len(rows)))
    found: list[int | None] = []
    for i, row in enumerate(rows.tolist()):
        if c.sampling == "knn":
            others = [other for other in there if other != row]
            cosines = {o: float(references[i] @ references_of(torch.tensor(o))) for o in others}
            others.sort(key=lambda other: -cosines[other])
            found.append(pick(others, within[i], c.intra_sampling_size, *intra))
            continue
        assert ssps.memory
        own = int(ssps.cluster[row])
        near: int | None = own
        if c.inter_sampling_size:
            cosines = {
                k: float(ssps.centroids[own] @ x) for k, x in enumerate(ssps.centroids) if k != own
            }
            ranked = sorted(cosines, key=lambda k: -cosines[k])
            near = pick(ranked, between[i], c.inter_sampling_size, *inter)
        if own < 0:
            near = None
        if c.sampling == "kmeans":
            found.append(near)
            continue
        others = [o for o in there if near is not None and ssps.cluster[o] == near and o != row]
        fit = {o: float(ssps.memory.values[o].float() @ ssps.centroids[near or 0]) for o in others}
        others.sort(key=lambda other: -fit[other])
        found.append(pick(others, within[i], c.intra_sampling_size, *intra))
    return found


SAMPLINGS = [
    ("knn", {}),
    ("knn", {"intra_sampling_size": 3}),
    ("knn", {"intra_sampling_size": 5, "intra_sampling_prob_fn": "exp"}),
    ("kmeans-repr", {}),
    ("kmeans-repr", {"pos_queue_size": 56}),  # longer than the list: rows come twice
    ("kmeans-repr", {"inter_sampling_size": 2}),
    ("kmeans-repr", {"inter_sampling_size": 3, "inter_sampling_prob_fn": "exp"}),
    ("kmeans-repr", {"intra_sampling_size": 2, "kmeans_nb_prototypes": 3}),
    ("kmeans-repr", {"intra_sampling_prob_fn": "exp", "kmeans_nb_prototypes": 2}),
]


@pytest.mark.parametrize(("sampling", "fields"), SAMPLINGS, ids=str)
def test_positives_are_those_of_the_obvious_implementation(sampling, fields):
    ssps = make(sampling, **fields)
    queue = filled(ssps)
    none = 0
    for step in range(20, 40):
        rows, outputs = rows_at(step), outputs_at(step)
        references = references_of(rows)
        swapped, metrics = ssps.replace(outputs, rows, references, step, seed=3)
        expected = slow(ssps, queue, rows, references, step)
        for i, other in enumerate(expected):
            source = outputs if other is None else latest(queue)[other]
            for name in SHAPES:
                want = source[name][i] if other is None else source[name]
                torch.testing.assert_close(swapped[name][i], want, rtol=0, atol=0)
        assert swapped["z1"] is outputs["z1"]
        none += sum(other is None for other in expected)
        share = sum(other is not None for other in expected) / N
        assert metrics["train/ssps_coverage"] == pytest.approx(share)
        same = [
            SPEAKERS[o] == SPEAKERS[r] for o, r in zip(expected, rows, strict=True) if o is not None
        ]
        if same:
            assert metrics["train/ssps_speaker_acc"] == pytest.approx(np.mean(same))
    if sampling == "kmeans-repr" and not fields:
        assert none  # both cases were seen


@pytest.mark.parametrize("size", [0, 2])
def test_centroids_are_the_positives_of_kmeans(size):
    shapes = {"z2": torch.Size([DIM]), "teacher": torch.Size([2, DIM])}
    ssps = make("kmeans", shapes, inter_sampling_size=size)
    for step in range(3):  # not all rows are seen
        ssps.keep(outputs_at(step, shapes=shapes), rows_at(step), references_of(rows_at(step)), ON)
    ssps.on_epoch_start(0, seed=3)
    seen = 0
    for step in range(20, 30):
        rows, outputs = rows_at(step), outputs_at(step, shapes=shapes)
        swapped, metrics = ssps.replace(outputs, rows, references_of(rows), step, seed=3)
        expected = slow(ssps, [], rows, references_of(rows), step)
        for i, near in enumerate(expected):
            for name, shape in shapes.items():
                want = outputs[name][i] if near is None else ssps.centroids[near].expand(shape)
                torch.testing.assert_close(swapped[name][i], want, rtol=0, atol=0)
        seen += sum(near is not None for near in expected)
        assert metrics["train/ssps_coverage"] == pytest.approx(
            np.mean([near is not None for near in expected])
        )
    assert 0 < seen < 80


@pytest.mark.parametrize(("law", "size"), [("uniform", 7), ("exp", 7), ("exp", 2)])
def test_ranks_are_drawn_by_their_law(law, size):
    """Share of each rank in a million draws, within five standard errors."""
    draws = torch.from_numpy(np.random.default_rng(0).random(1_000_000))
    ranks = draw_rank(draws, torch.full_like(draws, size).long(), law, 0.7)
    weights = np.exp(-0.7 * np.arange(size)) if law == "exp" else np.ones(size)
    expected = weights / weights.sum()
    shares = np.bincount(ranks.numpy(), minlength=size) / len(draws)
    assert np.all(np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / len(draws)))


@given(
    draw=st.floats(0, 1, exclude_max=True),
    size=st.integers(0, 10_000_000),
    law=st.sampled_from(["uniform", "exp"]),
    decay=st.floats(1e-3, 50),
)
def test_ranks_stay_below_their_size(draw, size, law, decay):
    rank = draw_rank(torch.tensor([draw], dtype=torch.float64), torch.tensor([size]), law, decay)
    assert 0 <= int(rank) <= max(0, size - 1)


def test_nearest_centroids_are_those_of_a_loop(monkeypatch):
    centroids = F.normalize(torch.randn(50, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = []
    for k in range(50):
        others = [j for j in range(50) if j != k]
        cosines = [float(centroids[k] @ centroids[j]) for j in range(50)]
        expected.append(sorted(others, key=lambda j: -cosines[j])[:4])
    assert nearest(centroids, 4).tolist() == expected
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 50 * 7)  # seven rows at a time
    assert nearest(centroids, 4).tolist() == expected


def test_replaced_positives_carry_no_gradient_and_the_others_do():
    ssps = make()
    for step in range(3):
        rows = rows_at(step)
        ssps.keep(outputs_at(step), rows, references_of(rows), ON)
    ssps.on_epoch_start(0, seed=3)
    rows, outputs = rows_at(20), outputs_at(20)
    outputs["z2"].requires_grad_()
    swapped, _ = ssps.replace(outputs, rows, references_of(rows), 20, seed=3)
    swapped["z2"].sum().backward()
    replaced = (swapped["z2"] != outputs["z2"]).any(dim=1)
    assert 0 < replaced.sum() < N
    assert not outputs["z2"].grad[replaced].any()
    assert (outputs["z2"].grad[~replaced] == 1).all()


@pytest.mark.parametrize("sampling", ["knn", "kmeans-repr"])
def test_a_frozen_step_is_not_remembered(sampling):
    ssps = make(sampling)
    filled(ssps)
    before = copy.deepcopy(ssps.memories())
    ssps.keep(outputs_at(50), rows_at(50), references_of(rows_at(50)), torch.ones(()))
    assert all(torch.equal(x, before[name]) for name, x in ssps.memories().items())


@pytest.mark.parametrize("sampling", ["knn", "kmeans", "kmeans-repr"])
def test_memories_are_the_whole_state(sampling):
    shapes = {"z2": torch.Size([DIM])}
    one, other = make(sampling, shapes), make(sampling, shapes)
    for step in range(5):
        rows = rows_at(step)
        one.keep(outputs_at(step, shapes=shapes), rows, references_of(rows), ON)
    one.on_epoch_start(0, seed=3)
    for name, x in other.memories().items():
        x.copy_(one.memories()[name])
    rows, outputs = rows_at(9), outputs_at(9, shapes=shapes)
    found = [x.replace(outputs, rows, references_of(rows), 9, 3)[0]["z2"] for x in (one, other)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], outputs["z2"])


def test_clusters_that_are_the_speakers_have_all_their_information():
    ssps = make(kmeans_nb_prototypes=5)
    everyone = torch.arange(ROWS)
    directions = torch.eye(DIM)[torch.from_numpy(SPEAKERS)]
    ssps.keep(outputs_at(0, ROWS), everyone, directions, ON)
    found = {}
    for epoch in range(20):  # some seeds start with two rows of one speaker
        found = ssps.on_epoch_start(epoch, seed=3)
        if found["train/ssps_kmeans_cosine"] > 0.999:
            break
    assert found["train/ssps_kmeans_nmi_speaker"] == pytest.approx(1)
    ssps.keep(outputs_at(1, ROWS), everyone.roll(1), directions.roll(1, 0), ON)
    _, metrics = ssps.replace(outputs_at(2, ROWS), everyone, directions, 2, 3)
    assert metrics["train/ssps_speaker_acc"] == 1


def test_nothing_is_sampled_before_its_epoch():
    ssps = make(start_epoch=4)
    assert [ssps.watching_at(e) for e in (2, 3, 4)] == [False, True, True]
    assert [ssps.sampling_at(e) for e in (3, 4)] == [False, True]
    assert not ssps.wants_pass(3)
    assert ssps.wants_pass(4)  # nothing was seen
    assert ssps.on_epoch_start(3, seed=3) == {}
    ssps.keep(outputs_at(0), rows_at(0), references_of(rows_at(0)), ON)
    assert not ssps.wants_pass(4)


def test_references_are_of_an_encoder_that_evaluates():
    encoder = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4)).train()
    statistics = copy.deepcopy(encoder.state_dict())
    x = torch.randn(3, 5)
    found = reference_embeddings(encoder, x)
    assert encoder.training
    assert encoder[1].training
    assert all(torch.equal(y, statistics[name]) for name, y in encoder.state_dict().items())
    torch.testing.assert_close(found, F.normalize(encoder.eval()(x).detach(), dim=1))
    assert not found.requires_grad


@pytest.mark.parametrize("sampling", ["knn", "kmeans", "kmeans-repr"])
def test_no_step_waits_for_the_device(sampling):
    """Fake tensors have no values: whatever asks the host for one raises."""
    shapes = {"z2": torch.Size([DIM])}
    ssps = make(sampling, shapes, inter_sampling_size=2, intra_sampling_size=4)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for owner in ssps.modules():
            for name, x in list(owner._buffers.items()):
                owner._buffers[name] = fake.from_tensor(x)
        rows = fake.from_tensor(rows_at(0))
        outputs = {name: fake.from_tensor(x) for name, x in outputs_at(0, shapes=shapes).items()}
        references = fake.from_tensor(references_of(rows_at(0)))
        ssps.replace(outputs, rows, references, 0, 3)
        ssps.keep(outputs, rows, references, fake.from_tensor(ON))


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(ConfigError, match=r"kmeans_nb_prototypes: 41 clusters .* 40 rows"):
        make(kmeans_nb_prototypes=41)


def test_centroids_are_refused_where_the_loss_compares_something_else():
    with pytest.raises(ConfigError, match=r"3-dimensional outputs \(z2\), not the 6"):
        make("kmeans")


# ------------------------------------------------------------------------ processes


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(run_on(rank, 2), folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


def run_on(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for sampling in ("knn", "kmeans-repr"):
        ssps, swapped = make(sampling, inter_sampling_size=1), []
        for step in range(12):
            rows = rows_at(step).chunk(world)[rank]
            outputs = {name: x.chunk(world)[rank] for name, x in outputs_at(step).items()}
            if step == 6:
                ssps.on_epoch_start(0, seed=3)
            if step >= 6:
                swapped.append(ssps.replace(outputs, rows, references_of(rows), step, 3)[0])
            ssps.keep(outputs, rows, references_of(rows), ON)
        found[sampling] = {"swapped": swapped, "memories": dict(ssps.memories())}
    return found


def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), 2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = run_on(0, 1)
    for sampling, expected in alone.items():
        for step, outputs in enumerate(expected["swapped"]):
            for name, x in outputs.items():
                joined = torch.cat([part[sampling]["swapped"][step][name] for part in parts])
                assert torch.equal(joined, x)
        for part in parts:
            for name, x in part[sampling]["memories"].items():
                torch.testing.assert_close(x, expected["memories"][name], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------ with methods

TYPES = sorted({case.type for case in CASES if METHODS.get(case.type).cls.positives})  # type: ignore[attr-defined]


def settings(case: Case, corpus: Path, run_dir: Path, **ssps: Any) -> dict[str, Any]:
    """Eight voices, SSPS from the second epoch on."""
    multicrop = case.views == "multicrop"
    return {
        "encoder": {"type": "resnet34", "base_dim": 8, "encoder_dim": 32},
        "method": {
            "type": case.type,
            **case.fields,
            "ssps": {
                "start_epoch": 1,
                "pos_queue_size": 48,
                "kmeans_nb_prototypes": 6,
                "metric_columns": ["Speaker"],
                **ssps,
            },
        },
        "trainer": {"epochs": 3, "batch_size": 16, "tracked_metric": "train/loss"},
        "dataset": {
            "base_path": str(corpus),
            "train": "train.csv",
            "ssl": True,
            "frame_sampling": "dino" if multicrop else "default",
            "frame_length": 8000,
            "ssl_dino_global_length": 8000,
            "ssl_dino_local_length": 4000,
            "ssps": True,
            "ssps_frame_length": 12000,
            "num_workers": 0,
        },
        "run_dir": str(run_dir),
    }


def history(run_dir: Path) -> dict[str, dict[str, float]]:
    return json.loads((run_dir / "training.json").read_text())


def case_of(kind: str) -> Case:
    if kind == "wmse":  # utterances that share a positive: more rows than dimensions by far
        fields = {"projector_hidden_dim": 12, "projector_output_dim": 3, "whitening_size": 16}
        return Case(kind, fields)
    return next(case for case in CASES if case.type == kind)


def test_methods_without_positives_are_refused():
    refused = {case.type for case in CASES} - set(TYPES)
    assert refused == {"cpc", "deepcluster", "supervised"}
    for kind in refused:
        data = settings(case_of(kind), Path("data"), Path("run"))
        data["dataset"]["ssl"] = kind != "supervised"
        with pytest.raises(ConfigError, match=f"method.ssps: '{kind}' compares no positives"):
            from_dict(data).check()


@pytest.mark.parametrize("kind", TYPES)
def test_every_other_method_trains_with_it(kind, corpus, tmp_path):
    config = from_dict(settings(case_of(kind), corpus, tmp_path))
    config.check()
    train(config)
    epochs = history(tmp_path)
    assert all(math.isfinite(value) for epoch in epochs.values() for value in epoch.values())
    assert "train/ssps_coverage" not in epochs["1"]
    assert epochs["3"]["train/ssps_coverage"] > 0.5
    assert 0 < epochs["3"]["train/ssps_speaker_acc"] <= 1
    assert 0 <= epochs["3"]["train/ssps_kmeans_nmi_speaker"] <= 1


@pytest.mark.parametrize("sampling", ["knn", "kmeans"])
@pytest.mark.parametrize("kind", ["simclr", "dino", "moco"])
def test_other_samplings_train(kind, sampling, corpus, tmp_path):
    data = settings(case_of(kind), corpus, tmp_path, sampling=sampling, intra_sampling_size=4)
    data["method"]["enable_projector"] = False
    train(from_dict(data))
    assert history(tmp_path)["3"]["train/ssps_coverage"] > 0.5


@pytest.mark.parametrize("kind", ["simclr", "moco"])
def test_only_the_loss_sees_replaced_positives(kind, corpus, tmp_path, monkeypatch):
    """What is remembered, by SSPS and by the method's own queue, are ordinary ones: errors of
    sampling would feed themselves."""
    data = settings(case_of(kind), corpus, tmp_path)
    trainer = build_trainer(from_dict(data))
    assert trainer.ssps
    seen: dict[str, list[dict[str, Tensor]]] = {"given": [], "loss": [], "kept": [], "end": []}
    method, ssps = trainer.method, trainer.ssps

    def note(owner: Any, name: str, where: str) -> None:
        plain = getattr(owner, name)

        def noting(outputs: dict[str, Tensor], *others: Any) -> Any:
            seen[where].append({k: x.detach().clone() for k, x in outputs.items()})
            return plain(outputs, *others)

        monkeypatch.setattr(owner, name, noting)

    note(method, "loss", "loss")
    note(method, "on_step_end", "end")
    note(ssps, "keep", "kept")
    note(ssps, "replace", "given")
    trainer.fit()
    assert len(seen["given"]) == 2 * trainer.steps_per_epoch  # not in the first epoch
    replaced = 0
    steps = zip(*(seen[where][-len(seen["given"]) :] for where in seen), strict=True)
    for ordinary, compared, kept, end in steps:
        for name, x in ordinary.items():
            assert torch.equal(kept[name], x)
            assert torch.equal(end[name], x)
            same = torch.equal(compared[name], x)
            assert same or name in method.positives
            replaced += not same
    assert replaced


def test_a_resumed_run_is_the_same(corpus, tmp_path):
    case = case_of("simclr")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(from_dict(settings(case, corpus, straight)))
    data = settings(case, corpus, resumed)
    for stop in (1, 2, 3):
        data["trainer"]["stop_at_epoch"] = stop
        train(from_dict(data))
    weights = [
        torch.load(run / "checkpoints" / "model_latest.pt", weights_only=True)
        for run in (straight, resumed)
    ]
    for part in ("model", "memories"):
        assert weights[0][part].keys() == weights[1][part].keys()
        for name, x in weights[0][part].items():
            assert torch.equal(x, weights[1][part][name]), name
    assert weights[0]["memories"]


def test_a_finished_base_run_fills_the_memories_in_one_pass(corpus, tmp_path):
    case = case_of("simclr")
    base = settings(case, corpus, tmp_path / "base")
    del base["method"]["ssps"]
    base["dataset"]["ssps"] = False
    base["trainer"]["epochs"] = 2
    train(from_dict(base))
    data = settings(case, corpus, tmp_path / "ssps", start_epoch=2)
    data["trainer"]["last_checkpoint"] = str(tmp_path / "base" / "checkpoints" / "model_latest.pt")
    trainer = build_trainer(from_dict(data))
    trainer.resume()
    weights = copy.deepcopy(trainer.method.state_dict())
    fill_memories(trainer)
    assert trainer.ssps
    assert trainer.ssps.memory
    seen = trainer.ssps.memory.filled
    assert seen.sum() == trainer.steps_per_epoch * 16
    assert all(torch.equal(x, weights[name]) for name, x in trainer.method.state_dict().items())

    train(from_dict(data))
    epochs = history(tmp_path / "ssps")
    assert list(epochs) == ["3"]
    assert epochs["3"]["train/ssps_coverage"] > 0.5


def test_a_checkpoint_of_another_list_is_refused(corpus, tmp_path):
    case = case_of("simclr")
    train(from_dict(settings(case, corpus, tmp_path / "one")))
    data = settings(case, corpus, tmp_path / "two")
    data["dataset"]["max_samples"] = 16
    data["trainer"]["epochs"] = 4
    data["trainer"]["last_checkpoint"] = str(tmp_path / "one" / "checkpoints" / "model_latest.pt")
    with pytest.raises(CheckpointError, match="it is of another training list"):
        train(from_dict(data))


def test_a_column_that_the_list_lacks_is_refused(corpus, tmp_path):
    data = settings(case_of("simclr"), corpus, tmp_path, metric_columns=["Video"])
    with pytest.raises(DataError, match=r"no column 'Video'.*metric_columns"):
        train(from_dict(data))
