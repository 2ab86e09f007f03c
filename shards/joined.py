"""Several data sets seen as one: their blocks one after another."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from shards.dataset import Dataset, Sample, SamplePlace
from shards.index import Blocks


class Numbering:
    """One numbering of parts that have numbers of their own, from 0 on: one part's after another's.

    counts: how many numbers each part has.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.first = [sum(counts[:part]) for part in range(len(counts))]  # number of each part

    def part(self, number: int) -> int:
        """The part that a number is of."""
        return bisect_right(self.first, number) - 1

    def own(self, number: int) -> tuple[int, int]:
        """The part that a number is of, and its number there."""
        part = self.part(number)
        return part, number - self.first[part]


class JoinedDataset:
    """Data sets one after another, with one numbering of blocks and of samples; reads as a `Dataset` does."""

    def __init__(self, sources: Sequence[Dataset]) -> None:
        self.sources = tuple(sources)
        self._blocks = Numbering([len(source.blocks) for source in sources])
        self._samples = Numbering([len(source) for source in sources])

    @property
    def name(self) -> str:
        """The names of the data sets."""
        return "+".join(source.name for source in self.sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of all data sets, with shards, samples and rows numbered on from one to the next."""
        parts = [source.blocks for source in self.sources]
        shards = Numbering([len(source.manifest.shards) for source in self.sources]).first
        rows = Numbering([source.manifest.indexed_samples for source in self.sources]).first
        return Blocks(
            shard=np.concatenate([part.shard + np.int32(n) for part, n in zip(parts, shards, strict=True)]),
            first_sample=np.concatenate(
                [part.first_sample + n for part, n in zip(parts, self._samples.first, strict=True)]
            ),
            samples=np.concatenate([part.samples for part in parts]),
            offset=np.concatenate([part.offset for part in parts]),
            length=np.concatenate([part.length for part in parts]),
            first_row=np.concatenate([part.first_row + n for part, n in zip(parts, rows, strict=True)]),
        )

    def source(self, block: int) -> int:
        """Which of the data sets a block is of."""
        return self._blocks.part(block)

    def shard_address(self, block: int) -> str:
        """The address of the shard that a block lies in."""
        source, own = self._own(block)
        return source.shard_address(own)

    def read_block(self, block: int) -> memoryview:
        """All bytes of a block, in one ranged read; DataError where the shard is absent or cut short."""
        source, own = self._own(block)
        return source.read_block(own)

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample in a slot of a block whose bytes are `data`; DamagedSample where they were changed."""
        source, own = self._own(block)
        return source.sample(own, slot, data)

    def place(self, number: int) -> SamplePlace:
        """Where the sample of a number lies."""
        source, own = self._samples.own(number)
        return self.sources[source].place(own)

    def read_sample(self, number: int) -> Sample:
        """The sample of a number, read on its own."""
        return self.place(number).read()

    def _own(self, block: int) -> tuple[Dataset, int]:
        """The data set that a block is of, and the block's number there."""
        source, own = self._blocks.own(block)
        return self.sources[source], own
