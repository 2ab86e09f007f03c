"""The nearest rows by their true scores: a product with every row, piece by piece, never with all at once."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.embedding.reader import FeatureRows


@dataclass(frozen=True)
class Nearest:
    """The rows nearest to queries, best first; of equal scores the lower row first."""

    scores: np.ndarray  # [Q, count] float32, cosine similarities
    rows: np.ndarray  # [Q, count] int64


def exact_search(features: FeatureRows, queries: np.ndarray, count: int) -> Nearest:
    """The `count` nearest rows (fewer where there are fewer) of each query: float32 [Q, D], of length 1.

    Memory: the scores of one piece at a time.
    """
    asked = torch.from_numpy(queries)
    scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for first, piece in features.pieces():
        of_piece = asked @ torch.from_numpy(piece).float().T
        best, places = of_piece.topk(min(count, len(piece)))
        scores, rows = torch.cat([scores, best], 1), torch.cat([rows, places + first], 1)
        if scores.shape[1] > count:
            scores, rows = _best(scores, rows, count)
    return Nearest(*(tensor.numpy() for tensor in _best(scores, rows, count)))


def rescore(features: FeatureRows, queries: np.ndarray, candidates: np.ndarray, count: int) -> Nearest:
    """The nearest rows among candidates (rows [Q, C]; below 0: none) by their true scores."""
    found = []
    for query, rows in zip(queries, candidates, strict=True):
        own = np.unique(rows[rows >= 0])
        scores = torch.from_numpy(features.take(own).astype(np.float32) @ query)[None]
        found.append(_best(scores, torch.from_numpy(own)[None], count))
    width = min(scores.shape[1] for scores, _ in found)
    return Nearest(*(torch.cat([pair[i][:, :width] for pair in found]).numpy() for i in (0, 1)))


def _best(scores: torch.Tensor, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best of each line, sorted; of equal scores the lower row first."""
    by_row = rows.argsort(1)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return scores.gather(1, order), rows.gather(1, order)
