"""Reading ahead of use: while one image is decoded, the next are on their way."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.sharding.image_sources import Location
from pipeline.sharding.rows import Rejected

Place = TypeVar("Place")
Content = TypeVar("Content")
# An object store answers slowly, but many at a time.
READERS = 8


def read_ahead(read: Callable[[Place], Content], places: Iterable[Place]) -> Iterator[Content]:
    """What `read` finds at every place, in order; a few are read at a time and held in memory.

    An error of `read` is raised where its result would have come.
    """
    waiting: deque[Future[Content]] = deque()
    with ThreadPoolExecutor(READERS) as threads:
        for place in places:
            waiting.append(threads.submit(read, place))
            if len(waiting) == 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_image(location: "Location | Rejected") -> "bytes | Rejected":
    """An image's bytes, or why they cannot be had. Raises DataError where the storage fails."""
    if isinstance(location, Rejected):
        return location
    try:
        return location.read()
    except Rejected as reason:
        return reason
