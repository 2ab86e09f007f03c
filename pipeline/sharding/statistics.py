"""What a data set's samples are like: counts and distributions, gathered shard by shard and added up."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.sharding.image_check import CheckedImage

QUANTILES = {"p1": 0.01, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
COLUMNS = ("min", *QUANTILES, "max")


@dataclass
class Distribution:
    """Whole numbers, each kept to its first `digits` digits, so that there are few different ones.

    The least and the greatest are kept as they are.
    """

    digits: int
    counts: Counter[int] = field(default_factory=Counter)
    least: int | None = None
    greatest: int | None = None

    @staticmethod
    def of(values: Sequence[int], digits: int) -> "Distribution":
        """That of these numbers, each 0 or more."""
        counted = Distribution(digits)
        for value, count in Counter(values).items():
            counted.counts[counted._rounded(value)] += count
        if values:
            counted._widen(min(values), max(values))
        return counted

    def __iadd__(self, other: "Distribution") -> "Distribution":
        self.counts.update(other.counts)
        if other.least is not None and other.greatest is not None:
            self._widen(other.least, other.greatest)
        return self

    def quantile(self, share: float) -> int:
        """The least number that this share of all numbers does not exceed; ValueError if there is none."""
        wanted = max(1, math.ceil(share * self.counts.total()))
        for value in sorted(self.counts):
            wanted -= self.counts[value]
            if wanted <= 0:
                return value
        raise ValueError("a quantile of no numbers")

    def row(self) -> list[int]:
        """The numbers under COLUMNS; none where nothing was counted."""
        if self.least is None or self.greatest is None:
            return []
        between = (self.quantile(share) for share in QUANTILES.values())
        return [self.least, *(min(max(v, self.least), self.greatest) for v in between), self.greatest]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = sorted(self.counts)
        counts = [self.counts[value] for value in values]
        return {"least": self.least, "greatest": self.greatest, "values": values, "counts": counts}

    @staticmethod
    def from_dict(content: dict[str, Any], digits: int) -> "Distribution":
        """The inverse of `to_dict`."""
        counts = Counter(dict(zip(content["values"], content["counts"], strict=True)))
        return Distribution(digits, counts, content["least"], content["greatest"])

    def _rounded(self, value: int) -> int:
        if value < 10**self.digits:
            return value
        unit = 10 ** (len(str(value)) - self.digits)
        return (value + unit // 2) // unit * unit

    def _widen(self, low: int, high: int) -> None:
        self.least = low if self.least is None else min(self.least, low)
        self.greatest = high if self.greatest is None else max(self.greatest, high)


class Taken(NamedTuple):
    """What is counted of a sample: what its image is, the bytes that are stored of it, and the caption."""

    image: CheckedImage
    image_bytes: int
    caption: str


@dataclass
class Statistics:
    """An account of samples. Accounts of shards add up to that of the data set: `sum(parts, Statistics())`.

    Sides are in pixels; images that were not looked at (`--verify none`) count with neither mode nor sides.
    """

    samples: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    shorter_side: Distribution = field(default_factory=lambda: Distribution(3))
    longer_side: Distribution = field(default_factory=lambda: Distribution(3))
    image_bytes: Distribution = field(default_factory=lambda: Distribution(2))
    caption_words: Distribution = field(default_factory=lambda: Distribution(3))

    @staticmethod
    def of(samples: Sequence[Taken]) -> "Statistics":
        """The account of these samples."""
        seen = [taken.image for taken in samples if taken.image.mode]
        return Statistics(
            len(samples),
            Counter(taken.image.extension for taken in samples),
            Counter(image.mode for image in seen),
            Distribution.of([min(image.width, image.height) for image in seen], 3),
            Distribution.of([max(image.width, image.height) for image in seen], 3),
            Distribution.of([taken.image_bytes for taken in samples], 2),
            Distribution.of([len(taken.caption.split()) for taken in samples], 3),
        )

    def merge(self, other: "Statistics") -> None:
        """Take in the samples of another account."""
        self.samples += other.samples
        self.formats.update(other.formats)
        self.modes.update(other.modes)
        for name, distribution in self.distributions():
            distribution += getattr(other, name)

    def __add__(self, other: "Statistics") -> "Statistics":
        both = Statistics()
        both.merge(self)
        both.merge(other)
        return both

    def distributions(self) -> Iterator[tuple[str, Distribution]]:
        """Every distribution under its name."""
        for name in ("shorter_side", "longer_side", "image_bytes", "caption_words"):
            yield name, getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold, a few kilobytes for a shard; equal accounts give equal values."""
        counted = {"formats": dict(sorted(self.formats.items())), "modes": dict(sorted(self.modes.items()))}
        return {"samples": self.samples, **counted, **{n: d.to_dict() for n, d in self.distributions()}}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Statistics":
        """The inverse of `to_dict`."""
        read = Statistics(content["samples"], Counter(content["formats"]), Counter(content["modes"]))
        for name, distribution in read.distributions():
            setattr(read, name, Distribution.from_dict(content[name], distribution.digits))
        return read

    def summary_lines(self) -> list[str]:
        """The account for a console."""
        lines = [
            f"{name}: {', '.join(f'{count:,} {what}' for what, count in counter.most_common())}"
            for name, counter in (("formats", self.formats), ("modes", self.modes))
            if counter
        ]
        rows = [(name.replace("_", " "), distribution.row()) for name, distribution in self.distributions()]
        cells = [(name, [f"{value:,}" for value in row]) for name, row in rows if row]
        if cells:
            widths = [max(7, *(len(row[column]) for _, row in cells)) for column in range(len(COLUMNS))]
            for name, row in [("", list(COLUMNS)), *cells]:
                lines.append(
                    f"{name:<13}" + "".join(f" {cell:>{w}}" for cell, w in zip(row, widths, strict=True))
                )
        return lines
