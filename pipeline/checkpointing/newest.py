"""Which checkpoint of a folder a run goes on from: the newest that is whole."""

from dataclasses import dataclass

from pipeline.checkpoint import DamagedCheckpoint, check_whole
from pipeline.checkpointing.places import names_newest_first
from shards import DataError, Folder


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, None where the folder holds none, and what is wrong with newer ones."""

    address: str | None
    damaged: tuple[str, ...] = ()


def newest_whole(folder: Folder) -> Found:
    """Look through a folder's checkpoints, newest first, reading each to its end.

    DataError where there are checkpoints and none of them is whole: to begin afresh is not for us to decide.
    """
    damaged: list[str] = []
    for name in names_newest_first(folder):
        address = folder.locate(name)
        try:
            check_whole(address)
        except DamagedCheckpoint as error:
            damaged.append(str(error).partition("; ")[0])
            continue
        return Found(address, tuple(damaged))
    if damaged:
        raise DataError(
            f"{folder.address}: no checkpoint is whole: {'; '.join(damaged)}. Bring one back from a copy, or "
            "delete them to begin afresh"
        )
    return Found(None)
