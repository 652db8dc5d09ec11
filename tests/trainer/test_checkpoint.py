"""Checkpoints: what is not one is refused in a sentence, and a failed write harms nothing."""

import pickle
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sslsv.errors import CheckpointError, UserError
from sslsv.trainer import checkpoint

FILES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return checkpoint.checkpoint_path(tmp_path, "latest")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 2)


def state_of(module: nn.Module) -> dict[str, object]:
    return {"model": module.state_dict()}


def refusal(path: Path) -> str:
    """The message with which ``path`` is refused, one line that begins with it."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_name():
    expected = Path("models/x/checkpoints/model_epoch-3.pt")
    assert checkpoint.checkpoint_path(Path("models/x"), "epoch-3") == expected


def test_what_is_saved_is_loaded(path):
    state = state_of(Network()) | {"epoch": 3, "best_metric": 0.5, "config": '{"a": 1}'}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert loaded.keys() == state.keys()
    assert (loaded["epoch"], loaded["best_metric"], loaded["config"]) == (3, 0.5, '{"a": 1}')
    for name, tensor in Network().state_dict().items():
        assert loaded["model"][name].dtype == tensor.dtype
    assert torch.equal(loaded["model"]["head.weight"], state["model"]["head.weight"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------------------- damage


def test_missing(path):
    assert "no such checkpoint" in refusal(path)


def test_a_folder(tmp_path):
    assert "damaged, or not a checkpoint" in refusal(tmp_path)


def test_empty(path):
    path.parent.mkdir()
    path.touch()
    assert "damaged, or not a checkpoint" in refusal(path)


@FILES
@given(st.floats(0, 1, exclude_max=True))
def test_truncated(path, share):
    checkpoint.save(path, state_of(Network()))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged, or not a checkpoint" in refusal(path)


@FILES
@given(st.binary(max_size=200))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("content", [b"epoch: 3\n", "Ψ".encode(), b"\x80\x04.", b"PK\x03\x04"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_kinds_of_file(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert "damaged, or not a checkpoint" in refusal(path)


class Malice:
    """Unpickling it would create the file ``path``."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(path, tmp_path, zipped):
    path.parent.mkdir()
    state = {"model": {"w": torch.zeros(1)}, "epoch": Malice(tmp_path / "harm")}
    if zipped:
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    refusal(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content",
    [{"epoch": 1}, {"model": torch.zeros(2)}, {"model": {"w": 1.0}}, torch.zeros(2), [1, 2]],
    ids=["no model", "a tensor", "no tensors", "not a dict", "a list"],
)
def test_something_else_saved_by_torch(path, content):
    checkpoint.save(path, content)
    assert "not a checkpoint of a training (no entry 'model'" in refusal(path)


# ---------------------------------------------------------------------------- failed writes


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_checkpoint(path):
    checkpoint.save(path, {"model": {"w": torch.ones(2)}})
    before = path.read_bytes()
    big = {"model": {"w": torch.zeros(1_000_000)}}
    with pytest.raises(UserError, match=r"model_latest.pt: cannot be written"):  # noqa: SIM117
        with files_limited_to(100_000):
            checkpoint.save(path, big)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert torch.equal(checkpoint.load(path)["model"]["w"], torch.ones(2))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a\nb")])
def test_an_error_within_torch_leaves_the_old_checkpoint(path, monkeypatch, error):
    checkpoint.save(path, {"model": {"w": torch.ones(2)}})
    before = path.read_bytes()

    def save(state: object, file: object) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match="cannot be written") as caught:
        checkpoint.save(path, {"model": {}})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------------------- fitting a network


def test_weights_that_fit_are_loaded_whole():
    one, two = Network(), Network()
    checkpoint.load_weights(two, state_of(one), Path("a.pt"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor)


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "head.bias"), "it lacks 1 tensors: head.bias"),
        (lambda s: s | {"extra": torch.zeros(1)}, "it has 1 unknown tensors: extra"),
        (
            lambda s: s | {"head.bias": torch.zeros(5)},
            r"1 of its tensors differ in shape: head.bias is \(5,\), not \(2,\)",
        ),
        (
            lambda s: without(s, "head.bias") | {"extra": torch.zeros(1)},
            "lacks 1 tensors: head.bias; it has 1 unknown tensors: extra",
        ),
        (lambda s: {}, r"it lacks 9 tensors: encoder.0.weight, .* \(and 6 more\)"),
    ],
    ids=["missing", "extra", "shape", "both", "none"],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(change, message):
    network = Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    saved = change(Network().state_dict())
    with pytest.raises(CheckpointError, match=rf"^a.pt: does not fit .*{message}") as caught:
        checkpoint.load_weights(network, {"model": saved}, Path("a.pt"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_an_encoder_is_loaded_whatever_else_the_checkpoint_holds():
    saved, network = Network().state_dict(), Network()
    head = network.head.weight.clone()
    other = saved | {"head.weight": torch.zeros(7, 3), "projector.weight": torch.zeros(1)}
    remarks = checkpoint.load_encoder(network, {"model": other}, Path("a.pt"))
    assert remarks == ["not loaded: head.weight", "tensors left out: projector (1)"]
    assert torch.equal(network.head.weight, head)
    assert torch.equal(network.head.bias, saved["head.bias"])  # what fits is taken
    for name in ("0.weight", "0.bias", "1.running_var"):
        assert torch.equal(network.encoder.state_dict()[name], saved[f"encoder.{name}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "encoder.0.weight"), "it lacks 1 tensors: encoder.0.weight; take"),
        (
            lambda s: s | {"encoder.0.weight": torch.zeros(3, 5)},
            r"1 of its tensors differ in shape: encoder.0.weight is \(3, 5\), not \(3, 4\); take",
        ),
        (
            lambda s: s | {"encoder.2.weight": torch.zeros(3)},
            "it has 1 unknown tensors: encoder.2.weight; take",
        ),
    ],
    ids=["missing", "shape", "extra"],
)
def test_another_encoder_is_refused(change, message):
    saved = change(Network().state_dict())
    with pytest.raises(CheckpointError, match=rf"^a.pt: does not hold this encoder; {message}"):
        checkpoint.load_encoder(Network(), {"model": saved}, Path("a.pt"))


def test_files_are_readable_by_the_group(path):
    """A shared model folder must work, so the mode is that of any new file."""
    checkpoint.save(path, {"model": {}})
    (path.parent / "plain").touch()
    plain = (path.parent / "plain").stat().st_mode
    assert stat.filemode(path.stat().st_mode) == stat.filemode(plain)
