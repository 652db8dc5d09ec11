"""A trained model for other programs: an ONNX graph, or weights that ``load_exported`` reads.

Both hold what ``Method.embed`` gives and nothing else: no head, no queue, no optimiser. Their
metadata say what they are and may hold a calibration of scores (`sslsv.model`); a card
(`sslsv.card`) goes beside them.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslsv import __version__, audio
from sslsv.card import Facts, list_names, make_card, write_card
from sslsv.config import Config, from_dict, to_dict
from sslsv.encoders.base import Encoder
from sslsv.encoders.frontend import FrontEnd
from sslsv.errors import CheckpointError, ConfigError, UserError
from sslsv.evaluations.base import Embed
from sslsv.experiment import build_method
from sslsv.files import atomic_write, read_json
from sslsv.methods.base import Method
from sslsv.model import Model, ScoreCalibration, fit_calibration
from sslsv.trainer import checkpoint
from sslsv.trainer.tracking import say

OPSET = 18  # of ONNX; onnxruntime 1.14 and later
TOLERANCE = 1e-4  # largest |exported - PyTorch| / |PyTorch| of an embedding


class Embedder(nn.Module):
    """``Method.embed`` as a module: ``embedder(wave (B, T)) -> (B, D)``."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return self.method.embed(wave, lengths)


Writer = Callable[[Embedder, Config, dict[str, str]], bytes]
Reader = Callable[[Path], Callable[[Tensor], Tensor] | None]  # None: there is nothing to read with


def export(
    config: Config,
    kind: str,
    suffix: str = "latest",
    output: Path | None = None,
    calibrate: Path | None = None,
) -> Path:
    """Write the checkpoint ``suffix`` of a run as ``kind``, "onnx" or "safetensors", and its card.

    The file takes its place once it was loaded again and gave the embeddings of the checkpoint.
    Returns its path, ``model_<suffix>.<kind>`` in the run's folder unless ``output`` is given; the
    card has the same name with ``.md``.

    Args:
        calibrate: score file of this checkpoint, of this folder or the run's; see
            `model.fit_calibration`.
    """
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(_KINDS)}"
        raise UserError(f"--format: unknown format '{kind}'; {hint}")
    write, read = _KINDS[kind]
    _package(kind)
    assert config.run_dir is not None
    output = output or config.run_dir / f"model_{suffix}.{kind}"
    card = output.with_suffix(".md")
    if output == card:
        raise UserError(f"--output: {output}: the card takes this name; make it .{kind}")
    path = checkpoint.checkpoint_path(config.run_dir, suffix)
    state = checkpoint.load(path)
    results = read_json(config.run_dir / "evaluation.json")
    method = build(config)
    remarks = checkpoint.load_to_embed(method, state, path)
    say("; ".join([f"Exporting {path}", *remarks]))
    embedder = Embedder(method).eval()
    calibration = _calibration(config, embedder, calibrate, results) if calibrate else None

    waves = _examples(config.encoder.min_samples)
    with torch.no_grad():
        expected = [embedder(wave) for wave in waves]
        parameters = _count_parameters(method, waves[0])
        about = _about(config, expected[0].shape[1]) | {"epoch": str(state.get("epoch"))}
        if calibration:
            about["calibration"] = calibration.to_json()
        content = write(embedder, config, about)
    with atomic_write(output) as file:
        file.write(content)
        file.flush()
        said = _compare(read, Path(file.name), waves, expected, output)
    facts = Facts(
        file=output.name,
        suffix=suffix,
        about=about,
        parameters=parameters,
        state=state,
        base_path=config.dataset.base_path,
        results=results,
        calibration=calibration,
    )
    written = write_card(card, make_card(facts))
    kept = "" if written == card else f"; {card} was edited and stays as it is"
    say(f"{written}: the model's card{kept}")
    size = f"{len(content) / 1e6:.1f} MB"
    say(f"{output}: embeddings of {expected[0].shape[1]} values, {size}; {said}")
    return output


def _calibration(
    config: Config, embedder: Embedder, scores: Path, results: dict[str, Any]
) -> ScoreCalibration:
    """Fitted on ``scores``, of this folder or the run's."""
    assert config.run_dir is not None
    model = Model(
        run=embedder, min_samples=config.encoder.min_samples, resample=config.dataset.resample
    )
    path = scores if scores.exists() else config.run_dir / scores
    fitted = fit_calibration(path, model, config.dataset.base_path, list_names(results))
    for remark in fitted.remarks:
        say(f"warning: {remark}")
    say(
        f"Calibration on {fitted.list_name} (list {fitted.hash}, {fitted.trials:,} trials): Cllr "
        f"{fitted.cllr:.3f} bits"
    )
    return fitted


def load_exported(path: str | Path) -> Embedder:
    """The module in a safetensors file that ``export`` wrote, in evaluation mode, on the CPU."""
    return read_exported(Path(path))[0]


def read_exported(path: Path) -> tuple[Embedder, dict[str, str]]:
    """The module in a safetensors file, and what the file says of itself."""
    _package("safetensors", path)
    tensors, about = _read_safetensors(path)
    try:
        config, parts = from_dict(json.loads(about["config"])), json.loads(about["parts"])
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{path}: was not written by 'sslsv export' (it holds no configuration)"
        ) from None
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: its configuration, of sslsv {about.get('sslsv_version')}, does not fit sslsv "
            f"{__version__}: {error}"
        ) from None
    method = build(config)
    _prune(method, parts)
    checkpoint.load_weights(method, {"model": tensors}, path)
    return Embedder(method).eval(), about


def read_onnx(path: Path) -> tuple[Embed, dict[str, str]]:
    """The graph in an ONNX file that ``export`` wrote, and what the file says of itself."""
    _package("onnxruntime", path)
    if not path.is_file():
        raise CheckpointError(f"{path}: cannot be read (No such file or directory)")
    try:
        session = _session(path)
    except Exception as error:  # what a runtime raises has no common base
        raise CheckpointError(f"{path}: damaged, or not an ONNX graph ({_brief(error)})") from None
    about = session.get_modelmeta().custom_metadata_map
    if "min_samples" not in about:
        raise CheckpointError(f"{path}: was not written by 'sslsv export' (it does not say so)")

    def embed(wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        if lengths is None:
            return _run(session, wave)
        rows = [row[None, :n] for row, n in zip(wave, lengths, strict=True)]
        return torch.cat([_run(session, row) for row in rows])  # a graph knows no lengths

    return embed, about


def build(config: Config) -> Method:
    """The method without ``encoder.compile``, which neither a trace nor a single file needs; its
    weights are to be replaced, and drawing them changes no other draw."""
    encoder = dataclasses.replace(config.encoder, compile=False)
    with torch.random.fork_rng(devices=[]):
        return build_method(dataclasses.replace(config, encoder=encoder))


def _about(config: Config, dim: int) -> dict[str, str]:
    """What someone needs to know who has nothing but the file."""
    return {
        "sslsv_version": __version__,
        "encoder": config.encoder.type,
        "method": config.method.type,
        "sample_rate": str(audio.SAMPLE_RATE),
        "min_samples": str(config.encoder.min_samples),
        "embedding_dim": str(dim),
        "resample": str(config.dataset.resample).lower(),
    }


def _package(name: str, user: object = "export") -> Any:
    """An optional package that ``user`` needs, imported when needed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{user} needs {name}: pip install sslsv[export]") from None


# ------------------------------------------------------------------------------- comparison


def _examples(shortest: int) -> list[Tensor]:
    """Waveforms of two lengths and batch sizes, other ones than a graph is traced with."""
    generator = torch.Generator().manual_seed(0)
    second = max(shortest, audio.SAMPLE_RATE)
    shapes = (1, 2 * second + 77), (3, second + second // 3)
    return [0.1 * torch.randn(shape, generator=generator) for shape in shapes]


def _compare(
    read: Reader, written: Path, waves: list[Tensor], expected: list[Tensor], output: Path
) -> str:
    """Refuse a file that gives other embeddings than expected; what to say of one that does not."""
    try:
        embed = read(written)
        if embed is None:
            return "not checked, for which onnxruntime is needed: pip install sslsv[export]"
        with torch.no_grad():
            found = [embed(wave) for wave in waves]
    except Exception as error:  # what a runtime raises has no common base
        raise UserError(
            f"{output}: not written, since it would not run ({_brief(error)})"
        ) from error
    errors = [
        ((vectors - true).norm(dim=1) / true.norm(dim=1)).max()
        for vectors, true in zip(found, expected, strict=True)
    ]
    worst = torch.stack(errors).max().item()
    if not worst <= TOLERANCE:  # nan as well
        raise UserError(
            f"{output}: not written, since its embeddings would differ from those of the "
            f"checkpoint by {worst:.1e} (relative; rounding is less than {TOLERANCE:.0e})"
        )
    return f"within {worst:.1e} of the checkpoint's (relative)"


# ------------------------------------------------------------------------------- safetensors


def _safetensors(embedder: Embedder, config: Config, about: dict[str, str]) -> bytes:
    """The tensors that ``embed`` needs, by their names in the checkpoint, and the configuration."""
    method = embedder.method
    parts = _parts(method, _examples(config.encoder.min_samples)[0])
    _prune(method, parts)
    # Own copies: the format takes neither other layouts than rows nor two names for one memory.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in method.state_dict().items()
    }
    portable = dataclasses.replace(config, run_dir=None)  # a folder of this machine
    about = about | {"config": json.dumps(to_dict(portable)), "parts": json.dumps(parts)}
    return _package("safetensors.torch").save(tensors, metadata={"format": "pt", **about})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata."""
    package = _package("safetensors")
    try:
        with package.safe_open(path, framework="pt") as file:
            names = file.keys()  # it is not iterable itself
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except package.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from None


def _parts(method: Method, wave: Tensor) -> list[str]:
    """Names of the modules that ``embed`` calls, without those that they call in turn."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in method.named_modules()
    ]
    method.embed(wave)
    for hook in hooks:
        hook.remove()
    return sorted(name for name in called if not any(name.startswith(f"{o}.") for o in called))


def _count_parameters(method: Method, wave: Tensor) -> int:
    """Of the modules that ``embed`` calls."""
    starts = tuple(f"{part}." for part in _parts(method, wave))
    return sum(x.numel() for name, x in method.named_parameters() if name.startswith(starts))


def _prune(module: nn.Module, parts: list[str], prefix: str = "") -> None:
    """Set to None whatever is in none of ``parts``: heads, queues, the student of a teacher."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, _ in own:
        setattr(module, name, None)
    for name, child in list(module.named_children()):
        path = prefix + name
        if any(part.startswith(f"{path}.") for part in parts):
            _prune(child, parts, f"{path}.")
        elif path not in parts:
            setattr(module, name, None)


# ------------------------------------------------------------------------------- ONNX


class MelByConvolution(nn.Module):
    """torchaudio's ``MelSpectrogram`` in real numbers, (B, T) -> (B, M, 1 + T // hop).

    The short-time Fourier transform is a convolution with windowed cosines and sines: operations
    that every runtime has, where those on complex numbers do not export reliably.
    """

    dft: Tensor
    filters: Tensor

    def __init__(self, mel: Any):
        super().__init__()
        size, window = mel.n_fft, mel.spectrogram.window
        before = (size - len(window)) // 2
        window = F.pad(window.double(), (before, size - len(window) - before))  # (n_fft,)
        turns = torch.arange(size // 2 + 1)[:, None] * torch.arange(size) % size  # exact
        angles = 2 * math.pi / size * turns.double()  # (bins, n_fft)
        dft = torch.cat((angles.cos(), angles.sin())) * window
        self.n_fft, self.hop_length = size, mel.hop_length
        self.register_buffer("dft", dft[:, None].to(mel.spectrogram.window.dtype))
        self.register_buffer("filters", mel.mel_scale.fb.T[:, :, None])  # (M, bins, 1)

    def forward(self, wave: Tensor) -> Tensor:
        half = self.n_fft // 2
        x = F.pad(wave[:, None], (half, half), mode="reflect")  # frame t is centred at t · hop
        real, imaginary = F.conv1d(x, self.dft, stride=self.hop_length).chunk(2, dim=1)
        return F.conv1d(real.square() + imaginary.square(), self.filters)


def _unchecked(*_: Any) -> None:
    """In place of ``Encoder.check_wave``: a graph cannot raise errors."""


def _onnx(embedder: Embedder, config: Config, about: dict[str, str]) -> bytes:
    """``wave`` (batch, time) -> ``embedding`` (batch, D), both sizes of ``wave`` free."""
    for module in embedder.modules():
        if isinstance(module, Encoder):
            module.check_wave = _unchecked  # type: ignore[assignment]
        elif isinstance(module, FrontEnd):
            module[0] = MelByConvolution(module[0])
    wave = torch.randn(2, max(config.encoder.min_samples, audio.SAMPLE_RATE))
    graph = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is the older exporter, and details of it
            # The newer one (dynamo=True) cannot yet export recurrent layers, which CPC has, for
            # any number of frames (torch 2.11).
            torch.onnx.export(
                embedder,
                (wave,),
                graph,  # type: ignore[arg-type]  # this exporter takes open files, too
                dynamo=False,
                opset_version=OPSET,
                input_names=["wave"],
                output_names=["embedding"],
                dynamic_axes={"wave": {0: "batch", 1: "time"}, "embedding": {0: "batch"}},
            )
    except Exception as error:  # a model of another package raises anything while it is traced
        raise UserError(
            f"encoder.type: '{config.encoder.type}' cannot be exported as onnx "
            f"({_brief(error)}); use --format safetensors"
        ) from error
    onnx = _package("onnx")
    model = onnx.load_model_from_string(graph.getvalue())
    model.producer_name, model.producer_version = "sslsv", __version__
    onnx.helper.set_model_props(model, about)
    return model.SerializeToString()


def _run_onnx(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The graph in ``path`` as a function; None where onnxruntime is not installed."""
    try:
        session = _session(path)
    except ImportError:
        return None
    return lambda wave: _run(session, wave)


def _session(path: Path) -> Any:
    runtime = importlib.import_module("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(session: Any, wave: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {"wave": wave.numpy()})[0])


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_KINDS: dict[str, tuple[Writer, Reader]] = {
    "onnx": (_onnx, _run_onnx),
    "safetensors": (_safetensors, load_exported),
}
