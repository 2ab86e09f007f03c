"""Fetching: the blocks a plan will need, read ahead in order of first use, handed on sample by sample.

Two limits hold memory: the blocks in use (the window: one block for each lane the rank reads), and those
fetched ahead of their first use (`prefetch_bytes`). Lanes that are in the same block share it.
"""

import heapq
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from shards.dataset import Dataset, Sample

# For all processes of a machine together.
DEFAULT_PREFETCH_BYTES = 2 * 2**30


class Plan(Protocol):
    """Which samples to read in which order; see `shards.order.TrainingPlan` and `EvaluationPlan`."""

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(position, epoch, block, slot) of each sample, in order."""

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position), in order of first use, covering all places."""

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """The slots that may stand in for a sample that cannot be decoded."""


@dataclass(frozen=True)
class RawSample:
    """A sample whose block is in memory: where it stands in the stream and how to read it."""

    dataset: Dataset
    position: int
    epoch: int
    block: int
    slot: int
    data: memoryview

    @property
    def number(self) -> int:
        """The sample's number in the data set, in manifest order: its id."""
        return int(self.dataset.blocks.first_sample[self.block]) + self.slot

    def read(self, slot: int | None = None) -> Sample:
        """The sample's members (or those of another slot of its block), checked and parsed on the calling
        thread.
        """
        return self.dataset.sample(self.block, self.slot if slot is None else slot, self.data)


@dataclass
class _LiveBlock:
    future: "Future[memoryview]"
    last: int  # the last position that needs it
    bytes: int
    begun: bool = False


@dataclass
class FetchStats:
    """What fetching has done so far."""

    blocks: int = 0
    bytes: int = 0
    busy: float = 0.0  # seconds, over all fetching threads
    waited: float = 0.0  # seconds the stream had no block to hand on


class SampleStream:
    """The samples of a plan, in order. Iterate once; `close` (or leave a `with`) to stop the fetching
    threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        *,
        prefetch_bytes: int = DEFAULT_PREFETCH_BYTES,
        fetch_threads: int = 8,
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.stats = FetchStats()
        self._prefetch_bytes = prefetch_bytes
        self._visits = iter(plan.visits())
        self._upcoming = next(self._visits, None)
        self._live: dict[int, _LiveBlock] = {}
        self._endings: list[tuple[int, int]] = []  # heap of (last position, block)
        self._ahead = 0  # bytes fetched or under way that no sample was taken from yet
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(fetch_threads, thread_name_prefix="fetch")

    def __enter__(self) -> "SampleStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop fetching; reads under way are waited for, those not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, block: int) -> memoryview:
        begin = time.perf_counter()
        data = self.dataset.read_block(block)
        with self._lock:
            self.stats.busy += time.perf_counter() - begin
            self.stats.blocks += 1
            self.stats.bytes += len(data)
        return data

    def _fetch_ahead(self, position: int) -> None:
        """Start every fetch that the limit allows, and at least those that `position` needs."""
        while self._upcoming:
            block, first, last = self._upcoming
            if first > position + len(
                self.dataset
            ):  # a small data set lies in memory whole: no need to look further
                return
            live = self._live.get(block)
            if live:
                live.last = max(live.last, last)
            else:
                size = int(self.dataset.blocks.length[block])
                if first > position and self._ahead + size > self._prefetch_bytes:
                    return
                live = self._live[block] = _LiveBlock(self._pool.submit(self._fetch, block), last, size)
                self._ahead += size
            heapq.heappush(self._endings, (live.last, block))
            self._upcoming = next(self._visits, None)

    def _release(self, position: int) -> None:
        """Let go of the blocks that nothing from `position` on needs."""
        while self._endings and self._endings[0][0] < position:
            last, block = heapq.heappop(self._endings)
            live = self._live.get(block)
            if live and live.last == last:
                del self._live[block]

    def __iter__(self) -> Iterator[RawSample]:
        for position, epoch, block, slot in self.plan.places():
            self._release(position)
            live = self._live.get(block)
            if not live or not live.begun:
                self._fetch_ahead(position)
                live = self._live[block]
                begin = time.perf_counter()
                live.future.result()
                self.stats.waited += time.perf_counter() - begin
                if not live.begun:
                    live.begun = True
                    self._ahead -= live.bytes
                    self._fetch_ahead(position)
            yield RawSample(self.dataset, position, epoch, block, slot, live.future.result())
