"""Writing a data set: shards one by one, in any process, and the manifest once all of them are there."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from shards.errors import DataError
from shards.manifest import (
    CHECKSUMS,
    INDEX,
    MANIFEST,
    SELECTED,
    Manifest,
    MemberNames,
    Selection,
    ShardRecord,
    pack_selection,
    pack_uint32,
    sha256,
)
from shards.storage import Folder
from shards.tar import END_OF_ARCHIVE, pack_sample


@dataclass(frozen=True, eq=False)
class WrittenShard:
    """A shard that lies in its place: its record, and the byte length and checksum of every sample."""

    record: ShardRecord
    lengths: np.ndarray  # uint32 [samples]
    checksums: np.ndarray  # uint32 [samples]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        packed = (base64.b64encode(pack_uint32(values)).decode() for values in (self.lengths, self.checksums))
        return {"record": asdict(self.record), **dict(zip(("lengths", "checksums"), packed, strict=True))}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "WrittenShard":
        """The inverse of `to_dict`."""
        lengths, checksums = (
            np.frombuffer(base64.b64decode(content[name]), "<u4") for name in ("lengths", "checksums")
        )
        return WrittenShard(ShardRecord(**content["record"]), lengths, checksums)


def checksum(sample: "bytes | memoryview") -> int:
    """The low 32 bits of a sample's XXH3-64, over all its tar bytes."""
    return xxhash.xxh3_64_intdigest(sample) & 0xFFFFFFFF


class Unexpected(Exception):
    """A shard did not turn out as it was to, and was not written."""


def write_shard(
    folder: Folder,
    name: str,
    samples: Iterable[tuple[str, dict[str, bytes]]],
    *,
    expected: ShardRecord | None = None,
) -> WrittenShard:
    """Write one shard; it appears under its name only when it is whole.

    samples: (key, members by extension) in the order they are to have. Equal samples give byte-identical
    shards. expected: what the shard is to turn out as; Unexpected is raised, and nothing appears, where it
    does not. The folder's next settled file settles the shard's name, too.
    """
    lengths, checksums, digest = [], [], hashlib.sha256()
    with folder.create(name, settled=False) as file:
        for key, members in samples:
            sample = pack_sample(key, members)
            if len(sample) >= 2**32:
                raise DataError(
                    f"sample {key} has {len(sample):,} bytes; the index holds at most 4 GiB a sample"
                )
            file.write(sample)
            digest.update(sample)
            lengths.append(len(sample))
            checksums.append(checksum(sample))
        file.write(END_OF_ARCHIVE)
        digest.update(END_OF_ARCHIVE)
        record = ShardRecord(name, len(lengths), sum(lengths) + len(END_OF_ARCHIVE), digest.hexdigest())
        if expected is not None and record != expected:
            raise Unexpected(name)
    return WrittenShard(record, np.array(lengths, np.uint32), np.array(checksums, np.uint32))


def write_manifest(
    folder: Folder,
    shards: Iterable[WrittenShard],
    made_by: Mapping[str, Any],
    *,
    member_names: MemberNames = MemberNames(),  # noqa: B008 (frozen)
    selected: np.ndarray | None = None,
) -> Manifest:
    """Write index, checksums and, last, the manifest; shards without samples are left out.

    selected: bool [samples of all shards], for a view; without it, every sample belongs to the data set.
    """
    kept = [shard for shard in shards if shard.record.samples]
    index = b"".join(pack_uint32(shard.lengths) for shard in kept)
    checksums = b"".join(pack_uint32(shard.checksums) for shard in kept)
    selection = None
    if selected is not None:
        bits = pack_selection(selected)
        selection = Selection(int(selected.sum()), sha256(bits))
        folder.write(SELECTED, bits)
    manifest = Manifest(
        tuple(shard.record for shard in kept), sha256(index), member_names, selection, dict(made_by)
    )
    folder.write(INDEX, index)
    folder.write(CHECKSUMS, checksums)
    folder.write(MANIFEST, manifest.to_json())
    return manifest
