"""What methods on two views share; the projector and the joined batch are tested with SimCLR."""

import math

import pytest
import torch
from cases import Tiny

from sslsv.config import from_dict
from sslsv.errors import ConfigError
from sslsv.methods.siamese import Siamese, SiameseConfig, unit_std


def make_method(**fields: object) -> Siamese:
    return Siamese(SiameseConfig(type="siamese", **fields), Tiny())  # type: ignore[arg-type]


def test_names_and_shapes_of_weights_are_those_of_published_checkpoints():
    state = make_method(projector_hidden_dim=12, projector_output_dim=10).state_dict()
    found = {k: tuple(v.shape) for k, v in state.items() if k.startswith("projector.")}
    norm = {"weight": (12,), "bias": (12,), "running_mean": (12,), "running_var": (12,)}
    norm["num_batches_tracked"] = ()
    assert found == {
        "projector.0.weight": (12, 16),
        "projector.0.bias": (12,),
        **{f"projector.1.{name}": shape for name, shape in norm.items()},
        "projector.3.weight": (12, 12),
        "projector.3.bias": (12,),
        **{f"projector.4.{name}": shape for name, shape in norm.items()},
        "projector.6.weight": (10, 12),
        "projector.6.bias": (10,),
    }


def test_each_view_comes_out_under_its_own_name():
    method = make_method(projector_hidden_dim=12, projector_output_dim=10).double().eval()
    views = list(torch.randn(2, 3, 800, dtype=torch.float64))
    outputs = method(views)
    assert list(outputs) == ["z1", "z2"]
    for z, view in zip(outputs.values(), views, strict=True):
        torch.testing.assert_close(z, method.projector(method.encoder(view)))


def test_the_second_view_is_the_positive():
    assert (Siamese.views, Siamese.positives) == ("siamese", ("z2",))


@pytest.mark.parametrize("kind", ["lim", "barlow_twins", "vicreg", "vibcreg", "combiner"])
def test_defaults_are_those_of_the_reference(kind):
    fields = {"Z_losses": [{"type": "infonce"}]} if kind == "combiner" else {}
    method = {"type": kind, **fields}
    config = from_dict({"encoder": {"type": "resnet34"}, "method": method}).method
    assert config.enable_projector
    assert (config.projector_hidden_dim, config.projector_output_dim) == (8192, 8192)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_projector_of_so_many_layers_is_the_product_of_them(layers):
    method = make_method(
        projector_hidden_dim=12, projector_output_dim=10, projector_layers=layers
    ).eval()
    state, x = method.state_dict(), torch.randn(5, 16)
    linear = [k for k, v in state.items() if k.startswith("projector.") and v.ndim == 2]
    assert linear == [f"projector.{3 * i}.weight" for i in range(layers)]
    expected = x
    for i, name in enumerate(linear):
        expected = expected @ state[name].T + state[name.replace("weight", "bias")]
        if i < layers - 1:  # fresh statistics: mean 0, variance 1
            expected = (expected / math.sqrt(1 + 1e-5)).clamp(min=0)
    torch.testing.assert_close(method.projector(x), expected)


@pytest.mark.parametrize(
    "name", ["projector_hidden_dim", "projector_output_dim", "projector_layers"]
)
def test_sizes_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"^{name}: must be positive, got 0$"):
        SiameseConfig(type="siamese", **{name: 0})


# ---------------------------------------------------------------------------- spread of rows


def test_rows_that_are_spread_evenly_have_the_standard_deviation_of_a_sphere():
    z = torch.randn(20_000, 16, dtype=torch.float64)
    assert unit_std(5 * z).item() == pytest.approx(1 / math.sqrt(16), rel=0.01)


def test_rows_in_one_direction_have_none_whatever_their_length():
    z = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * torch.tensor([[1.0], [2.0], [7.0]])
    assert unit_std(z).item() == pytest.approx(0, abs=1e-12)


def test_spread_by_hand():
    z = torch.tensor([[2.0, 0.0], [0.0, 5.0]], requires_grad=True)  # unit rows (1, 0), (0, 1)
    spread = unit_std(z)
    assert spread.item() == pytest.approx(math.sqrt(0.5))
    assert not spread.requires_grad
