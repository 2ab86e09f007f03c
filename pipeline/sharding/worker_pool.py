"""Work on a stream of tasks in several processes: few under way at a time, all of them ended with their
parent.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import FrameType, ModuleType
from typing import TypeVar, cast

from shards import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
_NO_TASK = object()
_SECONDS_BETWEEN_LOOKS = 0.5
# Parameters of glibc's malloc, and the bytes from which on it gives memory back to the system.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_FREE, _MAPPED = 64 * 2**20, 32 * 2**20


def run_in_processes(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[Result, None, None]:
    """The results of `work` on every task, as they come; tasks are drawn as workers become free.

    Once `stopping()` is true no task is begun any more, and those that are in work are finished. An error of
    one task, or an interrupt here, ends the workers at once, in the middle of what they do: each result is to
    be all or nothing. Raises DataError where a worker was killed or ran out of memory.
    """
    # Workers are spawned, so that they hold nothing of this process's threads and files: this process alone
    # has the writing end, and its death, too, closes it.
    context = multiprocessing.get_context("spawn")
    lifeline, holder = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_prepare_worker, initargs=(lifeline,))
    under_way: set[Future[Result]] = set()
    try:
        remaining = iter(tasks)
        while not stopping():
            while len(under_way) < 2 * workers and (task := next(remaining, _NO_TASK)) is not _NO_TASK:
                with _signals_held(), _main_hidden():
                    under_way.add(pool.submit(work, cast(Task, task)))
            if not under_way:
                break
            done, under_way = wait(under_way, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            yield from (future.result() for future in done)
        under_way = {future for future in under_way if not future.cancel()}
        yield from (future.result() for future in as_completed(under_way))
    except BaseException as error:
        holder.close()
        if isinstance(error, BrokenProcessPool | MemoryError):
            raise DataError(
                "a worker process was killed, most often because memory ran out: start the same command "
                "again with fewer --workers; what was finished is kept"
            ) from None
        raise
    finally:
        pool.shutdown()
        holder.close()
        lifeline.close()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM (a scheduler's way to end a job) is taken as Ctrl-C is: KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_waits() -> Iterator[Callable[[], bool]]:
    """Inside, a first SIGTERM only makes the function that is handed on return true; a second one is taken as
    Ctrl-C is.
    """
    requested = threading.Event()

    def note(signal_number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Inside, processes are started with Ctrl-C and SIGTERM blocked for their whole life: a terminal or a
    scheduler sends them to every process of a job, and they are the parent's to act on.
    """
    resource_tracker.ensure_running()  # starting it would release the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Inside, processes are started that do not import this one's main module, as spawned ones do: what a
    command imports takes seconds, and they need none of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _prepare_worker(lifeline: Connection) -> None:
    """Run first in a worker process: end when the parent closes its end."""

    def end_with_parent() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _keep_freed_memory()
    # C libraries (libtiff) write their complaints about an image here, past Python; errors of the work itself
    # travel to the parent.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _keep_freed_memory() -> None:
    """Let the next image be put where the last one was: giving memory back to the system and asking for it
    again costs a tenth of the time of packing images unchecked.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library: its own way will do
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED)
