"""Embeddings at several epochs of a training: as maps, and how well they tell speakers apart."""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sslsv.errors import DataError
from sslsv.evaluations import metrics
from sslsv.evaluations.figures import COLOURS, SHAPES, new_panels, save, share_legend
from sslsv.evaluations.plots import tsne

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sslsv.model import Model

UNTRAINED = 0  # the epoch of weights that have not been trained
MOST_NAMED = 12  # speakers in a legend


def saved_epochs(run: str | os.PathLike, most: int | None = None) -> list[int]:
    """The epochs that a run has weights of, rising; of more than ``most`` an even choice with the
    first and the last. DataError: there are none."""
    folder = Path(run) / "checkpoints"
    names = (re.fullmatch(r"model_epoch-(\d+)\.pt", path.name) for path in folder.glob("*.pt"))
    epochs = sorted(int(name[1]) for name in names if name)
    if not epochs:
        raise DataError(f"{folder}: no model_epoch-N.pt; see trainer.keep_last_n")
    if most is None or len(epochs) <= most:
        return epochs
    places = np.linspace(0, len(epochs) - 1, most).round().astype(int)
    return [epochs[place] for place in places]


def choose_files(
    name: str, base_path: str | os.PathLike, speakers: int = 8, each: int = 12
) -> tuple[list[str], np.ndarray]:
    """Of the CSV ``base_path/name`` (columns File and Speaker) the first so many speakers, and so
    many files of each, evenly spaced: files (N,) and their speakers (N,).

    Raises:
        DataError: the list cannot be read.
    """
    from sslsv.datasets.manifest import read_manifest

    manifest = read_manifest(name, Path(base_path))
    files, names = [], []
    for code, speaker in enumerate(manifest.label_names[:speakers]):
        rows = np.flatnonzero(manifest.labels == code)
        places = np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)
        files += [manifest.file(row) for row in rows[places]]
        names += [speaker] * len(places)
    return files, np.array(names)


def embeddings_over_training(
    run: str | os.PathLike,
    files: Sequence[str],
    base_path: str | os.PathLike,
    epochs: Sequence[int] | None = None,
) -> dict[int, np.ndarray]:
    """Embeddings (N, D) of ``files`` (N,) below ``base_path``, by epoch: 0, before training, and
    ``epochs`` (None: all that are saved).

    Raises:
        UserError: the run has no such checkpoint, or a file cannot be read.
    """
    from sslsv.model import load

    epochs = saved_epochs(run) if epochs is None else epochs
    paths = [Path(base_path) / file for file in files]
    found = {}
    for epoch in dict.fromkeys([UNTRAINED, *epochs]):
        model = load(run, f"epoch-{epoch or epochs[0]}")
        if epoch == UNTRAINED:
            model = _untrained(run, model)
        found[epoch] = model.embed(paths)
    return found


def _untrained(run: str | os.PathLike, model: "Model") -> "Model":
    """A model with the weights that the seed of the run gives."""
    from sslsv.config import RESOLVED_NAME, load_config
    from sslsv.export import build

    method = build(load_config(Path(run) / RESOLVED_NAME)).to(model.device)
    return dataclasses.replace(model, run=method.eval().embed)


def pairs_eer(embeddings: np.ndarray, speakers: np.ndarray) -> float:
    """EER in per cent of the cosines of all pairs of embeddings (N, D) of ``speakers`` (N,)."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), k=1)
    return metrics.eer((unit @ unit.T)[first, second], speakers[first] == speakers[second])


def eers(
    embeddings: Mapping[int, np.ndarray], speakers: np.ndarray
) -> tuple[list[int], list[float]]:
    """`pairs_eer` at each epoch: epochs and values."""
    return list(embeddings), [pairs_eer(x, speakers) for x in embeddings.values()]


def maps_over_training(
    embeddings: Mapping[int, np.ndarray],
    speakers: np.ndarray,
    path: str | os.PathLike | None = None,
    title: str | None = None,
    seed: int = 0,
) -> "Figure":
    """Draw a map (t-SNE of cosines) of the same N files at each epoch, a look a speaker.

    A map starts from the places of the one before, so that a file stays where it was unless its
    neighbours have changed. The EER of all pairs beside each says what a map cannot: places in it
    show who is near whom, and not how far.

    Args:
        embeddings: epoch (0: before training) -> (N, D).
        speakers: (N,).

    Raises:
        DataError: there is no epoch, or fewer than 3 embeddings.
        UserError: matplotlib is not installed.
    """
    if not embeddings:
        raise DataError("no epoch to map: give the embeddings of at least one")
    columns = min(3, len(embeddings))
    rows = math.ceil(len(embeddings) / columns)
    figure, grid = new_panels(3.2 * columns, 3.3 * rows + 0.6, rows, columns, title)
    panels = [axes for row in grid for axes in row]
    names = np.unique(speakers)
    places = None
    for axes, (epoch, x) in zip(panels, embeddings.items(), strict=False):
        places = tsne(x, seed, places)
        looks = itertools.cycle(itertools.product(SHAPES, COLOURS))
        for name, (shape, colour) in zip(names, looks, strict=False):
            points = places[speakers == name].T
            axes.plot(*points, shape, color=colour, markersize=4, markeredgewidth=0, label=name)
        when = "before training" if epoch == UNTRAINED else f"epoch {epoch}"
        axes.set_title(f"{when}: EER {pairs_eer(x, speakers):.1f} %", fontsize=11)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.08)
    for axes in panels[len(embeddings) :]:
        axes.set_axis_off()
    if len(names) <= MOST_NAMED:
        share_legend(figure, panels, 2 * columns, fontsize=9, markerscale=1.4)
    return save(figure, path)
