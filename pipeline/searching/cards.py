"""What the search page shows, as HTML: the question, and a card for each figure that was found."""

from collections.abc import Sequence
from html import escape

from pipeline.figure_html import caption_html, thumbnail_html
from pipeline.searching.searcher import Hit

_Image = bytes | memoryview


def message_html(text: str, *, wrong: bool = False) -> str:
    """A line in place of results."""
    return f'<p class="message{" wrong" if wrong else ""}">{escape(text)}</p>'


def results_html(query: str | bytes, hits: Sequence[tuple[Hit, _Image | None]]) -> str:
    """The question with what was found, the nearest first. None: a figure that cannot be read."""
    shown = caption_html(query) if isinstance(query, str) else thumbnail_html(query)
    cards = "".join(_card(hit, image) for hit, image in hits)
    return f'<div class="query"><b>Nearest to</b>{shown}</div><div class="cards">{cards}</div>'


def _card(hit: Hit, image: _Image | None) -> str:
    return (
        f'<figure class="card">{_picture(image)}'
        f'<figcaption><p class="score"><b>{hit.rank}</b> score {hit.score:.3f} '
        f'<span class="key">{escape(hit.key)}</span></p>{caption_html(hit.caption)}</figcaption></figure>'
    )


def _picture(image: _Image | None) -> str:
    if image is not None:
        try:
            return f'<div class="picture">{thumbnail_html(image)}</div>'
        except (OSError, ValueError, SyntaxError):  # what Pillow raises on an image that it cannot decode
            pass
    return '<div class="picture none">this figure cannot be read</div>'


STYLE = """
.gradio-container { max-width: 1200px !important; margin: auto; }
h1 { font-size: 1.6rem; margin: .6rem 0 0; }
.about { opacity: .72; margin: .2rem 0 .4rem; }
.message { padding: 2rem; text-align: center; opacity: .72; }
.message.wrong { color: #b42318; }
.dark .message.wrong { color: #ff9b8f; }
.query { display: flex; gap: 1rem; align-items: center; padding: .4rem 0 1rem; }
.query b { white-space: nowrap; }
.query img { max-height: 120px; border-radius: 6px; }
.query p { margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 14px; }
.card { margin: 0; border: 1px solid var(--border-color-primary); border-radius: 8px; overflow: hidden;
        background: var(--block-background-fill); }
.picture { height: 200px; display: flex; align-items: center; justify-content: center; background: #fff; }
.picture img { max-width: 100%; max-height: 200px; object-fit: contain; }
.picture.none { color: #777; font-size: .85rem; }
.card figcaption { padding: .5rem .7rem .7rem; }
.card .score { margin: 0 0 .3rem; font-size: .8rem; opacity: .72; }
.card .key { float: right; max-width: 55%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.card .caption { margin: 0; font-size: .85rem; line-height: 1.35; }
"""
