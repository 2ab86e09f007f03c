"""Fetching: the blocks a plan will need, read ahead in order of first use, handed on sample by sample.

Two limits hold memory: the blocks in use (the window: one block for each lane the rank reads), and those
fetched ahead of their use (`prefetch_bytes`). Lanes that are in the same block share it.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from shards.disk_cache import DiskCache
from shards.fetching import Fetch, FetchStats, FetchThreads, Purpose, UnderWay
from shards.held_block import BlockSource, HeldBlock, SingleSample
from shards.sample import Sample
from shards.sample_place import SamplePlace
from shards.storage import is_remote
from shards.wait_clock import WaitClock
from shards.watchdog import Patience, Watchdog

# For all processes of a machine together.
DEFAULT_PREFETCH_BYTES = 2 * 2**30

__all__ = [
    "DEFAULT_PREFETCH_BYTES",
    "BlockSource",
    "FetchStats",
    "Plan",
    "RawSample",
    "SampleStream",
    "UnderWay",
]


class Plan(Protocol):
    """Which samples to read in which order; see `shards.plans.TrainingPlan` and `EvaluationPlan`."""

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(position, epoch, block, slot) of each sample, in order."""

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position), in order of first use, covering all places."""

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for a sample that cannot be decoded."""


@dataclass(slots=True)
class RawSample:
    """A sample whose bytes are in memory: where it stands in the stream and how to read it."""

    position: int
    epoch: int
    block: int
    slot: int
    held: HeldBlock

    @property
    def dataset(self) -> BlockSource:
        """The data set that the block's number is of."""
        return self.held.dataset

    @property
    def number(self) -> int:
        """The sample's number in the data set, in manifest order: its id."""
        return self.held.first_sample + self.slot

    def read(self, slot: int | None = None) -> Sample:
        """The sample's members (or those of another slot of its block), checked and parsed on the calling
        thread.

        Where its bytes are not what the manifest says, the block is fetched again, once; DamagedSample where
        that does not help. CancelledError where the stream is closed meanwhile.
        """
        return self.held.sample(self.slot if slot is None else slot)


@dataclass(slots=True)
class _Stay:
    """A block's stay in memory: from the first of its visits known so far to the last."""

    held: HeldBlock
    bytes: int
    last: int  # the last position that needs it
    begins: deque[int] = field(default_factory=deque)  # of the visits to come that it waits for
    next_begin: float = math.inf


class SampleStream:
    """The samples of a plan, in order. Iterate once; `close` (or leave a `with`) to stop the fetching
    threads; whoever waits then gets CancelledError.

    prefetch_bytes: of blocks fetched (or kept) ahead of their use. cache: for remote blocks. head_start: so
    many samples at the start are read on their own, before whole blocks, where that is much less to read.
    patience: of waits for a block, which say on standard error what they wait for and end in a DataError.
    """

    def __init__(
        self,
        dataset: BlockSource,
        plan: Plan,
        *,
        prefetch_bytes: int = DEFAULT_PREFETCH_BYTES,
        fetch_threads: int = 8,
        cache: DiskCache | None = None,
        head_start: int = 64,
        patience: Patience | None = None,
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.stats = FetchStats(fetch_threads)
        self._prefetch_bytes, self._head_start, self._cache = prefetch_bytes, head_start, cache
        self._watchdog, self._waits = Watchdog(patience or Patience()), WaitClock()
        self._threads = FetchThreads(self.stats)
        self._visits = iter(plan.visits())
        self._upcoming = next(self._visits, None)
        self._stays: dict[int, _Stay] = {}
        self._endings: list[tuple[int, int]] = []  # heap of (last position, block)
        self._singles: dict[int, dict[int, SingleSample]] = {}  # by block and slot, until the block is held

    def __enter__(self) -> "SampleStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop fetching, within a second: reads that hang are left behind."""
        self._threads.close()

    def stats_now(self) -> FetchStats:
        """A copy of `stats` as it stands now, with a wait that has not ended yet."""
        return replace(self.stats, waited=self._waits.seconds)

    def under_way(self) -> list[UnderWay]:
        """What every fetching thread at work is doing, the longest first."""
        return self._threads.under_way()

    @property
    def queued(self) -> int:
        """How many fetches wait for a thread."""
        return self._threads.queued

    def __iter__(self) -> Iterator[RawSample]:
        self._fetch_singles()
        stays, endings = self._stays, self._endings
        for position, epoch, block, slot in self.plan.places():
            if endings and endings[0][0] < position:
                self._release(position)
            stay = stays.get(block)
            if stay is None or position >= stay.next_begin:
                stay = self._enter(block, position)
            held = stay.held
            if not held.is_whole:
                with self._waits.running():
                    held.wait(slot)
                self.stats.waited = self._waits.seconds
            yield RawSample(position, epoch, block, slot, held)

    def _enter(self, block: int, position: int) -> _Stay:
        """Begin a visit; what it frees of the limit is used to fetch more."""
        if block not in self._stays:
            self._fetch_ahead(position)
        stay = self._stays[block]
        if stay.next_begin <= position:
            stay.begins.popleft()
            stay.next_begin = stay.begins[0] if stay.begins else math.inf
            if not stay.begins:
                self.stats.ahead -= stay.bytes
        self._fetch_ahead(position)
        return stay

    def _fetch_ahead(self, position: int) -> None:
        """Start every fetch that the limit allows, and at least those that `position` needs."""
        stats = self.stats
        # From one use of a block to the next there may be two epochs of its data set. One that is read alone
        # stays in memory whole where the limit has room for it, and there is nothing to look for beyond. In a
        # mixture, blocks of a data set of small weight come round later than that: they are let go in between
        # and fetched again, and the room is left to what is needed sooner.
        horizon = position + 2 * len(self.dataset)
        while self._upcoming and self._upcoming[1] <= horizon:
            block, first, last = self._upcoming
            stay = self._stays.get(block)
            size = int(self.dataset.blocks.length[block])
            is_ahead = first > position and (stay is None or first > stay.last)
            counts = is_ahead and not (stay and stay.begins)
            if counts and stats.ahead + size > self._prefetch_bytes:
                return
            if stay is None:
                stay = self._stays[block] = _Stay(self._hold(block), size, last)
                stats.held += size
            if is_ahead:
                stay.begins.append(first)
                stay.next_begin = stay.begins[0]
            if counts:
                stats.ahead += size
            stay.last = max(stay.last, last)
            heapq.heappush(self._endings, (stay.last, block))
            self._upcoming = next(self._visits, None)
            stats.held_peak = max(stats.held_peak, stats.held)
            stats.ahead_peak = max(stats.ahead_peak, stats.ahead)

    def _release(self, position: int) -> None:
        """Let go of the blocks that nothing from `position` on needs."""
        while self._endings and self._endings[0][0] < position:
            last, block = heapq.heappop(self._endings)
            stay = self._stays.get(block)
            if stay and stay.last == last:
                del self._stays[block]
                self.stats.held -= stay.bytes

    def _hold(self, block: int) -> HeldBlock:
        return HeldBlock(self.dataset, block, self._fetch, self._wait_for, self._singles.pop(block, {}))

    def _fetch(self, held: HeldBlock, again: bool) -> Fetch:
        """Have a block read."""
        block = held.number
        offset, length = int(self.dataset.blocks.offset[block]), int(self.dataset.blocks.length[block])
        what = _describe_bytes(self.dataset.shard_address(block), offset, length)

        def read() -> memoryview:
            data = self._read(block, again)
            held.drop_singles()
            return data

        return self._threads.submit(Purpose.SECOND_COPY if again else Purpose.BLOCK, what, read)

    def _read(self, block: int, again: bool) -> memoryview:
        """A block's bytes; `again`: not those that are cached."""
        key = self._cache_key(block)
        if self._cache is None or key is None:
            return self.dataset.read_block(block)
        if again:
            data = self.dataset.read_block(block)  # first: another process may put the damaged one back
            self._cache.remove(key)
            self._cache.put(key, data)
            return data
        length = int(self.dataset.blocks.length[block])
        return self._cache.get_or_read(key, length, lambda: self.dataset.read_block(block))

    def _cache_key(self, block: int) -> str | None:
        """What a block is called in the cache; None where it is not to be there."""
        address = self.dataset.shard_address(block)
        if self._cache is None or not is_remote(address):
            return None
        source = self.dataset.sources[self.dataset.source(block)]
        return f"{source.manifest.fingerprint}/{address} {self.dataset.blocks.offset[block]}"

    def _fetch_singles(self) -> None:
        """Have the first samples read on their own, where that is much less to read than their blocks and
        those are not at hand.
        """
        wanted: dict[int, dict[int, None]] = {}  # slots by block, each once, in order of first use
        for _, _, block, slot in islice(self.plan.places(), self._head_start):
            wanted.setdefault(block, {})[slot] = None
        blocks = self.dataset.blocks
        for block, slots in wanted.items():
            if self._cache is not None and self._cache_key(block) in self._cache:
                continue
            places = [self.dataset.place(int(blocks.first_sample[block]) + slot) for slot in slots]
            if 2 * sum(place.length for place in places) <= int(blocks.length[block]):
                self._singles[block] = {
                    slot: self._fetch_single(place) for slot, place in zip(slots, places, strict=True)
                }

    def _fetch_single(self, place: SamplePlace) -> SingleSample:
        what = _describe_bytes(place.folder.locate(place.shard), place.offset, place.length)
        return SingleSample(place, self._threads.submit(Purpose.SAMPLE, what, place.fetch))

    def _wait_for(self, fetch: Fetch) -> None:
        """Wait until a fetch has ended, with a watchdog's eye on it."""
        if not fetch.wait(0):
            self._watchdog.wait(fetch.wait, lambda: self._describe_wait(fetch))

    def _describe_wait(self, fetch: Fetch) -> str:
        if fetch.has_begun:
            return f"fetch of {fetch.under_way()}"
        oldest = self.under_way()
        busy = f": its threads are busy, for the longest with {oldest[0]}" if oldest else ""
        return f"fetch of {fetch.what}, which has not begun{busy}"


def _describe_bytes(address: str, offset: int, length: int) -> str:
    return f"{address}, bytes {offset:,} to {offset + length:,}"
