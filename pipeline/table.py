"""A table of captions, read once in chunks and spooled to a file, so that its rows can be fetched in any
order.

Memory holds one chunk and eight bytes a row, whatever the size of the table.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from shards import DataError, UsageError

CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class TableFormat:
    """How to read a table: the columns of image and caption, and what separates fields."""

    image_key: str = "image"
    caption_key: str = "caption"
    separator: str = ","


@dataclass(frozen=True)
class Row:
    """One row: its number in the table (from 0), the image's name, the caption, and the other columns."""

    number: int
    image: str
    caption: str
    other: dict[str, str]


class SpooledTable:
    """The rows of a table in a spool file, by number; cheap to hand to worker processes."""

    def __init__(self, spool: Path, offsets: Path) -> None:
        self.spool = spool
        self.offsets = offsets

    def __len__(self) -> int:
        return self.offsets.stat().st_size // 8 - 1

    def rows(self, numbers: np.ndarray) -> Iterator[Row]:
        """The rows of these numbers, in this order."""
        offsets = np.memmap(self.offsets, "<u8", "r")
        with open(self.spool, "rb") as file:
            for number in numbers.tolist():
                file.seek(int(offsets[number]))
                image, caption, other = json.loads(file.read(int(offsets[number + 1] - offsets[number])))
                yield Row(number, image, caption, other)


def spool_table(path: Path, table: TableFormat, folder: Path) -> SpooledTable:
    """Read a CSV file once and write its rows into `folder`.

    Raises UsageError where the file is missing, is not UTF-8, has no rows, or lacks one of the two columns.
    """
    spooled = SpooledTable(folder / "rows.jsonl", folder / "offsets.bin")
    offset = 0
    try:
        with open(spooled.spool, "wb") as rows, open(spooled.offsets, "wb") as offsets:
            for chunk in _chunks(path, table):
                offset = _spool_chunk(chunk, table, rows, offsets, offset)
            offsets.write(np.uint64(offset).tobytes())
    except OSError as error:
        raise DataError(
            f"{path} could not be copied to the temporary folder {folder}: {error}; if that disk is full, "
            "set TMPDIR to a folder on another"
        ) from error
    if not len(spooled):
        raise UsageError(f"{path}: the table has no rows")
    return spooled


def _spool_chunk(
    chunk: pd.DataFrame, table: TableFormat, rows: BinaryIO, offsets: BinaryIO, offset: int
) -> int:
    """Append a chunk's rows; the offset after them."""
    images, captions = chunk[table.image_key], chunk[table.caption_key]
    others = chunk.drop(columns=[table.image_key, table.caption_key]).to_dict("records")
    starts = np.empty(len(chunk), "<u8")
    for index, row in enumerate(zip(images, captions, others, strict=True)):
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
        starts[index] = offset
        offset += len(line)
        rows.write(line)
    offsets.write(starts.tobytes())
    return offset


def _chunks(path: Path, table: TableFormat) -> Iterator[pd.DataFrame]:
    """The table in chunks, every field as the text that stands in the file."""
    try:
        with pd.read_csv(
            path,
            sep=table.separator,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8-sig",
            chunksize=CHUNK_ROWS,
            engine="c",
            quoting=csv.QUOTE_MINIMAL,
        ) as reader:
            for number, chunk in enumerate(reader):
                if not number:
                    _check_columns(path, table, [str(column) for column in chunk.columns])
                yield chunk
    except FileNotFoundError:
        raise UsageError(f"{path}: no such table") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; --csv takes a table of images and captions") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start:,} of a chunk); convert it, for example "
            f"with 'iconv -f latin1 -t utf-8'"
        ) from error
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path}: the table is empty") from None
    except pd.errors.ParserError as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise UsageError(f"{path}: not a well-formed table: {reason}") from error


def _check_columns(path: Path, table: TableFormat, columns: list[str]) -> None:
    for flag, wanted in (("--image-key", table.image_key), ("--caption-key", table.caption_key)):
        if wanted in columns:
            continue
        hint = f"name the right one with {flag}"
        if len(columns) == 1:
            other = next((s for s in (",", "\t", ";", "|") if s != table.separator and s in columns[0]), None)
            if other:
                hint = f"fields seem to be separated by {other!r}: give --separator {other!r}"
        listed = ", ".join(repr(column) for column in columns)
        raise UsageError(f"{path}: no column {wanted!r}; its columns are {listed}; {hint}")
