"""The files of a run whose `--logs` is an address: written here, copied there with each checkpoint.

Logs grow line by line, which object stores do not have; so they are kept in a folder of this machine, and
another machine that goes on with the run begins by fetching them.
"""

from pathlib import Path

from pipeline.interruption import MARKER
from shards import Folder

_FOLDERS = ("", "tensorboard")


class RunMirror:
    """A run's folder on this machine and its address."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folders = {
            folder / name: Folder(f"{address.rstrip('/')}/{name}".rstrip("/")) for name in _FOLDERS
        }
        self._sent: dict[Path, tuple[int, int]] = {}  # size and time of what was copied

    def fetch(self) -> None:
        """Let this machine have the files as they are at the address."""
        for here, there in self._folders.items():
            for name in there.names():
                here.mkdir(parents=True, exist_ok=True)
                (here / name).write_bytes(there.read(name))

    def send(self) -> None:
        """Copy what has changed since the last time. DataError where the storage refuses."""
        for here, there in self._folders.items():
            for path in sorted(here.iterdir()) if here.is_dir() else ():
                if path.is_dir() or path.name == MARKER or path.name.startswith("."):
                    continue
                state = path.stat()
                stamp = (state.st_size, state.st_mtime_ns)
                if self._sent.get(path) != stamp:
                    there.write(path.name, path.read_bytes())
                    self._sent[path] = stamp
