"""The stream over S3 that fails: the first samples, damage on the way, waits that are told, a quick end."""

import re
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest

from shards import (
    DamagedSample,
    DataError,
    EvaluationPlan,
    Folder,
    Order,
    SampleStream,
    TrainingPlan,
    open_dataset,
    write_manifest,
    write_shard,
)
from shards.disk_cache import DiskCache
from shards.watchdog import Patience
from tests.fault_proxy import CORRUPT, HANG, UNAVAILABLE, faulty_s3, first

SHARDS, SHARD_SAMPLES, IMAGE_BYTES = 6, 20, 6_000


@pytest.fixture(scope="module")
def address(s3) -> str:
    """A data set of 6 blocks of 20 samples; tests leave it as it is."""
    folder, written = Folder(f"{s3}/stream/set"), []
    for shard in range(SHARDS):
        samples = (
            (f"{n:09d}", {"jpg": np.random.default_rng(n).bytes(IMAGE_BYTES), "txt": b"caption"})
            for n in range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES)
        )
        written.append(write_shard(folder, f"d-{shard:06d}.tar", samples))
    write_manifest(folder, written, {})
    return folder.address


def reads_block(line: str) -> bool:
    """Whether a request is for much more than a sample."""
    span = re.search(r"bytes=(\d+)-(\d+)$", line)
    return ".tar" in line and span is not None and int(span[2]) - int(span[1]) > 2 * IMAGE_BYTES


def fetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fetch"]


def wait_for(done) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start_consumer(stream: SampleStream) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that asks for a sample, and a list for the error with which that ends."""
    ended: list[BaseException] = []

    def consume() -> None:
        try:
            next(iter(stream))
        except BaseException as error:
            ended.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    return consumer, ended


def test_the_first_samples_come_before_any_whole_block(address):
    with faulty_s3(lambda _, line: HANG if reads_block(line) else None) as proxy:
        dataset = open_dataset(address)
        order = Order(dataset.blocks.samples, lanes=6)
        with SampleStream(dataset, TrainingPlan(order), head_start=12, fetch_threads=20) as stream:
            got = [(raw.number, raw.read().key) for raw in islice(stream, 12)]
            asked = {line for line, _ in proxy.met if ".tar" in line and not reads_block(line)}
    places = order.at(np.arange(12))
    numbers = dataset.blocks.first_sample[places.block] + places.slot
    assert got == [(number, f"{number:09d}") for number in numbers.tolist()]
    assert len(asked) == 12


def test_samples_that_fill_their_block_are_not_read_on_their_own(address):
    with faulty_s3() as proxy:
        dataset = open_dataset(address)
        with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples), head_start=40) as stream:
            assert [raw.read().key for raw in stream] == [f"{n:09d}" for n in range(SHARDS * SHARD_SAMPLES)]
        assert sum(".tar" in line for line, _ in proxy.met) == SHARDS


def test_bytes_damaged_on_the_way_are_fetched_again_once_whoever_meets_them(address):
    damages = first([CORRUPT], reads_block)
    with faulty_s3(damages) as proxy:
        dataset = open_dataset(address)
        with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples), fetch_threads=1) as stream:
            raws = list(stream)
            with ThreadPoolExecutor(16) as pool:
                # every thread reads the sample in the middle of the first block, in which the damage lies
                assert {s.key for s in pool.map(lambda _: raws[10].read(10), range(16))} == {"000000010"}
            assert [raw.read().key for raw in raws] == [f"{n:09d}" for n in range(SHARDS * SHARD_SAMPLES)]
            assert stream.stats.refetched == 1
        assert sum(map(reads_block, (line for line, _ in proxy.met))) == SHARDS + 1


def test_a_damaged_sample_of_the_head_start_is_taken_from_its_block(address):
    with faulty_s3(first([CORRUPT], lambda line: ".tar" in line and not reads_block(line))):
        dataset = open_dataset(address)
        plan = TrainingPlan(Order(dataset.blocks.samples, lanes=6), stop=60)
        with SampleStream(dataset, plan, head_start=1) as stream:
            assert [raw.read().key for raw in stream if raw.read().key != f"{raw.number:09d}"] == []
            assert stream.stats.refetched == 0


def test_bytes_damaged_each_time_are_a_damaged_sample(address):
    with faulty_s3(lambda _, line: CORRUPT if reads_block(line) else None):
        dataset = open_dataset(address)
        with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples)) as stream:
            raw = next(iter(stream))
            # the damage lies in the middle
            with pytest.raises(DamagedSample, match=r"d-000000\.tar: the sample at byte .* is not what was"):
                raw.read(SHARD_SAMPLES // 2)
            assert raw.read().key == "000000000"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (HANG, r"fetch of s3://\S+/d-000000\.tar, bytes 0 to [\d,]+ for \d s; "),
        (
            UNAVAILABLE,
            r"fetch of s3://\S+/d-000000\.tar, bytes 0 to .* for \d s, try \d: .*reduce your request",
        ),
    ],
)
def test_a_wait_is_told_with_place_and_trouble_and_ends_past_the_deadline(address, capfd, fault, said):
    with faulty_s3(lambda _, line: fault if ".tar" in line else None):
        dataset = open_dataset(address)
        plan, patience = EvaluationPlan(dataset.blocks.samples), Patience(0.4, 1.2)
        with (
            SampleStream(dataset, plan, head_start=0, patience=patience) as stream,
            pytest.raises(DataError, match=f"^gave up after waiting for 1 s on {said}"),
        ):
            next(iter(stream))
        told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("waiting for 0 s on fetch of s3://")


def test_a_wait_for_a_read_that_has_not_begun_names_what_keeps_the_threads_busy(address):
    with faulty_s3(lambda _, line: HANG if "d-000000.tar" in line else None):
        dataset = open_dataset(address)
        plan, patience = EvaluationPlan(dataset.blocks.samples), Patience(0.5, 1.0)
        held_up = SampleStream(dataset, plan, head_start=0, patience=patience, fetch_threads=1)
        with held_up as stream:
            with pytest.raises(DataError):
                next(iter(stream))
            block = held_up._stays[1].held
            with pytest.raises(DataError, match=r"d-000001.*, which has not begun: .* with s3://.*d-000000"):
                block.wait(0)


def test_what_is_under_way_can_be_seen(address):
    with faulty_s3(lambda _, line: HANG if ".tar" in line else None):
        dataset = open_dataset(address)
        with SampleStream(
            dataset, EvaluationPlan(dataset.blocks.samples), head_start=0, fetch_threads=2
        ) as stream:
            consumer, _ = start_consumer(stream)
            wait_for(lambda: len(stream.under_way()) == 2)
            assert [fetch.what.split("/")[-1].split(",")[0] for fetch in stream.under_way()] == [
                "d-000000.tar",
                "d-000001.tar",
            ]
            wait_for(lambda: stream.queued == SHARDS - 2)
        consumer.join(5)
        assert not consumer.is_alive()


@pytest.mark.parametrize("fault", [HANG, UNAVAILABLE])
def test_close_is_quick_while_reads_hang_or_wait_for_their_next_try(address, fault):
    before = set(fetch_threads())
    with faulty_s3(lambda _, line: fault if ".tar" in line else None):
        dataset = open_dataset(address)
        stream = SampleStream(dataset, EvaluationPlan(dataset.blocks.samples), head_start=0)
        consumer, ended = start_consumer(stream)
        wait_for(lambda: len(stream.under_way()) == SHARDS)
        begin = time.monotonic()
        stream.close()
        consumer.join(5)
        assert time.monotonic() - begin < 1
        assert [type(error) for error in ended] == [CancelledError]
    wait_for(lambda: set(fetch_threads()) <= before)  # what hung has ended with its connection


def test_nothing_is_left_behind_after_the_end_or_a_consumer_that_stops(address):
    dataset = open_dataset(address)
    before = set(fetch_threads())
    for samples in (3, SHARDS * SHARD_SAMPLES):
        with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples)) as stream:
            assert len(list(islice(stream, samples))) == samples
        assert set(fetch_threads()) <= before


def test_what_is_cached_is_not_asked_for_again_and_a_damaged_block_is_replaced_there(address, tmp_path):
    def keys(cache: DiskCache) -> list[str]:
        dataset = open_dataset(address)
        plan = TrainingPlan(Order(dataset.blocks.samples, lanes=6), stop=len(dataset))
        with SampleStream(dataset, plan, cache=cache) as stream:
            return sorted(raw.read().key for raw in stream)

    with DiskCache(tmp_path, 10**9) as cache:
        with faulty_s3(first([CORRUPT], reads_block)) as proxy:
            assert keys(cache) == [f"{n:09d}" for n in range(SHARDS * SHARD_SAMPLES)]
            assert sum(reads_block(line) for line, _ in proxy.met) == SHARDS + 1
        with faulty_s3(lambda _, line: HANG if ".tar" in line else None):
            assert keys(cache) == [f"{n:09d}" for n in range(SHARDS * SHARD_SAMPLES)]


class SharedCache(DiskCache):
    """A cache in which another process puts a damaged block back as soon as it is removed."""

    damaged = memoryview(b"")

    def remove(self, key: str) -> None:
        super().remove(key)
        super().put(key, self.damaged)


def test_a_second_copy_comes_from_storage_whatever_others_put_in_the_cache(address, tmp_path):
    dataset = open_dataset(address)
    with SharedCache(tmp_path, 10**9) as cache:
        stream = SampleStream(dataset, EvaluationPlan(dataset.blocks.samples), cache=cache, head_start=0)
        with stream:
            wrong = bytearray(dataset.read_block(0))
            wrong[len(wrong) // 2] ^= 1
            cache.damaged = memoryview(bytes(wrong))
            cache.put(stream._cache_key(0), cache.damaged)
            keys = [raw.read().key for raw in stream]
        assert keys == [f"{n:09d}" for n in range(SHARDS * SHARD_SAMPLES)]
        assert stream.stats.refetched == 1
