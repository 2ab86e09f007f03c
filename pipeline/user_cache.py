"""The user's cache: what commands find out or make once and keep, each kind in a folder of its own.

    ~/.cache/pmc-clip-stream/indexes/     descriptions of tars that others made (`pipeline.open_data`)
    ~/.cache/pmc-clip-stream/tables/      shards of tables given in place of shards (`pipeline.packed_table`)

XDG_CACHE_HOME moves it. Whatever is in it may be deleted.
"""

import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards import UsageError

_LONGEST_NAME = 60


def cache_folder(kind: str) -> Path:
    """The folder of all that is kept of one kind; it need not be there yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache).absolute() / "pmc-clip-stream" / kind


def cached_name(shown: str, digest: str) -> str:
    """A folder's name: what a person knows the thing by, then a hash of what determines it."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', shown)[:_LONGEST_NAME]}-{digest[:16]}"


def make_folders(what: str, *folders: Path) -> None:
    """Make folders of the cache; UsageError where that is not allowed (`what`: that cannot be kept there)."""
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {what} cannot be kept here ({error.strerror}): name a folder that you may "
            "write to in the environment variable XDG_CACHE_HOME"
        ) from error


@contextmanager
def one_at_a_time(folder: Path, waiting: str, *, quiet: bool) -> Iterator[None]:
    """Inside, no other process is at work on the same folder; one that has to wait says `waiting` first."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quiet:
                print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
