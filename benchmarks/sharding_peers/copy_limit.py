"""The limits without verification: images read, written to files as large as shards, flushed to the disk;
and, with `--sha256` first, the files' sha256 computed on the way.

After each image come as many zeros as its sample's headers, caption, description (a record of 512 bytes) and
padding take in a tar.
"""

import hashlib
import os
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from peer import Row, read_image, read_job, timed

WRITE_BACK = 4 * 2**20  # bytes after which the disk may begin, so that the flush has little left to wait for
RECORD = 512
RESERVED = 32 * 2**20  # bytes of room on the disk that are reserved at a time, which makes writing cheaper


def tar_bytes(*members: int) -> int:
    """The bytes that members of these sizes take in a tar."""
    return sum(RECORD + size + -size % RECORD for size in members)


def copy(rows: list[Row], target: Path, *, hashed: bool) -> None:
    digest, written, on_their_way, reserved = hashlib.sha256(), 0, 0, 0
    with open(target, "wb", buffering=0) as file:
        for row in rows:
            image = read_image(row, verify=False)
            rest = bytes(tar_bytes(len(image), len(row.caption), RECORD) - len(image))
            while written + len(image) + len(rest) > reserved:
                os.posix_fallocate(file.fileno(), reserved, RESERVED)
                reserved += RESERVED
            written += os.writev(file.fileno(), [image, rest])
            if hashed:
                digest.update(image)
                digest.update(rest)
            if written - on_their_way >= WRITE_BACK:
                os.posix_fadvise(file.fileno(), on_their_way, written - on_their_way, os.POSIX_FADV_DONTNEED)
                on_their_way = written
        os.ftruncate(file.fileno(), written)
        os.fsync(file.fileno())


if __name__ == "__main__":
    hashed = sys.argv[1] == "--sha256"
    if hashed:
        del sys.argv[1]
    job = read_job()
    shards = range(0, len(job.rows), job.samples_per_shard)
    parts = [(job.rows[first : first + job.samples_per_shard], job.out / f"{first}.tar") for first in shards]
    with get_context("fork").Pool(job.processes) as pool, timed():
        pool.starmap(partial(copy, hashed=hashed), parts, chunksize=1)
