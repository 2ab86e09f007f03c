"""A block that a stream holds: on its way or in memory, fetched again once where its bytes are damaged."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shards.dataset import Dataset
from shards.errors import DamagedSample
from shards.fetching import Fetch
from shards.index import Blocks
from shards.sample import Sample
from shards.sample_place import SamplePlace


class BlockSource(Protocol):
    """What a stream asks of a data set, or of several joined to one; see `shards.Dataset`."""

    @property
    def blocks(self) -> Blocks:
        """The blocks, in the numbering that plans use."""

    @property
    def sources(self) -> Sequence[Dataset]:
        """The data sets that it is made of."""

    def source(self, block: int) -> int:
        """Which of `sources` a block is of."""

    def __len__(self) -> int:
        """Samples."""

    def shard_address(self, block: int) -> str:
        """The address of the shard that a block lies in."""

    def read_block(self, block: int) -> memoryview:
        """All bytes of a block."""

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample in a slot of a block whose bytes are `data`; DamagedSample where they were changed."""

    def place(self, number: int) -> SamplePlace:
        """Where the sample of a number lies."""


@dataclass(frozen=True)
class SingleSample:
    """A sample that is read on its own, at a start."""

    place: SamplePlace
    fetch: Fetch


class HeldBlock:
    """A block's bytes. fetch: has them read; with True, from the storage again whatever is cached. wait_for:
    waits until a fetch has ended. singles: by slot, samples that are read on their own meanwhile.

    `sample` and `wait` may be called from several threads at once.
    """

    def __init__(
        self,
        dataset: BlockSource,
        number: int,
        fetch: Callable[["HeldBlock", bool], Fetch],
        wait_for: Callable[[Fetch], None],
        singles: Mapping[int, SingleSample],
    ) -> None:
        self.dataset = dataset
        self.number = number
        self.first_sample = int(dataset.blocks.first_sample[number])
        self._fetch, self._wait_for, self._singles = fetch, wait_for, singles
        self._lock = threading.Lock()
        self._fetched_again = False
        self._whole = fetch(self, False)

    @property
    def is_whole(self) -> bool:
        """Whether its bytes are there."""
        return self._whole.data is not None

    def drop_singles(self) -> None:
        """Go on without the samples read on their own: the whole block has come."""
        for single in self._singles.values():
            single.fetch.give_up()
        self._singles = {}

    def wait(self, slot: int) -> None:
        """Wait until a sample's bytes are there; raises what reading them raised."""
        if single := self._singles.get(slot):
            self._wait_for(single.fetch)
            if single.fetch.data is not None:
                return
        self._bytes(self._whole)

    def sample(self, slot: int) -> Sample:
        """The sample in a slot; DamagedSample where it is not what was written even in a second copy."""
        single = self._singles.get(slot)
        if single and single.fetch.data is not None:
            with suppress(DamagedSample):  # the whole block, which is on its way, is the second copy
                return single.place.parse(single.fetch.data)
        whole = self._whole
        try:
            return self.dataset.sample(self.number, slot, self._bytes(whole))
        except DamagedSample:
            second = self._second_copy(whole)
            if second is whole:
                raise
        return self.dataset.sample(self.number, slot, self._bytes(second))

    def _bytes(self, fetch: Fetch) -> memoryview:
        if fetch.data is None:
            self._wait_for(fetch)
        return fetch.result()

    def _second_copy(self, damaged: Fetch) -> Fetch:
        """What to go by instead of a fetch that brought damaged bytes; that same one where it is the last."""
        with self._lock:
            if not self._fetched_again:
                self._fetched_again = True
                self._whole = self._fetch(self, True)
            return self._whole
