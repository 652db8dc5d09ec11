"""Sinkhorn-Knopp against the textbook's iteration on the exponentials themselves, in float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv import distributed
from sslsv.methods.sinkhorn import sinkhorn

SEEDS = st.integers(0, 1000)


def draw(n: int, k: int, seed: int = 0) -> Tensor:
    """Cosines of ``n`` rows with ``k`` prototypes, some of which are nearer to all rows."""
    rng = np.random.default_rng(seed)
    scores = 0.5 * rng.uniform(-1, 1, (n, k)) + 0.5 * rng.uniform(-1, 1, (1, k))
    return torch.from_numpy(scores)


def textbook(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Algorithm 1 of arXiv 1306.0895 as it stands: shares of prototypes to 1 / K, then shares of
    samples to 1 / N; each row of the result is brought to a sum of 1."""
    q = np.exp(scores.double().numpy() / epsilon)
    n, k = q.shape
    for _ in range(iterations):
        for j in range(k):
            q[:, j] /= q[:, j].sum() * k
        for i in range(n):
            q[i] /= q[i].sum() * n
    return torch.from_numpy(q * n)


def assert_close(found: Tensor, expected: Tensor, rtol: float) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=rtol * 1e-3)


@given(
    seed=SEEDS,
    n=st.integers(1, 12),
    k=st.integers(1, 8),
    epsilon=st.floats(0.02, 2),
    iterations=st.integers(1, 6),
)
def test_codes_equal_the_textbook(seed, n, k, epsilon, iterations):
    scores = draw(n, k, seed)
    before = scores.clone()
    found = sinkhorn(scores, epsilon, iterations)
    assert found.dtype == torch.float64
    assert_close(found, textbook(scores, epsilon, iterations), 1e-9)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("epsilon", [0.05, 1])
def test_codes_equal_the_textbook_in_float32(epsilon):
    scores = draw(64, 10).float()
    found = sinkhorn(scores, epsilon, 3)
    assert found.dtype == torch.float32
    assert_close(found, textbook(scores, epsilon, 3), 2e-5)


def test_scores_in_bfloat16_are_computed_with_in_float32():
    scores = draw(64, 10).bfloat16()
    found = sinkhorn(scores, 0.05, 3)
    assert found.dtype == torch.float32
    assert_close(found, textbook(scores, 0.05, 3), 2e-5)


@given(seed=SEEDS, n=st.integers(1, 30), k=st.integers(1, 20), iterations=st.integers(1, 4))
def test_each_row_is_a_distribution_after_any_number_of_iterations(seed, n, k, iterations):
    scores = draw(n, k, seed)
    for x, error in ((scores, 1e-12), (scores.float(), 2e-6)):
        found = sinkhorn(x, 0.05, iterations)
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(dim=1), 1, rtol=error)


@given(seed=SEEDS, n=st.integers(2, 20), k=st.integers(2, 10))
def test_prototypes_get_equal_shares_with_many_iterations(seed, n, k):
    scores = draw(n, k, seed)
    np.testing.assert_allclose(sinkhorn(scores, 0.3, 500).sum(dim=0), n / k, rtol=1e-9)


def test_few_iterations_leave_shares_unequal_but_less_so_each_time():
    scores = draw(40, 6)
    spread = [np.ptp(sinkhorn(scores, 0.05, i).sum(dim=0).numpy()) for i in (1, 2, 4, 8)]
    assert all(later < earlier for earlier, later in pairwise(spread))
    assert spread[0] > 0.1


def test_rows_that_are_alike_are_spread_over_all_prototypes():
    scores = torch.tensor([[0.9, 0.1, -0.5, 0.3]]).repeat(8, 1)  # softmax would choose the first
    torch.testing.assert_close(sinkhorn(scores, 0.05, 1), torch.full((8, 4), 0.25))


def test_rows_that_each_have_a_prototype_of_their_own_keep_it():
    torch.testing.assert_close(
        sinkhorn(torch.eye(5)[[3, 0, 4, 1, 2]], 0.02, 3), torch.eye(5)[[3, 0, 4, 1, 2]]
    )


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("offset", [64, -64])
def test_scores_whose_exponential_is_not_finite_are_taken(dtype, rtol, offset):
    """What all scores have in common cancels."""
    scores = (draw(12, 5) * 64).round() / 64  # exact in float32, with the offset too
    moved = (scores + offset).to(dtype)
    epsilon = 1 / 16
    assert not (moved / epsilon).exp().log().isfinite().any()  # overflows, or is 0
    assert_close(sinkhorn(moved, epsilon, 3), textbook(scores, epsilon, 3), rtol)


def test_scores_far_apart_give_finite_codes():
    scores = torch.tensor([[500.0, -500.0, 0.0], [-500.0, 500.0, 0.0], [0.0, 0.0, 500.0]])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        torch.testing.assert_close(
            sinkhorn(scores.to(dtype), 0.05, 3), torch.eye(3), check_dtype=False
        )


def test_no_gradient_flows_through_codes():
    assert not sinkhorn(draw(4, 3).requires_grad_(), 0.05, 3).requires_grad


# ---------------------------------------------------------------------------- rows left out


@given(
    seed=SEEDS,
    valid=st.lists(st.booleans(), min_size=1, max_size=12).filter(any),
    iterations=st.integers(1, 4),
)
def test_rows_that_are_not_valid_do_not_count(seed, valid, iterations):
    scores, mask = draw(len(valid), 5, seed), torch.tensor(valid)
    found = sinkhorn(scores, 0.05, iterations, mask)[mask]
    assert_close(found, sinkhorn(scores[mask], 0.05, iterations), 1e-12)
    assert_close(found, textbook(scores[mask], 0.05, iterations), 1e-9)


@pytest.mark.parametrize("content", [0.0, 1e30, torch.inf, -torch.inf, torch.nan])
def test_it_does_not_matter_what_is_in_rows_that_do_not_count(content):
    mask = torch.arange(9) % 3 != 1
    scores, other = draw(9, 4).float(), draw(9, 4).float()
    other[~mask] = content
    expected = sinkhorn(scores, 0.05, 3, mask)
    assert torch.equal(sinkhorn(other, 0.05, 3, mask)[mask], expected[mask])


def test_a_mask_of_valid_rows_only_changes_nothing():
    scores = draw(9, 4)
    found = sinkhorn(scores, 0.05, 3, torch.ones(9, dtype=torch.bool))
    assert torch.equal(found, sinkhorn(scores, 0.05, 3))


# ---------------------------------------------------------------------------- two processes

SPLIT, ROWS = 5, 13  # rows of the first process, of both
MASKS = {
    "none": None,
    "some": [i % 3 != 1 for i in range(ROWS)],
    "second process": [i < SPLIT for i in range(ROWS)],  # has none that count
}
SCORES = {"cosines": 1.0, "large": 300.0}  # factor; exponentials of large ones overflow


def scores_and_mask(scale: float, mask: str) -> tuple[Tensor, Tensor | None]:
    valid = MASKS[mask]
    return draw(ROWS, 6) * scale, None if valid is None else torch.tensor(valid)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    own = slice(SPLIT) if rank == 0 else slice(SPLIT, None)
    found = {}
    for kind, scale in SCORES.items():
        for mask in MASKS:
            scores, valid = scores_and_mask(scale, mask)
            own_valid = None if valid is None else valid[own]
            found[kind, mask] = sinkhorn(scores[own], 0.05, 3, own_valid)
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (folder,), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", SCORES)
def test_two_processes_are_one(found, kind, mask):
    scores, valid = scores_and_mask(SCORES[kind], mask)
    counted = slice(None) if valid is None else valid
    joined = torch.cat([result[kind, mask] for result in found])[counted]
    assert joined.isfinite().all()
    assert_close(joined, sinkhorn(scores, 0.05, 3, valid)[counted], 1e-9)
    if kind == "cosines":
        assert_close(joined, textbook(scores[counted], 0.05, 3), 1e-9)
