"""Some samples of shards that were just packed, to look at in the report."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np

from pipeline.sharding.dataset_report import Example
from shards import Folder, MemberNames, WrittenShard
from shards.sample import parse_sample

EXAMPLES = 48


def read_examples(folder: Folder, shards: Sequence[WrittenShard], count: int = EXAMPLES) -> list[Example]:
    """`count` samples from all over the shards (they are shuffled), or all where there are fewer."""
    stops = list(accumulate(shard.record.samples for shard in shards))
    numbers = np.unique(np.linspace(0, stops[-1] - 1, min(count, stops[-1])).astype(np.int64))

    def read(number: int) -> Example:
        place = int(np.searchsorted(stops, number, side="right"))
        written = shards[place]
        index = number - (stops[place] - written.record.samples)
        start = int(written.lengths[:index].sum(dtype=np.int64))
        data = folder.read_range(written.record.name, start, int(written.lengths[index]))
        sample = parse_sample(memoryview(data), MemberNames())
        return Example(sample.key, bytes(sample.image), sample.caption)

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(read, numbers.tolist()))
