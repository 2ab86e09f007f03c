"""The packing plan: which row goes to which place of which shard. A pure function of the table's splits, the
seed and the limits, so tasks on many machines agree on it without talking.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shards.hashing import Purpose, derive, shuffled


@dataclass(frozen=True)
class PlannedShard:
    """One shard: its split, its number in it, and its places in the split's order. A sample's key is its
    place, so keys grow and rejected rows leave gaps.
    """

    split: int
    number: int
    slots: range


class PackingPlan:
    """Rows shuffled by seed within their splits and cut into shards.

    splits: uint8 [rows], the number of each row's split. sizes: uint32 [rows], the bytes of each row's image
    in its source, for a plan with `max_shard_bytes`. Memory is 8 bytes a row beside these.
    """

    def __init__(
        self,
        splits: np.ndarray,
        split_count: int,
        seed: int,
        samples_per_shard: int,
        sizes: np.ndarray | None = None,
        max_shard_bytes: int | None = None,
    ) -> None:
        key = derive(seed, Purpose.ROWS)
        self._orders = [shuffled(key, np.flatnonzero(splits == split)) for split in range(split_count)]
        self._samples_per_shard = samples_per_shard
        self._sizes, self._max_shard_bytes = sizes, max_shard_bytes

    @cached_property
    def shards(self) -> Sequence[PlannedShard]:
        """All shards, split by split."""
        return [
            PlannedShard(split, number, slots)
            for split, order in enumerate(self._orders)
            for number, slots in enumerate(self._cut(order))
        ]

    def rows(self, shard: PlannedShard) -> np.ndarray:
        """The numbers of a shard's rows, in the order of their places: int64 [len(shard.slots)]."""
        return self._orders[shard.split][shard.slots.start : shard.slots.stop]

    def _cut(self, order: np.ndarray) -> Iterator[range]:
        start = 0
        while start < len(order):
            stop = min(start + self._samples_per_shard, len(order))
            if self._sizes is not None and self._max_shard_bytes is not None:
                filled = np.cumsum(self._sizes[order[start:stop]], dtype=np.int64)
                fitting = int(np.searchsorted(filled, self._max_shard_bytes, side="right"))
                stop = start + max(1, fitting)  # an image above the limit has a shard of its own
            yield range(start, stop)
            start = stop
