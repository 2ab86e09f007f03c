"""The order of samples: a pure function of (block sizes, seed, lanes, position), by arithmetic alone.

Training consumes one endless stream; `position` counts the samples seen by all ranks together. In each epoch
the blocks are permuted and laid end to end to a line; the line is cut into as many pieces as there are lanes;
the stream takes one sample from each lane in turn. Rank `r` of `W` takes the positions with `position % W ==
r`. No file is touched here.

Several data sets may share one stream (`shards.mixture`): each then has some of its lanes and, in its own
positions, the very order it would have alone with so many lanes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.hashing import Purpose, derive, draw, permutation

DEFAULT_LANES = 384
_VISITS = 4096  # handed on at a time: the first ones are not to wait for an epoch's


@dataclass(frozen=True)
class Places:
    """Where samples lie, as parallel arrays of one entry a position: epoch, block, slot in the block."""

    epoch: np.ndarray
    block: np.ndarray
    slot: np.ndarray


@dataclass(frozen=True)
class Visits:
    """A rank's stays of a lane in a block, in order of first use: the block, and the positions of the stream
    first and last used.
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


@dataclass(frozen=True)
class StreamLanes:
    """The lanes of a stream that one data set has: which of how many.

    Its samples, counted by themselves, have own positions 0, 1, 2, … in the order in which the stream comes
    by its lanes.
    """

    numbers: np.ndarray  # int64, ascending
    total: int  # lanes of the whole stream

    def in_stream(self, own: np.ndarray) -> np.ndarray:
        """The positions in the stream of own positions."""
        rounds, place = np.divmod(own, len(self.numbers))
        return rounds * self.total + self.numbers[place]

    def seen_before(self, position: int) -> int:
        """How many of the data set's samples come before a position of the stream."""
        rounds, lane = divmod(position, self.total)
        return rounds * len(self.numbers) + int(np.searchsorted(self.numbers, lane))

    def reached_by(self, rank: int, world_size: int) -> bool:
        """Whether any of these lanes ever falls to a rank."""
        return bool(((self.numbers - rank) % math.gcd(self.total, world_size) == 0).any())

    def most_within(self, positions: int) -> int:
        """The most samples of the data set that so many positions in a row can hold."""
        rounds, rest = divmod(positions, self.total)
        twice = np.concatenate([self.numbers, self.numbers + self.total])
        ends = np.searchsorted(twice, self.numbers + rest)
        return rounds * len(self.numbers) + int((ends - np.arange(len(self.numbers))).max(initial=0))


class Order:
    """The order of one data set's samples under a seed and a number of lanes.

    block_samples: int [blocks], samples of every block.
    """

    def __init__(self, block_samples: np.ndarray, seed: int = 0, lanes: int = DEFAULT_LANES) -> None:
        self.block_samples = np.asarray(block_samples, np.int64)
        self.samples = int(self.block_samples.sum())
        self.seed = seed
        self.lanes = lanes
        self._alone = StreamLanes(np.arange(lanes), lanes)
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

    def visits(
        self, epoch: int, rank: int, world_size: int, start: int = 0, stream: StreamLanes | None = None
    ) -> Visits:
        """A rank's visits of one epoch from position `start` on.

        stream: which lanes of a stream shared with other data sets are this one's; positions are then those
        of that stream. Without it the stream is its own.
        """
        stream = stream or self._alone
        line = self._epoch(epoch)
        # Both ascend already, which a stable sort makes use of; `np.unique` takes a hundred times as long.
        edges = np.sort(np.concatenate([line.block_starts, line.piece_starts]), kind="stable")
        stays = np.flatnonzero(np.diff(edges))
        cuts, stops = edges[stays], edges[stays + 1]
        piece = np.searchsorted(line.piece_starts, cuts, side="right") - 1
        block = line.blocks[np.searchsorted(line.block_starts, cuts, side="right") - 1]
        # A lane's samples stand in the stream at base, base + stride, base + 2 * stride, …: for an epoch it
        # keeps to one lane of the stream (to another in the next, where the lanes do not divide N).
        base = stream.in_stream(epoch * self.samples + line.piece_lane[piece])
        stride = stream.total
        first = cuts - line.piece_starts[piece]
        last = stops - line.piece_starts[piece] - 1
        first = np.maximum(first, -((base - start) // stride))  # base + first * stride >= start
        # Of a lane's samples a rank takes those with (base + p * stride) % world_size == rank: every
        # period-th p, if any.
        divisor = math.gcd(stride, world_size)
        period = world_size // divisor
        inverse = pow(stride // divisor, -1, period)
        residue = (rank - base) % world_size
        own = residue // divisor * inverse % period
        first = first + (own - first) % period
        last = last - (last - own) % period
        kept = (residue % divisor == 0) & (first <= last)
        first, last = (base + first * stride)[kept], (base + last * stride)[kept]
        by_use = np.argsort(first, kind="stable")
        return Visits(block[kept][by_use], first[by_use], last[by_use])

    def visits_from(
        self, start: int, rank: int, world_size: int, stream: StreamLanes | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position) of a rank's visits from position `start` on, in order of
        first use, without end; `stream` as in `visits`.
        """
        epoch = (stream or self._alone).seen_before(start) // self.samples
        while True:
            visits = self.visits(epoch, rank, world_size, start, stream)
            for chunk in range(0, len(visits.block), _VISITS):
                some = slice(chunk, chunk + _VISITS)
                columns = (visits.block[some], visits.first[some], visits.last[some])
                yield from zip(*(column.tolist() for column in columns), strict=True)
            epoch += 1
