"""Where a loader's time went, stage by stage, over a stretch of it; and in plain words who waits for whom."""

import math
import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from pipeline.loader import Loader, LoaderStats
from shards.stream import FetchStats

KEEPS_UP = 0.05  # waiting less than this share of the time, the consumer waits for nothing
# Over less than so many seconds one late block or the start of threads decides what is seen.
LEAST_SECONDS = 2.0
_ALL_BUSY = 0.85
_ON_CORE = 0.6

# Fields that say how things stand, where the others add up.
_STATES = {"threads", "held", "held_peak", "ahead", "ahead_peak"}

Stats = TypeVar("Stats", LoaderStats, FetchStats)


@dataclass(frozen=True)
class Snapshot:
    """What a loader has done up to a moment."""

    time: float
    process: float  # seconds of CPU time of the whole process
    idle: float  # seconds in which cores of the machine had nothing to do, added up
    loader: LoaderStats
    fetch: FetchStats
    workers: int
    batches_ready: int

    @staticmethod
    def start(loader: Loader) -> "Snapshot":
        """The state before a loader did anything; to be asked for as soon as it is made, since it begins at
        once.
        """
        now = Snapshot.take(loader)
        return replace(now, loader=LoaderStats(), fetch=FetchStats(now.fetch.threads))

    @staticmethod
    def take(loader: Loader) -> "Snapshot":
        """The state of a loader now."""
        return Snapshot(
            time.perf_counter(),
            time.process_time(),
            _idle_seconds(),
            loader.stats,
            loader.stream_stats,
            loader.workers,
            loader.batches_ready,
        )


@dataclass(frozen=True)
class StageReport:
    """What a loader did between two moments: counts and seconds are those of the stretch."""

    seconds: float
    process: float
    idle: float
    loader: LoaderStats
    fetch: FetchStats
    workers: int
    batches_ready: int  # at its end
    cores: int

    @staticmethod
    def between(before: Snapshot, after: Snapshot) -> "StageReport":
        """The report on the stretch between two snapshots of one loader."""
        return StageReport(
            max(after.time - before.time, 1e-9),
            after.process - before.process,
            after.idle - before.idle,
            _difference(before.loader, after.loader),
            _difference(before.fetch, after.fetch),
            after.workers,
            after.batches_ready,
            len(os.sched_getaffinity(0)),
        )

    @property
    def waits(self) -> float:
        """The share of the time in which the consumer waited for a batch."""
        return self.loader.consumer_wait / self.seconds

    def of_threads(self, seconds: float) -> float:
        """What share of the decoding threads' time so many of their seconds are."""
        return seconds / (self.workers * self.seconds)

    def values(self) -> dict[str, float]:
        """The report as named numbers, for a log."""
        loader, fetch = self.loader, self.fetch
        return {
            "wait": self.waits,
            "samples_per_second": loader.samples / self.seconds,
            "fetch_mb_per_second": fetch.bytes / 1e6 / self.seconds,
            "fetch_busy": fetch.busy / (fetch.threads * self.seconds),
            "fetch_wait": fetch.waited / self.seconds,
            "parse_busy": self.of_threads(loader.parse),
            "decode_busy": self.of_threads(loader.decode),
            "transform_busy": self.of_threads(loader.transform),
            "text_busy": self.of_threads(loader.text),
            "buffers_full": loader.buffer_wait / self.seconds,
            "threads_busy": self.of_threads(loader.busy),
            "mb_ahead": fetch.ahead / 1e6,
            "mb_held": fetch.held / 1e6,
            "batches_ready": self.batches_ready,
        }

    def line(self, consumer: str) -> str:
        """The report in one line, for a person who watches; a narrow terminal shows its beginning."""
        rate, mb_rate = self.loader.samples / self.seconds, self.fetch.bytes / 1e6 / self.seconds
        return f"{rate:,.0f} samples/s, {self.verdict(consumer)}; {mb_rate:,.1f} MB/s read"

    def table(self) -> str:
        """A line for each stage: rate, share of its threads' time in which it was busy, what is queued."""
        loader, fetch = self.loader, self.fetch
        mb_rate, rate = fetch.bytes / 1e6 / self.seconds, loader.samples / self.seconds
        threads = f"of {self.workers} decoding threads"
        fetching = f"{fetch.busy / (fetch.threads * self.seconds):.0%} of {fetch.threads} fetching threads"
        trouble = "".join(
            f", {count:,} {what}"
            for count, what in ((fetch.retried, "tries failed"), (fetch.refetched, "blocks fetched twice"))
            if count
        )
        rows = [
            (
                "fetch",
                f"{mb_rate:,.1f} MB/s",
                f"{fetching}, {fetch.blocks:,} blocks, {fetch.ahead / 1e6:,.0f} MB ahead{trouble}",
            ),
            ("wait for fetch", "", f"{fetch.waited / self.seconds:.0%} of the time"),
            *(
                (name, f"{rate:,.0f} samples/s", f"{self.of_threads(seconds):.0%} {threads}")
                for name, seconds in self._stages()
            ),
            (
                "wait for batches",
                "",
                f"{self.waits:.0%} of the time, {self.batches_ready} under way or ready",
            ),
        ]
        return "\n".join(f"  {stage:<18}{rate:>16}   {remark}" for stage, rate, remark in rows)

    def _stages(self) -> list[tuple[str, float]]:
        """The stages that decoding threads worked on, and their seconds."""
        loader = self.loader
        stages = [(_PARSE, loader.parse), (_DECODE, loader.decode)]
        return stages + [
            stage for stage in ((_TRANSFORM, loader.transform), (_TEXT, loader.text)) if stage[1]
        ]

    def verdict(self, consumer: str) -> str:
        """Who waits for whom, and which flag would help; `consumer` is who takes the batches ("training")."""
        if self.waits < KEEPS_UP:
            return f"{consumer} waits {self.waits:.0%} on the loader: the loader keeps up"
        reason = self._bound() if self.seconds >= LEAST_SECONDS else self._too_short()
        return f"{consumer} waits {self.waits:.0%} on the loader: {reason}"

    def _too_short(self) -> str:
        return f"{self.seconds:.1f} s are too short to tell why"

    def _bound(self) -> str:
        busy = self.of_threads(self.loader.busy)
        if busy < _ALL_BUSY:
            if self.fetch.waited > self.loader.consumer_wait / 4:
                return "storage-bound, raise --prefetch-bytes or keep what was read with --cache-dir"
            word = f"bound by handing samples on (threads {busy:.0%} busy)"
            if self.workers < self.cores:
                return f"{word}, run more processes on this machine"
            return f"{word}, with a thread for every core ({self.cores}) already"
        stage = max(self._stages(), key=lambda entry: entry[1])[0]
        word, less_work = _ADVICE[stage]
        if self.idle < (1 - _ALL_BUSY) * (os.cpu_count() or 1) * self.seconds:
            return f"{word}-bound with all cores of the machine busy, {less_work}"
        if self.process > _ALL_BUSY * self.cores * self.seconds:
            return f"{word}-bound with every core of this process busy ({self.cores}), {less_work}"
        if self.loader.cpu < _ON_CORE * self.loader.busy:
            share = self.loader.cpu / self.loader.busy
            return (
                f"bound by the interpreter lock (threads run {share:.0%} of their time, beside idle cores), "
                "lower --workers and run more processes, or do less in a --transform"
            )
        if self.workers < self.cores:
            return f"{word}-bound, raise --workers ({self.workers} now, on {self.cores} cores)"
        return f"{word}-bound, {less_work}"


_PARSE, _DECODE, _TRANSFORM, _TEXT = "parse and check", "decode and resize", "transform", "tokenise"
_MORE_CORES = "more cores would help"
_ADVICE = {
    _PARSE: ("parse", _MORE_CORES),
    _DECODE: ("decode", "more cores or smaller images (pipeline.shard --resize) would help"),
    _TRANSFORM: ("transform", "a faster --transform would help"),
    _TEXT: ("tokenise", _MORE_CORES),
}


def _idle_seconds() -> float:
    """Idle time of the machine's cores since it was started, added up; infinite where that is not told."""
    try:
        fields_of_all = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return math.inf
    return (int(fields_of_all[4]) + int(fields_of_all[5])) / os.sysconf(
        "SC_CLK_TCK"
    )  # idle, waiting for disks


def _difference(before: Stats, after: Stats) -> Stats:
    """What was added to counts and seconds; what is held is that at the end."""
    names = [field.name for field in fields(after) if field.name not in _STATES]
    return replace(after, **{name: getattr(after, name) - getattr(before, name) for name in names})
