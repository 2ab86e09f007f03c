"""Ranks of queries by counting, tile by tile, with ties counted honestly; never a sort, never all scores.

A rank is one more than the number of targets with a better score, plus half the number of the others with an
equal one. So a model that gives everything one score ranks at chance. What is not a number counts against
the query: a model that diverged ranks last, not first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.tiled_rows import TiledRows
from pipeline.topology import Topology

# Scores closer than this are ties: float32 products of equal features differ by about as much.
TIE = 1e-6
_TILES_AT_HAND = 32  # of image features, for each pass over the captions'


@dataclass(frozen=True)
class Ranks:
    """Where each query's target stands among all targets. 1 is best."""

    greater: np.ndarray  # int64 [queries], targets with a better score
    equal: np.ndarray  # int64 [queries], other targets with an equal score

    @property
    def expected(self) -> np.ndarray:
        """The rank if equal scores are put in a random order, on average: float64 [queries]."""
        return 1 + self.greater + self.equal / 2

    @property
    def optimistic(self) -> np.ndarray:
        """The rank if the query's own target comes first among equals."""
        return 1.0 + self.greater

    @property
    def pessimistic(self) -> np.ndarray:
        """The rank if it comes last among equals."""
        return 1.0 + self.greater + self.equal


@dataclass(frozen=True)
class PairRanks:
    """Ranks in both directions, queries in the grid's order.

    Strict: N images against N first captions, each with one right answer. Group-aware: N images against all M
    captions and M captions against N images; every target of the query's group is right, the best of them
    counts, and the others do not stand in its way.
    """

    image_to_text: Ranks  # [N]
    text_to_image: Ranks  # [N], of the images' first captions, image after image
    group_image_to_text: Ranks  # [N]
    group_text_to_image: Ranks  # [M]
    own_score: np.ndarray  # float32 [N], of each image with its first caption


def count_ranks(image: TiledRows, text: TiledRows, pairing: Pairing, topology: Topology) -> PairRanks:
    """The ranks of all pairs; every rank calls it and gets them.

    Two passes over the tiles: scores of pairs and groups first, then how many scores are above them. Memory:
    a few tiles of features, a tile of scores, and some numbers for each query.
    """
    counter = _Counter(image, text, pairing, topology)
    counter.find_scores()
    counter.count()
    return counter.result()


@dataclass
class _Queries:
    """The queries of one direction: the scores to beat, and what was counted so far, in the grid's order.

    at_most, below: targets whose score is not above the query's (or equal), and those whose score is less.
    """

    score: torch.Tensor  # [queries] float32
    scratch: torch.Tensor  # float32, as many as a tile has scores; used again and again
    at_most: torch.Tensor = field(init=False)  # [queries] int64
    below: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.at_most = torch.zeros(len(self.score), dtype=torch.int64, device=self.score.device)
        self.below = torch.zeros_like(self.at_most)

    def add(
        self, scores: torch.Tensor, places: slice | torch.Tensor, same: torch.Tensor | None = None
    ) -> None:
        """Count targets. scores: [queries, targets] of the queries at these places; same: those that do not
        count.
        """
        score = self.score[places, None]
        # Numbers of float32 in memory that is there already: booleans would be copied to be summed.
        marks = self.scratch.as_strided(scores.size(), scores.stride())
        for compare, bound, counted in (
            (torch.le, score + TIE, self.at_most),
            (torch.lt, score - TIE, self.below),
        ):
            compare(scores, bound, out=marks)
            if same is not None:
                marks.masked_fill_(same, 0)
            counted[places] += marks.sum(1).long()

    def ranks(self, targets: np.ndarray, own: int) -> Ranks:
        """The ranks among so many targets [queries], `own` of which is the query's own and was counted."""
        at_most, below = self.at_most.cpu().numpy(), self.below.cpu().numpy()
        lost = ~np.isfinite(self.score.cpu().numpy())
        greater = np.where(lost, targets - own, targets - at_most)
        return Ranks(greater, np.where(lost, 0, at_most - below - own))


class _Counter:
    def __init__(self, image: TiledRows, text: TiledRows, pairing: Pairing, topology: Topology) -> None:
        self._image, self._text, self._pairing, self._topology = image, text, pairing, topology
        device = self._device = image.device
        self._image_group = torch.from_numpy(pairing.image_group).to(device)
        self._text_group = torch.from_numpy(pairing.text_group).to(device)
        self._first = pairing.first
        self._products_at_hand, self._scratch = torch.empty(2, image.tile * text.tile, device=device)
        # Who has another rank by groups than strictly: whose group has other targets.
        several = pairing.texts > pairing.images
        self._image_apart = several | (pairing.texts_of_group > 1)[pairing.image_group]
        self._text_apart = ~self._first | (pairing.images_of_group > 1)[pairing.text_group]

    def find_scores(self) -> None:
        """The score of each image with its first caption, and the best score of each query in its group."""
        own = torch.zeros(self._pairing.images, device=self._device)
        image_best = torch.full((self._pairing.images,), -torch.inf, device=self._device)
        text_best = torch.full((self._pairing.texts,), -torch.inf, device=self._device)
        for row, column, scores in self._products(near=True):
            rows, columns = self._image.span(row), self._text.span(column)
            first = self._pairing.first_text[rows]
            here = np.flatnonzero((first >= columns.start) & (first < columns.stop))
            own[self._places(here, rows)] = scores[
                self._places(here), self._places(first[here] - columns.start)
            ]
            inside = torch.where(self._same_group(rows, columns), scores.nan_to_num(-torch.inf), -torch.inf)
            image_best[rows] = torch.maximum(image_best[rows], inside.amax(1))
            text_best[columns] = torch.maximum(text_best[columns], inside.amax(0))
        if self._topology.world_size > 1:
            dist.all_reduce(own)  # found on one rank, 0 on the others
            dist.all_reduce(image_best, dist.ReduceOp.MAX)
            dist.all_reduce(text_best, dist.ReduceOp.MAX)
        of_first = torch.zeros(self._pairing.texts, device=self._device)
        of_first[torch.from_numpy(self._pairing.first_text).to(self._device)] = own
        self._strict_images, self._strict_texts = self._queries(own), self._queries(of_first)
        self._group_images, self._group_texts = self._queries(image_best), self._queries(text_best)

    def count(self) -> None:
        """Compare every score with those to beat."""
        for row, column, scores in self._products():
            rows, columns = self._image.span(row), self._text.span(column)
            self._count_strictly(scores, rows, columns)
            self._count_by_groups(scores, rows, columns)
        if self._topology.world_size > 1:
            for queries in (self._strict_images, self._strict_texts, self._group_images, self._group_texts):
                dist.all_reduce(queries.at_most)
                dist.all_reduce(queries.below)

    def _count_strictly(self, scores: torch.Tensor, rows: slice, columns: slice) -> None:
        if self._pairing.texts == self._pairing.images:
            self._strict_images.add(scores, rows)
            self._strict_texts.add(scores.T, columns)
            return
        first = np.flatnonzero(self._first[columns])
        scores = scores[:, self._places(first)]
        self._strict_images.add(scores, rows)
        self._strict_texts.add(scores.T, self._places(first, columns))

    def _count_by_groups(self, scores: torch.Tensor, rows: slice, columns: slice) -> None:
        """The same for those queries alone whose groups have other targets."""
        images = np.flatnonzero(self._image_apart[rows])
        texts = np.flatnonzero(self._text_apart[columns])
        if not len(images) and not len(texts):
            return
        same = self._same_group(rows, columns) if self._groups_meet(rows, columns) else None
        if len(images):
            own = self._places(images)
            own_same = None if same is None else same[own]
            self._group_images.add(scores[own], self._places(images, rows), own_same)
        if len(texts):
            own = self._places(texts)
            own_same = None if same is None else same.T[own]
            self._group_texts.add(scores.T[own], self._places(texts, columns), own_same)

    def result(self) -> PairRanks:
        """The ranks that follow from what was counted."""
        pairing = self._pairing
        images, texts = pairing.images_of_group, pairing.texts_of_group
        image_to_text = self._strict_images.ranks(np.full(pairing.images, pairing.images), 1)
        text_to_image = self._strict_texts.ranks(np.full(pairing.texts, pairing.images), 1)
        by_image = self._group_images.ranks(pairing.texts - texts[pairing.image_group], 0)
        by_text = self._group_texts.ranks(pairing.images - images[pairing.text_group], 0)
        first = pairing.first_text
        return PairRanks(
            image_to_text,
            Ranks(text_to_image.greater[first], text_to_image.equal[first]),
            _either(self._image_apart, by_image, image_to_text),
            _either(self._text_apart, by_text, text_to_image),
            self._strict_images.score.cpu().numpy(),
        )

    def _products(self, *, near: bool = False) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(image tile, caption tile, their scores until the next is asked for); near: only
        where a group has scores. Image tiles are those of this rank.
        """
        at_hand = _TILES_AT_HAND * self._topology.world_size
        for start in range(0, len(self._image), at_hand):
            numbers = range(start, min(start + at_hand, len(self._image)))
            own = {row: self._image.own(row) for row in numbers if self._image.is_own(row)}
            for column in range(len(self._text)):
                columns = self._text.span(column)
                wanted = [
                    row for row in numbers if not near or self._groups_meet(self._image.span(row), columns)
                ]
                if wanted:  # on some rank, if not on this one
                    captions = self._text.shared(column)
                    for row in filter(own.__contains__, wanted):
                        size = len(own[row]), len(captions)
                        scores = self._products_at_hand[: size[0] * size[1]].view(size)
                        yield row, column, torch.mm(own[row], captions.T, out=scores)

    def _queries(self, score: torch.Tensor) -> _Queries:
        return _Queries(score, self._scratch)

    def _groups_meet(self, rows: slice, columns: slice) -> bool:
        """Whether a group has an image here and a caption there."""
        images, texts = self._pairing.image_group[rows], self._pairing.text_group[columns]
        return bool(images[0] <= texts[-1] and texts[0] <= images[-1])

    def _same_group(self, rows: slice, columns: slice) -> torch.Tensor:
        return self._image_group[rows, None] == self._text_group[None, columns]

    def _places(self, numbers: np.ndarray, span: slice | None = None) -> torch.Tensor:
        """Numbers inside a tile, or with a span the places in the grid, on the device."""
        return torch.from_numpy(numbers + (span.start if span else 0)).to(self._device)


def _either(apart: np.ndarray, grouped: Ranks, strict: Ranks) -> Ranks:
    """The ranks by groups of those queries that have others than strictly, the strict ones of the rest."""
    return Ranks(
        np.where(apart, grouped.greater, strict.greater), np.where(apart, grouped.equal, strict.equal)
    )
