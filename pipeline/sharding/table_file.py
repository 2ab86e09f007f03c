"""The bytes of a table, wherever they lie, with one clear error for everything that may go wrong on the way.

Storage is asked for its next few megabytes when the last are used up; nothing is copied to disk.
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec

from shards import DataError, UsageError
from shards.storage import is_remote

# What one request to remote storage brings when a table is read from its begin to its end.
READ_AHEAD = 8 * 2**20

_BUFFER = 2**18
_GZIP_MAGIC = b"\x1f\x8b"


class TableFile(io.RawIOBase):
    """A file of which every fault is a UsageError (the table is missing or damaged) or a DataError (it could
    not be read) that names the address.
    """

    def __init__(self, source: BinaryIO, address: str) -> None:
        self._source, self._address = source, address
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Whether reading may go on elsewhere: false for a pipe."""
        return self._source.seekable()

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or what the file still has of it; the number of bytes."""
        try:
            data = self._source.read(len(buffer))
        except Exception as error:
            raise _explained(self._address, error) from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on reading at a byte."""
        self._position = self._source.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        """The byte to be read next; known for a pipe too."""
        return self._position


@contextmanager
def open_bytes(address: str, read_ahead: int = 0) -> Iterator[TableFile]:
    """A table's file as it lies in storage: a path, or any fsspec address such as `s3://bucket/table.csv`.

    read_ahead: bytes that a request to remote storage brings beyond those that are needed. Raises UsageError
    where there is no such file, DataError where it cannot be read.
    """
    try:
        source = _open_remote(address, read_ahead) if is_remote(address) else _open_local(address)
    except Exception as error:
        raise _explained(address, error) from error
    with source:
        yield TableFile(source, address)


@contextmanager
def open_text(address: str, zipped: bool) -> Iterator[BinaryIO]:
    """The bytes of a table that is text, unpacked where it is gzip'd, without the mark that some programs put
    before UTF-8.
    """
    with open_bytes(address, READ_AHEAD) as file:
        if zipped:
            packed = gzip.GzipFile(fileobj=io.BufferedReader(file, _BUFFER))
            file = TableFile(packed, address)  # type: ignore[arg-type]
        text = io.BufferedReader(file, _BUFFER)
        begin = text.peek(3)
        if begin.startswith(_GZIP_MAGIC):
            raise UsageError(f"{address}: it is gzip'd, which its name must say: add .gz to it")
        if begin.startswith(b"\xef\xbb\xbf"):
            text.read(3)
        yield text


def _open_local(address: str) -> BinaryIO:
    return open(address.removeprefix("file://"), "rb", buffering=0)


def _open_remote(address: str, read_ahead: int) -> BinaryIO:
    try:
        storage, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{address}: this kind of address is not available: {error}") from error
    if storage.info(path)["type"] == "directory":
        raise IsADirectoryError(address)
    cache = {"cache_type": "readahead", "block_size": read_ahead} if read_ahead else {"cache_type": "none"}
    return storage.open(path, "rb", **cache)


def _explained(address: str, error: Exception) -> DataError:
    """The error to raise for one that opening or reading a table met."""
    match error:
        case DataError():
            return error
        case FileNotFoundError() | NotADirectoryError():
            cause = f" ({error.__cause__})" if error.__cause__ else ""  # what a web server answered
            return UsageError(f"{address}: no such table{cause}")
        case IsADirectoryError():
            return UsageError(f"{address} is a folder; --csv takes a table of images and captions")
        case gzip.BadGzipFile() | EOFError() | zlib.error():
            return UsageError(f"{address}: not a whole gzip file ({error}): it is damaged or was cut short")
        case PermissionError():
            return DataError(
                f"{address}: access was denied ({error}); check the table's permissions, and for remote "
                "storage the credentials in the environment"
            )
        case _:
            return DataError(f"{address}: reading the table failed: {error or type(error).__name__}")
