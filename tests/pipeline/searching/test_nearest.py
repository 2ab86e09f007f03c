"""The nearest rows: exactly those of a product with all of them, and by an index nearly all of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedding.manifest import EmbeddedData, EmbeddedModel, EmbeddingsManifest
from pipeline.embedding.pieces import Piece, write_piece
from pipeline.embedding.reader import Embeddings
from pipeline.searching.exact import exact_search, rescore
from pipeline.searching.faiss_index import build_index, open_index
from shards import Folder

WIDTH = 32


def normalized(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings_of(folder, image: np.ndarray, text: np.ndarray, *, samples_per_piece: int) -> Embeddings:
    """Embeddings of given features, on disk."""
    model = EmbeddedModel("a.pt", None, "f" * 16, "t", image.shape[1], 64, [0.0] * 3, [1.0] * 3, "exact")
    data = EmbeddedData("shards/a", "shards", "d" * 64, len(image))
    manifest = EmbeddingsManifest(model, data, ["image", "text"], "npy", "float32", samples_per_piece)
    target, rows = Folder(folder), []
    for piece in range(manifest.pieces):
        numbers = np.arange(*manifest.span(piece))
        names = [str(number) for number in numbers]
        features = {"image": image[numbers], "text": text[numbers]}
        write_piece(target, piece, Piece(numbers, names, names, features), "npy")
        rows.append(len(numbers))
    return Embeddings(target, replace(manifest, rows=rows))


class Pieces:
    """Rows in pieces of a size, in memory."""

    def __init__(self, rows: np.ndarray, size: int) -> None:
        self._rows, self._size = rows, size

    def pieces(self):
        for first in range(0, len(self._rows), self._size):
            yield first, self._rows[first : first + self._size]

    def take(self, numbers):
        return self._rows[numbers]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_exact_search_is_a_sort_of_all_scores(rows, size, count, seed):
    """Scores are whole numbers, so that many are equal and none is rounded."""
    random = np.random.default_rng(seed)
    features = random.integers(-2, 3, (rows, 3)).astype(np.float32)
    queries = random.integers(-2, 3, (2, 3)).astype(np.float32)
    found = exact_search(Pieces(features, size), queries, count)
    order = np.argsort(-(queries @ features.T), axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(queries @ features.T, order, 1)
    assert np.array_equal(found.scores, scores)
    inside = found.scores > found.scores[:, -1:]  # of equal scores at the end, a piece may offer any
    assert np.array_equal(found.rows[inside], order[inside])
    of_all = rescore(Pieces(features, size), queries, np.arange(rows)[None].repeat(2, 0), count)
    assert np.array_equal(of_all.rows, order)


def test_the_index_finds_nearly_all_that_exact_search_finds_with_the_same_scores(tmp_path, capfd):
    """Clusters, as features of figures have them, and captions that lie away from all images."""
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    centres = random.normal(size=(200, WIDTH))
    image = normalized(centres[random.integers(0, 200, 30_000)] + 0.5 * random.normal(size=(30_000, WIDTH)))
    text = normalized(image + 0.1 * random.normal(size=image.shape) + 0.5)
    embeddings = embeddings_of(tmp_path, image, text, samples_per_piece=4096)
    index = open_index(embeddings, "image")
    assert "% of the nearest 10" in capfd.readouterr().err
    queries = normalized(text[:300] + 0.05 * random.normal(size=(300, WIDTH)))
    found = index.search(queries, 10)
    expected = exact_search(embeddings.features("image"), queries, 10)
    recall = [
        len(set(a) & set(b)) / 10 for a, b in zip(found.rows.tolist(), expected.rows.tolist(), strict=True)
    ]
    assert np.mean(recall) > 0.95
    same = found.rows == expected.rows
    assert np.abs(found.scores[same] - expected.scores[same]).max() < 1e-6
    again = open_index(embeddings, "image").search(queries, 10)
    assert np.array_equal(again.rows, found.rows)


def test_the_index_looks_into_a_small_share_of_the_lists(tmp_path):
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    centres = random.normal(size=(500, WIDTH))
    image = normalized(centres[random.integers(0, 500, 40_000)] + 0.3 * random.normal(size=(40_000, WIDTH)))
    index = build_index(embeddings_of(tmp_path, image, image, samples_per_piece=40_000), "image")
    assert index.nprobe < index.nlist / 4
