"""A data set of shards, opened: its manifest, its blocks, and the samples of a block in memory."""

import json
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shards.errors import DamagedSample, DataError, UsageError
from shards.index import BLOCK_SAMPLES, Blocks, cut_blocks, select_blocks
from shards.manifest import (
    CHECKSUMS,
    INDEX,
    MANIFEST,
    SELECTED,
    Manifest,
    MemberNames,
    Selection,
    pack_selection,
    sha256,
    unpack_selection,
)
from shards.references import resolve_reference
from shards.storage import Folder
from shards.tar import is_hidden, members, split_name
from shards.writer import checksum


@dataclass(frozen=True)
class Sample:
    """One sample's raw members by extension, as views into its block's bytes."""

    key: str
    members: dict[str, memoryview]
    image: memoryview
    caption: str


@dataclass(frozen=True)
class SamplePlace:
    """Where one sample lies and what it must be: enough to read it in another process."""

    folder: Folder
    shard: str
    offset: int
    length: int
    checksum: int
    names: MemberNames

    def read(self) -> Sample:
        """The sample, in one ranged read; DamagedSample where its bytes are not what was written, DataError
        where they cannot be had.
        """
        return self.parse(read_bytes(self.folder, self.shard, self.offset, self.length))

    def parse(self, data: memoryview) -> Sample:
        """The sample whose bytes are `data`; DamagedSample where they were changed."""
        place = f"{self.folder.locate(self.shard)}: the sample at byte {self.offset:,}"
        if checksum(data) != self.checksum:
            raise DamagedSample(
                f"{place} is not what was written (wrong checksum): the shard was altered; {_REMEDY}"
            )
        try:
            return parse_sample(data, self.names)
        except DataError as error:
            raise DamagedSample(f"{place}: {error}; {_REMEDY}") from error


def read_bytes(folder: Folder, shard: str, offset: int, length: int) -> memoryview:
    """A range of a shard; DataError where the shard is absent or cut short."""
    try:
        data = folder.read_range(shard, offset, length)
    except FileNotFoundError:
        raise DataError(
            f"{folder.locate(shard)}: the manifest lists this shard, but it is not there; {_REMEDY}"
        ) from None
    if len(data) != length:
        raise DataError(
            f"{folder.locate(shard)}: block at byte {offset:,} is cut short (expected {length:,} bytes, got "
            f"{len(data):,}): the shard is truncated; {_REMEDY}"
        )
    return memoryview(data)


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
        references = {record.folder for record in manifest.shards}
        self._folders = {reference: resolve_reference(folder, reference) for reference in references}

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
        record = self.manifest.shards[self.blocks.shard[block]]
        offset, length = int(self.blocks.offset[block]), int(self.blocks.length[block])
        return read_bytes(self._folders[record.folder], record.name, offset, length)

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample in a slot of a block whose bytes are `data`; DamagedSample where they were changed."""
        place = self._place(block, slot)
        start = place.offset - int(self.blocks.offset[block])
        return place.parse(data[start : start + place.length])

    def place(self, number: int) -> SamplePlace:
        """Where the sample of a number lies."""
        block = int(np.searchsorted(self.blocks.first_sample, number, side="right")) - 1
        return self._place(block, number - int(self.blocks.first_sample[block]))

    def read_sample(self, number: int) -> Sample:
        """The sample of a number, read on its own."""
        return self.place(number).read()

    def single_shard(self, number: int) -> "Dataset":
        """The data set that one of the shards is by itself: small enough to hand to another process."""
        record = self.manifest.shards[number]
        rows = slice(int(self._shard_ends[number]) - record.samples, int(self._shard_ends[number]))
        own = None if self.selected is None else self.selected[rows]
        return Dataset(
            self.folder,
            replace(self.manifest, shards=(record,), index_sha256="", selection=_selection(own)),
            self.lengths[rows],
            self.checksums[rows],
            own,
        )

    def keeping(self, kept: np.ndarray) -> "Dataset":
        """The view on this data set that has the samples where `kept` (bool [samples]) is true."""
        selected = np.zeros(self.manifest.indexed_samples, bool)
        selected[slice(None) if self.selected is None else self.selected] = kept
        manifest = replace(self.manifest, selection=_selection(selected))
        return Dataset(self.folder, manifest, self.lengths, self.checksums, selected)

    @property
    def folders(self) -> list[Folder]:
        """The folders that shards lie in."""
        return list(self._folders.values())

    def shard_folder(self, number: int) -> Folder:
        """The folder that a shard lies in."""
        return self._folders[self.manifest.shards[number].folder]

    @cached_property
    def _shard_ends(self) -> np.ndarray:
        """Indexed samples up to the end of each shard."""
        return np.cumsum([record.samples for record in self.manifest.shards])

    def _place(self, block: int, slot: int) -> SamplePlace:
        first = row = int(self.blocks.first_row[block])
        if self.selected is None:
            row += slot
        else:
            row += int(np.flatnonzero(self.selected[first : first + BLOCK_SAMPLES])[slot])
        record = self.manifest.shards[self.blocks.shard[block]]
        return SamplePlace(
            self._folders[record.folder],
            record.name,
            int(self.blocks.offset[block]) + int(self.lengths[first:row].sum(dtype=np.int64)),
            int(self.lengths[row]),
            int(self.checksums[row]),
            self.manifest.member_names,
        )


def _selection(selected: np.ndarray | None) -> Selection | None:
    return None if selected is None else Selection(int(selected.sum()), sha256(pack_selection(selected)))


def parse_sample(data: memoryview, names: MemberNames) -> Sample:
    """The sample whose tar bytes are `data`; DataError where it is damaged, or has no image or caption."""
    found = [(*split_name(name), content) for name, content in members(data) if not is_hidden(name)]
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


_REMEDY = (
    "fetch this shard again from where it came, or run the command that wrote the shards again (it writes "
    "what is gone: delete what is damaged)"
)
_TABLE_REMEDY = "fetch it again from where it came, or write the data set again with --overwrite"


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
        raise DataError(f"{error}; {_TABLE_REMEDY}") from None
    if len(content) != size or expected_sha256 not in (None, sha256(content)):
        raise DataError(f"{folder.locate(name)}: damaged, or not of this manifest; {_TABLE_REMEDY}")
    return content
