"""A page to look at: queries with their best matches, as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

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


def contact_sheet(title: str, summary: str, sections: Mapping[str, Sequence[Query]]) -> str:
    """The page: a heading, a summary in plain text, and one section of queries under each name."""
    body = "".join(
        f"<h2>{escape(name)}</h2>{''.join(_row(query) for query in queries)}"
        for name, queries in sections.items()
    )
    return _PAGE.format(title=escape(title), summary=escape(summary), style=_STYLE, body=body)


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


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1280px; padding: 0 1rem;
       color: #1d2733; background: #f5f7f9 }
h1 { font-size: 1.5rem; margin-bottom: .5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .8rem }
pre { background: #fff; padding: 1rem; border: 1px solid #dde3e9; border-radius: 8px; display: inline-block }
.row { display: flex; gap: 1.2rem; margin-bottom: 1rem; align-items: stretch }
.matches { display: grid; grid-template-columns: repeat(5, 1fr); gap: .6rem; flex: 1 }
.card { background: #fff; border: 1px solid #dde3e9; border-radius: 8px; padding: .6rem; display: flex;
        flex-direction: column; min-width: 0 }
.query { width: 220px; flex: none; background: #e8eef7; border-color: #b9c9e2 }
.correct { border: 3px solid #2c9a5b; padding: calc(.6rem - 2px) }
.card img { max-width: 100%; max-height: 170px; object-fit: contain; margin: 0 auto; border-radius: 4px }
.caption { margin: .3rem 0; overflow-wrap: anywhere; font-size: 13px }
.score { margin: auto 0 0; padding-top: .3rem; color: #5a6b7d; font-size: 12px }
.correct .score { color: #1c7a44; font-weight: 600 }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><pre>{summary}</pre>{body}</body></html>
"""
