"""Images that are members of a zip, read by offset: nothing is unpacked, and workers hold no directory."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.sharding.archive_file import ArchiveFile
from pipeline.sharding.archive_source import ArchiveImages
from pipeline.sharding.image_names import LARGEST_IMAGE, relative_path
from pipeline.sharding.range_readers import LocalReader, SpoolFile
from pipeline.sharding.rows import Rejected
from pipeline.sharding.zip_directory import (
    LOCAL_HEADER,
    LOCAL_SIGNATURE,
    Entry,
    directory_names,
    find_directory,
    read_record,
    record_length,
    record_path,
)
from shards.storage import is_remote

_STORED, _DEFLATED = 0, 8
_USUAL_RECORD = 512  # bytes: what a record with its name nearly always fits in
_USUAL_EXTRA = 64  # bytes of a local header's extra field that one read is to bring along
_FETCH, _FETCHES = 4 * 2**20, 4  # bytes of a remote directory in one request, and requests at a time


@dataclass(frozen=True, slots=True)
class ZipMember:
    """An image that is a member of a zip."""

    archive: ArchiveFile
    entry: Entry

    @property
    def size(self) -> int:
        """Its bytes, unpacked."""
        return self.entry.size

    def read(self) -> bytes:
        """The member's bytes; Rejected where they are not what the directory says of them."""
        data = self._stored_bytes()
        if self.entry.method == _DEFLATED:
            data = _inflate(data, self.entry.size)
        if len(data) != self.entry.size or zlib.crc32(data) != self.entry.crc:
            raise _broken()
        return data

    def _stored_bytes(self) -> bytes:
        """The member's bytes as the archive has them."""
        entry = self.entry
        usual = LOCAL_HEADER.size + len(entry.name) + _USUAL_EXTRA
        read = self.archive.read(entry.offset, usual + entry.compressed)
        if len(read) < LOCAL_HEADER.size:
            raise _broken()
        signature, name_length, extra_length = LOCAL_HEADER.unpack_from(read)
        start = LOCAL_HEADER.size + name_length + extra_length
        if signature != LOCAL_SIGNATURE or read[LOCAL_HEADER.size :][:name_length] != entry.name:
            raise _broken()
        missing = start + entry.compressed - len(read)
        if missing > 0:
            read += self.archive.read(entry.offset + len(read), missing)
        if len(read) < start + entry.compressed:
            raise Rejected("truncated")
        return read[start : start + entry.compressed]


def _inflate(data: bytes, size: int) -> bytes:
    """What deflated data stands for, never more than one byte beyond the size that it should have."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, size + 1)
    except zlib.error:
        raise _broken() from None
    if len(inflated) < size and not inflater.eof:
        raise Rejected("truncated")
    return inflated


def _broken() -> Rejected:
    return Rejected("broken archive member")


class ZipImages(ArchiveImages):
    """Images in a zip on local disk or at an address.

    Memory holds 16 bytes a member; the directory is read in place, that of a remote zip from a copy in an
    unnamed temporary file. Raises UsageError where there is no zip that can be read, DataError where it is
    cut short or damaged.
    """

    def __init__(self, address: str, table: str) -> None:
        super().__init__(address, table)
        directory = find_directory(address, self._archive.read, self._bytes)
        self._shift = directory.shift
        if is_remote(address):
            self._start, self._file = 0, _copy(self._archive, directory.start, directory.length)
        else:
            self._start, self._file = directory.start, LocalReader(address)
        self._build_index(directory_names(address, directory, self._read), self._path_at)

    def _read(self, start: int, length: int) -> bytes:
        # not mapped into memory, where the pages would count as this process's, and a zip that someone cuts
        # short meanwhile would kill it
        return self._file.read(self._start + start, length)

    def _path_at(self, place: int) -> bytes:
        return record_path(self._record(place))

    def _record(self, place: int) -> bytes:
        record = self._read(place, _USUAL_RECORD)
        length = record_length(record)
        return record if length <= _USUAL_RECORD else self._read(place, length)

    def locate(self, path: str) -> ZipMember:
        """Where the image with this path lies; Rejected where it cannot be read."""
        entry = read_record(self._record(self._index.find(relative_path(path))), self._shift)
        if entry is None or entry.offset >= self._bytes:
            raise _broken()
        if entry.encrypted:
            raise Rejected("encrypted archive member")
        if entry.method not in (_STORED, _DEFLATED):
            raise Rejected(f"zip compression method {entry.method} is not supported")
        if entry.method == _STORED and entry.compressed != entry.size:
            raise _broken()
        if max(entry.size, entry.compressed) > LARGEST_IMAGE:
            raise Rejected("too large")
        return ZipMember(self._archive, entry)


def _copy(archive: ArchiveFile, start: int, length: int) -> SpoolFile:
    """A part of an archive as a local file."""
    stop = start + length
    file = SpoolFile(archive.address)
    with ThreadPoolExecutor(_FETCHES) as pool:
        for first in range(start, stop, _FETCH * _FETCHES):
            pieces = range(first, min(first + _FETCH * _FETCHES, stop), _FETCH)
            for data in pool.map(lambda at: archive.read(at, min(_FETCH, stop - at)), pieces):
                file.write(data)
    file.flush()
    return file
