"""Reading a range of a file: on local disk, and by any fsspec file system."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from shards.retry import ShortRead

_SLOWEST = 100_000  # bytes a second below which a read counts as stalled
_PATIENCE = 60.0  # seconds added to that, for a connection and an answer to begin


@dataclass(frozen=True)
class FoundRange:
    """What was read: the bytes asked for, fewer where the file ends. file_bytes: the size of the whole file;
    version: what changes whenever the file is written again. None: the storage did not say.
    """

    data: memoryview
    file_bytes: int | None = None
    version: str | None = None


class RangedReads(Protocol):
    """A way to read parts of files; may be used by several threads at once."""

    def read(self, path: str, start: int, length: int) -> FoundRange:
        """Up to `length` (at least 1) bytes from byte `start` on. Raises FileNotFoundError, and whatever else
        the storage raises; ShortRead where fewer came than are there.
        """


class WholeFilesOnly(Exception):
    """The server sends whole files, whatever part was asked for."""

    def __init__(self) -> None:
        super().__init__(
            "the server does not serve parts of files; copy the files to a local disk or an object store"
        )


class LocalReads:
    """Reads from local disk."""

    def read(self, path: str, start: int, length: int) -> FoundRange:
        """See `RangedReads`."""
        with open(path, "rb", buffering=0) as file:
            data = read_local(file.fileno(), start, length)
            return FoundRange(memoryview(data), os.fstat(file.fileno()).st_size)


def read_local(descriptor: int, start: int, length: int) -> bytes:
    """Up to `length` bytes from byte `start` on."""
    data = os.pread(descriptor, length, start)
    while 0 < len(data) < length:  # one call reads at most 2 GiB
        more = os.pread(descriptor, length - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


class FsspecReads:
    """Reads by an fsspec file system."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def read(self, path: str, start: int, length: int) -> FoundRange:
        """See `RangedReads`."""
        try:
            data = self._fs.cat_file(path, start=start, end=start + length, **self._options(length))
        except Exception as error:
            if not _is_past_the_end(error):
                raise
            data = b""
        if len(data) == length:
            return FoundRange(memoryview(data))
        if len(data) > length and start == 0:  # the whole file, though a part was asked for
            return FoundRange(memoryview(data)[:length], len(data))
        size = int(self._fs.info(path)["size"])
        there = max(0, min(size - start, length))
        if len(data) > there:
            raise WholeFilesOnly
        if len(data) < there:
            raise ShortRead(f"{len(data):,} bytes came of the {there:,} that are there")
        return FoundRange(memoryview(data), size)

    def _options(self, length: int) -> dict[str, Any]:
        """A limit to how long the read may take (others have their own), and no reading ahead."""
        if self._fs.async_impl:
            return {"timeout": _PATIENCE + length / _SLOWEST}
        return {"cache_type": "none"}


def _is_past_the_end(error: Exception) -> bool:
    """Whether a server refused a range because the file ends before it (HTTP 416)."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code in ("InvalidRange", "416") or getattr(error, "status", None) == 416
