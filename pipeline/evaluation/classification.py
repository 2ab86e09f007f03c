"""Classification metrics from scores and labels: pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pipeline.evaluation.hits import Hits
from pipeline.evaluation.retrieval_figures import interval


@dataclass(frozen=True)
class ClassificationMetrics:
    """How well scores tell classes apart."""

    samples: int
    classes: tuple[str, ...]
    top_1: float
    top_5: float | None
    """None with five classes or fewer, where it says nothing."""
    balanced_accuracy: float
    """The mean over classes of the share of their samples that are right."""
    macro_auc: float | None
    """The mean over classes of the area under the ROC curve of one class against the rest; None where one
    class has all samples.
    """
    intervals: Mapping[str, tuple[float, float]]
    """95 % intervals of the shares above, from drawing the samples again (`retrieval_figures`)."""
    chance: float
    """Balanced accuracy of guessing."""
    recall: np.ndarray
    """[C] of each class, NaN where it has no samples."""
    confusion: np.ndarray
    """[C, C] int64: samples by true class (rows) and best-scored class (columns)."""
    hits: Hits
    """Which samples are right."""

    @classmethod
    def from_scores(
        cls, scores: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int = 0
    ) -> Self:
        """From scores [N, C], higher is likelier and comparable between samples, and true classes [N] int64.
        seed: of the intervals.

        Equal scores share what they win, so that a model which gives every class one score is right as often
        as a guess is; what is not a number never wins.
        """
        from sklearn.metrics import roc_auc_score  # a second to import

        scores = np.where(np.isfinite(scores), scores, -np.inf)
        top_1 = top_hits(scores, labels, 1)
        top_5 = top_hits(scores, labels, 5) if len(classes) > 5 else None
        present = np.unique(labels)
        recall = np.full(len(classes), np.nan)
        recall[present] = [top_1[labels == label].mean() for label in present]
        auc = None
        if len(present) > 1:
            ranked = np.where(np.isfinite(scores), scores, np.finfo(np.float32).min)
            auc = float(np.mean([roc_auc_score(labels == label, ranked[:, label]) for label in present]))
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
        hits = Hits(labels, top_1, top_5)
        ends = zip(*interval(hits.resampled(seed)), strict=True)
        return cls(
            len(labels),
            classes,
            float(top_1.mean()),
            None if top_5 is None else float(top_5.mean()),
            float(recall[present].mean()),
            auc,
            {name: (float(low), float(high)) for name, (low, high) in zip(hits.names, ends, strict=True)},
            1 / len(classes),
            recall,
            confusion,
            hits,
        )

    def values(self) -> dict[str, float]:
        """The figures by name, for logs."""
        named = {
            "top_1": self.top_1,
            "top_5": self.top_5,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_auc": self.macro_auc,
        }
        return {name: value for name, value in named.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        recalls = [None if np.isnan(value) else float(value) for value in self.recall]
        return {
            "samples": self.samples,
            **self.values(),
            "chance": self.chance,
            "recall": dict(zip(self.classes, recalls, strict=True)),
            "confusion": self.confusion.tolist(),
        }

    def rows(self) -> list[tuple[str, float, tuple[float, float] | None]]:
        """What a table shows: a name, a figure, and its interval where it has one."""
        named = [
            ("top-1", self.top_1, "top_1"),
            ("top-5", self.top_5, "top_5"),
            ("balanced accuracy", self.balanced_accuracy, "balanced_accuracy"),
            ("  by chance", self.chance, ""),
            ("macro AUC", self.macro_auc, ""),
        ]
        return [(name, value, self.intervals.get(key)) for name, value, key in named if value is not None]

    def table(self) -> str:
        """The figures for people."""
        lines = []
        for name, value, ends in self.rows():
            line = f"{name:<20}{value:>8.1%}"
            lines.append(line + (f"   {ends[0]:.1%} – {ends[1]:.1%}" if ends else ""))
        return "\n".join(lines)


def top_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The chance [N] that a sample's true class is among its k best scores, where equal scores are put in
    order by lot.

    scores [N, C], labels [N]. A true class without a finite score is never among them.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    greater = (scores > own).sum(axis=1)
    equal = (scores == own).sum(axis=1)
    return np.where(np.isfinite(own[:, 0]), np.clip((k - greater) / equal, 0.0, 1.0), 0.0)
