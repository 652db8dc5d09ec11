"""Stress conditions: each measured on what comes out, and whole evaluations by definition."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from sslsv import audio, cli
from sslsv.datasets.views import DatasetConfig
from sslsv.errors import ConfigError, DataError
from sslsv.evaluations.base import EvaluationConfig, Result
from sslsv.evaluations.conditions import (
    Codec,
    Condition,
    check_names,
    make_condition,
)
from sslsv.evaluations.cosine import SVCosine, SVCosineConfig
from sslsv.evaluations.stress import (
    Stress,
    Stressable,
    format_conditions,
    prepare,
    split_conditions,
)
from sslsv.evaluations.trials import make_trials

CPU = torch.device("cpu")
RATE = 16000
CODECS = ["vorbis", "opus", "mp3"]


def noise(samples: int = 40000, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def speech_like(samples: int = 40000) -> np.ndarray:
    """A buzz at 120 Hz with slowly changing level."""
    t = np.arange(samples) / RATE
    wave = sum(np.sin(2 * np.pi * 120 * k * t + k * k) / k for k in range(1, 25))
    return (0.1 * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def decibel(ratio: float) -> float:
    return 10 * math.log10(ratio)


def power(wave: np.ndarray) -> float:
    return float(np.mean(wave.astype(np.float64) ** 2))


# ------------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize("snr", ["-5", "0", "5", "12.5", "40"])
@pytest.mark.parametrize("samples", [5000, 40000, 130000])  # noises have 48,000
def test_noise_has_the_ratio_that_is_asked_for(corpus: Path, snr: str, samples: int) -> None:
    wave = noise(samples)
    heard = make_condition(f"snr-{snr}db", corpus)(wave, "a.wav")
    assert heard.dtype == np.float32
    assert decibel(power(wave) / power(heard - wave)) == pytest.approx(float(snr), abs=0.01)


def test_noise_is_a_stretch_of_a_file_that_is_the_same_at_any_ratio(corpus: Path) -> None:
    wave = noise(8000)
    chosen = set()
    for file in (f"{i}.wav" for i in range(8)):
        added = make_condition("snr-0db", corpus)(wave, file) - wave
        found = []
        for path in sorted(corpus.glob("musan_split/noise/*/*.wav")):
            sound = sf.read(path)[0]
            match = np.correlate(sound, added.astype(float), "valid")
            start = int(match.argmax())
            crop = sound[start : start + len(wave)]
            if np.corrcoef(crop, added)[0, 1] > 0.9999:
                found.append((path, start))
        assert len(found) == 1
        chosen.add(found[0])
        louder = make_condition("snr--20db", corpus)(wave, file) - wave
        np.testing.assert_allclose(louder, 10 * added, atol=1e-5)
    assert len({path for path, _ in chosen}) == 2
    assert len(chosen) == 8


def write_noises(base: Path, *waves: np.ndarray) -> None:
    for i, wave in enumerate(waves):
        audio.write(base / f"musan_split/noise/made/{i}.wav", wave.astype(float))


def test_a_silent_noise_gives_way_to_the_next(tmp_path: Path) -> None:
    write_noises(tmp_path, np.zeros(RATE), noise(RATE), np.zeros(RATE))
    wave = noise(8000, seed=1)
    for file in (f"{i}.wav" for i in range(6)):
        heard = make_condition("snr-3db", tmp_path)(wave, file)
        assert decibel(power(wave) / power(heard - wave)) == pytest.approx(3, abs=0.01)


def test_silence_stays_silent(corpus: Path) -> None:
    assert not make_condition("snr-5db", corpus)(np.zeros(4000, np.float32), "a.wav").any()


def test_noises_that_are_all_silent_are_refused(tmp_path: Path) -> None:
    write_noises(tmp_path, np.zeros(RATE), np.zeros(RATE))
    with pytest.raises(DataError, match="noise: all the noise is silent; replace the files"):
        make_condition("snr-5db", tmp_path)(noise(), "a.wav")


# ----------------------------------------------------------------------------------- reverberation


def test_reverberation_is_convolution_with_a_response_of_unit_energy(corpus: Path) -> None:
    wave = noise(6000)
    rirs = [sf.read(path)[0] for path in sorted(corpus.glob("simulated_rirs/*/*/*.wav"))]
    expected = [np.convolve(wave, rir / np.sqrt(np.sum(rir**2)))[:6000] for rir in rirs]
    reverb = make_condition("reverb", corpus)
    drawn = []
    for file in (f"{i}.wav" for i in range(8)):
        heard = reverb(wave, file)
        errors = [np.abs(heard - x).max() for x in expected]
        assert min(errors) < 1e-6
        drawn.append(int(np.argmin(errors)))
    assert set(drawn) == {0, 1}


# -------------------------------------------------------------------------------------- telephone


def test_telephone_passes_its_band_and_nothing_else() -> None:
    telephone = make_condition("telephone", Path())
    click = np.zeros(32001, np.float32)
    click[16000] = 1
    response = telephone(click, "a.wav").astype(np.float64)
    assert len(response) == len(click)
    gain = 20 * np.log10(np.abs(np.fft.rfft(response)) + 1e-12)
    hertz = np.fft.rfftfreq(len(click), 1 / RATE)
    inside = (hertz >= 300) & (hertz <= 3400)
    assert np.abs(gain[inside]).max() < 0.1
    assert gain[(hertz <= 200) | (hertz >= 3500)].max() < -60
    np.testing.assert_allclose(response, response[::-1], atol=1e-7)  # no delay, at any frequency


def test_telephone_leaves_a_tone_in_the_band_as_it_is() -> None:
    t = np.arange(RATE) / RATE
    low, high = (np.sin(2 * np.pi * f * t).astype(np.float32) for f in (1000, 5000))
    heard = make_condition("telephone", Path())(0.4 * low + 0.4 * high, "a.wav")
    middle = slice(2000, -2000)
    np.testing.assert_allclose(heard[middle], 0.4 * low[middle], atol=1e-3)


# ------------------------------------------------------------------------------------------ µ-law


def mu_law(x: float) -> float:
    """A sign and 7 bits, by the formula."""
    x = max(-1.0, min(1.0, x))
    level = round(127 * math.log(1 + 255 * abs(x)) / math.log(256))
    return math.copysign((256 ** (level / 127) - 1) / 255, x)


def test_mulaw_is_the_formula() -> None:
    wave = np.concatenate([noise(3000, level=0.5), np.linspace(-1.2, 1.2, 2001)])
    wave = np.append(wave, [1e-5, -1e-5, 1e-9]).astype(np.float32)
    heard = make_condition("mulaw", Path())(wave, "a.wav")
    expected = [mu_law(float(x)) for x in wave]
    assert heard.dtype == np.float32
    np.testing.assert_allclose(heard, expected, rtol=1e-6, atol=1e-9)


def test_mulaw_has_255_values_zero_among_them() -> None:
    mulaw = make_condition("mulaw", Path())
    heard = mulaw(np.linspace(-1, 1, 400001).astype(np.float32), "a.wav")
    assert len(np.unique(heard)) == 255
    assert mulaw(np.zeros(3, np.float32), "a.wav").tolist() == [0, 0, 0]
    np.testing.assert_allclose(mulaw(heard, "a.wav"), heard, rtol=1e-6)


# ----------------------------------------------------------------------------------------- codecs

FORMATS = {"vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    if not sf.check_format(*FORMATS[request.param]):
        pytest.skip(f"no {request.param} in libsndfile {sf.__libsndfile_version__}")
    return request.param


@pytest.mark.parametrize("samples", [40, 1600, 39999])
def test_a_codec_keeps_length_and_place_and_loses_something(codec: str, samples: int) -> None:
    wave = speech_like(samples)
    heard = make_condition(codec, Path())(wave, "a.wav")
    assert heard.shape == wave.shape
    assert heard.dtype == np.float32
    lost = decibel(power(wave) / power(heard - wave))
    assert lost < 60
    if samples > 100:
        assert lost > 6  # a shift by a sample of a period of 8 kHz would leave -6
        assert np.argmax(np.correlate(heard, wave, "full")) == samples - 1


def test_a_codec_is_what_a_file_would_hold(codec: str, tmp_path: Path) -> None:
    wave = speech_like()
    kind, subtype = FORMATS[codec]
    sf.write(tmp_path / "file", wave, RATE, subtype, format=kind)
    expected, rate = sf.read(tmp_path / "file")
    assert rate == RATE
    heard = make_condition(codec, Path())(wave, "a.wav")
    start = 512  # Vorbis chooses its first window by how much is written at once
    np.testing.assert_allclose(heard[start:], expected[start : len(wave)], atol=1e-4)


def test_a_codec_takes_long_and_loud_files(codec: str) -> None:
    # libsndfile's Vorbis crashes where it is given five minutes at once.
    wave = np.tile(speech_like(), 120 if codec == "vorbis" else 20)
    wave[:100] *= 50
    heard = make_condition(codec, Path())(wave, "a.wav")
    assert heard.shape == wave.shape
    assert np.abs(heard).max() < 2


def test_a_codec_that_is_not_built_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sf, "check_format", lambda kind, subtype: kind != "MP3")
    Codec("vorbis")
    with pytest.raises(ConfigError) as error:
        make_condition("telephone+mp3", Path())
    assert str(error.value) == (
        f"conditions: 'mp3' is not in this build of libsndfile ({sf.__libsndfile_version__}); "
        "pip install -U soundfile, or remove it"
    )


# --------------------------------------------------------------------------------------- duration


def test_a_duration_is_a_stretch_that_depends_on_the_file() -> None:
    wave = np.arange(40000, dtype=np.float32)
    cut = make_condition("duration-1.5s", Path())
    starts = []
    for file in (f"{i}.wav" for i in range(200)):
        heard = cut(wave, file)
        assert len(heard) == 24000
        starts.append(int(heard[0]))
        np.testing.assert_array_equal(heard, wave[starts[-1] : starts[-1] + 24000])
    assert min(starts) < 1600  # a tenth of the 16,001 that there are
    assert max(starts) > 14400
    assert abs(np.mean(starts) - 8000) < 4 * 16000 / math.sqrt(12 * 200)


def test_a_shorter_file_stays_whole() -> None:
    cut = make_condition("duration-2s", Path())
    for samples in (100, 31999, 32000):
        wave = noise(samples)
        np.testing.assert_array_equal(cut(wave, "a.wav"), wave)
        assert cut.length(samples) == samples
    assert cut.length(32001) == len(cut(noise(32001), "a.wav")) == 32000


# --------------------------------------------------------------------------------- all conditions

ALL = ["duration-1s", "snr-5db", "reverb", "telephone", "mulaw", *CODECS, "duration-1s+snr-0db"]


@pytest.mark.parametrize("name", ALL)
def test_it_is_the_same_for_a_file_in_any_process_and_leaves_the_input(
    name: str, corpus: Path
) -> None:
    condition = make_condition(name, corpus)
    wave = speech_like()
    before = wave.copy()
    heard = condition(wave, "a/b.wav")
    np.testing.assert_array_equal(wave, before)
    assert len(heard) == condition.length(len(wave))
    assert not np.array_equal(heard, wave[: len(heard)])
    np.testing.assert_array_equal(condition(wave, "a/b.wav"), heard)
    copied = pickle.loads(pickle.dumps(condition))
    np.testing.assert_array_equal(copied(wave, "a/b.wav"), heard)
    np.testing.assert_array_equal(make_condition(name, corpus)(wave, "a/b.wav"), heard)


def test_draws_stay_what_they_were() -> None:
    """Published numbers depend on them."""
    wave = np.arange(160000, dtype=np.float32)
    cut = make_condition("duration-1s", Path())
    starts = [int(cut(wave, file)[0]) for file in ("a.wav", "id10270/x/00001.wav", "é.wav")]
    assert starts == [47782, 2144, 53670]


def test_a_chain_is_one_after_the_other(corpus: Path) -> None:
    wave = noise()
    parts = ["duration-2s", "telephone", "mulaw"]
    expected = wave
    for part in parts:
        expected = make_condition(part, corpus)(expected, "a.wav")
    chain = make_condition("+".join(parts), corpus)
    np.testing.assert_array_equal(chain(wave, "a.wav"), expected)
    assert chain.length(40000) == 32000


def test_clean_changes_nothing() -> None:
    wave = noise()
    assert make_condition("clean", Path())(wave, "a.wav") is wave


def test_versions_tell_sounds_and_conditions_apart(corpus: Path, tmp_path: Path) -> None:
    write_noises(tmp_path, noise(RATE))
    versions = [make_condition(name, corpus).version for name in ALL]
    versions += [make_condition("snr-5db", tmp_path).version]
    write_noises(tmp_path, noise(RATE), noise(RATE, seed=1))
    versions += [make_condition("snr-5db", tmp_path).version]
    assert len(set(versions)) == len(ALL) + 2
    assert make_condition("snr-5db", corpus).version == versions[1]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("telefone", "unknown condition 'telefone'; did you mean 'telephone'?"),
        ("duration-2", "unknown condition 'duration-2'; did you mean 'duration-2s'?"),
        ("duration-2ms", "unknown condition 'duration-2ms'; did you mean 'duration-2s'?"),
        ("snr-5", "unknown condition 'snr-5'; did you mean 'snr-5db'?"),
        ("snr-fivedb", "unknown condition 'snr-fivedb'; did you mean 'snr-5db'?"),
        ("u-law", "unknown condition 'u-law'; did you mean 'mulaw'?"),
        ("MP3", "unknown condition 'MP3'; known: clean, duration-2s, snr-5db, reverb, telephone, "),
        ("", "unknown condition ''; known: "),
        ("telephone+", "unknown condition ''; known: "),
        ("clean+mulaw", "'clean' changes nothing and stands alone, without a plus"),
        ("duration-0s", "'duration-0s' is too short; give 0.1 s or more"),
        ("duration-0.05s", "'duration-0.05s' is too short; give 0.1 s or more"),
    ],
)
def test_bad_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_names(["mulaw", name])
    assert str(error.value).startswith(f"conditions.1: {message}")


def test_a_name_stands_once() -> None:
    check_names(["clean", *ALL])
    with pytest.raises(ConfigError, match=r"^conditions\.2: 'mulaw' is listed twice$"):
        check_names(["mulaw", "clean", "mulaw"])


@pytest.mark.parametrize(
    ("name", "folder"), [("snr-5db", "musan_split/noise"), ("reverb", "simulated_rirs")]
)
def test_missing_sounds_are_named(tmp_path: Path, name: str, folder: str) -> None:
    with pytest.raises(DataError) as error:
        make_condition(name, tmp_path)
    text = str(error.value)
    assert text.startswith(f"evaluation.conditions: '{name.partition('-')[0]}' needs sounds")
    assert f"{tmp_path}/{folder}: no " in text
    assert "augmentation" not in text


# --------------------------------------------------------------------------- whole evaluations


def make_task(base_path: Path, **fields: object) -> SVCosine:
    fields = {"trials": ["trials"], "num_frames": 1, "frame_length": None} | fields
    config = SVCosineConfig(type="sv_cosine", **fields)  # type: ignore[arg-type]
    dataset = DatasetConfig(base_path=base_path, train="train.csv", num_workers=0)
    return SVCosine(config, dataset)


def features(wave: np.ndarray) -> np.ndarray:
    """Changed by all that a condition does."""
    return np.array([wave.std(), np.abs(wave).mean(), np.abs(np.diff(wave)).mean(), wave[0], 0.01])


def embed(waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    lengths = lengths or [waves.shape[1]] * len(waves)
    rows = zip(waves.numpy(), lengths, strict=True)
    return torch.from_numpy(np.stack([features(wave[:n]) for wave, n in rows]))


def by_definition(corpus: Path, condition: Condition, both: bool) -> list[float]:
    def vector(file: str, stressed: bool) -> np.ndarray:
        wave = sf.read(corpus / file, dtype="float32")[0]
        x = features(condition(wave, file) if stressed else wave)
        return x / np.sqrt(x @ x)

    lines = [line.split() for line in (corpus / "trials").read_text().splitlines()]
    return [float(vector(enrol, both) @ vector(test, True)) for _, enrol, test in lines]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", ["duration-0.5s", "snr-0db", "telephone+mulaw"])
def test_scores_under_a_condition_are_by_definition(corpus: Path, name: str, both: bool) -> None:
    task = make_task(corpus)
    condition = make_condition(name, corpus)
    found = task.run_under(Stress(condition, both), embed, CPU)
    scores = found.scores["trials"].scores
    np.testing.assert_allclose(scores, by_definition(corpus, condition, both), atol=1e-5)
    assert found.scores["trials"].trials is task.lists["trials"]
    assert list(found.metrics) == task.config.metric_names()
    plain = task.run(embed, CPU).scores["trials"].scores
    assert np.abs(scores - plain).max() > 1e-3


@pytest.mark.parametrize("both", [False, True])
def test_the_cohort_is_not_changed(corpus: Path, both: bool) -> None:
    files = [line.split(",")[0] for line in (corpus / "train.csv").read_text().split()[1:]]
    waves = [sf.read(corpus / file)[0] for file in files]
    cohort = np.stack([features(wave) / np.linalg.norm(features(wave)) for wave in waves])
    condition = make_condition("mulaw", corpus)
    task = make_task(corpus, score_norm="t-norm")
    found = task.run_under(Stress(condition, both), embed, CPU)
    raw = by_definition(corpus, condition, both)
    expected = []
    for score, line in zip(raw, (corpus / "trials").read_text().splitlines(), strict=True):
        test = line.split()[2]
        x = features(condition(sf.read(corpus / test, dtype="float32")[0], test))
        against = cohort @ (x / np.linalg.norm(x))
        expected.append((score - against.mean()) / against.std(ddof=1))
    np.testing.assert_allclose(found.scores["t-norm/trials"].scores, expected, rtol=1e-3, atol=1e-3)


def test_lists_that_are_stressed_are_those_of_verification(corpus: Path) -> None:
    assert isinstance(make_task(corpus), Stressable)
    assert not isinstance(object(), Stressable)


def test_conditions_without_verification_are_refused(corpus: Path) -> None:
    config = EvaluationConfig(conditions=["mulaw"])
    with pytest.raises(ConfigError, match="only verification is measured under conditions"):
        prepare(config, [object()], corpus)
    assert prepare(EvaluationConfig(), [object()], corpus) == []


class Task:
    """With one list, of two files of 1 s and one of 3 s, which is enrolled in all trials."""

    def __init__(self) -> None:
        labels = np.array([True, False])
        self.lists = {"list": make_trials("list", ["c.wav"] * 2, ["a.wav", "b.wav"], labels)}

    def run_under(self, stress: Stress, embed: object, device: object) -> Result:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("duration-1s", "test", "none of the 2 files is longer than 1 s (the longest has 1.00 s)"),
        ("mulaw+duration-2s", "test", "none of the 2 files is longer than 2 s"),
        ("duration-3s", "both", "none of the 3 files is longer than 3 s (the longest has 3.00 s)"),
        ("duration-0.9s", "test", None),
        ("duration-2s", "both", "2 of 3 files are not longer than 2 s and stay whole: a.wav, b."),
    ],
)
def test_durations_are_compared_with_the_files(
    tmp_path: Path, name: str, side: str, message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, seconds in {"a": 1, "b": 1, "c": 3}.items():
        audio.write(tmp_path / f"{file}.wav", noise(seconds * RATE).astype(float))
    config = EvaluationConfig(conditions=[name], conditions_on=side)  # type: ignore[arg-type]
    if message is None or message.startswith("2 of"):
        (stress,) = prepare(config, [Task()], tmp_path)
        assert (stress.condition.name, stress.both) == (name, side == "both")
        said = capsys.readouterr().out
        assert said == "" if message is None else said.startswith(f"warning: {name}: {message}")
        return
    with pytest.raises(DataError) as error:
        prepare(config, [Task()], tmp_path)
    text = f"evaluation.conditions: '{name}' would change nothing, since {message}"
    assert str(error.value).startswith(text)


# -------------------------------------------------------------------------- names and the table

RESULTS = {
    "trained": {
        "sv_cosine/a/b.txt/eer": 3.0,
        "sv_cosine/a/b.txt/mindcf": 0.5,
        "sv_cosine@telephone+mulaw/a/b.txt/eer": 14.256,
        "sv_cosine_s-norm/a/b.txt/eer": 2.0,
        "sv_cosine_s-norm@mulaw/a/b.txt/eer": 5.0,
        "emotion/accuracy": 0.7,
    }
}


def test_metrics_are_told_apart_by_condition() -> None:
    plain, stressed = split_conditions(RESULTS["trained"])
    assert plain == {
        "sv_cosine/a/b.txt/eer": 3.0,
        "sv_cosine/a/b.txt/mindcf": 0.5,
        "sv_cosine_s-norm/a/b.txt/eer": 2.0,
        "emotion/accuracy": 0.7,
    }
    assert stressed == {
        "telephone+mulaw": {"sv_cosine/a/b.txt/eer": 14.256},
        "mulaw": {"sv_cosine_s-norm/a/b.txt/eer": 5.0},
    }


def test_one_table_has_a_row_for_each_condition() -> None:
    assert format_conditions(RESULTS) == (
        "EER (%)                   system   clean  telephone+mulaw  mulaw\n"
        "------------------------  -------  -----  ---------------  -----\n"
        "sv_cosine/a/b.txt         trained   3.00            14.26      -\n"
        "sv_cosine_s-norm/a/b.txt  trained   2.00                -   5.00"
    )
    several = format_conditions(RESULTS | {"mfcc": {"x/l/eer": 1.0, "x@mulaw/l/eer": 2.0}})
    assert several.splitlines()[-1].split() == ["x/l", "mfcc", "1.00", "-", "2.00"]
    assert format_conditions({"trained": {"sv_cosine/list/eer": 3.0}}) == ""


# --------------------------------------------------------------------------------- the command

Evaluate = Callable[..., dict[str, float]]


@pytest.fixture
def evaluate(config_file: Path) -> Evaluate:
    """``evaluate("a=b")`` is what evaluation.json then says."""
    short = ["trainer.epochs=1", "dataset.max_samples=8"]
    assert cli.main(["train", str(config_file), *short]) == 0

    def evaluate(*arguments: str) -> dict[str, float]:
        assert cli.main(["evaluate", str(config_file), *arguments]) == 0
        return json.loads((config_file.parent / "evaluation.json").read_text())

    return evaluate


def test_evaluate_measures_and_shows_every_condition(
    evaluate: Evaluate, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = evaluate()
    assert "telephone" not in capsys.readouterr().out
    found = evaluate("evaluation.conditions=[clean,snr--10db,telephone]")
    out = capsys.readouterr().out
    assert plain.items() <= found.items()
    name = "sv_cosine@{}/trials/{}"
    for metric in ("eer", "mindcf"):
        clean = found[f"test/sv_cosine/trials/{metric}"]
        assert found["test/" + name.format("clean", metric)] == clean
    assert "@" not in out
    conditions = ("clean", "snr--10db", "telephone")
    eers = [found["test/" + name.format(condition, "eer")] for condition in conditions]
    rows = [line.split() for line in out.splitlines()]
    assert ["EER", "(%)", "system", *conditions] in rows
    assert ["sv_cosine/trials", "trained", *(f"{eer:.2f}" for eer in eers)] in rows
    for condition in conditions:
        file = config_file.parent / f"scores/trained_sv_cosine@{condition}_trials.txt"
        assert file.exists() == (condition != "clean")

    both = evaluate("evaluation.conditions=[telephone]", "evaluation.conditions_on=both")
    assert found.items() <= both.items()
    assert "test/sv_cosine@telephone-both/trials/eer" in both


def test_score_files_are_named_as_the_results(evaluate: Evaluate, config_file: Path) -> None:
    text = config_file.read_text()
    config_file.write_text(f"{text}      score_norm: s-norm\n")
    found = evaluate("evaluation.conditions=[snr-0db]")
    systems = {name.split("/")[1] for name in found if name.endswith("trials/eer")}
    assert systems == {
        f"sv_cosine{norm}{condition}" for norm in ("", "_s-norm") for condition in ("", "@snr-0db")
    }
    files = {path.stem for path in config_file.parent.glob("scores/*.txt")}
    assert files == {f"trained_{system}_trials" for system in systems}


def test_a_bad_condition_is_refused_with_its_line(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config_file.read_text()
    config_file.write_text(f"{text}  conditions:\n    - mulaw\n    - revreb\n")
    assert cli.main(["evaluate", str(config_file)]) == 2
    line = len(text.splitlines()) + 3
    assert capsys.readouterr().err == (
        f"error: {config_file} line {line}: evaluation.conditions.1: unknown condition 'revreb'; "
        "did you mean 'reverb'?\n"
    )


def test_a_duration_that_no_file_has_is_refused_before_a_model_is_read(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(config_file), "evaluation.conditions=[duration-60s]"]) == 2
    assert "'duration-60s' would change nothing" in capsys.readouterr().err
