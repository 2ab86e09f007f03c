"""The members of a tar, from one pass over its headers.

Unlike with `tarfile`, which takes a damaged header for the end, nothing that the tar was to hold is passed
over in silence: one that is cut short or damaged is refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.sharding.archive_file import ArchiveFile
from shards import DataError, UsageError

Read = Callable[[int, int], bytes]  # (start, length) -> up to that many bytes

_RECORD = 512
_LONGEST_NOTE = 2**20  # bytes of an extended header; a path has at most 4,096
_FILES, _FOLDER, _WITHOUT_DATA, _SPARSE, _NOTES = b"0\0007", b"5", b"123456", b"S", b"xgLK"
_COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A member of a tar: its path (UTF-8), its bytes, and where they begin; None for a link or a device."""

    path: bytes
    size: int
    start: int | None


@dataclass(frozen=True, slots=True)
class _Header:
    path: bytes
    size: int
    kind: bytes


def tar_entries(archive: ArchiveFile, size: int, read: Read) -> Iterator[TarEntry]:
    """Every member that is no folder, in order.

    Raises UsageError where the archive is no plain tar, DataError where it is cut short or damaged.
    """
    position, notes = 0, dict[bytes, bytes]()
    while header := _header_at(archive, read, position, size):
        start = position + _RECORD
        try:
            length = header.size if header.kind in _NOTES else int(notes.get(b"size", header.size))
            if length < 0:
                raise ValueError
            data_length = 0 if header.kind in _WITHOUT_DATA else length
            if start + data_length > size:
                raise _cut(archive, f"the member at byte {position:,} goes beyond its end, byte {size:,}")
            if header.kind in _NOTES:
                notes |= _notes(header.kind, read(start, min(length, _LONGEST_NOTE)))
            else:
                if header.kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in notes):
                    raise _sparse(archive, position)
                path = notes.get(b"path", header.path).removeprefix(b"./")
                if header.kind != _FOLDER and not path.endswith(b"/"):
                    yield TarEntry(path, data_length, start if header.kind in _FILES else None)
                notes = {}
        except ValueError:
            raise _damaged(archive, position) from None
        position = start + data_length + -data_length % _RECORD


def _header_at(archive: ArchiveFile, read: Read, position: int, size: int) -> _Header | None:
    """The header at a byte; None where the tar ends with zeros, as it should."""
    block = read(position, _RECORD)
    if len(block) < _RECORD and position:
        raise _cut(archive, f"nothing marks its end, byte {size:,}")
    header = _parse(block) if len(block) == _RECORD else None
    if header:
        return header
    if not position and any(block[:_RECORD]):
        raise (
            compressed_tar(archive.address)
            if block.startswith(_COMPRESSIONS)
            else UsageError(f"{archive.address}: not a tar file")
        )
    while block and not any(block):
        position += len(block)
        block = read(position, 2**20)
    if block:
        raise _damaged(archive, position)
    return None


def _parse(block: bytes) -> _Header | None:
    """The header in a record; None where it is none or its checksum is wrong."""
    try:
        checksum = int(block[148:156].strip(b"\0 ") or b"-1", 8)
        size = (
            int.from_bytes(block[125:136], "big")
            if block[124] == 0x80
            else int(block[124:136].strip(b"\0 ") or b"0", 8)
        )
    except ValueError:
        return None
    if size < 0 or checksum != sum(block) - sum(block[148:156]) + 8 * 0x20:
        return None
    path = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        path = block[345:500].split(b"\0", 1)[0] + b"/" + path
    return _Header(path, size, block[156:157])


def _notes(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """What an extended header says of the member after it; ValueError where it is damaged."""
    if kind == b"L":
        return {b"path": content.split(b"\0", 1)[0]}
    notes = {}
    while kind == b"x" and content:
        digits, _, _ = content.partition(b" ")
        length = int(digits)
        if not len(digits) < length <= len(content):
            raise ValueError
        key, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
        notes[key] = value
        content = content[length:]
    return notes


def compressed_tar(address: str) -> UsageError:
    """What to say of a tar.gz and its like."""
    return UsageError(
        f"{address}: a compressed tar has no random access: to read one image, all before it would have to "
        "be unpacked; unpack it and give the folder or the .tar"
    )


def _cut(archive: ArchiveFile, what: str) -> DataError:
    return DataError(f"{archive.address}: the tar is cut short ({what}): copy or download it again")


def _damaged(archive: ArchiveFile, position: int) -> DataError:
    return DataError(
        f"{archive.address}: the tar is damaged (no tar header at byte {position:,}): copy or download it "
        "again"
    )


def _sparse(archive: ArchiveFile, position: int) -> UsageError:
    return UsageError(
        f"{archive.address}: the member at byte {position:,} is stored as a sparse file, which cannot be "
        "read by offset; make the tar without --sparse"
    )
