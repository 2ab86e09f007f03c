"""A folder of image files as samples for the loader: no captions, and every file a block of its own."""

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from shards import DataError, Dataset, Sample, UsageError
from shards.index import Blocks
from shards.manifest import MANIFEST
from shards.sample_place import SamplePlace

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")


class ImageFolder:
    """The images in the tree of a local folder, sorted by their paths, which are the samples' keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        found = sorted(_images(self.folder))
        if not found:
            raise UsageError(
                f"{folder}: neither a data set of shards nor a folder of images: no file in it ends in "
                f"{', '.join(ENDINGS)}"
            )
        self.paths = [path for path, _, _ in found]
        self._sizes = np.array([size for _, size, _ in found], np.int64)
        listing = "\n".join(f"{path}\t{size}\t{time}" for path, size, time in found)
        self.fingerprint = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        """Of the paths, sizes and times of change."""

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def blocks(self) -> Blocks:
        """One block a file."""
        count = len(self)
        each = np.arange(count, dtype=np.int64)
        ones, zeros = np.ones(count, np.int64), np.zeros(count, np.int64)
        return Blocks(each.astype(np.int32), each, ones, zeros, self._sizes, each)

    def shard_address(self, block: int) -> str:
        """The path of a file."""
        return str(self.folder / self.paths[block])

    def read_block(self, block: int) -> memoryview:
        """The bytes of a file; DataError where it cannot be read."""
        try:
            return memoryview((self.folder / self.paths[block]).read_bytes())
        except OSError as error:
            raise DataError(
                f"{self.shard_address(block)}: {error.strerror}; it was there when the folder was "
                "listed: start again with --overwrite if the folder changed"
            ) from error

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample that a file is."""
        return Sample(self.paths[block], {}, data, ("",))

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """None of shards: nothing of a folder is cached."""
        return ()

    def source(self, block: int) -> int:
        """Never asked for, as there are no `sources`."""
        raise NotImplementedError

    def place(self, number: int) -> SamplePlace:
        """Never asked for: files are read whole from the start on (`head_start=0`)."""
        raise NotImplementedError


def is_image_folder(address: str) -> bool:
    """Whether an address is a local folder that can only be one of images: without a manifest, and no tars
    in it.
    """
    if not os.path.isdir(address):
        return False
    names = os.listdir(address)
    return MANIFEST not in names and not any(name.lower().endswith(".tar") for name in names)


def _images(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(path below the folder, bytes, time of change) of each image; hidden files are none."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                path = Path(root, name)
                if path.is_file():
                    state = path.stat()
                    yield path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns
