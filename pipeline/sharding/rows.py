"""What a row of a table is, and what becomes of one that cannot be a sample."""

from dataclasses import dataclass
from typing import Any, NamedTuple

# A row as a table's reader hands it on: image, caption, and the other columns.
Fields = tuple[str, str, dict[str, Any]]


class Row(NamedTuple):
    """One row: its number (from 0, through all tables in their order), the image's name, the caption, and the
    other columns. (A tuple: a job makes and sends one for each of its rows.)
    """

    number: int
    image: str
    caption: str
    other: dict[str, Any]


class Rejected(Exception):
    """A row that cannot become a sample; the message is the reason, the same words for the same reason."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that did not become a sample, and why."""

    row: int
    image: str
    reason: str
