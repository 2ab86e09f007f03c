"""How far a long job has come: a bar on a terminal, a line now and then elsewhere (a log file)."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0
_ITEMS_BETWEEN_LOOKS = 256  # at the clock


@dataclass(frozen=True)
class Unit:
    """What a job counts: its name, and how many of the numbers given make one."""

    name: str
    size: int = 1


ROWS, MEGABYTES = Unit("rows"), Unit("MB", 10**6)


class JobProgress:
    """Follows a job on standard error; `done` of `total` were there before it began.

    total: None where it is not known before the end.
    """

    def __init__(self, total: int | None, done: int = 0, unit: Unit = ROWS) -> None:
        self._unit = unit
        self._total, self._before, self._done = total, done, done
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="B" if unit is MEGABYTES else f" {unit.name}",
            unit_scale=unit is MEGABYTES,
            disable=not sys.stderr.isatty(),
        )
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> "JobProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Count what is finished."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(self._line((self._done - self._before) / (now - self._begin)), file=sys.stderr, flush=True)

    def _line(self, per_second: float) -> str:
        done, rate = self._done / self._unit.size, per_second / self._unit.size
        shown = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1g}/s"
        if self._total is None:
            return f"{done:,.0f} {self._unit.name}, {shown}"
        total = self._total / self._unit.size
        left = tqdm.format_interval((self._total - self._done) / per_second)
        return f"{done:,.0f} of {total:,.0f} {self._unit.name}, {shown}, about {left} left"


def followed(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The items as they are, while standard error tells how many there were so far (`what`: files listed,
    say).
    """
    with JobProgress(None, unit=Unit(what)) as progress:
        for number, item in enumerate(items, 1):
            yield item
            if number % _ITEMS_BETWEEN_LOOKS == 0:
                progress.advance(_ITEMS_BETWEEN_LOOKS)
