"""What frozen image features know: a linear probe and nearest neighbours, by scikit-learn."""

import warnings
from dataclasses import dataclass

import numpy as np

# Searched coarsely, then on both sides of the best. Features have length 1, so good values are large.
COARSE_C = tuple(10.0**exponent for exponent in range(-2, 6))
NEIGHBOURS = 20


@dataclass(frozen=True)
class Probe:
    """Scores of a fitted probe, and how it was fitted."""

    scores: np.ndarray
    """[N, C] probabilities, 0 for classes that it never saw."""
    c: float
    """Inverse strength of the L2 penalty that did best in validation."""
    validation_accuracy: float
    converged: bool


def linear_probe(
    fit: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    features: np.ndarray,
    classes: int,
) -> Probe:
    """Logistic regression on features [M, D] and labels [M] of `fit`, scored on `features` [N, D].

    C is the one with the most right in `validation`, of equals the smallest. The protocol is that of Radford
    et al. 2021 (appendix A.3), with a coarse and then a finer search.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    accuracy: dict[float, float] = {}

    def fitted(c: float) -> "LogisticRegression":
        return LogisticRegression(C=c, max_iter=2000).fit(*fit)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        for c in COARSE_C:
            accuracy[c] = float(fitted(c).score(*validation))
        coarse = _best(accuracy)
        for c in (coarse / 10**0.5, coarse * 10**0.5):
            accuracy[c] = float(fitted(c).score(*validation))
        best = _best(accuracy)
        caught.clear()
        model = fitted(best)
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    scores = _all_classes(model.predict_proba(features), model.classes_, classes)
    return Probe(scores, best, accuracy[best], converged)


def nearest_neighbours(
    fit: tuple[np.ndarray, np.ndarray], features: np.ndarray, classes: int, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Scores [N, C] of `features` [N, D]: the share of each class among the nearest of `fit` by cosine, each
    weighed by one over its distance.
    """
    from sklearn.neighbors import KNeighborsClassifier

    count = min(neighbours, len(fit[1]))
    model = KNeighborsClassifier(count, weights="distance", algorithm="brute", metric="cosine").fit(*fit)
    return _all_classes(model.predict_proba(features), model.classes_, classes)


def _best(accuracy: dict[float, float]) -> float:
    return min(accuracy, key=lambda c: (-accuracy[c], c))


def _all_classes(scores: np.ndarray, seen: np.ndarray, classes: int) -> np.ndarray:
    """Scores with a column for every class, those that were never seen included."""
    whole = np.zeros((len(scores), classes), scores.dtype)
    whole[:, seen] = scores
    return whole
