"""The directory at the end of a zip: where it lies, and what it says of each member.

An own reader, since the standard library's makes an object of every member: 720 MB for a million of them. The
layout is that of PKWARE's APPNOTE.TXT, 6.3.10.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shards import DataError, UsageError

Read = Callable[[int, int], bytes]  # (start, length) -> up to that many bytes

_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")  # says where the following is
_END_64 = struct.Struct("<4sQ2H2L4Q")  # zip64 end of central directory
_RECORD = struct.Struct("<4s4x2H4x3L3H8xL")  # a member's in the central directory
_NAME_OF_RECORD = struct.Struct("<4s4xH18x3H12x")  # the same, but only what the name needs
LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of name and extra field
LOCAL_SIGNATURE = b"PK\3\4"
_LONGEST_COMMENT = 0xFFFF
_PIECE = 2**20
_ENCRYPTED, _UTF8 = 1, 1 << 11


@dataclass(frozen=True)
class Directory:
    """Where a zip's directory lies in its file."""

    start: int
    length: int
    entries: int
    exact: bool  # whether `entries` is their number, or only its last 16 bits
    shift: int  # bytes put before the zip, which the offsets in it do not count


@dataclass(frozen=True)
class Entry:
    """What the directory says of one member."""

    name: bytes  # as it is stored
    offset: int  # of the local header, in the file
    compressed: int  # bytes
    size: int  # bytes
    crc: int
    method: int
    encrypted: bool


def find_directory(address: str, read: Read, size: int) -> Directory:
    """Find the directory from the file's end; UsageError where it is no zip that can be read, DataError where
    it was cut.
    """
    tail_start = max(0, size - _LONGEST_COMMENT - _END.size)
    tail = read(tail_start, size - tail_start) if size else b""
    at = _end_record(tail)
    if at is not None:
        return _directory(address, read, tail_start + at, _END.unpack_from(tail, at))
    if size and read(0, 4) == LOCAL_SIGNATURE:
        raise DataError(
            f"{address}: the zip is cut short (no directory at its end, byte {size:,}): copy or download it "
            "again"
        )
    raise UsageError(f"{address}: not a zip file")


def _end_record(tail: bytes) -> int | None:
    """Where the end record is in a zip's last bytes: the one whose comment ends with the file, rather than
    one that bytes follow, since a comment may look like an end.
    """
    followed = None
    at = len(tail) - _END.size + 4
    while (at := tail.rfind(b"PK\5\6", 0, max(at, 0))) >= 0:
        after = len(tail) - (at + _END.size + _END.unpack_from(tail, at)[-1])
        if not after:
            return at
        if after > 0 and followed is None:
            followed = at
    return followed


def _directory(address: str, read: Read, end: int, record: tuple[int, ...]) -> Directory:
    _, disk, first_disk, entries_here, entries, length, offset, _ = record
    exact = False
    locator = read(max(0, end - _LOCATOR.size), _LOCATOR.size)
    if end >= _LOCATOR.size and locator[:4] == b"PK\6\7":
        end, fields = _end_64(address, read, end - _LOCATOR.size, _LOCATOR.unpack(locator)[2])
        disk, first_disk, entries_here, entries, length, offset = fields
        exact = True
    if disk or first_disk or entries_here != entries:
        raise UsageError(
            f"{address}: one part of a zip that spans several files; join them first: zip -s 0 {address} "
            "--out joined.zip"
        )
    start = end - length
    if start < offset or (length and read(start, 4) != b"PK\1\2"):
        raise _broken(address, "its end names a directory that is not there")
    return Directory(start, length, entries, exact, start - offset)


def _end_64(address: str, read: Read, locator: int, offset: int) -> tuple[int, tuple[int, ...]]:
    """The place and fields of the zip64 end record, where the locator says or, if bytes were put before the
    zip, right before the locator.
    """
    for place in (offset, locator - _END_64.size):
        if 0 <= place <= locator - _END_64.size:
            record = _END_64.unpack(read(place, _END_64.size))
            if record[0] == b"PK\6\6":
                return place, record[4:]
    raise _broken(address, "its zip64 end record is not where it should be")


def directory_names(address: str, directory: Directory, read: Read) -> Iterator[tuple[bytes, int]]:
    """The path and the record's place in the directory of every file, in order; junk of macOS left out.

    read: of the directory's bytes. UsageError where all are encrypted, DataError where it is damaged.
    """
    unpack, header = _NAME_OF_RECORD.unpack_from, _NAME_OF_RECORD.size
    position = entries = encrypted = 0
    while position < directory.length:
        piece = read(position, min(_PIECE, directory.length - position))
        at = 0
        while at + header <= len(piece):
            signature, flags, name_length, extra_length, comment_length = unpack(piece, at)
            end = at + header + name_length
            if signature != b"PK\1\2":
                raise _broken(address, f"no member's record at byte {position + at:,} of its directory")
            if end > len(piece):
                break
            path = member_path(piece[at + header : end], flags)
            if not path.endswith(b"/") and not path.startswith(b"__MACOSX/"):
                yield path, position + at
            entries += 1
            encrypted += flags & _ENCRYPTED
            at = end + extra_length + comment_length
        if not at:
            raise _broken(address, "its directory is cut short")
        position += at
    expected = directory.entries if directory.exact else entries - (entries - directory.entries) % 2**16
    if position != directory.length or entries != expected:
        raise _broken(
            address, f"its directory has {entries:,} members where its end counts {directory.entries:,}"
        )
    if entries and encrypted == entries:
        raise UsageError(f"{address}: its members are encrypted; unpack it and give the folder")


def member_path(name: bytes, flags: int) -> bytes:
    """A stored name as a path in UTF-8 with `/` between folders.

    Names without the flag for UTF-8 are cp437 by the standard, but UTF-8 by habit of macOS and zip on Linux.
    """
    if not name.isascii() and not flags & _UTF8:
        try:
            name.decode()
        except UnicodeDecodeError:
            name = name.decode("cp437").encode()
    return name.replace(b"\\", b"/").removeprefix(b"./")


def record_length(record: bytes) -> int:
    """The length of a record that begins with these bytes."""
    return _RECORD.size + sum(_NAME_OF_RECORD.unpack_from(record)[2:])


def record_path(record: bytes) -> bytes:
    """The path in a record."""
    _, flags, name_length, _, _ = _NAME_OF_RECORD.unpack_from(record)
    return member_path(record[_RECORD.size : _RECORD.size + name_length], flags)


def read_record(record: bytes, shift: int) -> Entry | None:
    """The entry in a record; None where its sizes are damaged.

    shift: bytes put before the zip.
    """
    fields = _RECORD.unpack_from(record)
    _, flags, method, crc, compressed, size, name_length, extra_length, _, offset = fields
    extra = record[_RECORD.size + name_length :][:extra_length]
    wanted = [value == 0xFFFFFFFF for value in (size, compressed, offset)]
    if any(wanted):
        values = _zip64_values(extra)
        if len(values) < sum(wanted):
            return None
        size, compressed, offset = (
            values.pop(0) if elsewhere else value
            for elsewhere, value in zip(wanted, (size, compressed, offset), strict=True)
        )
    name = record[_RECORD.size : _RECORD.size + name_length]
    return Entry(name, offset + shift, compressed, size, crc, method, bool(flags & _ENCRYPTED))


def _zip64_values(extra: bytes) -> list[int]:
    """The 8-byte numbers of a record's zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            return list(struct.unpack_from(f"<{len(body) // 8}Q", body))
        at += 4 + length
    return []


def _broken(address: str, what: str) -> DataError:
    return DataError(f"{address}: the zip is damaged ({what}): copy or download it again")
