"""SwAV against the paper's formulas term by term, and its queue against a list of rows."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from cases import ROWS, Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv.config import from_dict
from sslsv.datasets.views import Batch
from sslsv.errors import ConfigError
from sslsv.methods.base import Outputs, Progress
from sslsv.methods.swav import SwAV, SwAVConfig, swapped_prediction

SEEDS = st.integers(0, 1000)
DIM, COUNT = 5, 6  # of an embedding; prototypes
SMALL = {
    "projector_hidden_dim": 12,
    "projector_output_dim": DIM,
    "nb_prototypes": COUNT,
    "queue_size": 0,
    "queue_start_epoch": 0,
}
BATCH = Batch(torch.empty(0), torch.empty(0), [])  # of which the loss takes nothing
GOING, FROZEN = torch.tensor(0.0), torch.tensor(1.0)


def make_method(sampling: str | None = None, **fields: Any) -> SwAV:
    return Case("swav", SMALL | fields, sampling).method()  # type: ignore[return-value]


def at(epoch: int) -> Progress:
    return Progress(10 * epoch, 100, epoch, 10)


def rows_of(x: Tensor) -> list[list[float]]:
    return x.detach().double().tolist()


def unit(a: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in a))
    return [x / length for x in a]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_codes(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Equations 3 to 5 of arXiv 2006.09882: exponentials, whose columns and rows are scaled."""
    q = np.exp(np.array(scores) / epsilon)
    n, k = q.shape
    for _ in range(iterations):
        q = q / (q.sum(axis=0, keepdims=True) * k)
        q = q / (q.sum(axis=1, keepdims=True) * n)
    return (n * q).tolist()


def naive_loss(scores: list[Any], codes: list[Any], temperature: float) -> float:
    """Equation 2 for each row, each view s with a code, and each other view t.

    scores: by row and view; codes: by view and row.
    """
    terms = []
    for s, its in enumerate(codes):
        for row, code in zip(scores, its, strict=True):
            for t, z_dot_c in enumerate(row):
                if t == s:
                    continue
                total = sum(math.exp(x / temperature) for x in z_dot_c)
                p = [math.exp(x / temperature) / total for x in z_dot_c]
                terms.append(-sum(q * math.log(x) for q, x in zip(code, p, strict=True)))
    return sum(terms) / len(terms)


def draw(seed: int, n: int = 4, views: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Scores and codes of the first two views."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, views, COUNT, generator=random, dtype=torch.float64) * 2 - 1
    codes = torch.rand(2, n, COUNT, generator=random, dtype=torch.float64) + 0.01
    return scores, list(codes / codes.sum(dim=2, keepdim=True))


# ---------------------------------------------------------------------------- swapped prediction


@given(seed=SEEDS, n=st.integers(1, 6), views=st.integers(2, 6), temperature=st.floats(0.05, 2))
def test_swapped_prediction_equals_the_paper(seed, n, views, temperature):
    scores, codes = draw(seed, n, views)
    expected = naive_loss(scores.tolist(), [q.tolist() for q in codes], temperature)
    found = swapped_prediction(scores, codes, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("views", [2, 6])
def test_swapped_prediction_equals_the_paper_in_float32(views):
    scores, codes = draw(0, 16, views)
    expected = naive_loss(scores.tolist(), [q.tolist() for q in codes], 0.1)
    found = swapped_prediction(scores.float(), [q.float() for q in codes], 0.1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("views", [2, 4])
def test_gradient(views):
    scores, codes = draw(1, 3, views)

    def loss(x: Tensor) -> Tensor:
        return swapped_prediction(x, codes, 0.3)

    assert torch.autograd.gradcheck(loss, scores.requires_grad_())


def test_a_view_is_compared_with_the_code_of_the_other_one():
    """Each view is sure of a prototype; codes ask for it where they are swapped."""
    first, second = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    scores = torch.stack((first, second))[None]
    swapped, own = [second[None], first[None]], [first[None], second[None]]
    sure = -math.log(math.exp(10) / (math.exp(10) + 2))
    assert swapped_prediction(scores, swapped, 0.1).item() == pytest.approx(sure, abs=1e-6)
    assert swapped_prediction(scores, own, 0.1).item() == pytest.approx(sure + 10)


def test_views_that_choose_nothing_are_as_good_as_chance():
    _, codes = draw(0)
    loss = swapped_prediction(torch.zeros(4, 6, COUNT).double(), codes, 0.1)
    assert loss.item() == pytest.approx(math.log(COUNT))


def test_the_order_of_short_views_does_not_matter():
    scores, codes = draw(2, views=6)
    expected = swapped_prediction(scores, codes, 0.1)
    found = swapped_prediction(scores[:, [0, 1, 4, 2, 5, 3]], codes, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------- the whole method


def naive_scores(method: SwAV, z: list[list[float]]) -> list[list[float]]:
    prototypes = [unit(c) for c in rows_of(method.prototypes.weight_v)]
    return [[dot(row, c) for c in prototypes] for row in z]


def naive_embeddings(method: SwAV, views: list[Tensor]) -> list[list[list[float]]]:
    """Of each view. Batch norm sees views of one length, and the projector's all of them."""
    y = [method.encoder(torch.cat(views[:2]))]
    y += [method.encoder(torch.cat(views[2:]))] if len(views) > 2 else []
    z = [unit(row) for row in rows_of(method.projector(torch.cat(y)))]
    return [z[i : i + ROWS] for i in range(0, len(z), ROWS)]


FIELDS = [{}, {"temperature": 0.3, "sk_epsilon": 0.2, "sk_nb_iters": 1, "nb_prototypes": 9}]


@pytest.mark.parametrize("fields", [*FIELDS, {"enable_projector": False}])
@pytest.mark.parametrize("sampling", ["siamese", "multicrop"])
def test_loss_of_the_method_equals_the_paper(sampling, fields):
    method = make_method(sampling, **fields).double()
    batch = Case("swav", sampling=sampling).batch(dtype=torch.float64)
    outputs = method(batch.views)
    loss, metrics = method.loss(outputs, batch)

    z = naive_embeddings(method, batch.views)
    by_view = [naive_scores(method, its) for its in z]
    c = method.config
    codes = [naive_codes(scores, c.sk_epsilon, c.sk_nb_iters) for scores in by_view[:2]]
    by_row = [list(row) for row in zip(*by_view, strict=True)]
    assert loss.item() == pytest.approx(naive_loss(by_row, codes, c.temperature), rel=1e-9)
    assert metrics == {"train/loss": loss}
    np.testing.assert_allclose(outputs["scores"].detach(), by_row, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(outputs["z1"], z[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(outputs["z2"], z[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampling", ["siamese", "multicrop"])
def test_the_only_gradient_is_that_of_predictions(sampling):
    method = make_method(sampling)
    outputs = method(Case("swav", sampling=sampling).batch().views)
    assert outputs.keys() == {"scores", "z1", "z2"}
    assert [name for name, x in outputs.items() if x.requires_grad] == ["scores"]


def test_prototypes_are_unit_vectors_whatever_their_parameters():
    method = make_method()
    method.prototypes.weight_v.data *= torch.linspace(0.1, 30, COUNT)[:, None]
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(COUNT))
    scores = method.prototypes(method.prototypes.weight)
    torch.testing.assert_close(scores.diagonal(), torch.ones(COUNT))


def test_prototypes_keep_their_names_and_their_lengths():
    method = make_method()
    state = {k: v for k, v in method.state_dict().items() if k.startswith("prototypes")}
    assert state.keys() == {"prototypes.weight_g", "prototypes.weight_v"}
    assert state["prototypes.weight_v"].shape == (COUNT, DIM)
    assert torch.equal(state["prototypes.weight_g"], torch.ones(COUNT, 1))
    trained = {name for name, p in method.named_parameters() if name.startswith("prototypes")}
    assert trained == {"prototypes.weight_v"}


# ---------------------------------------------------------------------------- first epochs


def one_step(method: SwAV, epoch: int) -> set[str]:
    """Names of what moves in a step of Adam with weight decay."""
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.Adam(method.param_groups(), 0.01, weight_decay=0.1)
    batch = Case("swav").batch()
    method.progress = at(epoch)
    method.loss(method(batch.views), batch)[0].backward()
    assert method.prototypes.weight_v.grad is not None
    assert method.prototypes.weight_v.grad.any()
    method.on_gradients()
    optimizer.step()
    return {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("first", [0, 1, 3])
def test_prototypes_stay_in_the_first_epochs_and_move_then(first):
    method = make_method(freeze_prototypes_epochs=first)
    everything = {name for name, _ in method.named_parameters()}
    for epoch in range(first):
        assert one_step(method, epoch) == everything - {"prototypes.weight_v"}
    assert one_step(method, first) == everything
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(COUNT))


# ---------------------------------------------------------------------------- the queue

QUEUE = 12


def embeddings(method: SwAV, seed: int, n: int = 4) -> Outputs:
    """What forward gives for unit vectors drawn at random, in float64."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, DIM, generator=random, dtype=torch.float64)
    z = z / z.norm(dim=2, keepdim=True)
    return {"scores": method.prototypes(z).transpose(0, 1), "z1": z[0], "z2": z[1]}


def keep(method: SwAV, outputs: Outputs, frozen: Tensor = GOING) -> None:
    method.on_step_end({name: x.detach() for name, x in outputs.items()}, BATCH, frozen)


@given(seed=SEEDS, n=st.sampled_from([1, 2, 3, 4, 6, 12]), frozen=st.lists(st.booleans()))
def test_queue_is_first_in_first_out(seed, n, frozen):
    method = make_method(queue_size=QUEUE).double()
    method.progress = at(0)
    expected: list[deque] = [deque(maxlen=QUEUE) for _ in range(2)]
    for step, skip in enumerate(frozen):
        outputs = embeddings(method, seed + step, n)
        keep(method, outputs, FROZEN if skip else GOING)
        if not skip:
            for rows, name in zip(expected, ("z1", "z2"), strict=True):
                rows.extend(outputs[name].tolist())
    filled = len(expected[0])
    assert int(method.queue_filled) == filled
    start = int(method.queue_ptr) - filled  # place of the oldest one
    places = [(start + i) % QUEUE for i in range(filled)]
    for view in range(2):
        assert method.queue[view, places].tolist() == list(expected[view])


def test_codes_use_the_queue_when_it_is_full_and_not_before():
    """Twelve rows in steps of four: the fourth step is the first one that sees them."""
    method = make_method(queue_size=QUEUE, sk_epsilon=0.1, temperature=0.2).double()
    method.progress = at(0)
    queues: list[deque] = [deque(maxlen=QUEUE) for _ in range(2)]
    for step in range(7):
        outputs = embeddings(method, step)
        loss, _ = method.loss(outputs, BATCH)
        losses = {}
        for kind in ("batch", "batch and queue"):
            codes = []
            for queue, name in zip(queues, ("z1", "z2"), strict=True):
                rows = outputs[name].tolist() + (list(queue) if kind != "batch" else [])
                codes.append(naive_codes(naive_scores(method, rows), 0.1, 3)[:4])
            losses[kind] = naive_loss(rows_of(outputs["scores"]), codes, 0.2)
        expected = "batch and queue" if step >= 3 else "batch"
        assert loss.item() == pytest.approx(losses[expected], rel=1e-9)
        if step:
            assert losses["batch"] != pytest.approx(losses["batch and queue"], rel=1e-3)
        keep(method, outputs)
        for queue, name in zip(queues, ("z1", "z2"), strict=True):
            queue.extend(outputs[name].tolist())
        method.prototypes.weight_v.data += 0.1 * torch.randn(COUNT, DIM, dtype=torch.float64)


def full(**fields: Any) -> SwAV:
    """Both queues hold rows of their own."""
    method = make_method(queue_size=QUEUE, **fields).double()
    method.progress = at(9)
    for seed in range(QUEUE // 4):
        keep(method, embeddings(method, seed))
    assert int(method.queue_filled) == QUEUE
    return method


@pytest.mark.parametrize("view", [0, 1])
def test_codes_with_a_full_queue_are_those_of_batch_and_queue(view):
    method = full()
    z = embeddings(method, 5)["z1"]
    found = method._codes(z, view)
    rows = z.tolist() + method.queue[view].tolist()
    expected = naive_codes(naive_scores(method, rows), 0.05, 3)[:4]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_queue_stays_empty_before_its_epoch():
    method = make_method(queue_size=QUEUE, queue_start_epoch=2).double()
    for epoch in (0, 1):
        method.progress = at(epoch)
        keep(method, embeddings(method, epoch))
    assert not method.queue.any()
    assert (int(method.queue_filled), int(method.queue_ptr)) == (0, 0)
    method.progress = at(2)
    keep(method, embeddings(method, 2))
    assert int(method.queue_filled) == 4


def test_queue_counts_for_nothing_before_its_epoch():
    method = full(queue_start_epoch=2)
    outputs = embeddings(method, 7)
    without = make_method(queue_size=0).double()
    without.prototypes.load_state_dict(method.prototypes.state_dict())
    expected, _ = without.loss(outputs, BATCH)
    for epoch in (0, 1):
        method.progress = at(epoch)
        assert torch.equal(method.loss(outputs, BATCH)[0], expected)
    method.progress = at(2)
    assert abs(method.loss(outputs, BATCH)[0] - expected) > 1e-3


def test_embeddings_that_are_not_finite_do_not_enter_a_frozen_queue():
    method = full()
    before = method.queue.clone()
    broken = {name: x * math.nan for name, x in embeddings(method, 9).items()}
    keep(method, broken, FROZEN)
    assert torch.equal(method.queue, before)


def test_queue_is_updated_where_it_lies():
    method = make_method(queue_size=QUEUE)
    places = {name: b.data_ptr() for name, b in method.named_buffers() if "queue" in name}
    assert places.keys() == {"queue", "queue_ptr", "queue_filled"}
    z = embeddings(make_method().double(), 0)
    keep(method, {name: x.float() for name, x in z.items()})
    assert int(method.queue_filled) == 4
    assert places == {name: b.data_ptr() for name, b in method.named_buffers() if "queue" in name}


def test_queue_is_part_of_a_checkpoint():
    state = full().state_dict()
    other = make_method(queue_size=QUEUE).double()
    other.load_state_dict(state)
    assert int(other.queue_filled) == QUEUE
    assert torch.equal(other.queue, state["queue"])


def test_without_a_queue_nothing_is_kept():
    method = make_method(queue_size=0).double()
    keep(method, embeddings(method, 0))
    assert method.queue.shape == (2, 0, DIM)


def test_with_multicrop_only_long_views_enter_the_queue():
    method = make_method("multicrop", queue_size=16)
    outputs = method(Case("swav", sampling="multicrop").batch().views)
    keep(method, outputs)
    assert int(method.queue_filled) == ROWS
    assert torch.equal(method.queue[0, :ROWS], outputs["z1"])
    assert torch.equal(method.queue[1, :ROWS], outputs["z2"])


# ---------------------------------------------------------------------------- its fields


def experiment(method: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    return {
        "encoder": {"type": "resnet34"},
        "method": {"type": "swav", **method},
        "trainer": {"batch_size": 64, "tracked_metric": "train/loss"},
        "dataset": {"ssl": True, **dataset},
    }


def test_queue_must_hold_whole_batches():
    message = "method.queue_size: 100 is not a multiple of trainer.batch_size 64; use 128 or"
    with pytest.raises(ConfigError, match=message):
        from_dict(experiment({"queue_size": 100}, {})).check()
    for size in (0, 64, 128):
        from_dict(experiment({"queue_size": size}, {})).check()


@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_long_views_are_refused(count):
    dataset = {"frame_sampling": "dino", "ssl_dino_global_count": count}
    message = f"dataset.ssl_dino_global_count: method.type swav needs 2, got {count}"
    with pytest.raises(ConfigError, match=message):
        from_dict(experiment({}, dataset)).check()
    from_dict(experiment({}, dataset | {"ssl_dino_global_count": 2})).check()
    from_dict(experiment({}, dataset | {"frame_sampling": "default"})).check()  # takes no notice


@pytest.mark.parametrize("field", ["temperature", "nb_prototypes", "sk_nb_iters", "sk_epsilon"])
@pytest.mark.parametrize("value", [0, -1])
def test_fields_must_be_positive(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got {value}"):
        SwAVConfig(type="swav", **{field: value})


@pytest.mark.parametrize("field", ["queue_size", "queue_start_epoch", "freeze_prototypes_epochs"])
def test_fields_must_not_be_negative(field):
    with pytest.raises(ConfigError, match=f"{field}: must be 0 or more, got -1"):
        SwAVConfig(type="swav", **{field: -1})  # type: ignore[arg-type]
    SwAVConfig(type="swav", **{field: 0})  # type: ignore[arg-type]


def test_defaults_are_those_of_the_reference():
    config = SwAVConfig(type="swav")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (2048, 128)
    assert (config.temperature, config.nb_prototypes) == (0.1, 3000)
    assert (config.sk_nb_iters, config.sk_epsilon) == (3, 0.05)
    assert (config.queue_size, config.queue_start_epoch) == (3840, 15)
    assert (config.enable_projector, config.freeze_prototypes_epochs) == (True, 1)
