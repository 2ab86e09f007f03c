"""Local files that appear under their names only when they are whole, and survive a power failure then."""

import contextlib
import ctypes
import os
import shutil
import uuid
from pathlib import Path

_WRITE_BACK = 4 * 2**20
# A file that has grown to the first of these has room reserved on the disk, as much as the second at a time:
# that takes a quarter of the system's time off its writing.
_LARGE, _RESERVED = 2**20, 32 * 2**20
_KEEP_SIZE = 1  # for Linux' fallocate: the file seems no larger


class LocalFile:
    """A local file under a temporary name, flushed to disk and moved into place by `finish`.

    settled: whether the new name, too, survives a power failure at once.
    """

    def __init__(self, path: "str | os.PathLike[str]", *, settled: bool = True) -> None:
        self._settled = settled
        self._target = Path(path)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._target.with_name(f".{self._target.name}.{uuid.uuid4().hex}.tmp")
        self._file = open(self._temporary, "xb")  # noqa: SIM115 (closed by finish or discard)
        self._written = self._on_its_way = 0  # bytes
        self._room = _LARGE

    def write(self, data: "bytes | bytearray | memoryview", /) -> None:
        """Append bytes."""
        self._written += self._file.write(data)
        if self._written > self._room:
            self._room = self._written + _RESERVED
            _reserve(self._file.fileno(), self._written, _RESERVED)
        if self._written - self._on_its_way >= _WRITE_BACK:
            # Linux takes this as leave to begin writing to the disk, so that `finish` has little to wait for.
            os.posix_fadvise(
                self._file.fileno(),
                self._on_its_way,
                self._written - self._on_its_way,
                os.POSIX_FADV_DONTNEED,
            )
            self._on_its_way = self._written

    def finish(self) -> None:
        """Let it appear under its name, for good where it is to be settled."""
        with self._file:
            self._file.flush()
            if self._room > _LARGE:
                os.ftruncate(self._file.fileno(), self._written)  # the rest of the room is free again
            os.fsync(self._file.fileno())
        os.replace(self._temporary, self._target)
        if self._settled:
            _flush_folder(self._target.parent)

    def discard(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):  # a full disk refuses what is still buffered
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def copy_local(source: Path, target: Path) -> None:
    """Let a local file appear under a second name, too, in place of what had it: a hard link, or a copy."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(descriptor: int, start: int, length: int) -> None:
    """Reserve room on the disk for what will be written; nothing happens where the file system cannot, or the
    disk is full (`os.posix_fallocate` would write to every block instead).
    """
    with contextlib.suppress(AttributeError):  # a system without
        ctypes.CDLL(None).fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(length))


def _flush_folder(path: Path) -> None:
    """Let new names survive a power failure, where the file system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
