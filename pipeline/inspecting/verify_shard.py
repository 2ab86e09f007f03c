"""Whether a shard is what the manifest and the index say: read once, and everything that is wrong told."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from shards import DataError, Folder, ShardRecord
from shards.chunks import read_chunks
from shards.tar_scan import TarScan


@dataclass(frozen=True, eq=False)
class Expected:
    """What one shard must be; lengths, checksums: uint32 [samples]."""

    folder: Folder
    record: ShardRecord
    lengths: np.ndarray
    checksums: np.ndarray


@dataclass(frozen=True)
class Verified:
    """One shard's result: nothing in `problems` where it is whole."""

    address: str
    bytes: int
    problems: tuple[str, ...]


def verify_shard(expected: Expected) -> Verified:
    """Compare a shard's bytes with the manifest, and its samples with the index."""
    record = expected.record
    try:
        size = expected.folder.size(record.name)
        problems = [] if size == record.bytes else [_wrong_size(size, record.bytes)]
        problems += _wrong_content(expected, size)
    except FileNotFoundError:
        problems = ["it is not there"]
    except DataError as error:
        problems = [f"it cannot be read ({error})"]
    return Verified(expected.folder.locate(record.name), record.bytes, tuple(problems))


def _wrong_size(size: int, expected: int) -> str:
    what = "cut short" if size < expected else "too long"
    return f"{what}: {size:,} bytes where the manifest says {expected:,}"


def _wrong_content(expected: Expected, size: int) -> Iterator[str]:
    digest, indexed = hashlib.sha256(), _IndexedSamples(expected.lengths)

    def watched() -> Iterator[bytes]:
        for chunk in read_chunks(expected.folder, expected.record.name, size):
            digest.update(chunk)
            indexed.add(chunk)
            yield chunk

    stream = watched()
    try:
        found = [len(sample.data) for sample in TarScan(stream).samples()]
    except DataError as error:
        found = None
        yield f"{error}"
    for _ in stream:  # what lies after the archive's end, or after damage
        pass
    if found is not None and len(found) != expected.record.samples:
        yield f"{len(found):,} samples where the manifest says {expected.record.samples:,}"
    elif found is not None and found != expected.lengths.tolist():
        first = int(np.flatnonzero(np.array(found) != expected.lengths)[0])
        yield f"the index is not of this shard: its samples begin elsewhere from sample {first:,} on"
    changed = indexed.differing(expected.checksums)
    if len(changed):
        start = int(expected.lengths[: changed[0]].sum(dtype=np.int64))
        yield (
            f"{len(changed):,} of {len(expected.lengths):,} samples are changed or cut off, the first of "
            f"them sample {changed[0]:,} at byte {start:,}"
        )
    if digest.hexdigest() != expected.record.sha256:
        yield f"its sha256 is {digest.hexdigest()}, not the manifest's"


class _IndexedSamples:
    """The checksum of every sample of the index, over bytes that come in chunks."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._ends = np.cumsum(lengths, dtype=np.int64).tolist()
        self._position = 0
        self._hash = xxhash.xxh3_64()
        self._checksums: list[int] = []

    def add(self, chunk: bytes) -> None:
        """Take in the next bytes of the shard."""
        view = memoryview(chunk)
        while len(view) and len(self._checksums) < len(self._ends):
            left = self._ends[len(self._checksums)] - self._position
            own, view = view[:left], view[left:]
            self._hash.update(own)
            self._position += len(own)
            if len(own) == left:
                self._checksums.append(self._hash.intdigest() & 0xFFFFFFFF)
                self._hash.reset()

    def differing(self, expected: np.ndarray) -> np.ndarray:
        """The numbers of the samples whose checksum is not the expected one; those cut off are among them."""
        found = np.full(len(expected), -1, np.int64)
        found[: len(self._checksums)] = self._checksums
        return np.flatnonzero(found != expected)
