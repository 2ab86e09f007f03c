"""Writing a data set: shards one by one, in any process, and the manifest once all of them are there."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from shards.errors import DataError
from shards.manifest import CHECKSUMS, INDEX, MANIFEST, Manifest, ShardRecord, pack_uint32, sha256
from shards.storage import Folder
from shards.tar import END_OF_ARCHIVE, pack_sample


@dataclass(frozen=True)
class WrittenShard:
    """A shard that lies in its place: its record, and one byte length and checksum a sample."""

    record: ShardRecord
    lengths: list[int]
    checksums: list[int]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "WrittenShard":
        """The inverse of `to_dict`."""
        return WrittenShard(ShardRecord(**content["record"]), content["lengths"], content["checksums"])


def checksum(sample: "bytes | memoryview") -> int:
    """The low 32 bits of a sample's XXH3-64, over all its tar bytes."""
    return xxhash.xxh3_64_intdigest(sample) & 0xFFFFFFFF


def write_shard(folder: Folder, name: str, samples: Iterable[tuple[str, dict[str, bytes]]]) -> WrittenShard:
    """Write one shard; it appears under its name only when it is whole.

    samples: (key, members by extension) in the order they are to have. Equal samples give byte-identical
    shards.
    """
    data, lengths, checksums = bytearray(), [], []
    for key, members in samples:
        sample = pack_sample(key, members)
        if len(sample) >= 2**32:
            raise DataError(f"sample {key} has {len(sample):,} bytes; the index holds at most 4 GiB a sample")
        data += sample
        lengths.append(len(sample))
        checksums.append(checksum(sample))
    data += END_OF_ARCHIVE
    whole = memoryview(data)
    folder.write(name, whole)
    return WrittenShard(ShardRecord(name, len(lengths), len(data), sha256(whole)), lengths, checksums)


def write_manifest(folder: Folder, shards: Iterable[WrittenShard], made_by: Mapping[str, Any]) -> Manifest:
    """Write index, checksums and, last, the manifest; shards without samples are left out."""
    kept = [shard for shard in shards if shard.record.samples]
    index = pack_uint32([length for shard in kept for length in shard.lengths])
    checksums = pack_uint32([value for shard in kept for value in shard.checksums])
    manifest = Manifest(tuple(shard.record for shard in kept), sha256(index), made_by=dict(made_by))
    folder.write(INDEX, index)
    folder.write(CHECKSUMS, checksums)
    folder.write(MANIFEST, manifest.to_json())
    return manifest
