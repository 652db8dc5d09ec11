"""Write a training list whose labels are clusters of a trained model's embeddings.

    python tools/create_pseudolabels.py CONFIG --clusters 5000 [--merge 1000] [key=value ...]

CONFIG is that of the trained model. Every file of dataset.train is embedded as a whole, and
spherical k-means, seeded by the configuration's seed, makes K clusters of the embeddings; --merge
joins their centroids to M by agglomerative clustering (average linkage of cosine distances). The
list written, below dataset.base_path, has the rows that a training would use, with their columns as
they are and a column Pseudo, such as cluster00042, for the method 'supervised' to be trained on:

    python sslsv/bin/train.py SUPERVISED_CONFIG dataset.train=voxceleb2_train_pseudo.csv
        dataset.label_key=Pseudo method.nb_classes=1000

Labels that the list has already are compared with the clusters and used for nothing else. Several
processes (torchrun) share the work. On a GPU the sums of k-means, and so a few rows, may differ
from run to run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installing

from sslsv import distributed
from sslsv.config import Config, load_config
from sslsv.datasets.manifest import Manifest, read_manifest
from sslsv.datasets.preflight import preflight
from sslsv.errors import DataError, UserError, listing
from sslsv.evaluations.embeddings import Extraction, extract
from sslsv.experiment import build_method
from sslsv.files import atomic_write
from sslsv.methods.kmeans import spherical_kmeans
from sslsv.trainer import checkpoint
from sslsv.trainer.tracking import say

COLUMN = "Pseudo"
MOST_MERGED = 20_000  # clusters
PAIR_BYTES = 8  # that merging needs at its peak for each of the K * K pairs of clusters


def create(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    dataset = config.dataset
    check_options(options)
    output = output_path(config, options)
    # Labels need not be there, and may be empty: File is a column that every list has.
    manifest = read_manifest(dataset.train, dataset.base_path, "File", dataset.max_samples)
    if options.clusters > len(manifest):
        raise UserError(
            f"--clusters {options.clusters}: is more than the {len(manifest)} rows of "
            f"{manifest.path}; lower it"
        )
    header, rows = read_rows(manifest)
    preflight(manifest, dataclasses.replace(dataset, on_error="raise"))  # every row gets a label

    embeddings = embed(config, manifest, options.model_suffix)
    clusters, centroids, cosine = cluster(
        embeddings, options.clusters, options.iterations, config.seed
    )
    if not distributed.is_main():
        return
    if len(np.unique(clusters)) < 2:
        raise UserError(
            f"{manifest.path}: all rows fall into one cluster, since the model gives them (almost) "
            "the same embedding; nothing was written"
        )
    classes = clusters if options.merge is None else merge(clusters, centroids, options.merge)
    names = [f"cluster{c:05d}" for c in classes]
    refuse_existing(output, options.overwrite)  # another run may have been faster
    with atomic_write(output, "w") as file:
        table = rows.assign(pseudo=names)
        table.to_csv(file, header=[*header, COLUMN], index=False, lineterminator="\n")

    describe(output, classes, cosine, options)
    if dataset.label_key in header:
        compare(rows.iloc[:, header.index(dataset.label_key)], classes, dataset.label_key)
    name = shlex.quote(str(output.relative_to(dataset.base_path)))
    print(
        f"to train 'supervised' on it: dataset.train={name} dataset.label_key={COLUMN} "
        f"method.nb_classes={len(np.unique(classes))}"
    )


# What is checked before any long work ------------------------------------------------------------


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that cannot be meant."""
    clusters, merged = options.clusters, options.merge
    for name, least in {"clusters": 2, "merge": 2, "iterations": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if merged is None:
        return
    if merged >= clusters:
        raise UserError(f"--merge {merged}: must be less than --clusters {clusters}")
    if clusters > MOST_MERGED:
        memory, most = (PAIR_BYTES * k**2 / 1e9 for k in (clusters, MOST_MERGED))
        raise UserError(
            f"--clusters {clusters}: --merge takes {PAIR_BYTES} bytes for each of the K x K pairs "
            f"of clusters, which are {memory:.1f} GB; use at most {MOST_MERGED} clusters "
            f"({most:.1f} GB), or no --merge"
        )


def output_path(config: Config, options: argparse.Namespace) -> Path:
    """Where to write; refused where that is not possible or would replace something."""
    base, train = config.dataset.base_path, PurePath(config.dataset.train)
    name = options.output or train.with_name(f"{train.stem}_pseudo.csv")
    if name.is_absolute() or ".." in name.parts:
        raise UserError(
            f"--output {name}: must be the name of a file below dataset.base_path, which is {base}"
        )
    path = base / name
    if path.resolve() == (base / train).resolve():
        raise UserError(f"--output {name}: is the training list itself; choose another name")
    refuse_existing(path, options.overwrite)
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path}: cannot be written ({folder} is no folder to write to)")
    return path


def refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; choose another name with --output")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path}: is there already; choose another name with --output, or replace it with "
            "--overwrite"
        )


def read_rows(manifest: Manifest) -> tuple[list[str], pd.DataFrame]:
    """Names of all columns of the list, and the rows used, as they are."""
    table = pd.read_csv(
        manifest.path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
    )
    header = table.iloc[0].tolist()
    if COLUMN in header:
        raise DataError(
            f"{manifest.path}: has a column '{COLUMN}' already; rename it, or give the list "
            "that this one was made from (dataset.train=...)"
        )
    return header, table.iloc[manifest.lines - 1]


# The work ----------------------------------------------------------------------------------------


def embed(config: Config, manifest: Manifest, suffix: str) -> np.ndarray:
    """Embeddings (R, D) of unit length; a file in several rows is embedded once."""
    assert config.run_dir is not None
    device = distributed.default_device()
    path = checkpoint.checkpoint_path(config.run_dir, suffix)
    state = checkpoint.load(path, device)
    method = build_method(config).to(device)
    remarks = checkpoint.load_to_embed(method, state, path)
    files, places = np.unique(manifest.files, return_inverse=True)
    say("; ".join([f"Embedding {len(files):,} files with {path}", *remarks]))
    how = Extraction(
        base_path=config.dataset.base_path,
        num_workers=config.dataset.num_workers,
        resample=config.dataset.resample,
    )
    names = [file.decode() for file in files]
    embeddings = extract(method.eval().embed, names, how, device)
    zero = np.flatnonzero(~embeddings.any(axis=1))
    if len(zero):
        raise DataError(
            f"the embeddings of {len(zero)} files are zero and belong to no cluster; remove them "
            f"from the list: {listing([names[i] for i in zero])}"
        )
    return embeddings[places]


def cluster(
    embeddings: np.ndarray, count: int, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Cluster of each row (R,), centroids (K, D), mean cosine; the same in every process."""
    rank, processes = distributed.rank(), distributed.world_size()
    start, stop = (len(embeddings) * r // processes for r in (rank, rank + 1))
    mine = torch.from_numpy(embeddings[start:stop]).to(distributed.default_device())
    found = spherical_kmeans(mine, count, iterations, seed)
    parts = distributed.gather_objects(found.assignments.cpu())
    return torch.cat(parts).numpy(), found.centroids.cpu().numpy(), float(found.similarity)


def merge(clusters: np.ndarray, centroids: np.ndarray, count: int) -> np.ndarray:
    """Class of each row (R,), of ``count`` classes: each is some of the clusters that have rows.

    Rows stay as they are where no more than ``count`` clusters have any.
    """
    from sklearn.cluster import AgglomerativeClustering

    used, own = np.unique(clusters, return_inverse=True)
    if len(used) <= count:
        return clusters
    tree = AgglomerativeClustering(n_clusters=count, metric="cosine", linkage="average")
    return tree.fit_predict(centroids[used])[own]


# What is printed ---------------------------------------------------------------------------------


def describe(path: Path, classes: np.ndarray, cosine: float, options: argparse.Namespace) -> None:
    _, sizes = np.unique(classes, return_counts=True)
    if options.merge is None:
        asked = f"of {options.clusters:,}"
    else:
        asked = f"of {options.merge:,} merged from {options.clusters:,}"
    print(f"{path}: {len(classes):,} rows, {len(sizes):,} clusters used {asked}")
    print(
        f"rows of a cluster: smallest {sizes.min():,}, median {np.median(sizes):,g}, "
        f"largest {sizes.max():,}"
    )
    print(f"mean cosine with the centroid of k-means: {cosine:.4f}")


def compare(labels: pd.Series, classes: np.ndarray, name: str) -> None:
    """Print how the classes agree with the labels of the rows that have one.

    Purity: share of the rows whose label is the most frequent one of their class.
    """
    from sklearn.metrics import normalized_mutual_info_score as nmi
    from sklearn.metrics.cluster import contingency_matrix

    known = (labels != "").to_numpy()
    if not known.any():
        return
    true, found = labels[known].to_numpy(), classes[known]
    largest = contingency_matrix(true, found, sparse=True).max(axis=0)
    print(
        f"for information only, not used: against the column {name}, NMI {nmi(true, found):.4f}, "
        f"purity {largest.sum() / len(found):.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and act; returns the exit code. What a user can mend is one sentence and code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of the trained model, or its folder")
    add("overrides", metavar="key=value", nargs="*", default=[], help="settings to change")
    add("--clusters", type=int, required=True, metavar="K", help="clusters of k-means")
    add("--merge", type=int, metavar="M", help="classes to merge the K clusters into")
    add("--iterations", type=int, default=20, help="of k-means (default: 20)")
    add(
        "--model_suffix",
        default="latest",
        help="which checkpoint: latest, best, avg or epoch-N (default: latest)",
    )
    add(
        "--output",
        type=Path,
        metavar="NAME.csv",
        help="list to write, below dataset.base_path (default: <training list>_pseudo.csv)",
    )
    add("--overwrite", action="store_true", help="replace a list that is there already")
    options = parser.parse_intermixed_args(arguments)
    try:
        with distributed.session():
            create(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
