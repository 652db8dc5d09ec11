"""Self-supervised positive sampling over a training: whose positives are, and clusters."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sslsv.errors import DataError
from sslsv.evaluations.figures import COLOURS, SHAPES, legend_below, new_figure, save
from sslsv.evaluations.plots_curves import line_panels, read_training
from sslsv.evaluations.plots_embeddings import UNTRAINED, embeddings_over_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sslsv.datasets.manifest import Manifest


@dataclass(frozen=True)
class ClusterFacts:
    """What K clusters of R utterances are like."""

    sizes: np.ndarray  # (K,) utterances, the largest cluster first
    nmi: dict[str, float]  # normalised mutual information with each column, 0 to 1
    purity: dict[str, float]  # share of utterances that are of the most frequent value


def cluster_facts(
    clusters: np.ndarray, columns: Mapping[str, np.ndarray], count: int | None = None
) -> ClusterFacts:
    """Facts on ``clusters`` (R,), codes below ``count``, beside ``columns`` (R,) of codes."""
    from sklearn.metrics import normalized_mutual_info_score

    sizes = np.sort(np.bincount(clusters, minlength=count or 0))[::-1]
    nmi = {
        name: float(normalized_mutual_info_score(codes, clusters))
        for name, codes in columns.items()
    }
    return ClusterFacts(sizes, nmi, {n: _purity(clusters, codes) for n, codes in columns.items()})


def _purity(clusters: np.ndarray, codes: np.ndarray) -> float:
    table = np.zeros((clusters.max() + 1, codes.max() + 1), np.int64)
    np.add.at(table, (clusters, codes), 1)
    return float(table.max(axis=1).sum() / len(clusters))


def chance(codes: np.ndarray) -> float:
    """How often another utterance, drawn at random from all, is of the same code: of (R,)."""
    sizes = np.bincount(codes)
    return float((sizes * (sizes - 1)).sum() / (len(codes) * (len(codes) - 1)))


def read_run(run: str | os.PathLike) -> "tuple[Any, Manifest]":
    """Configuration and training list of a run with SSPS.

    Raises:
        DataError: the run has no ``method.ssps``, or no ``metric_columns`` in it.
    """
    from sslsv.config import RESOLVED_NAME, load_config
    from sslsv.datasets.manifest import read_manifest

    config = load_config(Path(run) / RESOLVED_NAME)
    ssps, dataset = config.method.ssps, config.dataset
    if ssps is None or not ssps.metric_columns:
        raise DataError(
            f"{run}: is no run with method.ssps and metric_columns in it, such as [Speaker, Video]"
        )
    return config, read_manifest(
        dataset.train,
        dataset.base_path,
        dataset.label_key,
        dataset.max_samples,
        ssps.metric_columns,
    )


def clusters_over_training(
    run: str | os.PathLike, epochs: Sequence[int] | None = None
) -> dict[int, ClusterFacts]:
    """Facts on clusters of the training list by the embeddings of whole files, by epoch.

    They are made as the run makes its own (spherical k-means, ``kmeans_nb_prototypes``), but of
    checkpoints: 0, before training, and ``epochs`` (None: all that are saved). The run's own
    clusters are of crops that were met during the epoch before, and are kept of the last only.

    Raises:
        DataError: see `read_run`.
    """
    import torch

    from sslsv.methods.kmeans import spherical_kmeans

    config, manifest = read_run(run)
    ssps = config.method.ssps
    files = [manifest.file(row) for row in range(len(manifest))]
    found = {}
    embeddings = embeddings_over_training(run, files, manifest.base_path, epochs)
    for epoch, x in embeddings.items():
        count, iterations = ssps.kmeans_nb_prototypes, ssps.kmeans_nb_iters
        clusters = spherical_kmeans(torch.from_numpy(x), count, iterations, config.seed)
        found[epoch] = cluster_facts(clusters.assignments.numpy(), manifest.columns, count)
    return found


def positives_plot(
    run: str | os.PathLike,
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw for each epoch how many pseudo-positives are of the speaker (and of every other column
    of ``metric_columns``) of the utterance they stand in for, and what chance would give.

    Raises:
        DataError: see `read_run`; or the run has not come to sampling yet.
    """
    _, manifest = read_run(run)
    training = read_training(run)
    figure, axes = new_figure(6.0, 4.0, title)
    looks = itertools.cycle(zip(COLOURS, SHAPES, strict=True))
    for (column, codes), (colour, shape) in zip(manifest.columns.items(), looks, strict=False):
        metric = f"train/ssps_{column.lower()}_acc"
        if metric not in training:
            raise DataError(f"{run}: no {metric} yet; sampling starts at method.ssps.start_epoch")
        epochs, values = training[metric]
        name = f"of the same {column.lower()}"
        shares = [100 * value for value in values]
        axes.plot(epochs, shares, f"{shape}-", color=colour, label=name)
        at_random = 100 * chance(codes)
        axes.axhline(at_random, color=colour, linestyle=":", label=f"{name}, by chance")
    axes.set(xlabel="epoch", ylabel="pseudo-positives (%)", ylim=(0, 100))
    axes.locator_params(axis="x", integer=True)
    legend_below(axes, ncols=2)
    return save(figure, path)


def agreement_plot(
    clusters: Mapping[int, ClusterFacts],
    run: str | os.PathLike | None = None,
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw how clusters agree with columns: normalised mutual information, and purity.

    Args:
        run: also draw the information of the run's own clusters, from its ``training.json``.

    Raises:
        DataError: there is no epoch.
        UserError: matplotlib is not installed.
    """
    _check(clusters)
    lines: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {"nmi": {}, "purity": {}}
    columns = list(next(iter(clusters.values())).nmi)
    for column in columns:
        for kind, chosen in lines.items():
            values = [getattr(facts, kind)[column] for facts in clusters.values()]
            chosen[column.lower()] = (list(clusters), values)
    training = read_training(run) if run is not None else {}
    for column in columns:
        metric = f"train/ssps_kmeans_nmi_{column.lower()}"
        if metric in training:
            epochs, values = training[metric]
            # Made at the start of the epoch, of what was seen in the one before.
            lines["nmi"][f"{column.lower()}, noted by the run"] = ([e - 1 for e in epochs], values)
    panels = {"Normalised mutual information": lines["nmi"], "Purity": lines["purity"]}
    figure = line_panels(panels, "epoch", None, title)
    for axes in figure.axes:
        axes.set_ylim(0, 1.03)
    return save(figure, path)


def cluster_sizes_plot(
    clusters: Mapping[int, ClusterFacts],
    path: str | os.PathLike | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw the sizes of clusters at each epoch, the largest first; dotted: all of one size.

    Raises:
        DataError: there is no epoch.
        UserError: matplotlib is not installed.
    """
    _check(clusters)
    figure, axes = new_figure(6.4, 4.0, title)
    colours = itertools.cycle(COLOURS)
    for (epoch, facts), colour in zip(clusters.items(), colours, strict=False):
        rank = np.arange(1, len(facts.sizes) + 1)
        name = "before training" if epoch == UNTRAINED else f"epoch {epoch}"
        axes.plot(rank, facts.sizes, color=colour, drawstyle="steps-mid", label=name)
    axes.axhline(facts.sizes.mean(), color="0.4", linestyle=":", label="all of one size")
    axes.set(xlabel="cluster, the largest first", ylabel="utterances")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return save(figure, path)


def _check(clusters: Mapping[int, ClusterFacts]) -> None:
    if not clusters:
        raise DataError("no epoch to draw: give the clusters of at least one")
