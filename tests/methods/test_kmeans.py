"""Spherical k-means: against scikit-learn's objective, by hand, and over two processes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from sslsv import distributed
from sslsv.errors import DataError
from sslsv.methods import kmeans
from sslsv.methods.kmeans import Clusters, assign, spherical_kmeans


def rows(n: int, dim: int = 8, seed: int = 0, centres: int = 0, noise: float = 0.3) -> Tensor:
    """Unit vectors, evenly or around ``centres`` directions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim))
    if centres:
        x = rng.standard_normal((centres, dim))[np.arange(n) % centres] + noise * x
    return F.normalize(torch.from_numpy(x).float(), dim=1)


def objective(x: Tensor, assignments: np.ndarray) -> float:
    """Mean cosine with the best unit centroids for these assignments: the length of each sum."""
    data = x.double().numpy()
    sums = [data[assignments == k].sum(axis=0) for k in set(assignments.tolist())]
    return float(sum(np.linalg.norm(s) for s in sums)) / len(data)


def test_well_separated_directions_are_found():
    x = rows(300, centres=6, noise=0.05)
    runs = [spherical_kmeans(x, 6, iterations=20, seed=seed) for seed in range(20)]
    found = max(runs, key=lambda run: run.similarity.item())  # some end in a local optimum
    labels = np.arange(300) % 6
    together = found.assignments.numpy()[:, None] == found.assignments.numpy()
    assert (together == (labels[:, None] == labels)).all()


@pytest.mark.parametrize("centres", [0, 12])
def test_objective_is_that_of_scikit_learn(centres):
    x = rows(2000, dim=16, centres=centres)
    theirs = KMeans(12, init="random", n_init=1, random_state=0).fit_predict(x.numpy())
    ours = [spherical_kmeans(x, 12, 50, seed).similarity.item() for seed in range(5)]
    assert np.mean(ours) > 0.97 * objective(x, theirs)


@given(seed=st.integers(0, 50), n=st.integers(5, 40), count=st.integers(1, 5))
def test_result_is_consistent(seed, n, count):
    x = rows(n, dim=3, seed=seed)
    found = spherical_kmeans(x, count, iterations=4, seed=seed)
    cosines = np.array([[float(a @ b) for b in found.centroids] for a in x])
    best = cosines.max(axis=1)
    np.testing.assert_allclose(cosines[np.arange(n), found.assignments], best, atol=1e-6)
    assert found.similarity.item() == pytest.approx(best.mean(), abs=1e-6)
    np.testing.assert_allclose(found.centroids.norm(dim=1), 1, atol=1e-5)


def test_an_iteration_is_the_textbooks():
    """From the same start: nearest centroid, then the direction of each cluster's sum."""
    x = rows(60, dim=4, seed=2)
    before = spherical_kmeans(x, 5, iterations=3, seed=3).centroids.numpy()
    after = spherical_kmeans(x, 5, iterations=4, seed=3).centroids
    nearest = [int(np.argmax([a @ b for b in before])) for a in x.numpy()]
    for k in range(5):
        total = sum(row for row, its in zip(x.numpy(), nearest, strict=True) if its == k)
        np.testing.assert_allclose(after[k], total / np.linalg.norm(total), atol=1e-5)


def test_objective_never_falls():
    x = rows(500, seed=4)
    values = [spherical_kmeans(x, 20, i, seed=5).similarity.item() for i in range(8)]
    assert all(b >= a - 1e-6 for a, b in pairwise(values))
    assert values[-1] > values[0] + 0.05


def test_an_empty_cluster_starts_anew_from_the_row_that_fits_worst():
    """All seeds in one bundle leave the lone row to whatever becomes empty."""
    bundle = torch.eye(4)[0].repeat(30, 1)
    lone = torch.eye(4)[1:2]
    x = torch.cat((bundle, lone))
    for seed in range(5):
        found = spherical_kmeans(x, 2, iterations=3, seed=seed)
        assert found.similarity.item() == pytest.approx(1)
        assert found.assignments[-1] not in found.assignments[:-1]


def test_every_cluster_has_rows_where_there_are_enough():
    x = rows(400, dim=3, seed=7)
    found = spherical_kmeans(x, 60, iterations=10, seed=0)
    assert len(set(found.assignments.tolist())) == 60


def test_seed_decides():
    x = rows(200)
    same = [spherical_kmeans(x, 8, 3, seed=4) for _ in range(2)]
    assert torch.equal(same[0].centroids, same[1].centroids)
    assert not torch.equal(same[0].centroids, spherical_kmeans(x, 8, 3, seed=5).centroids)


def test_chunks_change_nothing(monkeypatch):
    x = rows(100)
    whole = spherical_kmeans(x, 7, 3)
    monkeypatch.setattr(kmeans, "CHUNK_BYTES", 4 * 7 * 9)  # nine rows at a time
    parts = spherical_kmeans(x, 7, 3)
    torch.testing.assert_close(parts.centroids, whole.centroids)
    assert torch.equal(parts.assignments, whole.assignments)
    assert [len(t) for t in assign(x, whole.centroids)] == [100, 100]


def test_rows_in_half_precision_are_taken():
    x = rows(100).half()
    assert spherical_kmeans(x, 5, 3).centroids.dtype == torch.float32


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(DataError, match="6 clusters cannot be made of 5 rows"):
        spherical_kmeans(rows(5), 6)


SPLIT = 130  # rows of the first process, of 200


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    mine = rows(200)[slice(SPLIT) if rank == 0 else slice(SPLIT, None)]
    found = {count: tuple(spherical_kmeans(mine, count, 5, seed=2)) for count in (7, 150)}
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    """150 clusters leave some empty, which take rows of either process."""
    torch.multiprocessing.spawn(work, (tmp_path,), 2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for count in (7, 150):
        alone = spherical_kmeans(rows(200), count, 5, seed=2)
        first, second = (Clusters(*part[count]) for part in found)
        torch.testing.assert_close(first.centroids, alone.centroids, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(second.centroids, alone.centroids, rtol=1e-5, atol=1e-6)
        joined = torch.cat((first.assignments, second.assignments))
        assert torch.equal(joined, alone.assignments)
        torch.testing.assert_close(first.similarity, alone.similarity)
