"""The report of an evaluation: one page of HTML that needs no other file and no script."""

from collections.abc import Sequence
from html import escape

from pipeline.evaluation.evaluator import Section


def report_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The page: a heading, a summary in plain text, and the sections."""
    body = "".join(f"<h2>{escape(section.heading)}</h2>{section.html}" for section in sections)
    return _PAGE.format(title=escape(title), summary=escape(summary), style=_STYLE, body=body)


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
