"""MoCo against the loss, the queue and the shuffled batch norm that it is made of."""

from __future__ import annotations

import copy
import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv import distributed
from sslsv.config import from_dict
from sslsv.datasets.views import Batch
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods import moco
from sslsv.methods.base import Progress
from sslsv.methods.moco import MoCo, MoCoConfig, entropy, exchange, info_nce
from sslsv.randomness import generator

SEEDS = st.integers(0, 1000)
DIM, QUEUE = 5, 12
SMALL = {"projector_hidden_dim": 12, "projector_output_dim": DIM, "queue_size": QUEUE}


def make_method(**fields: Any) -> MoCo:
    return Case("moco", SMALL | fields).method()  # type: ignore[return-value]


def draw(seed: int, n: int = 4, dim: int = DIM) -> dict[str, Tensor]:
    """What forward gives."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, n, dim, generator=random, dtype=torch.float64)
    return dict(zip(("q1", "q2", "k1", "k2"), rows, strict=True))


def batch_of(labels: list[int] | Tensor) -> Batch:
    return Batch(torch.arange(len(labels)), torch.as_tensor(labels), [])


def unit(a: list[float]) -> list[float]:
    return [x / math.sqrt(sum(y * y for y in a)) for x in a]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def oracle(
    outputs: dict[str, Tensor],
    queues: Tensor,
    temperature: float,
    labels: list[int] | None = None,
    queue_labels: list[int] | None = None,
) -> tuple[float, float]:
    """Equation 1 of arXiv 1911.05722 for both directions, term by term; entropy of the first."""
    losses, entropies = [], []
    for query, key, view in (("q1", "k2", 1), ("q2", "k1", 0)):
        queue = queues[view].T.tolist()
        pairs = zip(outputs[query].tolist(), outputs[key].tolist(), strict=True)
        for i, (q, k) in enumerate(pairs):
            terms = [math.exp(dot(unit(q), unit(k)) / temperature)]
            for j, other in enumerate(queue):
                if labels is None or queue_labels is None or labels[i] != queue_labels[j]:
                    terms.append(math.exp(dot(unit(q), other) / temperature))
            shares = [term / sum(terms) for term in terms]
            losses.append(-math.log(shares[0]))
            entropies.append(-sum(p * math.log(p) for p in shares))
    n = len(outputs["q1"])
    return sum(losses) / len(losses), sum(entropies[:n]) / n


# ---------------------------------------------------------------------------- the loss


@given(seed=SEEDS, n=st.integers(2, 6), temperature=st.floats(0.03, 2))
def test_loss_equals_the_paper(seed, n, temperature):
    method, outputs = make_method(temperature=temperature).double(), draw(seed, n)
    loss, metrics = method.loss(outputs, batch_of([0] * n))
    expected, spread = oracle(outputs, method.queue, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert metrics["train/h"].item() == pytest.approx(spread, rel=1e-9, abs=1e-9)


@given(seed=SEEDS, temperature=st.floats(0.03, 2))
def test_loss_equals_the_paper_in_float32(seed, temperature):
    method, outputs = make_method(temperature=temperature), draw(seed)
    expected, _ = oracle(outputs, method.queue, temperature)
    loss, _ = method.loss({k: v.float() for k, v in outputs.items()}, batch_of([0] * 4))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 1])
def test_negatives_at_right_angles(temperature):
    method = make_method(temperature=temperature).double()
    key = torch.zeros(3, DIM, dtype=torch.float64)
    key[:, 0] = 2
    method.queue.zero_()[:, 1:] = torch.nn.functional.normalize(
        torch.randn(2, DIM - 1, QUEUE, dtype=torch.float64), dim=1
    )
    positive = math.exp(1 / temperature)
    expected = -math.log(positive / (positive + QUEUE))
    loss, _ = method.loss(dict.fromkeys(("q1", "q2", "k1", "k2"), key), batch_of([0] * 3))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_each_direction_has_the_queue_of_its_keys():
    """Only the first view's queue holds the query: only queries of second views suffer."""
    method = make_method(temperature=0.1)
    row = torch.zeros(2, DIM)
    row[:, 0] = 1
    method.queue.zero_()[0, 0] = 1  # all keys of first views equal the query
    method.queue[1, 1] = 1
    cosines = method.cosines(dict.fromkeys(("q1", "q2", "k1", "k2"), row))
    assert torch.equal(cosines[0], torch.tensor([[1.0] + [0.0] * QUEUE] * 2))
    assert torch.equal(cosines[1], torch.ones(2, QUEUE + 1))


def test_entropy_of_what_is_known():
    assert entropy(torch.zeros(3, 8)).item() == pytest.approx(math.log(8))
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert entropy(certain).item() == 0
    assert entropy(torch.tensor([[3.0, 3.0, -math.inf]])).item() == pytest.approx(math.log(2))


def test_info_nce_of_what_is_known():
    assert info_nce(torch.zeros(3, 8)).item() == pytest.approx(math.log(8))
    assert info_nce(torch.tensor([[math.log(3), 0.0]])).item() == pytest.approx(math.log(4 / 3))


def test_gradient():
    method, outputs = make_method().double(), draw(0, 3)

    def loss(q1: Tensor, q2: Tensor) -> Tensor:
        return method.loss(outputs | {"q1": q1, "q2": q2}, batch_of([0] * 3))[0]

    queries = (outputs["q1"].requires_grad_(), outputs["q2"].requires_grad_())
    assert torch.autograd.gradcheck(loss, queries)


@given(seed=SEEDS, scales=st.lists(st.floats(0.01, 100), min_size=16, max_size=16))
def test_length_of_queries_and_keys_does_not_matter(seed, scales):
    method, outputs = make_method().double(), draw(seed)
    factors = torch.tensor(scales, dtype=torch.float64).view(4, 4, 1)
    scaled = {name: f * x for f, (name, x) in zip(factors, outputs.items(), strict=True)}
    loss, _ = method.loss(outputs, batch_of([0] * 4))
    torch.testing.assert_close(method.loss(scaled, batch_of([0] * 4))[0], loss)


def test_no_gradient_flows_into_keys():
    method = make_method()
    outputs = method(Case("moco").batch().views)
    assert [name for name, x in outputs.items() if x.requires_grad] == ["q1", "q2"]
    method.loss(outputs, batch_of([0] * 8))[0].backward()
    touched = {
        name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None
    }
    assert touched == {"encoder", "projector"}


# ---------------------------------------------------------------------------- class collisions


def fill(method: MoCo, outputs: dict[str, Tensor], labels: list[int], frozen: float = 0.0) -> None:
    method.on_step_end(outputs, batch_of(labels), torch.tensor(frozen))


@given(seed=SEEDS, labels=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_same_labels_are_no_negatives(seed, labels):
    method = make_method(prevent_class_collisions=True, temperature=0.2).double()
    for i in (0, 4):  # the last third of the queue stays unknown
        fill(method, draw(seed + i), labels[i : i + 4])
    outputs, queue_labels = draw(seed + 8), labels[:8] + [-1] * 4
    loss, metrics = method.loss(outputs, batch_of(labels[8:]))
    expected, spread = oracle(outputs, method.queue, 0.2, labels[8:], queue_labels)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert metrics["train/h"].item() == pytest.approx(spread, rel=1e-9, abs=1e-9)


def test_at_first_no_label_is_known_not_even_0():
    outputs = draw(0)
    plain = make_method().double().loss(outputs, batch_of([0] * 4))[0]
    careful = make_method(prevent_class_collisions=True).double().loss(outputs, batch_of([0] * 4))
    assert torch.equal(careful[0], plain)


def test_without_any_negative_left_the_loss_is_0_and_its_gradient_finite():
    method = make_method(prevent_class_collisions=True).double()
    for i in range(3):
        fill(method, draw(i), [1] * 4)
    outputs = draw(3)
    query = outputs["q1"].requires_grad_()
    loss, metrics = method.loss(outputs, batch_of([1] * 4))
    loss.backward()
    assert (loss.item(), metrics["train/h"].item()) == (0, 0)
    assert not query.grad.any()


def test_labels_are_kept_only_where_they_are_needed():
    assert "queue_labels" not in make_method().state_dict()
    assert make_method(prevent_class_collisions=True).queue_labels.tolist() == [-1] * QUEUE


# ---------------------------------------------------------------------------- the queue


def test_queue_begins_with_unit_vectors():
    method = make_method()
    assert method.queue.shape == (2, DIM, QUEUE)
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(2, QUEUE))
    assert not torch.equal(method.queue[0], method.queue[1])
    without = make_method(enable_projector=False)
    assert without.queue.shape == (2, without.encoder.encoder_dim, QUEUE)


@given(
    seed=SEEDS,
    n=st.sampled_from([1, 2, 3, 4, 6, 12]),
    frozen=st.lists(st.booleans(), min_size=1, max_size=9),
)
def test_queue_is_first_in_first_out(seed, n, frozen):
    method = make_method(prevent_class_collisions=True).double()
    columns = zip(*(queue.T.tolist() for queue in method.queue), [-1] * QUEUE, strict=True)
    expected = deque(columns, maxlen=QUEUE)
    for step, skip in enumerate(frozen):
        outputs, labels = draw(seed + step, n), [10 * step + i for i in range(n)]
        fill(method, outputs, labels, float(skip))
        if not skip:
            keys = [outputs[k] / outputs[k].norm(dim=1, keepdim=True) for k in ("k1", "k2")]
            expected.extend(zip(*(k.tolist() for k in keys), labels, strict=True))
    oldest = int(method.queue_ptr)
    found = [
        (*(queue[:, (oldest + i) % QUEUE].tolist() for queue in method.queue),)
        for i in range(QUEUE)
    ]
    for columns_found, (first, second, _) in zip(found, expected, strict=True):
        assert columns_found[0] == pytest.approx(first, rel=1e-12)
        assert columns_found[1] == pytest.approx(second, rel=1e-12)
    labels = [int(method.queue_labels[(oldest + i) % QUEUE]) for i in range(QUEUE)]
    assert labels == [label for *_, label in expected]


def test_keys_that_are_not_finite_do_not_enter_a_frozen_queue():
    method = make_method()
    before = method.queue.clone()
    outputs = {k: x.float() * math.nan for k, x in draw(0).items()}
    fill(method, outputs, [0] * 4, frozen=1.0)
    assert torch.equal(method.queue, before)
    assert method.queue_ptr.tolist() == [0]


def test_queue_goes_on_where_batches_of_another_size_left_it():
    method = make_method()
    method.queue_ptr.fill_(QUEUE - 1)
    outputs = {k: x.float() for k, x in draw(0).items()}
    fill(method, outputs, [0] * 4)
    expected = nn.functional.normalize(outputs["k1"], dim=1)
    torch.testing.assert_close(method.queue[0, :, [QUEUE - 1, 0, 1, 2]].T, expected)
    assert method.queue_ptr.tolist() == [3]


def test_queue_is_updated_where_it_lies():
    method = make_method()
    place = method.queue.data_ptr()
    fill(method, draw(0), [0] * 4)
    assert method.queue.data_ptr() == place
    assert method.queue_ptr.tolist() == [4]


# ---------------------------------------------------------------------------- the network


def project(method: MoCo, view: Tensor, suffix: str = "") -> Tensor:
    return getattr(method, f"projector{suffix}")(getattr(method, f"encoder{suffix}")(view))


def test_each_view_goes_through_the_networks_by_itself():
    method, views = make_method(), Case("moco").batch().views
    for p in method.encoder.parameters():  # so that teacher and student differ
        p.data += 0.1
    outputs = method(views)
    for name, suffix in (("q", ""), ("k", "_momentum")):
        for i, view in enumerate(views, start=1):
            torch.testing.assert_close(outputs[f"{name}{i}"], project(method, view, suffix))
    assert not torch.allclose(outputs["q1"], outputs["k1"], atol=1e-3)


def test_in_one_process_nothing_is_shuffled(monkeypatch):
    monkeypatch.setattr(moco, "exchange", None)  # would fail when called
    make_method()(Case("moco").batch().views)


def test_metrics():
    method, outputs = make_method(start_tau=0.9).double(), draw(0)
    _, metrics = method.loss(outputs, batch_of([0] * 4))
    assert metrics.keys() == {"train/loss", "train/tau", "train/h", "train/std"}
    assert metrics["train/tau"] == 0.9
    rows = np.array([unit(row) for row in outputs["q1"].tolist()])
    assert metrics["train/std"].item() == pytest.approx(rows.std(axis=0, ddof=1).mean())


def test_teacher_follows():
    method = make_method(start_tau=0.75)
    weight = method.encoder_momentum.layers[0].weight.clone()
    for p in method.encoder.parameters():
        p.data += 1
    fill(method, draw(0), [0] * 4)
    torch.testing.assert_close(method.encoder_momentum.layers[0].weight, weight + 0.25)


def test_defaults_are_those_of_the_reference():
    config = MoCoConfig(type="moco")
    assert (config.projector_hidden_dim, config.projector_output_dim) == (2048, 128)
    assert (config.temperature, config.queue_size) == (0.2, 65536)
    assert (config.enable_projector, config.prevent_class_collisions) == (True, False)


def test_parameter_count_of_the_published_table():
    encoder = ResNet34(ResNet34Config(type="resnet34"))
    method = MoCo(MoCoConfig(type="moco", enable_projector=False, queue_size=256), encoder)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 1_437_078
    assert method.queue.shape == (2, 512, 256)


def test_queue_must_hold_whole_batches():
    data: dict[str, Any] = {
        "encoder": {"type": "resnet34"},
        "method": {"type": "moco", "queue_size": 100},
        "trainer": {"batch_size": 64},
        "dataset": {"ssl": True},
    }
    message = "method.queue_size: 100 is not a multiple of trainer.batch_size 64; use 128 or"
    with pytest.raises(ConfigError, match=message):
        from_dict(data).check()
    data["method"]["queue_size"] = 128
    from_dict(data).check()


@pytest.mark.parametrize("field", ["temperature", "queue_size", "projector_output_dim"])
@pytest.mark.parametrize("value", [0, -1])
def test_fields_must_be_positive(field, value):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got {value}"):
        MoCoConfig(type="moco", **{field: value})


# ---------------------------------------------------------------------------- shuffled keys

WORLD, ROWS = 2, 4  # processes, utterances of each
PROGRESS = Progress(5, 10, 0, 1, seed=3)


def untrained() -> MoCo:
    """Its batch norm takes the statistics of the rows at hand."""
    method = make_method().double()
    method.progress = PROGRESS
    return method


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD
    )
    rows = torch.arange(WORLD * ROWS * 3, dtype=torch.float64).view(-1, 3)
    orders = [np.random.default_rng(i).permutation(WORLD * ROWS) for i in range(20)]
    orders += [np.arange(WORLD * ROWS), np.arange(WORLD * ROWS)[::-1]]  # none moves, all move
    own = rows.chunk(WORLD)[rank]
    dealt = [exchange(own, order) for order in orders]
    back = [exchange(x, np.argsort(order)) for x, order in zip(dealt, orders, strict=True)]

    views = [view.chunk(WORLD)[rank] for view in Case("moco").batch(dtype=torch.float64).views]
    method = untrained()
    outputs = method(views)
    method.on_step_end(outputs, batch_of([0] * ROWS), torch.zeros((), dtype=torch.float64))

    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(untrained()).eval()
    moco.exchange = None  # type: ignore[assignment]  # would fail when called
    assert isinstance(synchronised, MoCo)
    synchronised(views)
    found = {
        "orders": [torch.from_numpy(order.copy()) for order in orders],
        "dealt": dealt,
        "back": back,
        "outputs": {name: x.detach() for name, x in outputs.items()},
        "queue": method.queue,
        "statistics": [b.clone() for b in method.encoder_momentum.buffers()],
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (folder,), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_rows_are_dealt_out_in_the_order_asked_for(found):
    rows = torch.arange(WORLD * ROWS * 3, dtype=torch.float64).view(-1, 3)
    for i, order in enumerate(found[0]["orders"]):
        assert torch.equal(torch.cat([result["dealt"][i] for result in found]), rows[order])
        assert torch.equal(torch.cat([result["back"][i] for result in found]), rows)


def test_keys_are_computed_in_batches_of_another_composition(found):
    """In training: queries with their process's own rows, keys with rows dealt out anew."""
    order = generator("moco shuffle", PROGRESS.seed, PROGRESS.step).permutation(WORLD * ROWS)
    assert set(order[:ROWS]) != set(range(ROWS))
    assert set(order[:ROWS]) != set(range(ROWS, 2 * ROWS))
    views = Case("moco").batch(dtype=torch.float64).views
    for i, view in enumerate(views, start=1):
        for rank, part in enumerate(view.chunk(WORLD)):
            queries = project(untrained(), part)
            torch.testing.assert_close(found[rank]["outputs"][f"q{i}"], queries)
        keys = torch.empty(WORLD * ROWS, DIM, dtype=torch.float64)
        for place in np.split(order, WORLD):
            keys[place] = project(untrained(), view[place], "_momentum").detach()
        shuffled = torch.cat([result["outputs"][f"k{i}"] for result in found])
        torch.testing.assert_close(shuffled, keys)
        unshuffled = torch.cat([project(untrained(), part) for part in view.chunk(WORLD)])
        assert not torch.allclose(shuffled, unshuffled, rtol=1e-3)


def test_queues_of_all_processes_hold_all_keys_in_order(found):
    assert torch.equal(found[0]["queue"], found[1]["queue"])
    for view, queue in enumerate(found[0]["queue"], start=1):
        keys = torch.cat([result["outputs"][f"k{view}"] for result in found])
        expected = nn.functional.normalize(keys, dim=1)
        torch.testing.assert_close(queue[:, : WORLD * ROWS].T, expected)


def test_statistics_of_batch_norm_are_those_of_the_shuffled_rows(found):
    method = copy.deepcopy(untrained())
    order = generator("moco shuffle", PROGRESS.seed, PROGRESS.step).permutation(WORLD * ROWS)
    for view in Case("moco").batch(dtype=torch.float64).views:
        method.encoder_momentum(view[order[:ROWS]])
    for buffer, expected in zip(
        found[0]["statistics"], method.encoder_momentum.buffers(), strict=True
    ):
        torch.testing.assert_close(buffer, expected)
