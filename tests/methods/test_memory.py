"""The memory of rows against a dictionary, and its clusters against k-means of what is filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv import distributed
from sslsv.errors import DataError
from sslsv.methods.kmeans import spherical_kmeans
from sslsv.methods.memory import RowMemory, last_of_same

ROWS, DIM = 20, 4
NO, YES = torch.tensor(0.0), torch.tensor(1.0)  # frozen


def unit(n: int, seed: int = 0) -> Tensor:
    """Unit vectors."""
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, DIM, generator=random), dim=1)


def partly_filled(rows: list[int], seed: int = 0) -> RowMemory:
    memory = RowMemory(ROWS, DIM)
    memory.write(torch.tensor(rows), unit(len(rows), seed), NO)
    return memory


# ---------------------------------------------------------------------------- what is kept

_step = st.tuples(st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True), st.booleans())


@given(steps=st.lists(_step, min_size=1, max_size=8))
def test_what_was_written_last_is_kept_unless_frozen(steps):
    memory = RowMemory(ROWS, DIM)
    expected: dict[int, list[float]] = {}
    for number, (rows, frozen) in enumerate(steps):
        x = unit(len(rows), seed=number)
        memory.write(torch.tensor(rows), x, torch.tensor(float(frozen)))
        if not frozen:
            expected |= dict(zip(rows, x.half().tolist(), strict=True))
    assert memory.filled.nonzero().flatten().tolist() == sorted(expected)
    for row in range(ROWS):
        assert memory.values[row].tolist() == expected.get(row, [0.0] * DIM)


def test_what_is_not_finite_does_not_enter_a_frozen_memory():
    memory = partly_filled([3, 5])
    before = memory.values.clone()
    memory.write(torch.tensor([5, 7]), torch.full((2, DIM), torch.nan), YES)
    assert torch.equal(memory.values, before)
    assert memory.filled.nonzero().flatten().tolist() == [3, 5]


def test_it_is_written_where_it_lies():
    memory = RowMemory(ROWS, DIM)
    places = [x.data_ptr() for x in memory.buffers()]
    memory.write(torch.arange(4), unit(4), NO)
    assert [x.data_ptr() for x in memory.buffers()] == places


def test_numbers_have_16_bits():
    memory = partly_filled([1])
    assert (memory.values.shape, memory.values.dtype) == ((ROWS, DIM), torch.float16)
    torch.testing.assert_close(memory.values[1].float(), unit(1)[0], rtol=1e-3, atol=1e-4)


def test_no_gradient_is_kept():
    memory = RowMemory(ROWS, DIM)
    memory.write(torch.arange(4), unit(4).requires_grad_(), NO)
    assert not memory.values.requires_grad


def test_it_is_not_among_the_weights():
    memory = RowMemory(ROWS, DIM)
    assert not memory.state_dict()
    assert [name for name, _ in memory.named_buffers()] == ["values", "filled"]


# ---------------------------------------------------------------------------- clusters


@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=3, unique=True),
    iterations=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_clusters_are_those_of_the_rows_that_are_filled(rows, iterations, seed):
    memory, filled = partly_filled(rows, seed), sorted(rows)
    before = memory.values.clone()
    found = memory.cluster(3, iterations, seed)
    expected = spherical_kmeans(memory.values[filled], 3, iterations, seed)
    assert torch.equal(found.centroids, expected.centroids)
    assert torch.equal(found.cluster[filled], expected.assignments)
    assert torch.equal(found.cosine[filled], expected.cosines)
    assert torch.equal(found.similarity, expected.similarity)
    others = [row for row in range(ROWS) if row not in rows]
    assert found.cluster[others].tolist() == [-1] * len(others)
    assert found.cosine[others].tolist() == [-2] * len(others)
    assert torch.equal(memory.values, before)


def test_clusters_are_consistent():
    memory = partly_filled([2, 3, 5, 7, 11, 13, 17, 19])
    found = memory.cluster(3, 5, seed=0)
    assert (found.cluster.dtype, found.cosine.dtype) == (torch.int64, torch.float32)
    np.testing.assert_allclose(found.centroids.norm(dim=1), 1, rtol=1e-6)
    cosines = []
    for row in memory.filled.nonzero().flatten().tolist():
        its = [float(memory.values[row].double() @ c.double()) for c in found.centroids]
        assert found.cluster[row] == int(np.argmax(its))
        assert found.cosine[row].item() == pytest.approx(max(its), abs=1e-6)
        cosines.append(max(its))
    assert found.similarity.item() == pytest.approx(np.mean(cosines), abs=1e-6)


def test_rows_of_one_direction_are_one_cluster():
    memory = RowMemory(ROWS, DIM)
    rows = torch.arange(1, ROWS)
    memory.write(rows, torch.eye(DIM)[rows % 3], NO)
    found = memory.cluster(3, 10, seed=1)
    assert found.similarity.item() == pytest.approx(1)
    groups = [set(found.cluster[rows[rows % 3 == i]].tolist()) for i in range(3)]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert set.union(*groups) == {0, 1, 2}


def test_seed_decides():
    memory = partly_filled(list(range(ROWS)))
    first, second = (memory.cluster(5, 1, seed=4) for _ in range(2))
    assert torch.equal(first.centroids, second.centroids)
    assert not torch.equal(first.centroids, memory.cluster(5, 1, seed=5).centroids)


def test_fewer_rows_than_clusters_are_refused_whatever_the_number_of_rows_in_all():
    memory = partly_filled([1, 2, 3])
    with pytest.raises(DataError, match="4 clusters cannot be made of 3 rows"):
        memory.cluster(4, 3, seed=0)
    memory.cluster(3, 3, seed=0)


# ---------------------------------------------------------------------------- two processes

BATCHES = [[4, 0, 19, 7], [3, 7, 12, 9], [1, 17, 4, 18]]  # of both processes together
CLUSTERS = [2, 7, 10]  # the last one: as many as there are rows


def train(rank: int, world: int) -> dict[str, Any]:
    """What three batches leave, of which the last is frozen, and its clusters."""
    memory = RowMemory(ROWS, DIM)
    for number, batch in enumerate([*BATCHES, [2, 5, 6, 8]]):
        rows = torch.tensor(batch).chunk(world)[rank]
        x = unit(len(batch), seed=number).chunk(world)[rank]
        memory.write(rows, x, YES if number == len(BATCHES) else NO)
    alone = RowMemory(ROWS, DIM)  # one row, of which the second process has no share
    alone.write(torch.tensor([6, 6]).chunk(world)[rank], unit(1).repeat(2 // world, 1), NO)
    return {
        "values": memory.values,
        "filled": memory.filled,
        **{f"{count} clusters": tuple(memory.cluster(count, 4, seed=3)) for count in CLUSTERS},
        "one row": tuple(alone.cluster(1, 2, seed=0)),
    }


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(train(rank, 2), folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (folder,), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["values", "filled"])
def test_each_process_keeps_the_rows_of_both(found, name):
    expected = train(0, 1)[name]
    assert expected.any()
    for result in found:
        assert torch.equal(result[name], expected)


@pytest.mark.parametrize("name", [*(f"{count} clusters" for count in CLUSTERS), "one row"])
def test_two_processes_find_the_clusters_of_one(found, name):
    """Each has a share of the filled rows, and both know the result for all."""
    centroids, cluster, cosine, similarity = train(0, 1)[name]
    assert (cluster < 0).any()
    for result in found:
        torch.testing.assert_close(result[name][0], centroids, rtol=1e-5, atol=1e-6)
        assert torch.equal(result[name][1], cluster)
        torch.testing.assert_close(result[name][2], cosine, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result[name][3], similarity)
    assert torch.equal(found[0][name][0], found[1][name][0])
    assert torch.equal(found[0][name][2], found[1][name][2])


def test_of_rows_that_stand_twice_in_a_batch_the_last_counts():
    rows = torch.tensor([4, 2, 4, 0, 2, 2])
    assert last_of_same(rows).tolist() == [2, 5, 2, 3, 5, 5]
    memory = RowMemory(6, 1)
    memory.write(rows, torch.arange(6.0)[:, None], torch.zeros(()))
    assert memory.values.flatten().tolist() == [3, 0, 5, 0, 2, 0]
