"""Tables of captions, read row by row.

Memory holds one row, whatever the size of the table. Fields come through exactly as they stand in the file:
Python's own CSV reader says where a row has too many fields or a quote is left open, where others shift
columns or guess.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.sharding.rows import Fields
from shards import DataError, UsageError

# A quote that is never closed would make the rest of the table one field.
LONGEST_FIELD = 64 * 2**20


@dataclass(frozen=True)
class TableFormat:
    """How to read a table: the columns of image and caption, and what separates fields."""

    image_key: str = "image"
    caption_key: str = "caption"
    separator: str = ","


def read_table(address: str, table: TableFormat) -> Iterator[Fields]:
    """(image, caption, other columns) of every row of one table, in order.

    Raises UsageError where the table is missing, malformed, or lacks one of the two columns; DataError where
    reading it fails.
    """
    yield from _read_csv(Path(address), table)


def _read_csv(path: Path, table: TableFormat) -> Iterator[Fields]:
    """(image, caption, other columns) of every row; empty lines are no rows."""
    csv.field_size_limit(LONGEST_FIELD)
    begin = 1  # the line at which the row that is read now begins
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=table.separator, strict=True)
            header = next(reader, None)
            if header is None:
                raise UsageError(f"{path}: the table is empty")
            _check_columns(path, table, header)
            image, caption = header.index(table.image_key), header.index(table.caption_key)
            others = [(at, name) for at, name in enumerate(_distinct(header)) if at not in (image, caption)]
            begin = reader.line_num + 1
            for fields in reader:
                if len(fields) > len(header):
                    raise UsageError(
                        f"{path}: the row at line {begin:,} has {len(fields)} fields, the header "
                        f"{len(header)}: put fields that hold {table.separator!r} in double quotes"
                    )
                if fields:
                    fields += [""] * (len(header) - len(fields))
                    yield fields[image], fields[caption], {name: fields[at] for at, name in others}
                begin = reader.line_num + 1
    except FileNotFoundError:
        raise UsageError(f"{path}: no such table") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; --csv takes a table of images and captions") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path}: not UTF-8 ({_undecodable(path)}); convert it, for example with "
            "'iconv -f latin1 -t utf-8'"
        ) from None
    except csv.Error as error:
        raise UsageError(
            f"{path}: not a well-formed table: {error}, in the row that begins at line {begin:,}; a quote "
            "inside a quoted field is written twice"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: reading the table failed: {error}") from error


def _undecodable(path: Path) -> str:
    """Where the first bytes are that are not UTF-8."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number:,}, byte {offset + error.start:,} of the file: {error.reason}"
            offset += len(line)
    return "the file changed while it was read"


def _distinct(header: list[str]) -> list[str]:
    """Column names with a number after those that were there before: a, a.1, a.2."""
    seen: Counter[str] = Counter()
    names = []
    for name in header:
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _check_columns(path: Path, table: TableFormat, columns: list[str]) -> None:
    for flag, wanted in (("--image-key", table.image_key), ("--caption-key", table.caption_key)):
        if (count := columns.count(wanted)) > 1:
            raise UsageError(f"{path}: {count} columns are named {wanted!r}: rename all but one")
        if wanted in columns:
            continue
        hint = f"name the right one with {flag}"
        if len(columns) == 1:
            other = next((s for s in (",", "\t", ";", "|") if s != table.separator and s in columns[0]), None)
            if other:
                hint = f"fields seem to be separated by {other!r}: give --separator {other!r}"
        listed = ", ".join(repr(column) for column in columns)
        raise UsageError(f"{path}: no column {wanted!r}; its columns are {listed}; {hint}")
