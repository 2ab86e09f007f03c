"""pipeline.index: tars that others made become a data set, and whatever is odd in them is told."""

import csv
import gzip
import io
import json
import re
import signal
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import s3fs
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from pipeline.indexing.describe_shard import describe_shard
from pipeline.indexing.job import index_shards
from pipeline.indexing.shard_files import find_shards
from shards import DataError, MemberNames, UsageError, open_dataset
from shards.tar import END_OF_ARCHIVE, pack_sample
from shards.tar_scan import TarScan
from tests import fault_proxy

NAMES = MemberNames(("jpg", "png"), "txt")
JSON_NAMES = MemberNames(("jpg", "png"), "json", "caption")
ALONE = ("--workers", "1")  # no processes to start
Members = Iterable[tuple[str, bytes]]


def tar_bytes(members: Members, format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members:
            add(tar, name, content)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def good(*keys: str) -> list[tuple[str, bytes]]:
    return [
        member
        for key in keys
        for member in ((f"{key}.jpg", b"image of " + key.encode()), (f"{key}.txt", f"figure {key}".encode()))
    ]


def figures(shared: Path, first: int, stop: int) -> list[tuple[str, bytes]]:
    """Members of real figures as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt."""
    with open(shared / "pmc_sample" / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[first:stop]
    members = []
    for number, row in enumerate(rows, first):
        described = {"caption": row["caption"], "key": f"{number:09d}"}
        members += [
            (f"{number:09d}.jpg", (shared / "pmc_sample" / "images" / row["image"]).read_bytes()),
            (f"{number:09d}.json", json.dumps(described).encode()),
            (f"{number:09d}.txt", row["caption"].encode()),
        ]
    return members


def as_samples(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes, str]]:
    """(key, image, caption) of members as `figures` gives them."""
    return [
        (name.split(".")[0], image, caption.decode())
        for (name, image), (_, caption) in zip(members[::3], members[2::3], strict=True)
    ]


@pytest.fixture
def put(tmp_path) -> Callable[[str, Members], Path]:
    """`put("a.tar", members)`: a tar in the folder `tars`."""

    def write(name: str, members: Members) -> Path:
        path = tmp_path / "tars" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tar_bytes(members))
        return path

    return write


def contents(address: str) -> list[tuple[str, bytes, str]]:
    dataset = open_dataset(str(address))
    samples = (dataset.read_sample(number) for number in range(len(dataset)))
    return [(sample.key, bytes(sample.image), sample.caption) for sample in samples]


@pytest.mark.parametrize("chunk", [1, 513, 5000, 10**9])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_the_groups_that_webdataset_makes(tmp_path, format, chunk):
    """With folders, global headers, hidden files of a Mac, dots in folders, names too long for a header."""
    long = "x" * 90 if format == tarfile.USTAR_FORMAT else "é" * 200
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w", format=format, pax_headers={"comment": "global"}) as tar:
        add(tar, "d.1", b"", type=tarfile.DIRTYPE)
        for name in ("d.1/a.jpg", "d.1/._a.txt", "d.1/a.seg.png", "d.1/a.TXT"):
            add(tar, name, name.encode() * 99)
        add(tar, "d.2", b"", type=tarfile.DIRTYPE)
        add(tar, f"d.2/{long}.jpg", b"")
        add(tar, f"d.2/{long}.txt", b"y" * 512)
        add(tar, "d.3", b"", type=tarfile.DIRTYPE)
    data = path.read_bytes()
    scan = TarScan(data[first : first + chunk] for first in range(0, len(data), chunk))
    found = [(s.key, s.start, len(s.data), bytes(s.data)) for s in scan.samples()]
    theirs = [sample["__key__"] for sample in wds.WebDataset(str(path), shardshuffle=False)]
    assert [key for key, *_ in found] == theirs == ["d.1/a", f"d.2/{long}"]
    assert [start for _, start, *_ in found] == [0, found[0][2]]
    assert b"".join(own for *_, own in found) == data[: found[1][1] + found[1][2]]
    assert scan.end >= found[1][1] + found[1][2]


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=6), st.integers(1, 3000))
def test_lengths_add_up_to_where_each_sample_starts(sizes, chunk):
    samples = [pack_sample(f"{n}", {"jpg": b"i" * size, "txt": b"t"}) for n, size in enumerate(sizes)]
    data = b"".join(samples) + END_OF_ARCHIVE
    scan = TarScan(data[first : first + chunk] for first in range(0, len(data), chunk))
    assert [bytes(sample.data) for sample in scan.samples()] == samples
    assert scan.end == len(data) - len(END_OF_ARCHIVE)


def test_tars_of_others_train(run, put, shared, tmp_path):
    """Written by webdataset and by tarfile; every sample comes out as it went in, and once in an epoch."""
    members = figures(shared, 0, 12)
    put("b.tar", members[18:])
    with wds.TarWriter(str(tmp_path / "tars" / "a.tar")) as writer:
        for place in range(0, 18, 3):
            key = members[place][0].split(".")[0]
            writer.write(
                {"__key__": key} | {name.split(".")[1]: data for name, data in members[place : place + 3]}
            )
    done = run("index", "--shards", "tars/{a..b}.tar")
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 samples in 2 shards" in done.stdout
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == [
        "a.tar", "b.tar", "checksums.bin", "index.bin", "manifest.json", "rejected.csv",
    ]  # fmt: skip
    expected = as_samples(members)
    assert contents(tmp_path / "tars") == expected
    streamed = run("stream", "--data", "tars", "--batch-size", "4", "--keys", "keys.tsv")
    assert streamed.returncode == 0, streamed.stderr
    keys = [line.split("\t")[1] for line in (tmp_path / "keys.tsv").read_text().splitlines()]
    assert sorted(keys) == [key for key, *_ in expected]


def test_tars_on_s3_train(run, s3, shared, tmp_path):
    store, members = s3fs.S3FileSystem(skip_instance_cache=True), figures(shared, 0, 8)
    for name, part in (("000", members[:12]), ("001", members[12:])):
        store.pipe_file(f"{s3}/foreign/{name}.tar", tar_bytes(part))
    flags = ("--caption-ext", "json", "--caption-key", "caption")
    done = run("index", "--shards", f"{s3}/foreign/{{000..001}}.tar", "--out", "here", *flags, *ALONE)
    assert done.returncode == 0, done.stderr
    assert [shard.folder for shard in open_dataset(str(tmp_path / "here")).manifest.shards] == [
        f"{s3}/foreign"
    ] * 2
    expected = as_samples(members)
    assert contents(tmp_path / "here") == expected
    beside = run("index", "--shards", f"{s3}/foreign", *ALONE)
    assert beside.returncode == 0, beside.stderr
    assert contents(f"{s3}/foreign") == expected
    streamed = run("stream", "--data", f"{s3}/foreign", "--batch-size", "4", "--keys", "keys.tsv")
    keys = [line.split("\t")[1] for line in (tmp_path / "keys.tsv").read_text().splitlines()]
    assert (streamed.returncode, sorted(keys)) == (0, [key for key, *_ in expected])


def test_every_oddity_is_told_and_only_samples_that_cannot_be_used_are_left_out(run, put, tmp_path):
    odd = [
        ("scan.jpeg.2", b"i"), ("scan.txt", b"unmapped image"),
        ("mute.jpg", b"i"), ("mute.md", b"unmapped caption"),
        ("latin.jpg", b"i"), ("latin.txt", "é".encode("latin-1")),
        ("blank.jpg", b"i"), ("blank.txt", b" \n"),
        ("void.jpg", b""), ("void.txt", b"no bytes"),
        ("torn.jpg", b"i"), *good("between"), ("torn.txt", b"too late"),
        ("twice.jpg", b"old"), ("twice.jpg", b"new"), ("twice.txt", b"two images"),
        *good("again"), *good("last"), *good("again"),
    ]  # fmt: skip
    put("a.tar", odd)
    put("b.tar", good("last", "b"))
    put("c.tar", [])
    with open(tmp_path / "tars" / "b.tar", "ab") as file:
        file.write(tar_bytes(good("lost")))
    done = run("index", "--shards", "tars", *ALONE)
    assert done.returncode == 0, done.stderr
    kept = ["between", "twice", "again", "last", "again", "last", "b"]
    assert [key for key, *_ in contents(tmp_path / "tars")] == kept
    with open(tmp_path / "tars" / "rejected.csv", newline="") as file:
        rejected = [(row["shard"], row["key"], row["reason"]) for row in csv.DictReader(file)]
    assert rejected == [
        ("a.tar", "scan", "no image"),
        ("a.tar", "mute", "no caption"),
        ("a.tar", "latin", "the caption is not UTF-8"),
        ("a.tar", "blank", "empty caption"),
        ("a.tar", "void", "empty image"),
        ("a.tar", "torn", "its members are not neighbours in the shard"),
        ("a.tar", "torn", "its members are not neighbours in the shard"),
    ]
    for line in (
        "left out: 7 samples",
        "no mapping for .jpeg.2 (1 sample without an image): give --image-ext jpg,jpeg,png,webp,gif,tif,"
        "tiff,bmp,jpeg.2 if it is an image",
        "no mapping for .md (1 sample without a caption): give --caption-ext md if it is a caption",
        "1 keys that several samples of a shard have, such as again in a.tar",
        "1 samples with the key of a sample in another shard, such as sample 0 of b.tar, whose key a.tar has",
        "1 samples with two members of one name, the last of which counts, as tar unpacks it, such as twice",
        "1 shards with bytes after the end marker, which readers of tars ignore, such as b.tar from byte 4,",
        "1 shards without samples, such as c.tar",
    ):
        assert line in done.stdout
    assert run("index", "--shards", "tars", *ALONE).stdout.endswith("nothing to do\n")


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (b'{"text": "other key"}', "no text under 'caption' in its json"),
        (b'{"caption": []}', "no text under 'caption' in its json"),
        (b'{"caption": ["text", 1]}', "no text under 'caption' in its json"),
        (b'{"caption": null}', "no text under 'caption' in its json"),
        (b"[" * 100_000, "no text under 'caption' in its json"),
        (b'{"caption": ""}', "empty caption"),
    ],
)
def test_caption_that_json_does_not_hold_leaves_the_sample_out(put, caption, reason):
    members = [("a.jpg", b"i"), ("a.json", caption), ("b.jpg", b"i"), ("b.json", b'{"caption": "b"}')]
    described = describe_shard(*find_shards([str(put("a.tar", members))]), JSON_NAMES)
    assert [(bad.key, bad.reason) for bad in described.unusable] == [("a", reason)]


def test_what_may_surprise_in_names_and_ends_of_tars_is_told(run, put, tmp_path):
    """Keys with dots, several images of one sample, and a tar that ends between two files."""
    dotted = [("PMC1.v1.jpg", b"i"), ("PMC1.v1.txt", b"t"), ("PMC2.v1.jpg", b"i"), ("PMC2.v1.txt", b"t")]
    put("a.tar", [*dotted, ("two.JPG", b"i"), ("two.png", b"other"), ("two.txt", b"t")])
    put("b.tar", []).write_bytes(pack_sample("b", {"jpg": b"i", "txt": b"t"}))
    done = run("index", "--shards", "tars", *ALONE)
    for line in (
        "a key ends at the first dot of a file's name, so .v1.jpg is an extension",
        "1 samples with several images, of which the first in the order of --image-ext counts, such as two",
        "1 shards without the end marker of a tar, which may have been cut short between two files, such",
    ):
        assert line in done.stdout
    assert contents(tmp_path / "tars") == [("two", b"i", "t"), ("b", b"i", "t")]


def test_several_captions_of_an_image_come_from_lists_in_json_and_from_lines(run, put, tmp_path):
    listed = json.dumps({"caption": ["first", "second"]}).encode()
    put("a.tar", [("a.jpg", b"i"), ("a.json", listed), ("a.txt", b"first\n\nsecond\n"), *good("b")])
    for out, *flags in (("lists", "--caption-key", "caption"), ("lines", "--caption-lines")):
        assert run("index", "--shards", "tars", "--out", out, *flags, *ALONE).returncode == 0
        assert open_dataset(str(tmp_path / out)).read_sample(0).captions == ("first", "second")
    refused = run("index", "--shards", "tars", "--out", "both", "--caption-lines", "--caption-key", "caption")
    assert (refused.returncode, "a list, not lines" in refused.stderr) == (2, True)


def test_links_and_sparse_members_are_not_taken_for_images(tmp_path, put):
    path = put("a.tar", good("good"))
    with tarfile.open(path, "a") as tar:
        add(tar, "linked.jpg", b"", type=tarfile.LNKTYPE, linkname="good.jpg")
        add(tar, "linked.txt", b"its image is elsewhere")
        member = tarfile.TarInfo("GNUSparseFile.0/holes.jpg")
        member.size, member.pax_headers = 512, {"GNU.sparse.name": "holes.jpg", "GNU.sparse.major": "1"}
        tar.addfile(member, io.BytesIO(bytes(512)))
        add(tar, "holes.txt", b"stored without its holes")
    described = describe_shard(*find_shards([str(path)]), NAMES)
    assert [(bad.key, bad.reason) for bad in described.unusable] == [
        ("linked", "the image is a link to another file (pack with tar --hard-dereference)"),
        ("holes", "a member is stored without its holes (tar --sparse)"),
    ]
    assert described.written.record.samples == 3


def test_no_usable_sample_fails_with_the_extensions_found_and_leaves_nothing(run, put, tmp_path):
    put("a.tar", [("1.jp2", b"i"), ("1.cap", b"t"), ("2.jp2", b"i"), ("2.cap", b"t")])
    done = run("index", "--shards", "tars", *ALONE)
    assert (done.returncode, "none of 2 samples can be used (2 times: no image" in done.stderr) == (1, True)
    assert ".jp2 (2 samples" in done.stderr
    assert ".cap (2 samples" in done.stderr
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["a.tar"]
    mapped = run("index", "--shards", "tars", "--image-ext", "jp2", "--caption-ext", "cap", *ALONE)
    assert (mapped.returncode, len(contents(tmp_path / "tars"))) == (0, 2)


def test_damaged_shards_are_all_named_and_the_others_are_not_read_again(run, put, tmp_path):
    whole = {name: put(name, good(name[0])) for name in ("a.tar", "b.tar", "c.tar", "d.tar", "e.tar")}
    kept = {name: path.read_bytes() for name, path in whole.items()}
    whole["b.tar"].write_bytes(kept["b.tar"][:1200])
    whole["c.tar"].write_bytes(b"<html>404</html>".ljust(1000))
    whole["d.tar"].write_bytes(b"")
    whole["e.tar"].write_bytes(kept["e.tar"][:700] + b"\0" * 400 + kept["e.tar"][1100:])
    done = run("index", "--shards", "tars/?.tar")
    assert done.returncode == 1
    for line in (
        "b.tar: the tar ends at byte 1,200, inside the header at byte 1,024",
        "c.tar: it is not a tar",
        "d.tar: it is empty (0 bytes), not a tar",
        "e.tar: the tar header at byte 1,024 is damaged",
        "4 of 5 shards could not be described",
    ):
        assert line in done.stderr
    (part,) = (tmp_path / "tars").glob("*.part.json")
    marked = json.loads(part.read_text())
    marked["described"]["oddities"] = {"came from the part": [1, "a.tar"]}
    part.write_text(json.dumps(marked))
    for name, content in kept.items():
        if name != "a.tar":
            whole[name].write_bytes(content)
    again = run("index", "--shards", "tars/?.tar")
    assert (again.returncode, again.stderr) == (0, "")
    assert "came from the part" in again.stdout
    assert [key for key, *_ in contents(tmp_path / "tars")] == ["a", "b", "c", "d", "e"]
    assert not list((tmp_path / "tars").glob("*part*"))


def test_part_of_a_shard_that_was_written_again_is_not_trusted(run, put, tmp_path):
    put("a.tar", good("old"))
    bad = put("b.tar", good("b"))
    bad.write_bytes(b"")
    assert run("index", "--shards", "tars", *ALONE).returncode == 1
    put("a.tar", good("new"))
    put("b.tar", good("b"))
    assert run("index", "--shards", "tars", *ALONE).returncode == 0
    assert [key for key, *_ in contents(tmp_path / "tars")] == ["new", "b"]


def test_shards_that_changed_since_are_told_and_overwrite_describes_them_anew(run, put, tmp_path):
    put("a.tar", good("a"))
    put("b.tar", good("b"))
    assert run("index", "--shards", "tars", *ALONE).returncode == 0
    put("b.tar", good(*"bcdefghijklm"))
    put("c.tar", good("z"))
    done = run("index", "--shards", "tars", *ALONE)
    assert done.returncode == 2
    assert "b.tar had 10,240 bytes and has 30,720; c.tar is new" in done.stderr
    assert run("index", "--shards", "tars", "--overwrite", *ALONE).returncode == 0
    assert [key for key, *_ in contents(tmp_path / "tars")] == [*"abcdefghijklm", "z"]


def test_other_members_than_those_described_are_told(run, put):
    put("a.tar", good("a"))
    assert run("index", "--shards", "tars", *ALONE).returncode == 0
    done = run("index", "--shards", "tars", "--image-ext", "jpg,png", "--caption-lines", *ALONE)
    assert done.returncode == 2
    assert "images are jpg,jpeg,png,webp,gif,tif,tiff,bmp there and jpg,png here; " in done.stderr
    assert "captions are in txt there and in txt, each line a caption here" in done.stderr


def test_sharding_into_the_folder_never_removes_the_tars_of_others(run, put, small, tmp_path):
    put("tars-000000.tar", good("a"))
    assert run("index", "--shards", "tars", *ALONE).returncode == 0
    for flags in ((), ("--overwrite",)):
        run("shard", "--csv", small, "--out", "tars", *flags, *ALONE)
        assert (tmp_path / "tars" / "tars-000000.tar").read_bytes() == tar_bytes(good("a"))


def test_manifest_of_another_tool_is_not_replaced_unasked(run, small, tmp_path):
    assert run("shard", "--csv", small, "--out", "made", *ALONE).returncode == 0
    before = (tmp_path / "made" / "manifest.json").read_bytes()
    done = run("index", "--shards", "made", *ALONE)
    assert (done.returncode, "was made by pipeline.shard" in done.stderr) == (2, True)
    assert (tmp_path / "made" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_tar_is_refused_with_the_reason(put, name):
    path = put(name, [])
    path.write_bytes(gzip.compress(tar_bytes(good("a"))))
    with pytest.raises(UsageError, match=r"is compressed: .* byte offsets.*gunzip"):
        describe_shard(*find_shards([str(path)]), NAMES)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("tars/{0..2}.tar", r"2 of 3 shards not there, such as .*1\.tar"),
        ("tars/*.tarr", "nothing there matches"),
        ("empty", "no .tar in this folder"),
        ("tars/{0..2.tar", "brace"),
        ("tars/{0,0}.tar", "more than once"),
        ("gone/0.tar", "1 of 1 shard not there"),
    ],
)
def test_pattern_that_names_no_shards_is_refused(put, tmp_path, monkeypatch, pattern, message):
    put("0.tar", good("a"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        find_shards([pattern])


@pytest.mark.parametrize("pattern", ["faults/*.tar", "faults", "faults/0.tar"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fault_proxy.DENIED, "(Access Denied|Forbidden); check the credentials in use"),
        (fault_proxy.EXPIRED, "(token has expired|Bad Request).*; check the credentials in use"),
        (fault_proxy.UNAVAILABLE, "run the same command again when the storage answers"),
    ],
)
def test_storage_that_refuses_or_fails_is_said_in_one_message(run, s3, monkeypatch, pattern, fault, said):
    s3fs.S3FileSystem().pipe_file(f"{s3}/faults/0.tar", tar_bytes(good("a")))
    monkeypatch.setattr("shards.retry.DELAYS", (0.001,) * 5)
    with fault_proxy.faulty_s3(lambda number, line: fault):
        done = run("index", "--shards", f"{s3}/{pattern}", *ALONE)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"error: {s3}/{re.escape(pattern)}: looking for .* failed.*{said}.*", error)


def test_no_pattern_at_all_is_refused(run):
    done = run("index", "--shards")
    assert (done.returncode, "--shards: give at least one" in done.stderr) == (2, True)


def test_shards_of_several_folders_need_a_folder_for_the_manifest(run, put, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(tar_bytes(good(folder)))
    done = run("index", "--shards", "one", "two")
    assert (done.returncode, "--out" in done.stderr) == (2, True)
    assert run("index", "--shards", "one", "two", "--out", "together", *ALONE).returncode == 0
    (tmp_path / "moved").mkdir()
    for folder in ("one", "two", "together"):
        (tmp_path / folder).rename(tmp_path / "moved" / folder)
    assert [key for key, *_ in contents(tmp_path / "moved" / "together")] == ["one", "two"]


def test_tar_without_end_marker_is_whole_if_its_last_member_is(put):
    path = put("a.tar", [])
    path.write_bytes(pack_sample("a", {"jpg": b"i", "txt": b"t"})[:-511])
    assert index_shards([str(path)], None, NAMES, workers=1).manifest.samples == 1
    assert [key for key, *_ in contents(path.parent)] == ["a"]


def test_member_that_claims_more_than_the_tar_has_is_damage():
    data = bytearray(pack_sample("a", {"jpg": b"i"}))
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    with pytest.raises(DataError, match="more than 4 GiB"):
        list(TarScan([bytes(data)]).samples())


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_ended_job_goes_on_to_the_same_manifest(run, start, put, hashes, tmp_path, ending):
    for number in range(24):
        put(
            f"{number:02d}.tar",
            [(f"{number}-{n}.{e}", b"x" * 100_000) for n in range(10) for e in ("jpg", "txt")],
        )
    folder = tmp_path / "tars"
    job = start("index", "--shards", "tars", "--workers", "2")
    while job.poll() is None and not list(folder.glob("*.part.json")):
        time.sleep(0.005)
    job.send_signal(ending)
    _, said = job.communicate()
    assert job.returncode != 0
    if ending == signal.SIGTERM:
        assert "the same command goes on with the others" in said
    assert run("index", "--shards", "tars").returncode == 0
    resumed = hashes(folder)
    assert not [name for name in resumed if "part" in name or "tmp" in name]
    assert run("index", "--shards", "tars", "--overwrite").returncode == 0
    assert hashes(folder) == resumed
