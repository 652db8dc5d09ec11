"""A trained model in a few lines of Python: ``sslsv.load``.

The model may be a file of ``sslsv export`` or lie in the folder of a run::

    model = sslsv.load("model_latest.safetensors")
    model.embed(["a.wav", "b.wav"])  # (2, D), of unit length
    model.score("a.wav", "b.wav")  # their cosine
    model.verify("a.wav", "b.wav")  # Verdict(score, probability, decision)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, logit
from torch import Tensor

from sslsv import audio, distributed
from sslsv.config import RESOLVED_NAME, load_config
from sslsv.errors import CheckpointError, ConfigError, DataError, UserError
from sslsv.evaluations import metrics
from sslsv.evaluations.base import Embed
from sslsv.evaluations.calibration import check_finite, check_prior, fit
from sslsv.evaluations.compare import list_hash
from sslsv.evaluations.embeddings import MIN_SAMPLES, bucketed
from sslsv.evaluations.trials import Trials, read_scores
from sslsv.trainer import checkpoint

Source = str | os.PathLike[str] | np.ndarray | Tensor  # a file, or floats (T,) at 16 kHz

FIT_PRIOR = 0.5  # of a target trial: the cost that is minimised is Cllr, which favours no prior
CHECKED_TRIALS = 8  # of a score file, which are scored again
CHECKED_WITHIN = 0.1  # of the scores' standard deviation: more than bfloat16 or a GPU changes
SILENCE = 2.0**-15  # between the lowest and the highest sample: one step of 16-bit audio
_CHUNK = 64  # inputs held in memory, and embedded together


class Verdict(NamedTuple):
    """Whether two utterances are of one speaker."""

    score: float  # cosine of the two embeddings
    probability: float | None  # of one speaker, at the prior; None: there is no calibration
    decision: bool | None  # True: one speaker; None: there is nothing to decide by


# ------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, kw_only=True)
class ScoreCalibration:
    """From a cosine s to the natural-log likelihood ratio ``scale · s + offset``."""

    scale: float
    offset: float
    prior: float  # of a target trial, that it was fitted for
    list_name: str  # of the trials it was fitted on
    hash: str  # of these trials, see `compare.list_hash`
    trials: int
    targets: int
    cllr: float  # bits, of the ratios of these trials
    remarks: tuple[str, ...] = ()  # what a user should know

    def llr(self, score: float) -> float:
        return self.scale * score + self.offset

    def probability(self, score: float, prior: float) -> float:
        """Of one speaker, where a share ``prior`` (0 to 1) of all pairs are of one speaker."""
        return float(expit(self.llr(score) + logit(prior)))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, source: Path) -> ScoreCalibration:
        """Read what ``to_json`` wrote. Raises CheckpointError, naming ``source``."""
        try:
            found = cls(**json.loads(text))
            found = dataclasses.replace(found, remarks=tuple(found.remarks))
            numbers = found.scale, found.offset, found.prior, found.cllr
            if not all(map(math.isfinite, numbers)):
                raise ValueError("not finite")
        except (TypeError, ValueError):
            raise CheckpointError(
                f"{source}: its calibration cannot be read; export the model again"
            ) from None
        return found


def fit_calibration(
    path: Path, model: Model, base_path: Path, names: Mapping[str, str]
) -> ScoreCalibration:
    """Fit to the score file ``path``, whose trials must be scored as ``model`` scores.

    Some of them are scored again, where their audio is found below ``base_path``.

    Args:
        names: of lists of trials by their hash; the name of a list that is not among them is that
            of the file.

    Raises:
        DataError: the file cannot be read, or holds scores of another system.
    """
    trials, scores = read_scores(path)
    check_finite(scores, str(path))
    if np.abs(scores).max() > 1 + 1e-6:
        raise DataError(
            f"{path}: its scores reach from {scores.min():.4g} to {scores.max():.4g}, so they are "
            f"no cosines; {_WHICH_SCORES}"
        )
    remarks = []
    if not _check_again(path, model, base_path, trials, scores):
        remarks.append(
            f"whether the scores of {path.name} are those of this model was not checked, since "
            "none of the audio was found"
        )
    fitted = fit(scores[:, None], trials.labels, FIT_PRIOR, ["score"])
    remarks += fitted.remarks
    scale = float(fitted.weights[0])
    if scale <= 0:
        remarks.append("the calibration does not rise with the score: the model tells nothing")
    hash_ = list_hash(trials)
    return ScoreCalibration(
        scale=scale,
        offset=fitted.offset - scale * float(fitted.centers[0]),
        prior=FIT_PRIOR,
        list_name=names.get(hash_, path.name),
        hash=hash_,
        trials=len(trials),
        targets=int(trials.labels.sum()),
        cllr=metrics.cllr(fitted.apply(scores[:, None]), trials.labels),
        remarks=tuple(remarks),
    )


def _check_again(
    path: Path, model: Model, base_path: Path, trials: Trials, scores: np.ndarray
) -> int:
    """Score some of the trials again; how many could be. DataError where scores differ."""
    chosen = np.unique(np.linspace(0, len(trials) - 1, CHECKED_TRIALS).astype(int))
    tolerance = max(1e-4, CHECKED_WITHIN * float(scores.std()))
    checked = 0
    for trial in chosen.tolist():
        a, b = (trials.files[side[trial]] for side in (trials.enrol, trials.test))
        try:
            found = model.score(base_path / a, base_path / b)
        except DataError:  # not at hand, or an id that stands for several files
            continue
        checked += 1
        if abs(found - scores[trial]) > tolerance:
            raise DataError(
                f"{path}: the score of {a} {b} is {scores[trial]:.4f} there and the cosine of "
                f"this checkpoint's embeddings of the whole files is {found:.4f}; {_WHICH_SCORES}"
            )
    return checked


_WHICH_SCORES = (
    "evaluate this checkpoint with sv_cosine, frame_length: null and no transforms, and give "
    "scores/trained_sv_cosine_<list>.txt"
)


# ------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A trained model: files or waveforms in, embeddings, scores and decisions out.

    A file is embedded as a whole, each as if it were alone, as ``sslsv evaluate`` does with
    ``frame_length: null``. Waveforms are floats (T,) in [-1, 1] at 16 kHz, of numpy or torch.

    All methods raise DataError where audio cannot be used: missing or damaged, at another sample
    rate (unless ``resample``), shorter than 0.1 s, silent, not finite.
    """

    run: Embed = field(repr=False)  # (B, T) -> (B, D), see `Embed`
    min_samples: int  # the shortest waveform that `run` takes
    resample: bool = False  # convert files of another rate; False: refuse them
    calibration: ScoreCalibration | None = None  # None: scores only
    remarks: tuple[str, ...] = ()  # what was noticed when the model was loaded
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of `run`

    def embed(self, sources: Source | Sequence[Source]) -> np.ndarray:
        """Embeddings (N, D) of unit length, float32, of N files or waveforms (or of one)."""
        several = _several(sources)
        if not several:
            raise DataError("there is nothing to embed: give at least one file or waveform")
        starts = range(0, len(several), _CHUNK)
        return np.concatenate([self._embed(several[i : i + _CHUNK], i) for i in starts])

    def score(self, a: Source, b: Source) -> float:
        """The cosine of two embeddings, from -1 to 1; higher: more likely of one speaker."""
        x, y = self.embed([a, b]).astype(np.float64)
        return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))

    def verify(
        self, a: Source, b: Source, prior: float = 0.5, threshold: float | None = None
    ) -> Verdict:
        """Decide whether ``a`` and ``b`` are of one speaker.

        With a ``calibration`` by its log-likelihood ratio and the threshold at which, for this
        ``prior``, the fewest decisions are wrong (`metrics.bayes_threshold` with equal costs).

        Args:
            prior: share (0 to 1) of pairs of one speaker, where the decision is used.
            threshold: cosine from which on the two are one speaker, in place of the above.

        Raises:
            ConfigError: an impossible prior or threshold.
        """
        check_prior(prior)
        if threshold is not None and not -1 <= threshold <= 1:
            raise ConfigError(f"threshold: must be a cosine, from -1 to 1, got {threshold}")
        score = self.score(a, b)
        if self.calibration is None:
            return Verdict(score, None, None if threshold is None else score >= threshold)
        same = self.calibration.llr(score) >= metrics.bayes_threshold(prior)
        if threshold is not None:
            same = score >= threshold
        return Verdict(score, self.calibration.probability(score, prior), same)

    def _embed(self, sources: Sequence[Source], before: int) -> np.ndarray:
        """Of a few sources, ``before`` which there were so many."""
        names = [_name(source, before + i) for i, source in enumerate(sources, 1)]
        waves = [self._wave(*pair) for pair in zip(sources, names, strict=True)]
        found: list[Tensor] = [torch.empty(0)] * len(waves)
        for rows in bucketed([len(wave) for wave in waves], _CHUNK):
            lengths = [len(waves[row]) for row in rows]
            batch = np.zeros((len(rows), max(lengths)), np.float32)
            for place, row in zip(batch, rows, strict=True):
                place[: len(waves[row])] = waves[row]
            padded = min(lengths) < max(lengths)
            with torch.inference_mode():
                wave = torch.from_numpy(batch).to(self.device)
                vectors = self.run(wave, lengths if padded else None)
            for row, vector in zip(rows, F.normalize(vectors.float(), dim=-1).cpu(), strict=True):
                found[row] = vector
        for name, vector in zip(names, found, strict=True):
            if not abs(vector.norm().item() - 1) < 1e-3:  # nan as well
                raise DataError(f"{name}: its embedding is zero or not finite")
        return torch.stack(found).numpy()

    def _wave(self, source: Source, name: str) -> np.ndarray:
        """Samples (T,) that can be embedded, float32."""
        if isinstance(source, str | os.PathLike):
            wave = self._read(source)
        else:
            wave = np.asarray(source)
            if wave.ndim != 1 or wave.dtype.kind != "f":
                raise DataError(
                    f"{name}: expected floats of shape (samples,) at {audio.SAMPLE_RATE} Hz, got "
                    f"{wave.dtype} of shape {wave.shape}"
                )
            wave = wave.astype(np.float32)
            if not np.isfinite(wave).all():
                raise DataError(f"{name}: there are NaN or infinite samples")
        least = max(MIN_SAMPLES, self.min_samples)
        if len(wave) < least:
            raise DataError(
                f"{name}: {len(wave) / audio.SAMPLE_RATE:.3f} s of audio are too short to tell a "
                f"speaker by; give at least {least / audio.SAMPLE_RATE:.3f} s"
            )
        if np.ptp(wave) <= SILENCE:
            raise DataError(f"{name}: the audio is silent; give a recording of speech")
        return wave

    def _read(self, path: str | os.PathLike[str]) -> np.ndarray:
        with audio.AudioFile(path, resample=True) as file:
            if file.file_rate != audio.SAMPLE_RATE and not self.resample:
                raise DataError(
                    f"{path}: the sample rate is {file.file_rate} Hz where {audio.SAMPLE_RATE} Hz "
                    "is expected; give --resample (in Python: resample=True) or convert the file"
                )
            return file.read(0, file.length)


def _several(sources: Any) -> list[Source]:
    """One file or waveform as a list, too."""
    if isinstance(sources, np.ndarray):
        one = sources.ndim == 1 and sources.dtype.kind not in "OU"  # of names
    elif isinstance(sources, Tensor):
        one = sources.ndim == 1
    else:
        one = isinstance(sources, str | os.PathLike)
    return [sources] if one else list(sources)


def _name(source: Source, number: int) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"waveform {number}"


# ------------------------------------------------------------------------------- loading


def load(
    path: str | os.PathLike[str], suffix: str | None = None, resample: bool | None = None
) -> Model:
    """A trained model.

    Args:
        path: a .safetensors or .onnx file of ``sslsv export``, the folder of a run, or its
            configuration. In a folder resolved_config.yml, which has what the run was trained
            with, comes before config.yml.
        suffix: which checkpoint of a run: latest (the default), best, avg or epoch-N.
        resample: convert files of another sample rate; None: as ``dataset.resample`` says.

    Raises:
        UserError: there is no such model, it is damaged, or a package is missing to read it.
    """
    path = Path(path)
    if path.is_dir() or path.suffix in (".yml", ".yaml"):
        model = _of_run(path, suffix or "latest")
    elif path.suffix not in (".safetensors", ".onnx"):
        what = "is not a model" if path.exists() else "no such file or folder"
        raise CheckpointError(
            f"{path}: {what}; give a .safetensors or .onnx file that 'sslsv export' wrote, the "
            "folder of a run, or its config.yml"
        )
    elif suffix is not None:
        raise UserError(f"{path}: is one exported model; --model_suffix is for a run")
    else:
        model = _of_file(path)
    return model if resample is None else dataclasses.replace(model, resample=resample)


def _of_run(path: Path, suffix: str) -> Model:
    from sslsv import export  # which needs `Model`

    folder = path if path.is_dir() else None  # which may have been moved since
    if path.name == RESOLVED_NAME:
        folder = path.parent
    if folder == path:
        names = [name for name in (RESOLVED_NAME, "config.yml") if (path / name).is_file()]
        if not names:
            raise ConfigError(
                f"{path}: has neither {RESOLVED_NAME} nor config.yml, so it is not the folder of "
                "a run"
            )
        path = path / names[0]
    config = load_config(path)
    run_dir = folder or config.run_dir
    assert run_dir is not None
    source = checkpoint.checkpoint_path(run_dir, suffix)
    state = checkpoint.load(source)
    method = export.build(config)
    remarks = checkpoint.load_to_embed(method, state, source)
    device = distributed.default_device()
    return Model(
        run=method.to(device).eval().embed,
        min_samples=config.encoder.min_samples,
        resample=config.dataset.resample,
        remarks=tuple(remarks),
        device=device,
    )


def _of_file(path: Path) -> Model:
    from sslsv import export  # which needs `Model`

    device = torch.device("cpu")
    run: Embed
    if path.suffix == ".onnx":
        run, about = export.read_onnx(path)
    else:
        embedder, about = export.read_exported(path)
        device = distributed.default_device()
        run = embedder.to(device)
    fitted = about.get("calibration")
    return Model(
        run=run,
        min_samples=int(about["min_samples"]),
        resample=about.get("resample") == "true",
        calibration=ScoreCalibration.from_json(fitted, path) if fitted else None,
        device=device,
    )


# ------------------------------------------------------------------------------- the command


def verify(
    a: str, b: str, model: Model, prior: float = 0.5, threshold: float | None = None
) -> dict[str, Any]:
    """`Model.verify` of two files, and what it was decided by, for JSON."""
    score, probability, same = model.verify(a, b, prior, threshold)
    fitted = model.calibration
    on = "score" if threshold is not None else "llr" if fitted else None
    return {
        "score": score,
        "llr": fitted.llr(score) if fitted else None,
        "probability": probability,
        "prior": prior if fitted else None,
        "decision": None if same is None else "same" if same else "different",
        "threshold": metrics.bayes_threshold(prior) if on == "llr" else threshold,
        "threshold_on": on,
        "calibration": dataclasses.asdict(fitted) if fitted else None,
    }


def format_verdict(found: dict[str, Any]) -> str:
    """Lines for a terminal of what `verify` found."""
    lines = [f"score: {found['score']:.4f} (cosine)"]
    if fitted := found["calibration"]:
        lines.append(
            f"probability: {found['probability']:.4f} of one speaker at a prior of "
            f"{found['prior']:g}; calibrated on {fitted['list_name']} (list {fitted['hash']})"
        )
    else:
        lines.append(
            "probability: unknown, since the model holds no calibration; 'sslsv export CONFIG "
            "--format safetensors --calibrate SCORES' writes one that does"
        )
    words = {"same": "same speaker", "different": "different speakers"}
    if found["threshold_on"] == "llr":
        by = f"log-likelihood ratio {found['llr']:.2f}, Bayes threshold {found['threshold']:.2f}"
        lines.append(f"decision: {words[found['decision']]} ({by})")
    elif found["threshold_on"] == "score":
        lines.append(f"decision: {words[found['decision']]} (threshold {found['threshold']:g})")
    return "\n".join(lines)
