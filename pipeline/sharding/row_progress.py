"""How far a long job has come: a bar on a terminal, a line now and then elsewhere (a log file)."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0
_ITEMS_BETWEEN_LOOKS = 256  # at the clock


class RowProgress:
    """Follows a job on standard error; `done` of `total` (`what`: rows, say) were there before it began.

    total: None where it is not known before the end.
    """

    def __init__(self, total: int | None, done: int, what: str = "rows") -> None:
        self._what = what
        self._total, self._before, self._done = total, done, done
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="row",
            desc=None if what == "rows" else what,
            disable=not sys.stderr.isatty(),
        )
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> "RowProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, rows: int) -> None:
        """Count rows that are finished."""
        self._done += rows
        self._bar.update(rows)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(self._line((self._done - self._before) / (now - self._begin)), file=sys.stderr, flush=True)

    def _line(self, rate: float) -> str:
        shown = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1g}/s"
        if self._total is None:
            return f"{self._done:,} {self._what}, {shown}"
        left = tqdm.format_interval((self._total - self._done) / rate)
        return f"{self._done:,} of {self._total:,} {self._what}, {shown}, about {left} left"


def followed(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The items as they are, while standard error tells how many there were so far (`what`: files listed,
    say).
    """
    with RowProgress(None, 0, what) as progress:
        for number, item in enumerate(items, 1):
            yield item
            if number % _ITEMS_BETWEEN_LOOKS == 0:
                progress.advance(_ITEMS_BETWEEN_LOOKS)
