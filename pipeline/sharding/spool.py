"""The rows of all tables, read once and spooled to a file, so that they can be fetched in any order.

Memory holds one byte a row (its split), whatever the size of the tables.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from json.encoder import encode_basestring
from typing import IO, Any

import numpy as np

from pipeline.job_progress import JobProgress, Unit
from pipeline.sharding.range_readers import close_unwanted
from pipeline.sharding.rows import Fields, Row
from pipeline.sharding.tables import TableFormat, read_table
from shards import DataError, UsageError

_decode = json.JSONDecoder().raw_decode
_encode = json.JSONEncoder(ensure_ascii=False).encode
_TWO_OFFSETS = struct.Struct("<QQ")
_ROWS_BETWEEN_REPORTS = 256


class SpooledTable:
    """The rows of the tables, by number, in unnamed temporary files: they vanish with this process, however
    it ends.

    `sha256` is that of the rows, so tables that differ only in how they are written have the same.
    `splits` is uint8 [rows]: the number of each row's split.
    """

    def __init__(self, rows: IO[bytes], offsets: IO[bytes], splits: np.ndarray, sha256: str) -> None:
        self._rows, self._offsets = rows, offsets
        self.splits = splits
        self.sha256 = sha256

    def __len__(self) -> int:
        return len(self.splits)

    def __enter__(self) -> "SpooledTable":
        return self

    def __exit__(self, *exception: object) -> None:
        self._rows.close()
        self._offsets.close()

    def rows(self, numbers: np.ndarray) -> list[Row]:
        """The rows of these numbers, in this order."""
        return [self._row(number) for number in numbers.tolist()]

    def _row(self, number: int) -> Row:
        start, stop = _TWO_OFFSETS.unpack(os.pread(self._offsets.fileno(), 16, 8 * number))
        line = os.pread(self._rows.fileno(), stop - start, start)
        fields, _ = _decode(line.decode("utf-8", "surrogatepass"))
        return Row(number, *fields)


def spool_tables(
    addresses: Sequence[str], table: TableFormat, split_of: Callable[[Fields], int] | None = None
) -> SpooledTable:
    """Read tables once, one after the other, and spool their rows; the spool is to be closed (`with
    spool_tables(…) as rows`).

    split_of: the number of a row's split; without it, 0 for all. Raises UsageError where a table is missing,
    malformed, has no rows, or lacks one of the two columns; DataError where reading or spooling fails.
    """
    digest = hashlib.sha256()
    offset = 0
    splits = bytearray()
    with ExitStack() as opened, JobProgress(None, 0, Unit("rows read")) as progress:
        rows, offsets = (tempfile.TemporaryFile(buffering=2**20) for _ in range(2))  # noqa: SIM115
        opened.callback(close_unwanted, rows)
        opened.callback(close_unwanted, offsets)
        for address in addresses:
            before = len(splits)
            for fields in read_table(address, table):
                line = _line(*fields)
                digest.update(line)
                splits.append(split_of(fields) if split_of else 0)
                try:
                    offsets.write(offset.to_bytes(8, "little"))
                    offset += rows.write(line)
                except OSError as error:
                    raise _spool_failed(address, error) from error
                if len(splits) % _ROWS_BETWEEN_REPORTS == 0:
                    progress.advance(_ROWS_BETWEEN_REPORTS)
            if len(splits) == before:
                raise UsageError(f"{address}: the table has no rows")
        try:
            offsets.write(offset.to_bytes(8, "little"))
            rows.flush()
            offsets.flush()
        except OSError as error:
            raise _spool_failed(addresses[-1], error) from error
        opened.pop_all()
    return SpooledTable(rows, offsets, np.frombuffer(splits, np.uint8), digest.hexdigest())


def _line(image: str, caption: str, other: dict[str, Any]) -> bytes:
    """A row's JSON, as `json.dumps` writes it, in a third of the time."""
    line = f"[{encode_basestring(image)}, {encode_basestring(caption)}, {_encode(other) if other else '{}'}]"
    return line.encode("utf-8", "surrogatepass")


def _spool_failed(address: str, error: OSError) -> DataError:
    return DataError(
        f"{address} could not be copied to the temporary folder {tempfile.gettempdir()}: {error}; if that "
        "disk is full, set TMPDIR to a folder on another"
    )
