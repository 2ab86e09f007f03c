"""Blocks: the fixed rule by which shards are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.index import BLOCK_BYTES, BLOCK_SAMPLES, cut_blocks

KIB = 1024
lengths_of_shards = st.lists(
    st.lists(st.integers(1, 6 * 1024).map(lambda kib: kib * KIB), min_size=1, max_size=150),
    min_size=1,
    max_size=4,
)


def cut(shards: list[list[int]]):
    return cut_blocks(
        np.array([n for shard in shards for n in shard], np.uint32), np.array([len(s) for s in shards])
    )


@given(lengths_of_shards)
def test_blocks_hold_every_sample_once_within_the_limits(shards):
    blocks = cut(shards)
    lengths = np.array([n for shard in shards for n in shard])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    shard_of = np.repeat(np.arange(len(shards)), [len(s) for s in shards])
    shard_start = np.concatenate([[0], np.cumsum([sum(s) for s in shards])])
    expected_first = 0
    for i in range(len(blocks)):
        first, count = int(blocks.first_sample[i]), int(blocks.samples[i])
        assert first == expected_first
        assert 1 <= count <= BLOCK_SAMPLES
        assert set(shard_of[first : first + count]) == {blocks.shard[i]}
        assert blocks.length[i] == ends[first + count] - ends[first]
        assert blocks.offset[i] == ends[first] - shard_start[blocks.shard[i]]
        assert blocks.length[i] <= BLOCK_BYTES or count == 1
        expected_first += count
    assert expected_first == len(lengths)


@given(st.lists(st.integers(1, 4096).map(lambda kib: kib * KIB), min_size=1, max_size=300))
def test_blocks_are_as_few_as_the_limits_allow_and_the_fullest_is_least_full(lengths):
    def needed(limit_bytes: float, limit_samples: float) -> int:
        count, size, samples = 1, 0, 0
        for length in lengths:
            if size + length > limit_bytes or samples + 1 > limit_samples:
                count, size, samples = count + 1, 0, 0
            size, samples = size + length, samples + 1
        return count

    blocks = cut([lengths])
    fewest = needed(BLOCK_BYTES, BLOCK_SAMPLES)
    assert len(blocks) == fewest
    fullness = np.maximum(blocks.length / BLOCK_BYTES, blocks.samples / BLOCK_SAMPLES)
    fullest = float(fullness.max())
    below = fullest * (1 - 1e-9)
    assert max(lengths) > below * BLOCK_BYTES or needed(below * BLOCK_BYTES, below * BLOCK_SAMPLES) > fewest


@pytest.mark.parametrize(
    ("count", "kib", "sizes"),
    [
        (1000, 2, [63] * 15 + [55]),
        (128, 2, [64, 64]),
        (129, 2, [43, 43, 43]),
        (80, 100, [40, 40]),
        (1, 9000, [1]),
    ],
)
def test_examples(count, kib, sizes):
    assert cut([[kib * KIB] * count]).samples.tolist() == sizes


def test_large_sample_is_a_block_of_its_own():
    assert cut([[KIB, KIB, 5000 * KIB, KIB]]).samples.tolist() == [2, 1, 1]


def test_twenty_four_million_samples_are_cut_in_seconds():
    """A tenth of that here; the work is vectorised over shards."""
    lengths = np.tile(np.arange(20_000, 180_000, 160, dtype=np.uint32), 2_400)
    assert len(cut_blocks(lengths, np.full(2_400, 1000))) > 50_000
