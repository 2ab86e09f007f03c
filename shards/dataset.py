"""A data set of shards, opened: its manifest, its blocks, and the samples of a block in memory."""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shards.errors import DataError, UsageError
from shards.index import Blocks, cut_blocks, select_blocks
from shards.manifest import (
    CHECKSUMS,
    INDEX,
    MANIFEST,
    SELECTED,
    Manifest,
    MemberNames,
    sha256,
    unpack_selection,
)
from shards.references import resolve_reference
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

    lengths, checksums: uint32 [indexed samples]; selected: bool [indexed samples], for a view. Samples are
    numbered in manifest order; a view numbers those it has. Every method may be called from several threads
    at once.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        lengths: np.ndarray,
        checksums: np.ndarray,
        selected: np.ndarray | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.lengths = lengths
        self.checksums = checksums
        self.selected = selected
        self._rows = None if selected is None else np.flatnonzero(selected)
        self._folders = {
            record.folder: resolve_reference(folder, record.folder) for record in manifest.shards
        }

    @property
    def name(self) -> str:
        """The name of the data set: that of its folder."""
        return self.folder.name

    def __len__(self) -> int:
        return self.manifest.samples

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of all shards, in manifest order."""
        blocks = cut_blocks(self.lengths, np.array([shard.samples for shard in self.manifest.shards]))
        return blocks if self.selected is None else select_blocks(blocks, self.lengths, self.selected)

    def shard_address(self, block: int) -> str:
        """The address of the shard that a block lies in."""
        record = self.manifest.shards[self.blocks.shard[block]]
        return self._folders[record.folder].locate(record.name)

    def read_block(self, block: int) -> memoryview:
        """All bytes of a block, in one ranged read; DataError where the shard is absent or cut short."""
        return self._read(block, 0, int(self.blocks.length[block]))

    def read_sample(self, number: int) -> Sample:
        """The sample of a number, read on its own."""
        block = int(np.searchsorted(self.blocks.first_sample, number, side="right")) - 1
        slot = number - int(self.blocks.first_sample[block])
        row, start = self._place(block, slot)
        return self._parse(block, slot, row, self._read(block, start, int(self.lengths[row])))

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample in a slot of a block whose bytes are `data`; DataError where they were changed."""
        row, start = self._place(block, slot)
        return self._parse(block, slot, row, data[start : start + int(self.lengths[row])])

    def _read(self, block: int, start: int, length: int) -> memoryview:
        record = self.manifest.shards[self.blocks.shard[block]]
        folder, offset = self._folders[record.folder], int(self.blocks.offset[block]) + start
        try:
            data = folder.read_range(record.name, offset, length)
        except FileNotFoundError:
            raise DataError(
                f"{folder.locate(record.name)}: the manifest lists this shard, but it is not there; {_REMEDY}"
            ) from None
        if len(data) != length:
            raise DataError(
                f"{folder.locate(record.name)}: block at byte {offset:,} is cut short (expected {length:,} "
                f"bytes, got {len(data):,}): the shard is truncated; {_REMEDY}"
            )
        return memoryview(data)

    def _place(self, block: int, slot: int) -> tuple[int, int]:
        """Where a sample stands in the index, and at which byte of its block it starts."""
        first = int(self.blocks.first_sample[block])
        first_row, row = (first, first + slot) if self._rows is None else self._rows[[first, first + slot]]
        return int(row), int(self.lengths[first_row:row].sum(dtype=np.int64))

    def _parse(self, block: int, slot: int, row: int, own: memoryview) -> Sample:
        place = f"{self.shard_address(block)}: sample {slot} of the block at byte " + format(
            int(self.blocks.offset[block]), ","
        )
        if checksum(own) != self.checksums[row]:
            raise DataError(
                f"{place} is not what was written (wrong checksum): the shard was altered; {_REMEDY}"
            )
        try:
            return parse_sample(own, self.manifest.member_names)
        except DataError as error:
            raise DataError(f"{place}: {error}; {_REMEDY}") from error


def parse_sample(data: memoryview, names: MemberNames) -> Sample:
    """The sample whose tar bytes are `data`; DataError where it is damaged, or has no image or caption."""
    found = [(*split_name(name), content) for name, content in members(data)]
    by_extension = {extension: content for _, extension, content in found}
    key = found[0][0] if found else ""
    image = next((by_extension[e] for e in names.image_extensions if e in by_extension), None)
    if image is None:
        raise DataError(f"sample {key!r} has no image (none of {', '.join(names.image_extensions)})")
    caption = by_extension.get(names.caption_extension)
    if caption is None:
        raise DataError(f"sample {key!r} has no caption (no {names.caption_extension})")
    return Sample(key, by_extension, image, _caption_text(key, caption, names.caption_key))


def _caption_text(key: str, member: memoryview, caption_key: str | None) -> str:
    try:
        text = str(member, "utf-8")
        if caption_key is not None:
            text = json.loads(text)[caption_key]
    except UnicodeDecodeError:
        raise DataError(f"the caption of sample {key!r} is not UTF-8") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"the JSON of sample {key!r} has no caption under {caption_key!r}") from None
    if not isinstance(text, str):
        raise DataError(f"the caption of sample {key!r} is not text")
    return text


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
    size = 4 * manifest.indexed_samples
    lengths = np.frombuffer(_read_table(folder, INDEX, size, manifest.index_sha256), "<u4")
    checksums = np.frombuffer(_read_table(folder, CHECKSUMS, size), "<u4")
    selected = None
    if manifest.selection:
        bits = _read_table(folder, SELECTED, -(-manifest.indexed_samples // 8), manifest.selection.sha256)
        selected = unpack_selection(bits, manifest.indexed_samples)
    return Dataset(folder, manifest, lengths, checksums, selected)


def _read_table(folder: Folder, name: str, size: int, expected_sha256: str | None = None) -> bytes:
    """One of the files beside the manifest; DataError where it is not the manifest's."""
    try:
        content = folder.read(name)
    except FileNotFoundError as error:
        raise DataError(f"{error}; {_REMEDY}") from None
    if len(content) != size or expected_sha256 not in (None, sha256(content)):
        raise DataError(f"{folder.locate(name)}: damaged, or not of this manifest; {_REMEDY}")
    return content
