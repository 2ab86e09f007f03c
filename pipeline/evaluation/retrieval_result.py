"""What retrieval gives: all figures in both directions, strictly and by groups, with bounds and intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.ranks import PairRanks, Ranks
from pipeline.evaluation.retrieval_figures import FIGURES, RankedQueries, chance, interval, named

DIRECTIONS = ("image_to_text", "text_to_image", "group_image_to_text", "group_text_to_image")
VALUES = tuple(name for direction in DIRECTIONS for name in named(direction, np.zeros(len(FIGURES))))
LABELS = dict(zip(FIGURES, ("R@1", "R@5", "R@10", "mean rank", "median rank", "MRR"), strict=True))


def shown(figure: str, value: float) -> str:
    """A figure as people read it."""
    if figure.startswith("recall"):
        return f"{value:.1%}"
    return f"{value:,.1f}" if figure in ("mean_rank", "median_rank", "rank") else f"{value:.3f}"


@dataclass(frozen=True)
class Direction:
    """One direction in one way of counting. Its queries are in the grid's order."""

    name: str
    ranks: Ranks
    unit: np.ndarray  # int64 [Q], what is resampled together
    figures: np.ndarray  # FIGURES
    by_chance: np.ndarray  # FIGURES
    ends: tuple[np.ndarray, np.ndarray] | None  # of the 95 % intervals

    @staticmethod
    def make(
        name: str, ranks: Ranks, unit: np.ndarray, by_chance: np.ndarray, seed: int | None
    ) -> "Direction":
        """seed: of the bootstrap; None: no intervals."""
        queries = RankedQueries(ranks.expected, unit)
        ends = None if seed is None else interval(queries.resampled(seed))
        return Direction(name, ranks, unit, queries.figures(), by_chance, ends)

    @property
    def group_aware(self) -> bool:
        """Whether any target of the query's group counts."""
        return self.name.startswith("group_")

    def cell(self, place: int) -> str:
        """A figure with its interval, as people read it."""
        text = shown(FIGURES[place], self.figures[place])
        if self.ends:
            low, high = (shown(FIGURES[place], end[place]).rstrip("%") for end in self.ends)
            text += f" [{low}, {high}]"
        return text

    def bounds(self) -> dict[str, dict[str, float]]:
        """The figures if ties are decided for the query, and against it."""
        return {
            bound: named(self.name, RankedQueries(getattr(self.ranks, bound), self.unit).figures())
            for bound in ("optimistic", "pessimistic")
        }


@dataclass(frozen=True)
class RetrievalResult:
    """All directions: strictly image→text and text→image, then both by groups."""

    pairs: int
    captions: int
    groups: int
    directions: Sequence[Direction]
    ids: Sequence[str] = field(repr=False)  # of the samples, in manifest order
    pairing: Pairing = field(repr=False)

    @staticmethod
    def make(
        ranks: PairRanks, pairing: Pairing, wordings: np.ndarray, ids: Sequence[str], seed: int | None
    ) -> "RetrievalResult":
        """wordings: int64 [groups], how many different captions each has; seed: of the bootstrap; None: no
        intervals.
        """
        samples = pairing.images
        in_order = sorted(range(samples), key=lambda place: ids[int(pairing.image_order[place])])
        alone = np.empty(samples, np.int64)  # by their ids: shards in another order change no interval
        alone[in_order] = np.arange(samples)
        one = chance(np.ones(1, np.int64), np.array([samples - 1]))
        images, texts = pairing.images_of_group, pairing.texts_of_group
        strict = [
            Direction.make("image_to_text", ranks.image_to_text, alone, one, seed),
            Direction.make("text_to_image", ranks.text_to_image, alone, one, seed),
        ]
        if not pairing.has_groups:
            grouped = [replace(direction, name=f"group_{direction.name}") for direction in strict]
            return RetrievalResult(samples, samples, samples, [*strict, *grouped], ids, pairing)
        of_image, of_text = pairing.image_group, pairing.text_group
        texts_by_chance = chance(wordings[of_image], pairing.texts - texts[of_image])
        images_by_chance = chance(images[of_text], samples - images[of_text])
        by_image, by_text = ranks.group_image_to_text, ranks.group_text_to_image
        grouped = [
            Direction.make("group_image_to_text", by_image, of_image, texts_by_chance, seed),
            Direction.make("group_text_to_image", by_text, of_text, images_by_chance, seed),
        ]
        return RetrievalResult(samples, pairing.texts, len(images), [*strict, *grouped], ids, pairing)

    @property
    def values(self) -> dict[str, float]:
        """Every figure by its name, for logs and JSON."""
        return {name: value for d in self.directions for name, value in named(d.name, d.figures).items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals, by the same names."""
        found: dict[str, tuple[float, float]] = {}
        for direction in self.directions:
            if direction.ends:
                low, high = (named(direction.name, end) for end in direction.ends)
                found |= {name: (low[name], high[name]) for name in low}
        return found

    @property
    def details(self) -> Mapping[str, Any]:
        """Sizes, what guessing gives, and the bounds that ties leave, as plain JSON values."""
        bounds = [direction.bounds() for direction in self.directions]
        return {
            "pairs": self.pairs,
            "captions": self.captions,
            "groups": self.groups,
            "chance": {n: v for d in self.directions for n, v in named(d.name, d.by_chance).items()},
            **{
                bound: {name: value for own in bounds for name, value in own[bound].items()}
                for bound in ("optimistic", "pessimistic")
            },
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Ids, groups, numbers of captions, and ranks of all queries, in manifest order: what a paired
        comparison needs.
        """
        pairing = self.pairing
        samples, texts = np.argsort(pairing.image_order), np.argsort(pairing.text_order)
        ranks = {}
        for direction in self.directions:
            places = texts if direction.name == "group_text_to_image" else samples
            ranks[direction.name] = direction.ranks.expected[places]
        return {
            "ids": np.array(self.ids, dtype=np.str_),
            "group": pairing.image_group[samples],
            "captions": pairing.texts_of_image[samples],
            **ranks,
        }

    def line(self) -> str:
        """The essentials in one line."""
        image_to_text, text_to_image = (direction.figures[2] for direction in self.directions[:2])
        return (
            f"R@10 image→text {image_to_text:.1%}, text→image {text_to_image:.1%} of {self.pairs:,} pairs "
            f"(chance {self.directions[0].by_chance[2]:.1%})"
        )

    def headings(self, group_key: str | None) -> tuple[str, str]:
        """What the two ways of counting are, in words."""
        pairing = self.pairing
        shared = f"value of {group_key}" if group_key else "caption"
        sharing = int((pairing.images_of_group[pairing.image_group] > 1).sum())
        strict = "Strict: each query has one right answer"
        if not pairing.has_groups:
            return strict, f"Group-aware: the same, since no two samples have a {shared} in common"
        several = f", all {self.captions:,} captions asked" if self.captions > self.pairs else ""
        return strict, (
            f"Group-aware: any answer of the query's group is right; {sharing:,} of {self.pairs:,} samples "
            f"have a {shared} in common with another{several}"
        )

    def ties(self) -> list[str]:
        """A line for each direction in which scores are tied, with the bounds that this leaves."""
        lines = []
        for direction, arrow in zip(self.directions, ("image→text", "text→image"), strict=False):
            tied = int((direction.ranks.equal > 0).sum())
            if tied:
                low, high = (direction.bounds()[bound] for bound in ("pessimistic", "optimistic"))
                name = f"{direction.name}_recall_at_1"
                lines.append(
                    f"Ties, {arrow}: the right answer of {tied:,} of {self.pairs:,} queries; R@1 lies "
                    f"between {low[name]:.1%} and {high[name]:.1%}, however they are decided"
                )
        return lines

    def table(self, group_key: str | None) -> str:
        """All figures as a table for people, with the chance level beside them."""
        lines = []
        pairs = self.directions[:2], self.directions[2:]
        for heading, pair in zip(self.headings(group_key), pairs, strict=True):
            lines.append(heading)
            if self.pairing.has_groups or not pair[0].group_aware:
                lines += _rows(pair)
        return "\n".join([*lines, *self.ties()])


def _rows(pair: Sequence[Direction]) -> Iterator[str]:
    yield f"{'':<13}{'image→text':>26}{'text→image':>26}{'chance':>10}"
    for place, figure in enumerate(FIGURES):
        cells = "".join(f"{direction.cell(place):>26}" for direction in pair)
        yield f"{LABELS[figure]:<13}{cells}{shown(figure, pair[0].by_chance[place]):>10}"
