"""Splits: which part of the data a row belongs to, decided by a hash of its group.

A group (an article, a patient) is in one split as a whole, and where it is follows from its name and the
shares alone: rows added later move nothing.
"""

import math
import re
from dataclasses import dataclass

import xxhash

from pipeline.sharding.rows import Fields
from shards import UsageError
from shards.hashing import Purpose

# What PMC-OA's image names begin with: PMC212319_Fig3_4.jpg is of article PMC212319.
PMC_ID = r"PMC\d+"


@dataclass(frozen=True)
class Splits:
    """Named splits with their shares of the groups, and how a row's group is found.

    group_key: the column that names it; otherwise what `group_pattern` finds in the image's name (its first
    parenthesised part, if it has one). A row without is a group of its own.
    """

    shares: tuple[tuple[str, float], ...]
    group_key: str | None = None
    group_pattern: str = PMC_ID

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits, in the order given."""
        return tuple(name for name, _ in self.shares)

    @property
    def where_groups_are(self) -> str:
        """Where a row without a group lacks one."""
        if self.group_key is not None:
            return f"column {self.group_key!r} is empty"
        return f"{self.group_pattern!r} is not in the image's name"

    def group(self, fields: Fields) -> str | None:
        """A row's group; None where it has none."""
        image, _, other = fields
        if self.group_key is not None:
            value = other.get(self.group_key)
            return None if value in (None, "") else str(value)
        found = re.search(self.group_pattern, image)
        return (found[1] if found.re.groups else found[0]) or None if found else None

    def split_of(self, group: str) -> int:
        """The number of the split that a group belongs to."""
        place = xxhash.xxh3_64_intdigest(group.encode("utf-8", "surrogatepass"), Purpose.SPLIT) / 2**64
        for number, (_, share) in enumerate(self.shares):
            place -= share
            if place < 0:
                return number
        return len(self.shares) - 1


class GroupCounter:
    """The splits of rows as they are read, and how many rows had no group."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self.rows = self.ungrouped = 0

    def __call__(self, fields: Fields) -> int:
        """The number of a row's split."""
        group = self._splits.group(fields)
        self.rows += 1
        self.ungrouped += group is None
        return self._splits.split_of(fields[0] if group is None else group)

    def check(self) -> None:
        """Raise UsageError where no row at all had a group: splitting by image would tear articles apart."""
        if self.ungrouped < self.rows:
            return
        if self._splits.group_key is not None:
            raise UsageError(f"--group-key {self._splits.group_key}: that column is empty in every row")
        raise UsageError(
            f"--split: no image's name has a group ({self._splits.group_pattern!r} is nowhere in them), so "
            "figures of one article could come into two splits: name a column with --group-key, or a pattern "
            "with --group-pattern ('.*' makes every image its own group)"
        )


def parse_splits(text: str, group_key: str | None, group_pattern: str | None) -> Splits:
    """The splits of `--split train=0.9,valid=0.05,test=0.05`; UsageError where they make no sense."""
    shares = []
    for part in text.split(","):
        name, _, share = part.partition("=")
        found = re.fullmatch(r"(\d*\.?\d+)(%?)", share)
        if not re.fullmatch(r"[\w-]+", name) or not found or float(found[1]) <= 0:
            raise UsageError(
                f"--split {text}: write it as train=0.9,valid=0.05,test=0.05 or train=90%,valid=5%,test=5%"
            )
        shares.append((name, float(found[1]) / (100 if found[2] else 1)))
    names = [name for name, _ in shares]
    if len(set(names)) < len(names):
        raise UsageError(f"--split {text}: a split is named twice")
    if not math.isclose(total := sum(share for _, share in shares), 1, abs_tol=1e-6):
        raise UsageError(f"--split {text}: the shares add up to {total:g}; they must add up to 1")
    if group_key is not None and group_pattern is not None:
        raise UsageError("--group-key and --group-pattern both say what a group is: give one of them")
    pattern = PMC_ID if group_pattern is None else group_pattern
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group-pattern {pattern!r} is no regular expression: {error}") from error
    return Splits(tuple(shares), group_key, pattern)
