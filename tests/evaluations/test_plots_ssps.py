"""Pseudo-positives and clusters over a training: known answers, and what is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sslsv.config import load_config
from sslsv.errors import DataError
from sslsv.evaluations.plots_ssps import (
    ClusterFacts,
    agreement_plot,
    chance,
    cluster_facts,
    cluster_sizes_plot,
    clusters_over_training,
    positives_plot,
)
from sslsv.experiment import train

pytest.importorskip("matplotlib")


class TestFacts:
    def test_of_clusters_that_are_the_speakers(self) -> None:
        speakers = np.array([0, 0, 1, 1, 2, 2])
        facts = cluster_facts(np.array([2, 2, 0, 0, 1, 1]), {"Speaker": speakers}, 4)
        assert facts.sizes.tolist() == [2, 2, 2, 0]
        assert facts.nmi == {"Speaker": pytest.approx(1)}
        assert facts.purity == {"Speaker": 1}

    def test_worked_by_hand(self) -> None:
        """Clusters {a a b} {b}: H(cluster) = 0.811, H(speaker) = 1 and H(both) = 1.5 bits."""
        facts = cluster_facts(np.array([0, 0, 0, 1]), {"Speaker": np.array([0, 0, 1, 1])})
        cluster = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
        information = cluster + 1 - 1.5
        assert facts.nmi["Speaker"] == pytest.approx(information / ((cluster + 1) / 2))
        assert facts.purity["Speaker"] == 0.75
        assert facts.sizes.tolist() == [3, 1]

    def test_of_clusters_that_know_nothing(self) -> None:
        facts = cluster_facts(np.array([0, 1, 0, 1]), {"Speaker": np.array([0, 0, 1, 1])})
        assert facts.nmi["Speaker"] == pytest.approx(0)
        assert facts.purity["Speaker"] == 0.5

    def test_chance_is_the_share_of_pairs_that_are_of_one_code(self) -> None:
        codes = np.array([0, 0, 0, 1, 1, 2])
        pairs = [(a, b) for a in range(6) for b in range(6) if a != b]
        assert chance(codes) == pytest.approx(np.mean([codes[a] == codes[b] for a, b in pairs]))


@pytest.fixture
def run(edit_config: Callable[[str, str], Path], corpus: Path) -> Path:
    """A run with SSPS in its last two epochs; a session is a folder of the corpus."""
    table = pd.read_csv(corpus / "train.csv")
    table["Session"] = table["File"].str.rpartition("/")[0]
    table.to_csv(corpus / "train_sessions.csv", index=False)
    edit_config(
        "train: train.csv", "train: train_sessions.csv\n  ssps: true\n  ssps_frame_length: 8000"
    )
    ssps = "start_epoch: 1, kmeans_nb_prototypes: 6, pos_queue_size: 32"
    columns = "metric_columns: [Speaker, Session]"
    edit_config("  type: simclr\n", f"  type: simclr\n  ssps: {{{ssps}, {columns}}}\n")
    path = edit_config("epochs: 2", "epochs: 3")
    train(load_config(path))
    return path.parent


def test_a_run_is_read_and_drawn(run: Path) -> None:
    training = json.loads((run / "training.json").read_text())
    clusters = clusters_over_training(run)
    assert list(clusters) == [0, 1, 2, 3]
    for facts in clusters.values():
        assert (facts.sizes.sum(), len(facts.sizes)) == (32, 6)
        assert list(facts.nmi) == ["Speaker", "Session"]

    (axes,) = positives_plot(run).axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    for column, by_chance in (("speaker", 100 * 3 / 31), ("session", 100 * 1 / 31)):
        stored = [[e, 100 * training[str(e)][f"train/ssps_{column}_acc"]] for e in (2, 3)]
        np.testing.assert_allclose(lines[f"of the same {column}"], stored)
        np.testing.assert_allclose(lines[f"of the same {column}, by chance"][:, 1], by_chance)

    information, purity = agreement_plot(clusters, run).axes
    lines = {
        str(line.get_label()): np.asarray(line.get_xydata()) for line in information.get_lines()
    }
    for column in ("Speaker", "Session"):
        name = column.lower()
        recomputed = [[epoch, facts.nmi[column]] for epoch, facts in clusters.items()]
        np.testing.assert_allclose(lines[name], recomputed)
        stored = [[e - 1, training[str(e)][f"train/ssps_kmeans_nmi_{name}"]] for e in (2, 3)]
        np.testing.assert_allclose(lines[f"{name}, noted by the run"], stored)
    assert {str(line.get_label()) for line in purity.get_lines()} == {"speaker", "session"}


def test_sizes_are_drawn_by_rank() -> None:
    clusters = {
        0: ClusterFacts(np.array([9, 2, 1]), {}, {}),
        5: ClusterFacts(np.array([5, 4, 3]), {}, {}),
    }
    (axes,) = cluster_sizes_plot(clusters).axes
    before, after, even = axes.get_lines()
    assert np.asarray(before.get_xydata()).tolist() == [[1, 9], [2, 2], [3, 1]]
    assert np.asarray(after.get_xydata()).tolist() == [[1, 5], [2, 4], [3, 3]]
    assert even.get_ydata()[0] == 4
    assert [before.get_label(), after.get_label()] == ["before training", "epoch 5"]


def test_a_run_without_ssps_or_columns_is_refused(config_file: Path) -> None:
    config = load_config(config_file)
    train(config)
    with pytest.raises(DataError, match=r"no run with method.ssps and metric_columns"):
        positives_plot(config_file.parent)
    with pytest.raises(DataError, match="no epoch to draw"):
        cluster_sizes_plot({})
    with pytest.raises(DataError, match="no epoch to draw"):
        agreement_plot({})
