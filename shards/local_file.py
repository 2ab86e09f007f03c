"""Local files that appear under their names only when they are whole, and survive a power failure then."""

import contextlib
import os
import shutil
import uuid
from pathlib import Path

# Written in whole blocks from the file's beginning on, a file takes half the system's time that it takes
# when a write may begin in the middle of a page.
_BLOCK = 256 * 2**10
_WRITE_BACK = 4 * 2**20


class LocalFile:
    """A local file under a temporary name, flushed to disk and moved into place by `finish`.

    settled: whether the new name, too, survives a power failure at once.
    """

    def __init__(self, path: "str | os.PathLike[str]", *, settled: bool = True) -> None:
        self._settled = settled
        self._target = Path(path)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._target.with_name(f".{self._target.name}.{uuid.uuid4().hex}.tmp")
        self._file = open(self._temporary, "xb", buffering=0)  # noqa: SIM115 (closed by finish or discard)
        self._block = memoryview(bytearray(_BLOCK))
        self._waiting = 0  # bytes in the block
        self._written = self._on_its_way = 0  # bytes in the file

    def write(self, data: "bytes | bytearray | memoryview", /) -> None:
        """Append bytes."""
        rest = memoryview(data).cast("B")
        if self._waiting + len(rest) >= _BLOCK:
            room = _BLOCK - self._waiting
            self._block[self._waiting :] = rest[:room]
            self._send(self._block)
            whole = len(rest) - (len(rest) - room) % _BLOCK
            self._send(rest[room:whole])
            self._waiting, rest = 0, rest[whole:]
        stop = self._waiting + len(rest)
        self._block[self._waiting : stop] = rest
        self._waiting = stop

    def _send(self, data: memoryview) -> None:
        while data:
            count = self._file.write(data)
            self._written += count
            data = data[count:]
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
            self._send(self._block[: self._waiting])
            os.fsync(self._file.fileno())
        os.replace(self._temporary, self._target)
        if self._settled:
            _flush_folder(self._target.parent)

    def discard(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):  # a network's file system refuses here what it could not write
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


def _flush_folder(path: Path) -> None:
    """Let new names survive a power failure, where the file system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
