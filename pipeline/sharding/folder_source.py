"""Images that are files in a local folder, directly by their paths or anywhere in its tree by their names."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.job_progress import followed
from pipeline.sharding.archive_file import identity
from pipeline.sharding.image_names import (
    LARGEST_IMAGE,
    NameRule,
    NotHere,
    decide_rule,
    missing,
    outside,
    relative_path,
)
from pipeline.sharding.member_index import MemberIndex
from pipeline.sharding.range_readers import SpoolFile
from pipeline.sharding.rows import Rejected
from shards import DataError
from shards.ranged_reads import read_local

_STAT_THREADS, _STATS_AT_A_TIME = 8, 1000  # a network's file system answers many at once
_USUAL_PATH = 256
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe must not wait for its other end
_NOT_THE_FILES_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


class LocalFile(NamedTuple):
    """An image that is a file in a folder."""

    root: str  # a real path
    name: str

    def read(self) -> bytes:
        """The file's bytes; Rejected where there is none or the name leads out of the folder. DataError where
        this machine has run out of something: that must not pass for a fault of the row.
        """
        try:
            descriptor = self._open()
            try:
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode):  # a pipe, say, could be read forever
                    raise Rejected("not a file")
                if state.st_size > LARGEST_IMAGE:
                    raise Rejected("too large")
                return read_local(descriptor, 0, state.st_size)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise missing() from None
        except (OSError, ValueError) as error:  # a name with a null byte, or longer than the system allows
            if isinstance(error, OSError) and error.errno in _NOT_THE_FILES_FAULT:
                raise DataError(
                    f"{os.path.join(self.root, self.name)}: reading failed: {error.strerror}; the same "
                    "command goes on where this one stopped"
                ) from error
            raise Rejected(f"unreadable ({getattr(error, 'strerror', None) or error})") from error

    def _open(self) -> int:
        """A descriptor of the file, wherever in the folder its name leads."""
        start = self.name.rfind("/") + 1
        folder, name = self.name[:start], self.name[start:]
        if name not in ("", ".", ".."):
            try:
                return os.open(_folder_inside(self.root, folder) + name, _FLAGS | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.ELOOP:  # a symbolic link
                    raise
        real = os.path.realpath(os.path.join(self.root, self.name))
        _check_inside(real, self.root)
        return os.open(real, _FLAGS)

    def size(self) -> int:
        """The file's bytes; 0 where it cannot be read."""
        try:
            state = os.stat(os.path.join(self.root, self.name))
            readable = stat.S_ISREG(state.st_mode) and state.st_size <= LARGEST_IMAGE
            return state.st_size if readable else 0
        except (OSError, ValueError):
            return 0

    def is_there(self) -> bool:
        """Whether there is such a file in the folder."""
        try:
            path = os.path.realpath(os.path.join(self.root, self.name))
            return Path(path).is_relative_to(self.root) and os.path.isfile(path)
        except (OSError, ValueError):
            return False


@lru_cache(maxsize=4096)
def _folder_inside(root: str, folder: str) -> str:
    """The real path, with a slash at its end, of a folder in another one; Rejected where it leads out."""
    real = os.path.join(os.path.realpath(os.path.join(root, folder)), "")
    _check_inside(real, root)
    return real


def _check_inside(path: str, root: str) -> None:
    if not path.startswith(os.path.join(root, "")):
        raise outside()


class FolderImages:
    """Images in a local folder by their paths; never reads outside of it."""

    certain = False  # whether a file is there shows when it is read

    def __init__(self, address: str, table: str) -> None:
        self.address = address
        self.identity = identity(address, table)
        self._root = os.path.realpath(address)

    @property
    def examples(self) -> list[str]:
        """Some of the paths in it."""
        if not os.path.isdir(self._root):
            return []
        return [path.decode("utf-8", "replace") for path in islice(_files(self._root), 3)]

    def close(self) -> None:
        """Nothing is kept open."""

    def locate(self, path: str) -> LocalFile:
        """Where the image with this path would lie; NotHere where it would be outside."""
        if "://" in path:
            raise outside()
        return LocalFile(self._root, path)

    def holds(self, paths: Sequence[str]) -> int:
        """How many of these images are there."""
        return sum(LocalFile(self._root, path).is_there() for path in paths)

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """The bytes of each image; 0 for one that is not there."""
        runs = [paths[start : start + _STATS_AT_A_TIME] for start in range(0, len(paths), _STATS_AT_A_TIME)]
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            return [size for sizes in pool.map(self._sizes, runs) for size in sizes]

    def _sizes(self, paths: Sequence[str]) -> list[int]:
        return [LocalFile(self._root, path).size() for path in paths]


class TreeImages(FolderImages):
    """Images anywhere below a local folder by their names.

    Memory holds 16 bytes a file; paths are in an unnamed temporary file.
    """

    def __init__(self, address: str, table: str) -> None:
        super().__init__(address, table)
        self._spool = SpoolFile(address)
        try:
            self._index = MemberIndex(self._spool_paths(), self._path_at)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its temporary file."""
        self._spool.close()

    def _spool_paths(self) -> Iterator[tuple[bytes, int]]:
        """Write every path to the temporary file; path and place in that file of each."""
        place = 0
        for path in followed(_files(self._root), f"files listed in {self.address}"):
            self._spool.write(path + b"\0")
            yield path, place
            place += len(path) + 1
        self._spool.flush()

    def _path_at(self, place: int) -> bytes:
        length = _USUAL_PATH
        while True:
            path, end, _ = self._spool.read(place, length).partition(b"\0")
            if end:
                return path
            length *= 4

    def locate(self, path: str) -> LocalFile:
        """Where the image with this name lies; Rejected where it is not there or several have the name."""
        place = self._index.find(relative_path(path))
        return LocalFile(self._root, os.fsdecode(self._path_at(place)))

    def holds(self, paths: Sequence[str]) -> int:
        """How many of these images are there, whether or not one can be told from others."""
        return sum(self._size(path) is not None for path in paths)

    def _sizes(self, paths: Sequence[str]) -> list[int]:
        return [self._size(path) or 0 for path in paths]

    def _size(self, path: str) -> int | None:
        try:
            return self.locate(path).size()
        except NotHere:
            return None
        except Rejected:
            return 0


def _files(root: str) -> Iterator[bytes]:
    """The paths below a folder of the files in its tree; links to folders are not followed."""
    folders = [b""]
    top = os.fsencode(root)
    while folders:
        folder = folders.pop()
        inner = []
        with os.scandir(os.path.join(top, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    inner.append(path)
                else:
                    yield path
        folders += sorted(inner, reverse=True)


def open_folder(address: str, table: str, names: Sequence[str]) -> tuple[FolderImages, NameRule, int]:
    """A folder of images as the one of its two kinds that holds more of these names, the rule for the names,
    and how many it holds. A tree is looked through only where most names are not found without.
    """
    folder = FolderImages(address, table)
    rule, found = decide_rule(names, folder.holds)
    if 2 * found >= len(names):
        return folder, rule, found
    tree = TreeImages(address, table)
    tree_rule, tree_found = decide_rule(names, tree.holds)
    if tree_found > found:
        return tree, tree_rule, tree_found
    tree.close()
    return folder, rule, found
