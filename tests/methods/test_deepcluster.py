"""DeepCluster against cross-entropy term by term, its clusters, and a training that is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import ROWS, Case, Tiny
from hypothesis import given
from hypothesis import strategies as st
from test_learning import settings
from torch import Tensor

from sslsv import distributed
from sslsv.config import from_dict
from sslsv.datasets.views import Batch
from sslsv.errors import ConfigError
from sslsv.experiment import train
from sslsv.methods.base import Outputs, Progress
from sslsv.methods.deepcluster import DeepCluster, DeepClusterConfig, assignment_loss
from sslsv.trainer import checkpoint

SEEDS = st.integers(0, 1000)
DIM, COUNTS = 5, [3, 4, 2]  # of an embedding; prototypes of each set
SMALL = {
    "projector_hidden_dim": 12,
    "projector_output_dim": DIM,
    "nb_prototypes": COUNTS,
    "kmeans_nb_iters": 20,
}
MEMORIES = {
    "memory1.values",
    "memory1.filled",
    "memory2.values",
    "memory2.filled",
    "assignments",
}
GOING, FROZEN = torch.tensor(0.0), torch.tensor(1.0)


def make_method(rows: int = 10, **fields: Any) -> DeepCluster:
    """Before its first epoch; the same weights each time."""
    torch.manual_seed(1)
    method = DeepCluster(Case("deepcluster", SMALL | fields).config(), Tiny())
    method.on_data(rows)
    return method


def weights(method: DeepCluster) -> list[Tensor]:
    """Prototypes of each set."""
    state = method.state_dict()  # whose tensors are those of the method
    return [state[f"prototypes.{k}.weight"] for k in range(len(method.prototypes))]


def at(epoch: int, seed: int = 0) -> Progress:
    return Progress(10 * epoch, 100, epoch, 10, seed)


def batch_of(rows: list[int] | Tensor) -> Batch:
    rows = torch.as_tensor(rows)
    return Batch(rows, torch.zeros_like(rows), [])


def unit_rows(n: int, dim: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=random, dtype=torch.float64), dim=1)


def draw(seed: int, n: int = 4) -> Outputs:
    """What forward gives."""
    return {"z1": unit_rows(n, DIM, 2 * seed), "z2": unit_rows(n, DIM, 2 * seed + 1)}


def fill(method: DeepCluster, outputs: Outputs, rows: list[int], frozen: Tensor = GOING) -> None:
    method.on_step_end(outputs, batch_of(rows), frozen)


def naive_terms(
    z: list[list[float]], prototypes: list[list[float]], targets: list[int], temperature: float
) -> list[float]:
    """Cross-entropy of each row that has a cluster."""
    terms = []
    for row, target in zip(z, targets, strict=True):
        logits = [sum(a * b for a, b in zip(row, c, strict=True)) / temperature for c in prototypes]
        if target != -1:
            total = sum(math.exp(x) for x in logits)
            terms.append(-math.log(math.exp(logits[target]) / total))
    return terms


def mean(terms: list[float]) -> float:
    return sum(terms) / len(terms) if terms else 0.0


# ---------------------------------------------------------------------------- the loss


@given(
    seed=SEEDS,
    targets=st.lists(st.integers(-1, 3), min_size=1, max_size=8),
    temperature=st.floats(0.05, 2),
)
def test_loss_of_one_set_is_a_mean_over_rows_that_have_a_cluster(seed, targets, temperature):
    z, prototypes = unit_rows(len(targets), DIM, seed), unit_rows(4, DIM, seed + 1)
    found = assignment_loss(z, prototypes, torch.tensor(targets), temperature)
    expected = mean(naive_terms(z.tolist(), prototypes.tolist(), targets, temperature))
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def assign_at_random(method: DeepCluster, seed: int) -> None:
    """Some rows of each set have no cluster."""
    rng = np.random.default_rng(seed)
    for k, weight in enumerate(weights(method)):
        drawn = rng.integers(-1, len(weight), method.assignments.shape[1])
        method.assignments[k] = torch.from_numpy(drawn)
        weight.copy_(unit_rows(len(weight), DIM, seed + k))


def oracle(method: DeepCluster, outputs: Outputs, rows: list[int]) -> float:
    """Mean over sets of prototypes and over views, each a mean over rows that have a cluster."""
    losses = []
    for k, weight in enumerate(weights(method)):
        targets = [method.assignments[k].tolist()[row] for row in rows]
        for z in (outputs["z1"], outputs["z2"]):
            terms = naive_terms(z.tolist(), weight.tolist(), targets, method.config.temperature)
            losses.append(mean(terms))
    return mean(losses)


@given(
    seed=SEEDS,
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True),
    temperature=st.floats(0.05, 2),
)
def test_loss_of_the_method_equals_the_loops(seed, rows, temperature):
    method = make_method(temperature=temperature).double()
    assign_at_random(method, seed)
    outputs = draw(seed, len(rows))
    loss, metrics = method.loss(outputs, batch_of(rows))
    assert loss.item() == pytest.approx(oracle(method, outputs, rows), rel=1e-9, abs=1e-12)
    assert metrics == {"train/loss": loss}


def test_loss_of_the_method_equals_the_loops_in_float32():
    method, rows = make_method(), [7, 0, 3, 9]
    assign_at_random(method, 0)
    outputs = {name: z.float() for name, z in draw(0).items()}
    loss, _ = method.loss(outputs, batch_of(rows))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(method, outputs, rows), rel=1e-5)


def test_gradient():
    method = make_method(temperature=0.3).double()
    assign_at_random(method, 1)
    outputs = draw(1)

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        return method.loss({"z1": z1, "z2": z2}, batch_of([1, 4, 6, 8]))[0]

    assert torch.autograd.gradcheck(loss, tuple(z.requires_grad_() for z in outputs.values()))


def test_rows_without_a_cluster_get_no_gradient():
    z = unit_rows(4, DIM, 0).requires_grad_()
    targets = torch.tensor([1, -1, 0, -1])
    assignment_loss(z, unit_rows(3, DIM, 1), targets, 0.1).backward()
    assert z.grad is not None
    assert z.grad.any(dim=1).tolist() == [True, False, True, False]


def test_without_any_cluster_the_loss_is_0_and_its_gradient_finite():
    method, outputs = make_method().double(), draw(0)
    assert (method.assignments == -1).all()  # as they begin
    loss, _ = method.loss({k: z.requires_grad_() for k, z in outputs.items()}, batch_of([0] * 4))
    loss.backward()
    assert loss.item() == 0
    for z in outputs.values():
        assert z.grad is not None
        assert not z.grad.any()


@pytest.mark.parametrize("temperature", [0.1, 1])
def test_loss_of_rows_that_lie_on_their_centroids(temperature):
    z, targets = torch.eye(DIM, dtype=torch.float64), torch.arange(DIM)
    expected = math.log(1 + (DIM - 1) * math.exp(-1 / temperature))
    found = assignment_loss(z, torch.eye(DIM, dtype=torch.float64), targets, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_outputs_are_unit_vectors_of_each_view():
    method, views = make_method().eval(), Case("deepcluster").batch().views
    outputs = method(views)
    for name, view in zip(("z1", "z2"), views, strict=True):
        z = method.projector(method.encoder(view))
        expected = z / z.square().sum(dim=1, keepdim=True).sqrt()
        torch.testing.assert_close(outputs[name], expected)


# ---------------------------------------------------------------------------- clusters


def test_a_set_uses_the_memory_of_its_own_view():
    """First views are alike in threes, second ones by parity: even sets find the former."""
    method = make_method(nb_prototypes=[2, 2, 2, 2])
    rows = torch.arange(10)
    first, second = (rows >= 3).long(), rows % 2
    axes = torch.eye(DIM)
    fill(method, {"z1": axes[first], "z2": axes[2 + second]}, rows.tolist())
    method.on_epoch_start()
    for k, labels in enumerate((first, second, first, second)):
        found = method.assignments[k]
        assert torch.equal(found[:, None] == found, labels[:, None] == labels)
        used = {tuple(row) for row in weights(method)[k].tolist()}
        assert used == {tuple(row) for row in axes[[0, 1] if k % 2 == 0 else [2, 3]].tolist()}


def test_prototypes_are_the_centroids_of_rows_that_are_assigned_to_them():
    method = make_method(rows=30)
    fill(method, draw(3, 24), list(range(24)))
    method.on_epoch_start()
    for k, weight in enumerate(weights(method)):
        values = (method.memory1, method.memory2)[k % 2].values
        its = method.assignments[k].tolist()
        assert its[24:] == [-1] * 6  # never seen
        assert set(its[:24]) == set(range(COUNTS[k]))
        for row in range(24):
            assert its[row] == int(np.argmax([float(values[row].float() @ c) for c in weight]))
        for j, centroid in enumerate(weight):
            own = [values[row].double() for row in range(24) if its[row] == j]
            total = torch.stack(own).sum(dim=0)
            expected = (total / total.norm()).float()
            torch.testing.assert_close(centroid, expected, rtol=1e-5, atol=1e-6)


def test_rows_that_were_never_seen_do_not_count():
    method = make_method().double()
    fill(method, draw(0, 6), [0, 2, 4, 6, 8, 9])
    method.on_epoch_start()
    outputs = draw(1)
    known = {name: z[[0, 2]] for name, z in outputs.items()}
    loss, _ = method.loss(outputs, batch_of([4, 1, 9, 7]))
    torch.testing.assert_close(loss, method.loss(known, batch_of([4, 9]))[0])
    assert loss > 0


def test_prototypes_carry_no_gradient_and_are_not_trained():
    case, method = Case("deepcluster", SMALL), make_method(rows=ROWS)
    batch = case.batch()
    method.observe(batch)
    method.on_epoch_start()
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    loss, _ = method.loss(method(batch.views), batch)
    assert loss > 0
    loss.backward()
    untouched = {name for name, p in method.named_parameters() if p.grad is None}
    assert untouched == {f"prototypes.{k}.weight" for k in range(3)}
    assert untouched == {name for name, p in method.named_parameters() if id(p) not in trained}
    assert not any(weight.requires_grad for weight in method.prototypes.parameters())


def test_prototypes_keep_their_names():
    state = make_method().state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items() if name.startswith("prototypes")}
    assert shapes == {f"prototypes.{k}.weight": (n, DIM) for k, n in enumerate(COUNTS)}


def clusters(method: DeepCluster, progress: Progress) -> list[Tensor]:
    """Assignments and the prototypes of each set, at the start of an epoch."""
    method.progress = progress
    method.on_epoch_start()
    return [method.assignments.clone(), *(weight.clone() for weight in weights(method))]


def test_clusters_are_drawn_anew_by_seed_epoch_and_set():
    method = make_method(rows=60, nb_prototypes=[8, 8, 8], kmeans_nb_iters=1)
    z = unit_rows(60, DIM, 0).float()
    fill(method, {"z1": z, "z2": z}, list(range(60)))
    expected = clusters(method, at(3, seed=1))
    for progress in (at(4, seed=1), at(3, seed=2)):
        for x, y in zip(expected, clusters(method, progress), strict=True):
            assert not torch.equal(x, y)
    for x, y in zip(expected, clusters(method, at(3, seed=1)), strict=True):
        assert torch.equal(x, y)
    first, second, third = expected[1:]
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)  # although of the same memory


# ---------------------------------------------------------------------------- the memory


def test_a_pass_is_wanted_until_something_was_observed():
    case, method = Case("deepcluster", SMALL), make_method(rows=ROWS)
    assert method.wants_pass()
    method.observe(case.batch())
    assert not method.wants_pass()


def test_observing_keeps_embeddings_and_trains_nothing():
    case, method = Case("deepcluster", SMALL), make_method(rows=ROWS + 2).eval()
    batch = case.batch()
    batch.rows = torch.tensor([9, 0, 3, 1, 4, 2, 6, 5])
    weights = {name: x.clone() for name, x in method.state_dict().items()}
    method.observe(batch)
    outputs = method(batch.views)
    for memory, z in ((method.memory1, outputs["z1"]), (method.memory2, outputs["z2"])):
        assert torch.equal(memory.values[batch.rows], z.half())
        assert memory.filled.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert (method.assignments == -1).all()
    assert all(torch.equal(x, weights[name]) for name, x in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_each_step_replaces_the_embeddings_of_its_rows_unless_frozen():
    method = make_method()
    fill(method, draw(0), [0, 1, 2, 3])
    fill(method, draw(1), [3, 5, 7, 9])
    fill(method, {name: z * math.nan for name, z in draw(2).items()}, [3, 4, 5, 6], FROZEN)
    for memory, name in ((method.memory1, "z1"), (method.memory2, "z2")):
        before, after = draw(0)[name].half(), draw(1)[name].half()
        assert torch.equal(memory.values[[0, 1, 2, 3, 5, 7, 9]], torch.cat((before[:3], after)))
        assert not memory.filled[[4, 6, 8]].any()


def test_memories_are_what_a_restart_needs_beside_the_weights():
    method = make_method()
    for step in range(4):
        fill(method, draw(step), [step, step + 2, step + 4, step + 6])
    clusters(method, at(1))
    other = make_method()
    other.load_state_dict(method.state_dict())
    saved = {name: x.clone() for name, x in method.memories().items()}
    assert saved.keys() == MEMORIES
    checkpoint.load_memories(other.memories(), saved, Path("model_latest.pt"))
    assert not other.wants_pass()
    outputs, batch = {name: z.float() for name, z in draw(9).items()}, batch_of([0, 3, 6, 9])
    assert torch.equal(other.loss(outputs, batch)[0], method.loss(outputs, batch)[0])
    for x, y in zip(clusters(other, at(2)), clusters(method, at(2)), strict=True):
        assert torch.equal(x, y)


def test_memories_are_not_among_the_weights():
    method = make_method()
    assert not [name for name in method.state_dict() if "memory" in name or "assign" in name]
    shapes = {name: tuple(x.shape) for name, x in method.memories().items()}
    assert shapes.keys() == MEMORIES
    assert shapes["memory1.values"] == shapes["memory2.values"] == (10, DIM)
    assert shapes["assignments"] == (3, 10)


def test_memories_are_empty_before_the_training_list_is_known():
    config = Case("deepcluster", SMALL).config()
    assert DeepCluster(config, Tiny()).memories() == {}


def test_more_clusters_than_rows_are_refused():
    method = make_method(nb_prototypes=[3, 7, 5])
    message = "method.nb_prototypes: 7 clusters cannot be made of the 6 rows of dataset.train"
    with pytest.raises(ConfigError, match=message):
        method.on_data(6)
    method.on_data(7)


@pytest.mark.parametrize("counts", [[], [3, 0], [-1]])
def test_each_set_must_have_clusters(counts):
    with pytest.raises(ConfigError, match="nb_prototypes: give the number of clusters"):
        DeepClusterConfig(type="deepcluster", nb_prototypes=counts)


@pytest.mark.parametrize("field", ["temperature", "kmeans_nb_iters"])
@pytest.mark.parametrize("value", [0, -1])
def test_fields_must_be_positive(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got {value}"):
        DeepClusterConfig(type="deepcluster", **{field: value})


def test_defaults_are_those_of_the_reference():
    config = DeepClusterConfig(type="deepcluster")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (2048, 128)
    assert (config.temperature, config.kmeans_nb_iters) == (0.1, 10)
    assert (config.nb_prototypes, config.enable_projector) == ([3000] * 3, True)


# ---------------------------------------------------------------------------- two processes

TARGETS = {  # of eight rows, the first four in the first process
    "more in one": [0, 1, 2, 0, -1, -1, 2, -1],
    "all in one": [0, 1, -1, 0, -1, -1, -1, -1],
    "in none": [-1] * 8,
}


def loss_and_gradient(targets: list[int], own: slice) -> tuple[Tensor, Tensor]:
    z = unit_rows(8, DIM, 0)[own].requires_grad_()
    loss = assignment_loss(z, unit_rows(3, DIM, 1), torch.tensor(targets)[own], 0.2)
    loss.backward()
    assert z.grad is not None
    return loss.detach(), z.grad


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    own = slice(4) if rank == 0 else slice(4, 8)
    found = {name: loss_and_gradient(targets, own) for name, targets in TARGETS.items()}
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


def test_rows_count_alike_whichever_process_has_them(tmp_path):
    """The mean of both losses, and of their gradients, is that of one process with all rows."""
    torch.multiprocessing.spawn(work, (tmp_path,), 2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, targets in TARGETS.items():
        (loss1, gradient1), (loss2, gradient2) = (part[name] for part in found)
        loss, gradient = loss_and_gradient(targets, slice(8))
        torch.testing.assert_close((loss1 + loss2) / 2, loss, rtol=1e-9, atol=1e-12)
        joined = torch.cat((gradient1, gradient2)) / 2
        torch.testing.assert_close(joined, gradient, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------- a whole training


def run(corpus: Path, run_dir: Path, stop_at_epoch: int | None = None) -> dict[str, Any]:
    """Three epochs, each of 24 of the 32 rows, or the first of them; gives the checkpoint."""
    data = settings(Case("deepcluster", SMALL), corpus, run_dir)
    data["trainer"] |= {"epochs": 3, "batch_size": 12, "stop_at_epoch": stop_at_epoch}
    train(from_dict(data))
    return checkpoint.load(checkpoint.checkpoint_path(run_dir, "latest"))


def test_the_first_epoch_trains_and_a_training_that_is_resumed_ends_the_same(corpus, tmp_path):
    straight = run(corpus, tmp_path / "straight")
    history = json.loads((tmp_path / "straight" / "training.json").read_text())
    losses = [epoch["train/loss"] for epoch in history.values()]
    assert len(losses) == 3
    assert all(0.1 < loss < math.inf for loss in losses)

    half = run(corpus, tmp_path / "parts", stop_at_epoch=2)
    assert half["epoch"] == 2
    resumed = run(corpus, tmp_path / "parts")
    assert resumed["epoch"] == straight["epoch"] == 3
    assert straight["memories"].keys() == MEMORIES
    assert straight["memories"]["memory1.filled"].sum() > 24
    for kept in ("model", "memories"):
        assert resumed[kept].keys() == straight[kept].keys()
        for name, x in straight[kept].items():
            assert torch.equal(resumed[kept][name], x), name
    last = half["model"]
    moved = {name for name, x in straight["model"].items() if not torch.equal(last[name], x)}
    assert {"encoder", "projector", "prototypes"} <= {name.partition(".")[0] for name in moved}
