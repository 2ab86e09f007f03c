"""Images that are members of a tar, read by offset once its headers were passed over."""

import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from pipeline.sharding.archive_file import ArchiveFile
from pipeline.sharding.archive_source import ArchiveImages
from pipeline.sharding.image_names import LARGEST_IMAGE, relative_path
from pipeline.sharding.range_readers import LocalReader, RemoteReader, SpoolFile
from pipeline.sharding.rows import Rejected
from pipeline.sharding.tar_directory import tar_entries
from shards import DataError
from shards.storage import is_remote

_MEMBER = struct.Struct("<QQI")  # where the data begins, its bytes, and the length of the path, which follows
_USUAL_MEMBER = 512  # bytes: what a member with its path nearly always fits in
_NO_DATA = 2**64 - 1  # where the data of a link begins


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image that is a member of a tar."""

    archive: ArchiveFile
    start: int
    size: int

    def read(self) -> bytes:
        """The member's bytes; DataError where the tar has changed."""
        data = self.archive.read(self.start, self.size)
        if len(data) < self.size:
            raise DataError(f"{self.archive.address}: has become shorter since the job began")
        return data


class TarImages(ArchiveImages):
    """Images in a tar on local disk or at an address.

    Memory holds 16 bytes a member; paths and places are in an unnamed temporary file. Raises UsageError where
    there is no plain tar, DataError where it is cut short or damaged.
    """

    def __init__(self, address: str, table: str) -> None:
        super().__init__(address, table)
        self._file = SpoolFile(address)
        self._build_index(self._spool_members(self._file), self._path_at)

    def _spool_members(self, spool: SpoolFile) -> Iterator[tuple[bytes, int]]:
        """Write every member to the temporary file; path and place in that file of each."""
        reader = (
            RemoteReader(self._archive, self._bytes) if is_remote(self.address) else LocalReader(self.address)
        )
        place = 0
        with closing(reader):
            for entry in tar_entries(self._archive, self._bytes, reader.read):
                start = _NO_DATA if entry.start is None else entry.start
                spool.write(_MEMBER.pack(start, entry.size, len(entry.path)) + entry.path)
                yield entry.path, place
                place += _MEMBER.size + len(entry.path)
        spool.flush()

    def _member(self, place: int) -> tuple[int, int, bytes]:
        """Start, size and path of the member at a place."""
        record = self._file.read(place, _USUAL_MEMBER)
        start, size, length = _MEMBER.unpack_from(record)
        path = record[_MEMBER.size : _MEMBER.size + length]
        if len(path) < length:
            path = self._file.read(place + _MEMBER.size, length)
        return start, size, path

    def _path_at(self, place: int) -> bytes:
        return self._member(place)[2]

    def locate(self, path: str) -> TarMember:
        """Where the image with this path lies; Rejected where it cannot be read."""
        start, size, _ = self._member(self._index.find(relative_path(path)))
        if start == _NO_DATA:
            raise Rejected("not a file")
        if size > LARGEST_IMAGE:
            raise Rejected("too large")
        return TarMember(self._archive, start, size)
