"""Embeddings kept between evaluations: never wrong ones, and never in the way."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from sslsv import audio, cli
from sslsv.config import load_config
from sslsv.errors import DataError
from sslsv.evaluations import cache as cache_module
from sslsv.evaluations import embeddings
from sslsv.evaluations.cache import CachedEmbed, EmbeddingCache, cached, hash_of_model
from sslsv.evaluations.conditions import make_condition
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.experiment import build_method

CPU = torch.device("cpu")
FILES = [f"{i}.wav" for i in range(6)]
GB = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of white noise, named FILES."""
    base = tmp_path / "audio"
    rng = np.random.default_rng(0)
    for i, name in enumerate(FILES):
        audio.write(base / name, rng.uniform(-0.9, 0.9, 2000 + 100 * i))
    return base


class Model:
    """An ``embed`` with a cache that counts the waveforms it is given."""

    def __init__(self, run: Path, weights: str = "w", limit: int = GB):
        self.count = 0
        self.cached = CachedEmbed(self.embed, EmbeddingCache(run / "cache", weights, limit))

    def embed(self, waves: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.count += len(waves)
        return waves[:, :5]

    def run(self, files: list[str], folder: Path, **how: object) -> np.ndarray:
        self.count = 0
        return extract(self.cached, files, Extraction(folder, **how), CPU)  # type: ignore[arg-type]


def parts(run: Path) -> list[Path]:
    return sorted((run / "cache").glob("*"))


# --------------------------------------------------------------------------------- what is reused


def test_nothing_is_embedded_twice(folder: Path, tmp_path: Path) -> None:
    first, second = Model(tmp_path), Model(tmp_path)
    found = first.run(FILES, folder)
    assert first.count == 6
    again = second.run(FILES, folder)
    assert second.count == 0
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, found)
    plain = extract(first.embed, FILES, Extraction(folder), CPU)
    np.testing.assert_array_equal(found, plain)


def test_other_lists_need_only_what_is_new_in_their_own_order(folder: Path, tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.run(FILES[1:4], folder)
    wanted = [FILES[5], FILES[2], FILES[0], FILES[3], FILES[2]]
    found = model.run(wanted, folder)
    assert model.count == 2
    np.testing.assert_allclose(found, extract(model.embed, wanted, Extraction(folder), CPU))
    found = model.run(wanted[::-1], folder)
    assert model.count == 0
    np.testing.assert_allclose(found[::-1], extract(model.embed, wanted, Extraction(folder), CPU))


def test_how_files_are_batched_and_read_does_not_matter(folder: Path, tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.run(FILES, folder, batch_size=2)
    model.run(FILES, folder, batch_size=5, num_workers=1)
    assert model.count == 0
    model.run(FILES, folder, num_frames=3)  # of a whole file there is but one
    assert model.count == 0


def test_large_arrays_are_kept_in_parts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_PART", 2 * 5 * 4)  # two embeddings
    model = Model(tmp_path)
    found = model.run(FILES[:5], folder)
    assert len(parts(tmp_path)) == 3
    np.testing.assert_array_equal(model.run(FILES[:5], folder), found)
    assert model.count == 0


# ------------------------------------------------------------------------------ what is not reused


@pytest.mark.parametrize(
    "how",
    [
        {"frame_length": 1000},
        {"frame_length": 1000, "num_frames": 2},
        {"precision": "bf16"},
        {"resample": True},
        {"condition": make_condition("mulaw", Path())},
        {"condition": make_condition("telephone", Path())},
    ],
)
def test_other_settings_are_embedded_anew(
    folder: Path, tmp_path: Path, how: dict[str, object]
) -> None:
    model = Model(tmp_path)
    plain = model.run(FILES, folder)
    found = model.run(FILES, folder, **how)
    assert model.count == 6 * int(str(how.get("num_frames", 1)))
    np.testing.assert_array_equal(model.run(FILES, folder, **how), found)
    assert model.count == 0
    np.testing.assert_array_equal(model.run(FILES, folder), plain)
    assert model.count == 0


def test_embeddings_of_another_model_are_not_used(folder: Path, tmp_path: Path) -> None:
    Model(tmp_path, "a").run(FILES, folder)
    other = Model(tmp_path, "b")
    other.run(FILES, folder)
    assert other.count == 6


def test_a_part_under_the_name_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    Model(tmp_path, "a").run(FILES, folder)
    (of_a,) = parts(tmp_path)
    Model(tmp_path, "b").run(FILES, folder)
    (of_b,) = set(parts(tmp_path)) - {of_a}
    of_a.replace(of_b)
    other = Model(tmp_path, "b")
    with pytest.raises(DataError, match=r"\.npz: holds embeddings of another model .*; delete it$"):
        other.run(FILES, folder)
    assert other.count == 0


def test_a_folder_of_the_same_names_is_another_one(folder: Path, tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.run(FILES, folder)
    other = tmp_path / "other"
    other.mkdir()
    for name in FILES:
        os.link(folder / name, other / name)  # the same size and time
    model.run(FILES, other)
    assert model.count == 6
    (tmp_path / "link").symlink_to(folder)
    model.run(FILES, tmp_path / "link")
    assert model.count == 0


@pytest.mark.parametrize("change", ["length", "time"])
def test_a_file_that_was_changed_is_embedded_anew(
    folder: Path, tmp_path: Path, change: str
) -> None:
    model = Model(tmp_path)
    before = model.run(FILES, folder)
    state = os.stat(folder / FILES[2])
    length = 3000 if change == "length" else 2200
    audio.write(folder / FILES[2], np.random.default_rng(9).uniform(-0.9, 0.9, length))
    time_ns = state.st_mtime_ns + (change == "time")
    os.utime(folder / FILES[2], ns=(time_ns, time_ns))
    after = model.run(FILES, folder)
    assert model.count == 1
    assert (after[2] != before[2]).any()
    np.testing.assert_array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))
    np.testing.assert_array_equal(model.run(FILES, folder), after)  # though the old one is there
    assert model.count == 0


def test_a_file_that_is_gone_is_missed(folder: Path, tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.run(FILES, folder)
    (folder / FILES[1]).unlink()
    with pytest.raises(DataError, match=r"1\.wav: file not found"):
        model.run(FILES, folder)


def weights() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(3),  # no dimension
        "c": torch.ones(4, dtype=torch.bfloat16),
        "d": torch.zeros(0),
    }


def next_float(w: dict[str, Tensor]) -> None:
    w["a"][1, 2] = torch.nextafter(w["a"][1, 2], torch.tensor(9.0))


@pytest.mark.parametrize(
    "change",
    [
        next_float,
        lambda w: w.update(a=w["a"].view(3, 2)),
        lambda w: w.update(a=w["a"].double()),
        lambda w: w.update(b=torch.tensor(4)),
        lambda w: w.update(c=w["c"].view(torch.float16)),
        lambda w: w.update(d=torch.zeros(0, 1)),
        lambda w: w.update(e=w.pop("d")),
    ],
)
def test_the_hash_is_of_every_bit_name_shape_and_type(
    change: Callable[[dict[str, Tensor]], None],
) -> None:
    other = weights()
    change(other)
    assert hash_of_model(other, {}) != hash_of_model(weights(), {})


def test_the_hash_does_not_depend_on_order_or_layout() -> None:
    other = dict(reversed(weights().items()))
    other["a"] = other["a"].T.contiguous().T
    assert hash_of_model(other, {"x": 1, "y": 2}) == hash_of_model(weights(), {"y": 2, "x": 1})
    assert hash_of_model(other, {"x": 1}) != hash_of_model(other, {"x": 2})


def test_settings_without_weights_count(config_file: Path) -> None:
    """Two hop lengths have the same tensors."""
    keys = []
    for hop in (160, 80):
        config = load_config(config_file, [f"encoder.mel_hop_length={hop}"])
        embed = cached(build_method(config), config)
        assert isinstance(embed, CachedEmbed)
        keys.append(embed.cache.model)
    assert keys[0] != keys[1]


# ------------------------------------------------------------------------------- damage and limits


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(Path(os.environ["EVIL"])),)


def pickled(path: Path) -> bytes:
    stream = io.BytesIO()
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays}
    np.savez(stream, **content | {"embeddings": np.array([Evil()], dtype=object)})
    return stream.getvalue()


def shorter(path: Path) -> bytes:
    stream = io.BytesIO()
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays}
    np.savez(stream, **content | {"embeddings": content["embeddings"][1:]})
    return stream.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: b"",
        lambda path: b"no archive",
        lambda path: path.read_bytes()[:-100],
        lambda path: path.read_bytes()[:100],
        lambda path: path.read_bytes().replace(b"states.npy", b"stated.npy"),
        pickled,
        shorter,
    ],
)
def test_a_damaged_part_is_made_anew(
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    model = Model(tmp_path)
    found = model.run(FILES, folder)
    (path,) = parts(tmp_path)
    path.write_bytes(damage(path))
    np.testing.assert_array_equal(model.run(FILES, folder), found)
    assert model.count == 6
    model.run(FILES, folder)
    assert model.count == 0
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("order", ["bca", "bac"])  # b is the oldest, but used again
def test_what_was_not_used_for_longest_makes_room(folder: Path, tmp_path: Path, order: str) -> None:
    for weights in "abc":
        Model(tmp_path, weights).run(FILES, folder)
    sizes = [path.stat().st_size for path in parts(tmp_path)]
    for age, weights in enumerate(order):
        model = Model(tmp_path, weights)
        (path,) = [p for p in parts(tmp_path) if holds(p, model, folder)]
        os.utime(path, (age, age))
    Model(tmp_path, "b").run(FILES, folder)
    limit = max(sizes) * 2 + 6 * 5 * 4
    Model(tmp_path, "d", limit).run(FILES, folder)
    kept = {w: Model(tmp_path, w) for w in "abcd"}
    for model in kept.values():
        model.run(FILES, folder)
    assert [w for w, model in kept.items() if model.count > 0] == [order[1]]


def holds(path: Path, model: Model, folder: Path) -> bool:
    before = path.stat().st_mtime_ns
    os.utime(path, (1, 1))
    model.run(FILES, folder)
    used = path.stat().st_mtime > 1
    os.utime(path, ns=(before, before))
    return used


def test_more_than_the_limit_is_not_kept_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Model(tmp_path).run(FILES[:1], folder)
    before = parts(tmp_path)
    model = Model(tmp_path, "other", limit=100)
    model.run(FILES, folder)
    assert "0.0 GB of embeddings are not kept: that is more than evaluation.cache_gb" in (
        capsys.readouterr().out
    )
    assert parts(tmp_path) == before


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    model = Model(tmp_path)
    assert model.run(FILES, folder).shape == (6, 5)
    said = capsys.readouterr().out
    assert said.startswith("warning: embeddings are not kept for another time: ")
    assert "cannot be written" in said


def test_unfinished_files_of_long_ago_are_deleted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    old, young = (tmp_path / "cache" / f".{name}.npz.1.tmp" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    Model(tmp_path).run(FILES, folder)
    assert not old.exists()
    assert young.exists()


# ------------------------------------------------------------------------------ several processes


def _process(rank: int, folder: Path, run: Path) -> None:
    distributed.init_process_group("gloo", f"file://{run}/meet", rank=rank, world_size=2)
    model = Model(run)
    for turn, files in enumerate((FILES[:2], FILES, FILES)):
        np.save(run / f"{turn}-{rank}.npy", model.run(files, folder, batch_size=1))
        (run / f"{turn}-{rank}.json").write_text(json.dumps(model.count))
    distributed.destroy_process_group()


def test_two_processes_share_what_is_kept_and_what_is_new(folder: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (folder, tmp_path), nprocs=2)
    expected = Model(tmp_path / "alone").run(FILES, folder)
    for turn, (count, new) in enumerate([(2, 2), (6, 4), (6, 0)]):
        embedded = 0
        for rank in range(2):
            found = np.load(tmp_path / f"{turn}-{rank}.npy")
            np.testing.assert_array_equal(found, expected[:count])
            embedded += json.loads((tmp_path / f"{turn}-{rank}.json").read_text())
        assert embedded == new


# --------------------------------------------------------------------------------------- commands


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each call embeds."""
    counts: list[int] = []
    original = embeddings._extract

    def count(embed: object, files: list[str], *more: object) -> np.ndarray:
        counts.append(len(files))
        return original(embed, files, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(embeddings, "_extract", count)
    return counts


def run(config_file: Path, command: str, *overrides: str) -> None:
    assert cli.main([command, str(config_file), *overrides]) == 0


SHORT = ("trainer.epochs=1", "dataset.max_samples=8")


def test_evaluations_with_other_metrics_and_norms_embed_once(
    config_file: Path, counted: list[int]
) -> None:
    folder = config_file.parent
    validation = "evaluation.validation=[{type: sv_cosine, num_frames: 1, trials: [trials]}]"
    tracked = "trainer.tracked_metric=val/sv_cosine/trials/eer"
    run(config_file, "train", *SHORT, validation, tracked)
    assert counted == [32]
    assert not (folder / "cache").exists()
    counted.clear()
    run(config_file, "evaluate")
    results = json.loads((folder / "evaluation.json").read_text())
    run(config_file, "evaluate", "evaluation.test.0.metrics=[eer,cllr]")
    norm = ("evaluation.test.0.score_norm=s-norm", *SHORT[1:])
    run(config_file, "evaluate", *norm)
    assert counted == [32]
    again = json.loads((folder / "evaluation.json").read_text())
    assert results.items() <= again.items()
    assert "test/sv_cosine_s-norm/trials/eer" in again

    run(config_file, "evaluate", "evaluation.test.0.frame_length=4000")
    assert counted == [32, 32]
    run(config_file, "evaluate", "evaluation.cache_gb=0")
    assert counted == [32, 32, 32]


def test_a_model_trained_further_is_embedded_anew(config_file: Path, counted: list[int]) -> None:
    run(config_file, "train", *SHORT)
    run(config_file, "evaluate")
    run(config_file, "train", *SHORT, "trainer.epochs=2")
    run(config_file, "evaluate", "--baselines")
    assert counted == [32, 32, 32, 32]  # trained twice, untrained, MFCC
    run(config_file, "evaluate", "--baselines", "--model_suffix", "epoch-1")
    assert counted == [32, 32, 32, 32, 32]  # MFCC
    assert len(parts(config_file.parent)) == 3


@pytest.mark.parametrize("value", ["-1", ".nan"])
def test_the_limit_is_checked(config_file: Path, value: str, capsys) -> None:
    assert cli.main(["evaluate", str(config_file), f"evaluation.cache_gb={value}"]) == 2
    assert "evaluation.cache_gb: must be 0 or more, got" in capsys.readouterr().err
