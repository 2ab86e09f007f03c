"""What samples are called outside of their data set: by key, wherever they lie and in whatever order.

A key that several samples have (in tars of others, each of which may count from 0) is followed by `@` and the
checksum of the sample's bytes, as the data set holds it: `000042@9f31c2aa`.
"""

import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from pipeline.evaluation.gathering import gather_list
from pipeline.topology import Topology
from shards import Dataset, EvaluationPlan
from shards.sample_place import SamplePlace
from shards.tar import RECORD, is_hidden, split_name

_THREADS = 8


def make_ids(keys: Sequence[str], checksums: np.ndarray) -> list[str]:
    """The ids of samples with these keys and checksums (uint32 [N])."""
    repeated = {key for key, count in Counter(keys).items() if count > 1}
    if not repeated:
        return list(keys)
    return [
        f"{key}@{checksum:08x}" if key in repeated else key
        for key, checksum in zip(keys, checksums.tolist(), strict=True)
    ]


def hash_ids(ids: Sequence[str]) -> np.ndarray:
    """A hash of each id (or key): uint64 [N]."""
    encoded = (name.encode("utf-8", "surrogateescape") for name in ids)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(ids))


def checksums_of(dataset: Dataset) -> np.ndarray:
    """The checksum of every sample of a data set or view: uint32 [N]."""
    return dataset.checksums if dataset.selected is None else dataset.checksums[dataset.selected]


def read_keys(dataset: Dataset, topology: Topology) -> list[str]:
    """The keys of all samples, in manifest order; each rank reads its share, and all get them.

    Of a local sample only the first header is read, of a remote one its whole block: a request costs more
    than the bytes.
    """
    plan = EvaluationPlan(dataset.blocks.samples, topology.rank, topology.world_size)
    with ThreadPoolExecutor(_THREADS) as threads:
        if any(folder.remote for folder in dataset.folders):
            visits = list(plan.visits())
            parts = threads.map(lambda visit: _keys_of_block(dataset, *visit), visits)
            own = [key for part in parts for key in part]
        else:
            own = [_key_at(dataset.place(number)) for number in range(*plan.span)]
    return gather_list(own, topology)


def _keys_of_block(dataset: Dataset, block: int, first: int, last: int) -> list[str]:
    data, begin = dataset.read_block(block), int(dataset.blocks.first_sample[block])
    return [dataset.sample(block, number - begin, data).key for number in range(first, last + 1)]


def _key_at(place: SamplePlace) -> str:
    head = place.folder.read_range(place.shard, place.offset, RECORD, file_bytes=place.shard_bytes)
    try:
        member = tarfile.TarInfo.frombuf(bytes(head), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return place.read().key  # which says what is wrong with it
    plain = member.isreg() and not is_hidden(member.name)
    return split_name(member.name)[0] if plain else place.read().key
