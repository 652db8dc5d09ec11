"""Classifiers of frozen embeddings: what can be read from them without training the encoder."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

REGULARISATIONS = [10.0**k for k in range(-4, 3)]  # C, the inverse strength, to choose from
FOLDS = 5


def linear(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression on ``train`` (R, D) with codes ``labels`` (R,), applied to ``test``.

    Each dimension is standardised by its mean and deviation over ``train``. C is the value with
    the best accuracy in cross-validation over ``train``, of equals that with the best likelihood;
    rows of labels that have a single row are left out there. ``test`` decides nothing.

    Returns:
        The code predicted for each row of ``test``, and C.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # far from the best C it may end before it has converged
        warnings.simplefilter("ignore", ConvergenceWarning)
        strength = choose_regularisation(train, labels)
        return _pipeline(strength).fit(train, labels).predict(test), strength


def choose_regularisation(train: np.ndarray, labels: np.ndarray) -> float:
    """C by stratified cross-validation, standardised anew in each fold; 1 where fewer than two
    labels have two rows."""
    from sklearn.model_selection import StratifiedKFold, cross_validate

    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if np.count_nonzero(counts > 1) < 2:
        return 1.0
    used = counts[codes] > 1
    folds = min(FOLDS, int(counts[counts > 1].min()))
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    merits = []
    for strength in REGULARISATIONS:
        found = cross_validate(
            _pipeline(strength),
            train[used],
            labels[used],
            scoring=("accuracy", "neg_log_loss"),
            cv=split,
            error_score="raise",
        )
        accuracy = round(found["test_accuracy"].mean(), 12)  # equals are to be equal
        merits.append((accuracy, found["test_neg_log_loss"].mean()))
    return REGULARISATIONS[merits.index(max(merits))]


def _pipeline(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def nearest_neighbours(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, count: int
) -> np.ndarray:
    """The most frequent code among the ``count`` rows of ``train`` with the highest cosine to each
    row of ``test``; the smallest of equally frequent ones."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(count, metric="cosine", algorithm="brute")
    return classifier.fit(train, labels).predict(test)
