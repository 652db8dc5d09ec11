"""Pooling over time against loops in numpy."""

import math

import numpy as np
import torch

from sslsv.encoders.pooling import SelfAttentivePooling, StatisticsPooling


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


def test_statistics_pooling_equals_loops():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = np.zeros((2, 6))
    for row, sample in enumerate(x.tolist()):
        for c, values in enumerate(sample):
            mean = sum(values) / 5
            variance = sum((v - mean) ** 2 for v in values) / 5  # biased
            expected[row, c], expected[row, 3 + c] = mean, math.sqrt(variance)
    np.testing.assert_allclose(StatisticsPooling()(x).numpy(), expected, rtol=1e-12)


def test_statistics_of_a_constant_are_the_floor_and_have_a_gradient():
    x = torch.full((1, 2, 4), 3.0, requires_grad=True)
    pooled = StatisticsPooling()(x)
    torch.testing.assert_close(pooled, torch.tensor([[3.0, 3.0, 1e-5**0.5, 1e-5**0.5]]))
    pooled.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.25))  # of the mean alone
