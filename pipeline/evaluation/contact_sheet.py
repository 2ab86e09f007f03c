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
    """What a query found, its score, whether it is the query's own answer, and whether it is of the group in
    which any answer is right.
    """

    item: Item
    score: float
    correct: bool
    related: bool = False


@dataclass(frozen=True)
class Query:
    """A query, its matches from best to worst, and its own answer with its rank (1 is best) and score."""

    item: Item
    matches: Sequence[Match]
    rank: float
    answer: Item
    score: float


_HEAD = "<span>query</span><span class='best'>best matches, with scores</span><span>right answer</span>"


def contact_sheet(queries: Sequence[Query]) -> str:
    """The queries, one below the other, each with what it found beside it."""
    return f'<div class="row head">{_HEAD}</div>{"".join(map(_row, queries))}'


def _row(query: Query) -> str:
    cards = "".join(map(_card, query.matches))
    return (
        f'<div class="row"><div class="card query">{_content(query.item)}</div>{cards}'
        f'<div class="card answer">{_content(query.answer)}'
        f'<p class="score">rank {query.rank:,g}, {query.score:.3f}</p></div></div>'
    )


def _card(match: Match) -> str:
    kind, mark = "", ""
    if match.correct:
        kind, mark = " correct", " ✓"
    elif match.related:
        kind, mark = " related", " ✓ of its group"
    return f'<div class="card{kind}">{_content(match.item)}<p class="score">{match.score:.3f}{mark}</p></div>'


def _content(item: Item) -> str:
    parts = []
    if item.image is not None:
        parts.append(thumbnail_html(item.image))
    if item.caption is not None:
        parts.append(caption_html(item.caption))
    return "".join(parts)
