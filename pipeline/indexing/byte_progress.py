"""How far a job over the bytes of shards has come: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

from pipeline.sharding.row_progress import SECONDS_BETWEEN_LINES


class ByteProgress:
    """Follows a job on standard error; `done` bytes of `total` were there before it began."""

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._before, self._done = total, done, done
        self._bar = tqdm(
            total=total, initial=done, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        )
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, size: int) -> None:
        """Count bytes that are read."""
        self._done += size
        self._bar.update(size)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            rate = (self._done - self._before) / (now - self._begin)
            left = tqdm.format_interval((self._total - self._done) / rate)
            print(
                f"{self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, {rate / 1e6:,.0f} MB/s, about "
                f"{left} left",
                file=sys.stderr,
                flush=True,
            )
