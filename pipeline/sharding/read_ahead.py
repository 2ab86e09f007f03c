"""Reading ahead of use where storage is slow: while one image is decoded, the next are on their way."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from pipeline.sharding.image_sources import Location
from pipeline.sharding.rows import Rejected

Place = TypeVar("Place")
Content = TypeVar("Content")
# An object store answers slowly, but many at a time. A task reads a few places, since handing one to a thread
# costs more than reading a file that is in memory.
READERS, PLACES_A_TASK = 8, 4
# Storage is quick where a read takes less than this: threads would then cost more than they save, half as
# much again as all the work of packing an image unchecked. Single slow reads do not count: on a busy machine
# there are always some.
_QUICK_SECONDS, _SLOW_SHARE, _FEW = 0.0005, 0.25, 2


def read_ahead(read: Callable[[Place], Content], places: Iterable[Place]) -> Iterator[Content]:
    """What `read` finds at every place, in order. Where that turns out to take time, a few are read at once,
    ahead of use, and held in memory.

    An error of `read` is raised before the contents of the few places that were read with it.
    """
    remaining = iter(places)
    slow = 0
    for count, place in enumerate(remaining, 1):
        begin = time.perf_counter()
        content = read(place)
        slow += time.perf_counter() - begin > _QUICK_SECONDS
        yield content
        if slow >= _FEW and slow >= count * _SLOW_SHARE:
            break
    waiting: deque[Future[list[Content]]] = deque()
    with ThreadPoolExecutor(READERS) as threads:
        while some := list(islice(remaining, PLACES_A_TASK)):
            waiting.append(threads.submit(_read_some, read, some))
            if len(waiting) == READERS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _read_some(read: Callable[[Place], Content], places: Sequence[Place]) -> list[Content]:
    return [read(place) for place in places]


def read_image(location: "Location | Rejected") -> "bytes | Rejected":
    """An image's bytes, or why they cannot be had. Raises DataError where the storage fails."""
    if isinstance(location, Rejected):
        return location
    try:
        return location.read()
    except Rejected as reason:
        return reason
