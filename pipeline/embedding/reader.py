"""Embeddings read again: features of images and captions, with the samples that they are of.

embeddings = open_embeddings("embeddings/")
embeddings.features("image").whole()        # [N, D]
embeddings.numbers, embeddings.keys         # of the N rows, in the order of the data set
embeddings.sample(17)                       # number, key and caption of a row
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.embedding.manifest import MANIFEST, EmbeddingsManifest, Part
from pipeline.embedding.pieces import features_file, read_features, read_samples
from shards import DataError, Folder, UsageError

_TABLES_KEPT = 64


class EmbeddedSample(NamedTuple):
    """Which sample a row is of."""

    number: int
    key: str
    caption: str


class FeatureRows:
    """The features of one part, float32 or float16, of length 1 each: `len(rows)` rows of `rows.width`.

    Pieces are opened when they are first asked for: local .npy files are mapped into memory and take none of
    it for good, others are read and kept.
    """

    def __init__(self, folder: Folder, manifest: EmbeddingsManifest, part: Part) -> None:
        assert manifest.rows is not None
        self._folder, self._manifest, self._part = folder, manifest, part
        self._ends = np.cumsum(manifest.rows)
        self._arrays: dict[int, np.ndarray] = {}
        self.width, self.dtype = manifest.model.embed_dim, np.dtype(manifest.dtype)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, features [rows, D]) of each piece, in order."""
        for piece, end in enumerate(self._ends.tolist()):
            array = self._array(piece)
            yield end - len(array), array

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `[start, stop)` [stop - start, D]: a view where they lie in one piece, else a copy."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, max(start, stop - 1), side="right"))
        begin = int(self._ends[first - 1]) if first else 0
        arrays = [self._array(piece) for piece in range(first, min(last + 1, len(self._ends)))]
        if len(arrays) == 1:
            return arrays[0][start - begin : stop - begin]
        joined = np.concatenate(arrays or [np.empty((0, self.width), self._manifest.dtype)])
        return joined[start - begin : stop - begin]

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these numbers [n, D], in their order."""
        out = np.empty((len(numbers), self.width), self._manifest.dtype)
        pieces = np.searchsorted(self._ends, numbers, side="right")
        for piece in np.unique(pieces).tolist():
            own = np.flatnonzero(pieces == piece)
            begin = int(self._ends[piece - 1]) if piece else 0
            out[own] = self._array(piece)[np.asarray(numbers)[own] - begin]
        return out

    def whole(self) -> np.ndarray:
        """All rows [N, D], in memory unless they lie in one piece."""
        return self.rows(0, len(self))

    def _array(self, piece: int) -> np.ndarray:
        array = self._arrays.get(piece)
        if array is None:
            manifest = self._manifest
            assert manifest.rows is not None
            array = read_features(self._folder, self._part, piece, manifest.format)
            expected = (manifest.rows[piece], self.width)
            if array.shape != expected or array.dtype != manifest.dtype:
                name = self._folder.locate(features_file(self._part, piece, manifest.format))
                raise DataError(
                    f"{name}: holds {list(array.shape)} {array.dtype}, the manifest says {list(expected)} "
                    f"{manifest.dtype}: write the embeddings again with --overwrite"
                )
            self._arrays[piece] = array
        return array


class Embeddings:
    """Embeddings whose every piece is there, opened."""

    def __init__(self, folder: Folder, manifest: EmbeddingsManifest) -> None:
        assert manifest.rows is not None
        self.folder, self.manifest = folder, manifest
        self._ends = np.cumsum(manifest.rows)
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def features(self, part: Part) -> FeatureRows:
        """The features of images or of captions; UsageError where there are none of these."""
        if part not in self.manifest.parts:
            what = "images" if part == "image" else "captions"
            there = "captions" if part == "image" else "images"
            raise UsageError(
                f"{self.folder.address}: holds features of {there} only, and those of {what} are asked for: "
                "write embeddings of both with 'python -m pipeline.embed' (leave out --only)"
            )
        return FeatureRows(self.folder, self.manifest, part)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The samples' numbers in the data set: int64 [N]."""
        return np.asarray(self._column("number"))

    @cached_property
    def keys(self) -> Sequence[str]:
        """The samples' keys, or of a folder of images the paths in it."""
        return self._column("key").to_pylist()

    @cached_property
    def captions(self) -> Sequence[str]:
        """The samples' captions (of several, the first)."""
        return self._column("caption").to_pylist()

    def sample(self, row: int) -> EmbeddedSample:
        """Which sample a row is of."""
        piece = int(np.searchsorted(self._ends, row, side="right"))
        table = self._table(piece)
        place = row - (int(self._ends[piece]) - table.num_rows)
        return EmbeddedSample(*(table.column(name)[place].as_py() for name in EmbeddedSample._fields))

    def _column(self, name: str) -> pa.ChunkedArray:
        chunks = [self._table(piece).column(name) for piece in range(len(self._ends))]
        return pa.chunked_array([chunk for column in chunks for chunk in column.chunks], chunks[0].type)

    def _table(self, piece: int) -> pa.Table:
        if piece not in self._tables:
            if len(self._tables) >= _TABLES_KEPT:
                self._tables.popitem(last=False)
            self._tables[piece] = read_samples(self.folder, piece)
        return self._tables[piece]


def read_manifest(folder: Folder) -> EmbeddingsManifest | None:
    """The manifest of embeddings that are there or in the making; None where there are none."""
    try:
        return EmbeddingsManifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_embeddings(address: str) -> Embeddings:
    """Open embeddings in a folder (a path or an address); UsageError where there are none, or not all yet."""
    folder = Folder(address)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"{address}: no embeddings here (no {MANIFEST}); make some with 'python -m pipeline.embed "
            f"--data … --checkpoint … --out {address}'"
        )
    if manifest.rows is None:
        raise UsageError(
            f"{address}: these embeddings are not finished; the same 'python -m pipeline.embed' command goes "
            "on with the pieces that are missing"
        )
    return Embeddings(folder, manifest)
