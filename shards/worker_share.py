"""A DataLoader worker's share of what its rank reads: every so-many-th batch.

A DataLoader takes one batch from each of its workers in turn. Where worker `w` of `n` makes the rank's
batches `w`, `w + n`, `w + 2n`, …, what comes out is the rank's own order, whatever `n` is.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from shards.stream import Plan


@dataclass(frozen=True)
class WorkerShare:
    """The part of a rank's plan that one worker reads.

    batch: positions from one batch of the rank to the next. step: positions from one use of a block to the
    next within a visit. origin: the position that batches are counted from.
    """

    plan: Plan
    worker: int
    workers: int
    batch: int
    step: int
    origin: int

    def _owns(self, position: int) -> bool:
        return (position - self.origin) // self.batch % self.workers == self.worker

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(position, epoch, block, slot) of each sample, in order."""
        for place in self.plan.places():
            if self._owns(place[0]):
                yield place

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position), in order of first use."""
        waiting: list[tuple[int, int, int]] = []  # heap of (first own position, last own position, block)
        for block, first, last in self.plan.visits():
            while waiting and waiting[0][0] < first:
                yield _as_visit(heapq.heappop(waiting))
            while first <= last and not self._owns(first):
                first += self.step
            while first <= last and not self._owns(last):
                last -= self.step
            if first <= last:
                heapq.heappush(waiting, (first, last, block))
        while waiting:
            yield _as_visit(heapq.heappop(waiting))

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for a sample that cannot be decoded."""
        return self.plan.substitutes(epoch, block, slot)


def _as_visit(waiting: tuple[int, int, int]) -> tuple[int, int, int]:
    first, last, block = waiting
    return block, first, last
