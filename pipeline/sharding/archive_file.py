"""An archive's bytes, on local disk or at an address, read by range in whatever process needs them."""

import os
import posixpath
from dataclasses import dataclass
from functools import lru_cache

from shards import DataError, Folder, UsageError
from shards.storage import is_remote


@lru_cache(maxsize=64)
def folder_at(address: str) -> Folder:
    """The folder at an address; one for each address and process."""
    return Folder(address)


def plain_address(address: str) -> str:
    """An address as it is; a local path absolute and without `file://`, for processes in other folders."""
    return address if is_remote(address) else os.path.abspath(address.removeprefix("file://"))


def identity(address: str, table: str, size: int | None = None) -> str:
    """What tells a source from others: a remote one's address, a local one's path relative to the table's
    folder, since both may move together; with an archive's size in bytes.
    """
    if not is_remote(address):
        address = os.path.realpath(address)
        if not is_remote(table):
            folder = os.path.dirname(os.path.realpath(table.removeprefix("file://")))
            address = os.path.relpath(address, folder)
    return address if size is None else f"{address} ({size:,} bytes)"


@dataclass(frozen=True)
class ArchiveFile:
    """An archive by its address, as `plain_address` gives it."""

    address: str

    @property
    def _parts(self) -> tuple[Folder, str]:
        folder, name = posixpath.split(self.address)
        return folder_at(folder), name

    def size(self) -> int:
        """Its bytes; UsageError where there is no such file."""
        folder, name = self._parts
        try:
            return folder.size(name)
        except FileNotFoundError:
            raise UsageError(f"{self.address}: no such file") from None

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on, fewer only where the archive ends; DataError where it
        cannot be read.
        """
        folder, name = self._parts
        try:
            data = bytes(folder.read_range(name, start, length))
        except FileNotFoundError:
            raise DataError(
                f"{self.address}: no such file (any more, or on this machine): processes that pack need the "
                "archive under the address that was given"
            ) from None
        if len(data) > length:
            raise DataError(
                f"{self.address}: the server does not serve parts of files, which reading single images out "
                "of an archive needs; download it first"
            )
        return data
