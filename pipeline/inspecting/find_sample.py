"""Finding the sample of a key: by bisection where keys ascend, else in all blocks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from shards import DataError, Dataset, Sample, UsageError
from shards.tar import split_name

# Their keys ascend with the number of the sample.
_TOOLS_WITH_ASCENDING_KEYS = ("pipeline.shard",)
_THREADS = 8


def find_sample(dataset: Dataset, key: str) -> Sample:
    """The first sample with a key; UsageError, naming others near it, where there is none."""
    if dataset.manifest.made_by.get("tool") in _TOOLS_WITH_ASCENDING_KEYS:
        return _bisect(dataset, key)
    return _search(dataset, key)


def _bisect(dataset: Dataset, key: str) -> Sample:
    low, high = 0, len(dataset)  # the wanted number, if it is there, is in [low, high)
    before, after = "", ""
    while low < high:
        middle = (low + high) // 2
        sample = dataset.read_sample(middle)
        if sample.key == key:
            return sample
        if _rank(sample.key) < _rank(key):
            low, before = middle + 1, sample.key
        else:
            high, after = middle, sample.key
    neighbours = [repr(other) for other in (before, after) if other]
    near = f"its neighbour{'s are' if len(neighbours) > 1 else ' is'} {' and '.join(neighbours)}"
    raise UsageError(f"{dataset.folder.address}: no sample has the key {key!r}; {near}")


def _rank(key: str) -> tuple[int, str]:
    """Keys are numbers with leading zeros: of two lengths, the longer is the larger."""
    return len(key), key


def _search(dataset: Dataset, key: str) -> Sample:
    """Read every block until one has the key; damaged samples on the way are passed over, and counted."""
    name = key.rpartition("/")[2].encode("utf-8", "surrogateescape") + b"."
    damaged: list[str] = []

    def look(block: int) -> Sample | None:
        data = dataset.read_block(block)
        if name not in bytes(data):  # a hundred times faster than taking every block apart
            return None
        for slot in range(int(dataset.blocks.samples[block])):
            try:
                sample = dataset.sample(block, slot, data)
            except DataError as error:
                damaged.append(str(error))
                continue
            if sample.key == key:
                return sample
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        for group in _groups(len(dataset.blocks)):
            for sample in threads.map(look, group):
                if sample:
                    return sample
    example = dataset.read_sample(0).key
    more = f"; {len(damaged):,} samples are damaged, such as {damaged[0]}" if damaged else ""
    raise UsageError(
        f"{dataset.folder.address}: no sample has the key {key!r}; keys look like {example!r}"
        f"{_hint(key)}{more}"
    )


def _groups(blocks: int) -> Iterator[range]:
    """Runs of blocks that are read together: no more are read after the one with the key."""
    step = 2 * _THREADS
    return (range(first, min(first + step, blocks)) for first in range(0, blocks, step))


def _hint(key: str) -> str:
    stem, extension = split_name(key)
    return f" (without extension: {stem!r}?)" if extension else ""
