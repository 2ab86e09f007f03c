"""A data set on disk: what is written comes back, and what was changed since is noticed."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import webdataset as wds

from shards import (
    DamagedSample,
    DataError,
    Folder,
    Manifest,
    MemberNames,
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


def test_shard_of_another_size_is_named_whatever_is_read_of_it(address):
    path = f"{address}/data-000001.tar"
    with open(path, "r+b") as file:
        file.truncate(30_000)
    dataset = open_dataset(address)
    with pytest.raises(DataError, match=r"data-000001\.tar: changed since .* found 30,000\); fetch"):
        dataset.read_sample(70)  # which is still there
    with pytest.raises(DataError, match=r"data-000001\.tar: changed since"):
        dataset.read_block(int(np.searchsorted(dataset.blocks.first_sample, 70)))


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


def test_folder_of_tars_without_a_manifest_names_the_command_that_describes_them(address):
    Folder(address).delete("manifest.json")
    with pytest.raises(UsageError, match=rf"no data set here .*pipeline\.index --shards {address}'"):
        open_dataset(address)


def write_samples(tmp_path, names: MemberNames, *samples: dict[str, bytes]):
    """A data set of samples `a`, `b`, … with these members."""
    folder = Folder(tmp_path / "several")
    keyed = [(chr(ord("a") + number), sample) for number, sample in enumerate(samples)]
    write_manifest(folder, [write_shard(folder, "s-000000.tar", keyed)], {}, member_names=names)
    return open_dataset(folder.address)


IN_JSON = MemberNames(("jpg",), "json", "caption")
IN_LINES = MemberNames(("jpg",), "txt", caption_lines=True)


@pytest.mark.parametrize(
    ("names", "member", "captions"),
    [
        (IN_JSON, '{"caption": ["one", " ", "two\\nlines"]}', ("one", "two\nlines")),
        (IN_JSON, '{"caption": "one"}', ("one",)),
        (IN_LINES, "one\r\n\n two \n", ("one", "two")),
        (MemberNames(("jpg",), "txt"), "one\ntwo", ("one\ntwo",)),
    ],
)
def test_an_image_may_have_several_captions(tmp_path, names, member, captions):
    dataset = write_samples(tmp_path, names, {"jpg": b"i", names.caption_extension: member.encode()})
    assert dataset.manifest.member_names == names
    assert dataset.read_sample(0).captions == captions
    assert dataset.read_sample(0).caption == captions[0]


@pytest.mark.parametrize(
    ("names", "member", "message"),
    [
        (IN_JSON, '{"caption": []}', r"sample 'a' has no caption \(a list without any text"),
        (IN_JSON, '{"caption": ["one", 2]}', r"caption of sample 'a' is not text or a list of texts"),
        (IN_JSON, '{"caption": 2}', r"caption of sample 'a' is not text or a list of texts"),
        (IN_JSON, "[" * 100_000, r"JSON of sample 'a' has no caption under 'caption'"),
        (IN_LINES, " \n\n", r"sample 'a' has no caption \(no line with text"),
    ],
)
def test_captions_that_are_none_are_damage_with_the_reason(tmp_path, names, member, message):
    dataset = write_samples(tmp_path, names, {"jpg": b"i", names.caption_extension: member.encode()})
    with pytest.raises(DamagedSample, match=rf"s-000000\.tar: the sample at byte 0: .*{message}"):
        dataset.read_sample(0)
    with pytest.raises(DamagedSample, match=message):
        dataset.sample(0, 0, dataset.read_block(0))


def test_columns_are_what_the_json_says(tmp_path):
    members = {"jpg": b"i", "txt": b"t"}
    dataset = write_samples(
        tmp_path,
        MemberNames(),
        members | {"json": b'{"row": 3, "licence": "CC BY", "tags": ["a"]}'},
        members,
        members | {"json": b"[1]"},
        members | {"json": b"{"},
    )
    assert dataset.read_sample(0).columns == {"row": 3, "licence": "CC BY", "tags": ["a"]}
    assert dataset.read_sample(1).columns == {}
    for number, message in ((2, "is not a JSON object"), (3, "cannot be read")):
        with pytest.raises(DamagedSample, match=rf"\.json of sample '{'abcd'[number]}' {message}"):
            _ = dataset.read_sample(number).columns


def test_manifest_of_before_caption_lines_is_read_and_written_as_it_was(address):
    """Other versions read it, and its fingerprint stays."""
    text = Folder(address).read("manifest.json")
    assert set(json.loads(text)["member_names"]) == {"image_extensions", "caption_extension", "caption_key"}
    manifest = Manifest.from_json(text, address)
    assert not manifest.member_names.caption_lines
    in_lines = replace(manifest, member_names=IN_LINES)
    assert in_lines.fingerprint == manifest.fingerprint
    assert Manifest.from_json(in_lines.to_json(), address) == in_lines


def test_samples_of_a_block_are_found_in_any_order_and_from_several_threads(address):
    dataset = open_dataset(address)
    blocks = {block: dataset.read_block(block) for block in range(len(dataset.blocks))}
    places = [(block, slot) for block in blocks for slot in range(dataset.blocks.samples[block])][::-1]
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda place: dataset.sample(*place, blocks[place[0]]), places))
    assert [sample.key for sample in read] == [f"{number:09d}" for number in reversed(range(200))]
    assert [dataset.source(block) for block in blocks] == [0] * len(blocks)
    assert dataset.sources == (dataset,)


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
