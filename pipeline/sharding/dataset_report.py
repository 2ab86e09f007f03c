"""A page about a new data set: what was kept and rejected, what the samples are like, and some to look at."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape

from PIL import Image

from pipeline.figure_html import caption_html, thumbnail_html
from pipeline.sharding.histogram import histogram_svg
from pipeline.sharding.statistics import COLUMNS, Statistics
from pipeline.wording import plural

_UNITS = {
    "shorter_side": "shorter side, pixels",
    "longer_side": "longer side, pixels",
    "image_bytes": "image, bytes",
    "caption_words": "caption, words",
}


@dataclass(frozen=True)
class Example:
    """A sample to look at."""

    key: str
    image: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """One data set (a split, say): its account, rejected rows by reason, and some of its samples."""

    name: str
    shards: int
    total_bytes: int
    statistics: Statistics
    rejected: Mapping[str, int]
    examples: Sequence[Example]


def dataset_report(title: str, sections: Sequence[Section]) -> str:
    """The page, as HTML that needs no other file and no script."""
    body = "".join(_section(section) for section in sections)
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def _section(section: Section) -> str:
    statistics = section.statistics
    rejected = sum(section.rejected.values())
    facts = {
        plural("sample", statistics.samples): f"{statistics.samples:,}",
        plural("shard", section.shards): f"{section.shards:,}",
        "size": _size(section.total_bytes),
        plural("rejected row", rejected): f"{rejected:,}",
    }
    numbers = "".join(
        f"<div><strong>{value}</strong><span>{name}</span></div>" for name, value in facts.items()
    )
    tables = (
        _counts("Formats", statistics.formats)
        + _counts("Modes", statistics.modes)
        + _counts("Rejected rows", section.rejected)
    )
    histograms = "".join(
        f"<figure><figcaption>{_UNITS[name]}{', log scale' * logarithmic}</figcaption>{drawing}</figure>"
        for name, distribution in statistics.distributions()
        if (drawing := histogram_svg(distribution, logarithmic=(logarithmic := name == "image_bytes")))
    )
    return (
        f'<section><h2>{escape(section.name)}</h2><div class="facts">{numbers}</div>'
        f'<div class="tables">{tables}</div><div class="histograms">{histograms}</div>'
        f"{_quantiles(statistics)}{_contact_sheet(section.examples)}</section>"
    )


def _counts(heading: str, counts: Mapping[str, int]) -> str:
    """A table of counts with their shares, the most frequent first; "" where there are none."""
    total = sum(counts.values())
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{count:,}</td><td>{count / total:.1%}</td></tr>"
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return f'<div class="scroll"><table><caption>{heading}</caption>{rows}</table></div>' if rows else ""


def _quantiles(statistics: Statistics) -> str:
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    rows = "".join(
        f"<tr><th>{_UNITS[name]}</th>{''.join(f'<td>{value:,}</td>' for value in row)}</tr>"
        for name, distribution in statistics.distributions()
        if (row := distribution.row())
    )
    return f'<div class="scroll"><table class="quantiles"><tr><th></th>{head}</tr>{rows}</table></div>'


def _contact_sheet(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    with ThreadPoolExecutor() as threads:
        thumbnails = threads.map(_thumbnail, (example.image for example in examples))
    cards = "".join(
        f'<div class="card">{thumbnail}{caption_html(example.caption)}'
        f'<p class="key">{escape(example.key)}</p></div>'
        for example, thumbnail in zip(examples, thumbnails, strict=True)
    )
    return f'<h3>{len(examples):,} of the samples</h3><div class="sheet">{cards}</div>'


def _thumbnail(image: bytes) -> str:
    """The picture, or a word in its place: `--verify none` lets broken ones through."""
    try:
        return thumbnail_html(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return '<p class="broken">This image cannot be decoded.</p>'


def _size(count: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


_STYLE = """
:root { color-scheme: light dark; --page: #f5f7f9; --card: #fff; --ink: #1d2733; --faint: #5a6b7d;
        --line: #dde3e9; --bar: #3b76c4 }
@media (prefers-color-scheme: dark) {
  :root { --page: #12171d; --card: #1b232c; --ink: #e3e9ef; --faint: #93a3b3;
          --line: #2e3a46; --bar: #6ea3e8 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1280px; padding: 1.2rem 1rem 3rem;
       color: var(--ink); background: var(--page) }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; padding-top: .8rem; border-top: 1px solid var(--line);
     overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem }
.facts, .tables, .histograms { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1rem }
.facts div, figure, .scroll, .card { background: var(--card); border: 1px solid var(--line);
                                     border-radius: 8px }
.facts div { padding: .6rem 1rem; min-width: 8rem; flex: 0 1 auto }
.facts strong { display: block; font-size: 1.35rem; font-weight: 600 }
.facts span, figcaption, caption, .axis, .key, .broken { color: var(--faint); font-size: 13px }
.tables { align-items: flex-start }
.scroll { overflow-x: auto; padding: .5rem .8rem; max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .2rem }
th { text-align: left; font-weight: 400; padding: .15rem .9rem .15rem 0 }
td { text-align: right; padding: .15rem 0 .15rem .9rem; white-space: nowrap }
.quantiles { width: 100% }
.quantiles th { white-space: nowrap }
.quantiles tr:first-child th { text-align: right; padding: .15rem 0 .15rem .9rem; color: var(--faint) }
figure { margin: 0; padding: .6rem .8rem; flex: 1 1 230px }
svg { display: block; width: 100%; height: 80px; fill: var(--bar); margin-top: .4rem }
.axis { display: flex; justify-content: space-between; border-top: 1px solid var(--line); padding-top: .2rem;
        font-variant-numeric: tabular-nums }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 44vw), 1fr)); gap: .7rem }
.card { padding: .6rem; display: flex; flex-direction: column; min-width: 0 }
.card img { width: 100%; height: 170px; object-fit: contain; border-radius: 4px }
.broken { height: 170px; margin: 0; display: grid; place-items: center; text-align: center }
.caption { margin: .4rem 0; overflow-wrap: anywhere; font-size: 13px }
.key { margin: auto 0 0; overflow-wrap: anywhere }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{style}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""
