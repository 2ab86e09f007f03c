"""The loader: raw samples in, batches of pixels and tokens out, on threads of one process.

A feeding thread takes samples from the stream and hands them to decoding threads, which write pixels straight
into their place in a batch buffer; buffers are allocated once and used again. The heavy work (decoding,
resizing, tokenising) releases the interpreter lock, so threads do what worker processes would, without
pickling anything.
"""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.decode import ImageError, ImageStage
from pipeline.text import TextStage
from shards import DataError, RawSample, SampleStream
from shards.hashing import Purpose, derive, uniforms
from shards.stream import FetchStats


@dataclass
class Batch:
    """The samples of one step on this rank. Its tensors are valid until the batch after the next is asked
    for.
    """

    positions: np.ndarray  # int64 [B], of each sample in the stream
    epochs: np.ndarray  # int64 [B]
    numbers: np.ndarray  # int64 [B], sample ids: numbers in the data set
    keys: list[str]
    captions: list[str]
    images: torch.Tensor  # [B, 3, S, S] uint8, channels last
    tokens: torch.Tensor | None = None  # [B, T] int64
    labels: torch.Tensor | None = None  # [B, T] int64, 0 where not scored
    copied: "torch.cuda.Event | None" = None

    def images_on(self, device: torch.device) -> torch.Tensor:
        """The images on a device; the buffer is kept until the copy is done."""
        if device.type == "cpu":
            return self.images
        images = self.images.to(device, non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()
        return images


@dataclass
class LoaderStats:
    """What the loader has done so far: counts, and seconds over all threads of a stage."""

    samples: int = 0
    batches: int = 0
    image_bytes: int = 0
    parse: float = 0.0
    decode: float = 0.0
    text: float = 0.0
    consumer_wait: float = 0.0  # the consumer waited for a batch
    substituted: int = 0


@dataclass
class BadSampleLimit:
    """How many undecodable samples a run takes: a share of the samples seen, and a number below which it
    never stops.
    """

    share: float = 0.01
    least: int = 10

    def exceeded(self, bad: int, seen: int) -> bool:
        """Whether `bad` out of `seen` is too many."""
        return bad > max(self.least, self.share * seen)


@dataclass
class _Pending:
    """A batch in the making."""

    batch: Batch
    buffer: torch.Tensor
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def finish_one(self) -> bool:
        """Count one sample as done; whether it was the last."""
        with self.lock:
            self.left -= 1
            return self.left == 0


class Loader:
    """Batches of a stream, in order. Iterate once; `close` (or leave a `with`) to stop its threads.

    batch_size: samples of this rank in a batch (the last one of a finite stream may be smaller). images,
    text: the stages that make pixels and tokens (text None: no tokens). workers: decoding threads. seed: of
    the augmentation. prefetch_batches: batches made ahead. pin_memory: allocate buffers so that copies to a
    GPU run on their own.

    A sample whose image cannot be decoded is replaced by the plan's substitute, counted, and named in
    `bad_samples`; where there is no substitute, or past `limit`, DataError is raised.
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
        prefetch_batches: int = 4,
        pin_memory: bool = False,
        limit: BadSampleLimit | None = None,
    ) -> None:
        self.stats = LoaderStats()
        self.bad_samples: list[str] = []  # one line for each sample that was substituted, in the order met
        self._bad_numbers: set[int] = set()
        self._stream, self._images, self._text = stream, images, text
        self._batch_size, self._seed = batch_size, seed
        self._limit = limit or BadSampleLimit()
        self._lock = threading.Lock()
        self._stopping = False
        self._tasks: queue.SimpleQueue[tuple[_Pending, int, RawSample, list[float]] | None] = (
            queue.SimpleQueue()
        )
        self._ready: queue.SimpleQueue[_Pending | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[_Pending | torch.Tensor] = queue.SimpleQueue()
        shape = (batch_size, images.size, images.size, 3)
        # Two more than are made ahead: the one in the consumer's hands and the one before it.
        for _ in range(prefetch_batches + 2):
            self._free.put(torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory))
        self._threads = [threading.Thread(target=self._feed, name="loader-feed", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, name=f"loader-decode-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stream_stats(self) -> FetchStats:
        """What fetching has done so far."""
        return self._stream.stats

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all threads, the stream's included."""
        self._stopping = True
        self._free.put(torch.empty(0))
        self._stream.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Batch]:
        before: _Pending | None = None
        current: _Pending | None = None
        while True:
            begin = time.perf_counter()
            pending = self._ready.get()
            if isinstance(pending, _Pending):
                pending.done.wait()
                pending = pending.error or pending
            self.stats.consumer_wait += time.perf_counter() - begin
            if pending is None:
                return
            if isinstance(pending, BaseException):
                raise pending
            self.stats.batches += 1
            if before:
                self._free.put(before)
            before, current = current, pending
            yield pending.batch

    def _next_buffer(self) -> torch.Tensor:
        free = self._free.get()
        if not isinstance(free, _Pending):
            return free
        if free.batch.copied:
            free.batch.copied.synchronize()
        return free.buffer

    def _feed(self) -> None:
        """Runs on the feeding thread: group samples into batches and hand them to the decoding threads."""
        try:
            samples: list[RawSample] = []
            for raw in self._stream:
                samples.append(raw)
                if len(samples) == self._batch_size:
                    self._start_batch(samples)
                    samples = []
                if self._stopping:
                    return
            if samples:
                self._start_batch(samples)
            self._ready.put(None)
        except CancelledError:  # the stream was closed
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def _start_batch(self, samples: list[RawSample]) -> None:
        buffer = self._next_buffer()
        if self._stopping:
            return
        count = len(samples)
        batch = Batch(
            positions=np.array([raw.position for raw in samples]),
            epochs=np.array([raw.epoch for raw in samples]),
            numbers=np.array([raw.number for raw in samples]),
            keys=[""] * count,
            captions=[""] * count,
            images=buffer[:count].permute(0, 3, 1, 2),
        )
        keys = derive(self._seed, batch.epochs, batch.numbers, Purpose.CROP)
        drawn = uniforms(keys, self._images.uniforms).tolist()
        pending = _Pending(batch, buffer, count)
        self._ready.put(pending)
        for index, raw in enumerate(samples):
            self._tasks.put((pending, index, raw, drawn[index]))

    def _work(self) -> None:
        """Runs on each decoding thread."""
        torch.set_num_threads(1)  # for this thread: its share of the cores is one
        while task := self._tasks.get():
            pending, index, raw, drawn = task
            try:
                if not self._stopping and not pending.error:
                    self._make(pending, index, raw, drawn)
                if pending.finish_one():
                    self._finish(pending)
            except BaseException as error:
                pending.error = error
                pending.done.set()

    def _make(self, pending: _Pending, index: int, raw: RawSample, drawn: list[float]) -> None:
        """Parse and decode one sample into its place; a substitute where it cannot be decoded."""
        begin = time.perf_counter()
        sample = raw.read()
        parsed = time.perf_counter()
        out = pending.buffer[index].numpy()
        try:
            self._images(sample.image, drawn, out)
        except ImageError as error:
            shard = raw.dataset.shard_address(raw.block)
            reason = f"{shard}: image of sample {sample.key} cannot be decoded ({error})"
            for slot in self._stream.plan.substitutes(raw.epoch, raw.block, raw.slot):
                sample = raw.read(slot)
                try:
                    self._images(sample.image, drawn, out)
                except ImageError:
                    continue
                pending.batch.numbers[index] += slot - raw.slot
                break
            else:
                raise DataError(f"{reason}, and no other can stand in for it; {_REMEDY}") from error
            self._count_bad(raw.number, reason)
        decoded = time.perf_counter()
        pending.batch.keys[index], pending.batch.captions[index] = sample.key, sample.caption
        with self._lock:
            self.stats.samples += 1
            self.stats.image_bytes += len(sample.image)
            self.stats.parse += parsed - begin
            self.stats.decode += decoded - parsed

    def _count_bad(self, number: int, reason: str) -> None:
        with self._lock:
            self.stats.substituted += 1
            if number not in self._bad_numbers:
                self._bad_numbers.add(number)
                self.bad_samples.append(reason)
            if self._limit.exceeded(self.stats.substituted, self.stats.samples):
                raise DataError(
                    f"{self.stats.substituted} of {self.stats.samples} samples could not be decoded, "
                    f"the last: {reason}; {_REMEDY}"
                )

    def _finish(self, pending: _Pending) -> None:
        batch = pending.batch
        if self._text and not self._stopping and not pending.error:
            begin = time.perf_counter()
            batch.tokens, batch.labels = self._text(batch.captions, batch.epochs, batch.numbers)
            with self._lock:
                self.stats.text += time.perf_counter() - begin
        pending.done.set()


_REMEDY = "shard the data again with 'python -m pipeline.shard', which checks every image"
