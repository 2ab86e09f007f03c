"""Queries to look at: some at random, the best, the worst; and what they found."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.ranks import PairRanks
from pipeline.evaluation.tiled_rows import TiledRows
from pipeline.evaluation.top_matches import rows_at, top_matches
from shards.hashing import derive

EACH = 6  # queries of a kind
MATCHES = 5


@dataclass(frozen=True)
class ChosenQueries:
    """Some queries of one direction, by their samples' places in the grid."""

    kind: str  # random, best or worst
    asks_images: bool  # image→text, else text→image
    places: np.ndarray  # int64 [n]
    ranks: np.ndarray  # float64 [n], strict ones


@dataclass(frozen=True)
class FoundMatches:
    """What chosen queries found, best first, by places in the grid of captions, or of images."""

    queries: ChosenQueries
    scores: np.ndarray  # float32 [n, MATCHES]
    places: np.ndarray  # int64 [n, MATCHES]
    own_scores: np.ndarray  # float32 [n], of the queries' own answers


def choose_queries(ranks: PairRanks, pairing: Pairing, seed: int) -> Iterator[ChosenQueries]:
    """The queries to show, the same on every rank: at random, by lowest and by highest rank; of equal ranks,
    those whose own answer has the highest (lowest) score.
    """
    drawn = np.argsort(derive(seed, np.arange(pairing.images)), kind="stable")
    for asks_images, own in ((True, ranks.image_to_text), (False, ranks.text_to_image)):
        expected = own.expected
        score = np.nan_to_num(ranks.own_score, nan=-np.inf)
        ascending = np.lexsort((-score, expected))
        for kind, order in (("random", drawn), ("best", ascending), ("worst", ascending[::-1])):
            places = order[:EACH]
            yield ChosenQueries(kind, asks_images, places, expected[places])


def find_matches(
    queries: ChosenQueries, image: TiledRows, text: TiledRows, ranks: PairRanks, pairing: Pairing
) -> FoundMatches:
    """The best matches of chosen queries; every rank must ask for the same."""
    if queries.asks_images:
        asking, targets = rows_at(image, queries.places), text
    else:
        asking, targets = rows_at(text, pairing.first_text[queries.places]), image
    return FoundMatches(queries, *top_matches(asking, targets, MATCHES), ranks.own_score[queries.places])
