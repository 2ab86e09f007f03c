"""Figures of retrieval from ranks: recall, mean and median rank, with the chance level beside them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from pipeline.evaluation.ranks import retrieval_ranks


@dataclass(frozen=True)
class DirectionMetrics:
    """One direction: shares of queries whose own target is among the first k, and typical ranks."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    mean_rank: float
    median_rank: float

    @staticmethod
    def from_ranks(ranks: torch.Tensor) -> "DirectionMetrics":
        """From ranks [N]."""
        recalls = [float((ranks <= k).double().mean()) for k in (1, 5, 10)]
        return DirectionMetrics(
            recalls[0], recalls[1], recalls[2], float(ranks.mean()), float(ranks.quantile(0.5))
        )

    @staticmethod
    def by_chance(pairs: int) -> "DirectionMetrics":
        """What guessing gives among `pairs` targets."""
        recalls = [min(1.0, k / pairs) for k in (1, 5, 10)]
        return DirectionMetrics(recalls[0], recalls[1], recalls[2], (pairs + 1) / 2, (pairs + 1) / 2)


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval in both directions among `pairs` image–text pairs."""

    pairs: int
    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    @staticmethod
    def names() -> tuple[str, ...]:
        """The names in `to_dict`."""
        return tuple(RetrievalMetrics(1, *[DirectionMetrics.by_chance(1)] * 2).to_dict())

    def to_dict(self) -> dict[str, float]:
        """Flat names and numbers, for logs and JSON."""
        return {
            f"{direction}_{name}": value
            for direction in ("image_to_text", "text_to_image")
            for name, value in asdict(getattr(self, direction)).items()
        }

    def line(self) -> str:
        """The essentials in one line."""
        chance = DirectionMetrics.by_chance(self.pairs).recall_at_10
        return (
            f"R@10 image→text {self.image_to_text.recall_at_10:.1%}, text→image "
            f"{self.text_to_image.recall_at_10:.1%} of {self.pairs:,} pairs (chance {chance:.1%})"
        )

    def table(self) -> str:
        """All figures as a table for people, with the chance level beside them."""
        columns = (self.image_to_text, self.text_to_image, DirectionMetrics.by_chance(self.pairs))
        lines = [f"{'':<14}{'image→text':>14}{'text→image':>14}{'chance':>14}"]
        for label, name, is_share in _ROWS:
            cells = [getattr(column, name) for column in columns]
            lines.append(f"{label:<14}" + "".join(_cells(cells, is_share)))
        return "\n".join(lines)


_ROWS = (
    ("R@1", "recall_at_1", True),
    ("R@5", "recall_at_5", True),
    ("R@10", "recall_at_10", True),
    ("mean rank", "mean_rank", False),
    ("median rank", "median_rank", False),
)


def _cells(values: list[float], is_share: bool) -> Iterator[str]:
    return (f"{value:>14.1%}" if is_share else f"{value:>14,.1f}" for value in values)


def retrieval_metrics(image_features: torch.Tensor, text_features: torch.Tensor) -> RetrievalMetrics:
    """Metrics of both directions from L2-normalised features [N, D] of N pairs."""
    return RetrievalMetrics(
        len(image_features),
        DirectionMetrics.from_ranks(retrieval_ranks(image_features, text_features)),
        DirectionMetrics.from_ranks(retrieval_ranks(text_features, image_features)),
    )
