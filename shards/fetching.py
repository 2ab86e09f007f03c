"""Reads in the background: threads that do them in the order asked for, and what each of them is doing.

The threads are daemons and nothing waits for one that hangs, so a storage that does not answer never keeps a
process from ending.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from enum import Enum

from shards.retry import Attempts, recorded

# How long tries at one read go on while storage fails: an outage of some minutes does not end a training run.
TRY_SECONDS = 300.0
_JOIN_SECONDS = 0.5


class Purpose(Enum):
    """What a read is for."""

    BLOCK = "a block"
    SECOND_COPY = "a block whose first copy was damaged"
    SAMPLE = "a sample on its own, at a start"


@dataclass
class FetchStats:
    """What fetching has done so far, and what it holds; `held` and `ahead` count blocks from when they are
    asked for.
    """

    threads: int
    blocks: int = 0
    bytes: int = 0
    busy: float = 0.0  # seconds, over all fetching threads
    waited: float = 0.0  # seconds the stream had no block to hand on
    retried: int = 0  # tries that failed
    refetched: int = 0  # blocks fetched once more since their bytes were damaged
    held: int = 0  # bytes of the blocks in use and of those fetched ahead
    held_peak: int = 0
    ahead: int = 0  # bytes of the blocks fetched ahead of their first use
    ahead_peak: int = 0


@dataclass(frozen=True)
class UnderWay:
    """What a fetch is doing: what is read, for how many seconds so far (0 where it has not begun), at which
    try, and what the last failed try met ("" where none did).
    """

    what: str
    seconds: float
    tries: int
    trouble: str

    def __str__(self) -> str:
        tries = f", try {self.tries}" if self.tries > 1 else ""
        return f"{self.what} for {self.seconds:,.0f} s{tries}{': ' if self.trouble else ''}{self.trouble}"


class Fetch:
    """A read that was asked for. what: for messages, such as "s3://bucket/a.tar, bytes 0 to 9"."""

    def __init__(
        self, purpose: Purpose, what: str, read: Callable[[], memoryview], stop: threading.Event
    ) -> None:
        self.purpose, self.what = purpose, what
        self.data: memoryview | None = None  # what was read, once it is there
        self.attempts = Attempts(TRY_SECONDS, stop)
        self._read = read
        self._begun: float | None = None  # by time.monotonic
        self._error: BaseException = CancelledError()
        self._ended = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, well or not, or for so many seconds; whether it has ended."""
        return self._ended.wait(timeout)

    def result(self) -> memoryview:
        """What was read, when it has ended; raises what reading raised, CancelledError where it was given
        up.
        """
        if self.data is None:
            self._ended.wait()
        if self.data is None:
            raise self._error
        return self.data

    def give_up(self) -> None:
        """Let those who wait go on without it; where it has not begun, it never will."""
        self._ended.set()

    @property
    def has_begun(self) -> bool:
        """Whether a thread has taken it up."""
        return self._begun is not None

    def under_way(self) -> UnderWay:
        """What it is doing."""
        seconds = time.monotonic() - self._begun if self._begun else 0.0
        return UnderWay(self.what, seconds, self.attempts.tries, self.attempts.trouble)

    def run(self) -> None:
        """Read, on the calling thread."""
        self._begun = time.monotonic()
        try:
            with recorded(self.attempts):
                self.data = self._read()
        except BaseException as error:
            if not self.attempts.stop.is_set():  # else it may be that which ended it
                self._error = error
        del self._read  # it may hold what holds this fetch, and memory is to be free as soon as can be
        self._ended.set()


class FetchThreads:
    """Does fetches on up to `stats.threads` threads, first come first served, second copies before all else;
    keeps the part of `stats` that is about reads.
    """

    def __init__(self, stats: FetchStats) -> None:
        self._stats = stats
        self._threads: list[threading.Thread] = []
        self._queue: deque[Fetch] = deque()
        self._running: set[Fetch] = set()
        self._changed = threading.Condition()
        self._stop = threading.Event()

    def submit(self, purpose: Purpose, what: str, read: Callable[[], memoryview]) -> Fetch:
        """Have something read; CancelledError after `close`."""
        fetch = Fetch(purpose, what, read, self._stop)
        with self._changed:
            if self._stop.is_set():
                raise CancelledError
            if purpose is Purpose.SECOND_COPY:
                self._queue.appendleft(fetch)
            else:
                self._queue.append(fetch)
            if len(self._threads) < self._stats.threads:
                thread = threading.Thread(target=self._work, name="fetch", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return fetch

    @property
    def queued(self) -> int:
        """How many fetches wait for a thread."""
        return len(self._queue)

    def under_way(self) -> list[UnderWay]:
        """What the threads are doing, the longest first."""
        with self._changed:
            running = list(self._running)
        return sorted((fetch.under_way() for fetch in running), key=lambda entry: -entry.seconds)

    def close(self) -> None:
        """Give up all fetches; threads that hang in one are left behind and end with it."""
        with self._changed:
            self._stop.set()
            for fetch in (*self._queue, *self._running):
                fetch.give_up()
            self._queue.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        """Runs on each thread."""
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Do a fetch, when there is one; False when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stop.is_set())
            if self._stop.is_set():
                return False
            fetch = self._queue.popleft()
            if fetch.wait(0):  # it was given up
                return True
            self._running.add(fetch)
        begin = time.perf_counter()
        fetch.run()
        seconds = time.perf_counter() - begin
        with self._changed:
            self._running.discard(fetch)
            self._stats.busy += seconds
            self._stats.retried += fetch.attempts.failures
            if fetch.data is not None:
                self._stats.bytes += len(fetch.data)
                self._stats.blocks += fetch.purpose is not Purpose.SAMPLE
                self._stats.refetched += fetch.purpose is Purpose.SECOND_COPY
        return True
