"""Make a small speaker-verification corpus without any download.

    pip install sslsv[demo]
    python tools/prepare_data/prepare_demo.py data

eSpeak NG speaks generated sentences with many voices: a voice is a language, a voice variant, a
pitch, a pitch range, a speaking rate and a vocal-tract length. Training and test voices are
disjoint. The test part has clean, noisy and reverberant recordings; the training part is clean and
comes with noises, music, other voices and room impulse responses to augment it. Written under
OUT_DIR, in the layout of VoxCeleb, MUSAN and the simulated RIRs (all 16 kHz mono 16-bit WAV):

    demo/<speaker>/<session>/<00001>.wav        training sp10001..., test sp20001...
    demo_train.csv                              File,Speaker
    demo_test_trials                            <1|0> <enrol file> <test file>
    musan_split/{noise,music,speech}/demo/*.wav
    simulated_rirs/{smallroom,mediumroom,largeroom}/<room>/*.wav
    demo.json                                   options and counts, written last

The same options give the same bytes, whatever the number of workers.

The voices are synthetic: the data show that a pipeline works and learns, and results on them say
nothing about real speech. eSpeak NG (PyPI package espeakng-loader) is licensed under the GPL v3; it
is an optional extra, loaded by this script alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import fftconvolve, resample_poly
from tqdm import tqdm

VERSION = 1  # raise it when the same options give other data
SAMPLE_RATE = 16000
PRODUCTS = (  # the stamp comes last: it says that the others are complete
    "demo",
    "musan_split",
    "simulated_rirs",
    "demo_train.csv",
    "demo_test_trials",
    "demo.json",
)

LANGUAGES = ("en-us", "en-gb-scotland", "de", "fr", "es", "it", "pl", "tr", "sw", "hu")
VARIANTS = {  # eSpeak's voice variants, by sex
    "male": "m1 m2 m3 m4 m5 m7 m8 croak klatt klatt4 Mario paul robert kaukovalta".split(),
    "female": "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda grandma linda steph".split(),
}
CELLS = [(sex, language) for language in LANGUAGES for sex in VARIANTS]
MAX_VOICES = len(CELLS) * len(VARIANTS["male"])
SPARE_VOICES = 8  # voices of musan_split/speech, in neither training nor test

TRAIN, TEST, SPARE = PARTS = range(3)
CONDITIONS = ("clean", "noisy", "reverberant", "noisy")
MICROPHONE_DB = 10
ROOMS = {"smallroom": (0.2, 0.4), "mediumroom": (0.3, 0.6), "largeroom": (0.5, 0.9)}  # RT60 (s)
RIRS_PER_ROOM = 4
NOISE_SECONDS = 8

NAMES = (
    "Malena Tobiko Serani Dulmar Vinetta Borasko Kelim Orlanda Fenoso Pilarda Rukmin Golina "
    "Tamira Lusoto Bekanda Norvil Samuka Delira Hamondo Zorina Pekalu Mirosa Vandoli Karimo"
).split()
VERBS = (
    "painted followed carried forgot measured borrowed repaired watched sold counted described "
    "cleaned hid lifted photographed discovered"
).split()
ADJECTIVES = (
    "old quiet yellow heavy narrow broken famous wooden cheap frozen silver tiny crooked warm "
    "empty northern"
).split()
NOUNS = (
    "bridge lantern garden ship violin mountain kitchen letter horse window orchard bicycle castle "
    "river clock blanket market tower carpet piano"
).split()
PLACES = "behind near under above beside inside".split()
SYLLABLES = (
    "ba ko le mi tu no sa fe ri du ga pe lo ni ma so ta ke vi ru da po me li to na se fi mo ra"
).split()


class DemoError(Exception):
    """One sentence that tells the user what to change."""


def option(default: int, minimum: int, help: str) -> int:
    return field(default=default, metadata={"minimum": minimum, "help": help})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the data depend on; each is an option of the command line."""

    train_voices: int = option(120, 1, "training speakers")
    test_voices: int = option(40, 2, "test speakers, none of them a training speaker")
    utterances: int = option(16, 2, "utterances of each speaker, of 3 to 5 s")
    trials: int = option(4000, 2, "test trials at most, half of them targets")
    noises: int = option(20, 1, "files of 8 s in each of noise, music and speech")
    rooms: int = option(4, 1, "rooms of each of three sizes, with 4 impulse responses each")
    seed: int = option(1717, 0, "seed of every draw")

    def __post_init__(self) -> None:
        for known in fields(self):
            value, minimum = getattr(self, known.name), known.metadata["minimum"]
            if value < minimum:
                raise DemoError(f"--{known.name} {value}: must be at least {minimum}")
        voices, most = self.train_voices + self.test_voices, MAX_VOICES - SPARE_VOICES
        if voices > most:
            raise DemoError(
                f"--train_voices and --test_voices: {voices} voices in all, at most {most} exist"
            )

    def rng(self, *key: str | int) -> np.random.Generator:
        """Return the generator of one thing, so that no draw depends on what was drawn before."""
        words = [int.from_bytes(k.encode(), "big") if isinstance(k, str) else k for k in key]
        return np.random.default_rng((self.seed, *words))


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A speaker."""

    sex: str
    language: str
    variant: str
    pitch: int  # eSpeak's scale, 0-99, around the variant's own pitch
    pitch_range: int  # eSpeak's scale, 0 (monotonous) - 99
    words_per_minute: float
    formant_scale: float  # above 1: a shorter vocal tract, higher formants and pitch


def make_voice(options: Options, index: int) -> Voice:
    """Return the voice of that number; no two numbers share language and variant."""
    cell = index % len(CELLS)
    sex, language = CELLS[cell]
    order = options.rng("variants", cell).permutation(len(VARIANTS[sex]))
    rng = options.rng("voice", index)
    return Voice(
        sex=sex,
        language=language,
        variant=VARIANTS[sex][order[index // len(CELLS)]],
        pitch=int(rng.integers(25, 76)),
        pitch_range=int(rng.integers(20, 81)),
        words_per_minute=rng.uniform(135, 200),
        formant_scale=rng.uniform(0.86, 1.16),
    )


class Engine:
    """eSpeak NG through its C interface.

    The library keeps state from one sentence to the next that it cannot reset, so a task that must
    be reproducible runs in a process of its own.
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
            raise DemoError(
                "eSpeak NG does not start: reinstall it with pip install espeakng-loader"
            )
        self.chunks: list[np.ndarray] = []
        self.callback = self.CALLBACK(self._collect)  # the library holds no reference to it
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, count: int, events) -> int:
        if count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def say(self, voice: Voice, text: str, pitch_offset: int, rate_factor: float) -> np.ndarray:
        """Return ``text`` spoken, 16 kHz, (T,), any level."""
        name = f"{voice.language}+{voice.variant}"
        if self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise DemoError(f"eSpeak NG has no voice {name}: upgrade espeakng-loader")
        # Played faster, all frequencies rise together, so the words are spoken slower to make up.
        rate = voice.words_per_minute * rate_factor / voice.formant_scale
        settings = {
            self.RATE: round(rate),
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
    """Return an English sentence, or a nonsense one that any Latin spelling can read.

    Its first word is never used by another part, so no sentence is in two parts.
    """
    name = rng.choice(NAMES[part :: len(PARTS)])
    if language.startswith("en"):
        verb, place = rng.choice(VERBS), rng.choice(PLACES)
        (adjective, other_adjective), (noun, other_noun) = (
            rng.choice(words, 2, replace=False) for words in (ADJECTIVES, NOUNS)
        )
        return f"{name} {verb} the {adjective} {noun} {place} the {other_adjective} {other_noun}."
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(rng.integers(6, 9))]
    return f"{name} {' '.join(words)}."


def speak(
    engine: Engine, rng: np.random.Generator, voice: Voice, part: int, seconds: float
) -> np.ndarray:
    """Return one utterance of exactly ``seconds``, 16 kHz, (T,), with a mean square of 1."""
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
    """Filter (T,) with a random smooth frequency response, its gains within ± ``spread_db``."""
    spectrum = np.fft.rfft(wave)
    knots, positions = np.linspace(0, 1, 9), np.linspace(0, 1, len(spectrum))
    gain_db = np.interp(positions, knots, rng.uniform(-spread_db, spread_db, len(knots)))
    return unit_power(np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(wave)))


def make_noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Return white or coloured noise, steady or slowly modulated, (length,)."""
    noise = equalise(rng, rng.standard_normal(length), rng.choice([0, 15]))
    if rng.random() < 0.5:
        levels = rng.uniform(0.1, 1, 2 + length * 4 // SAMPLE_RATE)  # about 4 a second
        noise *= np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(levels)), levels)
    return unit_power(noise)


def make_music(rng: np.random.Generator, length: int) -> np.ndarray:
    """Return a melody over broken-in triads, notes with decaying harmonics, (length,)."""
    beat = int(rng.uniform(0.2, 0.5) * SAMPLE_RATE)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19])  # semitones of a major scale
    root_hz, brightness, decay = rng.uniform(80, 180), rng.uniform(0.5, 2), rng.uniform(0.3, 1.5)
    music = np.zeros(length)

    def add_note(start: int, beats: int, degree: int, octave: int) -> None:
        time = np.arange(min(beats * beat, length - start)) / SAMPLE_RATE
        pitch_hz = root_hz * 2 ** (octave + scale[degree] / 12)
        harmonics = np.arange(1, 9)[:, None]  # (8, 1), all below 8 kHz
        note = (np.sin(2 * np.pi * pitch_hz * harmonics * time) / harmonics**brightness).sum(0)
        attack = np.minimum(time / 0.01, 1)
        music[start : start + len(time)] += attack * np.exp(-time / decay) * note

    for position, start in enumerate(range(0, length, beat)):
        if position % 4 == 0:
            chord = int(rng.integers(0, 6))
            for degree in (chord, chord + 2, chord + 4):
                add_note(start, 4, degree, 0)
        add_note(start, 1, int(rng.integers(0, len(scale))), 1)
    return unit_power(music)


def make_rir(rng: np.random.Generator, rt60: float) -> np.ndarray:
    """Return a room impulse response (rt60 * 16000,): direct sound, reflections, decaying noise.

    ``rt60`` is the time in seconds in which the tail decays by 60 dB.
    """
    length = int(rt60 * SAMPLE_RATE)
    decay = 10 ** (-3 * np.arange(length) / length)
    tail = unit_power(rng.standard_normal(length) * decay) / np.sqrt(length)  # energy of 1
    tail[: int(0.005 * SAMPLE_RATE)] = 0
    response = tail * 10 ** (-rng.uniform(-3, 6) / 20)  # direct-to-reverberant ratio in dB
    delays = (rng.uniform(0.002, 0.12 * rt60, 6) * SAMPLE_RATE).astype(int)
    response[delays] += rng.uniform(0.1, 0.5, 6) * rng.choice([-1, 1], 6)
    response[0] = 1
    return response


def write_wav(path: Path, wave: np.ndarray) -> None:
    """Write (T,) as 16-bit PCM, its level lowered where it would clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave * min(1, 0.95 / np.abs(wave).max()), SAMPLE_RATE, subtype="PCM_16")


def speaker_id(options: Options, index: int) -> str:
    if index < options.train_voices:
        return f"sp{10001 + index}"
    return f"sp{20001 + index - options.train_voices}"


def utterance_path(options: Options, index: int, utterance: int) -> str:
    """Return the path under OUT_DIR; a session is named after its condition."""
    is_test = index >= options.train_voices
    condition = CONDITIONS[utterance % len(CONDITIONS)] if is_test else "clean"
    session = f"{condition}{utterance // 4 + 1}"
    return f"demo/{speaker_id(options, index)}/{session}/{utterance + 1:05d}.wav"


def write_voice(options: Options, folder: Path, index: int) -> None:
    """Write all utterances of one speaker."""
    engine, voice = Engine(), make_voice(options, index)
    part = TRAIN if index < options.train_voices else TEST
    for utterance in range(options.utterances):
        rng = options.rng("utterance", index, utterance)
        path = utterance_path(options, index, utterance)
        microphone = options.rng("microphone", index, utterance // 4)  # one a session
        wave = speak(engine, rng, voice, part, rng.integers(30, 51) / 10)
        wave = equalise(microphone, wave, MICROPHONE_DB)
        if "/noisy" in path:
            wave = add_noise(wave, make_noise(rng, len(wave)), rng.uniform(5, 15))
        if "/reverberant" in path:
            wave = unit_power(fftconvolve(wave, make_rir(rng, rng.uniform(0.3, 0.9)))[: len(wave)])
        wave = add_noise(wave, rng.standard_normal(len(wave)), 45)  # no digital silence
        write_wav(folder / path, wave * 10 ** (rng.uniform(-32, -20) / 20))


def write_noise(options: Options, folder: Path, index: int) -> None:
    """Write one file of each of noise, music and speech (one voice, or babble of up to six)."""
    length = NOISE_SECONDS * SAMPLE_RATE
    rng = options.rng("augmentation", index)
    first_spare = options.train_voices + options.test_voices
    talkers = first_spare + rng.permutation(SPARE_VOICES)[: 1 + index % 6]
    engine = Engine()
    speech = sum(
        speak(engine, rng, make_voice(options, int(talker)), SPARE, NOISE_SECONDS)
        for talker in talkers
    )
    waves = {
        "noise": make_noise(rng, length),
        "music": make_music(rng, length),
        "speech": unit_power(speech),
    }
    for category, wave in waves.items():
        write_wav(folder / "musan_split" / category / "demo" / f"{index + 1:05d}.wav", wave / 10)


def write_room(options: Options, folder: Path, index: int) -> None:
    """Write the impulse responses of one room, which share its reverberation time."""
    size = list(ROOMS)[index % len(ROOMS)]
    rng = options.rng("room", index)
    rt60 = rng.uniform(*ROOMS[size])
    room = folder / "simulated_rirs" / size / f"Room{index // len(ROOMS) + 1:03d}"
    for position in range(RIRS_PER_ROOM):
        write_wav(room / f"{position + 1:05d}.wav", make_rir(rng, rt60))


def make_trials(options: Options) -> Iterator[str]:
    """Yield the lines of the trials file, shuffled: as many targets as non-targets.

    No pair of files comes twice, in either order. Of the non-targets 35 % are of one sex and
    language, 35 % of one sex and two languages, the others of two sexes; where a small set has too
    few of one kind, the next kind makes up for it.
    """
    rng, count = options.rng("trials"), options.utterances
    voices = range(options.train_voices, options.train_voices + options.test_voices)
    pairs = np.stack(np.triu_indices(count, 1), axis=1)  # of one speaker's utterances, (P, 2)
    size = min(options.trials // 2, len(voices) * len(pairs))
    trials = []
    for drawn in rng.choice(len(voices) * len(pairs), size, replace=False):
        voice, (first, second) = voices[drawn // len(pairs)], pairs[drawn % len(pairs)]
        trials.append((1, [(voice, first), (voice, second)]))

    kinds: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
    for index in voices:
        for other in range(index + 1, voices.stop):
            (sex, language), (other_sex, other_language) = (
                CELLS[voice % len(CELLS)] for voice in (index, other)
            )
            kind = (sex == other_sex, sex == other_sex and language == other_language)
            kinds.setdefault(kind, []).append((index, other))
    for kind, share in (((True, True), 0.35), ((True, False), 0.7), ((False, False), 1)):
        choices = kinds.get(kind, [])
        wanted = round(share * size) + size - len(trials)  # less what the kinds before have given
        shape = (len(choices), count, count)
        drawn = rng.choice(np.prod(shape), min(wanted, np.prod(shape)), replace=False)
        for choice, first, second in zip(*np.unravel_index(drawn, shape), strict=True):
            index, other = choices[choice]
            trials.append((0, [(index, first), (other, second)]))

    rng.shuffle(trials)
    for target, sides in trials:
        enrol, test = (utterance_path(options, *sides[side]) for side in rng.permutation(2))
        yield f"{target} {enrol} {test}\n"


def run_task(task: tuple, options: Options, folder: Path) -> None:
    write, index = task
    write(options, folder, index)


def generate(options: Options, folder: Path, workers: int) -> dict[str, int]:
    """Write everything but the stamp into ``folder`` and return how many files and trials."""
    tasks = [(write_voice, i) for i in range(options.train_voices + options.test_voices)]
    tasks += [(write_noise, i) for i in range(options.noises)]
    tasks += [(write_room, i) for i in range(options.rooms * len(ROOMS))]
    # A process a task: eSpeak's state, and so its output, must not depend on earlier tasks.
    with multiprocessing.Pool(workers, maxtasksperchild=1) as pool:
        done = pool.imap_unordered(partial(run_task, options=options, folder=folder), tasks)
        for _ in tqdm(done, total=len(tasks), desc="Demo data", unit="part"):
            pass
    with (folder / "demo_train.csv").open("w", newline="\n") as file:
        file.write("File,Speaker\n")
        for index in range(options.train_voices):
            for utterance in range(options.utterances):
                path = utterance_path(options, index, utterance)
                file.write(f"{path},{speaker_id(options, index)}\n")
    trials = list(make_trials(options))
    (folder / "demo_test_trials").write_text("".join(trials), newline="\n")
    return count_wavs(folder) | {"trials": len(trials)}


def count_wavs(folder: Path) -> dict[str, int]:
    return {name: sum(1 for _ in (folder / name).rglob("*.wav")) for name in PRODUCTS[:3]}


def read_stamp(folder: Path) -> dict:
    try:
        return json.loads((folder / PRODUCTS[-1]).read_text())
    except (OSError, ValueError):
        return {}


def check_free(out: Path, names: list[str], options: dict[str, int]) -> None:
    """Refuse to write over what is there: it is not ours, or somebody may need it."""
    taken = [name for name in names if (out / name).exists()]
    if not taken:
        return
    found = read_stamp(out).get("options", {})
    changed = [f"{key} {found[key]}, not {options[key]}" for key in found if key in options]
    changed = [text for text in changed if text.split()[1].rstrip(",") != text.split()[-1]]
    why = (
        f"made with other options ({'; '.join(changed)})" if changed else "not made by this script"
    )
    raise DemoError(
        f"{out}: holds {', '.join(taken)}, {why}: choose another folder or remove them first"
    )


def prepare(options: Options, out: Path, workers: int) -> str:
    """Make the data under ``out`` unless they are there; return a sentence that says which.

    All is written to a hidden folder and moved into place at the end, so that an interrupted run
    leaves nothing that looks complete and the next one starts afresh.
    """
    wanted = {"version": VERSION, **asdict(options)}
    stamp = read_stamp(out)
    if stamp.get("options") == wanted:
        if count_wavs(out).items() <= stamp["counts"].items():
            return f"{out}: the demo data are complete, nothing to do"
        raise DemoError(
            f"{out}: files of the demo data are missing: remove {', '.join(PRODUCTS)} and run again"
        )

    staging = out / ".demo_partial"
    moving = read_stamp(staging).get("options") == wanted  # stopped between the moves below
    names = [name for name in PRODUCTS if not moving or (staging / name).exists()]
    check_free(out, names, wanted)
    if not moving:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
        counts = generate(options, staging, workers)
        text = json.dumps({"options": wanted, "counts": counts}, indent=2) + "\n"
        (staging / PRODUCTS[-1]).write_text(text)
    for name in names:
        os.replace(staging / name, out / name)
    staging.rmdir()
    counts = ", ".join(f"{count} in {name}" for name, count in read_stamp(out)["counts"].items())
    return f"{out}: wrote the demo data ({counts})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Make a small speaker-verification corpus of synthetic voices, no download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder to write to")
    helps = {
        "train_voices": "training speakers",
        "test_voices": "test speakers, none of them a training speaker",
        "utterances": "utterances of each speaker, of 3 to 5 s",
        "trials": "test trials at most, half of them targets",
        "noises": f"files of {NOISE_SECONDS} s in each of noise, music and speech",
        "rooms": f"rooms of each of three sizes, with {RIRS_PER_ROOM} impulse responses each",
        "seed": "seed of every draw",
    }
    for f in fields(Options):
        parser.add_argument(f"--{f.name}", type=int, default=f.default, help=f.metadata["help"])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    values = vars(parser.parse_args(arguments))
    out, workers = values.pop("out_dir"), values.pop("workers")
    try:
        import espeakng_loader  # noqa: F401

        print(prepare(Options(**values), out, max(1, workers)))
    except ImportError:
        message = "eSpeak NG is missing: pip install espeakng-loader (or the extra: sslsv[demo])"
    except DemoError as error:
        message = str(error)
    except OSError as error:
        message = f"{out}: cannot be written ({error.strerror}): choose another folder"
    else:
        return
    parser.exit(2, f"{parser.prog}: error: {message}\n")


if __name__ == "__main__":
    main()
