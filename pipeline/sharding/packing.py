"""Packing rows into one shard: read, check, write, and say what became of every row."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.sharding.image_check import CheckedImage, ImageRules, check_image
from pipeline.sharding.image_sources import Location
from pipeline.sharding.rows import Rejected, RejectedRow, Row
from shards import Folder, ShardRecord, WrittenShard, write_shard
from shards.hashing import Purpose, derive, permutation


@dataclass(frozen=True)
class PackingPlan:
    """Which row goes to which slot of which shard: a pure function of these three numbers."""

    rows: int
    seed: int
    samples_per_shard: int

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.rows // self.samples_per_shard)

    def order(self) -> np.ndarray:
        """The row in each slot: int64 [rows]."""
        return permutation(derive(self.seed, Purpose.ROWS), self.rows)

    def slots(self, shard: int) -> range:
        """The slots of a shard; a sample's key is its slot, so keys grow and rejected rows leave gaps."""
        return range(shard * self.samples_per_shard, min((shard + 1) * self.samples_per_shard, self.rows))


@dataclass(frozen=True)
class PackingTask:
    """The rows of one shard, in the order of their slots, of which `first_slot` is the first."""

    name: str
    first_slot: int
    rows: list[tuple[Row, "Location | Rejected"]]


@dataclass(frozen=True)
class PackedShard:
    """What became of one shard's rows; kept beside the shard until the manifest is written."""

    written: WrittenShard
    rejected: list[RejectedRow]
    formats: dict[str, int]  # samples by extension of the image

    @property
    def rows(self) -> int:
        """How many rows it was made from."""
        return self.written.record.samples + len(self.rejected)

    def to_json(self) -> bytes:
        """As the text of a part file."""
        content = {
            "written": self.written.to_dict(),
            "rejected": [asdict(row) for row in self.rejected],
            "formats": self.formats,
        }
        return json.dumps(content).encode()

    @staticmethod
    def from_json(text: bytes) -> "PackedShard":
        """The inverse of `to_json`."""
        content: dict[str, Any] = json.loads(text)
        rejected = [RejectedRow(**row) for row in content["rejected"]]
        return PackedShard(WrittenShard.from_dict(content["written"]), rejected, content["formats"])


def part_name(shard_name: str) -> str:
    """The file that describes a finished shard until the manifest does."""
    return shard_name.removesuffix(".tar") + ".part.json"


def pack_shard(task: PackingTask, rules: ImageRules, out: Folder) -> PackedShard:
    """Write a shard (none where every row is rejected), then its part file."""
    rejected: list[RejectedRow] = []
    formats: Counter[str] = Counter()
    samples: list[tuple[str, dict[str, bytes]]] = []
    for slot, (row, location) in enumerate(task.rows, task.first_slot):
        try:
            image, members = _members(row, location, rules)
        except Rejected as reason:
            rejected.append(RejectedRow(row.number, row.image, str(reason)))
            continue
        formats[image.extension] += 1
        samples.append((f"{slot:09d}", members))
    if samples:
        written = write_shard(out, task.name, samples)
    else:
        written = WrittenShard(
            ShardRecord(task.name, 0, 0, ""), np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        )
    packed = PackedShard(written, rejected, dict(sorted(formats.items())))
    out.write(part_name(task.name), packed.to_json())
    return packed


def _members(
    row: Row, location: "Location | Rejected", rules: ImageRules
) -> tuple[CheckedImage, dict[str, bytes]]:
    """A row's image and the members of its sample; Rejected where it cannot be one."""
    if not row.caption.strip():
        raise Rejected("empty caption")
    if not row.image.strip():
        raise Rejected("empty image name")
    if isinstance(location, Rejected):
        raise location
    data = location.read()
    image = check_image(data, rules)
    described = {"image": row.image, "row": row.number}
    described |= {f"table.{k}" if k in described else k: value for k, value in row.other.items()}
    return image, {
        image.extension: data,
        "txt": row.caption.encode(),
        "json": json.dumps(described, ensure_ascii=False).encode(),
    }
