"""Which rows make up which batch, for any number of processes and from any point on."""

import zlib
from functools import cache
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sslsv.datasets import samplers
from sslsv.datasets.samplers import (
    Draw,
    LabelBatches,
    SamplerConfig,
    ShuffledBatches,
    make_batches,
)
from sslsv.errors import ConfigError

Batches = list[list[Draw]]

ROWS = st.integers(8, 100)
BATCH = st.sampled_from([4, 8])
SEED = st.integers(0, 2**31)
EPOCH = st.integers(0, 1000)


def batches_of(epoch: int, sampler: samplers.Batches, start: int = 0) -> Batches:
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


def test_the_permutation_is_the_published_one() -> None:
    """Runs that were made with it are repeated exactly."""
    key = (zlib.crc32(b"order"), 11, 3)
    order = np.random.default_rng(key).permutation(50)
    found = [draw for batch in batches_of(3, ShuffledBatches(50, 8, 11)) for draw in batch]
    assert found == [Draw(3, int(row)) for row in order[:48]]


# ------------------------------------------------------------------------------- by label


@st.composite
def label_lists(draw: st.DrawFn) -> np.ndarray:
    """Labels of some rows, very unequal in number, in any order and with gaps in their codes."""
    counts = draw(st.lists(st.integers(1, 12) | st.integers(30, 60), min_size=4, max_size=14))
    labels = np.repeat(np.arange(len(counts)) * 3, counts)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


def make(
    labels: np.ndarray, batch_size: int = 4, seed: int = 5, *part: int, **fields: object
) -> LabelBatches:
    sampler = make_batches(SamplerConfig(**fields), labels, batch_size, seed, *part)  # type: ignore[arg-type]
    assert isinstance(sampler, LabelBatches)
    return sampler


def flat(batches: Batches) -> list[Draw]:
    return list(chain.from_iterable(batches))


OPTIONS = st.fixed_dictionaries(
    {
        "balance": st.booleans(),
        "create_contrastive_pairs": st.booleans(),
        "prevent_class_collisions": st.booleans(),
        "randomize_at_each_epoch": st.booleans(),
        "nb_samples_per_spk": st.none() | st.integers(2, 9),
        "nb_speakers": st.none() | st.integers(4, 8),
    }
)


def make_any(labels: np.ndarray, options: dict[str, object], *part: int) -> LabelBatches:
    """As ``make``, where labels are enough for a batch."""
    try:
        return make(labels, 4, 5, *part, **options)
    except ConfigError:
        reject()


@given(labels=label_lists(), options=OPTIONS, epoch=EPOCH)
def test_any_options_keep_what_they_promise(
    labels: np.ndarray, options: dict[str, object], epoch: int
) -> None:
    sampler = make_any(labels, options)
    length = len(sampler)  # before anything is drawn
    batches = batches_of(epoch, sampler)
    assert len(batches) == length
    assert all(len(batch) == 4 for batch in batches)
    draws = flat(batches)
    assert {draw.epoch for draw in draws} == {epoch}
    assert len({(draw.row, draw.second is None, draw.copy) for draw in draws}) == len(draws)

    names = sorted(set(labels.tolist()))[: options["nb_speakers"]]  # type: ignore[misc]
    per_label = {name: np.flatnonzero(labels == name).tolist() for name in names}
    allowed = {name: rows[: options["nb_samples_per_spk"]] for name, rows in per_label.items()}  # type: ignore[misc]
    assert {draw.row for draw in draws} <= set(chain.from_iterable(allowed.values()))
    if not options["balance"]:
        assert len({draw.row for draw in draws}) == len(draws)
    if options["create_contrastive_pairs"]:
        for draw in draws:
            assert draw.second is not None
            assert draw.second != draw.row
            assert labels[draw.second] == labels[draw.row]
            assert draw.second in allowed[labels[draw.row]]
    else:
        assert {draw.second for draw in draws} == {None}
    if options["prevent_class_collisions"]:
        for batch in batches:
            assert len({labels[draw.row] for draw in batch}) == 4


@given(labels=label_lists(), options=OPTIONS, epoch=EPOCH, world=st.sampled_from([2, 4]))
def test_processes_and_restarts_change_nothing(
    labels: np.ndarray, options: dict[str, object], epoch: int, world: int
) -> None:
    whole = batches_of(epoch, make_any(labels, options))
    parts = [batches_of(epoch, make_any(labels, options, rank, world)) for rank in range(world)]
    assert [list(chain.from_iterable(batch)) for batch in zip(*parts, strict=True)] == whole
    used = make_any(labels, options)
    batches_of(epoch + 3, used)
    done = len(whole) // 2
    used.load_state_dict({"epoch": epoch, "start": done})
    assert list(used) == whole[done:]


@given(labels=label_lists())
def test_without_options_every_row_comes_once(labels: np.ndarray) -> None:
    draws = flat(batches_of(0, make(labels, batch_size=1)))
    assert sorted(draw.row for draw in draws) == list(range(len(labels)))


@pytest.mark.parametrize("collisions", [False, True])
@pytest.mark.parametrize("randomize", [False, True])
def test_no_row_is_lost_for_good(collisions: bool, randomize: bool) -> None:
    labels = np.repeat(np.arange(10), [40, 3, 7, 5, 1, 9, 2, 6, 4, 8])
    sampler = make(
        labels, 8, prevent_class_collisions=collisions, randomize_at_each_epoch=randomize
    )
    epochs = [{draw.row for draw in flat(batches_of(epoch, sampler))} for epoch in range(60)]
    assert all(len(rows) < len(labels) for rows in epochs)
    assert len(set(map(frozenset, epochs))) > 50  # what is left out is another part every time
    assert set().union(*epochs) == set(range(len(labels)))


@cache
def fits(counts: tuple[int, ...], batches: int, batch_size: int) -> bool:
    """Whether so many batches can be filled without a label twice in one, by trying everything."""
    if batches == 0:
        return True
    present = [i for i, count in enumerate(counts) if count]
    for chosen in combinations(present, batch_size):
        left = tuple(sorted(count - (i in chosen) for i, count in enumerate(counts)))
        if fits(left, batches - 1, batch_size):
            return True
    return False


@settings(max_examples=60)
@given(counts=st.lists(st.integers(1, 5), min_size=3, max_size=5), batch_size=st.integers(2, 3))
def test_as_many_batches_without_collisions_as_there_can_be(
    counts: list[int], batch_size: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    length = len(make(labels, batch_size, prevent_class_collisions=True))
    assert fits(tuple(sorted(counts)), length, batch_size)
    assert not fits(tuple(sorted(counts)), length + 1, batch_size)


def test_all_rows_are_used_where_a_batch_holds_all_labels() -> None:
    labels = np.repeat(np.arange(6), 20)
    batches = batches_of(0, make(labels, 6, prevent_class_collisions=True))
    assert {draw.row for draw in flat(batches)} == set(range(120))
    assert all(sorted(labels[[draw.row for draw in batch]]) == list(range(6)) for batch in batches)


def test_batches_without_collisions_are_mixed_well() -> None:
    """Any two rows of different labels meet about equally often, and every place gets every row."""
    labels = np.repeat(np.arange(12), 6)
    sampler = make(labels, 6, prevent_class_collisions=True, randomize_at_each_epoch=True)
    met, first, epochs = np.zeros((72, 72)), np.zeros(72), 2000
    for epoch in range(epochs):
        rows = np.array([[draw.row for draw in batch] for batch in batches_of(epoch, sampler)])
        first[rows[0, 0]] += 1
        for batch in rows:
            met[np.ix_(batch, batch)] += 1
    different = labels[:, None] != labels
    expected = epochs * 5 / 66  # five companions among the 66 rows of other labels
    assert np.abs(met[different] / expected - 1).max() < 0.45  # 5 deviations of a fair draw
    assert abs(met[different].std() / expected**0.5 - 1) < 0.15
    assert np.abs(first - epochs / 72).max() < 5 * (epochs / 72) ** 0.5


@given(labels=label_lists(), pairs=st.booleans(), epoch=EPOCH)
def test_balance_gives_labels_equal_shares(labels: np.ndarray, pairs: bool, epoch: int) -> None:
    counts = np.bincount(labels)
    sampler = make(labels, 1, balance=True, create_contrastive_pairs=pairs)
    draws = flat(batches_of(epoch, sampler))
    shares = np.bincount(labels[[draw.row for draw in draws]], minlength=len(counts))
    shares = shares[counts > pairs]  # a label with one utterance has no pairs
    assert shares.max() - shares.min() <= 1 + pairs
    usable = counts[counts > pairs] - counts[counts > pairs] % 2 * pairs
    assert abs(len(draws) - usable.sum()) <= pairs


def test_balanced_rows_come_in_proportion_to_one_over_their_label_s_count() -> None:
    counts = np.array([1, 2, 5, 12])
    labels = np.repeat(np.arange(4), counts)
    sampler = make(labels, 1, balance=True, randomize_at_each_epoch=True)
    times, epochs = np.zeros(20), 3000
    for epoch in range(epochs):
        for draw in flat(batches_of(epoch, sampler)):
            times[draw.row] += 1
    expected = epochs * 5 / counts[labels]  # 20 draws, a quarter for each label
    np.testing.assert_allclose(times, expected, rtol=0.07)


def test_a_repeated_row_is_a_copy_with_a_number_of_its_own() -> None:
    labels = np.array([0] * 3 + [1] * 21)
    draws = flat(batches_of(0, make(labels, 1, balance=True)))
    copies = sorted(draw.copy for draw in draws if draw.row == 1)
    assert copies == [0, 1, 2, 3]  # 12 draws for three rows
    assert {draw.copy for draw in draws if labels[draw.row] == 1} == {0}


def test_balance_draws_so_many_as_asked() -> None:
    labels = np.repeat([0, 1], [5, 15])
    assert len(make(labels, 1, balance=True, nb_utterances=100)) == 100
    assert len(make(labels, 1, balance=True, nb_utterances=100, nb_samples_per_spk=4)) == 8


@pytest.mark.parametrize("randomize", [False, True])
def test_a_subset_is_chosen_once(randomize: bool) -> None:
    labels = np.arange(50) % 5
    sampler = make(labels, 1, nb_utterances=20, randomize_at_each_epoch=randomize)
    subsets = {
        frozenset(draw.row for draw in flat(batches_of(epoch, sampler))) for epoch in range(5)
    }
    (subset,) = subsets
    assert len(subset) == 20
    other = make(labels, 1, seed=6, nb_utterances=20)
    assert {draw.row for draw in flat(batches_of(0, other))} != subset
    chosen = np.zeros(50)
    for seed in range(2000):
        chosen[make(labels, 1, seed, nb_utterances=20).rows] += 1
    assert np.abs(chosen - 800).max() < 4.5 * (2000 * 0.4 * 0.6) ** 0.5


def test_first_labels_and_first_utterances() -> None:
    labels = np.array([7, 2, 7, 4, 2, 7, 2, 4])
    draws = flat(batches_of(0, make(labels, 1, nb_speakers=2, nb_samples_per_spk=2)))
    assert sorted(draw.row for draw in draws) == [1, 3, 4, 7]  # of labels 2 and 4


def test_pairs_are_consecutive_utterances_both_ways_round() -> None:
    labels = np.array([1, 0, 1, 1, 0, 1, 1, 0, 0, 2])
    draws = flat(batches_of(4, make(labels, 1, create_contrastive_pairs=True)))
    pairs = {(draw.row, draw.second) for draw in draws}
    assert len(draws) == len(pairs)
    assert pairs == {(0, 2), (2, 0), (3, 5), (5, 3), (1, 4), (4, 1), (7, 8), (8, 7)}


def test_fresh_pairs_every_epoch_leave_nobody_alone() -> None:
    labels = np.repeat([0, 1], [5, 7])
    sampler = make(labels, 1, create_contrastive_pairs=True, randomize_at_each_epoch=True)
    partners: dict[int, set[int]] = {row: set() for row in range(12)}
    for epoch in range(100):
        draws = flat(batches_of(epoch, sampler))
        assert sorted(d.row for d in draws) == sorted(d.second for d in draws)  # type: ignore[type-var]
        assert {(d.second, d.row) for d in draws} == {(d.row, d.second) for d in draws}
        for draw in draws:
            assert draw.second is not None
            partners[draw.row].add(draw.second)
    assert partners == {
        row: set(np.flatnonzero(labels == labels[row]).tolist()) - {row} for row in range(12)
    }


@pytest.mark.parametrize("collisions", [False, True])
def test_the_order_is_that_of_the_first_epoch_unless_another_is_asked_for(collisions: bool) -> None:
    labels = np.repeat(np.arange(6), 8)  # fills its batches, so that nothing is left out

    def orders(randomize: bool) -> set[tuple[tuple[int, int], ...]]:
        sampler = make(
            labels,
            6,
            balance=True,
            create_contrastive_pairs=True,
            prevent_class_collisions=collisions,
            randomize_at_each_epoch=randomize,
        )
        return {
            tuple((d.row, d.second or 0) for d in flat(batches_of(epoch, sampler)))
            for epoch in range(4)
        }

    assert len(orders(randomize=False)) == 1
    assert len(orders(randomize=True)) == 4


def test_a_fixed_order_stays_but_for_what_is_left_out() -> None:
    sampler = make(np.repeat([0, 1], 11), 4)
    one, other = ([d.row for d in flat(batches_of(epoch, sampler))] for epoch in (0, 1))
    common = set(one) & set(other)
    assert set(one) != set(other)
    assert [row for row in one if row in common] == [row for row in other if row in common]


def test_a_section_that_is_not_enabled_is_as_none() -> None:
    labels = np.repeat([0, 1], 8)
    off = make_batches(SamplerConfig(enable=False, balance=True), labels, 4, 5, 1, 2)
    assert batches_of(2, off) == batches_of(2, make_batches(None, labels, 4, 5, 1, 2))
    assert batches_of(2, off) == batches_of(2, ShuffledBatches(16, 4, 5, 1, 2))


@pytest.mark.parametrize(
    ("fields", "batch_size", "message"),
    [
        (
            {"prevent_class_collisions": True},
            4,
            "dataset.sampler.prevent_class_collisions: a batch of 4 needs as many labels and there "
            "are 3; lower trainer.batch_size to 3 or less",
        ),
        (
            {"nb_utterances": 16},
            1,
            "dataset.sampler.nb_utterances: 16 is more than the 15 rows of the training list; "
            "lower it",
        ),
        (
            {"nb_samples_per_spk": 2},
            7,
            "trainer.batch_size: 7 is more than the 6 samples that dataset.sampler leaves; "
            "lower it",
        ),
        (
            {"nb_samples_per_spk": 1, "create_contrastive_pairs": True},
            1,
            "trainer.batch_size: 1 is more than the 0 samples that dataset.sampler leaves; "
            "lower it",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    fields: dict[str, object], batch_size: int, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make(np.repeat([0, 1, 2], 5), batch_size, **fields)
    assert str(error.value) == message


@pytest.mark.parametrize("field", ["nb_utterances", "nb_speakers", "nb_samples_per_spk"])
def test_numbers_are_positive(field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must be at least 1, got 0$"):
        SamplerConfig(**{field: 0})  # type: ignore[arg-type]
