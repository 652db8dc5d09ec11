"""Batches ahead of a step: all of them, in order, on the device."""

from __future__ import annotations

import pytest
import torch

from sslsv.datasets.augmentation import Recipe
from sslsv.datasets.views import Batch
from sslsv.trainer.prefetch import ahead

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def make(i: int) -> Batch:
    rows = torch.arange(4) + 10 * i
    recipe = Recipe(
        rirs=torch.full((1, 8), float(i)),
        rir_rows=torch.zeros(1, dtype=torch.long),
        noises=torch.full((1, 2000), i, dtype=torch.int16),
        noise_rows=torch.zeros(1, dtype=torch.long),
        snr_db=torch.tensor([float(i)]),
    )
    views = [torch.full((4, 2000), float(i)), torch.full((4, 1000), -float(i))]
    return Batch(rows, rows + 1, views, recipes=[recipe, None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_all_in_order_on_the_device(device: str, count: int) -> None:
    found = list(ahead([make(i) for i in range(count)], torch.device(device)))
    assert len(found) == count
    for i, batch in enumerate(found):
        expected = make(i)
        assert {x.device.type for x in batch.on_device()} == {device}
        assert batch.rows.device.type == "cpu"
        for a, b in zip(batch.on_device(), expected.on_device(), strict=True):
            torch.testing.assert_close(a.cpu(), b)
        assert batch.recipes is not None
        assert batch.recipes[1] is None


def test_what_is_copied_is_labels_views_and_recipes() -> None:
    batch = make(3)
    assert len(batch.on_device()) == 1 + 2 + 5
    assert len(Batch(batch.rows, batch.labels, batch.views).on_device()) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_in_use_is_not_copied_over() -> None:
    """A slow step reads its batch while the next ones are copied."""
    device = torch.device("cuda")
    batches = [make(i).pin_memory() for i in range(6)]
    sums = []
    for batch in ahead(batches, device):
        torch.cuda._sleep(50_000_000)
        sums.append(batch.views[0].sum())
        del batch
    torch.testing.assert_close(
        torch.stack(sums).cpu(), torch.tensor([8000.0 * i for i in range(6)])
    )
