"""What a user says about a table, and what holds for tables of every kind: their columns, and what an image's
name and a caption may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shards import UsageError

TableKind = Literal["csv", "tsv", "jsonl", "parquet"]

# No field or line is longer: a quote that is never closed, or a file without ends of lines, would otherwise
# fill memory.
LONGEST_FIELD = 64 * 2**20


@dataclass(frozen=True)
class TableFormat:
    """How to read a table."""

    image_key: str = "image"
    """Column with the image's name."""
    caption_key: str = "caption"
    """Column with the caption."""
    separator: str | None = None
    """What separates the fields of a CSV or TSV table; without it, a comma or a tab. Others have none."""
    kind: TableKind | None = None
    """What kind of table it is; without it, the file's name says so."""


def check_columns(address: str, table: TableFormat, columns: Sequence[str], hint: str = "") -> None:
    """Raise UsageError unless image and caption are exactly one column each.

    hint: the remedy where a column is missing, if it is another than naming the right one.
    """
    for flag, wanted in (("--image-key", table.image_key), ("--caption-key", table.caption_key)):
        if (count := columns.count(wanted)) > 1:
            raise UsageError(f"{address}: {count} columns are named {wanted!r}: rename all but one")
        if wanted not in columns:
            listed = ", ".join(repr(column) for column in columns)
            raise UsageError(
                f"{address}: no column {wanted!r}; its columns are {listed}; "
                + (hint or f"name the right one with {flag}")
            )


def not_utf8(address: str, line: int, offset: int, error: UnicodeDecodeError) -> UsageError:
    """The error for a text that is not UTF-8, of which the first bytes that are not are in this place."""
    return UsageError(
        f"{address}: not UTF-8 (line {line:,}, byte {offset:,} of the file: {error.reason}); convert it, for "
        "example with 'iconv -f latin1 -t utf-8'"
    )


def distinct_names(columns: Sequence[str]) -> list[str]:
    """Column names with a number after those that were there before: a, a.1, a.2."""
    names: list[str] = []
    taken = set(columns)
    for column in columns:
        name, number = column, 0
        while name in names or (number and name in taken):
            number += 1
            name = f"{column}.{number}"
        names.append(name)
    return names


def image_name(value: Any) -> str:
    """The image's name that a cell holds: text, or a number as text; none is "". ValueError for all else."""
    if isinstance(value, str):
        return value
    if (text := _text(value)) is None:
        raise ValueError(f"the image is {_described(value)}, not a name")
    return text


def caption_text(value: Any) -> str:
    """The caption that a cell holds: text, a number as text, or a list of texts, several captions of one
    image, which become the lines of one; none is "". ValueError for all else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(" ".join(caption.splitlines()) for caption in value)
    if (text := _text(value)) is None:
        raise ValueError(f"the caption is {_described(value)}, not text or a list of texts")
    return text


def _text(value: Any) -> str | None:
    if value is None:
        return ""
    return str(value) if type(value) in (int, float) else None


def _described(value: Any) -> str:
    return {dict: "an object", list: "a list", bool: "true or false"}[type(value)]
