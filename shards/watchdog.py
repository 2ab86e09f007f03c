"""Waiting that never hangs in silence: it says what it waits for, and gives up past a deadline."""

import queue
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shards.errors import DataError

Item = TypeVar("Item")
Yielded = TypeVar("Yielded", covariant=True)


@dataclass(frozen=True)
class Patience:
    """How many seconds a wait lasts before it says what it waits for (and says so again every time as many
    have passed), and before it gives up.

    It gives up before the 10 minutes are over after which the other processes of a job, which wait for this
    one in a collective, end without knowing why.
    """

    warn_after: float = 60.0
    give_up_after: float = 480.0


class Queue(Protocol[Yielded]):
    """A queue of the standard library."""

    def get(self, block: bool = True, timeout: float | None = None) -> Yielded:
        """The next item; raises `queue.Empty` where none comes within `timeout` seconds."""


class Watchdog:
    """Waits on a caller's behalf.

    describe, everywhere: what is waited for, as it stands now ("fetch of s3://…, try 4: 503 Slow Down"), or
    "" as long as another watchdog has an eye on that.
    """

    def __init__(self, patience: Patience, say: Callable[[str], None] | None = None) -> None:
        self._patience = patience
        self._say = say or _say_on_standard_error

    def wait(self, attempt: Callable[[float], bool], describe: Callable[[], str]) -> None:
        """Call `attempt(timeout in seconds)`, such as the `wait` of an Event, until it returns true.

        Raises DataError past the deadline.
        """
        warn_after, give_up_after = self._patience.warn_after, self._patience.give_up_after
        begin, waited, next_word = time.monotonic(), 0.0, warn_after
        while not attempt(min(next_word, give_up_after if waited < give_up_after else next_word) - waited):
            waited = time.monotonic() - begin
            what = describe()
            if what and waited >= give_up_after:
                raise DataError(f"gave up after waiting for {waited:,.0f} s on {what}; {_REMEDY}")
            if waited >= next_word:
                next_word = waited + warn_after
                if what:
                    self._say(f"waiting for {waited:,.0f} s on {what}")

    def get(self, source: Queue[Item], describe: Callable[[], str]) -> Item:
        """The next item of a queue; DataError past the deadline."""
        found: list[Item] = []

        def attempt(timeout: float) -> bool:
            try:
                found.append(source.get(timeout=timeout))
            except queue.Empty:
                return False
            return True

        self.wait(attempt, describe)
        return found[0]


def _say_on_standard_error(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


_REMEDY = "start again from where it stopped when this answers (training: --resume auto)"
