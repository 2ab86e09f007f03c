"""Tars of every make are read, and one that is cut short or damaged is never taken for whole."""

import io
import subprocess
import tarfile

import pytest

from pipeline.sharding.image_sources import open_image_source
from pipeline.sharding.rows import Rejected
from shards import DataError, UsageError

LONG = "folder/" * 20 + "ü" * 90 + ".png"
MEMBERS = {"images/a.png": b"first", LONG: b"second image" * 100, "images/c.png": bytes(512), "e.png": b""}


def tarred(members=MEMBERS, format=tarfile.GNU_FORMAT, extra=()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for header in extra:
            file.addfile(header)
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            header.mtime = 1.5 if format == tarfile.PAX_FORMAT else 1
            file.addfile(header, io.BytesIO(data))
    return out.getvalue()


def typed(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


@pytest.fixture
def source(tmp_path):
    """`source(content)`: the images in a tar of these bytes."""

    def open_tar(content: bytes, names=("images/a.png",)):
        (tmp_path / "images.tar").write_bytes(content)
        table = str(tmp_path / "train.csv")
        return open_image_source([str(tmp_path / "images.tar")], [table], list(names))

    return open_tar


def reason(images, name):
    with pytest.raises(Rejected) as rejected:
        images.locate(name).read()
    return str(rejected.value)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_is_read_in_both_formats(source, format):
    images = source(tarred(format=format))
    assert {name: images.locate(name).read() for name in MEMBERS} == MEMBERS
    assert images.sizes([*MEMBERS, "d.png"]) == [*map(len, MEMBERS.values()), 0]


def test_long_paths_of_ustar_are_joined(source):
    long = "x" * 90 + "/" + "y" * 80 + ".png"
    images = source(tarred({"a.png": b"1", long: b"2"}, tarfile.USTAR_FORMAT), ["a.png"])
    assert images.locate(long).read() == b"2"


def test_the_tar_that_the_tar_command_makes_of_a_folder_is_read(tmp_path, source):
    (tmp_path / "images").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number}.png").write_bytes(bytes([number]) * number * 100)
    subprocess.run(["tar", "-cf", "all.tar", "./images"], cwd=tmp_path, check=True)
    images = source((tmp_path / "all.tar").read_bytes(), ["images/7.png"])
    for number in range(30):
        assert images.locate(f"images/{number}.png").read() == bytes([number]) * number * 100
        assert images.locate(f"{number}.png").read() == bytes([number]) * number * 100


def test_links_and_devices_are_no_files(source):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    extra = [typed(f"link{number}.png", kind, "/etc/hostname") for number, kind in enumerate(kinds)]
    images = source(tarred(extra=[*extra, typed("folder.png", tarfile.DIRTYPE)]))
    assert [reason(images, f"link{number}.png") for number in range(4)] == ["not a file"] * 4
    assert reason(images, "folder.png") == "missing"
    assert images.locate("images/c.png").read() == bytes(512)


def test_of_members_with_one_name_the_last_counts_as_for_tar(source):
    first = tarred({"a.png": b"old"})
    images = source(first[:1024] + tarred({"a.png": b"new"}), ["a.png"])
    assert images.locate("a.png").read() == b"new"


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + b"\xff" + content[at + 1 :]


WHOLE = tarred({"a.png": bytes(1000), "b.png": b"x" * 1000})
SPARSE = tarred({"a.png": b"1"}, extra=[typed("hole.png", tarfile.GNUTYPE_SPARSE)])
BAD_NOTE = tarred({"é.png": b"1"}, tarfile.PAX_FORMAT).replace(b" path=", b"x path=")
NEGATIVE = tarred({"é.png": b"1"}, tarfile.PAX_FORMAT).replace(b"path=\xc3\xa9.png", b"size=-00512")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            WHOLE[: 512 + 700],
            DataError,
            r"cut short \(the member at byte 0 goes beyond its end, byte 1,212\)",
        ),
        (WHOLE[: 1536 + 512 + 700], DataError, r"cut short \(the member at byte 1,536 goes beyond"),
        (WHOLE[: 1536 + 100], DataError, r"cut short \(nothing marks its end, byte 1,636\)"),
        (WHOLE[:1536], DataError, r"cut short \(nothing marks its end, byte 1,536\)"),
        (WHOLE[:3072], DataError, r"cut short \(nothing marks its end"),
        (damaged(WHOLE, 1536 + 20), DataError, r"damaged \(no tar header at byte 1,536\)"),
        (WHOLE[:1536] + bytes(1536) + WHOLE[3072:] + b"rest", DataError, r"damaged \(no tar header at byte"),
        (WHOLE + WHOLE, DataError, r"damaged \(no tar header at byte"),
        (BAD_NOTE, DataError, r"damaged \(no tar header at byte 0\)"),
        (NEGATIVE, DataError, r"damaged \(no tar header at byte 1,024\)"),
        (SPARSE, UsageError, "the member at byte 0 is stored as a sparse file"),
        (damaged(WHOLE, 20), UsageError, "not a tar file"),
        (b"\x28\xb5\x2f\xfd" + bytes(1000), UsageError, "no random access"),
        (bytes(10240), UsageError, "holds no files"),
        (b"", UsageError, "holds no files"),
    ],
)
def test_a_tar_that_cannot_be_trusted_is_refused_with_the_reason(source, content, error, message):
    with pytest.raises(error, match=message) as refused:
        source(content, ["a.png"])
    assert refused.type is error
    assert "images.tar: " in str(refused.value)


def test_a_tar_that_shrinks_during_the_job_stops_it(source, tmp_path):
    location = source(WHOLE, ["a.png"]).locate("b.png")
    (tmp_path / "images.tar").write_bytes(WHOLE[:2000])
    with pytest.raises(DataError, match="has become shorter since the job began"):
        location.read()
    (tmp_path / "images.tar").unlink()
    with pytest.raises(DataError, match="no such file"):
        location.read()
