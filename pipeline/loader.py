"""The loader: raw samples in, batches of pixels and tokens out, on threads of one process.

A feeding thread takes samples from the stream and hands them in small groups to decoding threads, which write
pixels straight into their place in a batch buffer; buffers are allocated once and used again. The heavy work
(decoding, resizing, tokenising) releases the interpreter lock, so threads do what worker processes would,
without pickling anything. What remains under that lock bounds all threads together, so a sample is touched as
little as can be: everything that is drawn is drawn for a whole batch, and every thread keeps its own counts.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice

import torch

from pipeline.decode import ImageStage
from pipeline.loading.bad_samples import BadSamplePolicy, BadSamples
from pipeline.loading.batch import Batch
from pipeline.loading.growing_batch import Drawing, GrowingBatch, begin_batch
from pipeline.loading.sample_maker import SampleMaker
from pipeline.loading.statistics import TOKENISING, LoaderStats, ThreadStats, add_up, busy
from pipeline.text import TextStage
from pipeline.user_transform import UserTransform
from shards import SampleStream
from shards.stream import FetchStats
from shards.wait_clock import WaitClock
from shards.watchdog import Patience, Watchdog

__all__ = ["BadSamplePolicy", "Batch", "Loader", "LoaderStats"]

_LARGEST_GROUP = 8  # samples handed to a decoding thread at a time
_BATCHES_AHEAD = 4  # made before they are asked for
_BATCHES_KEPT = 2  # of those handed on: the one in the consumer's hands and the one before it
_SECONDS_TO_CLOSE = 0.5

_Task = tuple[GrowingBatch, range]


class Loader:
    """Batches of a stream, in order. Iterate once; `close` (or leave a `with`) to stop its threads: whoever
    asks for another batch then, or waits for one, gets CancelledError, so that what was cut short never looks
    complete.

    batch_size: samples of this rank in a batch (the last one of a finite stream may be smaller). images,
    text: the stages that make pixels and tokens (text None: no tokens). workers: decoding threads. seed: of
    all that is drawn. pin_memory: allocate buffers so that copies to a GPU run on their own. columns: names
    of the samples' columns that batches carry. transform: a user's function on every sample. draws_captions:
    of several captions of a sample one is drawn, else it is the first. patience: how long the consumer waits
    for a batch that does not come.

    A sample that is damaged or cannot be decoded is replaced by the plan's substitute, counted, and named in
    `bad_samples`; where there is no substitute, or past the policy's limit, DataError is raised. Samples are
    counted when the consumer gets them, so that the same sample ends a run whatever the threads did.
    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        batch_size: int,
        images: ImageStage,
        text: TextStage | None,
        workers: int,
        seed: int = 0,
        pin_memory: bool = False,
        columns: Sequence[str] = (),
        transform: UserTransform | None = None,
        bad_samples: BadSamplePolicy | None = None,
        draws_captions: bool = True,
        patience: Patience | None = None,
    ) -> None:
        policy = bad_samples or BadSamplePolicy()
        self._stream, self._text = stream, text
        self._batch_size = batch_size
        self._columns = columns
        self._drawing = Drawing(seed, images.uniforms, draws_captions, transform is not None)
        self._maker = SampleMaker(stream.plan, images, transform, columns, policy)
        self._bad = BadSamples(policy)
        self._watchdog = Watchdog(patience or Patience())
        self._group = max(1, min(_LARGEST_GROUP, batch_size // (2 * workers)))
        self._batches = 0  # handed to the consumer
        self._buffer_wait, self._consumer_wait = WaitClock(), WaitClock()
        self._threads_stats = [ThreadStats() for _ in range(workers)]
        self._stopping = False
        self._awaited: GrowingBatch | None = None  # the batch that the consumer asked for last
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[GrowingBatch | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[GrowingBatch | torch.Tensor] = queue.SimpleQueue()
        shape = (batch_size, images.size, images.size, 3)
        for _ in range(_BATCHES_AHEAD + _BATCHES_KEPT):
            self._free.put(torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory))
        self._threads = [threading.Thread(target=self._feed, name="loader-feed", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, args=(stats,), name=f"loader-decode-{i}", daemon=True)
            for i, stats in enumerate(self._threads_stats)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stats(self) -> LoaderStats:
        """What the loader has done so far, as it stands now."""
        total = add_up(self._threads_stats)
        total.batches, total.substituted = self._batches, self._bad.substituted
        total.buffer_wait, total.consumer_wait = self._buffer_wait.seconds, self._consumer_wait.seconds
        return total

    @property
    def stream_stats(self) -> FetchStats:
        """What fetching has done so far, as it stands now."""
        return self._stream.stats_now()

    @property
    def workers(self) -> int:
        """The number of decoding threads."""
        return len(self._threads_stats)

    @property
    def batches_ready(self) -> int:
        """Batches that wait for the consumer or are still in the making."""
        return self._ready.qsize()

    @property
    def bad_samples(self) -> list[str]:
        """One line for each sample that was substituted, in the order of the stream."""
        return self._bad.reasons

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all threads, the stream's included; one that is stuck in an image is left to itself."""
        if self._stopping:
            return
        self._stopping = True
        # Nobody is to wait on: what the consumer waits for may never be made, and the feeding thread looks at
        # nothing that it is given now.
        self._ready.put(None)
        if self._awaited:
            self._awaited.done.set()
        self._free.put(torch.empty(0))
        self._stream.close()
        for _ in self._threads_stats:
            self._tasks.put(None)
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __iter__(self) -> Iterator[Batch]:
        handed: deque[GrowingBatch] = deque()
        samples = 0
        try:
            while growing := self._next_batch():
                samples += len(growing.batch.keys)
                self._account(growing, samples)
                handed.append(growing)
                if len(handed) > _BATCHES_KEPT:
                    self._free.put(handed.popleft())
                yield growing.batch
        finally:
            self.close()

    def _next_batch(self) -> GrowingBatch | None:
        """The next batch when it is finished; None after the last one. CancelledError where the loader is
        closed, even when it was closed meanwhile: what it has then may not have been made.
        """
        with self._consumer_wait.running():
            self._check_open()
            # The stream watches its own waits, and the feeding thread waits for nothing else.
            growing = self._watchdog.get(self._ready, lambda: "")
            self._check_open()
            if isinstance(growing, GrowingBatch):
                self._awaited = unfinished = growing  # from now on `close` ends the wait for it
                self._check_open()
                self._watchdog.wait(growing.done.wait, lambda: self._describe_work(unfinished))
                self._check_open()
                growing = growing.first_failure() or growing
        if isinstance(growing, BaseException):
            raise growing
        return growing

    def _check_open(self) -> None:
        if self._stopping:
            raise CancelledError("the loader was closed")

    def _account(self, growing: GrowingBatch, samples: int) -> None:
        """Count a batch, and refuse it where what is in it must end the run; `samples`: with it, all so
        far.
        """
        self._batches += 1
        for index in sorted(growing.bad):
            self._bad.add(*growing.bad[index])
        self._bad.check(samples)

    def _describe_work(self, growing: GrowingBatch) -> str:
        """What the decoding threads are at that keeps a batch from being finished."""
        own = [stats.describe() for stats in self._threads_stats if stats.at_work is growing]
        return next(filter(None, own), "") if own else "the decoding threads"

    def _feed(self) -> None:
        """Runs on the feeding thread: group samples into batches and hand them to the decoding threads."""
        try:
            stream, first = iter(self._stream), True
            while samples := list(islice(stream, self._batch_size)):
                buffer = self._next_buffer()
                if self._stopping:
                    return
                growing = begin_batch(samples, buffer, self._drawing, self._columns)
                growing.is_first, first = first, False
                self._ready.put(growing)
                for start in range(0, len(samples), self._group):
                    self._tasks.put((growing, range(start, min(start + self._group, len(samples)))))
            self._ready.put(None)
        except BaseException as error:  # CancelledError, where the stream was closed
            self._ready.put(error)

    def _next_buffer(self) -> torch.Tensor:
        with self._buffer_wait.running():
            free = self._free.get()
        if not isinstance(free, GrowingBatch):
            return free
        if free.batch.copied:
            free.batch.copied.synchronize()
        return free.buffer

    def _work(self, stats: ThreadStats) -> None:
        """Runs on each decoding thread."""
        torch.set_num_threads(1)  # for this thread: its share of the cores is one
        while task := self._tasks.get():
            growing, indices = task
            stats.at_work = growing
            with busy(stats):
                for index in indices:
                    self._make(growing, index, stats)
                if growing.finish(len(indices)):
                    self._finish(growing, stats)
            stats.at_work = stats.sample = None

    def _make(self, growing: GrowingBatch, index: int, stats: ThreadStats) -> None:
        if self._stopping or growing.failed_before(index):
            return
        try:
            self._maker.make(growing, index, stats)
        except BaseException as error:  # whatever it is, the consumer hears of it
            growing.failures[index] = error

    def _finish(self, growing: GrowingBatch, stats: ThreadStats) -> None:
        """Tokenise a batch whose samples are all made, and hand it on."""
        batch = growing.batch
        try:
            if self._columns and growing.is_first and not growing.failures:
                self._maker.check_columns(growing)
            if self._text and not self._stopping and not growing.failures:
                begin = time.perf_counter()
                stats.stage = TOKENISING
                batch.tokens, batch.labels = self._text(batch.captions, batch.epochs, batch.numbers)
                stats.text += time.perf_counter() - begin
        except BaseException as error:
            growing.failures[len(growing.samples)] = error
        growing.samples = ()  # their blocks are needed no more
        growing.done.set()
