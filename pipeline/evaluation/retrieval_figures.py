"""Figures from ranks: recall, mean and median rank, mean reciprocal rank; what guessing gives; intervals.

Intervals are percentiles of the bootstrap (Efron, "Bootstrap methods: another look at the jackknife", 1979):
queries, or whole groups of them, are drawn with replacement as many times as there are, again and again.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shards.hashing import Purpose, derive, draw

CUTOFFS = (1, 5, 10)
FIGURES = (*(f"recall_at_{k}" for k in CUTOFFS), "mean_rank", "median_rank", "mean_reciprocal_rank")
RESAMPLES = 1000
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RankedQueries:
    """Queries of one direction: their ranks (float64 [Q]), and the unit, a sample or group, that each belongs
    to (int64 [Q], from 0 up).
    """

    ranks: np.ndarray
    unit: np.ndarray

    def figures(self) -> np.ndarray:
        """FIGURES of all queries: float64 [6]."""
        return _figures(np.sort(self.ranks), np.ones((1, len(self.ranks))))[0]

    def resampled(self, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
        """FIGURES of `resamples` draws of the units: float64 [resamples, 6].

        A draw follows from (seed, its number, how many units there are), so two models' queries are drawn
        alike, and the differences of their figures are paired. Memory: `_CHUNK_BYTES` a few times over.
        """
        order = np.argsort(self.ranks, kind="stable")
        ranks, unit = self.ranks[order], self.unit[order]
        drawn = drawn_counts(int(self.unit.max()) + 1, len(ranks), seed, resamples)
        return np.concatenate([_figures(ranks, counts[:, unit]) for counts in drawn])


def interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of resampled figures [resamples, n]: lower and upper ends [n]."""
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    return low, high


def drawn_counts(units: int, queries: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each unit was drawn, in chunks of the resamples: float64 [chunk, units]."""
    chunk = max(1, _CHUNK_BYTES // (8 * max(units, queries)))
    for first in range(0, resamples, chunk):
        numbers = range(first, min(first + chunk, resamples))
        yield np.stack([_draw_units(units, seed, number) for number in numbers])


def _draw_units(units: int, seed: int, number: int) -> np.ndarray:
    numbers = draw(derive(seed, Purpose.BOOTSTRAP, number), units) >> np.uint64(32)
    drawn = ((numbers * np.uint64(units)) >> np.uint64(32)).astype(np.int64)
    return np.bincount(drawn, minlength=units).astype(np.float64)


def _figures(ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """FIGURES of queries with ascending ranks [Q], each counted so often (float64 [n, Q]): float64 [n, 6]."""
    up_to = np.cumsum(counts, axis=1)
    total = up_to[:, -1]
    within = np.searchsorted(ranks, CUTOFFS, side="right")
    recalls = [up_to[:, place - 1] / total if place else np.zeros(len(counts)) for place in within]
    middle = [_first_above(up_to, total / 2 + shift) for shift in (-0.25, 0.25)]  # counts are whole numbers
    median = (ranks[middle[0]] + ranks[middle[1]]) / 2
    return np.stack([*recalls, counts @ ranks / total, median, counts @ (1 / ranks) / total], axis=1)


def _first_above(ascending: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """For each row, the first place whose value is above the row's bound."""
    pairs = zip(ascending, bounds, strict=True)
    return np.array([np.searchsorted(row, bound, side="right") for row, bound in pairs])


def chance(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """FIGURES of guessing, on average: float64 [6].

    right, wrong: int64 [Q], how many different right answers and how many wrong ones each query has; the best
    of the right ones counts, and the others do not stand in its way.
    """
    most = int(wrong.max()) + 1
    beyond = np.zeros(most + 1)  # chance that a rank is above 0, 1, 2, …
    for (hits, misses), queries in Counter(zip(right.tolist(), wrong.tolist(), strict=True)).items():
        drawn = np.arange(misses)  # the first k drawn are all wrong ones, if a rank is above k
        all_wrong = np.cumprod((misses - drawn) / (hits + misses - drawn))
        beyond[: misses + 1] += queries * np.append(1.0, all_wrong)
    beyond /= len(right)
    ranks = np.arange(1, most + 1)
    recalls = [1 - beyond[min(k, most)] for k in CUTOFFS]
    middle = [int(np.argmax(1 - beyond[1:] > 0.5 + shift)) + 1 for shift in (-1e-9, 1e-9)]
    reciprocal = float(((beyond[:-1] - beyond[1:]) / ranks).sum())
    return np.array([*recalls, beyond[:-1].sum(), sum(middle) / 2, reciprocal])


def named(prefix: str, figures: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Figures by their names in metrics.json and logs."""
    return {f"{prefix}_{name}": float(value) for name, value in zip(FIGURES, figures, strict=True)}
