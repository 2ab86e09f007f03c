"""The index of a data set: the byte length of every sample, and the blocks that follow from it.

A block is the unit of input: one ranged read brings it whole. The rule that cuts shards into blocks is part
of the order of samples, so it must never change for a format version.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK_SAMPLES = 64
BLOCK_BYTES = 4 * 2**20
# A sample counts for at least this much of a block, which turns the two limits into one.
_BYTES_PER_SLOT = BLOCK_BYTES // BLOCK_SAMPLES
# Positions after the last sample that no block reaches, so that a search may look past the end.
_BEYOND = np.full(2 * BLOCK_SAMPLES, np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Blocks:
    """All blocks of a data set in manifest order, as parallel arrays of one entry a block."""

    shard: np.ndarray  # int32, number of the shard
    first_sample: np.ndarray  # int64, number of the block's first sample in the data set
    samples: np.ndarray  # int64, samples of the data set (in a view, others may lie between them)
    offset: np.ndarray  # int64, byte in the shard where it starts
    length: np.ndarray  # int64, bytes
    first_row: np.ndarray  # int64, place of the block's first sample in the index

    def __len__(self) -> int:
        return len(self.shard)


def cut_blocks(lengths: np.ndarray, shard_samples: np.ndarray) -> Blocks:
    """Cut each shard into blocks: runs of whole samples of at most 64 samples and 4 MiB, as equal as
    possible.

    lengths: uint32 [samples], bytes of every sample; shard_samples: int64 [shards], samples of every shard.

    A shard gets as few blocks as those limits allow; among the cuts into that many, the one whose fullest
    block is least full (fullness: samples/64 or bytes/4 MiB, whichever is more), filled from the left. A
    sample of more than 4 MiB is a block of its own.
    """
    shard_samples = np.asarray(shard_samples, np.int64)
    shard_ends = np.cumsum(shard_samples)
    ends = _byte_positions(lengths)
    large = np.flatnonzero(np.asarray(lengths) > BLOCK_BYTES)
    # A segment is a run without large samples inside one shard, or a large sample; blocks never cross
    # segments.
    edges = np.unique(np.concatenate([[0], shard_ends, large, large + 1]))
    edges = edges[edges <= len(lengths)]
    starts, stops = edges[:-1], edges[1:]
    fewest = _count(starts, stops, ends, np.full(len(starts), BLOCK_BYTES))
    # Only fills that are sums of lengths differ: in a tar, multiples of 512.
    unit = _lowest_bit(int(np.bitwise_or.reduce(lengths)) | _BYTES_PER_SLOT)
    low = np.full(len(starts), _BYTES_PER_SLOT - unit)  # a fill that may be too small for `fewest` blocks
    high = np.full(len(starts), BLOCK_BYTES)  # a fill that is large enough
    while np.any(high - low > unit):
        middle = (low + high) // (2 * unit) * unit
        enough = _count(starts, stops, ends, middle, fewest) <= fewest
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    firsts = np.sort(np.concatenate(list(_cuts(starts, stops, ends, high)) or [np.zeros(0, np.int64)]))
    lasts = np.concatenate([firsts[1:], [len(lengths)]]) if len(firsts) else firsts
    shard = np.searchsorted(shard_ends, firsts, side="right")
    shard_begin = ends[shard_ends - shard_samples]
    return Blocks(
        shard=shard.astype(np.int32),
        first_sample=firsts,
        samples=lasts - firsts,
        offset=ends[firsts] - shard_begin[shard],
        length=ends[lasts] - ends[firsts],
        first_row=firsts,
    )


def select_blocks(blocks: Blocks, lengths: np.ndarray, selected: np.ndarray) -> Blocks:
    """The blocks of a view: those that hold a selected sample, each from its first such sample to its last.

    lengths: uint32 [indexed samples]; selected: bool [indexed samples]. In the result `samples` counts, and
    `first_sample` numbers, selected samples only.
    """
    before = np.concatenate([[0], np.cumsum(selected)])  # selected samples before each indexed one
    first_selected, last_selected = before[blocks.first_sample], before[blocks.first_sample + blocks.samples]
    kept = last_selected > first_selected
    rows = np.flatnonzero(selected)
    first, last = rows[first_selected[kept]], rows[last_selected[kept] - 1]
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Blocks(
        shard=blocks.shard[kept],
        first_sample=first_selected[kept],
        samples=(last_selected - first_selected)[kept],
        offset=blocks.offset[kept] + ends[first] - ends[blocks.first_sample[kept]],
        length=ends[last + 1] - ends[first],
        first_row=first,
    )


def _byte_positions(lengths: np.ndarray) -> np.ndarray:
    """The byte position before each sample, that after the last and, beyond, positions that no block reaches:
    int64 [samples + 1 + beyond].
    """
    ends = np.empty(1 + len(lengths) + len(_BEYOND), np.int64)
    ends[0] = 0
    np.cumsum(lengths, dtype=np.int64, out=ends[1 : 1 + len(lengths)])  # in place: there may be millions
    ends[1 + len(lengths) :] = _BEYOND
    return ends


def _lowest_bit(number: int) -> int:
    """The largest power of two that divides a number above 0."""
    return number & -number


def _next_cut(first: np.ndarray, stops: np.ndarray, ends: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Where a block that begins at sample `first` and may hold `fill` ends; every block takes at least one
    sample.

    ends: byte position before each sample and, at the end, `_BEYOND`.
    """
    cut, limit = first.copy(), ends[first] + fill
    step = BLOCK_SAMPLES  # no block has more, so the last sample that fits is searched for among so many
    while step:
        cut += step * (ends[cut + step] <= limit)
        step //= 2
    by_count = first + fill // _BYTES_PER_SLOT
    return np.minimum(np.maximum(np.minimum(cut, by_count), first + 1), stops)


def _count(
    starts: np.ndarray, stops: np.ndarray, ends: np.ndarray, fill: np.ndarray, limit: np.ndarray | None = None
) -> np.ndarray:
    """How many blocks each segment needs at this fill (or limit + 1 where it is more than `limit`)."""
    count = np.zeros(len(starts), np.int64)
    active = np.arange(len(starts))
    first = starts.copy()
    while len(active):
        first = _next_cut(first, stops[active], ends, fill[active])
        count[active] += 1
        going = first < stops[active]
        if limit is not None:
            going &= count[active] <= limit[active]
        active, first = active[going], first[going]
    return count


def _cuts(starts: np.ndarray, stops: np.ndarray, ends: np.ndarray, fill: np.ndarray) -> Iterator[np.ndarray]:
    """The first samples of the first blocks of all segments, then of the second ones, and so on."""
    first = starts
    while len(first):
        yield first
        following = _next_cut(first, stops, ends, fill)
        going = following < stops
        first, stops, fill = following[going], stops[going], fill[going]
