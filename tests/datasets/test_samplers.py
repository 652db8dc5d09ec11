"""Which rows make up which batch, for any number of processes and from any point on."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslsv.datasets.samplers import Draw, ShuffledBatches
from sslsv.errors import ConfigError

Batches = list[list[Draw]]

ROWS = st.integers(8, 100)
BATCH = st.sampled_from([4, 8])
SEED = st.integers(0, 2**31)
EPOCH = st.integers(0, 1000)


def batches_of(epoch: int, sampler: ShuffledBatches, start: int = 0) -> Batches:
    sampler.set_epoch(epoch, start)
    return list(sampler)


@given(rows=ROWS, batch_size=BATCH, seed=SEED, epoch=EPOCH)
def test_an_epoch_is_a_permutation_without_its_tail(
    rows: int, batch_size: int, seed: int, epoch: int
) -> None:
    sampler = ShuffledBatches(rows, batch_size, seed)
    length = len(sampler)  # before anything is drawn
    batches = batches_of(epoch, sampler)
    assert len(batches) == length == rows // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    draws = list(chain.from_iterable(batches))
    assert {draw.epoch for draw in draws} == {epoch}
    used = {draw.row for draw in draws}
    assert len(used) == len(draws)
    assert used <= set(range(rows))


def test_order_and_tail_differ_between_epochs_and_seeds() -> None:
    orders = {
        tuple(
            draw.row for batch in batches_of(epoch, ShuffledBatches(50, 8, seed)) for draw in batch
        )
        for seed in (1, 2)
        for epoch in range(10)
    }
    assert len(orders) == 20
    assert len({frozenset(order) for order in orders}) == 20


def test_every_place_gets_every_row_equally_often() -> None:
    rows, epochs = 5, 4000
    sampler = ShuffledBatches(rows, rows, seed=3)
    counts = [[0] * rows for _ in range(rows)]
    for epoch in range(epochs):
        for place, draw in enumerate(batches_of(epoch, sampler)[0]):
            counts[place][draw.row] += 1
    expected, deviation = epochs / rows, (epochs * 0.2 * 0.8) ** 0.5
    assert all(abs(count - expected) < 4.5 * deviation for row in counts for count in row)


@given(rows=ROWS, batch_size=BATCH, seed=SEED, epoch=st.integers(0, 5))
def test_an_epoch_depends_on_seed_and_epoch_alone(
    rows: int, batch_size: int, seed: int, epoch: int
) -> None:
    used = ShuffledBatches(rows, batch_size, seed)
    for earlier in (7, *range(epoch)):
        batches_of(earlier, used)
    used.set_epoch(epoch)
    next(iter(used))  # an iteration that is given up
    assert batches_of(epoch, used) == batches_of(epoch, ShuffledBatches(rows, batch_size, seed))


@given(rows=ROWS, batch_size=BATCH, seed=SEED, epoch=EPOCH, world=st.sampled_from([1, 2, 4]))
def test_processes_together_make_the_batches_of_one(
    rows: int, batch_size: int, seed: int, epoch: int, world: int
) -> None:
    parts = [
        batches_of(epoch, ShuffledBatches(rows, batch_size, seed, rank, world))
        for rank in range(world)
    ]
    together = [list(chain.from_iterable(batch)) for batch in zip(*parts, strict=True)]
    assert together == batches_of(epoch, ShuffledBatches(rows, batch_size, seed))
    assert all(len(batch) == batch_size // world for part in parts for batch in part)


@given(data=st.data(), rows=ROWS, epoch=EPOCH, rank=st.integers(0, 1))
def test_a_cut_epoch_goes_on_where_it_stopped(
    data: st.DataObject, rows: int, epoch: int, rank: int
) -> None:
    whole = batches_of(epoch, ShuffledBatches(rows, 4, 5, rank, 2))
    done = data.draw(st.integers(0, len(whole)))
    again = ShuffledBatches(rows, 4, 5, rank, 2)
    assert batches_of(epoch, again, start=done) == whole[done:]
    next_epoch = batches_of(epoch + 1, ShuffledBatches(rows, 4, 5, rank, 2))
    assert batches_of(epoch + 1, again) == next_epoch  # from its beginning


def test_the_position_survives_in_the_state() -> None:
    sampler = ShuffledBatches(40, 4, seed=5)
    sampler.set_epoch(3, start=6)
    state = sampler.state_dict()
    assert state == {"epoch": 3, "start": 6}
    another = ShuffledBatches(40, 4, seed=5)
    another.load_state_dict(state)
    assert list(another) == list(sampler) == batches_of(3, ShuffledBatches(40, 4, seed=5))[6:]


def test_a_batch_larger_than_the_list_is_refused() -> None:
    ShuffledBatches(8, 8, seed=0)
    with pytest.raises(ConfigError) as error:
        ShuffledBatches(7, 8, seed=0)
    assert str(error.value) == (
        "trainer.batch_size: 8 is more than the 7 rows of the training list; lower it"
    )
