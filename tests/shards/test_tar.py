"""Tar bytes: what others read of ours, and what we read of others'."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import DataError
from shards.tar import END_OF_ARCHIVE, members, pack_sample, split_name, write_header


def read(data: bytes) -> list[tuple[str, bytes]]:
    return [(name, bytes(content)) for name, content in members(memoryview(data))]


@given(
    st.dictionaries(st.sampled_from(["jpg", "txt", "json", "seg.png"]), st.binary(max_size=2000), min_size=1)
)
def test_what_is_packed_is_read_by_us_and_by_tarfile(content):
    data = pack_sample("000000007", content)
    expected = [(f"000000007.{extension}", value) for extension, value in content.items()]
    assert read(data) == expected
    with tarfile.open(fileobj=io.BytesIO(data + END_OF_ARCHIVE)) as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar] == expected
        assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in tar)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_foreign_tars_with_long_names_and_folders_are_read(format):
    name = (
        "/".join(["a" * 40] * 4) + "/é.jpg"
        if format != tarfile.USTAR_FORMAT
        else "a" * 90 + "/" + "b" * 90 + ".jpg"
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        folder = tarfile.TarInfo("a" * 40)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    assert read(buffer.getvalue()) == [(name, b"hello")]


def test_damaged_header_and_cut_member_are_errors():
    data = bytearray(pack_sample("k", {"txt": b"x" * 600}))
    with pytest.raises(DataError, match="longer than its sample"):
        read(bytes(data[:1024]))
    data[130:132] = b"xx"  # among the digits of its size
    with pytest.raises(DataError, match="no tar header"):
        read(bytes(data))
    with pytest.raises(DataError, match="no tar header"):
        read(b"not a tar".ljust(512, b"x"))


@pytest.mark.parametrize(
    ("name", "parts"),
    [("000.jpg", ("000", "jpg")), ("a.b/c.d.TXT", ("a.b/c", "d.txt")), ("noext", ("noext", ""))],
)
def test_key_ends_at_the_first_dot_of_the_file_name(name, parts):
    assert split_name(name) == parts


@given(
    st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=70),
    st.integers(0, 3000) | st.sampled_from([8**11 - 1]),
)
def test_headers_are_those_of_tarfile(name, size):
    """Also where the name does not fit into its field and is split at a folder."""
    for path in (name, f"{'f' * 90}/{name}"[:140]):
        member = tarfile.TarInfo(path)
        member.size, member.mode = size, 0o644
        try:
            expected = member.tobuf(tarfile.USTAR_FORMAT, "utf-8")
        except ValueError:
            continue  # longer than such a header can hold
        assert write_header(path, size) == expected
