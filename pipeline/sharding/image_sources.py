"""Where images come from: found by name in the process that plans, read in the processes that pack."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.sharding.rows import Rejected
from shards import UsageError


class Location(Protocol):
    """Where one image lies; small, and may be sent to another process."""

    def read(self) -> bytes:
        """The image's bytes; Rejected where it cannot be had."""


class ImageSource(Protocol):
    """Images by the names that a table gives them."""

    @property
    def identity(self) -> str:
        """What tells this source from others in a rerun of the job."""

    def locate(self, name: str) -> Location:
        """Where the image of this name lies; Rejected where it is known not to be had."""

    def sizes(self, names: Sequence[str]) -> list[int]:
        """The bytes that each image has in the source; 0 for one that is not there."""


@dataclass(frozen=True)
class LocalFile:
    """An image that is a file in a folder."""

    root: str  # a real path
    name: str

    def read(self) -> bytes:
        """The file's bytes; Rejected where there is none or the name leads out of the folder."""
        try:
            path = Path(os.path.realpath(os.path.join(self.root, self.name)))
            if not path.is_relative_to(self.root):
                raise Rejected("outside the image folder")
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe, say, could be read forever
                raise Rejected("not a file")
            return path.read_bytes()
        except FileNotFoundError:
            raise Rejected("missing") from None
        except (OSError, ValueError) as error:  # a name with a null byte, or longer than the system allows
            raise Rejected(f"unreadable ({getattr(error, 'strerror', None) or error})") from error


class ImageFolder:
    """Images in a local folder; never reads outside of it."""

    def __init__(self, root: Path, table: Path) -> None:
        self.root = os.path.realpath(root)
        self.identity = os.path.relpath(self.root, os.path.realpath(table.parent))  # both may move together

    def locate(self, name: str) -> LocalFile:
        """Where the image of this name would lie."""
        return LocalFile(self.root, name)

    def sizes(self, names: Sequence[str]) -> list[int]:
        """The bytes of each image; 0 for one that is not there."""
        found = []
        for name in names:
            try:
                found.append(os.stat(os.path.join(self.root, name)).st_size)
            except (OSError, ValueError):
                found.append(0)
        return found


def open_image_source(
    images: Sequence[str], tables: Sequence[str], first_names: Sequence[str]
) -> ImageSource:
    """The source that `--images` names, or else the first table's own folder or its `images/`: the one that
    holds the images of the first rows.
    """
    table = Path(tables[0])
    if images:
        if not Path(images[0]).is_dir():
            raise UsageError(f"{images[0]}: no such folder of images")
        return ImageFolder(Path(images[0]), table)
    candidates = [table.parent, table.parent / "images"]
    found = [sum(os.path.isfile(folder / name) for name in first_names) for folder in candidates]
    if not any(found):
        raise UsageError(
            f"none of the first {len(first_names)} images of {table} (such as {first_names[0]!r}) is in "
            f"{candidates[0]} or {candidates[1]}: say where they are with --images FOLDER"
        )
    return ImageFolder(candidates[found.index(max(found))], table)
