"""AAM-softmax and plain softmax against their formulas; a frozen encoder that is frozen."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sslsv.datasets.views import Batch
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.base import Progress
from sslsv.methods.supervised import Supervised, SupervisedConfig

SEEDS = st.integers(0, 1000)


def make_method(encoder: Any = None, **fields: Any) -> Supervised:
    config = SupervisedConfig(type="supervised", **{"nb_classes": 6} | fields)
    return Supervised(config, encoder or Tiny())


def make_batch(labels: Tensor, samples: int = 800) -> Batch:
    views = [torch.randn(len(labels), samples)]
    return Batch(torch.arange(len(labels)), labels, views)


def oracle(logits: Any, labels: list[int], scale: float, m: float) -> float:
    """Equation 3 of arXiv 1801.07698, row by row."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        theta = math.acos(float(row[label]))
        own = math.cos(theta + m) if theta + m <= math.pi else math.cos(theta) - m * math.sin(m)
        others = [math.exp(scale * float(x)) for j, x in enumerate(row) if j != label]
        total -= scale * own - math.log(math.exp(scale * own) + sum(others))
    return total / len(labels)


@given(seed=SEEDS, scale=st.floats(1, 40), m=st.floats(0, 1))
def test_aam_softmax_is_that_of_the_paper(seed, scale, m):
    rng = np.random.default_rng(seed)
    cosines, labels = np.cos(rng.uniform(0, np.pi, (5, 6))), rng.integers(0, 6, 5)
    method = make_method(aam_scale=scale, aam_margin=m)
    outputs = {"logits": torch.from_numpy(cosines), "norms": torch.ones(5, 1).double()}
    loss, metrics = method.loss(outputs, make_batch(torch.from_numpy(labels)))
    expected = oracle(cosines, labels.tolist(), scale, m)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert metrics["train/margin"].item() == pytest.approx(m)
    single = {name: x.float() for name, x in outputs.items()}
    loss, _ = method.loss(single, make_batch(torch.from_numpy(labels)))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_gradient_of_the_whole():
    method = make_method(aam_scale=3.0).double()
    y = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    w = method.classifier.classifier_weight
    batch = make_batch(torch.tensor([0, 5, 2, 2]))

    def loss(y: Tensor, _: Tensor) -> Tensor:
        norms = y.norm(dim=-1, keepdim=True)
        return method.loss({"logits": method.classifier(y), "norms": norms}, batch)[0]

    assert torch.autograd.gradcheck(loss, (y, w))


def test_cosines_are_those_of_embeddings_and_class_vectors():
    method, batch = make_method().eval(), make_batch(torch.tensor([0, 1, 2]))
    cosines = method(batch.views)["logits"]
    y = method.encoder(batch.views[0]).detach().numpy()
    w = method.state_dict()["classifier.classifier_weight"].numpy()
    for i in range(3):
        for j in range(6):
            expected = y[i] @ w[j] / np.linalg.norm(y[i]) / np.linalg.norm(w[j])
            assert cosines[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_cosines_are_float32_where_the_network_is_bfloat16():
    method, batch = make_method().eval(), make_batch(torch.tensor([0, 1, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        y = method.encoder(batch.views[0])
        cosines = method.classifier(y)
    assert (y.dtype, cosines.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(cosines, method.classifier(y.float()))


def test_linear_classifier_is_plain_cross_entropy():
    method, batch = make_method(classifier="linear").eval(), make_batch(torch.tensor([0, 5, 2]))
    outputs = method(batch.views)
    loss, metrics = method.loss(outputs, batch)
    state = method.state_dict()
    y = method.encoder(batch.views[0])
    scores = (y @ state["classifier.weight"].T + state["classifier.bias"]).tolist()
    total = sum(
        math.log(sum(map(math.exp, row))) - row[label]
        for row, label in zip(scores, batch.labels.tolist(), strict=True)
    )
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    assert metrics.keys() == {"train/loss", "train/accuracy"}


@pytest.mark.parametrize("classifier", ["speaker", "linear"])
def test_accuracy_counts_the_best_class_whatever_the_margin(classifier):
    method = make_method(classifier=classifier, aam_margin=1.0)
    logits = torch.tensor([[0.9, 0.8], [0.1, 0.2], [0.3, 0.31], [0.5, -0.5]])
    outputs = {"logits": logits, "norms": torch.ones(4, 1)}
    _, metrics = method.loss(outputs, make_batch(torch.tensor([0, 0, 1, 0])))
    assert isinstance(metrics["train/accuracy"], Tensor)
    assert metrics["train/accuracy"].item() == 0.75


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_a_scheduled_margin_grows_over_the_first_half(epochs):
    method = make_method(aam_margin=0.4, aam_margin_scheduler=True)
    outputs = {"logits": torch.zeros(2, 6), "norms": torch.ones(2, 1)}
    batch = make_batch(torch.tensor([0, 1]))
    for share, expected in ((0, 0), (0.125, 0.4 * 0.14644661), (0.25, 0.2), (0.5, 0.4), (0.9, 0.4)):
        method.progress = Progress(round(40 * epochs * share), 40 * epochs, 0, epochs)
        _, metrics = method.loss(outputs, batch)
        assert metrics["train/margin"].item() == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------- freezing


class WithDropout(Tiny):
    def forward(self, wave: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(wave), 0.5, self.training)


def test_a_frozen_encoder_is_bit_identical_after_training():
    method = make_method(WithDropout(), freeze_encoder=True)
    batch = make_batch(torch.tensor([0, 1, 2, 3]))
    optimizer = torch.optim.AdamW(method.param_groups(), 0.1, weight_decay=0.1)
    encoder, before = copy.deepcopy(method.encoder.state_dict()), method.embed(batch.views[0])
    classifier = copy.deepcopy(method.classifier.state_dict())
    for _ in range(3):
        method.train()
        loss, _ = method.loss(method(batch.views), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = method.encoder.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in encoder.items())  # buffers as well
    assert torch.equal(method.embed(batch.views[0]), before)
    trained = method.classifier.state_dict()
    assert not any(torch.equal(x, trained[name]) for name, x in classifier.items())


def test_a_frozen_encoder_stays_in_evaluation_mode():
    method = make_method(freeze_encoder=True)
    for mode in (None, True, False):
        assert (method if mode is None else method.train(mode)) is method
        assert not any(module.training for module in method.encoder.modules())
    assert not any(p.requires_grad for p in method.encoder.parameters())
    assert method.train().classifier.training
    assert [name for name, p in method.named_parameters() if p.requires_grad] == [
        "classifier.classifier_weight"
    ]


def test_an_encoder_that_is_not_frozen_is_trained():
    method = make_method()
    assert all(module.training for module in method.train().encoder.modules())
    assert all(p.requires_grad for p in method.encoder.parameters())


# ---------------------------------------------------------------------------- configuration


def test_defaults_are_those_of_the_reference():
    config = SupervisedConfig(type="supervised")
    assert (config.nb_classes, config.classifier, config.freeze_encoder) == (5994, "speaker", False)
    assert (config.aam_scale, config.aam_margin, config.aam_margin_scheduler) == (30, 0.2, False)


def test_size_and_names_of_published_checkpoints():
    method = make_method(ResNet34(ResNet34Config(type="resnet34")), nb_classes=5994)
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(4.51e6, abs=5e3)
    own = {name: x for name, x in method.state_dict().items() if not name.startswith("encoder.")}
    assert {name: tuple(x.shape) for name, x in own.items()} == {
        "classifier.classifier_weight": (5994, 512)
    }


def test_class_vectors_start_as_xavier_says():
    weight = make_method(nb_classes=3000).classifier.classifier_weight.detach()
    bound = math.sqrt(6 / (3000 + 16))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nb_classes": 1}, "nb_classes: must be at least 2, got 1"),
        ({"aam_scale": 0}, "aam_scale: must be positive, got 0"),
        ({"aam_margin": -0.2}, "aam_margin: must be from 0 to pi, got -0.2"),
        ({"aam_margin": 3.2}, "aam_margin: must be from 0 to pi, got 3.2"),
        (
            {"classifier": "linear", "aam_margin_scheduler": True},
            "aam_margin_scheduler: classifier 'linear' has no margin",
        ),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        SupervisedConfig(type="supervised", **fields)


def test_more_labels_than_classes_are_refused():
    config = SupervisedConfig(type="supervised", nb_classes=8)
    config.check_labels(8)
    message = r"method\.nb_classes: 8 is less than the 9 labels of dataset\.label_key"
    with pytest.raises(ConfigError, match=message):
        config.check_labels(9)
