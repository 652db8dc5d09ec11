"""Make a small speaker-verification corpus without any download.

    pip install espeakng-loader
    python tools/prepare_data/prepare_demo.py data

eSpeak NG speaks generated sentences with many voices. A voice is a language, one of eSpeak's voice
variants, a pitch, a pitch range, a speaking rate and a vocal-tract length; training and test voices
are disjoint. Every session has its own microphone. The training part is otherwise clean and comes
with noise, music, other voices and room impulse responses to augment it; the test part has clean,
noisy and reverberant recordings. All is 16 kHz mono 16-bit WAV, in the layout of VoxCeleb, MUSAN
and the simulated RIRs:

    OUT_DIR/demo/<speaker>/<session>/<00001>.wav      training sp10001..., test sp20001...
    OUT_DIR/demo_train.csv                            File,Speaker
    OUT_DIR/demo_test_trials                          <1|0> <enrol file> <test file>
    OUT_DIR/musan_split/{noise,music,speech}/demo/<00001>.wav
    OUT_DIR/simulated_rirs/{smallroom,mediumroom,largeroom}/<room>/<00001>.wav
    OUT_DIR/demo.json                                 options and counts; the data are complete

The same options give the same bytes, whatever the number of workers.

The voices are synthetic: the data show that a pipeline runs and learns, and results on them say
nothing about real speech. eSpeak NG (package espeakng-loader) is under the GPL v3; it is optional,
and this script alone loads it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import fftconvolve, resample_poly
from tqdm import tqdm

VERSION = 1  # to raise when the same options give other data
STAMP = "demo.json"
FOLDERS = ("demo", "musan_split", "simulated_rirs")
PRODUCTS = (*FOLDERS, "demo_train.csv", "demo_test_trials", STAMP)

SAMPLE_RATE = 16000
NOISE_SECONDS = 8
RIRS_PER_ROOM = 4
UTTERANCES_PER_SESSION = 4
MICROPHONE_DB = 12  # spread of a microphone's frequency response
CONDITIONS = ("clean", "noisy", "reverberant", "noisy")  # of the test utterances, in turn
ROOMS = {"smallroom": (0.2, 0.4), "mediumroom": (0.3, 0.6), "largeroom": (0.5, 0.9)}  # RT60, s

LANGUAGES = ("en-us", "en-gb-scotland", "de", "fr", "es", "it", "pl", "tr", "sw", "hu")
VARIANTS = {
    "male": "m1 m2 m3 m4 m5 m7 m8 croak klatt klatt4 Mario paul robert kaukovalta",
    "female": "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda grandma linda steph",
}
GROUPS = [(sex, language) for language in LANGUAGES for sex in VARIANTS]
SPARE_VOICES = 8  # the voices of musan_split/speech, in neither training nor test
MAX_VOICES = len(GROUPS) * len(VARIANTS["male"].split()) - SPARE_VOICES

TRAIN, TEST, SPARE = PARTS = range(3)
NAMES = """Malena Tobiko Serani Dulmar Vinetta Borasko Kelim Orlanda Fenoso Pilarda Rukmin Golina
Tamira Lusoto Bekanda Norvil Samuka Delira Hamondo Zorina Pekalu Mirosa Vandoli Karimo"""
VERBS = """painted followed carried forgot measured borrowed repaired watched sold counted
described cleaned hid lifted photographed discovered"""
PLACES = "behind near under above beside inside"
ADJECTIVES = """old quiet yellow heavy narrow broken famous wooden cheap frozen silver tiny crooked
warm empty northern"""
NOUNS = """bridge lantern garden ship violin mountain kitchen letter horse window orchard bicycle
castle river clock blanket market tower carpet piano"""
SYLLABLES = "ba ko le mi tu no sa fe ri du ga pe lo ni ma so ta ke vi ru da po me li to na se fi mo"


class DemoError(Exception):
    """One sentence that tells the user what to change."""


def option(default: int, minimum: int, text: str) -> int:
    return field(default=default, metadata={"minimum": minimum, "help": text})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the data depend on; each field is an option of the command line."""

    train_voices: int = option(120, 1, "training speakers")
    test_voices: int = option(40, 2, "test speakers, none of them a training speaker")
    utterances: int = option(16, 2, "utterances of each speaker, of 3 to 5 s")
    trials: int = option(4000, 2, "test trials at most, half of them targets")
    noises: int = option(20, 1, f"files of {NOISE_SECONDS} s in each of noise, music and speech")
    rooms: int = option(4, 1, f"rooms of each of three sizes, {RIRS_PER_ROOM} responses each")
    seed: int = option(1717, 0, "seed of every draw")

    def __post_init__(self) -> None:
        for known in fields(self):
            value, minimum = getattr(self, known.name), known.metadata["minimum"]
            if value < minimum:
                raise DemoError(f"--{known.name} {value}: must be at least {minimum}")
        if self.voices > MAX_VOICES:
            raise DemoError(
                f"--train_voices {self.train_voices} and --test_voices {self.test_voices}: "
                f"there are only {MAX_VOICES} voices in all"
            )

    @property
    def voices(self) -> int:
        """Training voices are numbered first, then test voices, then spare ones."""
        return self.train_voices + self.test_voices

    def rng(self, *key: str | int) -> np.random.Generator:
        """Return the generator of one thing: no draw depends on what was drawn before it."""
        words = [int.from_bytes(k.encode(), "big") if isinstance(k, str) else k for k in key]
        return np.random.default_rng((self.seed, *words))


@dataclass(frozen=True, kw_only=True)
class Voice:
    language: str
    variant: str
    pitch: int  # eSpeak's scale, 0-99, around the variant's own pitch
    pitch_range: int  # eSpeak's scale, 0 (monotonous) to 99
    words_per_minute: float
    formant_scale: float  # above 1: a shorter vocal tract, higher formants and pitch


def make_voice(options: Options, index: int) -> Voice:
    """Return the voice of that number; no two numbers share both language and variant."""
    row, group = divmod(index, len(GROUPS))
    sex, language = GROUPS[group]
    variants = options.rng("variants", group).permutation(VARIANTS[sex].split())
    rng = options.rng("voice", index)
    return Voice(
        language=language,
        variant=variants[row],
        pitch=int(rng.integers(25, 76)),
        pitch_range=int(rng.integers(20, 81)),
        words_per_minute=rng.uniform(135, 200),
        formant_scale=rng.uniform(0.86, 1.16),
    )


class Engine:
    """eSpeak NG through its C interface.

    The library cannot forget earlier sentences (its oscillators go on, even when it is started
    again), so what has to be reproducible is spoken in a process of its own.
    """

    SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
    RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
    CALLBACK = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self.library.espeak_Initialize(
            self.SYNCHRONOUS, 0, data, self.DO_NOT_EXIT
        )
        if self.sample_rate <= 0:
            raise DemoError("eSpeak NG does not start: reinstall the package espeakng-loader")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it would be the time of day
        self.chunks: list[np.ndarray] = []
        self.callback = self.CALLBACK(self._collect)  # kept: the library holds no reference to it
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, count: int, events) -> int:
        if count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def say(self, voice: Voice, text: str, pitch_offset: int, rate_factor: float) -> np.ndarray:
        """Return ``text`` as speech, 16 kHz, (T,), at any level."""
        name = f"{voice.language}+{voice.variant}"
        if self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise DemoError(f"eSpeak NG has no voice {name}: upgrade the package espeakng-loader")
        settings = {
            # Played faster, formants and pitch rise; speaking more slowly keeps the rate.
            self.RATE: round(voice.words_per_minute * rate_factor / voice.formant_scale),
            self.VOLUME: 50,  # some variants clip at the default of 100
            self.PITCH: voice.pitch + pitch_offset,
            self.RANGE: voice.pitch_range,
        }
        for parameter, value in settings.items():
            self.library.espeak_SetParameter(parameter, value, 0)
        self.chunks.clear()
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        self.library.espeak_Synth(data, size, 0, 0, 0, self.UTF8, None, None)
        ratio = Fraction(SAMPLE_RATE / (self.sample_rate * voice.formant_scale))
        ratio = ratio.limit_denominator(200)
        wave = np.concatenate(self.chunks) / 2**15
        return resample_poly(wave, ratio.numerator, ratio.denominator)


def sentence(rng: np.random.Generator, language: str, part: int) -> str:
    """Return an English sentence, or nonsense that other languages can read.

    It opens with a name that the other parts never use: no sentence is in two parts.
    """
    name = rng.choice(NAMES.split()[part :: len(PARTS)])
    if language.startswith("en"):
        verb, place = rng.choice(VERBS.split()), rng.choice(PLACES.split())
        adjectives = rng.choice(ADJECTIVES.split(), 2, replace=False)
        nouns = rng.choice(NOUNS.split(), 2, replace=False)
        return (
            f"{name} {verb} the {adjectives[0]} {nouns[0]} {place} the {adjectives[1]} {nouns[1]}."
        )
    words = ["".join(rng.choice(SYLLABLES.split(), rng.integers(1, 4))) for _ in range(7)]
    return f"{name} {' '.join(words)}."


def speak(
    engine: Engine, rng: np.random.Generator, voice: Voice, part: int, seconds: float
) -> np.ndarray:
    """Return one utterance of exactly ``seconds``, (T,), mean square 1."""
    length = round(seconds * SAMPLE_RATE)
    pitch_offset, rate_factor = int(rng.integers(-4, 5)), rng.uniform(0.94, 1.06)
    wave = np.zeros(0)
    while len(wave) < length:
        text = sentence(rng, voice.language, part)
        wave = np.concatenate([wave, engine.say(voice, text, pitch_offset, rate_factor)])
    return unit_power(wave[:length])


def unit_power(wave: np.ndarray) -> np.ndarray:
    return wave / np.sqrt(np.mean(wave**2))


def add_noise(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add ``noise`` (T,) to ``wave`` (T,), both of mean square 1."""
    return wave + noise * 10 ** (-snr_db / 20)


def equalise(rng: np.random.Generator, wave: np.ndarray, spread_db: float) -> np.ndarray:
    """Filter (T,) by a random smooth frequency response, gains within ± ``spread_db``."""
    spectrum = np.fft.rfft(wave)
    knots, positions = np.linspace(0, 1, 9), np.linspace(0, 1, len(spectrum))
    gain_db = np.interp(positions, knots, rng.uniform(-spread_db, spread_db, len(knots)))
    return unit_power(np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(wave)))


def make_noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Return white or coloured noise, steady or slowly modulated, (length,), mean square 1."""
    noise = equalise(rng, rng.standard_normal(length), rng.choice([0, 15]))
    if rng.random() < 0.5:
        levels = rng.uniform(0.1, 1, 2 + length * 4 // SAMPLE_RATE)  # about 4 a second
        noise *= np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(levels)), levels)
    return unit_power(noise)


def make_music(rng: np.random.Generator, length: int) -> np.ndarray:
    """Return a melody above chords, notes of 8 decaying harmonics, (length,), mean square 1."""
    beat = int(rng.uniform(0.2, 0.5) * SAMPLE_RATE)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16])  # major, in semitones
    root_hz, brightness, decay_s = rng.uniform(80, 180), rng.uniform(0.5, 2), rng.uniform(0.3, 1.5)
    harmonics = np.arange(1, 9)[:, None]  # (8, 1)
    music = np.zeros(length)
    for position, start in enumerate(range(0, length, beat)):
        notes = [(1, 12 + scale[rng.integers(len(scale))])]  # beats, semitones above the root
        if position % 4 == 0:
            notes += [(4, semitones) for semitones in scale[rng.integers(5) + np.array([0, 2, 4])]]
        for beats, semitones in notes:
            time = np.arange(min(beats * beat, length - start)) / SAMPLE_RATE
            phase = 2 * np.pi * root_hz * 2 ** (semitones / 12) * time
            note = (np.sin(harmonics * phase) / harmonics**brightness).sum(0)
            envelope = np.minimum(time / 0.01, 1) * np.exp(-time / decay_s)
            music[start : start + len(time)] += envelope * note
    return unit_power(music)


def make_rir(rng: np.random.Generator, rt60: float) -> np.ndarray:
    """Return a room impulse response: direct sound, early reflections, decaying noise.

    ``rt60`` is the time in seconds in which the noise falls by 60 dB, and the length.
    """
    length = int(rt60 * SAMPLE_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: SAMPLE_RATE // 200] = 0  # nothing comes back within 5 ms
    direct_to_reverberant_db = rng.uniform(-3, 6)
    response = tail / np.linalg.norm(tail) * 10 ** (-direct_to_reverberant_db / 20)
    delays = (rng.uniform(0.002, 0.12 * rt60, 6) * SAMPLE_RATE).astype(int)
    response[delays] += rng.uniform(0.1, 0.5, 6) * rng.choice([-1, 1], 6)
    response[0] = 1
    return response


def write_wav(path: Path, wave: np.ndarray) -> None:
    """Write (T,), its level lowered where it would clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = wave * min(1, 0.95 / np.abs(wave).max())
    soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")


def speaker(options: Options, index: int) -> str:
    first_test = options.train_voices
    return f"sp{10001 + index}" if index < first_test else f"sp{20001 + index - first_test}"


def condition(options: Options, index: int, utterance: int) -> str:
    return "clean" if index < options.train_voices else CONDITIONS[utterance % len(CONDITIONS)]


def utterance_path(options: Options, index: int, utterance: int) -> str:
    """Return the path under OUT_DIR; the condition is part of the session's name."""
    session = f"{condition(options, index, utterance)}{utterance // UTTERANCES_PER_SESSION + 1}"
    return f"demo/{speaker(options, index)}/{session}/{utterance + 1:05d}.wav"


def write_voice(options: Options, folder: Path, index: int) -> None:
    """Write the utterances of one speaker."""
    engine, voice = Engine(), make_voice(options, index)
    part = TRAIN if index < options.train_voices else TEST
    for utterance in range(options.utterances):
        rng = options.rng("utterance", index, utterance)
        microphone = options.rng("microphone", index, utterance // UTTERANCES_PER_SESSION)
        wave = speak(engine, rng, voice, part, rng.integers(30, 51) / 10)
        wave = equalise(microphone, wave, MICROPHONE_DB)
        how = condition(options, index, utterance)
        if how == "noisy":
            wave = add_noise(wave, make_noise(rng, len(wave)), rng.uniform(5, 15))
        elif how == "reverberant":
            wave = fftconvolve(wave, make_rir(rng, rng.uniform(0.3, 0.9)))[: len(wave)]
        wave = add_noise(unit_power(wave), rng.standard_normal(len(wave)), 45)  # never silent
        level_db = rng.uniform(-32, -20)
        write_wav(folder / utterance_path(options, index, utterance), wave * 10 ** (level_db / 20))


def write_noises(options: Options, folder: Path, index: int) -> None:
    """Write a noise, a piece of music, and the speech of one to six talkers."""
    rng, engine = options.rng("noises", index), Engine()
    talkers = options.voices + rng.permutation(SPARE_VOICES)[: 1 + index % 6]
    waves = {
        "noise": make_noise(rng, NOISE_SECONDS * SAMPLE_RATE),
        "music": make_music(rng, NOISE_SECONDS * SAMPLE_RATE),
        "speech": sum(
            speak(engine, rng, make_voice(options, int(talker)), SPARE, NOISE_SECONDS)
            for talker in talkers
        ),
    }
    for category, wave in waves.items():
        path = folder / "musan_split" / category / "demo" / f"{index + 1:05d}.wav"
        write_wav(path, unit_power(wave) / 10)


def write_room(options: Options, folder: Path, index: int) -> None:
    """Write the impulse responses of one room: one reverberation time, several positions."""
    row, column = divmod(index, len(ROOMS))
    size = list(ROOMS)[column]
    rng = options.rng("room", index)
    rt60 = rng.uniform(*ROOMS[size])
    room = folder / "simulated_rirs" / size / f"Room{row + 1:03d}"
    for position in range(RIRS_PER_ROOM):
        write_wav(room / f"{position + 1:05d}.wav", make_rir(rng, rt60))


def make_trials(options: Options) -> Iterator[str]:
    """Yield the lines of the trials, shuffled: as many targets as non-targets, no pair twice.

    Of the non-targets 35 % are between voices of one sex and language, 35 % of one sex only; where
    a small set has too few of a kind, the next kind makes up for it.
    """
    rng, count = options.rng("trials"), options.utterances
    voices = range(options.train_voices, options.voices)
    pairs = list(itertools.combinations(range(count), 2))
    size = min(options.trials // 2, len(voices) * len(pairs))
    trials = []
    for drawn in rng.choice(len(voices) * len(pairs), size, replace=False):
        voice, (first, second) = voices[drawn // len(pairs)], pairs[drawn % len(pairs)]
        trials.append((1, ((voice, first), (voice, second))))

    kinds = ([], [], [])  # same sex and language; same sex; other sex
    for index, other in itertools.combinations(voices, 2):
        group, other_group = GROUPS[index % len(GROUPS)], GROUPS[other % len(GROUPS)]
        kind = 0 if group == other_group else 1 if group[0] == other_group[0] else 2
        kinds[kind].append((index, other))
    for choices, cumulated_share in zip(kinds, (0.35, 0.7, 1), strict=True):
        shape = (len(choices), count, count)
        missing = round((1 + cumulated_share) * size) - len(trials)
        drawn = rng.choice(np.prod(shape), min(missing, np.prod(shape)), replace=False)
        for choice, first, second in zip(*np.unravel_index(drawn, shape), strict=True):
            index, other = choices[choice]
            trials.append((0, ((index, first), (other, second))))

    for position in rng.permutation(len(trials)):
        target, sides = trials[position]
        enrol, test = (utterance_path(options, *sides[side]) for side in rng.permutation(2))
        yield f"{target} {enrol} {test}\n"


def run(task: Callable[[], None]) -> None:
    task()


def generate(options: Options, folder: Path, workers: int) -> dict[str, int]:
    """Write all but the stamp into ``folder``; return the number of files and of trials."""
    tasks = [partial(write_voice, options, folder, i) for i in range(options.voices)]
    tasks += [partial(write_noises, options, folder, i) for i in range(options.noises)]
    tasks += [partial(write_room, options, folder, i) for i in range(options.rooms * len(ROOMS))]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "scipy.signal", "soundfile", "tqdm"])
    with context.Pool(workers, maxtasksperchild=1) as pool:  # see Engine: a process for each task
        results = pool.imap_unordered(run, tasks)
        for _ in tqdm(results, total=len(tasks), desc="Demo data", unit="task", disable=None):
            pass

    rows = ["File,Speaker\n"]
    for index, utterance in itertools.product(
        range(options.train_voices), range(options.utterances)
    ):
        path = utterance_path(options, index, utterance)
        rows.append(f"{path},{speaker(options, index)}\n")
    trials = list(make_trials(options))
    (folder / "demo_train.csv").write_bytes("".join(rows).encode())
    (folder / "demo_test_trials").write_bytes("".join(trials).encode())
    return {**count_wavs(folder), "trials": len(trials)}


def count_wavs(out: Path) -> dict[str, int]:
    return {name: sum(1 for _ in (out / name).rglob("*.wav")) for name in FOLDERS}


def read_stamp(out: Path) -> dict:
    try:
        return json.loads((out / STAMP).read_text())
    except (OSError, ValueError):
        return {}


def prepare(options: Options, out: Path, workers: int) -> str:
    """Make the data under ``out`` unless they are there; return a sentence that says which.

    Nothing that exists is overwritten or removed, but the hidden folder of an interrupted run: all
    is written there and moved into place at the end.
    """
    wanted = {"version": VERSION, **asdict(options)}
    stamp = read_stamp(out)
    found = stamp.get("options", {})
    if found == wanted and count_wavs(out).items() <= stamp["counts"].items():
        return f"{out}: the demo data are complete, nothing to do"
    taken = [name for name in PRODUCTS if (out / name).exists()]
    if taken:
        changed = [f"{k} {v}, not {wanted.get(k)}" for k, v in found.items() if wanted.get(k) != v]
        why = f"made with {'; '.join(changed)}" if changed else "not a complete demo of this script"
        raise DemoError(
            f"{out}: holds {', '.join(taken)}, {why}; choose another folder or remove them first"
        )

    if importlib.util.find_spec("espeakng_loader") is None:
        raise DemoError("eSpeak NG is missing: pip install espeakng-loader (extra 'demo' of sslsv)")
    staging = out / ".demo_partial"
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    counts = generate(options, staging, workers)
    stamp = {"options": wanted, "counts": counts}
    (staging / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
    for name in PRODUCTS:  # the stamp last: it says that the others are complete
        (staging / name).rename(out / name)
    staging.rmdir()
    total = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{out}: demo data written ({total})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Make a small speaker-verification corpus of synthetic voices, no download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder to write to")
    for known in fields(Options):
        text = known.metadata["help"]
        parser.add_argument(f"--{known.name}", type=int, default=known.default, help=text)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    values = vars(parser.parse_args(arguments))
    out, workers = values.pop("out_dir"), max(1, values.pop("workers"))
    try:
        print(prepare(Options(**values), out, workers))
    except DemoError as error:
        message = str(error)
    except OSError as error:
        message = f"{out}: cannot be written ({error.strerror}); choose another folder"
    else:
        return
    parser.exit(2, f"{parser.prog}: error: {message}\n")


if __name__ == "__main__":
    main()
