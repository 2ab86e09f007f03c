"""One job at a time in a local output folder: a lock that ends with its process, however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from shards import Folder, UsageError


@contextmanager
def locked(folder: Folder, *, alone: bool) -> Iterator[None]:
    """Inside, the folder, made where there is none, is this process's alone, or shared with other tasks of a
    job. Raises UsageError where another process has it.

    It is the folder itself that is locked, so nothing is left behind. At an address, or on a file system that
    knows no such locks, nothing is told.
    """
    descriptor = None if folder.remote else _open(folder.address.removeprefix("file://"))
    if descriptor is None:
        yield
        return
    try:
        _lock(descriptor, folder.address, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _open(path: str) -> int | None:
    try:
        os.makedirs(path, exist_ok=True)
        return os.open(path, os.O_RDONLY)
    except OSError:  # the first file that is to be written there says why it cannot
        return None


def _lock(descriptor: int, address: str, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{address}: another process is at work in this folder: wait until it has ended (the same "
            "command then does what it has not done), or choose another --out"
        ) from None
    except OSError:  # a file system without such locks
        pass
