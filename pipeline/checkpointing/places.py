"""Where checkpoints are: folders and files on local disk or at addresses, and how they are named there."""

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpointing.part_storage import DESCRIPTION
from pipeline.checkpointing.parts import delete_parts
from shards import DataError, Folder, UsageError
from shards.storage import is_remote

LATEST = "latest"
BEST = "best.pt"
BEST_PARTS = "best"  # one line, as in `latest`: a folder of parts has one name only
_NAME = re.compile(r"step-(\d{8,})\.pt")
_PARTS_NAME = re.compile(r"step-(\d{8,})")
_LEFT_BEHIND = re.compile(r"\.(step-\d{8,}\.pt|best\.pt|best|latest|saved\.json)\.[0-9a-f]{32}\.tmp")
_PIECE, _AT_ONCE = 16 * 2**20, 8


def checkpoint_name(step: int) -> str:
    """The name of the file that holds the state after a step."""
    return f"step-{step:08d}.pt"


def parts_name(step: int) -> str:
    """The name of the folder that holds it in parts."""
    return f"step-{step:08d}"


def is_in_parts(address: str) -> bool:
    """Whether there is a whole checkpoint in parts at a path or an address."""
    if not is_remote(address):
        return (Path(address.removeprefix("file://")) / DESCRIPTION).is_file()
    if not _PARTS_NAME.fullmatch(address.rpartition("/")[2]):
        return False
    try:
        return Folder(address).size(DESCRIPTION) > 0
    except FileNotFoundError:
        return False


def may_be_checkpoint(address: str) -> bool:
    """Whether there may be a run's checkpoint at a path or, by its name, at an address."""
    name = address.rpartition("/")[2]
    if is_remote(address) and (name == BEST or _NAME.fullmatch(name)):
        return True
    return is_in_parts(address) or (name.endswith(".pt") and Path(address).is_file())


def names_newest_first(folder: Folder) -> list[str]:
    """The checkpoints of a folder; a half-written one is never among them."""
    steps = {name: int(found[1]) for name in folder.names() if (found := _NAME.fullmatch(name))}
    for name in folder.folders():
        if (found := _PARTS_NAME.fullmatch(name)) and is_in_parts(folder.locate(name)):
            steps[name] = int(found[1])
    return sorted(steps, key=lambda name: steps[name], reverse=True)


def point_at_best(folder: Folder, step: int) -> None:
    """Let `best` name the checkpoint in parts of a step, in place of whatever was the best."""
    folder.write(BEST_PARTS, f"{parts_name(step)}\n".encode())
    folder.delete(BEST)


def delete_checkpoint(folder: Folder, name: str) -> None:
    """Delete a checkpoint of either kind."""
    if _PARTS_NAME.fullmatch(name):
        delete_parts(folder, name)
    else:
        folder.delete(name)


def remove_left_behind(folder: Folder) -> None:
    """Delete what killed processes left of what they were writing. No run may be writing there."""
    for name in folder.folders():
        if _PARTS_NAME.fullmatch(name) and not is_in_parts(folder.locate(name)):
            delete_parts(folder, name)
    if not folder.remote:  # there no file appears before it is whole
        for name in folder.names():
            if _LEFT_BEHIND.fullmatch(name):
                folder.delete(name)


def split_address(address: str) -> tuple[Folder, str]:
    """The folder and the name of a file."""
    if is_remote(address):
        parent, _, name = address.rpartition("/")
        return Folder(parent), name
    path = Path(address.removeprefix("file://"))
    return Folder(path.parent), path.name


def follow_latest(name: str) -> str:
    """The checkpoint that a `latest` or `best` file, or a folder's `latest`, names; any other path, tag or
    address as it is.
    """
    name = name.rstrip("/") or name
    candidates = [name] if name.rpartition("/")[2] in (LATEST, BEST_PARTS) else []
    if is_remote(name):
        candidates += [f"{name}/{LATEST}"] if not candidates and not name.endswith(".pt") else []
    elif Path(name).is_dir():
        candidates = [str(Path(name) / LATEST)]
    for latest in candidates:
        folder, file = split_address(latest)
        try:
            return folder.locate(folder.read(file).decode().strip())
        except FileNotFoundError:
            continue
    return name


def is_same_file(one: str, other: str) -> bool:
    """Whether two addresses mean one file."""
    if is_remote(one) or is_remote(other):
        return one == other
    return Path(one.removeprefix("file://")).resolve() == Path(other.removeprefix("file://")).resolve()


@contextmanager
def local_file(address: str) -> Iterator[Path]:
    """The file of an address on this machine: itself, or a copy for as long as the block lasts.

    UsageError where there is none.
    """
    folder, name = split_address(address)
    if not folder.remote:
        path = Path(folder.address.removeprefix("file://")) / name
        if path.is_dir() and _PARTS_NAME.fullmatch(path.name):
            raise UsageError(
                f"{path} is no whole checkpoint: it has no {DESCRIPTION}, which is written when all parts "
                "are there; take the one before it"
            )
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a checkpoint file in it, or its {LATEST!r}")
        if not path.is_file():
            raise UsageError(f"{path}: no such checkpoint")
        yield path
        return
    try:
        size = folder.size(name)
    except FileNotFoundError:
        raise UsageError(f"{address}: no such checkpoint") from None
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        path = Path(scratch) / name
        try:
            _download(folder, name, size, path)
        except OSError as error:
            raise DataError(
                f"{address}: could not be copied to {scratch} ({error}); make room there, or set TMPDIR to "
                "a folder on a larger disk"
            ) from error
        yield path


def _download(folder: Folder, name: str, size: int, path: Path) -> None:
    with open(path, "wb") as file, ThreadPoolExecutor(_AT_ONCE) as pool:
        # A round at a time, so that no more than a round is in memory.
        for start in range(0, size, _PIECE * _AT_ONCE):
            places = range(start, min(size, start + _PIECE * _AT_ONCE), _PIECE)
            pieces = pool.map(
                lambda place: folder.read_range(name, place, min(_PIECE, size - place), file_bytes=size),
                places,
            )
            for piece in pieces:
                file.write(piece)
