"""A data set of shards, opened: its manifest, its blocks, and the samples of a block in memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shards.errors import DataError, UsageError
from shards.index import Blocks, cut_blocks
from shards.manifest import CHECKSUMS, INDEX, MANIFEST, Manifest, sha256
from shards.storage import Folder
from shards.tar import members, split_name
from shards.writer import checksum


@dataclass(frozen=True)
class Sample:
    """One sample's raw members by extension, as views into its block's bytes."""

    key: str
    members: dict[str, memoryview]
    image: memoryview
    caption: str


class Dataset:
    """Shards with their manifest and index; reads whole blocks and takes them apart.

    Every method may be called from several threads at once.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, lengths: np.ndarray, checksums: np.ndarray
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.lengths = lengths  # uint32 [samples]
        self.checksums = checksums  # uint32 [samples]

    @property
    def name(self) -> str:
        """The name of the data set: that of its folder."""
        return self.folder.name

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of all shards, in manifest order."""
        return cut_blocks(self.lengths, np.array([shard.samples for shard in self.manifest.shards]))

    def shard_name(self, block: int) -> str:
        """The shard that a block lies in."""
        return self.manifest.shards[self.blocks.shard[block]].name

    def read_block(self, block: int) -> memoryview:
        """All bytes of a block, in one ranged read; DataError where the shard is absent or cut short."""
        blocks, name = self.blocks, self.shard_name(block)
        offset, length = int(blocks.offset[block]), int(blocks.length[block])
        try:
            data = self.folder.read_range(name, offset, length)
        except FileNotFoundError:
            raise DataError(
                f"{self.folder.locate(name)}: the manifest lists this shard, but it is not there; {_REMEDY}"
            ) from None
        if len(data) != length:
            raise DataError(
                f"{self.folder.locate(name)}: block at byte {offset:,} is cut short (expected {length:,} "
                f"bytes, got {len(data):,}): the shard is truncated; {_REMEDY}"
            )
        return memoryview(data)

    def read_sample(self, number: int) -> Sample:
        """The sample of a number, read on its own (with its whole block)."""
        block = int(np.searchsorted(self.blocks.first_sample, number, side="right")) - 1
        return self.sample(block, number - int(self.blocks.first_sample[block]), self.read_block(block))

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample in a slot of a block whose bytes are `data`; DataError where they were changed."""
        number = int(self.blocks.first_sample[block]) + slot
        start = int(self.lengths[number - slot : number].sum(dtype=np.int64))
        own = data[start : start + int(self.lengths[number])]
        place = f"{self.folder.locate(self.shard_name(block))}: sample {slot} of the block at byte " + format(
            int(self.blocks.offset[block]), ","
        )
        if checksum(own) != self.checksums[number]:
            raise DataError(
                f"{place} is not what was written (wrong checksum): the shard was altered; {_REMEDY}"
            )
        try:
            found = [(*split_name(name), content) for name, content in members(own)]
        except DataError as error:
            raise DataError(f"{place}: {error}; {_REMEDY}") from error
        by_extension = {extension: content for _, extension, content in found}
        key = found[0][0] if found else ""
        caption = by_extension.get(self.manifest.caption_extension)
        image = next((by_extension[e] for e in self.manifest.image_extensions if e in by_extension), None)
        if caption is None or image is None:
            raise DataError(f"{place} (key {key!r}) lacks {'a caption' if caption is None else 'an image'}")
        return Sample(key, by_extension, image, str(caption, "utf-8"))


_REMEDY = "run the command that wrote the shards again, or fetch this shard again from where it came"


def open_dataset(address: str) -> Dataset:
    """Open the data set in a folder (local path or fsspec address).

    Raises UsageError where there is none, DataError where its manifest, index or checksums do not fit
    together.
    """
    folder = Folder(address)
    try:
        manifest = Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
    except FileNotFoundError:
        raise UsageError(
            f"{address}: no data set here (no {MANIFEST}); make one with "
            f"'python -m pipeline.shard --csv … --out {address}'"
        ) from None
    tables = []
    for name in (INDEX, CHECKSUMS):
        try:
            content = folder.read(name)
        except FileNotFoundError as error:
            raise DataError(f"{error}; {_REMEDY}") from None
        if len(content) != 4 * manifest.samples or (
            name == INDEX and sha256(content) != manifest.index_sha256
        ):
            raise DataError(f"{folder.locate(name)}: damaged, or not of this manifest; {_REMEDY}")
        tables.append(np.frombuffer(content, "<u4"))
    return Dataset(folder, manifest, *tables)
