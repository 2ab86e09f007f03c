"""The space of a cache folder: how much of it is taken, agreed on by all processes, and what makes way.

    <folder>/accounts                 bytes taken, changed under a lock
    <folder>/in-use                   locked by every process that has the cache open
    <folder>/<data set>/in-use        locked by every process that uses the data set
    <folder>/<data set>/<block>       a kept block
    <folder>/<data set>/<block>.part  one that is being written, locked by its writer

Bytes are accounted before a file is made and given back after it is gone: a process killed in between leaves
too many in the accounts, never too few, until the files are counted again. Its locks end with it.
"""

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_ACCOUNTS, _IN_USE, _PART = "accounts", "in-use", ".part"
_DISK_BLOCK = 4096  # files take whole blocks of the disk
_FREED_SHARE = 0.05  # of the bound, freed beyond what is asked for, since eviction looks at every file
_LOOK_SECONDS = 300.0  # until files are looked through again, after there was too little to evict


class CacheSpace:
    """At most `max_bytes` of files in a folder, for any number of threads and processes at once.

    Every method may raise OSError.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._markers: dict[Path, int] = {}  # descriptors of the markers that this process holds
        self._marking = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        with self._accounts() as accounts:
            with ExitStack() as locks:
                if _lock(folder / _IN_USE, locks) is not None:  # no other process has the cache open
                    accounts.set(bytes=self._evict(max_bytes))
            accounts.set(looked=0.0)
            self.mark_used(folder)

    def mark_used(self, folder: Path) -> None:
        """Let no process evict what is in this folder, until `close`."""
        with self._marking:
            if folder not in self._markers:
                folder.mkdir(exist_ok=True)
                self._markers[folder] = marker = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(marker, fcntl.LOCK_SH)

    def close(self) -> None:
        """Let other processes evict what this one used."""
        with self._marking:
            for marker in self._markers.values():
                os.close(marker)
            self._markers.clear()

    def create(self, path: Path, size: int) -> int | None:
        """The descriptor of a new file of `size` bytes, for `keep` or `discard`; None where the file is
        there, another writes it, or there is no room.
        """
        part, taken = _part(path), _on_disk(size)
        with self._accounts() as accounts:
            if path.exists():
                return None
            if accounts.bytes + taken > self.max_bytes and not self._make_room(accounts, taken):
                return None
            descriptor = _lock(part)
            if descriptor is None:
                return None
            left_by_killed = _on_disk(os.fstat(descriptor).st_size)
            os.ftruncate(descriptor, 0)
            accounts.set(bytes=accounts.bytes - left_by_killed + taken)
            try:
                os.ftruncate(descriptor, size)  # so that it counts in full from now on
            except OSError:
                part.unlink()
                os.close(descriptor)
                accounts.set(bytes=accounts.bytes - taken)
                raise
            return descriptor

    def keep(self, path: Path, descriptor: int) -> None:
        """Let a new file appear under its name. The descriptor is closed even where that fails: what is left
        then is as if its writer had been killed.
        """
        try:
            with self._accounts():
                os.rename(_part(path), path)
        finally:
            os.close(descriptor)

    def discard(self, path: Path, descriptor: int) -> None:
        """Remove a new file, and close its descriptor, which locks it up to then: else another could take the
        file up in between and lose it.
        """
        try:
            self.remove(_part(path))
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        with self._accounts() as accounts, suppress(FileNotFoundError):
            taken = _on_disk(path.stat().st_size)
            path.unlink()
            accounts.set(bytes=accounts.bytes - taken)

    @contextmanager
    def _accounts(self) -> "Iterator[_Accounts]":
        """The accounts, for this thread of this process alone."""
        descriptor = os.open(self.folder / _ACCOUNTS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            accounts = _Accounts(descriptor)
            if not accounts.are_kept:
                accounts.set(bytes=self._evict(self.max_bytes))
            yield accounts
        finally:
            os.close(descriptor)

    def _make_room(self, accounts: "_Accounts", taken: int) -> bool:
        """Evict what is needed for so many bytes more, and some; whether there is room now."""
        if abs(time.time() - accounts.looked) < _LOOK_SECONDS:
            return False
        accounts.set(bytes=self._evict(int(self.max_bytes * (1 - _FREED_SHARE)) - taken))
        if accounts.bytes + taken <= self.max_bytes:
            return True
        accounts.set(looked=time.time())
        return False

    def _evict(self, limit: int) -> int:
        """The bytes taken, counted anew: after what killed processes left was removed and, as far as that is
        more than `limit`, what was least recently used of the data sets that are not in use.
        """
        total, evictable = _DISK_BLOCK, []  # one for the accounts
        with ExitStack() as locks:
            for folder in [Path(entry) for entry in os.scandir(self.folder) if entry.is_dir()]:
                is_idle = _lock(folder / _IN_USE, locks) is not None
                for file in _files(folder):
                    total += file.bytes
                    if is_idle:
                        evictable.append(file)
            for file in sorted(evictable):
                if total <= limit:
                    break
                os.unlink(file.path)
                total -= file.bytes
        return total


class _Accounts:
    """What the file of accounts says. bytes: taken; looked: when too little was found to evict (Unix time);
    are_kept: whether it says anything.
    """

    _layout = struct.Struct("<qd")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        content = os.pread(descriptor, self._layout.size, 0)
        self.are_kept = len(content) == self._layout.size
        self.bytes, self.looked = self._layout.unpack(content) if self.are_kept else (0, 0.0)

    def set(self, *, bytes: int | None = None, looked: float | None = None) -> None:
        """Write down what has changed."""
        self.bytes = self.bytes if bytes is None else bytes
        self.looked = self.looked if looked is None else looked
        os.pwrite(self._descriptor, self._layout.pack(self.bytes, self.looked), 0)


class _File(NamedTuple):
    """A file of the cache; sorted, those used least recently come first."""

    used: float
    path: str
    bytes: int


def _files(folder: Path) -> Iterator[_File]:
    """The files in a data set's folder, but for those that were being written when their writer was killed:
    these are removed.
    """
    for entry in os.scandir(folder):
        if entry.name == _IN_USE:
            continue
        with ExitStack() as locks:
            if entry.name.endswith(_PART) and _lock(entry.path, locks) is not None:
                os.unlink(entry.path)
                continue
        facts = entry.stat()
        yield _File(facts.st_mtime, entry.path, _on_disk(facts.st_size))


def _lock(path: "str | os.PathLike[str]", until: ExitStack | None = None) -> int | None:
    """The descriptor of a file that is now locked, made where it is not there; None where another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if until:
        until.callback(os.close, descriptor)
    return descriptor


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _on_disk(size: int) -> int:
    """The bytes of the disk that a file of a size takes."""
    return -(-size // _DISK_BLOCK) * _DISK_BLOCK
