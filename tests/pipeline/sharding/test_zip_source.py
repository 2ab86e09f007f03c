"""Zips of every make are read, and hostile ones harm neither the job nor the rows of others."""

import io
import resource
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest

from pipeline.sharding.image_sources import open_image_source
from pipeline.sharding.rows import Rejected
from shards import DataError, UsageError

MEMBERS = {"a.png": b"first", "b.png": b"second image" * 100, "c.png": bytes(range(256)) * 20}


def zipped(members=MEMBERS, **options) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def source(tmp_path):
    """`source(content)`: the images in a zip of these bytes."""
    opened = []

    def open_zip(content: bytes, names=("a.png",)):
        (tmp_path / "images.zip").write_bytes(content)
        table = str(tmp_path / "train.csv")
        opened.append(open_image_source([str(tmp_path / "images.zip")], [table], list(names)))
        return opened[-1]

    yield open_zip
    for images in opened:
        images.__exit__()


def reason(images, name):
    with pytest.raises(Rejected) as rejected:
        images.locate(name).read()
    return str(rejected.value)


def patched(content: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def record_of(content: bytes, name: bytes) -> int:
    """Where a member's record in the directory begins."""
    return content.rindex(name) - 46


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content,
        lambda content: b"#!/bin/sh\nexec unzip" + content,  # offsets in the zip no longer fit
        lambda content: content + b"\n\n",
        lambda content: content[:-2] + struct.pack("<H", 40) + b"PK\5\6" + bytes(36),
    ],
    ids=["plain", "prefixed", "followed", "with a comment like an end"],
)
def test_every_member_is_read_whatever_surrounds_the_zip(source, change, compression):
    images = source(change(zipped(compression=compression)))
    assert {name: images.locate(name).read() for name in MEMBERS} == MEMBERS


def test_zip64_members_and_streamed_members_are_read(source, tmp_path):
    class Pipe(io.RawIOBase):  # without seeking, sizes follow each member's data
        def __init__(self, file):
            self.file = file

        def writable(self):
            return True

        def write(self, data):
            return self.file.write(data)

    out = io.BytesIO()
    with zipfile.ZipFile(Pipe(out), "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in MEMBERS.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(data)
    content = out.getvalue()
    record = record_of(content, b"c.png")  # its numbers as a writer of files over 4 GiB puts them
    compressed, size = struct.unpack_from("<2L", content, record + 20)
    (offset,) = struct.unpack_from("<L", content, record + 42)
    extra = struct.pack("<2HB2H3Q", 7, 1, 9, 1, 24, size, compressed, offset)
    content = patched(patched(content, record + 20, "<2L", *[0xFFFFFFFF] * 2), record + 42, "<L", 0xFFFFFFFF)
    content = patched(content, record + 30, "<H", len(extra))
    end = record + 46 + len(b"c.png")
    content = content[:end] + extra + content[end:]
    length = struct.unpack_from("<L", content, len(content) - 10)[0]
    images = source(patched(content, len(content) - 10, "<L", length + len(extra)))
    assert {name: images.locate(name).read() for name in MEMBERS} == MEMBERS


def many(count: int, name: str = "images/PMC%07d_Fig%d.jpg", data: bytes = b"tiny") -> bytes:
    """A zip64 of many members, as quickly as it can be written."""
    local, record = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
    crc, size, position = zlib.crc32(data), len(data), 0
    members, directory = [], []
    for number in range(count):
        path = (name % (number, number % 9)).encode()
        members.append(local.pack(b"PK\3\4", 45, 0, 0, 0, 0, crc, size, size, len(path), 0) + path + data)
        sizes = (crc, size, size, len(path), 0, 0, 0, 0, 0)
        directory.append(record.pack(b"PK\1\2", 45, 45, 0, 0, 0, 0, *sizes, position) + path)
        position += len(members[-1])
    listing = b"".join(directory)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(listing), position)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, position + len(listing), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"".join(members) + listing + end


@pytest.mark.parametrize("prefix", [b"", b"x" * 1000])
def test_more_members_than_a_plain_zip_can_count(source, prefix):
    images = source(prefix + many(70_000), ["PMC0000000_Fig0.jpg"])
    assert images.locate("PMC0069999_Fig6.jpg").read() == b"tiny"
    assert images.sizes(["PMC0065536_Fig7.jpg", "PMC0070000_Fig7.jpg"]) == [4, 0]


def test_counts_that_overflowed_without_zip64_are_understood(source):
    content = many(70_000)  # as macOS and others write them: the count is cut to 16 bits
    listing = content.index(b"PK\1\2")
    ends = content.rindex(b"PK\6\6")
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 70_000 % 65536, 70_000 % 65536, ends - listing, listing, 0)
    images = source(content[:ends] + end, ["PMC0000000_Fig0.jpg"])
    assert images.locate("PMC0069999_Fig6.jpg").read() == b"tiny"


@pytest.mark.slow
def test_a_million_members_take_little_memory_and_time(tmp_path):
    (tmp_path / "images.zip").write_bytes(many(1_000_000))
    program = """if True:
        import resource, sys, time
        from pipeline.sharding.image_sources import open_image_source
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        before, begin = peak(), time.process_time()
        open_image_source([sys.argv[1]], ["train.csv"], ["PMC0000000_Fig0.jpg"])
        print(peak() - before, time.process_time() - begin)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "images.zip"], capture_output=True, text=True, check=True
    )
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 100
    assert seconds < 15


def test_names_in_every_encoding_and_style_are_found(source):
    content = zipped({"ü.png": b"flagged", "x.png": b"cp437", "yy.png": b"habit", r"w\in.png": b"windows"})
    content = content.replace(b"x.png", "ö.png".encode("cp437")).replace(b"yy.png", "ä.png".encode())
    images = source(content, ["ü.png"])
    names = ["ü.png", "ö.png", "ä.png", "w/in.png"]
    assert [images.locate(name).read() for name in names] == [b"flagged", b"cp437", b"habit", b"windows"]


def test_folders_and_junk_of_macos_are_no_images(source):
    members = {
        "images/": b"",
        "images/a.png": b"good",
        "__MACOSX/images/a.png": b"junk",
        "images/b.png/": b"",
    }
    images = source(zipped(members))
    assert images.locate("a.png").read() == b"good"
    assert reason(images, "b.png") == "missing"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_members_with_one_name_the_last_counts_as_for_unzip(source):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for data in (b"old", b"newer", b"newest"):
            file.writestr("a.png", data)
    images = source(out.getvalue())
    assert images.locate("a.png").read() == b"newest"
    assert images.sizes(["a.png"]) == [6]


def test_member_names_that_lead_outside_lead_nowhere(source, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    images = source(zipped({"a.png": b"good", "../secret.png": b"member", "/etc/passwd": b"member"}))
    assert reason(images, "../secret.png") == "outside the image folder"
    assert reason(images, "/etc/passwd") == "outside the image folder"
    assert images.locate("a.png").read() == b"good"


LOCAL, RECORD = 0, 1


@pytest.mark.parametrize(
    ("where", "at", "form", "values", "expected"),
    [
        (RECORD, 24, "<L", (10,), "broken archive member"),  # more comes than declared
        (RECORD, 24, "<L", (100_000,), "broken archive member"),  # less comes
        (RECORD, 20, "<L", (20,), "truncated"),  # compressed data cut
        (RECORD, 20, "<L", (2**28,), "truncated"),  # beyond the file's end
        (RECORD, 20, "<L", (2**30,), "too large"),
        (RECORD, 24, "<L", (2**30,), "too large"),
        (RECORD, 24, "<L", (0xFFFFFFFF,), "broken archive member"),  # the same
        (RECORD, 16, "<L", (1,), "broken archive member"),  # CRC-32
        (RECORD, 42, "<L", (5,), "broken archive member"),  # no header there
        (RECORD, 42, "<L", (2**31,), "broken archive member"),  # beyond the file's end
        (RECORD, 42, "<L", (0,), "broken archive member"),  # another member's header
        (RECORD, 42, "<L", (0xFFFFFFFF,), "broken archive member"),  # zip64 without the number
        (RECORD, 10, "<H", (14,), "zip compression method 14 is not supported"),
        (RECORD, 10, "<H", (0,), "broken archive member"),  # stored, yet of two sizes
        (RECORD, 8, "<H", (1,), "encrypted archive member"),
        (LOCAL, 26, "<H", (3,), "broken archive member"),  # the name's length
        (LOCAL, 28, "<H", (0xFFFF,), "truncated"),  # the extra field's length
        (LOCAL, 30, "<B", (0,), "broken archive member"),  # the name
        (LOCAL, 35, "<Q", (2**64 - 1,), "broken archive member"),  # the data
    ],
)
def test_a_member_that_lies_is_rejected_and_others_are_not(source, where, at, form, values, expected):
    content = zipped(compression=zipfile.ZIP_DEFLATED)
    begin = record_of(content, b"b.png") if where == RECORD else content.index(b"b.png") - 30
    images = source(patched(content, begin + at, form, *values))
    assert reason(images, "b.png") == expected
    assert [images.locate(name).read() for name in ("a.png", "c.png")] == [MEMBERS["a.png"], MEMBERS["c.png"]]


def test_a_bomb_is_inflated_no_further_than_it_declares(source):
    bomb = zipped({"a.png": b"good", "b.png": bytes(100 * 2**20)}, compression=zipfile.ZIP_DEFLATED)
    images = source(patched(bomb, record_of(bomb, b"b.png") + 24, "<L", 1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason(images, "b.png") == "broken archive member"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def cut_directory(content: bytes) -> bytes:
    """A zip whose directory ends in the middle of a record, with an end that knows."""
    length = struct.unpack_from("<L", content, len(content) - 10)[0]
    return patched(content[: -22 - 5] + content[-22:], len(content) - 5 - 10, "<L", length - 5)


def at_end(at: int, form: str, *values: int):
    """A change of a zip: these values in its end record."""
    return lambda content: patched(content, len(content) - 22 + at, form, *values)


def all_encrypted(content: bytes) -> bytes:
    for name in MEMBERS:
        content = patched(content, record_of(content, name.encode()) + 8, "<H", 1)
    return content


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda content: content[:-30], DataError, r"cut short \(no directory at its end, byte [\d,]+\)"),
        (lambda content: content[:-4], DataError, "cut short"),
        (lambda content: b"", UsageError, "not a zip file"),
        (lambda content: b"\x89PNG" + bytes(100), UsageError, "not a zip file"),
        (at_end(4, "<2H", 1, 1), UsageError, "spans several files"),
        (at_end(8, "<H", 2), UsageError, "spans several files"),
        (at_end(8, "<2H", 7, 7), DataError, "has 3 members where its end counts 7"),
        (at_end(12, "<L", 30), DataError, "a directory that is not there"),
        (at_end(12, "<L", 2**30), DataError, "a directory that is not there"),
        (at_end(16, "<L", 2**30), DataError, "a directory that is not there"),
        (lambda content: patched(content, record_of(content, b"b.png"), "<L", 0), DataError, "no member's"),
        (cut_directory, DataError, "directory"),
        (all_encrypted, UsageError, "its members are encrypted; unpack it"),
    ],
)
def test_a_zip_that_cannot_be_trusted_is_refused_with_the_reason(source, change, error, message):
    with pytest.raises(error, match=message) as refused:
        source(change(zipped()))
    assert refused.type is error
    assert "images.zip: " in str(refused.value)
