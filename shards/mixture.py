"""Mixtures: several data sets with weights as one stream, whose order, too, follows from the position alone.

Each lane of the stream belongs to one data set for good. Of `V` lanes data set `d` has `V_d`. The position
`g` is lane `g % V` in round `g // V`; if that lane is the `j`-th of data set `d`, it holds the data set's
sample at its own position `(g // V) * V_d + j`. In own positions the data set has the very order that it has
alone with `V_d` lanes: its own epochs, each of which holds each of its samples exactly once, whatever the
others do.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations
from operator import itemgetter

import numpy as np

from shards.dataset import Dataset
from shards.errors import UsageError
from shards.hashing import Purpose, derive
from shards.joined import JoinedDataset, Numbering
from shards.lane_shares import share_lanes, spread_lanes
from shards.order import DEFAULT_LANES, Order, Places, StreamLanes
from shards.plans import TrainingPlan


class MixedOrder:
    """The orders of several data sets as one: blocks are numbered on from one data set to the next.

    orders: one for each data set, with as many lanes as it has in the stream. source_of_lane: int64 [lanes],
    the data set that each lane of the stream belongs to.
    """

    def __init__(self, orders: Sequence[Order], source_of_lane: np.ndarray) -> None:
        self.orders = tuple(orders)
        self.lanes = len(source_of_lane)
        self.streams = tuple(
            StreamLanes(np.flatnonzero(source_of_lane == source), self.lanes) for source in range(len(orders))
        )
        self._source_of_lane = source_of_lane
        self._place_in_source = np.empty(self.lanes, np.int64)
        for stream in self.streams:
            self._place_in_source[stream.numbers] = np.arange(len(stream.numbers))
        self._blocks = Numbering([len(order.block_samples) for order in orders])

    def at(self, positions: np.ndarray) -> Places:
        """The places of the samples at these positions: arrays like `positions`; epochs are the data sets'
        own.
        """
        rounds, lanes = np.divmod(np.asarray(positions, np.int64), self.lanes)
        sources = self._source_of_lane[lanes]
        epoch, block, slot = (np.empty_like(rounds) for _ in range(3))
        for source, order in enumerate(self.orders):
            chosen = sources == source
            places = order.at(rounds[chosen] * order.lanes + self._place_in_source[lanes[chosen]])
            epoch[chosen], slot[chosen] = places.epoch, places.slot
            block[chosen] = places.block + self._blocks.first[source]
        return Places(epoch, block, slot)

    def visits_from(self, start: int, rank: int, world_size: int) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position) of a rank's visits from position `start` on, in order of
        first use, without end.
        """
        parts = [
            self._source_visits(source, start, rank, world_size)
            for source, stream in enumerate(self.streams)
            if stream.reached_by(rank, world_size)
        ]
        return heapq.merge(*parts, key=itemgetter(1))

    def _source_visits(
        self, source: int, start: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, int, int]]:
        first_block = self._blocks.first[source]
        visits = self.orders[source].visits_from(start, rank, world_size, self.streams[source])
        return ((first_block + block, first, last) for block, first, last in visits)

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for one that cannot be decoded; see `Order.substitutes`."""
        source, own = self._blocks.own(block)
        return self.orders[source].substitutes(epoch, own, slot)


class Mixture:
    """Data sets that share the lanes of one stream; with a single one, the stream is that data set's.

    lanes_of: lanes of each data set. An epoch of the mixture is as many samples as all data sets have; what
    each of them has given by then follows from its lanes, not from its size.
    """

    def __init__(self, datasets: Sequence[Dataset], lanes_of: Sequence[int], seed: int = 0) -> None:
        self.datasets = tuple(datasets)
        self.lanes_of = tuple(lanes_of)
        self.lanes = sum(lanes_of)
        self.seed = seed
        self._check_distinct()
        # Each data set has a seed of its own: two of the same shape must not go through their blocks in step.
        seeds = [seed, *(int(derive(seed, source, Purpose.SOURCE)) for source in range(1, len(datasets)))]
        orders = [
            Order(dataset.blocks.samples, own_seed, lanes)
            for dataset, own_seed, lanes in zip(datasets, seeds, lanes_of, strict=True)
        ]
        self.order = MixedOrder(orders, spread_lanes(lanes_of))

    @staticmethod
    def by_weight(
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        *,
        lanes: int = DEFAULT_LANES,
        seed: int = 0,
    ) -> "Mixture":
        """The mixture in which each data set has its weight's share of the samples, to the nearest lane;
        without weights, that of its size. Raises UsageError as `share_lanes` does.
        """
        sizes = [len(dataset) for dataset in datasets]
        return Mixture(datasets, share_lanes(sizes if weights is None else weights, lanes), seed)

    def _check_distinct(self) -> None:
        for one, other in combinations(self.datasets, 2):
            both = f"{one.folder.address} and {other.folder.address}"
            if one.manifest.fingerprint == other.manifest.fingerprint:
                raise UsageError(f"{both} are the same data set: give it once, with the weight of both")
            # Such a sample would have two ids, and be a negative of itself.
            if shard := _shared_samples(one, other):
                raise UsageError(
                    f"{both} have samples in common (in {shard}): leave one out, or make one view of what "
                    "both are to give, with python -m pipeline.select"
                )

    def __reduce__(self) -> tuple[type["Mixture"], tuple[object, ...]]:
        return Mixture, (self.datasets, self.lanes_of, self.seed)

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    @property
    def name(self) -> str:
        """The names of the data sets."""
        return self.dataset.name

    @cached_property
    def dataset(self) -> Dataset | JoinedDataset:
        """All data sets as one, with blocks and samples numbered on from one to the next."""
        return self.datasets[0] if len(self.datasets) == 1 else JoinedDataset(self.datasets)

    @property
    def fingerprint(self) -> str:
        """A hash of all that determines the order beside seed and lanes; a single data set's own."""
        fingerprints = [dataset.manifest.fingerprint for dataset in self.datasets]
        if len(fingerprints) == 1:
            return fingerprints[0]
        parts = (f"{own} {lanes}\n" for own, lanes in zip(fingerprints, self.lanes_of, strict=True))
        return hashlib.sha256("".join(["mixture\n", *parts]).encode()).hexdigest()

    def plan(
        self, rank: int = 0, world_size: int = 1, start: int = 0, stop: int | None = None
    ) -> TrainingPlan:
        """What one rank reads from position `start` up to `stop` (None: without end)."""
        return TrainingPlan(self.order, rank, world_size, start, stop)

    def samples_seen_by_source(self, position: int) -> list[int]:
        """How many samples of each data set come before a position of the stream."""
        return [stream.seen_before(position) for stream in self.order.streams]

    def most_in_batch(self, global_batch: int) -> list[int]:
        """The most samples of each data set that a global batch can hold, wherever it begins."""
        return [stream.most_within(global_batch) for stream in self.order.streams]


def _shared_samples(one: Dataset, other: Dataset) -> str | None:
    """The name of a shard of which both data sets have the same sample."""
    numbers = {shard.sha256: number for number, shard in enumerate(one.manifest.shards)}
    for number, shard in enumerate(other.manifest.shards):
        if shard.sha256 in numbers:
            has, has_too = _selected(one, numbers[shard.sha256]), _selected(other, number)
            if len(has) != len(has_too) or (has & has_too).any():
                return shard.name
    return None


def _selected(dataset: Dataset, shard: int) -> np.ndarray:
    """Which samples of a shard the data set has: bool [samples of the shard]."""
    alone = dataset.single_shard(shard)
    return np.ones(len(alone), bool) if alone.selected is None else alone.selected
