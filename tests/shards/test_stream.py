"""The stream over real files: what it holds in memory, damaged blocks, and its end."""

import subprocess
import sys
import weakref
from itertools import islice

import numpy as np
import pytest

from shards import (
    DamagedSample,
    DataError,
    Dataset,
    EvaluationPlan,
    Folder,
    Order,
    SampleStream,
    TrainingPlan,
    open_dataset,
    write_manifest,
    write_shard,
)

SHARDS, SHARD_SAMPLES = 60, 8


def content(number: int) -> dict[str, bytes]:
    """A sample of about 10 kB."""
    pixels = np.random.default_rng(number).bytes(9_000 + 37 * (number % 50))
    return {"jpg": pixels, "txt": f"caption {number}".encode()}


def write(folder: Folder, shards: int = SHARDS) -> Folder:
    """Shards of 8 samples, each one block of about 100 kB."""
    written = []
    for shard in range(shards):
        numbers = range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES)
        samples = ((f"{number:09d}", content(number)) for number in numbers)
        written.append(write_shard(folder, f"d-{shard:06d}.tar", samples))
    write_manifest(folder, written, {})
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A data set of 60 blocks; tests leave it as it is."""
    return write(Folder(tmp_path_factory.mktemp("stream") / "d")).address


class Bytes(bytearray):
    """Bytes that can be watched."""


class WatchedDataset(Dataset):
    """A data set that knows which of the blocks that it ever read are still in memory."""

    def __init__(self, dataset: Dataset) -> None:
        self.__dict__.update(vars(dataset))
        self.read: list[weakref.ref[Bytes]] = []

    def read_block(self, block: int) -> memoryview:
        data = Bytes(super().read_block(block))
        self.read.append(weakref.ref(data))
        return memoryview(data)

    def bytes_alive(self) -> int:
        """Bytes of the blocks that are in memory."""
        return sum(len(data) for data in (block() for block in list(self.read)) if data is not None)


@pytest.mark.parametrize("lanes", [1, 7])
@pytest.mark.parametrize("blocks_ahead", [0, 3, 20])
def test_memory_holds_the_blocks_in_use_and_what_may_be_ahead_and_no_more(address, lanes, blocks_ahead):
    dataset = WatchedDataset(open_dataset(address))
    largest, samples = int(dataset.blocks.length.max()), len(dataset)
    order = Order(dataset.blocks.samples, seed=1, lanes=lanes)
    plan = TrainingPlan(order, start=samples // 2, stop=3 * samples)
    bound = blocks_ahead * largest
    visits = list(plan.visits())
    with SampleStream(dataset, plan, prefetch_bytes=bound, fetch_threads=3, head_start=0) as stream:
        for raw in stream:
            in_use = {block for block, first, last in visits if first <= raw.position <= last}
            allowed = sum(int(dataset.blocks.length[block]) for block in in_use) + bound
            assert stream.stats.held <= allowed
            assert dataset.bytes_alive() <= allowed
            assert raw.read().key == f"{raw.number:09d}"
        stats = stream.stats
        assert 0 <= bound - stats.ahead_peak < largest or not bound  # used, and never passed
        assert stats.ahead_peak <= bound
        assert stats.held_peak <= (lanes + 1) * largest + bound
        assert stats.ahead == 0
    del raw
    assert dataset.bytes_alive() <= largest


def test_a_small_data_set_is_read_once_and_stays(address):
    dataset = open_dataset(address)
    plan = TrainingPlan(Order(dataset.blocks.samples, lanes=4), stop=5 * len(dataset))
    with SampleStream(dataset, plan, head_start=0) as stream:
        assert sum(1 for _ in stream) == 5 * len(dataset)
    assert stream.stats.blocks == len(dataset.blocks)  # threads count after they have handed on
    assert stream.stats.held_peak == int(dataset.blocks.length.sum())


@pytest.mark.slow
def test_the_process_stays_small_over_a_large_data_set(tmp_path):
    code = f"""
import resource, sys
import numpy as np
from shards import *
folder, image = Folder({str(tmp_path / "large")!r}), np.random.default_rng(0).bytes(100_000)
written = [
    write_shard(folder, f"d-{{s}}.tar", ((f"{{s}}-{{n}}", {{"jpg": image, "txt": b"a"}}) for n in range(400)))
    for s in range(5)
]
write_manifest(folder, written, {{}})
dataset = open_dataset(folder.address)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = TrainingPlan(Order(dataset.blocks.samples, lanes=4), stop=2 * len(dataset))
with SampleStream(dataset, plan, prefetch_bytes=20_000_000, fetch_threads=2) as stream:
    assert sum(1 for raw in stream if raw.read()) == 4000
    peak = stream.stats.held_peak
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(int(dataset.blocks.length.sum()), peak, 1024 * grown)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    everything, peak, grown = map(int, done.stdout.split())
    assert everything > 200_000_000
    assert 20_000_000 < peak < 40_000_000  # what is ahead, and 4 blocks of 4 MB in use
    assert grown < peak + 32_000_000  # what the C library keeps for the fetching threads


def test_a_block_damaged_on_disk_costs_its_sample_and_is_read_twice(tmp_path):
    folder = write(Folder(tmp_path / "d"), shards=2)
    with open(tmp_path / "d" / "d-000001.tar", "r+b") as file:
        file.seek(3_000)
        file.write(b"!")
    dataset = open_dataset(folder.address)
    damaged = []
    with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples)) as stream:
        for raw in stream:
            try:
                assert raw.read().key == f"{raw.number:09d}"
            except DamagedSample as error:
                damaged.append(str(error))
                assert raw.read(3).key == "000000011"  # its neighbours are whole
        assert stream.stats.refetched == 1
    assert len(damaged) == 1
    assert f"{folder.address}/d-000001.tar: the sample at byte 0 is not what was written" in damaged[0]


def test_a_missing_shard_ends_the_stream_where_it_is_needed_with_place_and_remedy(tmp_path):
    folder = write(Folder(tmp_path / "d"), shards=3)
    dataset = open_dataset(folder.address)
    folder.delete("d-000001.tar")
    with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples)) as stream:
        raws = iter(stream)
        assert [raw.number for raw in islice(raws, 8)] == list(range(8))
        with pytest.raises(
            DataError, match=r"d-000001\.tar: the manifest lists this shard, but it is not there"
        ):
            next(raws)


class OneSample:
    """A plan that reads one sample again and again."""

    def places(self):
        return ((position, position, 2, 5) for position in range(3))

    def visits(self):
        return iter([(2, 0, 2)])

    def substitutes(self, epoch, block, slot):
        return []


def test_a_sample_that_comes_again_in_the_head_start_is_read_on_its_own_once(address):
    dataset = open_dataset(address)
    number = int(dataset.blocks.first_sample[2]) + 5
    with SampleStream(dataset, OneSample(), fetch_threads=1) as stream:
        assert [raw.read().key for raw in stream] == [f"{number:09d}"] * 3
        for block in stream._threads._threads:  # until all that is queued has been read
            while stream.queued or stream.under_way():
                block.join(0.01)
        assert stream.stats.bytes == dataset.place(number).length + int(dataset.blocks.length[2])
