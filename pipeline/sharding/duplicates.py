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
    """The rows to leave out: uint64 [duplicates]."""
    return np.frombuffer(folder.read(DUPLICATES), "<u8")[1:]


def _find_duplicates(folder: Folder, chunks: int) -> np.ndarray:
    """Rows whose image was there before. Halves of the hashes are compared first, which keeps memory at 16
    bytes a row; whole hashes only where those are equal.
    """
    halves = np.concatenate([_hashes(folder, chunk)[:, 0] for chunk in range(chunks)])
    order = np.argsort(halves, kind="stable")
    repeats = np.flatnonzero(halves[order[1:]] == halves[order[:-1]]) + 1
    candidates = np.unique(np.concatenate([order[repeats], order[repeats - 1]]))
    candidates = candidates[halves[candidates] != 0]
    seen: set[tuple[int, int]] = set()
    duplicates = []
    chunk, hashes = -1, np.zeros((0, 2), "<u8")
    for row in candidates.tolist():  # ascending: of equal images the first row's is kept
        if row // CHUNK_ROWS != chunk:
            chunk = row // CHUNK_ROWS
            hashes = _hashes(folder, chunk)
        low, high = hashes[row % CHUNK_ROWS].tolist()
        if (low, high) in seen:
            duplicates.append(row)
        seen.add((low, high))
    return np.array(duplicates, np.int64)


def _hashes(folder: Folder, chunk: int) -> np.ndarray:
    return np.frombuffer(folder.read(hashes_name(chunk)), "<u8").reshape(-1, 2)
