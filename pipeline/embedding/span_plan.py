"""Which samples one process reads where pieces of a data set are wanted: runs in manifest order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Span = tuple[int, int]
"""The numbers of the first sample of a run and of the one after its last."""


@dataclass(frozen=True)
class SpanPlan:
    """Reads the samples of ascending spans, each exactly once. block_samples: samples of every block."""

    block_samples: np.ndarray
    spans: Sequence[Span]

    def _block_spans(self) -> Iterator[tuple[int, int, int, int]]:
        """(block, number of its first sample, first and last sample wanted of it)."""
        ends = np.cumsum(self.block_samples)
        for start, stop in self.spans:
            while start < stop:
                block = int(np.searchsorted(ends, start, side="right"))
                end = min(stop, int(ends[block]))
                yield block, int(ends[block] - self.block_samples[block]), start, end - 1
                start = end

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """(position, epoch 0, block, slot) of each sample, in order; positions are sample numbers."""
        for block, begin, first, last in self._block_spans():
            for position in range(first, last + 1):
                yield position, 0, block, position - begin

    def visits(self) -> Iterator[tuple[int, int, int]]:
        """(block, first position, last position), in order."""
        for block, _, first, last in self._block_spans():
            yield block, first, last

    def substitutes(self, epoch: int, block: int, slot: int) -> list[int]:
        """None: features are of the samples asked for, or of none."""
        return []


def share_of(pieces: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """The pieces that fall to one rank: a run of them, so that ranks hardly read the same blocks."""
    return pieces[rank * len(pieces) // world_size : (rank + 1) * len(pieces) // world_size]
