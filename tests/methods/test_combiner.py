"""Combiner: InfoNCE against the sum it is, weighted sums by hand, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sslsv import distributed
from sslsv.config import from_dict
from sslsv.datasets.views import DatasetConfig
from sslsv.encoders.resnet34 import ResNet34Config
from sslsv.errors import ConfigError
from sslsv.methods.combiner import Combiner, CombinerConfig, LossConfig, accuracy, info_nce

SEEDS = st.integers(0, 1000)
SMALL = {"projector_hidden_dim": 12, "projector_output_dim": 10}
WORLD = 2
Y_LOSSES = [{"type": "infonce", "weight": 2.0, "temperature": 0.5}, {"type": "vicreg"}]
Z_LOSSES = [
    {"type": "barlowtwins", "weight": 0.5},
    {"type": "vicreg", "inv_weight": 2.0, "var_weight": 3.0, "cov_weight": 0.5},
]


def make_config(**fields: Any) -> CombinerConfig:
    """As a YAML file's section is made."""
    method = {"type": "combiner", **SMALL, **fields}
    config = from_dict({"encoder": {"type": "resnet34"}, "method": method}).method
    assert isinstance(config, CombinerConfig)
    return config


def make_method(**fields: Any) -> Combiner:
    return Combiner(make_config(**fields), Tiny())


def refuse(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(**fields)
    return str(caught.value)


def draw(seed: int, n: int = 6, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return base + 0.5, base + 0.6 * noise


def draw_outputs(n: int = 6) -> dict[str, Tensor]:
    (y1, y2), (z1, z2) = draw(0, n), draw(1, n, dim=3)
    return {"y1": y1, "y2": y2, "z1": z1, "z2": z2}


# ---------------------------------------------------------------------------- naive losses


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def info_nce_oracle(z1: Tensor, z2: Tensor, temperature: float = 0.2) -> float:
    anchors, keys = z1.tolist(), z2.tolist()
    total = 0.0
    for i, anchor in enumerate(anchors):
        similar = [math.exp(cosine(anchor, key) / temperature) for key in keys]
        total -= math.log(similar[i] / sum(similar))
    return total / len(anchors)


def accuracy_oracle(z1: Tensor, z2: Tensor) -> float:
    anchors, keys = z1.tolist(), z2.tolist()
    cosines = [[cosine(anchor, key) for key in keys] for anchor in anchors]
    return sum(row[i] == max(row) for i, row in enumerate(cosines)) / len(cosines)


def centred(z: Tensor) -> list[list[float]]:
    return [[x - sum(c) / len(c) for x in c] for c in z.T.tolist()]


def vicreg_oracle(
    z1: Tensor, z2: Tensor, inv: float = 1, var: float = 1, cov: float = 0.04
) -> float:
    difference = (z1 - z2).flatten().tolist()
    total = inv * dot(difference, difference) / len(difference)
    for columns in (centred(z1), centred(z2)):
        free = len(columns[0]) - 1
        for i, a in enumerate(columns):
            total += var * max(0, 1 - math.sqrt(dot(a, a) / free + 1e-4)) / len(columns)
            for j, b in enumerate(columns):
                total += cov * (i != j) * (dot(a, b) / free) ** 2 / len(columns)
    return total


def cross_correlation(z1: Tensor, z2: Tensor) -> list[list[float]]:
    n = len(z1)
    scaled = [
        [[x / math.sqrt(dot(c, c) / n + 1e-5) for x in c] for c in centred(z)] for z in (z1, z2)
    ]
    return [[dot(a, b) / n for b in scaled[1]] for a in scaled[0]]


def from_correlation(c: list[list[float]], lamda: float = 0.05) -> float:
    return sum(
        (1 - x) ** 2 if i == j else lamda * x**2
        for i, row in enumerate(c)
        for j, x in enumerate(row)
    )


# ---------------------------------------------------------------------------- InfoNCE


@given(seed=SEEDS, n=st.integers(1, 8), dim=st.integers(1, 6), temperature=st.floats(0.03, 2))
def test_info_nce_equals_the_paper(seed, n, dim, temperature):
    z1, z2 = draw(seed, n, dim)
    expected = info_nce_oracle(z1, z2, temperature)
    assert info_nce(z1, z2, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=SEEDS)
def test_info_nce_equals_the_paper_in_float32(seed):
    z1, z2 = (z.float() for z in draw(seed, n=16, dim=8))
    loss = info_nce(z1, z2, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(info_nce_oracle(z1, z2), rel=1e-5)


def test_embeddings_that_are_all_equal_give_the_log_of_their_number():
    z = torch.full((7, 3), 2.5, dtype=torch.float64)
    assert info_nce(z, z, 0.2).item() == pytest.approx(math.log(7), abs=1e-12)


def test_gradient_of_info_nce():
    z1, z2 = (z.requires_grad_() for z in draw(0))
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.2), (z1, z2))


@given(seed=SEEDS, n=st.integers(1, 8))
def test_accuracy_is_the_share_of_nearest_positives(seed, n):
    z1, z2 = draw(seed, n)
    assert accuracy(z1, z2).item() == pytest.approx(accuracy_oracle(z1, z2))


@pytest.mark.parametrize(("order", "expected"), [([0, 1, 2, 3], 1), ([1, 0, 2, 3], 0.5)])
def test_accuracy_by_hand(order, expected):
    z = torch.eye(4)
    assert accuracy(z, 3 * z[order]).item() == expected


# ---------------------------------------------------------------------------- the sum


def test_loss_is_the_weighted_sum_of_both_lists():
    outputs = draw_outputs()
    loss, metrics = make_method(Y_losses=Y_LOSSES, Z_losses=Z_LOSSES).loss(outputs, None)  # type: ignore[arg-type]
    (y1, y2, z1, z2) = outputs.values()
    y = 2 * info_nce_oracle(y1, y2, 0.5) + vicreg_oracle(y1, y2)
    z = 0.5 * 0.025 * from_correlation(cross_correlation(z1, z2)) + vicreg_oracle(z1, z2, 2, 3, 0.5)
    assert loss.item() == pytest.approx(y + z, rel=1e-9)
    assert {name: value.item() for name, value in metrics.items()} == {
        "train/loss": pytest.approx(y + z, rel=1e-9),
        "train/Y_loss": pytest.approx(y, rel=1e-9),
        "train/Z_loss": pytest.approx(z, rel=1e-9),
        "train/Y_accuracy": pytest.approx(accuracy_oracle(y1, y2)),
        "train/Z_accuracy": pytest.approx(accuracy_oracle(z1, z2)),
    }


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"type": "infonce"}, lambda a, b: info_nce_oracle(a, b, 0.2)),
        ({"type": "vicreg"}, lambda a, b: vicreg_oracle(a, b, 1, 1, 0.04)),
        (
            {"type": "barlowtwins"},
            lambda a, b: 0.025 * from_correlation(cross_correlation(a, b), 0.05),
        ),
        (
            {"type": "barlowtwins", "lamda": 0.3, "scale": 1.0},
            lambda a, b: from_correlation(cross_correlation(a, b), 0.3),
        ),
    ],
)
def test_each_loss_alone(loss, expected):
    outputs = draw_outputs()
    found, metrics = make_method(Y_losses=[loss]).loss(outputs, None)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected(outputs["y1"], outputs["y2"]), rel=1e-9)
    assert metrics.keys() == {"train/loss", "train/Y_loss", "train/Y_accuracy"}


def test_gradient():
    method = make_method(Y_losses=Y_LOSSES, Z_losses=Z_LOSSES)
    outputs = {name: x.requires_grad_() for name, x in draw_outputs().items()}

    def run(*parts: Tensor) -> Tensor:
        return method.loss(dict(zip(outputs, parts, strict=True)), None)[0]  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(run, tuple(outputs.values()))


def test_outputs_are_embeddings_and_projections_of_each_view():
    method = make_method(Z_losses=Z_LOSSES).double().eval()
    views = list(torch.randn(2, 3, 800, dtype=torch.float64))
    outputs = method(views)
    assert list(outputs) == ["y1", "y2", "z1", "z2"]
    for i, view in enumerate(views, 1):
        y = method.encoder(view)
        torch.testing.assert_close(outputs[f"y{i}"], y)
        torch.testing.assert_close(outputs[f"z{i}"], method.projector(y))


def test_a_projector_that_no_loss_sees_is_not_built():
    method = make_method(Y_losses=Y_LOSSES)
    assert not [name for name in method.state_dict() if name.startswith("projector")]


# ---------------------------------------------------------------------------- two processes


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD
    )
    outputs = {name: x.chunk(WORLD)[rank] for name, x in draw_outputs(n=10).items()}
    _, metrics = make_method(Y_losses=Y_LOSSES, Z_losses=Z_LOSSES).loss(outputs, None)  # type: ignore[arg-type]
    torch.save(dict(metrics), folder / f"{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


def test_over_processes_all_but_barlow_twins_is_that_of_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    mean = {name: sum(result[name].item() for result in found) / WORLD for name in found[0]}
    y1, y2, z1, z2 = draw_outputs(n=10).values()
    assert mean["train/Y_loss"] == pytest.approx(
        2 * info_nce_oracle(y1, y2, 0.5) + vicreg_oracle(y1, y2), rel=1e-9
    )
    assert mean["train/Y_accuracy"] == pytest.approx(accuracy_oracle(y1, y2))
    # Its batch norm is of each process's own rows, and the correlations are averaged.
    parts = [cross_correlation(a, b) for a, b in zip(z1.chunk(2), z2.chunk(2), strict=True)]
    c = [[(x + y) / 2 for x, y in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    assert mean["train/Z_loss"] == pytest.approx(
        0.5 * 0.025 * from_correlation(c) + vicreg_oracle(z1, z2, 2, 3, 0.5), rel=1e-9
    )
    whole = from_correlation(cross_correlation(z1, z2))
    assert abs(from_correlation(c) - whole) > 1e-3


# ---------------------------------------------------------------------------- bad input


def test_hyper_parameters_belong_to_a_type():
    message = refuse(Y_losses=[{"type": "vicreg"}, {"type": "infonce", "lamda": 0.1}])
    assert message == ("method.Y_losses.1.lamda: is not of 'infonce', which has temperature")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"type": "infonce", "temperature": 0.0}, "temperature: must be positive, got 0"),
        ({"type": "infonce", "temperature": -1.0}, "temperature: must be 0 or more, got -1.0"),
        ({"type": "infonce", "weight": 0.0}, "weight: must be positive, got 0"),
        ({"type": "vicreg", "cov_weight": -1.0}, "cov_weight: must be 0 or more, got -1.0"),
        ({"type": "barlowtwins", "scale": 0.0}, "scale: must be positive, got 0"),
    ],
)
def test_values_out_of_range(loss, message):
    assert refuse(Z_losses=[loss]) == f"method.Z_losses.0.{message}"


def test_weights_of_terms_may_be_0():
    assert LossConfig(type="vicreg", cov_weight=0.0).parameters()["cov_weight"] == 0


def test_unknown_loss():
    assert "expected one of infonce, vicreg, barlowtwins" in refuse(Y_losses=[{"type": "byol"}])


def test_no_loss_at_all():
    assert refuse().startswith("method.Y_losses: give at least one entry here or in Z_losses")


def test_losses_on_projections_without_projector():
    message = refuse(Z_losses=Z_LOSSES, enable_projector=False)
    assert message.startswith("method.Z_losses: ")
    assert "enable_projector: false" in message


def test_a_batch_of_one():
    config = make_config(Y_losses=Y_LOSSES)
    config.check(2, ResNet34Config(type="resnet34"), DatasetConfig())
    with pytest.raises(ConfigError, match=r"^trainer\.batch_size: combiner"):
        config.check(1, ResNet34Config(type="resnet34"), DatasetConfig())
