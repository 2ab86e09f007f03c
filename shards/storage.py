"""Folders on local disk or at any fsspec address (`s3://`, …): whole files, ranges, and writes that are all
or nothing.
"""

import os
import posixpath
import uuid
from pathlib import Path
from typing import Any

import fsspec

from shards.errors import DataError, UsageError


def is_remote(address: str) -> bool:
    """Whether an address names something other than a path of this machine."""
    return "://" in address and not address.startswith("file://")


class Folder:
    """A folder whose files are read and written by their names relative to it; safe to share between threads.

    `address` is a local path or an fsspec address such as `s3://bucket/prefix`. A missing file raises
    FileNotFoundError; anything else that storage refuses raises DataError with the address.
    """

    def __init__(self, address: "str | os.PathLike[str]") -> None:
        self.address = str(address).rstrip("/") or "/"
        self.remote = is_remote(self.address)
        if self.remote:
            try:
                self._fs, self._root = fsspec.core.url_to_fs(self.address)
            except (ImportError, ValueError) as error:
                raise UsageError(f"{self.address}: this kind of address is not available: {error}") from error
        else:
            self._root = self.address.removeprefix("file://")

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.address,)

    def locate(self, name: str) -> str:
        """The full address of a file, for messages."""
        return posixpath.join(self.address, name)

    @property
    def name(self) -> str:
        """The folder's own name: the last part of its address."""
        return posixpath.basename(
            posixpath.normpath(self.address if self.remote else os.path.abspath(self._root))
        )

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _failed(self, what: str, name: str, error: Exception) -> DataError:
        return DataError(f"{self.locate(name)}: {what} failed: {error or type(error).__name__}")

    def read(self, name: str) -> bytes:
        """The whole file."""
        try:
            if self.remote:
                return self._fs.cat_file(self._path(name))
            return Path(self._path(name)).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._failed("reading", name, error) from error

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start` on; fewer only where the file ends."""
        try:
            if self.remote:
                return self._fs.cat_file(self._path(name), start=start, end=start + length)
            with open(self._path(name), "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, start)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._failed(f"reading bytes {start:,} to {start + length:,}", name, error) from error

    def write(self, name: str, data: "bytes | memoryview") -> None:
        """Write a file that appears under its name only when it is whole (temporary name and rename; one
        upload).
        """
        try:
            if self.remote:
                self._fs.pipe_file(self._path(name), bytes(data))
            else:
                write_atomically(self._path(name), data)
        except Exception as error:
            raise self._failed("writing", name, error) from error

    def names(self) -> list[str]:
        """The names of the files directly in the folder, sorted; an absent folder has none."""
        try:
            if not self.remote:
                return sorted(entry.name for entry in os.scandir(self._root) if entry.is_file())
            self._fs.invalidate_cache(self._root)
            entries: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            return sorted(posixpath.basename(e["name"]) for e in entries if e["type"] == "file" and e["size"])
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise self._failed("listing", "", error) from error

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        try:
            if self.remote:
                self._fs.rm_file(self._path(name))
            else:
                os.remove(self._path(name))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._failed("deleting", name, error) from error


def write_atomically(path: "str | os.PathLike[str]", data: "bytes | memoryview") -> None:
    """Write a local file under a temporary name, flush it to disk, and move it into place."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
