"""Queries with their best matches, to look at: HTML that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.figure_html import caption_html, thumbnail_html


@dataclass(frozen=True)
class Item:
    """An image (its file's bytes), a caption, or both."""

    image: "bytes | memoryview | None" = None
    caption: str | None = None


@dataclass(frozen=True)
class Match:
    """What a query found: the item, its score, and whether it is the query's own pair."""

    item: Item
    score: float
    correct: bool


@dataclass(frozen=True)
class Query:
    """A query, its matches from best to worst, and the rank of its own pair (1 is best)."""

    item: Item
    matches: Sequence[Match]
    rank: float


def contact_sheet(queries: Sequence[Query]) -> str:
    """The queries, one below the other, each with what it found beside it."""
    return "".join(map(_row, queries))


def _row(query: Query) -> str:
    cards = "".join(
        f'<div class="card{" correct" if match.correct else ""}">{_content(match.item)}'
        f'<p class="score">{match.score:.3f}{" ✓" if match.correct else ""}</p></div>'
        for match in query.matches
    )
    return (
        f'<div class="row"><div class="card query">{_content(query.item)}'
        f'<p class="score">own pair at rank {query.rank:g}</p></div><div class="matches">{cards}</div></div>'
    )


def _content(item: Item) -> str:
    parts = []
    if item.image is not None:
        parts.append(thumbnail_html(item.image))
    if item.caption is not None:
        parts.append(caption_html(item.caption))
    return "".join(parts)
