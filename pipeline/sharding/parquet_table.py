"""Parquet tables, read a thousand rows at a time, however large their row groups are."""

import datetime
import decimal
import math
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.sharding.rows import Fields
from pipeline.sharding.table_file import TableFile
from pipeline.sharding.table_format import (
    TableFormat,
    caption_text,
    check_columns,
    distinct_names,
    image_name,
)
from shards import UsageError

ROWS_IN_MEMORY = 1024

# What is read of each column at a time: a row group's whole column may be larger than memory.
COLUMN_BUFFER = 2**20


def read_parquet(file: TableFile, address: str, table: TableFormat) -> Iterator[Fields]:
    """(image, caption, other columns) of every row.

    Others become plain JSON: dates and times ISO 8601 text, decimals numbers, NaN and infinities null, and
    what JSON has nothing for its text. A caption may be a list of texts: they become its lines.

    Raises UsageError where the table is damaged, lacks one of the two columns, or has a column of bytes.
    """
    parquet = _open(file, address)
    columns = parquet.schema_arrow.names
    check_columns(address, table, columns)
    for column in parquet.schema_arrow:
        if _holds_bytes(column.type):
            raise UsageError(_bytes_refused(address, table, column.name))
    image, caption = columns.index(table.image_key), columns.index(table.caption_key)
    others = [(at, name) for at, name in enumerate(distinct_names(columns)) if at not in (image, caption)]
    first = 0
    for batch in _batches(parquet, address):
        values = [
            _plain_column(address, name, column) for name, column in zip(columns, batch.columns, strict=True)
        ]
        for at in range(batch.num_rows):
            try:
                fields = image_name(values[image][at]), caption_text(values[caption][at])
            except ValueError as error:
                raise UsageError(f"{address}: row {first + at:,}: {error}") from None
            yield *fields, {name: values[column][at] for column, name in others}
        first += batch.num_rows


def _open(file: TableFile, address: str) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(file, buffer_size=COLUMN_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{address}: not a whole Parquet file: {_first_line(error)}") from error


def _batches(parquet: pyarrow.parquet.ParquetFile, address: str) -> Iterator[pyarrow.RecordBatch]:
    """The table's rows, a thousand at a time."""
    try:
        yield from parquet.iter_batches(ROWS_IN_MEMORY, use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{address}: the Parquet file is damaged: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    """Whether a column's values hold bytes, at whatever depth."""
    if isinstance(kind, pyarrow.BaseExtensionType) and not isinstance(kind, pyarrow.UuidType):
        kind = kind.storage_type
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if kind.num_fields:  # a list, an object, a map
        return any(_holds_bytes(kind.field(n).type) for n in range(kind.num_fields))
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _bytes_refused(address: str, table: TableFormat, column: str) -> str:
    if column == table.image_key:
        return (
            f"{address}: column {column!r} holds the images themselves, not their names: write each to a "
            "file and its name into the table"
        )
    return (
        f"{address}: column {column!r} holds bytes, which a sample's .json cannot: drop the column or turn "
        "it into text"
    )


def _plain_column(address: str, name: str, column: pyarrow.Array) -> list[Any]:
    """A column's values as JSON has them."""
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError) as error:  # a date after the year 9999, say
        raise UsageError(f"{address}: column {name!r} holds what cannot be read: {error}") from None
    kind, types = column.type, pyarrow.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind):
        return values
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case datetime.date() | datetime.time():  # a moment is a date too
            return value.isoformat()
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
    return str(value)
