"""Checkpoints as the reference system wrote them, made from the names and shapes of that format.

Nothing of the lists below is taken from a model of this package.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslsv import experiment
from sslsv.config import load_config
from sslsv.errors import CheckpointError
from sslsv.methods.base import Method
from sslsv.registry import ENCODERS, METHODS
from sslsv.trainer import checkpoint, reference, resume

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


# ---------------------------------------------------------------------------- names and shapes


def norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def linear(name: str, before: int, after: int, *kernel: int) -> Shapes:
    """Also of a convolution, whose kernel it is."""
    return {f"{name}.weight": (after, before, *kernel), f"{name}.bias": (after,)}


def resnet34(base: int = 16, dim: int = 512, mels: int = 40) -> Shapes:
    shapes = {"conv.weight": (base, 1, 7, 7)} | norm("bn", base)
    before = base
    for stage, blocks in enumerate((3, 4, 6, 3)):
        c = base * 2**stage
        for i in range(blocks):
            name = f"block{stage + 1}.{i}"
            shapes[f"{name}.conv1.weight"] = (c, before, 3, 3)
            shapes |= norm(f"{name}.bn1", c)
            shapes[f"{name}.conv2.weight"] = (c, c, 3, 3)
            shapes |= norm(f"{name}.bn2", c)
            shapes |= linear(f"{name}.se.fc.0", c, c // 8) | linear(f"{name}.se.fc.2", c // 8, c)
            if before != c:
                shapes[f"{name}.downsample.0.weight"] = (c, before, 1, 1)
                shapes |= norm(f"{name}.downsample.1", c)
            before = c
    shapes |= {"pooling.attention": (c, 1)} | linear("pooling.sap_linear", c, c)
    return features(mels) | shapes | linear("fc", c, dim)


def ecapatdnn() -> Shapes:
    def unit(name: str, before: int, after: int, kernel: int) -> Shapes:
        return linear(f"{name}.conv.conv", before, after, kernel) | norm(f"{name}.norm", after)

    shapes = features(40) | unit("blocks.0", 40, 512, 5)
    for i in (1, 2, 3):
        shapes |= unit(f"blocks.{i}.tdnn1", 512, 512, 1)
        for j in range(7):
            shapes |= unit(f"blocks.{i}.res2net_block.blocks.{j}", 64, 64, 3)
        shapes |= unit(f"blocks.{i}.tdnn2", 512, 512, 1)
        shapes |= linear(f"blocks.{i}.se_block.conv1.conv", 512, 128, 1)
        shapes |= linear(f"blocks.{i}.se_block.conv2.conv", 128, 512, 1)
    shapes |= unit("mfa", 1536, 1536, 1) | unit("asp.tdnn", 3 * 1536, 128, 1)
    shapes |= linear("asp.conv.conv", 128, 1536, 1) | norm("asp_bn", 2 * 1536)
    return shapes | linear("fc.conv", 2 * 1536, 512, 1)


def tdnn() -> Shapes:
    shapes, before = features(40), 40
    for i, (c, kernel) in enumerate(zip((512, 512, 512, 512, 1500), (5, 3, 3, 1, 1), strict=True)):
        shapes |= linear(f"blocks.{i}.conv", before, c, kernel) | norm(f"blocks.{i}.bn", c)
        before = c
    return shapes | linear("linear1", 3000, 512) | norm("bn1", 512) | linear("linear2", 512, 512)


def features(mels: int) -> Shapes:
    return {
        "features_extractor.0.spectrogram.window": (400,),
        "features_extractor.0.mel_scale.fb": (257, mels),
    }


# The names that simpleaudiocnn and s3prl had are not known.
PUBLISHED: dict[str, Callable[[], Shapes]] = {
    "resnet34": resnet34,
    "ecapatdnn": ecapatdnn,
    "tdnn": tdnn,
}
COUNTS = {"resnet34": 1_437_078, "ecapatdnn": 7_075_008, "tdnn": 4_516_244}  # parameters
REGISTERED = [name for name in PUBLISHED if name in ENCODERS.names()]


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


# ---------------------------------------------------------------------------- contents


def window(kind: str = "hamming") -> np.ndarray:
    a = {"hamming": 0.54, "hann": 0.5}[kind]
    return a - (1 - a) * np.cos(2 * np.pi * np.arange(400) / 400)


def filters(bands: int) -> np.ndarray:
    """HTK triangles, (257, bands)."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bands + 2) / 2595) - 1)
    bins = np.arange(257) * 8000 / 256
    return np.array([np.interp(bins, edges[b : b + 3], [0, 1, 0]) for b in range(bands)]).T


def fill(shapes: Shapes, seed: int = 1) -> State:
    """Weights that are not those of any initialisation, and keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("spectrogram.window"):
            state[name] = torch.from_numpy(window()).float()
        elif name.endswith("mel_scale.fb"):
            state[name] = torch.from_numpy(filters(shape[1])).float()
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = 1 + 0.5 * noise.clamp(-1, 1)
        elif len(shape) > 1:
            state[name] = noise * (2 / noise[0].numel()) ** 0.5
        else:
            state[name] = 0.1 * noise
    return state


def make_method(encoder: dict[str, Any], method: dict[str, Any] | None = None) -> Method:
    from sslsv.config import from_dict

    config = from_dict({"encoder": encoder, "method": method or {"type": "simclr"}})
    return experiment.build_method(config)


SMALL = {"type": "resnet34", "base_dim": 8, "encoder_dim": 12}
SIMCLR = {"type": "simclr", "projector_hidden_dim": 10, "projector_output_dim": 6}
WAVES = torch.randn(2, 9000, generator=torch.Generator().manual_seed(5))
PATH = Path("old.pt")


def small_encoder(seed: int = 1, prefix: str = "encoder") -> State:
    return fill(under(prefix, resnet34(8, 12)), seed)


def projector(dim: int = 12, hidden: int = 10, out: int = 6) -> State:
    """Of the siamese methods: ``projector.{0,1,3,4,6}``."""
    shapes = linear("projector.0", dim, hidden) | norm("projector.1", hidden)
    shapes |= linear("projector.3", hidden, hidden) | norm("projector.4", hidden)
    return fill(shapes | linear("projector.6", hidden, out), seed=2)


def reloaded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``state`` written as the reference does, and read."""
    torch.save(state, folder / "model.pt")
    return checkpoint.load(folder / "model.pt")


def load(method: Method, model: State, folder: Path) -> list[str]:
    """Through a file, for evaluation."""
    return checkpoint.load_to_embed(method, reloaded({"model": model}, folder), PATH)


# ---------------------------------------------------------------------------- encoders


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_lists_above_have_the_published_numbers_of_parameters(name):
    other = ("running_mean", "running_var", "num_batches_tracked", "window", "fb")
    shapes = PUBLISHED[name]()
    count = sum(int(np.prod(s)) for key, s in shapes.items() if not key.endswith(other))
    assert count == COUNTS[name]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", REGISTERED)
def test_a_published_encoder_is_loaded_to_the_last_tensor(name, prefix, tmp_path):
    saved = fill(under("encoder", PUBLISHED[name]()))
    found = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        method = make_method({"type": name}, {"type": "simclr", "enable_projector": False})
        for p in method.parameters():
            torch.nn.init.normal_(p)
        assert load(method, {prefix + key: x for key, x in saved.items()}, tmp_path) == []
        own = method.state_dict()
        assert all(torch.equal(own[key], x) for key, x in saved.items())
        found.append(method.eval().embed(WAVES))
    assert torch.equal(*found)
    assert found[0].isfinite().all()
    assert found[0].std() > 1e-3


@pytest.mark.skipif("ecapatdnn" not in REGISTERED, reason="there is no ECAPA-TDNN yet")
def test_pooling_that_the_reference_made_and_did_not_use_is_left_out(tmp_path):
    shapes = ecapatdnn() | linear("fc.conv", 1536, 512, 1)
    method = make_method({"type": "ecapatdnn", "pooling": False}, {"type": "cpc"})
    saved = fill(under("encoder", shapes)) | {
        name: x for name, x in method.state_dict().items() if name.startswith("aggregator")
    }
    unused = [name for name in shapes if name.startswith("asp")]
    remarks = load(method, saved, tmp_path)
    assert remarks[-1] == f"tensors left out: encoder ({len(unused)})"
    assert torch.equal(method.encoder.fc.conv.weight, saved["encoder.fc.conv.weight"])

    whole = fill(under("encoder", ecapatdnn()))
    with pytest.raises(CheckpointError, match=r"fc.conv.weight is \(512, 3072, 1\), not \(512, 15"):
        checkpoint.load_encoder(method, {"model": whole}, PATH)


def test_another_seed_of_the_file_gives_other_embeddings(tmp_path):
    method, found = make_method(SMALL, SIMCLR), []
    for seed in (1, 2):
        load(method, small_encoder(seed), tmp_path)
        found.append(method.eval().embed(WAVES))
    assert (found[0] - found[1]).abs().max() > 0.1


# ---------------------------------------------------------------------------- told apart


def test_told_apart_by_the_configuration_that_ours_hold(tmp_path):
    model = {"encoder.w": torch.zeros(1)}
    assert reference.made(reloaded({"model": model}, tmp_path))
    assert not reference.made(reloaded({"model": model, "config": "{}"}, tmp_path))


def test_the_prefix_belongs_to_a_wrapper_only_where_every_name_has_it(tmp_path):
    w = torch.zeros(1)
    names = lambda *keys: list(reloaded({"model": dict.fromkeys(keys, w)}, tmp_path)["model"])  # noqa: E731
    assert names("module.a", "module.b.c") == ["a", "b.c"]
    assert names("module.a", "b") == ["module.a", "b"]
    assert names("module.module.a") == ["module.a"]
    ours = reloaded({"model": {"module.a": w}, "config": "{}"}, tmp_path)
    assert list(ours["model"]) == ["module.a"]


@pytest.mark.parametrize("number", [np.float64(3.25), np.float32(3.25), np.int64(3), np.int32(3)])
def test_numpy_numbers_become_plain_ones(number, tmp_path):
    state = {"epoch": 3, "best_metric": number, "model": {"w": torch.zeros(1)}}
    found = reloaded(state, tmp_path)
    assert type(found["best_metric"]) in (int, float)
    assert found["best_metric"] == number
    assert found["epoch"] == 3


def test_numbers_as_numpy_1_wrote_them(tmp_path):
    """It had its functions in another module."""
    torch.save({"best_metric": np.float64(3.25), "model": {}}, tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray\nscalar" in content
                content = content.replace(b"numpy._core.", b"numpy.core.")
            old.writestr(name, content)
    assert checkpoint.load(tmp_path / "old.pt")["best_metric"] == 3.25


# ---------------------------------------------------------------------------- nothing is run


class Malice:
    """Unpickling it would create the file ``path``."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "hide",
    [
        lambda x: {"best_metric": x},
        lambda x: {"best_metric": np.float64(1), "epoch": x},
        lambda x: {"optimizer": {"state": {}, "param_groups": [{"lr": x}]}},
        lambda x: {"best_metric": np.array(x, dtype=object)},
        lambda x: {"best_metric": np.array([x], dtype=object)[()]},
    ],
    ids=["metric", "beside a number", "optimizer", "numpy object", "numpy array"],
)
def test_code_beside_or_inside_numbers_is_not_run(hide, tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, **hide(Malice(tmp_path / "harm"))}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        checkpoint.load(tmp_path / "a")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "value", [np.zeros(3), np.str_("x"), np.dtype("O"), np.datetime64("2020-01-01"), print, Path]
)
def test_nothing_but_numbers_is_let_in(value, tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, "best_metric": value}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        checkpoint.load(tmp_path / "a")


def test_numbers_are_let_in_for_one_reading_only(tmp_path):
    before = set(torch.serialization.get_safe_globals())  # kept in no order
    reloaded({"model": {"w": torch.zeros(1)}, "best_metric": np.float64(1)}, tmp_path)
    assert set(torch.serialization.get_safe_globals()) == before


# ---------------------------------------------------------------------------- for evaluation


def test_what_embedding_needs_not_may_be_missing(tmp_path):
    remarks = load(make_method(SMALL, SIMCLR), small_encoder(), tmp_path)
    assert len(remarks) == 1
    assert remarks[0].startswith("not loaded: projector.0.weight, projector.0.bias, projector.1.")


def test_what_has_no_place_is_left_out_and_counted(tmp_path):
    more = {"ssps.ref_queue": torch.zeros(4), "ssps.pos_queue": torch.zeros(4)}
    more |= {"loss_fn.t": torch.zeros(1)}
    method = make_method(SMALL, SIMCLR)
    remarks = load(method, small_encoder() | projector() | more, tmp_path)
    assert remarks == ["tensors left out: ssps (2), loss_fn (1)"]
    expected = projector()["projector.6.weight"]
    assert torch.equal(method.get_parameter("projector.6.weight"), expected)


def without(state: State, *endings: str) -> State:
    return {name: x for name, x in state.items() if not name.endswith(endings)}


REFUSALS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (lambda s: without(s, "fc.bias"), r"it lacks \d+ tensors: encoder\.\S*fc\.\S*bias"),
    "buffer": (lambda s: without(s, "encoder.bn.running_var"), "it lacks 1 tensors: encoder.bn.ru"),
    "shape": (
        lambda s: s | {"encoder.fc.weight": torch.zeros(12, 7)},
        r"1 of its tensors differ in shape: encoder.fc.weight is \(12, 7\), not \(12, 64\)",
    ),
    "extra": (
        lambda s: s | {"encoder.last_bn.weight": torch.zeros(12)},
        "it has 1 unknown tensors: encoder.last_bn.weight",
    ),
    "window": (
        lambda s: (
            s
            | {
                "encoder.features_extractor.0.spectrogram.window": torch.from_numpy(
                    window("hann")
                ).float()
            }
        ),
        r"its front-end is another one \(encoder.mel_\*\): encoder.features_extractor.0.spectrog",
    ),
    "projector alone": (lambda s: projector(), "it lacks [0-9]+ tensors: encoder"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("start", ["evaluate", "init_weights"])
def test_another_encoder_is_refused_and_nothing_is_loaded(refusal, start, tmp_path):
    change, message = REFUSALS[refusal]
    method = make_method(SMALL, SIMCLR)
    before = {name: x.clone() for name, x in method.state_dict().items()}
    state = reloaded({"model": change(small_encoder())}, tmp_path)
    loader = checkpoint.load_to_embed if start == "evaluate" else checkpoint.load_encoder
    with pytest.raises(CheckpointError, match=rf"^old.pt: does not hold .*; {message}") as caught:
        loader(method, state, PATH)
    assert str(caught.value).endswith(
        "; take the sections encoder and method from the config.yml of its training"
    )
    assert "\n" not in str(caught.value)
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())


def test_ours_stay_strict(tmp_path):
    state = reloaded({"model": small_encoder(), "config": "{}"}, tmp_path)
    with pytest.raises(CheckpointError, match="it lacks 16 tensors: projector"):
        checkpoint.load_to_embed(make_method(SMALL, SIMCLR), state, PATH)


def test_what_an_embedding_is_made_of_is_found():
    method = make_method(SMALL, SIMCLR).train()
    found = reference.read_by_embed(method)
    counters = {name for name in method.state_dict() if name.endswith("num_batches_tracked")}
    names = under("encoder", resnet34(8, 12))
    assert found == names.keys() - counters
    assert all(not x.any() for name, x in method.state_dict().items() if name in counters)


class Twofold(Method):
    """Embeds with a teacher and a head; the student is there as well."""

    views = "single"

    def __init__(self) -> None:
        source = make_method(SMALL, SIMCLR)
        super().__init__(source.config, source.encoder)
        self.encoder_momentum = make_method(SMALL, SIMCLR).encoder
        self.head = torch.nn.Linear(12, 4)
        self.other = torch.nn.Linear(12, 4)

    def embed(self, wave: Tensor, lengths: Any = None) -> Tensor:
        return self.head(self.encoder_momentum.embed(wave, lengths))


def test_what_is_embedded_with_must_be_there_too(tmp_path):
    student, teacher = small_encoder(1), small_encoder(2, "encoder_momentum")
    head = fill(linear("head", 12, 4))
    method = Twofold()
    assert load(method, student | teacher | head, tmp_path) == [
        "not loaded: other.weight, other.bias"
    ]
    assert torch.equal(method.encoder_momentum.fc.weight, teacher["encoder_momentum.fc.weight"])
    for lacking, message in [
        (student | head, "lacks .* tensors: encoder_momentum"),
        (student | teacher, "it lacks 2 tensors: head.weight, head.bias"),
        (student | teacher | head | {"head.more": torch.zeros(1)}, "1 unknown tensors: head.more"),
    ]:
        with pytest.raises(
            CheckpointError, match=f"hold what this method embeds with; .*{message}"
        ):
            load(Twofold(), lacking, tmp_path)


def test_a_teacher_that_init_weights_does_not_find_is_its_student(tmp_path):
    method, student = Twofold(), small_encoder()
    remarks = checkpoint.load_encoder(method, reloaded({"model": student}, tmp_path), PATH)
    count = len(resnet34(8, 12))
    assert f"tensors copied from the student: encoder_momentum ({count})" in remarks
    teacher = method.encoder_momentum.state_dict()
    assert all(torch.equal(teacher[k.removeprefix("encoder.")], x) for k, x in student.items())


def dino(prefix: str) -> Shapes:
    """A head of hidden size 9, bottleneck 7 and 11 outputs."""
    shapes = linear(f"{prefix}.mlp.0", 12, 9) | norm(f"{prefix}.mlp.1", 9)
    shapes |= linear(f"{prefix}.mlp.3", 9, 9) | norm(f"{prefix}.mlp.4", 9)
    shapes |= linear(f"{prefix}.mlp.6", 9, 7)
    last = f"{prefix}.last_layer.weight"
    return shapes | {f"{last}_g": (11, 1), f"{last}_v": (11, 7)}


@pytest.mark.skipif("dino" not in METHODS.names(), reason="there is no DINO yet")
def test_dino_is_loaded_whole_and_embeds_with_its_teacher(tmp_path):
    head = {"head_hidden_dim": 9, "head_bottleneck_dim": 7, "head_output_dim": 11}
    saved = small_encoder(1) | small_encoder(2, "encoder_momentum")
    saved |= fill(dino("head") | dino("head_momentum"))
    method = make_method(SMALL, {"type": "dino", **head})
    assert load(method, saved | {"loss_fn.center": torch.ones(1, 11)}, tmp_path) == []
    teacher = make_method(SMALL, SIMCLR)
    load(teacher, small_encoder(2), tmp_path)
    assert torch.equal(method.eval().embed(WAVES), teacher.eval().embed(WAVES))

    with pytest.raises(CheckpointError, match="what this method embeds with; it lacks"):
        load(make_method(SMALL, {"type": "dino", **head}), small_encoder(), tmp_path)


@pytest.fixture
def old_run(config_file: Path) -> Path:
    """The folder of ``config_file`` with a checkpoint of the reference, of another method."""
    folder = config_file.parent / "checkpoints"
    folder.mkdir()
    model = fill(under("encoder", resnet34(8, 32))) | projector(dim=32)
    torch.save({"model": model}, folder / "model_avg.pt")
    state = {"epoch": 1, "best_metric": np.float64(9.5), "model": model, "optimizer": {}}
    torch.save(state, folder / "model_latest.pt")
    return config_file.parent


@pytest.mark.parametrize("suffix", ["avg", "latest"])
def test_evaluation_of_an_old_run(old_run, suffix, capsys):
    metrics = experiment.evaluate(load_config(old_run / "config.yml"), suffix)
    assert 0 <= metrics["trained"]["sv_cosine/trials/eer"] <= 100
    said = capsys.readouterr().out
    assert f"checkpoints/model_{suffix}.pt; tensors left out: projector (16)\n" in said
    found = json.loads((old_run / "evaluation.json").read_text())
    assert found["epoch"] == (1 if suffix == "latest" else None)


def test_training_goes_on_after_an_old_run(old_run, capsys):
    experiment.train(load_config(old_run / "config.yml"))
    said = capsys.readouterr().out
    assert (
        "model_latest.pt after epoch 1; tensors left out: projector (16); its optimizer's" in said
    )
    assert "Epoch 2/2" in said
    assert not reference.made(checkpoint.load(old_run / "checkpoints/model_latest.pt"))


# ---------------------------------------------------------------------------- going on


def as_the_reference(trainer: Any, *, groups: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """The state of ``trainer`` in the format of the reference, parameters in these groups."""
    own = resume.state_of(trainer)
    (group,) = own["optimizer"]["param_groups"]
    assert sorted(i for ids in groups for i in ids) == group["params"]
    return {
        "epoch": own["epoch"],
        "best_metric": np.float64(0.5),
        "model": own["model"],
        "optimizer": {
            "state": own["optimizer"]["state"],
            "param_groups": [
                {**group, "lr": np.float64(group["lr"]), "params": list(ids)} for ids in groups
            ],
        },
    }


GROUPS = ((0, 1), (2, 3))  # the encoder, the head


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamw"])
def test_last_checkpoint_goes_on_as_if_nothing_had_happened(
    make_trainer, tmp_path, optimizer, capsys
):
    straight = make_trainer("straight", optimizer=optimizer)
    straight.fit()
    first = make_trainer("first", optimizer=optimizer, stop_at_epoch=2)
    first.fit()
    path = tmp_path / "old.pt"
    torch.save(as_the_reference(first, groups=GROUPS), path)

    second = make_trainer("second", optimizer=optimizer, last_checkpoint=path)
    second.resume()
    expected = f"{second.run_dir}: going on from {path} after epoch 2; with its optimizer's state\n"
    assert capsys.readouterr().out.endswith(expected)
    assert (second.epoch, second.step, second.best_metric) == (2, 6, None)
    second.fit()
    found = second.method.state_dict()
    assert all(torch.equal(found[name], x) for name, x in straight.method.state_dict().items())


def swapped(model: State) -> State:
    return dict(sorted(model.items()))  # bias before weight


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {**s, "optimizer": {}},
        lambda s: {key: value for key, value in s.items() if key != "optimizer"},
        lambda s: {**s, "model": swapped(s["model"])},
        lambda s: {**s, "model": without(s["model"], "head.bias")},
        lambda s: {
            **s,
            "optimizer": {
                **s["optimizer"],
                "param_groups": [{"params": [0, 1, 2, 3], "momentum": 0.9}],
            },
        },
        lambda s: {
            **s,
            "optimizer": {
                **s["optimizer"],
                "state": s["optimizer"]["state"] | {2: {"exp_avg": torch.zeros(5)}},
            },
        },
        lambda s: {
            **s,
            "optimizer": {
                **s["optimizer"],
                "param_groups": s["optimizer"]["param_groups"][:1],
            },
        },
    ],
    ids=["empty", "none", "another order", "fewer weights", "sgd", "another shape", "fewer groups"],
)
def test_an_optimizer_that_does_not_fit_starts_anew(make_trainer, tmp_path, change, capsys):
    first = make_trainer("first", stop_at_epoch=2)
    first.fit()
    path = tmp_path / "old.pt"
    torch.save(change(as_the_reference(first, groups=GROUPS)), path)
    second = make_trainer("second", last_checkpoint=path)
    second.resume()
    assert "; its optimizer's state does not fit this one, which starts anew\n" in (
        capsys.readouterr().out
    )
    assert (second.epoch, second.step) == (2, 6)
    assert torch.equal(second.method.encoder.weight, first.method.encoder.weight)
    assert not second.optimizer.state_dict()["state"]
    second.fit()
    assert second.epoch == 4


def test_weights_alone_have_no_epoch_to_go_on_from(make_trainer, tmp_path):
    torch.save({"model": make_trainer("first").method.state_dict()}, tmp_path / "model_avg.pt")
    trainer = make_trainer("second", last_checkpoint=tmp_path / "model_avg.pt")
    with pytest.raises(CheckpointError, match=r"model_avg.pt: .* give it as trainer.init_weights"):
        trainer.resume()


def test_init_weights_takes_weights_only(make_trainer, tmp_path, capsys):
    first = make_trainer("first", stop_at_epoch=1)
    first.fit()
    state = as_the_reference(first, groups=GROUPS)
    state["model"] = {f"module.{k}": x for k, x in state["model"].items()} | {
        "module.ssps.queue": torch.zeros(2)
    }
    torch.save(state, tmp_path / "old.pt")
    trainer = make_trainer("second", seed=8, init_weights=tmp_path / "old.pt")
    trainer.resume()
    assert (
        f"weights from {tmp_path}/old.pt; tensors left out: ssps (1)\n" in capsys.readouterr().out
    )
    assert torch.equal(trainer.method.head.weight, first.method.head.weight)
    assert (trainer.epoch, trainer.optimizer.state_dict()["state"]) == (0, {})
