"""Tables of one JSON object a line, read line by line."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.sharding.rows import Fields
from pipeline.sharding.table_format import (
    LONGEST_FIELD,
    TableFormat,
    caption_text,
    check_columns,
    image_name,
    not_utf8,
)
from shards import UsageError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_jsonl(file: BinaryIO, address: str, table: TableFormat) -> Iterator[Fields]:
    """(image, caption, other columns) of every row; empty lines are no rows.

    Others keep their JSON types; but NaN and infinities, which JSON does not know, become null, and halves of
    surrogate pairs, which UTF-8 does not know, U+FFFD. An image or caption that a row lacks is "", though the
    first row must have both. A caption may be a list of texts: they become its lines.

    Raises UsageError where the table is malformed or its first row lacks one of the two.
    """
    image_key, caption_key = table.image_key, table.caption_key
    checked = False
    for number, row in _objects(file, address):
        if not checked and row:
            check_columns(address, table, list(row))
            checked = True
        image, caption = row.get(image_key), row.get(caption_key)
        row.pop(image_key, None)
        row.pop(caption_key, None)
        try:
            fields = image_name(image), caption_text(caption), row
        except ValueError as error:
            raise UsageError(f"{address}: line {number:,}: {error}") from None
        yield fields


def _objects(file: BinaryIO, address: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line's number, from 1, and its object."""
    decode = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number).decode
    number = 0
    while line := file.readline(LONGEST_FIELD):
        number += 1
        try:
            row = decode(line.decode())
        except UnicodeDecodeError as error:
            raise not_utf8(address, number, file.tell() - len(line) + error.start, error) from None
        except (ValueError, RecursionError) as error:
            if line.isspace():
                continue
            raise UsageError(f"{address}: line {number:,} {_trouble(line, error)}") from None
        if type(row) is not dict:
            raise UsageError(f"{address}: line {number:,} {_trouble(line, 'it holds another value')}")
        if b"\\" in line and (b"\\ud" in line or b"\\uD" in line):
            row = _without_lone_surrogates(row)
        yield number, row


def _trouble(line: bytes, error: object) -> str:
    """Why a line is no row, and the remedy."""
    if line.lstrip().startswith(b"["):
        return (
            "begins a JSON array; a table has one object a line: write it so, for example with "
            "'jq -c .[] table.json > table.jsonl'"
        )
    if len(line) == LONGEST_FIELD:
        return f"does not end within {LONGEST_FIELD:,} bytes; a table has one object a line"
    if not line.endswith(b"\n"):
        return f"is no whole JSON object ({error}), and the file ends in it: it may have been cut short"
    return f"is no whole JSON object ({error}); a table has one object a line"


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


def _no_number(_: str) -> None:
    """Null for NaN, Infinity and -Infinity."""


def _without_lone_surrogates(value: Any) -> Any:
    match value:
        case str():
            return _LONE_SURROGATE.sub("\ufffd", value)
        case list():
            return [_without_lone_surrogates(item) for item in value]
        case dict():
            return {
                _LONE_SURROGATE.sub("\ufffd", key): _without_lone_surrogates(item)
                for key, item in value.items()
            }
    return value
