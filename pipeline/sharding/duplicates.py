"""Exact duplicates: rows whose image has the same bytes as that of an earlier row, found by a pass over all
images before packing.

The pass is cut into chunks of rows; the hashes of each are kept in the job's folder, so that tasks can share
the pass and an interrupted one goes on. Its result, `duplicates.bin`, is part of the plan: uint64
little-endian, first how many rows to leave out, then their numbers, ascending.
"""

from dataclasses import dataclass

import numpy as np
import xxhash

from pipeline.sharding.image_sources import Location
from pipeline.sharding.job_folder import DUPLICATES
from pipeline.sharding.read_ahead import read_ahead, read_image
from pipeline.sharding.rows import Rejected
from shards import Folder

CHUNK_ROWS = 10_000


@dataclass(frozen=True)
class HashingTask:
    """The images of one chunk of rows, in the order of the rows."""

    folder: Folder
    name: str
    images: list["Location | Rejected"]


def hashes_name(chunk: int) -> str:
    """The file with the hashes of a chunk's images: two uint64 little-endian a row, both 0 where there is no
    image.
    """
    return f"hashes-{chunk:06d}.bin"


def hash_images(task: HashingTask) -> int:
    """Hash a chunk's images (XXH3-128) and keep the hashes; how many rows it has."""
    hashes = np.zeros((len(task.images), 2), "<u8")
    for number, image in enumerate(read_ahead(read_image, task.images)):
        if not isinstance(image, Rejected):  # packing will say why
            value = xxhash.xxh3_128_intdigest(image)
            hashes[number] = value & 0xFFFFFFFFFFFFFFFF, value >> 64
    task.folder.write(task.name, hashes.tobytes())
    return len(task.images)


def write_duplicates(folder: Folder, chunks: int) -> None:
    """Find the duplicates from the hashes of all chunks, and write them down."""
    rows = _find_duplicates(folder, chunks)
    folder.write(DUPLICATES, np.concatenate([[len(rows)], rows]).astype("<u8").tobytes())


def read_duplicates(folder: Folder) -> np.ndarray:
    """The rows to leave out: int64 [duplicates], ascending."""
    return np.frombuffer(folder.read(DUPLICATES), "<u8")[1:].astype(np.int64)


def is_among(rows: np.ndarray, duplicates: np.ndarray) -> np.ndarray:
    """Whether each of some rows is one of the duplicates (ascending): bool [rows]."""
    return np.searchsorted(duplicates, rows, "left") < np.searchsorted(duplicates, rows, "right")


def _find_duplicates(folder: Folder, chunks: int) -> np.ndarray:
    """Rows whose image was there before: int64 [duplicates], ascending. Halves of the hashes are compared
    first, which keeps memory at 16 bytes a row beside the rows whose halves repeat.
    """
    halves = np.concatenate([_hashes(folder, chunk)[:, 0].copy() for chunk in range(chunks)])
    ordered = np.sort(halves)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    rows, whole = [], []
    for chunk in range(chunks):
        start = chunk * CHUNK_ROWS
        suspects = np.flatnonzero(is_among(halves[start : start + CHUNK_ROWS], repeated[repeated != 0]))
        if len(suspects):
            rows.append(suspects + start)
            whole.append(_hashes(folder, chunk)[suspects])
    if not rows:
        return np.zeros(0, np.int64)
    suspects, hashes = np.concatenate(rows), np.concatenate(whole)
    order = np.lexsort((suspects, hashes[:, 1], hashes[:, 0]))  # of equal images, the first row comes first
    equal = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    return np.sort(suspects[order[1:][equal]])


def _hashes(folder: Folder, chunk: int) -> np.ndarray:
    return np.frombuffer(folder.read(hashes_name(chunk)), "<u8").reshape(-1, 2)
