"""A data set of shards, opened: its manifest, its blocks, and the samples of a block in memory."""

import os
from array import array
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from shards.errors import DataError, UsageError
from shards.index import BLOCK_SAMPLES, Blocks, cut_blocks, select_blocks
from shards.manifest import (
    CHECKSUMS,
    INDEX,
    MANIFEST,
    SELECTED,
    Manifest,
    Selection,
    pack_selection,
    sha256,
    unpack_selection,
)
from shards.references import resolve_reference
from shards.sample import Sample, parse_sample
from shards.sample_place import SamplePlace, read_bytes
from shards.storage import Folder
from shards.writer import checksum

# Of more blocks than any window holds; their layouts take 6 MB.
_LAYOUTS_KEPT = 4096


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
        self._layouts: dict[int, _Layout] = {}

    @property
    def name(self) -> str:
        """The name of the data set: that of its folder."""
        return self.folder.name

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def sources(self) -> "tuple[Dataset, ...]":
        """The data sets that this one is made of: itself."""
        return (self,)

    def source(self, block: int) -> int:
        """Which of `sources` a block is of: the only one."""
        return 0

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
        return read_bytes(self._folders[record.folder], record.name, record.bytes, offset, length)

    def sample(self, block: int, slot: int, data: memoryview) -> Sample:
        """The sample in a slot of a block whose bytes are `data`; DamagedSample where they were changed."""
        starts, stops, checksums = self._layout(block)
        own = data[starts[slot] : stops[slot]]
        if checksum(own) != checksums[slot]:
            raise self._place(block, slot).altered()
        try:
            return parse_sample(own, self.manifest.member_names)
        except DataError as error:
            raise self._place(block, slot).unusable(error) from error

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
        record = self.manifest.shards[self.blocks.shard[block]]
        layout = self._layout(block)
        return SamplePlace(
            self._folders[record.folder],
            record.name,
            record.bytes,
            int(self.blocks.offset[block]) + layout.starts[slot],
            layout.stops[slot] - layout.starts[slot],
            layout.checksums[slot],
            self.manifest.member_names,
        )

    def _layout(self, block: int) -> "_Layout":
        """Where the samples of a block lie in its bytes, kept for the next sample."""
        layout = self._layouts.get(block)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[block] = self._make_layout(block)
        return layout

    def _make_layout(self, block: int) -> "_Layout":
        first, samples = int(self.blocks.first_row[block]), int(self.blocks.samples[block])
        lengths = self.lengths[first : first + BLOCK_SAMPLES].astype(np.int64)
        own: slice | np.ndarray = slice(samples)
        if self.selected is not None:
            own = np.flatnonzero(self.selected[first : first + BLOCK_SAMPLES])[:samples]
        stops = np.cumsum(lengths)
        return _Layout(
            array("q", (stops - lengths)[own].tobytes()),
            array("q", stops[own].tobytes()),
            array("I", self.checksums[first : first + BLOCK_SAMPLES][own].tobytes()),
        )


class _Layout(NamedTuple):
    """The samples of a block: where in its bytes each starts and stops, and its checksum. Arrays of the
    standard library, since theirs are Python's own numbers, and a tenth the size of a list.
    """

    starts: "array[int]"
    stops: "array[int]"
    checksums: "array[int]"


def _selection(selected: np.ndarray | None) -> Selection | None:
    return None if selected is None else Selection(int(selected.sum()), sha256(pack_selection(selected)))


_TABLE_REMEDY = "fetch it again from where it came, or write the data set again with --overwrite"


def open_dataset(address: str | os.PathLike[str]) -> Dataset:
    """Open the data set in a folder (local path or fsspec address).

    Raises UsageError where there is none, DataError where its manifest, index or checksums do not fit
    together.
    """
    folder = Folder(address)
    if not folder.remote and os.path.isfile(folder.address):
        raise UsageError(
            f"{address}: a file, not a folder of shards; pack a table with 'python -m pipeline.shard --csv "
            f"{address}'"
        )
    try:
        manifest = Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
    except FileNotFoundError:
        raise UsageError(f"{address}: no data set here (no {MANIFEST}); {_how_to_make_one(folder)}") from None
    size = 4 * manifest.indexed_samples
    lengths = np.frombuffer(_read_table(folder, INDEX, size, manifest.index_sha256), "<u4")
    checksums = np.frombuffer(_read_table(folder, CHECKSUMS, size), "<u4")
    selected = None
    if manifest.selection:
        bits = _read_table(folder, SELECTED, -(-manifest.indexed_samples // 8), manifest.selection.sha256)
        selected = unpack_selection(bits, manifest.indexed_samples)
    return Dataset(folder, manifest, lengths, checksums, selected)


def _how_to_make_one(folder: Folder) -> str:
    if any(name.lower().endswith(".tar") for name in folder.names()):
        return (
            f"describe the tars in it with 'python -m pipeline.index --shards {folder.address}', or, where "
            "'python -m pipeline.shard' wrote them and was interrupted, run the same command again"
        )
    return f"make one with 'python -m pipeline.shard --csv … --out {folder.address}'"


def _read_table(folder: Folder, name: str, size: int, expected_sha256: str | None = None) -> bytes:
    """One of the files beside the manifest; DataError where it is not the manifest's."""
    try:
        content = folder.read(name)
    except FileNotFoundError as error:
        raise DataError(f"{error}; {_TABLE_REMEDY}") from None
    if len(content) != size or expected_sha256 not in (None, sha256(content)):
        raise DataError(f"{folder.locate(name)}: damaged, or not of this manifest; {_TABLE_REMEDY}")
    return content
