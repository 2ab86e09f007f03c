"""A clock for the waits of one thread, which another may read while a wait goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class WaitClock:
    """Adds up how long one thread has waited. Only that thread calls `running`; any may read `seconds`."""

    def __init__(self) -> None:
        # Seconds of the waits that ended, and when the one under way began: one value, so that whoever reads
        # them sees them as they belong together.
        self._state: tuple[float, float | None] = 0.0, None

    @property
    def seconds(self) -> float:
        """Seconds waited so far, with those of a wait under way."""
        ended, begin = self._state
        return ended if begin is None else ended + time.perf_counter() - begin

    @contextmanager
    def running(self) -> Iterator[None]:
        """A wait."""
        ended, begin = self._state[0], time.perf_counter()
        self._state = ended, begin
        try:
            yield
        finally:
            self._state = ended + time.perf_counter() - begin, None
