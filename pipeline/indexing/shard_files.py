"""Which tars a user means: patterns in, files with their sizes out."""

import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from braceexpand import braceexpand

from pipeline.wording import counted
from shards import DataError, Folder, UsageError
from shards.failures import storage_failure
from shards.file_system import open_file_system
from shards.retry import retry
from shards.storage import is_remote

_COMPRESSED_NAME = re.compile(r"\.(tgz|tbz2?|txz|tar\.[a-z0-9]+)$", re.IGNORECASE)
_WILDCARDS = re.compile(r"[*?\[]")
# What storage calls the state of a file's content, the surest first.
_VERSION_FIELDS = ("ETag", "etag", "generation", "blob_id", "LastModified", "mtime", "updated")


@dataclass(frozen=True)
class ShardFile:
    """A tar: its address, its bytes, and what changes when it is written again (its ETag or time)."""

    address: str
    size: int
    version: str

    @property
    def folder(self) -> Folder:
        """The folder it lies in."""
        return Folder(posixpath.dirname(self.address) or os.curdir)

    @property
    def name(self) -> str:
        """Its file name."""
        return posixpath.basename(self.address)


def find_shards(patterns: Sequence[str]) -> list[ShardFile]:
    """The tars that patterns name, in the order given: addresses or paths with braces (`{000..163}`) and
    wildcards, or folders, which stand for all tars in them.

    Raises UsageError where a pattern names nothing, a shard is not there, stands twice, or is compressed.
    """
    addresses = [address for pattern in patterns for address in _expand(pattern)]
    compressed = next((address for address in addresses if _COMPRESSED_NAME.search(address)), None)
    if compressed:
        raise UsageError(refuse_compressed(compressed))
    twice = [address for address, count in Counter(addresses).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named more than once: each shard belongs to a data set once")
    with ThreadPoolExecutor(16) as threads:  # an object store answers slowly, but many at a time
        found = list(threads.map(look_at, addresses))
    missing = [address for address, file in zip(addresses, found, strict=True) if file is None]
    if missing:
        raise UsageError(
            f"{len(missing):,} of {counted(len(addresses), 'shard')} not there, such as {missing[0]}: "
            "correct the pattern, or fetch them"
        )
    return [file for file in found if file]


def names_shards(address: str) -> bool:
    """Whether an address stands for tars themselves (a tar, braces or wildcards), not for a folder."""
    if not is_remote(address) and os.path.isdir(address):
        return False
    is_pattern = "{" in address or _WILDCARDS.search(address)
    return bool(is_pattern or address.lower().endswith(".tar") or _COMPRESSED_NAME.search(address))


def refuse_compressed(address: str) -> str:
    """Why a compressed tar cannot be a shard, and what to do."""
    return (
        f"{address} is compressed: training reads blocks of a shard by their byte offsets, and a compressed "
        "file has none; unpack it once to a plain .tar (gunzip, zstd -d, bunzip2 or unxz) and give that"
    )


def _expand(pattern: str) -> list[str]:
    """The addresses that one pattern stands for."""
    try:
        expanded = list(braceexpand(pattern)) if not os.path.lexists(pattern) else [pattern]
    except ValueError:
        raise UsageError(f"{pattern}: a brace is opened or closed without its other half") from None
    return [_plain(address) for part in expanded for address in _resolve(part)]


def _resolve(address: str) -> list[str]:
    """The address itself, or the tars that a wildcard or a folder stands for, sorted."""
    if is_remote(address):
        files, path = _file_system(address)
        if _WILDCARDS.search(path):
            return _found(address, _remote_glob(address, files, path))
        if path.lower().endswith(".tar") or _COMPRESSED_NAME.search(path):
            return [address]
        return _tars_of_folder(address, _remote_glob(address, files, f"{path.rstrip('/')}/*"))
    path = address.removeprefix("file://")
    if os.path.isdir(path):
        return _tars_of_folder(address, glob.glob(f"{glob.escape(path.rstrip('/'))}/*"))
    if _WILDCARDS.search(path) and not os.path.lexists(path):
        return _found(address, glob.glob(path, recursive=True))
    return [path]


def _plain(address: str) -> str:
    return address if is_remote(address) else os.path.normpath(address)


def _found(pattern: str, addresses: Iterable[str]) -> list[str]:
    found = sorted(addresses)
    if not found:
        raise UsageError(f"{pattern}: nothing there matches")
    return found


def _tars_of_folder(folder: str, addresses: Iterable[str]) -> list[str]:
    names = sorted(addresses)
    tars = [name for name in names if name.lower().endswith(".tar")]
    compressed = [name for name in names if _COMPRESSED_NAME.search(name)]
    if not tars and not compressed:
        raise UsageError(f"{folder}: no .tar in this folder")
    return tars or compressed


def _remote_glob(address: str, files: Any, path: str) -> list[str]:
    """The addresses that a pattern matches; `address`: for messages."""
    try:
        names: list[str] = retry(lambda: files.glob(path))
    except FileNotFoundError:
        return []
    except Exception as error:
        raise storage_failure(address, "looking for shards", error) from error
    return [files.unstrip_protocol(name) for name in names]


def _file_system(address: str) -> tuple[Any, str]:
    files, path = open_file_system(address)
    files.invalidate_cache()  # what lies there may have changed since this process last asked
    return files, path


def look_at(address: str) -> ShardFile | None:
    """The file at a path or an address as it is now; None where there is none."""
    try:
        if not is_remote(address):
            status = os.stat(address.removeprefix("file://"))
            return ShardFile(address, status.st_size, f"mtime {status.st_mtime_ns}")
        files, path = _file_system(address)
        entry: dict[str, Any] = retry(lambda: files.info(path))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise storage_failure(address, "looking for it", error) from error
    if entry["type"] != "file":
        return None
    if entry.get("size") is None:
        raise DataError(f"{address}: the server does not say how long it is: copy it to a disk or a bucket")
    version = next((f"{field} {entry[field]}" for field in _VERSION_FIELDS if entry.get(field)), "")
    return ShardFile(address, int(entry["size"]), version)
