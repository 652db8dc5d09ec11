"""Embeddings over a training: which checkpoints, what they give, and the maps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sslsv
from sslsv.config import load_config
from sslsv.errors import DataError
from sslsv.evaluations.plots import tsne
from sslsv.evaluations.plots_embeddings import (
    choose_files,
    eers,
    embeddings_over_training,
    maps_over_training,
    pairs_eer,
    saved_epochs,
)
from sslsv.experiment import build_method, train

pytest.importorskip("matplotlib")


def touch(folder: Path, *epochs: int) -> Path:
    (folder / "checkpoints").mkdir(exist_ok=True)
    for name in ("latest", "avg", *(f"epoch-{epoch}" for epoch in epochs)):
        (folder / "checkpoints" / f"model_{name}.pt").touch()
    return folder


def test_saved_epochs_are_those_of_the_files_by_number(tmp_path: Path) -> None:
    assert saved_epochs(touch(tmp_path, 10, 9, 100)) == [9, 10, 100]


def test_of_many_epochs_an_even_choice_with_both_ends(tmp_path: Path) -> None:
    touch(tmp_path, *range(1, 101))
    assert saved_epochs(tmp_path, most=5) == [1, 26, 51, 75, 100]
    assert saved_epochs(tmp_path, most=200) == list(range(1, 101))


def test_a_run_without_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keep_last_n"):
        saved_epochs(touch(tmp_path))


def test_files_are_the_first_speakers_and_even_among_theirs(tmp_path: Path) -> None:
    rows = [f"{speaker}/{i}.wav,{speaker}" for i in range(5) for speaker in "abc"]
    (tmp_path / "list.csv").write_text("\n".join(["File,Speaker", *rows]) + "\n")
    files, speakers = choose_files("list.csv", tmp_path, speakers=2, each=3)
    assert files == [f"{s}/{i}.wav" for s in "ab" for i in (0, 2, 4)]
    assert speakers.tolist() == ["a"] * 3 + ["b"] * 3


def test_embeddings_are_those_of_each_checkpoint_and_of_the_first_weights(
    config_file: Path, corpus: Path
) -> None:
    config = load_config(config_file)
    train(config)
    run = config_file.parent
    files, _ = choose_files("train.csv", corpus, speakers=2, each=2)
    found = embeddings_over_training(run, files, corpus)
    assert list(found) == [0, 1, 2]
    paths = [corpus / file for file in files]
    for epoch in (1, 2):
        np.testing.assert_array_equal(found[epoch], sslsv.load(run, f"epoch-{epoch}").embed(paths))
    method = build_method(config).eval()
    import torch

    from sslsv import audio

    for path, x in zip(paths, found[0], strict=True):
        with torch.no_grad():
            alone = method.embed(torch.from_numpy(audio.read(path))[None])[0].numpy()
        np.testing.assert_allclose(x, alone / np.linalg.norm(alone), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert list(embeddings_over_training(run, files[:1], corpus, epochs=[2])) == [0, 2]


# ------------------------------------------------------------------------------------------- maps


def test_eer_of_all_pairs_worked_by_hand() -> None:
    """Angles 0, 10 (a), 20, 90 (b) degrees: targets are 10 and 70 apart, others 20, 90, 10, 80."""
    angles = np.radians([0, 10, 20, 90])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [2], [1]]
    speakers = np.array(["a", "a", "b", "b"])
    assert pairs_eer(x, speakers) == pytest.approx(100 * 1 / 2)
    far = x[[0, 1, 3, 3]]
    assert pairs_eer(far, speakers) == 0
    assert eers({0: x, 4: far}, speakers) == ([0, 4], [pytest.approx(50), 0])


def clusters(spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    speakers = np.repeat(["x", "y", "z"], 8)
    points = np.eye(6)[np.repeat([0, 1, 2], 8)] + spread * rng.standard_normal((24, 6))
    return points, speakers


def test_a_panel_an_epoch_with_all_speakers_and_the_eer() -> None:
    wide, speakers = clusters(3.0)
    narrow, _ = clusters(0.05)
    figure = maps_over_training({0: wide, 3: narrow}, speakers)
    before, after = figure.axes
    assert before.get_title() == f"before training: EER {pairs_eer(wide, speakers):.1f} %"
    assert after.get_title() == "epoch 3: EER 0.0 %"
    places = tsne(wide)
    for line, name in zip(before.get_lines(), ["x", "y", "z"], strict=True):
        np.testing.assert_array_equal(line.get_xydata(), places[speakers == name])
    places = tsne(narrow, start=places)
    for line, name in zip(after.get_lines(), ["x", "y", "z"], strict=True):
        np.testing.assert_array_equal(line.get_xydata(), places[speakers == name])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "z"]


def test_many_speakers_have_no_legend_and_panels_left_over_are_empty() -> None:
    x = np.random.default_rng(0).standard_normal((30, 4))
    figure = maps_over_training(dict.fromkeys(range(4), x), np.arange(30) // 2)
    assert not figure.legends
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2


def test_there_must_be_an_epoch() -> None:
    with pytest.raises(DataError, match="no epoch to map"):
        maps_over_training({}, np.array([]))
