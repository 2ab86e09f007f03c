"""A data set on disk: what is written comes back, and what was changed since is noticed."""

import json

import numpy as np
import pytest
import webdataset as wds

from shards import (
    DataError,
    Folder,
    Order,
    SampleStream,
    TrainingPlan,
    UsageError,
    open_dataset,
    write_manifest,
    write_shard,
)


def content(number: int) -> dict[str, bytes]:
    return {
        "jpg": bytes([number % 251]) * (700 + 97 * (number % 13)),
        "txt": f"caption {number} – α".encode(),
    }


@pytest.fixture
def address(tmp_path) -> str:
    """Three shards of 70, 70 and 60 samples."""
    folder, written = Folder(tmp_path / "data"), []
    for first, stop in ((0, 70), (70, 140), (140, 200)):
        samples = ((f"{number:09d}", content(number)) for number in range(first, stop))
        written.append(write_shard(folder, f"data-{first // 70:06d}.tar", samples))
    write_manifest(folder, written, {"tool": "test"})
    return folder.address


def test_samples_come_back_and_webdataset_reads_the_same(address):
    dataset = open_dataset(address)
    assert len(dataset) == 200
    for number in (0, 69, 70, 199):
        sample = dataset.read_sample(number)
        assert (sample.key, bytes(sample.image), sample.caption) == (
            f"{number:09d}", content(number)["jpg"], f"caption {number} – α",
        )  # fmt: skip
    urls = [f"{address}/{shard.name}" for shard in dataset.manifest.shards]
    theirs = {s["__key__"]: (s["jpg"], s["txt"]) for s in wds.WebDataset(urls, shardshuffle=False)}
    assert theirs == {f"{n:09d}": (content(n)["jpg"], content(n)["txt"]) for n in range(200)}


def test_equal_samples_give_equal_bytes_and_fingerprint(tmp_path):
    def write(name):
        folder = Folder(tmp_path / name)
        shard = write_shard(folder, "x-000000.tar", ((str(n), content(n)) for n in range(5)))
        return write_manifest(folder, [shard], {}).fingerprint, folder.read("x-000000.tar")

    assert write("a") == write("b")


@pytest.mark.parametrize("prefetch_bytes", [0, 10_000, 10**9])
def test_stream_gives_the_planned_samples_whatever_is_read_ahead(address, prefetch_bytes):
    dataset = open_dataset(address)
    order = Order(dataset.blocks.samples, seed=2, lanes=6)
    plan = TrainingPlan(order, rank=1, world_size=2, start=37, stop=700)
    with SampleStream(dataset, plan, prefetch_bytes=prefetch_bytes, fetch_threads=3) as stream:
        got = [(raw.position, raw.number, raw.read().key) for raw in stream]
    places = order.at(np.arange(37, 700, 2))
    numbers = (dataset.blocks.first_sample[places.block] + places.slot).tolist()
    assert got == [(p, n, f"{n:09d}") for p, n in zip(range(37, 700, 2), numbers, strict=True)]


def test_reading_ahead_is_bounded(address):
    dataset = open_dataset(address)
    order = Order(dataset.blocks.samples, seed=2, lanes=1)
    largest = int(dataset.blocks.length.max())
    with SampleStream(dataset, TrainingPlan(order), prefetch_bytes=largest) as stream:
        for index, _ in enumerate(stream):
            held = sum(live.bytes for live in stream._live.values())
            assert (
                held <= 3 * largest
            )  # the block in use, its neighbour at a lane's end, and what is read ahead
            if index == 400:
                break


def test_truncated_shard_is_named_with_place_and_remedy(address):
    path = f"{address}/data-000001.tar"
    with open(path, "r+b") as file:
        file.truncate(30_000)
    with pytest.raises(
        DataError, match=r"data-000001\.tar: block at byte .* is cut short .*truncated; fetch"
    ):
        [open_dataset(address).read_sample(number) for number in range(70, 140)]


def test_one_changed_byte_is_noticed(address):
    dataset = open_dataset(address)
    with open(f"{address}/data-000002.tar", "r+b") as file:
        file.seek(600)
        file.write(b"!")
    with pytest.raises(DataError, match=r"data-000002\.tar.*was altered"):
        dataset.read_sample(140)
    dataset.read_sample(141)


def test_missing_shard_is_named(address):
    Folder(address).delete("data-000001.tar")
    with pytest.raises(
        DataError, match=r"data-000001\.tar: the manifest lists this shard, but it is not there"
    ):
        open_dataset(address).read_sample(80)


def test_folder_without_a_manifest_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"no data set here .*pipeline\.shard"):
        open_dataset(str(tmp_path))


def edit_manifest(address: str, **changes) -> None:
    folder = Folder(address)
    folder.write("manifest.json", json.dumps(json.loads(folder.read("manifest.json")) | changes).encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: Folder(a).write("manifest.json", b"{"), "not a manifest"),
        (lambda a: edit_manifest(a, index_sha256="0" * 64), "altered"),
        (lambda a: edit_manifest(a, format_version=9), "version 9"),
        (lambda a: Folder(a).write("index.bin", b"\0" * 800), r"index\.bin: damaged"),
        (lambda a: Folder(a).write("checksums.bin", b"\0" * 4), r"checksums\.bin: damaged"),
        (lambda a: Folder(a).delete("index.bin"), r"index\.bin: no such file"),
    ],
)
def test_damaged_description_is_refused(address, damage, message):
    damage(address)
    with pytest.raises(DataError, match=message):
        open_dataset(address)
