"""Ranks of a query's own target by counting, in tiles, with ties counted honestly."""

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
