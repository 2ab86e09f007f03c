"""The report of an evaluation: one page of HTML that needs no other file and no script."""

from collections.abc import Mapping, Sequence
from html import escape

from pipeline.evaluation.evaluator import Section


def report_page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The page: a heading, facts about what was evaluated, and the sections."""
    told = "".join(
        f"<div><span>{escape(name)}</span><strong>{escape(value)}</strong></div>"
        for name, value in facts.items()
    )
    body = "".join(
        f"<section><h2>{escape(section.heading)}</h2>{section.html}</section>" for section in sections
    )
    return _PAGE.format(title=escape(title), facts=told, style=_STYLE, body=body)


_STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1b2530; --faint: #5c6c7d;
        --line: #dce3e9; --first: #2a6fc0; --second: #d97a1c; --right: #23874c; --asked: #eaf1f9 }
@media (prefers-color-scheme: dark) {
  :root { --page: #11161c; --card: #1a222b; --ink: #e3e9ef; --faint: #94a4b4; --line: #2d3944;
          --first: #6aa6ec; --second: #eda45a; --right: #55c284; --asked: #1d2d40 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1280px; padding: 1.4rem 1rem 3rem;
       color: var(--ink); background: var(--page) }
h1 { font-size: 1.55rem; margin: .4rem 0 1rem; overflow-wrap: anywhere; line-height: 1.25 }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .9rem; padding-top: .9rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .6rem; color: var(--faint); font-weight: 600 }
.facts, .tables, .charts { display: flex; flex-wrap: wrap; gap: .8rem }
.facts div, .scroll, figure, .card { background: var(--card); border: 1px solid var(--line);
                                     border-radius: 9px }
.facts div { padding: .5rem .9rem; max-width: 100% }
.facts span { display: block; color: var(--faint); font-size: 12px }
.facts strong { font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.tables { align-items: flex-start }
.scroll { overflow-x: auto; padding: .7rem 1rem; max-width: 100%; flex: 1 1 30rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
caption { text-align: left; padding-bottom: .6rem; font-size: 13px; color: var(--faint) }
th { text-align: left; font-weight: 400 } thead th { color: var(--faint); text-align: right }
td { text-align: right; white-space: nowrap }
th, td { padding: .28rem .5rem } tbody tr + tr > * { border-top: 1px solid var(--line) }
.interval, .chance, .note { color: var(--faint); font-size: 13px }
.note { margin: .6rem 0 0; max-width: 70rem; flex-basis: 100% }
figure { margin: 0; padding: .8rem; flex: 1 1 26rem; min-width: 0 }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: 13px; color: var(--faint) }
.key i { display: inline-block; width: 1.3rem; border-top: 3px solid; margin-right: .4rem;
         vertical-align: middle }
.key i.first { border-color: var(--first) } .key i.second { border-color: var(--second) }
.key i.dotted { border-top-style: dashed } .key i.chance { border-color: var(--faint) }
.chart { display: block; width: 100%; height: auto; margin-top: .5rem }
.chart text { font: 11px system-ui, sans-serif; fill: var(--faint) }
.grid { stroke: var(--line) }
.line { fill: none; stroke-width: 2.2 } .line.first { stroke: var(--first) }
.line.second { stroke: var(--second) } .line.dotted { stroke-dasharray: 5 4; stroke-width: 1.6 }
.line.chance { stroke: var(--faint); stroke-width: 1.4; stroke-dasharray: 2 4 }
.bar.first { fill: var(--first) } .bar.second { fill: var(--second) }
.row { display: grid; grid-template-columns: 1.15fr repeat(5, 1fr) 1fr; gap: .6rem; margin-bottom: .7rem }
.row > * { min-width: 0 } .head { color: var(--faint); font-size: 12px; margin: 0 }
.best { grid-column: 2 / span 5 }
.card { padding: .6rem; display: flex; flex-direction: column; min-width: 0; overflow: hidden }
.query { background: var(--asked) } .answer { background: none; border-style: dotted }
.correct { border: 3px solid var(--right); padding: calc(.6rem - 2px) }
.related { border: 3px dashed var(--right); padding: calc(.6rem - 2px) }
.card img { max-width: 100%; max-height: 150px; object-fit: contain; margin: 0 auto; border-radius: 4px }
.caption { margin: .2rem 0; overflow-wrap: anywhere; font-size: 12.5px; line-height: 1.35 }
.score { margin: auto 0 0; padding-top: .35rem; color: var(--faint); font-size: 12px }
.correct > .score, .related > .score { color: var(--right); font-weight: 600 }
@media (max-width: 760px) {
  .row { grid-template-columns: repeat(2, 1fr) } .query { grid-column: span 2 } .head { display: none } }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{style}</style></head>
<body><h1>{title}</h1><div class="facts">{facts}</div>{body}</body></html>
"""
