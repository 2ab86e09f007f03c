"""What a loader has done so far, stage by stage: each thread counts for itself, and is added up on demand."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from pipeline.loading.growing_batch import GrowingBatch
from shards import RawSample

READING, DECODING, TRANSFORMING, TOKENISING = "reading", "decoding", "the transform", "tokenising"


@dataclass
class ThreadStats:
    """What one decoding thread has done so far, and what it is at; only that thread writes it."""

    samples: int = 0
    image_bytes: int = 0
    parse: float = 0.0  # seconds: checking and taking apart
    decode: float = 0.0
    transform: float = 0.0
    text: float = 0.0
    busy: float = 0.0  # with all of these and what lies between them
    cpu: float = 0.0  # of `busy`, those on a core: the rest it waited for one, or for the interpreter lock
    at_work: GrowingBatch | None = None
    stage: str = READING
    sample: "tuple[str, RawSample] | None" = None  # its key, and where it lies, while it is decoded

    def describe(self) -> str:
        """What the thread is at; "" while it reads, which the stream watches."""
        sample = self.sample
        if self.stage == READING or not sample:
            return ""
        key, raw = sample
        of = "sample" if self.stage != TOKENISING else "the batch with sample"
        return f"{self.stage} of {of} {key} of {raw.dataset.shard_address(raw.block)}"


@dataclass
class LoaderStats:
    """What a loader has done so far: counts, and seconds over all decoding threads of a stage."""

    samples: int = 0
    batches: int = 0  # handed to the consumer
    image_bytes: int = 0
    parse: float = 0.0
    decode: float = 0.0
    transform: float = 0.0
    text: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    buffer_wait: float = 0.0  # seconds in which all buffers were full: the loader was ahead as far as it may
    consumer_wait: float = 0.0  # seconds the consumer waited for a batch
    substituted: int = 0


_SUMMED = [field.name for field in fields(ThreadStats) if field.name in {f.name for f in fields(LoaderStats)}]


def add_up(threads: Iterable[ThreadStats]) -> LoaderStats:
    """The sum over threads."""
    total = LoaderStats()
    for stats in threads:
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(stats, name))
    return total


@contextmanager
def busy(stats: ThreadStats) -> Iterator[None]:
    """A stretch of a thread's work, counted by the clock and by the time on a core."""
    begin, begin_cpu = time.perf_counter(), time.thread_time()
    yield
    stats.busy += time.perf_counter() - begin
    stats.cpu += time.thread_time() - begin_cpu
