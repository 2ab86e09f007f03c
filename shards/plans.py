"""Plans: which samples one process reads, in which order, and which blocks it needs for them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shards.order import Places


def nearest_batch(global_batch: int, world_size: int) -> int:
    """The positive multiple of `world_size` nearest to `global_batch`."""
    return max(world_size, round(global_batch / world_size) * world_size)


class StreamOrder(Protocol):
    """What a training plan asks of an order: that of one data set (`Order`), or of several
    (`shards.mixture.MixedOrder`).
    """

    @property
    def lanes(self) -> int:
        """Lanes of the stream."""

    def at(self, positions: np.ndarray) -> Places:
        """The places of the samples at these positions of the stream."""

    def visits_from(self, start: int, rank: int, world_size: int) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position) of a rank's visits, in order of first use, without end."""

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for a sample that cannot be decoded."""


@dataclass(frozen=True)
class TrainingPlan:
    """What one rank reads in training: its positions from `start` up to `stop` (None: without end)."""

    order: StreamOrder
    rank: int = 0
    world_size: int = 1
    start: int = 0
    stop: int | None = None

    def places(self, chunk: int = 4096) -> Iterator[tuple[int, int, int, int]]:
        """(position, epoch, block, slot) of each sample, in order."""
        position = self.start + (self.rank - self.start) % self.world_size
        while self.stop is None or position < self.stop:
            stop = position + chunk * self.world_size
            positions = np.arange(
                position, stop if self.stop is None else min(stop, self.stop), self.world_size
            )
            places = self.order.at(positions)
            yield from zip(
                positions.tolist(),
                places.epoch.tolist(),
                places.block.tolist(),
                places.slot.tolist(),
                strict=True,
            )
            position = int(positions[-1]) + self.world_size

    @property
    def step(self) -> int:
        """Positions from one use of a block to the next within a visit."""
        return math.lcm(self.order.lanes, self.world_size)

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position) of each visit, in order of first use."""
        step = self.step
        for block, first, last in self.order.visits_from(self.start, self.rank, self.world_size):
            if self.stop is None:
                yield block, first, last
            elif first < self.stop:
                yield block, first, min(last, first + (self.stop - 1 - first) // step * step)
            else:
                return

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for a sample that cannot be decoded."""
        return self.order.substitutes(epoch, block, slot)

    @property
    def lanes_read(self) -> int:
        """How many lanes, and so about how many blocks at a time, this rank reads."""
        return self.order.lanes // math.gcd(self.order.lanes, self.world_size)


@dataclass(frozen=True)
class EvaluationPlan:
    """What one rank reads in evaluation: samples `[rank·N/W, (rank + 1)·N/W)` in manifest order, each exactly
    once.
    """

    block_samples: np.ndarray
    rank: int = 0
    world_size: int = 1

    @property
    def span(self) -> tuple[int, int]:
        """The numbers of the first sample of this rank and of the one after its last."""
        samples = int(np.sum(self.block_samples))
        return self.rank * samples // self.world_size, (self.rank + 1) * samples // self.world_size

    def _block_spans(self) -> Iterator[tuple[int, int, int, int]]:
        start, stop = self.span
        firsts = np.cumsum(self.block_samples) - self.block_samples
        block = max(0, int(np.searchsorted(firsts, start, side="right")) - 1)
        while block < len(firsts) and firsts[block] < stop:
            first, last = int(firsts[block]), int(firsts[block] + self.block_samples[block]) - 1
            if last >= start:
                yield block, first, max(first, start), min(last, stop - 1)
            block += 1

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(position, epoch 0, block, slot) of each sample, in order."""
        for block, begin, first, last in self._block_spans():
            for position in range(first, last + 1):
                yield position, 0, block, position - begin

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position), in order."""
        for block, _, first, last in self._block_spans():
            yield block, first, last

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """None: an evaluation of other samples than those asked for would be another evaluation."""
        return []
