"""How a packing command ends: with a summary, or stopped in a state that the same command goes on from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.interrupts import SIGTERM_EXIT_CODE
from pipeline.sharding.job import FinishedDataSet, Stopped
from pipeline.wording import counted


def say(message: str) -> None:
    """Tell the user on standard error."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def resumable() -> Iterator[None]:
    """Around the work: where it is stopped, say what was kept; after SIGTERM the exit code is 143."""
    try:
        yield
    except Stopped:
        say("SIGTERM: the shards in work were finished; the same command goes on with the others")
        sys.exit(SIGTERM_EXIT_CODE)
    except KeyboardInterrupt:
        say("finished shards are kept; the same command goes on with the others")
        raise


def print_summary(address: str, finished: FinishedDataSet, rejected_at: str, what: str) -> None:
    """What became of one data set's rows or samples (`what`); `rejected_at` lists the rejected ones."""
    manifest, rejected = finished.manifest, finished.rejected
    samples, shards = counted(manifest.samples, "sample"), counted(len(manifest.shards), "shard")
    print(f"{address}: {samples} in {shards}, {manifest.total_bytes / 1e6:,.1f} MB")
    for line in finished.statistics.summary_lines():
        print(f"  {line}")
    total = rejected.total()
    print(f"  rejected {what}s: {total:,}" + (f", see {rejected_at}" if total else ""))
    for reason, count in rejected.most_common():
        print(f"  {count:>10,} {reason}")
