"""How far a long job has come: a bar on a terminal, a line now and then elsewhere (a log file)."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class RowProgress:
    """Follows a job on standard error; `done` of `total` (`what`: rows, say) were there before it began."""

    def __init__(self, total: int, done: int, what: str = "rows") -> None:
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
            rate = (self._done - self._before) / (now - self._begin)
            left = tqdm.format_interval((self._total - self._done) / rate)
            print(
                f"{self._done:,} of {self._total:,} {self._what}, {rate:,.0f} rows/s, about {left} left",
                file=sys.stderr,
                flush=True,
            )
