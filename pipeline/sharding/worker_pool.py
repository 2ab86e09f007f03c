"""Work on a stream of tasks in several processes: few under way at a time, all of them ended with their
parent.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

from shards import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_in_processes(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The results of `work` on every task, as they come; tasks are drawn as workers become free.

    An error of one task, or an interrupt here, ends the workers at once, in the middle of what they do: each
    result is to be all or nothing. Raises DataError where a worker was killed or ran out of memory.
    """
    # Workers are spawned, so that they hold nothing of this process's threads and files: this process alone
    # has the writing end, and its death, too, closes it.
    context = multiprocessing.get_context("spawn")
    lifeline, holder = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_prepare_worker, initargs=(lifeline,))
    under_way: set[Future[Result]] = set()
    try:
        for task in tasks:
            under_way.add(pool.submit(work, task))
            if len(under_way) >= 2 * workers:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
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


def _prepare_worker(lifeline: Connection) -> None:
    """Run first in a worker process: leave Ctrl-C to the parent, and end when it closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # C libraries (libtiff) write their complaints about an image here, past Python; errors of the work itself
    # travel to the parent.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
