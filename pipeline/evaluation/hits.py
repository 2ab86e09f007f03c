"""Which samples a classification got right, and the shares that follow, also of resampled samples."""

from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.retrieval_figures import RESAMPLES, drawn_counts


@dataclass(frozen=True)
class Hits:
    """Of each sample its true class [N] int64, and whether, or how likely, that is the best-scored one
    (top_1 [N] float64) and among the five best (top_5; None with five classes or fewer, where it says
    nothing).
    """

    labels: np.ndarray
    top_1: np.ndarray
    top_5: np.ndarray | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the shares; balanced accuracy is the mean over classes of the share of their samples."""
        return ("top_1", *(("top_5",) if self.top_5 is not None else ()), "balanced_accuracy")

    def shares(self) -> np.ndarray:
        """The shares of all samples: float64 [names]."""
        return self._shares(np.ones((1, len(self.labels))))[0]

    def resampled(self, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
        """The shares of `resamples` draws of the samples: float64 [resamples, names].

        A draw follows from (seed, its number, how many samples there are): those of two models are paired.
        """
        count = len(self.labels)
        return np.concatenate([self._shares(drawn) for drawn in drawn_counts(count, count, seed, resamples)])

    def _shares(self, counts: np.ndarray) -> np.ndarray:
        """Where each sample counts so often: counts float64 [n, N] -> [n, names]."""
        of_class = (self.labels[:, None] == np.unique(self.labels)).astype(np.float64)  # [N, classes]
        columns = [self.top_1] if self.top_5 is None else [self.top_1, self.top_5]
        shares = counts @ np.stack(columns, axis=1) / len(self.labels)
        with np.errstate(invalid="ignore"):  # a class of which nothing was drawn does not count
            recalls = (counts @ (of_class * self.top_1[:, None])) / (counts @ of_class)
        return np.column_stack([shares, np.nanmean(recalls, axis=1)])
