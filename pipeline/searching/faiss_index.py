"""A faiss index over features, kept beside them: a search that looks at a small share of the rows.

The index is an inverted file of 8-bit codes. It only proposes rows, which are then scored by their true
features; how many lists a search looks into is settled when the index is built, by comparing with exact
search.
"""

import math
import time
from typing import Any

import numpy as np

from pipeline.embedding.job import INDEX_PREFIX
from pipeline.embedding.manifest import Part
from pipeline.embedding.reader import Embeddings, FeatureRows
from pipeline.run_log import say
from pipeline.searching.exact import Nearest, exact_search, rescore
from shards import DataError, UsageError

_CANDIDATES = 4  # rows proposed for every one wanted
_LEAST_CANDIDATES = 100
_TRAINED_ON = 40  # rows for each list
_ROWS_PER_LIST = 39  # faiss warns below
_ASKED = 256  # queries that settle how many lists are looked into
_WANTED_RECALL = 0.99  # of the nearest ten


class FaissIndex:
    """An index over the features of one part, opened or built."""

    def __init__(self, index: Any, features: FeatureRows) -> None:
        self.index, self._features = index, features

    def search(self, queries: np.ndarray, count: int) -> Nearest:
        """The `count` nearest rows, as `exact_search` gives them, but that some may be missed."""
        wanted = min(len(self._features), max(_LEAST_CANDIDATES, _CANDIDATES * count))
        _, candidates = self.index.search(queries, wanted)
        return rescore(self._features, queries, candidates, count)


def open_index(embeddings: Embeddings, part: Part) -> FaissIndex:
    """The index over these embeddings, built where it is not kept beside them yet.

    Raises UsageError where faiss is missing, or where the index cannot be kept.
    """
    faiss = _import_faiss()
    features = embeddings.features(part)
    folder = embeddings.folder
    name = f"{INDEX_PREFIX}{part}-{embeddings.manifest.fingerprint}.faiss"
    names = folder.names()
    if name in names:
        try:
            index = faiss.deserialize_index(np.frombuffer(folder.read(name), np.uint8))
            if index.ntotal != len(features):
                raise RuntimeError(f"it has {index.ntotal:,} rows, the embeddings {len(features):,}")
        except RuntimeError as error:
            raise DataError(
                f"{folder.locate(name)}: damaged, or of another version of faiss ({error}); delete it, and "
                "it is built again"
            ) from error
        return FaissIndex(index, features)
    index = build_index(embeddings, part)
    try:
        folder.write(name, memoryview(faiss.serialize_index(index)))
    except (DataError, OSError) as error:
        raise UsageError(
            f"{folder.address}: the index cannot be kept here ({error}): copy the embeddings to where you "
            "may write, or search with --index exact"
        ) from error
    for old in names:
        if old.startswith(f"{INDEX_PREFIX}{part}-"):
            folder.delete(old)
    return FaissIndex(index, features)


def build_index(embeddings: Embeddings, part: Part) -> Any:
    """Build an index and say how well it finds; exhaustive where there are too few rows for lists."""
    faiss = _import_faiss()
    features = embeddings.features(part)
    begin, rows, width = time.monotonic(), len(features), features.width
    lists = 2 ** round(math.log2(4 * math.sqrt(max(1, rows))))
    if rows < lists * _ROWS_PER_LIST:
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        chosen = np.arange(rows)
    else:
        index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        chosen = np.linspace(0, rows - 1, min(rows, lists * _TRAINED_ON)).astype(np.int64)
    index.train(features.take(chosen).astype(np.float32))
    for _, piece in features.pieces():
        index.add(np.ascontiguousarray(piece, np.float32))
    recall = _settle(index, embeddings, part)
    seconds = time.monotonic() - begin
    say(f"index of {rows:,} rows built in {seconds:,.1f} s; it finds {recall:.1%} of the nearest 10")
    return index


def _settle(index: Any, embeddings: Embeddings, part: Part) -> float:
    """Let a search look into as many lists as it takes to find nearly all of what exact search finds, for
    queries of the kind that people ask: captions, where there are features of these. The recall reached.
    """
    asking: Part = "text" if "text" in embeddings.manifest.parts else "image"
    features = embeddings.features(part)
    rows = np.linspace(0, len(features) - 1, min(len(features), _ASKED)).astype(np.int64)
    queries = embeddings.features(asking).take(rows).astype(np.float32)
    expected = exact_search(features, queries, 10)
    lists = getattr(index, "nlist", 1)
    probes = 1
    while True:
        if lists > 1:
            index.nprobe = probes
        found = FaissIndex(index, features).search(queries, 10)
        pairs = zip(found.rows.tolist(), expected.rows.tolist(), strict=True)
        recall = float(np.mean([len(set(ours) & set(true)) / len(true) for ours, true in pairs]))
        if recall >= _WANTED_RECALL or probes >= lists:
            return recall
        probes = min(lists, 2 * probes)


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UsageError(
            "--index faiss: faiss is missing: pip install 'pmc-clip-stream[search]', or use --index exact"
        ) from None
    return faiss
