"""The order of samples: a pure function of (block sizes, seed, lanes, position), by arithmetic alone.

Training consumes one endless stream; `position` counts the samples seen by all ranks together. In each epoch
the blocks are permuted and laid end to end to a line; the line is cut into as many pieces as there are lanes;
the stream takes one sample from each lane in turn. Rank `r` of `W` takes the positions with `position % W ==
r`. No file is touched here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.hashing import Purpose, derive, draw, permutation

DEFAULT_LANES = 384


@dataclass(frozen=True)
class Places:
    """Where samples lie, as parallel arrays of one entry a position: epoch, block, slot in the block."""

    epoch: np.ndarray
    block: np.ndarray
    slot: np.ndarray


@dataclass(frozen=True)
class Visits:
    """A rank's stays of a lane in a block, in order of first use: the block, and the positions first and last
    used.
    """

    block: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True)
class _Epoch:
    """One epoch's line: blocks in order, where each starts in it, and where each lane's piece starts."""

    blocks: np.ndarray  # [blocks] block at each place of the line
    block_starts: np.ndarray  # [blocks + 1] samples before it
    piece_starts: np.ndarray  # [lanes + 1] samples before each piece
    piece_lane: np.ndarray  # [lanes] lane of each piece
    lane_start: np.ndarray  # [lanes] place in the line where each lane's piece starts


class Order:
    """The order of one data set's samples under a seed and a number of lanes.

    block_samples: int [blocks], samples of every block.
    """

    def __init__(self, block_samples: np.ndarray, seed: int = 0, lanes: int = DEFAULT_LANES) -> None:
        self.block_samples = np.asarray(block_samples, np.int64)
        self.samples = int(self.block_samples.sum())
        self.seed = seed
        self.lanes = lanes
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> _Epoch:
        blocks = permutation(derive(self.seed, epoch, Purpose.BLOCKS), len(self.block_samples))
        block_starts = np.concatenate([[0], np.cumsum(self.block_samples[blocks])])
        piece_lane = permutation(derive(self.seed, epoch, Purpose.LANES), self.lanes)
        lengths = self.samples // self.lanes + (piece_lane < self.samples % self.lanes)
        piece_starts = np.concatenate([[0], np.cumsum(lengths)])
        lane_start = np.empty(self.lanes, np.int64)
        lane_start[piece_lane] = piece_starts[:-1]
        return _Epoch(blocks, block_starts, piece_starts, piece_lane, lane_start)

    def slots(self, epoch: "int | np.ndarray", blocks: np.ndarray) -> np.ndarray:
        """The permutation inside each block: int64 [len(blocks), largest count]; past a block's count, no
        meaning.
        """
        counts = self.block_samples[blocks]
        values = draw(derive(self.seed, epoch, blocks, Purpose.WITHIN_BLOCK), int(counts.max(initial=1)))
        values[np.arange(values.shape[1]) >= counts[:, None]] = np.iinfo(np.uint64).max
        return np.argsort(values, axis=1, kind="stable")

    def at(self, positions: np.ndarray) -> Places:
        """The places of the samples at these positions: arrays like `positions`."""
        positions = np.asarray(positions, np.int64)
        epochs, indices = np.divmod(positions, self.samples)
        block, slot = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            line, chosen = self._epoch(epoch), epochs == epoch
            where = line.lane_start[indices[chosen] % self.lanes] + indices[chosen] // self.lanes
            number = np.searchsorted(line.block_starts, where, side="right") - 1
            block[chosen] = line.blocks[number]
            distinct, row = np.unique(block[chosen], return_inverse=True)
            slot[chosen] = self.slots(epoch, distinct)[row, where - line.block_starts[number]]
        return Places(epochs, block, slot)

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for one that cannot be decoded: from half a block further in the
        block's permutation on, each of the block's other slots once.
        """
        count = int(self.block_samples[block])
        around = self.slots(epoch, np.array([block]))[0, :count].tolist()
        here = around.index(slot)
        candidates = [around[(here + count // 2 + step) % count] for step in range(count)]
        return [candidate for candidate in candidates if candidate != slot]

    def visits(self, epoch: int, rank: int, world_size: int, start: int = 0) -> Visits:
        """A rank's visits of one epoch from position `start` on."""
        line = self._epoch(epoch)
        cuts = np.unique(np.concatenate([line.block_starts, line.piece_starts]))[:-1]
        stops = np.append(cuts[1:], self.samples)
        piece = np.searchsorted(line.piece_starts, cuts, side="right") - 1
        block = line.blocks[np.searchsorted(line.block_starts, cuts, side="right") - 1]
        lane = line.piece_lane[piece]
        base = epoch * self.samples + lane  # the position of the lane's first sample
        first = cuts - line.piece_starts[piece]
        last = stops - line.piece_starts[piece] - 1
        first = np.maximum(first, -((base - start) // self.lanes))  # base + first * lanes >= start
        # Of a lane's samples a rank takes those with (base + p * lanes) % world_size == rank: every period-th
        # p, if any.
        divisor = math.gcd(self.lanes, world_size)
        period = world_size // divisor
        inverse = pow(self.lanes // divisor, -1, period)
        residue = (rank - base) % world_size
        own = residue // divisor * inverse % period
        first = first + (own - first) % period
        last = last - (last - own) % period
        kept = (residue % divisor == 0) & (first <= last)
        first, last = (base + first * self.lanes)[kept], (base + last * self.lanes)[kept]
        by_use = np.argsort(first, kind="stable")
        return Visits(block[kept][by_use], first[by_use], last[by_use])

    def read_factor(self, world_size: int, epoch: int = 0) -> float:
        """How many samples' worth of blocks all ranks together fetch in an epoch, over its samples."""
        read = sum(
            int(self.block_samples[self.visits(epoch, rank, world_size, epoch * self.samples).block].sum())
            for rank in range(world_size)
        )
        return read / self.samples


def nearest_batch(global_batch: int, world_size: int) -> int:
    """The positive multiple of `world_size` nearest to `global_batch`."""
    return max(world_size, round(global_batch / world_size) * world_size)


@dataclass(frozen=True)
class TrainingPlan:
    """What one rank reads in training: its positions from `start` up to `stop` (None: without end)."""

    order: Order
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

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position) of each visit, in order of first use."""
        epoch = self.start // self.order.samples
        while self.stop is None or epoch * self.order.samples < self.stop:
            visits = self.order.visits(epoch, self.rank, self.world_size, self.start)
            for block, first, last in zip(
                visits.block.tolist(), visits.first.tolist(), visits.last.tolist(), strict=True
            ):
                if self.stop is None or first < self.stop:
                    yield block, first, last
            epoch += 1

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

    @property
    def lanes_read(self) -> int:
        """One: the shards are read from front to back."""
        return 1
