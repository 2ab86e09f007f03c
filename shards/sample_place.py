"""Where a sample lies, and reading it from there."""

from dataclasses import dataclass

from shards.errors import DamagedSample, DataError
from shards.manifest import MemberNames
from shards.sample import Sample, parse_sample
from shards.storage import Folder
from shards.writer import checksum

_REMEDY = (
    "fetch this shard again from where it came, or run the command that wrote the shards again (it writes "
    "what is gone: delete what is damaged)"
)


@dataclass(frozen=True)
class SamplePlace:
    """Where one sample lies and what it must be: enough to read it in another process."""

    folder: Folder
    shard: str
    shard_bytes: int
    offset: int
    length: int
    checksum: int
    names: MemberNames

    def read(self) -> Sample:
        """The sample, in one ranged read; DamagedSample where its bytes are not what was written, DataError
        where they cannot be had.
        """
        return self.parse(self.fetch())

    def fetch(self) -> memoryview:
        """The sample's bytes as they are now, in one ranged read; DataError where they cannot be had."""
        return read_bytes(self.folder, self.shard, self.shard_bytes, self.offset, self.length)

    def parse(self, data: memoryview) -> Sample:
        """The sample whose bytes are `data`; DamagedSample where they were changed."""
        if checksum(data) != self.checksum:
            raise self.altered()
        try:
            return parse_sample(data, self.names)
        except DataError as error:
            raise self.unusable(error) from error

    def altered(self) -> DamagedSample:
        """The error that says: the bytes here are not what was written."""
        return DamagedSample(
            f"{self} is not what was written (wrong checksum): the shard was altered; {_REMEDY}"
        )

    def unusable(self, why: DataError) -> DamagedSample:
        """The error that says: the bytes here are what was written, and yet no sample."""
        return DamagedSample(f"{self}: {why}; {_REMEDY}")

    def __str__(self) -> str:
        return f"{self.folder.locate(self.shard)}: the sample at byte {self.offset:,}"


def read_bytes(folder: Folder, shard: str, shard_bytes: int, offset: int, length: int) -> memoryview:
    """A range of a shard that has `shard_bytes` bytes; DataError where it is absent or has another size."""
    try:
        data = folder.read_range(shard, offset, length, file_bytes=shard_bytes)
    except FileNotFoundError:
        raise DataError(
            f"{folder.locate(shard)}: the manifest lists this shard, but it is not there; {_REMEDY}"
        ) from None
    if len(data) != length:
        raise DataError(
            f"{folder.locate(shard)}: block at byte {offset:,} is cut short (expected {length:,} bytes, got "
            f"{len(data):,}): the shard is truncated; {_REMEDY}"
        )
    return data
