"""Reading parts of files that stay open: a local file, a remote one from front to back, a temporary one."""

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Protocol

from pipeline.sharding.archive_file import ArchiveFile
from shards import DataError

_BLOCK, _AHEAD = 8 * 2**20, 2  # bytes in one request of a remote file, and requests beyond the one in use


class RangeReader(Protocol):
    """A file that is open for reading."""

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on, fewer only where the file ends."""

    def close(self) -> None:
        """Close the file."""


class LocalReader:
    """Reads of a local file that is kept open."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on, fewer only where the file ends."""
        return os.pread(self._file.fileno(), length, start)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RemoteReader:
    """Small reads, one after the other, of a remote file that is fetched in large blocks ahead of them."""

    def __init__(self, archive: ArchiveFile, size: int) -> None:
        self._archive, self._size = archive, size
        self._pool = ThreadPoolExecutor(1 + _AHEAD)
        self._blocks: dict[int, Future[bytes]] = {}

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on, fewer only where the file ends."""
        parts = []
        stop = min(start + length, self._size)
        while start < stop:
            block, at = divmod(start, _BLOCK)
            parts.append(self._block(block)[at : at + stop - start])
            start += len(parts[-1])
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        for wanted in range(number, min(number + 1 + _AHEAD, -(-self._size // _BLOCK))):
            if wanted not in self._blocks:
                start = wanted * _BLOCK
                length = min(_BLOCK, self._size - start)
                self._blocks[wanted] = self._pool.submit(self._archive.read, start, length)
        for past in [block for block in self._blocks if block < number]:
            self._blocks.pop(past).cancel()
        return self._blocks[number].result()

    def close(self) -> None:
        """Give up what is being fetched."""
        self._pool.shutdown(cancel_futures=True)


class SpoolFile:
    """An unnamed temporary file for what a source holds: it vanishes with this process, however it ends."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._file = tempfile.TemporaryFile(buffering=2**20)  # noqa: SIM115 (closed by `close`)

    def write(self, data: bytes) -> None:
        """Append bytes; DataError where the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._no_room(error) from error

    def flush(self) -> None:
        """Let what was written be read; DataError where the disk is full."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"the list of files in {self._address} could not be put into the temporary folder "
            f"{tempfile.gettempdir()}: {error}; if that disk is full, set TMPDIR to a folder on another"
        )

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on, fewer only where the file ends."""
        return os.pread(self._file.fileno(), length, start)

    def close(self) -> None:
        """Close the file."""
        close_unwanted(self._file)


def close_unwanted(file: IO[bytes]) -> None:
    """Close a temporary file of which nothing more is wanted: on a full disk, closing tries once more to
    write what was not written, and would hide the error that told of it.
    """
    with suppress(OSError):
        file.close()
