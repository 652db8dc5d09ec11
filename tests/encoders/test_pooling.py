"""Pooling over time against loops in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslsv.encoders.pooling import (
    AttentiveStatisticsPooling,
    MeanPooling,
    MultiHeadFactorizedAttentivePooling,
    SelfAttentivePooling,
    StatisticsPooling,
    WeightedAveragePooling,
)


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def affine(layer: nn.Module, x: list[float]) -> list[float]:
    """A linear layer, or a convolution with kernels of size 1, on one vector."""
    rows = zip(layer.weight.flatten(1).tolist(), layer.bias.tolist(), strict=True)
    return [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in rows]


def check_gradients(pooling: nn.Module, x: torch.Tensor) -> None:
    """Of the input and of every parameter, against finite differences."""
    parameters = list(pooling.parameters())
    inputs = (x.requires_grad_(), *(p.detach().requires_grad_() for p in parameters))
    names = [name for name, _ in pooling.named_parameters()]

    def apply(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(pooling, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(apply, inputs)
    pooling(x).square().sum().backward()
    assert all(p.grad is not None for p in parameters)


def test_mean_pooling_equals_loops():
    x = double(2, 3, 5)
    expected = [[sum(values) / 5 for values in sample] for sample in x.tolist()]
    np.testing.assert_allclose(MeanPooling()(x).numpy(), expected, rtol=1e-12)


def test_self_attentive_pooling_equals_loops():
    pooling = SelfAttentivePooling(3).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    w, b = pooling.sap_linear.weight.tolist(), pooling.sap_linear.bias.tolist()
    a = pooling.attention[:, 0].tolist()
    expected = np.zeros((2, 3))
    for row, sample in enumerate(x.tolist()):
        scores = []
        for t in range(5):
            hidden = [
                math.tanh(b[i] + sum(w[i][j] * sample[j][t] for j in range(3))) for i in range(3)
            ]
            scores.append(math.exp(sum(h * v for h, v in zip(hidden, a, strict=True))))
        for c in range(3):
            weighted = sum(s * sample[c][t] for t, s in enumerate(scores))
            expected[row, c] = weighted / sum(scores)
    np.testing.assert_allclose(pooling(x).detach().numpy(), expected, rtol=1e-12)


def test_self_attentive_pooling_without_attention_is_the_mean():
    pooling = SelfAttentivePooling(4)
    torch.nn.init.zeros_(pooling.attention)
    x = torch.randn(2, 4, 7)
    torch.testing.assert_close(pooling(x), x.mean(dim=2))


def test_self_attentive_pooling_can_pick_one_frame():
    pooling = SelfAttentivePooling(1)
    torch.nn.init.ones_(pooling.sap_linear.weight)
    torch.nn.init.zeros_(pooling.sap_linear.bias)
    torch.nn.init.constant_(pooling.attention, 1000)
    x = torch.tensor([[[-1.0, 0.5, 2.0, 0.0]]])
    torch.testing.assert_close(pooling(x), torch.tensor([[2.0]]))


@pytest.mark.parametrize("correction", [0, 1])
def test_statistics_pooling_equals_loops(correction):
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = np.zeros((2, 6))
    for row, sample in enumerate(x.tolist()):
        for c, values in enumerate(sample):
            mean = sum(values) / 5
            variance = sum((v - mean) ** 2 for v in values) / (5 - correction)
            expected[row, c], expected[row, 3 + c] = mean, math.sqrt(variance)
    pooled = StatisticsPooling(correction)(x)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-12)


def test_least_variance_is_an_option():
    x = 1e-4 * double(1, 3, 50)
    assert StatisticsPooling()(x)[0, 3:].tolist() == pytest.approx([1e-5**0.5] * 3)
    expected = x.std(dim=2, correction=0)
    torch.testing.assert_close(StatisticsPooling(floor=1e-12)(x)[:, 3:], expected)


def test_statistics_of_a_constant_are_the_floor_and_have_a_gradient():
    x = torch.full((1, 2, 4), 3.0, requires_grad=True)
    pooled = StatisticsPooling()(x)
    torch.testing.assert_close(pooled, torch.tensor([[3.0, 3.0, 1e-5**0.5, 1e-5**0.5]]))
    pooled.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.25))  # of the mean alone


# ---------------------------------------------------------------------------- attentive statistics


def small_asp(context: bool = True) -> AttentiveStatisticsPooling:
    """Three channels, two hidden units, batch norm that is not the identity."""
    pooling = AttentiveStatisticsPooling(3, 2, context).double().eval()
    norm = pooling.tdnn["norm"]
    norm.running_mean.normal_(std=0.3)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return pooling


@pytest.mark.parametrize("context", [True, False])
def test_attentive_statistics_pooling_equals_loops(context):
    pooling, x, frames = small_asp(context), double(2, 3, 5), 5
    norm = pooling.tdnn["norm"]
    expected = np.zeros((2, 6))
    for row, sample in enumerate(x.tolist()):
        seen = [[sample[c][t] for c in range(3)] for t in range(frames)]
        if context:
            means = [sum(values) / frames for values in sample]
            stds = [
                math.sqrt(sum((v - m) ** 2 for v in values) / frames)
                for values, m in zip(sample, means, strict=True)
            ]
            seen = [frame + means + stds for frame in seen]
        scores = []
        for frame in seen:
            hidden = []
            for i, v in enumerate(affine(pooling.tdnn["conv"].conv, frame)):
                scale = norm.weight[i].item() / math.sqrt(norm.running_var[i].item() + 1e-5)
                v = (max(v, 0) - norm.running_mean[i].item()) * scale + norm.bias[i].item()
                hidden.append(math.tanh(v))
            scores.append(affine(pooling.conv.conv, hidden))
        for c in range(3):
            weights = softmax([frame[c] for frame in scores])
            mean = sum(w * v for w, v in zip(weights, sample[c], strict=True))
            variance = sum(w * (v - mean) ** 2 for w, v in zip(weights, sample[c], strict=True))
            expected[row, c], expected[row, 3 + c] = mean, math.sqrt(variance)
    np.testing.assert_allclose(pooling(x).detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("context", [True, False])
def test_attentive_statistics_pooling_gradients(context):
    check_gradients(small_asp(context), double(2, 3, 5))


def test_attentive_statistics_of_equal_scores_are_plain_statistics():
    pooling, x = small_asp(), double(2, 3, 5)
    nn.init.zeros_(pooling.conv.conv.weight)
    torch.testing.assert_close(pooling(x), StatisticsPooling(floor=1e-12)(x))


def test_attentive_statistics_of_a_constant_have_a_gradient():
    x = torch.full((2, 3, 5), 2.0, dtype=torch.float64, requires_grad=True)
    pooled = small_asp()(x)
    assert pooled[:, 3:].tolist() == [[1e-6] * 3] * 2
    pooled.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# ---------------------------------------------------------------------------- several layers


def test_weighted_average_pooling_equals_loops():
    pooling, x = WeightedAveragePooling(3, 4, 2).double(), double(2, 3, 4, 5)
    nn.init.normal_(pooling.weights)
    shares = softmax(pooling.weights.tolist())
    expected = []
    for sample in x.tolist():
        means = [
            sum(share * sum(layer[c]) / 5 for share, layer in zip(shares, sample, strict=True))
            for c in range(4)
        ]
        expected.append(affine(pooling.fc, means))
    np.testing.assert_allclose(pooling(x).detach().numpy(), expected, rtol=1e-9)


def small_mhfa() -> MultiHeadFactorizedAttentivePooling:
    pooling = MultiHeadFactorizedAttentivePooling(3, 4, 2, heads=2, compression=3).double()
    nn.init.normal_(pooling.weights_k)
    nn.init.normal_(pooling.weights_v)
    return pooling


def test_mhfa_equals_loops():
    pooling, x, frames = small_mhfa(), double(2, 3, 4, 5), 5
    expected = []
    for sample in x.tolist():
        mixed = []
        for weights, linear in (
            (pooling.weights_k, pooling.cmp_linear_k),
            (pooling.weights_v, pooling.cmp_linear_v),
        ):
            shares = softmax(weights.tolist())
            mixed.append(
                [
                    affine(
                        linear,
                        [sum(shares[i] * sample[i][c][t] for i in range(3)) for c in range(4)],
                    )
                    for t in range(frames)
                ]
            )
        keys, values = mixed
        scores = [affine(pooling.att_head, key) for key in keys]
        joined = []
        for head in range(2):
            shares = softmax([score[head] for score in scores])
            joined += [sum(shares[t] * values[t][i] for t in range(frames)) for i in range(3)]
        expected.append(affine(pooling.pooling_fc, joined))
    np.testing.assert_allclose(pooling(x).detach().numpy(), expected, rtol=1e-9)


def test_gradients_of_pooling_over_layers():
    check_gradients(small_mhfa(), double(2, 3, 4, 5))
    check_gradients(WeightedAveragePooling(3, 4, 2).double(), double(2, 3, 4, 5))


def test_mhfa_has_the_sizes_of_published_checkpoints():
    state = MultiHeadFactorizedAttentivePooling(13, 768, 256).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "weights_k": (13,),
        "weights_v": (13,),
        "cmp_linear_k.weight": (128, 768),
        "cmp_linear_k.bias": (128,),
        "cmp_linear_v.weight": (128, 768),
        "cmp_linear_v.bias": (128,),
        "att_head.weight": (64, 128),
        "att_head.bias": (64,),
        "pooling_fc.weight": (256, 64 * 128),
        "pooling_fc.bias": (256,),
    }


def test_layers_start_with_equal_weights():
    mhfa = MultiHeadFactorizedAttentivePooling(3, 4, 2, heads=2, compression=3)
    x = double(2, 3, 4, 5)
    for pooling in (WeightedAveragePooling(3, 4, 2).double(), mhfa.double()):
        torch.testing.assert_close(pooling(x), pooling(x.roll(1, dims=1)))
