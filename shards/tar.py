"""WebDataset tars: the members of one sample out, and the samples of a run of bytes in.

Headers are those of the standard library's `tarfile` with every field that could vary fixed, so equal samples
give equal bytes. Reading parses headers in memory: no file object, no seeking, no copy of the data.
"""

import struct
import tarfile
import zlib
from collections.abc import Iterator

from shards.errors import DataError

RECORD = 512
END_OF_ARCHIVE = bytes(2 * RECORD)
_REGULAR = b"0\x007"
# A written header: the name, this, the size in octal, this, the checksum, this.
_WRITTEN = struct.Struct("100s24s12s12s8s356s")
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_KIND_AND_MAGIC = b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(255, b"\0")
_FIXED_SUM = sum(_MODE_AND_OWNER + _TIME + _KIND_AND_MAGIC) + 8 * ord(" ")
_LONGEST_NAME, _LARGEST_SIZE = 100, 8**11 - 1
# Of a header, what reading a member takes: name, size, kind, magic and the name's beginning.
_HEADER = struct.Struct("100s24x12s20xc100x5s83x155s12x")
_ADLER_MODULUS = 65_521


def pack_sample(key: str, members: "dict[str, bytes]") -> bytes:
    """One sample's tar bytes: a header and padded data for each member, named `key.extension`, in the order
    given.
    """
    parts: list[bytes] = []
    for extension, data in members.items():
        size = len(data)
        parts += (write_header(f"{key}.{extension}", size), data, bytes(-size % RECORD))
    return b"".join(parts)


def write_header(name: str, size: int) -> bytes:
    """What `tarfile` writes for such a member, at a tenth of its time."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _LONGEST_NAME or size > _LARGEST_SIZE:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o644
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + _byte_sum(encoded + digits))
    return _WRITTEN.pack(encoded, _MODE_AND_OWNER, digits, _TIME, checksum, _KIND_AND_MAGIC)


def split_name(name: str) -> tuple[str, str]:
    """A member's (key, extension): split at the first dot of the file name, as webdataset does."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def is_hidden(name: str) -> bool:
    """Whether a member is a hidden file (`._x.jpg` of a Mac, …), which belongs to no sample."""
    return name.startswith(".", name.rfind("/") + 1)


def members(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The (name, content) of every regular file in a run of whole tar records, without copying the content.

    Long names are understood in both forms (PAX and GNU). Raises DataError where the bytes are not tar
    records. The checksums of headers are not looked at: a sample has one of its own, over all its bytes.
    """
    position, long_name, end = 0, None, len(data)
    while (start := position + RECORD) <= end:
        name, digits, kind, magic, prefix = _HEADER.unpack_from(data, position)
        if not name[0]:
            if any(data[position:start]):
                raise DataError(f"byte {position:,} holds no tar header")
            position = start  # padding after the last member
            continue
        try:
            size = int(digits.rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            raise DataError(f"byte {position:,} holds no tar header") from None
        if start + size > end:
            raise DataError(f"the member at byte {position:,} is longer than its sample")
        content = data[start : start + size]
        position = start + size + -size % RECORD
        if kind in _REGULAR:
            yield long_name or _name(name, magic, prefix), content
            long_name = None
        elif kind == b"x":
            long_name = _pax_path(bytes(content)) or long_name
        elif kind == b"L":
            long_name = bytes(content).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind != b"g":
            long_name = None


def header_fields(header: bytes, position: int) -> tuple[int, bytes]:
    """A header's data size and type, after its checksum was found right."""
    try:
        stored = int(header[148:156].rstrip(b"\0 ") or b"0", 8)
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise DataError(f"byte {position:,} holds no tar header") from None
    if _byte_sum(header) != (stored + sum(header[148:156]) - 8 * ord(" ")) % _ADLER_MODULUS:
        raise DataError(f"the tar header at byte {position:,} is damaged (wrong checksum)")
    return size, header[156:157]


def _byte_sum(header: bytes) -> int:
    """The sum of a header's bytes modulo 65,521, at a tenth of the time that `sum` takes: Adler-32's lower
    half is that sum, plus one.
    """
    return ((zlib.adler32(header) & 0xFFFF) - 1) % _ADLER_MODULUS


def header_name(header: bytes) -> str:
    """The name that a header itself has room for."""
    name, _, _, magic, prefix = _HEADER.unpack(header)
    return _name(name, magic, prefix)


def _name(name: bytes, magic: bytes, prefix: bytes) -> str:
    name = name.partition(b"\0")[0]
    if prefix[0] and magic == b"ustar":
        name = prefix.partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_path(content: bytes) -> str | None:
    while content:
        length = int(content[: content.index(b" ")])
        keyword, _, value = content[content.index(b" ") + 1 : length - 1].partition(b"=")
        if keyword == b"path":
            return value.decode()
        content = content[length:]
    return None
