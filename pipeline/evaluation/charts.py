"""Charts as SVG that takes its colours and fonts from the page around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 40
_ACROSS, _DOWN = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


@dataclass(frozen=True)
class Series:
    """A line or a row of bars: its name, its style (a class of the page's), and a value for each place."""

    name: str
    style: str
    values: "Sequence[float] | np.ndarray"


def line_chart(places: Sequence[float], series: Sequence[Series], label: str) -> str:
    """Lines of shares (0 to 1) over ascending places from 1 up, on a logarithmic scale; label: of the
    places.
    """
    span = math.log(max(places[-1], 2))
    across = [_LEFT + _ACROSS * math.log(place) / span for place in places]
    lines = "".join(
        f'<polyline class="line {one.style}" points="'
        + " ".join(f"{x:.1f},{_down(y):.1f}" for x, y in zip(across, one.values, strict=True))
        + f'"><title>{escape(one.name)}</title></polyline>'
        for one in series
    )
    ticks = [10**power for power in range(math.ceil(math.log10(max(places[-1], 2))) + 1)]
    marks = "".join(
        _tick(_LEFT + _ACROSS * math.log(tick) / span, f"{tick:,}") for tick in ticks if tick <= places[-1]
    )
    return _chart(_share_axis(1.0) + marks + lines, label, series)


def bar_chart(places: Sequence[str], series: Sequence[Series], label: str) -> str:
    """Bars of shares side by side at each named place; label: of the places."""
    highest = max((max(one.values) for one in series), default=0.0)
    step = next(step for step in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if step * 4 >= highest or step == 1.0)
    top = min(1.0, max(step, math.ceil(highest / step - 1e-9) * step))
    width = _ACROSS / len(places)
    bar = 0.8 * width / len(series)
    drawn = "".join(
        f'<rect class="bar {one.style}" x="{_LEFT + width * (place + 0.1) + bar * number:.1f}" '
        f'y="{_down(value / top):.1f}" width="{bar - 1:.1f}" height="{_DOWN * value / top:.1f}">'
        f"<title>{escape(one.name)}, {escape(places[place])}: {value:.1%}</title></rect>"
        for number, one in enumerate(series)
        for place, value in enumerate(one.values)
    )
    marks = "".join(_tick(_LEFT + width * (place + 0.5), name) for place, name in enumerate(places))
    return _chart(_share_axis(top) + marks + drawn, label, series)


def _down(share: float) -> float:
    return _TOP + _DOWN * (1 - share)


def _tick(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'


def _share_axis(top: float) -> str:
    """Lines across at quarters of the highest share."""
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_down(part):.1f}" '
        f'y2="{_down(part):.1f}"/><text x="{_LEFT - 6}" y="{_down(part) + 4:.1f}" text-anchor="end">'
        f"{100 * part * top:.3g}%</text>"
        for part in (0, 0.25, 0.5, 0.75, 1)
    )


def _chart(drawn: str, label: str, series: Sequence[Series]) -> str:
    keys = "".join(
        f'<span class="key"><i class="{one.style}"></i>{escape(one.name)}</span>' for one in series
    )
    return (
        f'<figure><div class="keys">{keys}</div><svg class="chart" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}">{drawn}<text x="{_LEFT + _ACROSS / 2}" y="{_HEIGHT - 4}" '
        f'text-anchor="middle">{escape(label)}</text></svg></figure>'
    )
