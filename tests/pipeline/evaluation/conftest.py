"""Features without a model, and their ranks counted the slow way."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.ranks import PairRanks, count_ranks
from pipeline.evaluation.tiled_rows import TiledRows
from pipeline.topology import Topology


@pytest.fixture(scope="session")
def rank_features() -> Callable[..., tuple[PairRanks, Pairing]]:
    """`rank_features(image, text, labels, counts, tile=8)`: the ranks of features [N, D] and [M, D] in one
    process, and the grid's order.
    """

    def rank(
        image: torch.Tensor,
        text: torch.Tensor,
        labels: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        tile: int = 8,
        device: str = "cpu",
    ) -> tuple[PairRanks, Pairing]:
        numbers = np.arange(len(image), dtype=np.uint64)
        pairing = Pairing.make(
            numbers if labels is None else labels,
            numbers,
            np.ones(len(image), np.int64) if counts is None else counts,
        )
        topology, place = Topology(), torch.device(device)
        images = TiledRows(FeatureRows.of(image), pairing.image_order, topology, place, tile=tile)
        texts = TiledRows(FeatureRows.of(text), pairing.text_order, topology, place, tile=tile)
        return count_ranks(images, texts, pairing, topology), pairing

    return rank
