"""Packing rows into one shard: read, check, write, and say what became of every row."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from pipeline.sharding.image_check import ImageRules
from pipeline.sharding.image_sources import Location
from pipeline.sharding.read_ahead import read_ahead, read_image
from pipeline.sharding.rows import Rejected, RejectedRow, Row
from pipeline.sharding.statistics import Statistics, Taken
from pipeline.sharding.transcode import Transcoding, process_image
from shards import DataError, Folder, ShardRecord, WrittenShard, write_shard
from shards.writer import Unexpected

_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Treatment:
    """What is done with every image: the rules it must meet, and how it is stored."""

    rules: ImageRules = field(default_factory=ImageRules)
    transcoding: Transcoding = field(default_factory=Transcoding)


@dataclass(frozen=True)
class PackingTask:
    """The rows of one shard in the order of their places, of which `first_slot` is the first, and where their
    images lie. `job` stands for the job they belong to.
    """

    folder: Folder
    name: str
    first_slot: int
    rows: list[tuple[Row, "Location | Rejected"]]
    job: str = ""

    def __reduce__(self) -> tuple[Callable[..., "PackingTask"], tuple[Any, ...]]:
        """Sent column by column, which takes half the time."""
        rows, locations = zip(*self.rows, strict=True)
        return _as_sent, (
            self.folder,
            self.name,
            self.first_slot,
            tuple(zip(*rows, strict=True)),
            locations,
            self.job,
        )


def _as_sent(
    folder: Folder, name: str, first_slot: int, columns: tuple[Any, ...], locations: tuple[Any, ...], job: str
) -> PackingTask:
    return PackingTask(folder, name, first_slot, list(zip(map(Row, *columns), locations, strict=True)), job)


@dataclass(frozen=True)
class PackingOutcome:
    """How many rows of a shard were taken and rejected; the shard's description says the rest."""

    samples: int
    rejected: int


@dataclass(frozen=True, eq=False)
class PackedShard:
    """The description of a shard, kept beside it until the manifest is written: what became of its rows."""

    written: WrittenShard
    rejected: list[RejectedRow] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    job: str = ""

    def to_json(self) -> bytes:
        """As the text of its file."""
        content = {
            "written": self.written.to_dict(),
            "rejected": [asdict(row) for row in self.rejected],
            "statistics": self.statistics.to_dict(),
            "job": self.job,
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes, address: str) -> "PackedShard":
        """The inverse of `to_json`; DataError, naming `address`, where the text is damaged."""
        try:
            content: dict[str, Any] = json.loads(text)
            return PackedShard(
                WrittenShard.from_dict(content["written"]),
                [RejectedRow(**row) for row in content["rejected"]],
                Statistics.from_dict(content["statistics"]),
                content["job"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{address}: this description of a finished shard is damaged ({error}): delete it, and the "
                "same command writes the shard again"
            ) from error


def part_name(shard_name: str) -> str:
    """The file that describes a finished shard until the manifest does."""
    return shard_name.removesuffix(".tar") + ".part.json"


def pack_shard(task: PackingTask, treatment: Treatment) -> PackingOutcome:
    """Write a shard (none where every row is rejected), then its description."""
    rejected: list[RejectedRow] = []
    taken: list[Taken] = []
    samples = _samples(task, treatment, rejected, taken)
    return write_described(task.folder, task.name, samples, rejected, taken, task.job)


def restore_shard(task: tuple[PackingTask, ShardRecord], treatment: Treatment) -> None:
    """Write a shard again of which only the record is left; DataError where it cannot be made as it was."""
    packing, record = task
    samples = _samples(packing, treatment, [], [])
    try:
        write_shard(packing.folder, record.name, samples, expected=record)
    except Unexpected:
        raise DataError(
            f"{packing.folder.locate(record.name)} was gone and cannot be written again as the manifest has "
            "it: the images changed since; pack everything again with --overwrite"
        ) from None


def write_described(
    folder: Folder,
    name: str,
    samples: Iterator[tuple[str, dict[str, bytes]]],
    rejected: list[RejectedRow],
    taken: list[Taken],
    job: str = "",
) -> PackingOutcome:
    """Write a shard (none where there are no samples), then its description, with the rejected rows and what
    was taken as they are once the last sample was drawn.
    """
    first = next(samples, None)
    if first is None:
        none = np.zeros(0, np.uint32)
        written = WrittenShard(ShardRecord(name, 0, 0, ""), none, none)
    else:
        written = write_shard(folder, name, chain([first], samples))
    description = PackedShard(written, rejected, Statistics.of(taken), job).to_json()
    folder.write(part_name(name), description, settled=False)  # the manifest settles all
    return PackingOutcome(written.record.samples, len(rejected))


def _samples(
    task: PackingTask, treatment: Treatment, rejected: list[RejectedRow], taken: list[Taken]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of every row that can be a sample, counted in `taken`; the others go to `rejected`."""
    images = read_ahead(read_image, (usable(row) or location for row, location in task.rows))
    for slot, ((row, _), image) in enumerate(zip(task.rows, images, strict=True), task.first_slot):
        try:
            members = sample_members(row, image, treatment, taken)
        except Rejected as reason:
            rejected.append(RejectedRow(row.number, row.image, str(reason)))
        else:
            yield f"{slot:09d}", members


def usable(row: Row) -> Rejected | None:
    """Why a row cannot be a sample, whatever its image is; None where nothing speaks against it."""
    if not row.caption.strip():
        return Rejected("empty caption")
    if not row.image.strip():
        return Rejected("empty image name")
    return None


def sample_members(
    row: Row, data: "bytes | Rejected", treatment: Treatment, taken: list[Taken]
) -> dict[str, bytes]:
    """The members of a row's sample by extension, counted in `taken`; Rejected where it cannot be one.

    data: the image's bytes, or why they cannot be had.
    """
    if isinstance(data, Rejected):
        raise data
    stored, image = process_image(data, treatment.rules, treatment.transcoding)
    taken.append(Taken(image, len(stored), row.caption))
    return {image.extension: stored, "txt": row.caption.encode(), "json": _described(row).encode()}


def _described(row: Row) -> str:
    """A row's JSON: the image's name, the row's number, and the other columns."""
    own = f'{{"image": {encode_basestring(row.image)}, "row": {row.number}'
    if not row.other:
        return own + "}"
    others = {f"table.{k}" if k in ("image", "row") else k: value for k, value in row.other.items()}
    return f"{own}, {_to_json(others)[1:]}"
