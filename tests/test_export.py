"""Exported models: the embeddings of the checkpoint, from a file that stands for itself."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from sslsv import __version__, cli, export
from sslsv.config import Config, from_dict, load_config, to_dict
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.encoders.frontend import log_mel
from sslsv.errors import CheckpointError
from sslsv.experiment import build_method
from sslsv.methods.base import Method, MethodConfig
from sslsv.registry import ENCODERS, METHODS, Entry
from sslsv.trainer import checkpoint

NO_ONNX = "the extra 'export' is not installed"
SMALL: dict[str, dict[str, Any]] = {
    "resnet34": {"base_dim": 8},
    "tdnn": {"channels": [16, 16, 16, 16, 24]},
    "ecapatdnn": {
        "channels": [16, 16, 16, 16, 24],
        "attention_channels": 8,
        "res2net_scale": 4,
        "se_channels": 8,
    },
}
NEEDS_FILES = {"huggingface", "s3prl"}  # encoders that read a pretrained model from a folder


def describe(encoder: dict[str, Any], method: dict[str, Any] | None = None, **more: Any) -> Config:
    encoder = {"encoder_dim": 32} | SMALL.get(encoder["type"], {}) | encoder
    return from_dict({"encoder": encoder, "method": method or {"type": "simclr"}, **more})


def write_checkpoint(config: Config, suffix: str = "latest") -> Method:
    """A checkpoint of weights that nothing but a file can bring back; the method in evaluation."""
    method = build_method(config)
    generator = torch.Generator().manual_seed(1)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.3, generator=generator)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter *= 0.8 + 0.4 * torch.rand(parameter.shape, generator=generator)
    assert config.run_dir is not None
    state = {"model": method.state_dict(), "config": to_dict(config), "epoch": 7}
    checkpoint.save(checkpoint.checkpoint_path(config.run_dir, suffix), state)
    return method.eval()


def session(path: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason=NO_ONNX)
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def sounds(rows: int, samples: int) -> Tensor:
    """Tones that come and go at different rates, in noise."""
    t = torch.arange(samples) / 16000
    pitch, rate = 150.0 * 2 ** torch.arange(rows)[:, None], 1 + torch.arange(rows)[:, None]
    tones = torch.sin(2 * np.pi * pitch * t) * torch.sin(2 * np.pi * rate * t).square()
    return 0.3 * tones + 0.01 * torch.randn(rows, samples)


def check_graph(path: Path, method: Method) -> None:
    """Several lengths and batch sizes, from the shortest waveform on."""
    graph = session(path)
    shortest = method.encoder.config.min_samples
    for rows, samples in ((1, shortest), (2, shortest + 1), (1, 16000), (4, 20777), (1, 40001)):
        wave = sounds(rows, samples)
        (found,) = graph.run(None, {"wave": wave.numpy()})
        with torch.no_grad():
            expected = method.embed(wave)
        assert found.shape == expected.shape
        error = torch.from_numpy(found) - expected
        assert error.norm() < 1e-4 * expected.norm()
        torch.testing.assert_close(
            F.normalize(torch.from_numpy(found)), F.normalize(expected), rtol=0, atol=1e-4
        )
        if rows > 1:  # weights that nobody trained tell little apart, so that much else would pass
            assert error.norm() < 0.01 * (expected - expected.mean(dim=0)).norm()


# ------------------------------------------------------------------------------- front-end

MELS: list[dict[str, Any]] = [
    {},
    {"mel_n_mels": 80, "mel_win_fn": "hann"},
    {"mel_n_mels": 20, "mel_n_fft": 400, "mel_win_length": 399, "mel_hop_length": 100},
    {"mel_n_mels": 12, "mel_n_fft": 255, "mel_win_length": 200, "mel_hop_length": 77},
]


def make_mel(fields: dict[str, Any]) -> tuple[EncoderConfig, Any]:
    config = EncoderConfig(type="any", **fields)
    windows = {"hamming": torch.hamming_window, "hann": torch.hann_window}
    return config, torchaudio.transforms.MelSpectrogram(
        n_fft=config.mel_n_fft,
        win_length=config.mel_win_length,
        hop_length=config.mel_hop_length,
        n_mels=config.mel_n_mels,
        window_fn=windows[config.mel_win_fn],
    )


def mel_oracle(mel: Any, wave: np.ndarray) -> np.ndarray:
    """Frame by frame and bin by bin: the sum over a window, its squared modulus, the filters."""
    size, window = mel.n_fft, mel.spectrogram.window.double().numpy()
    before = (size - len(window)) // 2
    padded = np.pad(wave, size // 2, mode="reflect")
    frames = []
    for start in range(0, len(padded) - size + 1, mel.hop_length):
        piece = padded[start + before : start + before + len(window)] * window
        n = before + np.arange(len(window))
        power = [
            abs(np.sum(piece * np.exp(-2j * np.pi * k * n / size))) ** 2
            for k in range(size // 2 + 1)
        ]
        frames.append(np.array(power) @ mel.mel_scale.fb.double().numpy())
    return np.stack(frames, axis=1)


class TestMelByConvolution:
    @pytest.mark.parametrize("fields", MELS)
    def test_is_what_the_formula_says(self, fields: dict[str, Any]) -> None:
        _, mel = make_mel(fields)
        wave = torch.randn(1000, dtype=torch.float64)
        found = export.MelByConvolution(mel.double())(wave[None])[0]
        np.testing.assert_allclose(found.numpy(), mel_oracle(mel, wave.numpy()), rtol=1e-9)

    @pytest.mark.parametrize("samples", [512, 513, 8000, 16159])
    @pytest.mark.parametrize("fields", MELS)
    def test_is_torchaudio(self, fields: dict[str, Any], samples: int) -> None:
        config, mel = make_mel(fields)
        wave = torch.randn(3, samples)
        expected, found = mel(wave), export.MelByConvolution(mel)(wave)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

        front_end = log_mel(config)
        expected = front_end(wave)
        front_end[0] = export.MelByConvolution(front_end[0])
        # The logarithm and the division by a deviation enlarge rounding, most where frames are few.
        torch.testing.assert_close(front_end(wave), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("gain", [1.0, 1e-3, 0.0])
    def test_loud_quiet_and_silent(self, gain: float) -> None:
        """A pure tone leaves most bands to the rounding of its own."""
        front_end = log_mel(EncoderConfig(type="any"))
        tone = gain * torch.sin(2 * np.pi * 440 / 16000 * torch.arange(16000))[None]
        expected = front_end[0](tone)
        found = export.MelByConvolution(front_end[0])(tone)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8 * expected.max().item())


# ------------------------------------------------------------------------------- both formats


class TeacherConfig(MethodConfig):
    pass


class Teacher(Method):
    """Embeds with a part of a part, and has much that is not needed for it."""

    views = "siamese"

    def __init__(self, config: MethodConfig, encoder: Encoder):
        super().__init__(config, encoder)
        head = nn.Linear(encoder.encoder_dim, 5)
        self.teacher = nn.ModuleDict({"encoder": copy.deepcopy(encoder), "head": head})
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("queue", torch.zeros(9, 3))

    def embed(self, wave: Tensor, lengths: Any = None) -> Tensor:
        encoder = self.teacher["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder.embed(wave, lengths)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(METHODS._entries, "teacher", Entry(Teacher, TeacherConfig))
    return describe({"type": "resnet34"}, {"type": "teacher"}, run_dir=str(tmp_path))


class TestOnnx:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("onnx", reason=NO_ONNX)
        pytest.importorskip("onnxruntime", reason=NO_ONNX)

    @pytest.mark.parametrize("name", [n for n in ENCODERS.names() if n not in NEEDS_FILES])
    def test_every_encoder(self, name: str, tmp_path: Path) -> None:
        config = describe({"type": name}, run_dir=str(tmp_path))
        if config.encoder.gives_sequence:
            config = describe({"type": name}, {"type": "cpc"}, run_dir=str(tmp_path))
        method = write_checkpoint(config)
        check_graph(export.export(config, "onnx"), method)

    @pytest.mark.parametrize(
        "fields",
        [
            {"pooling_mode": "stats", "mel_n_mels": 80, "mel_win_fn": "hann"},
            {"enable_last_bn": True, "spec_augment": {}},
        ],
        ids=["stats", "norm"],
    )
    def test_options_of_an_encoder(self, fields: dict[str, Any], tmp_path: Path) -> None:
        config = describe({"type": "resnet34", **fields}, run_dir=str(tmp_path))
        method = write_checkpoint(config)
        config.encoder.compile = True
        check_graph(export.export(config, "onnx"), method)

    @pytest.mark.parametrize(
        "fields", [{}, {"aggregator_type": "lstm", "bidirectional": True}], ids=["gru", "lstm"]
    )
    def test_method_with_an_embedding_of_its_own(
        self, fields: dict[str, Any], tmp_path: Path
    ) -> None:
        method_section = {"type": "cpc", "aggregator_dim": 12, **fields}
        config = describe(
            {"type": "resnet34", "pooling": False}, method_section, run_dir=str(tmp_path)
        )
        method = write_checkpoint(config)
        check_graph(export.export(config, "onnx"), method)

    def test_teacher(self, teacher: Config) -> None:
        method = write_checkpoint(teacher)
        check_graph(export.export(teacher, "onnx"), method)

    def test_says_what_it_is(self, tmp_path: Path) -> None:
        config = describe({"type": "resnet34"}, run_dir=str(tmp_path))
        write_checkpoint(config)
        graph = session(export.export(config, "onnx"))
        assert [(x.name, x.shape, x.type) for x in graph.get_inputs()] == [
            ("wave", ["batch", "time"], "tensor(float)")
        ]
        assert [(x.name, x.shape) for x in graph.get_outputs()] == [("embedding", ["batch", 32])]
        about = graph.get_modelmeta()
        assert about.producer_name == "sslsv"
        assert about.custom_metadata_map == {
            "sslsv_version": __version__,
            "encoder": "resnet34",
            "method": "simclr",
            "sample_rate": "16000",
            "min_samples": "512",
            "embedding_dim": "32",
            "resample": "false",
            "epoch": "7",
        }

    def test_needs_no_operation_on_complex_numbers(self, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx", reason=NO_ONNX)
        config = describe({"type": "resnet34"}, run_dir=str(tmp_path))
        write_checkpoint(config)
        model = onnx.load(export.export(config, "onnx"))
        onnx.checker.check_model(model, full_check=True)
        assert [(x.domain, x.version) for x in model.opset_import] == [("", export.OPSET)]
        assert not {"STFT", "DFT", "If", "Loop"} & {node.op_type for node in model.graph.node}


class TestSafetensors:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("safetensors", reason=NO_ONNX)

    @pytest.fixture
    def written(self, tmp_path: Path) -> tuple[Path, Method]:
        config = describe({"type": "resnet34"}, run_dir=str(tmp_path))
        method = write_checkpoint(config)
        return export.export(config, "safetensors"), method

    def test_holds_the_encoder_and_how_to_build_it(self, written: tuple[Path, Method]) -> None:
        path, method = written
        header, tensors = read_header(path)
        state = {name: x for name, x in method.state_dict().items() if name.startswith("encoder.")}
        assert tensors == {name: list(tensor.shape) for name, tensor in state.items()}
        assert header["format"] == "pt"
        assert (header["encoder"], header["embedding_dim"]) == ("resnet34", "32")
        config = json.loads(header["config"])
        assert config["encoder"]["base_dim"] == 8
        assert config["run_dir"] is None
        assert b"pickle" not in path.read_bytes()

    def test_comes_back_bit_for_bit(self, written: tuple[Path, Method]) -> None:
        path, method = written
        before = torch.get_rng_state()
        loaded = export.load_exported(path)
        assert torch.equal(torch.get_rng_state(), before)
        assert not loaded.training
        assert loaded.method.projector is None
        wave = torch.randn(3, 9000)
        with torch.no_grad():
            assert torch.equal(loaded(wave), method.embed(wave))
            lengths = [9000, 5000, 700]
            assert torch.equal(loaded(wave, lengths), method.embed(wave, lengths))

    def test_method_with_an_embedding_of_its_own(self, tmp_path: Path) -> None:
        config = describe(
            {"type": "resnet34", "pooling": False},
            {"type": "cpc", "aggregator_dim": 12},
            run_dir=str(tmp_path),
        )
        method = write_checkpoint(config)
        path = export.export(config, "safetensors")
        parts = {name.partition(".")[0] for name in read_header(path)[1]}
        assert parts == {"encoder", "aggregator"}
        wave = torch.randn(2, 8000)
        with torch.no_grad():
            assert torch.equal(export.load_exported(path)(wave), method.embed(wave))

    def test_part_of_a_part(self, teacher: Config) -> None:
        method = write_checkpoint(teacher)
        path = export.export(teacher, "safetensors")
        assert all(name.startswith("teacher.encoder.") for name in read_header(path)[1])
        loaded = export.load_exported(path)
        assert (loaded.method.encoder, loaded.method.queue, loaded.method.scale) == (None,) * 3
        wave = torch.randn(2, 8000)
        with torch.no_grad():
            assert torch.equal(loaded(wave), method.embed(wave))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read \(No such file"):
            export.load_exported(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("kept", [0.0, 0.01, 0.9])
    def test_truncated(self, written: tuple[Path, Method], kept: float) -> None:
        content = written[0].read_bytes()
        written[0].write_bytes(content[: int(kept * len(content))])
        with pytest.raises(CheckpointError, match=r"damaged, or not a safetensors file \("):
            export.load_exported(written[0])

    def test_of_another_program(self, tmp_path: Path) -> None:
        numpy = pytest.importorskip("safetensors.numpy", reason=NO_ONNX)
        path = tmp_path / "x.safetensors"
        numpy.save_file({"x": np.zeros(3)}, path)
        with pytest.raises(CheckpointError, match="was not written by 'sslsv export'"):
            export.load_exported(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda tensors, _: tensors.pop("encoder.fc.bias"), "it lacks 1 tensors: encoder.fc.b"),
            (lambda tensors, _: tensors.update(x=torch.zeros(1)), "it has 1 unknown tensors: x"),
            (
                lambda _, config: config["encoder"].update(base_dim=16),
                r"encoder.conv.weight is \(8, 1, 7, 7\), not \(16, 1, 7, 7\)",
            ),
            (
                lambda _, config: config["encoder"].update(later=1),
                "its configuration, of sslsv .*, does not fit sslsv .*: encoder.later: unknown key",
            ),
        ],
    )
    def test_content_that_does_not_fit(
        self, written: tuple[Path, Method], change: Callable[[Any, Any], Any], message: str
    ) -> None:
        package = pytest.importorskip("safetensors.torch", reason=NO_ONNX)
        path, _ = written
        header, _ = read_header(path)
        tensors, config = package.load_file(path), json.loads(header["config"])
        change(tensors, config)
        package.save_file(tensors, path, metadata=header | {"config": json.dumps(config)})
        with pytest.raises(CheckpointError, match=message):
            export.load_exported(path)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Metadata and shapes, by the description of the format: a length, JSON, then numbers."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header.pop("__metadata__")
    return about, {name: entry["shape"] for name, entry in header.items()}


# ------------------------------------------------------------------------------- command line

Refused = Callable[..., str]


@pytest.fixture
def trained(config_file: Path) -> Path:
    """The folder of a run with the checkpoints ``latest`` and ``avg``, which differ."""
    config = load_config(config_file)
    write_checkpoint(config)
    config.seed = 3
    write_checkpoint(config, "avg")
    return config_file.parent


@pytest.fixture
def refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command, which must end with code 2, one sentence and all files as they were."""

    def content() -> dict[Path, bytes | None]:
        files = config_file.parent.rglob("*")
        return {path: path.read_bytes() if path.is_file() else None for path in files}

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        before = content()
        assert cli.main(["export", str(config_file), *arguments]) == 2
        assert content() == before
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said.removeprefix("error: ").rstrip("\n")

    return refused


class TestCommand:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        for package in ("onnx", "onnxruntime", "safetensors"):
            pytest.importorskip(package, reason=NO_ONNX)

    def test_onnx(
        self, trained: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["export", str(config_file), "--format", "onnx"]) == 0
        said, path = capsys.readouterr(), trained / "model_latest.onnx"
        assert said.out.splitlines()[-1].startswith(f"{path}: embeddings of 32 values, ")
        assert "of the checkpoint's (relative)" in said.out
        assert said.err == ""
        assert session(path).get_modelmeta().custom_metadata_map["encoder"] == "resnet34"

    def test_safetensors_of_another_checkpoint_to_another_place(
        self, trained: Path, config_file: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "new/folder/speaker.safetensors"
        command = ["export", str(config_file), "seed=3", "--format", "safetensors"]
        assert cli.main([*command, "--model_suffix", "avg", "--output", str(output)]) == 0
        written = sorted(path.name for path in output.parent.iterdir())
        assert written == ["speaker.md", "speaker.safetensors"]
        state = checkpoint.load(trained / "checkpoints/model_avg.pt")["model"]
        loaded = export.load_exported(output).state_dict()
        assert loaded["method.encoder.fc.weight"].equal(state["encoder.fc.weight"])
        assert not list(trained.glob("model_*"))

    @pytest.mark.parametrize("kind", ["onnx", "safetensors"])
    def test_output_with_the_name_of_the_card(
        self, refused: Refused, trained: Path, kind: str
    ) -> None:
        said = refused("--format", kind, "--output", str(trained / "x.md"))
        assert said == f"--output: {trained}/x.md: the card takes this name; make it .{kind}"

    def test_no_checkpoint(self, refused: Refused, trained: Path) -> None:
        said = refused("--format", "onnx", "--model_suffix", "best")
        path = trained / "checkpoints/model_best.pt"
        assert said == f"{path}: no such checkpoint (there are: avg, latest)"

    def test_before_training(self, refused: Refused) -> None:
        assert "no such checkpoint (train first" in refused("--format", "safetensors")

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("safetensor", "did you mean 'safetensors'?"), ("pt", "choose one of: onnx, safetensors")],
    )
    def test_unknown_format(self, refused: Refused, trained: Path, name: str, hint: str) -> None:
        assert refused("--format", name) == f"--format: unknown format '{name}'; {hint}"

    @pytest.mark.parametrize("kind", ["onnx", "safetensors"])
    @pytest.mark.parametrize("place", ["checkpoints", "config.yml/below"])
    def test_output_that_cannot_be_written(
        self, refused: Refused, trained: Path, kind: str, place: str
    ) -> None:
        said = refused("--format", kind, "--output", str(trained / place))
        assert said.startswith(f"{trained / place}: cannot be written (")

    @pytest.mark.parametrize("kind", ["onnx", "safetensors"])
    def test_missing_package(
        self, refused: Refused, trained: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, kind, None)
        assert refused("--format", kind) == f"export needs {kind}: pip install sslsv[export]"

    def test_without_onnxruntime_the_file_is_said_to_be_unchecked(
        self,
        trained: Path,
        config_file: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "onnxruntime", None)
            assert cli.main(["export", str(config_file), "--format", "onnx"]) == 0
        assert "; not checked, for which onnxruntime is needed" in capsys.readouterr().out
        assert session(trained / "model_latest.onnx")

    def test_a_wrong_graph_does_not_replace_the_last_one(
        self, refused: Refused, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = trained / "model_latest.onnx"
        path.write_bytes(b"an older file")
        right = export.MelByConvolution.forward
        wrong = lambda self, wave: right(self, wave).flip(1)  # noqa: E731
        monkeypatch.setattr(export.MelByConvolution, "forward", wrong)
        said = refused("--format", "onnx")
        assert said.startswith(f"{path}: not written, since its embeddings would differ")

    def test_a_graph_of_one_length_is_refused(
        self, refused: Refused, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = export.MelByConvolution.forward

        def wrong(self: Any, wave: Tensor) -> Tensor:
            return right(self, wave) * torch.ones(101)  # the frames of a second

        monkeypatch.setattr(export, "_examples", lambda _: [torch.randn(1, 16000)])
        monkeypatch.setattr(export.MelByConvolution, "forward", wrong)
        assert cli.main(["export", str(trained), "--format", "onnx"]) == 0
        (trained / "model_latest.onnx").unlink()
        monkeypatch.undo()
        monkeypatch.setattr(export.MelByConvolution, "forward", wrong)
        said = refused("--format", "onnx")
        assert "not written, since it would not run (" in said

    def test_operation_that_onnx_lacks(
        self, refused: Refused, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def complex_numbers(self: Any, wave: Tensor) -> Tensor:
            return torch.fft.fft(wave).abs()[:, None, :101].expand(-1, 40, -1)

        monkeypatch.setattr(export.MelByConvolution, "forward", complex_numbers)
        said = refused("--format", "onnx")
        assert said.startswith("encoder.type: 'resnet34' cannot be exported as onnx (")
        assert said.endswith("; use --format safetensors")

    def test_weights_that_the_file_would_lack(
        self, refused: Refused, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export, "_parts", lambda *_: ["encoder.fc"])
        said = refused("--format", "safetensors")
        assert "not written, since it would not run (" in said
