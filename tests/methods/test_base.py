"""What every registered method keeps to, whatever its loss."""

import pytest
import torch
from torch import Tensor

from sslsv.datasets.views import Batch
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.methods.base import Method, Progress
from sslsv.registry import METHODS

N, DIM = 4, 16  # utterances of a batch, size of an embedding
VIEWS = {"single": [8000], "siamese": [8000] * 2, "multicrop": [8000] * 2 + [5000] * 4}
SMALL: dict[str, dict[str, object]] = {  # fields that make a method's own parts small
    "simclr": {"projector_hidden_dim": 16, "projector_output_dim": 8},
}


@pytest.fixture(params=METHODS.names())
def method(request: pytest.FixtureRequest) -> Method:
    entry = METHODS.get(request.param)
    config = entry.config(type=request.param, **SMALL.get(request.param, {}))
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=16, encoder_dim=DIM))
    return entry.cls(config, encoder)


def make_views(method: Method, rows: int = N) -> list[Tensor]:
    return [torch.randn(rows, length) for length in VIEWS[method.views]]


def make_batch(views: list[Tensor]) -> Batch:
    return Batch(torch.arange(len(views[0])), torch.arange(len(views[0])) % 2, views)


def test_outputs_are_named_tensors_with_the_batch_first(method):
    outputs = method(make_views(method))
    assert outputs
    assert all(isinstance(x, Tensor) and len(x) == N for x in outputs.values())
    assert set(method.positives) <= outputs.keys()


def test_forward_uses_every_trainable_parameter(method):
    outputs = method(make_views(method))
    sum(x.square().sum() for x in outputs.values() if x.requires_grad).backward()
    unused = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_loss_is_a_finite_scalar_that_is_logged_without_its_graph(method):
    views = make_views(method)
    loss, metrics = method.loss(method(views), make_batch(views))
    assert loss.shape == ()
    assert loss.requires_grad
    assert loss.isfinite()
    assert metrics["train/loss"] == loss
    assert all(m.shape == () and not m.requires_grad for m in metrics.values())


def test_loss_has_no_parameters_of_its_own(method):
    views = make_views(method)
    outputs = {name: x.detach() for name, x in method(views).items()}
    assert not method.loss(outputs, make_batch(views))[0].requires_grad


def test_embeddings_are_one_vector_an_utterance(method):
    assert method.eval().embed(torch.randn(3, 9000)).shape == (3, DIM)


def test_replicas_that_share_a_batch_give_the_outputs_of_the_whole(method):
    """What DataParallel does; batch norm must not see the batch for that."""
    views, method = make_views(method), method.eval()
    whole = method(views)
    parts = [method([view[rows] for view in views]) for rows in (slice(0, 1), slice(1, N))]
    for name, x in whole.items():
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, x, rtol=1e-4, atol=1e-5)


def test_optimiser_groups_hold_every_trainable_parameter_once(method):
    grouped = [id(p) for group in method.param_groups() for p in group["params"]]
    trainable = {id(p) for p in method.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable


def test_hooks_take_the_progress(method):
    method.on_train_start(Progress(0, 10, 0, 2))
    method.on_epoch_start(Progress(0, 10, 0, 2))
    method.on_step_start(Progress(0, 10, 0, 2))
    method.on_step_end({}, None, Progress(1, 10, 0, 2), torch.zeros(()))


def test_the_encoder_keeps_its_names(method):
    own, encoder = method.state_dict(), method.encoder.state_dict()
    assert {f"encoder.{name}" for name in encoder} <= own.keys()
