"""Folders on local disk or at any fsspec address (`s3://`, …): whole files, ranges, and writes that are all
or nothing.
"""

import contextlib
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from shards.errors import DataError, UsageError
from shards.failures import storage_failure
from shards.file_system import open_file_system
from shards.local_file import LocalFile, copy_local
from shards.object_reads import ObjectReads
from shards.ranged_reads import FoundRange, FsspecReads, LocalReads, RangedReads
from shards.retry import retry
from shards.upload import S3Upload, StagedUpload, abort_uploads

_S3 = ("s3://", "s3a://")
_CHANGED_REMEDY = (
    "fetch this shard again from where it came, or describe the shards as they are now with 'python -m "
    "pipeline.index'"
)


def is_remote(address: str) -> bool:
    """Whether an address names something other than a path of this machine."""
    return "://" in address and not address.startswith("file://")


class NewFile(Protocol):
    """A file that is being written, and is not there before `finish`."""

    def write(self, data: "bytes | bytearray | memoryview", /) -> object:
        """Append bytes."""

    def finish(self) -> None:
        """Let it appear under its name."""

    def discard(self) -> None:
        """Give it up."""


class Folder:
    """A folder whose files are read and written by their names relative to it; safe to share between threads.

    `address` is a local path or an fsspec address such as `s3://bucket/prefix`. A missing file raises
    FileNotFoundError; anything else that storage refuses raises DataError with the address. What a remote
    storage fails to do for a moment is tried again, for up to about a minute.
    """

    def __init__(self, address: "str | os.PathLike[str]") -> None:
        self.address = str(address).rstrip("/") or "/"
        self.remote = is_remote(self.address)
        self._s3 = self.address.startswith(_S3)
        if self.remote:
            self._fs, self._root = open_file_system(self.address)
            self._reads: RangedReads = FsspecReads(self._fs)
            if self._s3:
                self._reads = ObjectReads(self._fs, self._fs.split_path(self._root)[0])
        else:
            self._root = self.address.removeprefix("file://")
            self._reads = LocalReads()
        self._versions: dict[str, str] = {}  # of the files that parts were read of, at their first read

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
        kept = "what was finished is kept: " if what == "writing" else ""
        return storage_failure(self.locate(name), what, error, remote=self.remote, kept=kept)

    def _nowhere(self, said: str) -> UsageError | None:
        """What to say of a file that is not there where not even its bucket or repository is."""
        if "bucket does not exist" in said:
            server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
            return UsageError(
                f"{self.address}: there is no such bucket at {server}; check its name, and AWS_ENDPOINT_URL "
                "if it is on another server"
            )
        if "(repository not found)" in said:
            return UsageError(
                f"{self.address}: there is no such repository at {self._fs.endpoint}; check its name, and "
                "HF_TOKEN if it is private or gated"
            )
        return None

    def read(self, name: str) -> bytes:
        """The whole file."""
        try:
            if self.remote:
                return retry(lambda: self._fs.cat_file(self._path(name)))
            return Path(self._path(name)).read_bytes()
        except FileNotFoundError as error:
            if nowhere := self._nowhere(str(error)):
                raise nowhere from error
            raise FileNotFoundError(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._failed("reading", name, error) from error

    def read_range(self, name: str, start: int, length: int, *, file_bytes: int | None = None) -> memoryview:
        """Up to `length` bytes from byte `start` on, in one request; fewer only where the file ends.

        file_bytes: the size that the file should have. Given it, DataError at once where the size is another
        (as far as the storage tells it with a read: local disk and S3 do), or where the file was written
        again since this was first asked of it (S3 tells).
        """
        if not length:
            return memoryview(b"")
        try:
            found = retry(lambda: self._reads.read(self._path(name), start, length))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._failed(f"reading bytes {start:,} to {start + length:,}", name, error) from error
        if file_bytes is not None:
            self._check_unchanged(name, found, file_bytes)
        return found.data

    def _check_unchanged(self, name: str, found: FoundRange, file_bytes: int) -> None:
        if found.file_bytes is not None and found.file_bytes != file_bytes:
            raise DataError(
                f"{self.locate(name)}: changed since the manifest was written (expected {file_bytes:,} "
                f"bytes, found {found.file_bytes:,}); {_CHANGED_REMEDY}"
            )
        if found.version and self._versions.setdefault(name, found.version) != found.version:
            raise DataError(f"{self.locate(name)}: written again while it was read; {_CHANGED_REMEDY}")

    def size(self, name: str) -> int:
        """How many bytes a file has."""
        try:
            if not self.remote:
                return os.stat(self._path(name)).st_size
            entry: dict[str, Any] = retry(lambda: self._fs.info(self._path(name)))
            if entry["type"] != "file":
                raise FileNotFoundError
            return int(entry["size"])
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._failed("looking for the size", name, error) from error

    def write(self, name: str, data: "bytes | memoryview", *, settled: bool = True) -> None:
        """Write a file that appears under its name only when it is whole (temporary name and rename; one
        upload). settled: see `create`.
        """
        with self.create(name, settled=settled) as file:
            file.write(data)

    @contextmanager
    def create(self, name: str, *, settled: bool = True) -> Iterator["Writer"]:
        """A file to write piece by piece: `with folder.create(name) as file: file.write(data)`.

        It appears under its name when the block ends, and not at all where the block ends with an exception.
        settled: whether the new name, too, survives a power failure at once; else it does after the folder's
        next settled file. On S3 no more than 16 MiB of it are in memory.
        """
        try:
            file = self._new_file(self._path(name), settled)
        except Exception as error:
            raise self._failed("writing", name, error) from error
        try:
            yield Writer(self, name, file)
            try:
                file.finish()
            except Exception as error:
                raise self._failed("writing", name, error) from error
        except BaseException:
            file.discard()
            raise

    def _new_file(self, path: str, settled: bool) -> NewFile:
        if self._s3:
            return S3Upload(self._fs, path)
        return StagedUpload(self._fs, path) if self.remote else LocalFile(path, settled=settled)

    def abort_uploads(self, names: Iterable[str]) -> None:
        """Remove what killed processes left of uploads of exactly these files: `names()` does not show it,
        yet S3 charges for it. Nothing may be writing these files.
        """
        try:
            if self._s3:
                abort_uploads(self._fs, [self._path(name) for name in names])
        except Exception as error:
            raise self._failed("removing unfinished uploads", "", error) from error

    def names(self) -> list[str]:
        """The names of the files directly in the folder, sorted; an absent folder has none."""
        try:
            if not self.remote:
                return sorted(entry.name for entry in os.scandir(self._root) if entry.is_file())
            return sorted(retry(self._list))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise self._failed("listing", "", error) from error

    def folders(self) -> list[str]:
        """The names of the folders directly in the folder, sorted; an absent folder has none."""
        try:
            if not self.remote:
                return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir())
            return sorted(retry(lambda: self._list("directory")))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise self._failed("listing", "", error) from error

    def sizes(self) -> dict[str, int]:
        """The bytes of every file directly in the folder, by name; an absent folder has none."""
        try:
            if not self.remote:
                return {
                    entry.name: entry.stat().st_size for entry in os.scandir(self._root) if entry.is_file()
                }
            return retry(self._list)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:
            raise self._failed("listing", "", error) from error

    def _list(self, kind: str = "file") -> dict[str, int]:
        self._fs.invalidate_cache(self._root)
        entries: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
        # An empty file may stand for the folder itself.
        found = (entry for entry in entries if entry["type"] == kind and (entry["size"] or kind != "file"))
        return {posixpath.basename(entry["name"].rstrip("/")): entry["size"] or 0 for entry in found}

    def copy(self, name: str, to: str) -> None:
        """Let a file appear under a second name, in place of what had it: without its bytes being written
        again where the storage can do so (a hard link, a copy by the server).
        """
        try:
            if self.remote:
                retry(lambda: self._fs.cp_file(self._path(name), self._path(to)))
            else:
                copy_local(Path(self._path(name)), Path(self._path(to)))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._failed("writing", to, error) from error

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        try:
            if self.remote:
                retry(lambda: self._fs.rm_file(self._path(name)))
            else:
                os.remove(self._path(name))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._failed("deleting", name, error) from error

    def remove_if_empty(self) -> None:
        """Remove the folder itself if nothing is in it; where storage refuses, it stays."""
        if not self._s3:  # there a folder is there as long as its files are
            with contextlib.suppress(OSError, NotImplementedError):
                (self._fs if self.remote else os).rmdir(self._root)


class Writer:
    """What a block under `Folder.create` writes to."""

    def __init__(self, folder: Folder, name: str, file: NewFile) -> None:
        self._folder, self._name, self._file = folder, name, file

    def write(self, data: "bytes | bytearray | memoryview") -> None:
        """Append bytes."""
        try:
            self._file.write(data)
        except Exception as error:
            raise self._folder._failed("writing", self._name, error) from error


def write_atomically(path: "str | os.PathLike[str]", data: "bytes | memoryview") -> None:
    """Write a local file under a temporary name, flush it to disk, and move it into place."""
    file = LocalFile(path)
    try:
        file.write(data)
        file.finish()
    except BaseException:
        file.discard()
        raise
