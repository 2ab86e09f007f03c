"""The best matches of some queries, found tile by tile."""

import numpy as np
import torch

from pipeline.evaluation.tiled_rows import TiledRows


def rows_at(tiled: TiledRows, places: np.ndarray) -> torch.Tensor:
    """The rows at these places of the grid [n, D], on every rank; all must ask for the same."""
    rows = torch.empty(len(places), tiled.dimensions, device=tiled.device)
    for number in np.unique(places // tiled.tile).tolist():
        here = np.flatnonzero(places // tiled.tile == number)
        inside = torch.from_numpy(places[here] - tiled.span(number).start).to(tiled.device)
        rows[torch.from_numpy(here).to(tiled.device)] = tiled.shared(number)[inside]
    return rows


def top_matches(queries: torch.Tensor, targets: TiledRows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best targets of each query [n, D], best first: (scores [n, count], places in the grid
    [n, count]); fewer than `count` where there are fewer targets. All ranks must ask for the same.
    """
    best = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for number in range(len(targets)):
        scores = (queries @ targets.shared(number).T).nan_to_num(-torch.inf)
        start = targets.span(number).start
        places = torch.arange(start, start + scores.shape[1], device=queries.device).expand_as(scores)
        best, order = torch.cat([best, scores], 1).topk(min(count, best.shape[1] + scores.shape[1]), dim=1)
        found = torch.cat([found, places], 1).gather(1, order)
    return best.cpu().numpy(), found.cpu().numpy()
