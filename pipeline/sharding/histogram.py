"""A distribution as a small drawing: SVG that takes its colours and width from the page around it."""

import math
from collections.abc import Callable

from pipeline.sharding.statistics import Distribution

_BARS = 30
_BAR_WIDTH, _HEIGHT = 10, 80  # in the drawing's own units
Scale = Callable[[float], float]


def histogram_svg(distribution: Distribution, *, logarithmic: bool = False) -> str:
    """The drawing: bars of equal width from the least number to the 99th percentile, the last of which takes
    what lies beyond; "" where nothing was counted.
    """
    if distribution.least is None:
        return ""
    scale: Scale = (lambda value: math.log10(max(value, 1))) if logarithmic else float
    low = distribution.least
    high = max(distribution.quantile(0.99), low + 1)
    bars = [0] * min(_BARS, high - low + 1)
    span = scale(high) - scale(low) or 1.0
    for value, count in distribution.counts.items():
        place = int((scale(value) - scale(low)) / span * len(bars))
        bars[min(max(place, 0), len(bars) - 1)] += count
    tallest = max(bars)
    drawn = "".join(
        f'<rect x="{_BAR_WIDTH * place}" y="{_HEIGHT - height:.1f}" width="{_BAR_WIDTH - 1}" '
        f'height="{height:.1f}"><title>{count:,} samples</title></rect>'
        for place, count in enumerate(bars)
        if (height := max(1.0, _HEIGHT * count / tallest)) and count
    )
    size = f"0 0 {_BAR_WIDTH * len(bars)} {_HEIGHT}"
    beyond = "" if high >= (distribution.greatest or 0) else " and more"
    return (
        f'<svg role="img" viewBox="{size}" preserveAspectRatio="none">{drawn}</svg>'
        f'<div class="axis"><span>{low:,}</span><span>{high:,}{beyond}</span></div>'
    )
