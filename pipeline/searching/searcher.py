"""A search from the question to the samples found."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.embedding.manifest import Part
from pipeline.embedding.reader import Embeddings
from pipeline.searching.exact import exact_search
from pipeline.searching.faiss_index import open_index
from pipeline.searching.query_model import QueryModel
from pipeline.sharding.image_check import ImageRules, check_image
from pipeline.sharding.rows import Rejected
from shards import UsageError


@dataclass(frozen=True)
class Hit:
    """A sample that was found; score: cosine similarity, 1 for the query itself."""

    rank: int
    score: float
    number: int
    key: str
    caption: str


class Searcher:
    """Finds the samples of some embeddings that are nearest to a caption or an image."""

    def __init__(
        self, embeddings: Embeddings, model: QueryModel, index: Literal["exact", "faiss"], part: Part
    ) -> None:
        """part: whose features are searched. Raises UsageError where there are none of these."""
        if not len(embeddings):
            raise UsageError(f"{embeddings.folder.address}: holds no rows: every sample was left out")
        self.embeddings, self._model = embeddings, model
        self._features = embeddings.features(part)
        self._index = open_index(embeddings, part) if index == "faiss" else None

    def by_text(self, caption: str, count: int) -> list[Hit]:
        """The nearest to a caption; UsageError where it says nothing."""
        if not caption.strip():
            raise UsageError("the caption is empty: write what a figure shows, such as 'CT of the chest'")
        return self._nearest(self._model.text(caption), count)

    def by_image(self, data: bytes, count: int) -> list[Hit]:
        """The nearest to an image; UsageError where the bytes are none, or of more pixels than is safe."""
        rules = ImageRules()
        try:
            check_image(data, rules)
        except Rejected as error:
            raise UsageError(
                f"this cannot be used as an image ({error}): give a JPEG, PNG, WebP, GIF, TIFF or BMP "
                f"of at most {rules.max_pixels / 1e6:,.0f} megapixels"
            ) from error
        return self._nearest(self._model.image(data), count)

    def _nearest(self, query: np.ndarray, count: int) -> list[Hit]:
        if self._index:
            found = self._index.search(query, count)
        else:
            found = exact_search(self._features, query, count)
        pairs = zip(found.scores[0].tolist(), found.rows[0].tolist(), strict=True)
        return [Hit(rank, score, *self.embeddings.sample(row)) for rank, (score, row) in enumerate(pairs, 1)]
