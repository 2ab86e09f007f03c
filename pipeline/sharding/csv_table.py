"""Tables of separated fields (CSV, TSV), read row by row.

Fields come through exactly as they stand in the file: Python's own CSV reader says where a row has too many
fields or a quote is left open, where others shift columns or guess.
"""

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.sharding.rows import Fields
from pipeline.sharding.table_format import LONGEST_FIELD, TableFormat, check_columns, distinct_names, not_utf8
from shards import UsageError


def read_csv(file: BinaryIO, address: str, table: TableFormat, separator: str) -> Iterator[Fields]:
    """(image, caption, other columns) of every row; empty lines are no rows, fields that a row lacks are
    empty.

    Raises UsageError where the table is malformed or lacks one of the two columns.
    """
    csv.field_size_limit(LONGEST_FIELD)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    reader = csv.reader(_lines(text, address), delimiter=separator, strict=True)
    begin = 1  # the line at which the row that is read now begins
    try:
        header = next(reader, None)
        if header is None:
            raise UsageError(f"{address}: the table is empty")
        check_columns(address, table, header, _other_separator(header, separator))
        image, caption = header.index(table.image_key), header.index(table.caption_key)
        others = [(at, name) for at, name in enumerate(distinct_names(header)) if at not in (image, caption)]
        width = len(header)
        begin = reader.line_num + 1
        for fields in reader:
            if len(fields) > width:
                raise UsageError(
                    f"{address}: the row at line {begin:,} has {len(fields)} fields, the header {width}: put "
                    f"fields that hold {separator!r} in double quotes"
                )
            if fields:
                fields += [""] * (width - len(fields))
                yield fields[image], fields[caption], {name: fields[at] for at, name in others}
            begin = reader.line_num + 1
    except UnicodeDecodeError as error:
        # the decoder failed on a block that follows the lines read so far and ends where the file now stands
        line = reader.line_num + len((error.object[: error.start] + b"?").splitlines())
        offset = file.tell() - len(error.object) + error.start
        raise not_utf8(address, line, offset, error) from None
    except csv.Error as error:
        raise UsageError(
            f"{address}: not a well-formed table: {error}, in the row that begins at line {begin:,}; a quote "
            "inside a quoted field is written twice"
        ) from error


def _lines(text: io.TextIOWrapper, address: str) -> Iterator[str]:
    """The lines of a text, with their ends."""
    number = 0
    while line := text.readline(LONGEST_FIELD):
        number += 1
        if len(line) == LONGEST_FIELD:
            raise UsageError(f"{address}: line {number:,} does not end within {LONGEST_FIELD:,} characters")
        yield line


def _other_separator(header: list[str], separator: str) -> str:
    """The advice for a header that seems to be separated by something else; empty where it does not."""
    if len(header) == 1:
        for other in (",", "\t", ";", "|"):
            if other != separator and other in header[0]:
                return f"fields seem to be separated by {other!r}: give --separator {other!r}"
    return ""
