"""Feature rows of all ranks on one grid: tiles of fixed size, dealt out to the ranks."""

import math

import numpy as np
import torch
import torch.distributed as dist

from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.topology import Topology

TILE = 1024


class TiledRows:
    """Rows in a global order, cut into tiles of `tile` rows; tile `t` lies on rank `t % world_size`.

    A product of two tiles has the same shape on any number of processes, and so the same bits.
    """

    def __init__(
        self,
        rows: FeatureRows,
        order: np.ndarray,
        topology: Topology,
        device: torch.device,
        *,
        first: int = 0,
        tile: int = TILE,
    ) -> None:
        """Every rank calls it, with the `rows` that it has: those numbered from `first` on among the rows of
        all ranks.

        order: int64 [rows of all ranks], the numbers of the rows in the grid's order.
        """
        self.tile, self.device = tile, device
        self._total = len(order)
        self._topology, self.dimensions = topology, rows.dimensions
        self._own = FeatureRows(rows.dimensions)
        for number in range(len(self)):
            wanted = order[self.span(number)] - first
            here = (wanted >= 0) & (wanted < len(rows))
            part = torch.zeros(len(wanted), rows.dimensions)
            part[torch.from_numpy(here)] = rows.take(wanted[here])
            part = part.to(device)
            if topology.world_size > 1:  # each row is zero on all ranks but one, so the sum is exact
                dist.reduce(part, self._owner(number))
            if self.is_own(number):
                self._own.append(part)

    def __len__(self) -> int:
        return math.ceil(self._total / self.tile)

    def span(self, number: int) -> slice:
        """The places of a tile's rows in the grid."""
        return slice(number * self.tile, min((number + 1) * self.tile, self._total))

    def is_own(self, number: int) -> bool:
        """Whether a tile lies on this rank."""
        return self._owner(number) == self._topology.rank

    def own(self, number: int) -> torch.Tensor:
        """A tile of this rank [tile, D], on the device."""
        start = number // self._topology.world_size * self.tile
        size = self.span(number).stop - self.span(number).start
        return self._own.read(start, start + size).to(self.device)

    def shared(self, number: int) -> torch.Tensor:
        """A tile [tile, D] on the device of every rank; all must ask for it at the same time."""
        if self._topology.world_size == 1:
            return self.own(number)
        span = self.span(number)
        part = (
            self.own(number)
            if self.is_own(number)
            else torch.empty(span.stop - span.start, self.dimensions, device=self.device)
        )
        dist.broadcast(part, self._owner(number))
        return part

    def _owner(self, number: int) -> int:
        return number % self._topology.world_size
