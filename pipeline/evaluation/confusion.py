"""A confusion matrix as a picture: SVG, which a browser, a paper and a slide take as it is."""

from collections.abc import Sequence
from html import escape

import numpy as np

_CELL, _FONT = 44, 12
_LETTER = 6.6  # pixels of an average one
_MOST_NUMBERS = 25  # classes; with more, cells are too small to read numbers in
_LONGEST = 22  # characters of a class's name


def confusion_svg(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """The picture of [C, C] counts: rows are true classes, columns what was predicted; the shade is the share
    of the row.
    """
    count = len(classes)
    cell = _CELL if count <= _MOST_NUMBERS else max(4, _CELL * _MOST_NUMBERS // count)
    side = cell * count
    rows = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(1, rows)
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in classes]
    margin = round(max(110.0, 20 + _LETTER * max(map(len, names))))
    parts = []
    for row in range(count):
        for column in range(count):
            share, number = float(shares[row, column]), int(confusion[row, column])
            x, y = margin + column * cell, margin + row * cell
            told = f"{classes[row]} taken for {classes[column]}: {number:,} of {int(rows[row, 0]):,}"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{_shade(share)}" stroke="#fff">'
                f"<title>{escape(told)}</title></rect>"
            )
            if count <= _MOST_NUMBERS and number:
                ink = "#fff" if share > 0.5 else "#223"
                parts.append(_text(f"{number:,}", x + cell / 2, y + cell / 2, ink, "middle"))
    if cell >= _FONT:
        for number, shown in enumerate(names):
            middle = margin + (number + 0.5) * cell
            parts.append(_text(shown, margin - 6, middle, "#223", "end"))
            turned = f' transform="rotate(-60 {middle} {margin - 8})"'
            parts.append(_text(shown, middle, margin - 8, "#223", "start", turned))
    parts.append(_text("true ↓   predicted →", 8, 16, "#667", "start"))
    total = side + margin + 60
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {side + margin + 8}" '
        f'width="{total}" style="max-width: 100%; height: auto" font-family="sans-serif" font-size="{_FONT}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _text(text: str, x: float, y: float, colour: str, anchor: str, more: str = "") -> str:
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}" dominant-baseline="middle"{more}>'
        f"{escape(text)}</text>"
    )


def _shade(share: float) -> str:
    """From near white to a deep blue."""
    light, deep = (240, 244, 250), (22, 70, 140)
    red, green, blue = (round(a + (b - a) * share**0.7) for a, b in zip(light, deep, strict=True))
    return f"rgb({red},{green},{blue})"
