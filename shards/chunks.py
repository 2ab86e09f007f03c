"""A shard's bytes from its beginning to its end, read ahead of use."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from shards.storage import Folder

CHUNK_BYTES = 8 * 2**20
_READ_AHEAD = 2  # chunks: the store answers one request while the one before is hashed


def read_chunks(folder: Folder, name: str, size: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The first `size` bytes of a file, in order, in chunks; fewer only where the file ends."""
    starts = iter(range(0, size, chunk_bytes))
    ahead: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(_READ_AHEAD) as threads:
        while True:
            while len(ahead) < _READ_AHEAD and (start := next(starts, None)) is not None:
                ahead.append(threads.submit(folder.read_range, name, start, min(chunk_bytes, size - start)))
            if not ahead:
                return
            yield bytes(ahead.popleft().result())
