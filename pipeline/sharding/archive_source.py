"""What a zip and a tar of images have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from pipeline.job_progress import followed
from pipeline.sharding.archive_file import ArchiveFile, identity
from pipeline.sharding.image_names import NotHere
from pipeline.sharding.member_index import MemberIndex
from pipeline.sharding.range_readers import RangeReader
from pipeline.sharding.rows import Rejected
from shards import UsageError


class Member(Protocol):
    """Where a member of an archive lies."""

    @property
    def size(self) -> int:
        """Its bytes, unpacked."""

    def read(self) -> bytes:
        """The member's bytes; Rejected where they cannot be had."""


class ArchiveImages(ABC):
    """Images in an archive on local disk or at an address, of which `_file` stays open, the one that the
    index looks names up in. Raises UsageError where there is no such archive.
    """

    certain = True  # what is not located is not there
    _index: MemberIndex
    _file: RangeReader

    def __init__(self, address: str, table: str) -> None:
        self.address = address
        self._archive = ArchiveFile(address)
        self._bytes = self._archive.size()
        self.identity = identity(address, table, self._bytes)

    @property
    def examples(self) -> list[str]:
        """Some of the paths in it."""
        return self._index.examples

    def _build_index(self, members: Iterable[tuple[bytes, int]], path_at: Callable[[int], bytes]) -> None:
        """Make the index of members by their paths and places; UsageError where there are none."""
        try:
            self._index = MemberIndex(followed(members, f"files listed in {self.address}"), path_at)
            if not len(self._index):
                raise UsageError(f"{self.address}: the archive holds no files")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its file."""
        self._file.close()

    @abstractmethod
    def locate(self, path: str) -> Member:
        """Where the image with this path lies; NotHere where none does, Rejected where it cannot be read."""

    def holds(self, paths: Sequence[str]) -> int:
        """How many of these images are there, whether or not they can be read."""
        return sum(self._size(path) is not None for path in paths)

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """The bytes of each image, unpacked; 0 for one that is not there or cannot be read."""
        return [self._size(path) or 0 for path in paths]

    def _size(self, path: str) -> int | None:
        try:
            return self.locate(path).size
        except NotHere:
            return None
        except Rejected:
            return 0
