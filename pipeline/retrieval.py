"""Retrieval metrics from features: ranks by counting, in tiles, with ties counted honestly."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

TILE = 2048
# Scores closer than this are ties: float32 products of equal features differ by about as much.
TIE = 1e-6


def retrieval_ranks(
    queries: torch.Tensor, targets: torch.Tensor, own: torch.Tensor | None = None, *, tile: int = TILE
) -> torch.Tensor:
    """The rank of each query's own target among all targets: 1 is best. float64 [n].

    queries [n, D] and targets [N, D]: float32, L2-normalised, on one device. own [n]: the index of each
    query's own target; without it, target i belongs to query i. A rank is one more than the number of better
    targets, plus half the number of equal ones, so that a model that gives everything one score ranks at
    chance. What is not a number counts against the query: a model that diverged ranks last, not first.
    Memory: one [tile, tile] block of scores at a time.
    """
    own = torch.arange(len(queries)) if own is None else own
    own = own.to(queries.device)
    ranks = torch.empty(len(queries), dtype=torch.float64)
    for start in range(0, len(queries), tile):
        block = queries[start : start + tile]
        score = _own_scores(block, targets, own[start : start + tile], tile)[:, None]
        greater = torch.zeros(len(block), dtype=torch.float64, device=block.device)
        equal = torch.zeros_like(greater)
        for column in range(0, len(targets), tile):
            scores = block @ targets[column : column + tile].T
            greater += (~(scores <= score + TIE)).sum(dim=1)
            equal += ((scores - score).abs() <= TIE).sum(dim=1)
        rank = 1 + greater + (equal - 1) / 2
        last = torch.full_like(rank, len(targets))
        ranks[start : start + tile] = torch.where(score[:, 0].isfinite(), rank, last).cpu()
    return ranks


def _own_scores(block: torch.Tensor, targets: torch.Tensor, own: torch.Tensor, tile: int) -> torch.Tensor:
    """The score of each query with its own target [n], from the same products that the others come from: a
    product of another shape may round differently.
    """
    score = torch.empty(len(block), device=block.device)
    for number in (own // tile).unique().tolist():
        rows = (own // tile == number).nonzero()[:, 0]
        scores = block @ targets[number * tile : (number + 1) * tile].T
        score[rows] = scores[rows, own[rows] - number * tile]
    return score


def top_matches(
    queries: torch.Tensor, targets: torch.Tensor, count: int, *, tile: int = TILE
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best targets of each query, best first: (scores [n, count], indices [n, count]).

    queries [n, D], targets [N, D]; fewer than `count` where there are fewer targets. Memory: one [n, tile]
    block of scores at a time.
    """
    best = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for column in range(0, len(targets), tile):
        scores = queries @ targets[column : column + tile].T
        indices = torch.arange(column, column + scores.shape[1], device=queries.device).expand_as(scores)
        best, order = torch.cat([best, scores], 1).topk(min(count, best.shape[1] + scores.shape[1]), dim=1)
        found = torch.cat([found, indices], 1).gather(1, order)
    return best, found


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
