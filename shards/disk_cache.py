"""Blocks of remote data sets, kept on a machine's own disk for all its processes.

    cache = DiskCache("/local/cache", 500 * 10**9)
    data = cache.get_or_read("data set/block", length, read)

An epoch takes every block once, in an order of its own. A block of a data set that is in use is therefore
never evicted for another one: that wins nothing, and always dropping the least recently used one would leave
a cache for half of the data with 15 % hits instead of 50 %. What makes room are data sets that no process has
in use any more; where there are none, new blocks are not kept.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from shards.cache_space import CacheSpace
from shards.errors import UsageError
from shards.ranged_reads import read_local

_CHECKSUM_BYTES = 8


@dataclass
class CacheStats:
    """What one process has had of a cache: blocks found, not found, and found damaged (not found either)."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0


class DiskCache:
    """Blocks by key, in files with a checksum each, of together at most `max_bytes` in a local folder. Safe
    to share between threads and processes; `close` it (or leave a `with`) to let others evict what it used.

    A key is "data set/block": the first part says which blocks are used together. The cache never fails its
    user: a block that is damaged or cannot be read counts as not there, and when the disk refuses one, that
    is said once and no more are kept. Of processes that miss the same block at a time, each reads it and one
    keeps it.
    """

    def __init__(self, folder: "str | os.PathLike[str]", max_bytes: int) -> None:
        self.stats = CacheStats()
        self._folder = Path(folder)
        self._takes_more = True
        try:
            self._space = CacheSpace(self._folder, max_bytes)
        except OSError as error:
            raise UsageError(
                f"{folder}: no cache can be here: {error.strerror or error}; give a folder on a local disk"
            ) from error

    def __enter__(self) -> "DiskCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; the cache stays on disk."""
        self._space.close()

    def __contains__(self, key: object) -> bool:
        """Whether a block seems to be there."""
        return isinstance(key, str) and self._path(key).exists()

    def get_or_read(self, key: str, length: int, read: Callable[[], memoryview]) -> memoryview:
        """The `length` bytes of a block: those kept, or what `read` returns, which is kept from then on."""
        data = self.get(key, length)
        if data is None:
            data = read()
            self.put(key, data)
        return data

    def get(self, key: str, length: int) -> memoryview | None:
        """The `length` bytes of a block; None where it is not there whole and as it was written."""
        try:
            # Not mapped into memory: that is a little cheaper, but a failing disk would kill the process.
            with open(self._path(key), "rb", buffering=0) as file:
                content = read_local(file.fileno(), 0, length + _CHECKSUM_BYTES + 1)
                os.utime(file.fileno())  # when it was last used
        except FileNotFoundError:
            self.stats.misses += 1
            return None
        except OSError:
            content = b""
        data = memoryview(content)[:length]
        if content[length:] != _checksum(key, data):
            self.stats.damaged += 1
            self.remove(key)
            return None
        self.stats.hits += 1
        return data

    def put(self, key: str, data: memoryview) -> None:
        """Keep a block, where there is room and it is not there yet."""
        if not self._takes_more:
            return
        path = self._path(key)
        try:
            if len(data) + _CHECKSUM_BYTES > self._space.max_bytes:
                raise OSError(f"a block of {len(data):,} bytes is larger than the whole cache may be")
            descriptor = self._space.create(path, len(data) + _CHECKSUM_BYTES)
            if descriptor is None:
                return
            try:
                _write(descriptor, data)
                _write(descriptor, _checksum(key, data))
            except OSError:
                self._space.discard(path, descriptor)
                raise
            self._space.keep(path, descriptor)
        except OSError as error:
            self._refuse(error)

    def remove(self, key: str) -> None:
        """Forget a block, such as one whose samples turned out damaged."""
        try:
            self._space.remove(self._path(key))
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        if self._takes_more:
            self._takes_more = False
            print(f"{self._folder}: no more blocks are cached: {error}", file=sys.stderr, flush=True)

    def _path(self, key: str) -> Path:
        """Where a block is or would be; from now on its data set is in use."""
        data_set, _, block = key.partition("/")
        path = self._folder / _hashed(data_set) / _hashed(block)
        with suppress(OSError):  # of which keeping a block would tell
            self._space.mark_used(path.parent)
        return path


def _hashed(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _checksum(key: str, data: memoryview) -> bytes:
    """Of a block and its key: a file under another's name is as wrong as a garbled one."""
    return xxhash.xxh3_64_digest(data, xxhash.xxh3_64_intdigest(key.encode()))


def _write(descriptor: int, data: "memoryview | bytes") -> None:
    """All of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
