"""What became of all rows of a job: the descriptions of its shards, taken in one by one."""

import csv
import io
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pipeline.sharding.packing import PackedShard
from pipeline.sharding.rows import RejectedRow
from pipeline.sharding.statistics import Statistics
from shards import Folder, WrittenShard

_ROWS_AT_A_TIME = 10_000


@dataclass
class Account:
    """One data set's shards, its samples, and its rejected rows by reason."""

    shards: list[WrittenShard] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.record.samples for shard in self.shards)


class RejectedRows:
    """Rejected rows on their way to a file that has them in the order of the table: 16 bytes of memory each,
    their text in an unnamed temporary file. To be closed: `with RejectedRows() as rejected`.
    """

    def __init__(self) -> None:
        self._numbers, self._starts = array("q"), array("q", [0])
        self._lines = tempfile.TemporaryFile(buffering=2**20)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "RejectedRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    def add(self, row: RejectedRow) -> None:
        """Take a row in."""
        line = _csv_line(row.row, row.image, row.reason)
        self._lines.write(line)
        self._numbers.append(row.row)
        self._starts.append(self._starts[-1] + len(line))

    def write(self, folder: Folder, name: str) -> None:
        """Write the file: CSV with a header."""
        self._lines.flush()
        with folder.create(name) as file:
            file.write(_csv_line("row", "image", "reason"))
            order = np.argsort(np.frombuffer(self._numbers, np.int64), kind="stable")
            for start in range(0, len(order), _ROWS_AT_A_TIME):
                file.write(b"".join(map(self._line, order[start : start + _ROWS_AT_A_TIME].tolist())))

    def _line(self, number: int) -> bytes:
        start, stop = self._starts[number : number + 2]
        return os.pread(self._lines.fileno(), stop - start, start)


def gather(parts: Iterable[PackedShard], rejected: RejectedRows) -> Account:
    """The account of one data set, whose rejected rows go to `rejected`, too."""
    account = Account()
    for part in parts:
        account.shards.append(part.written)
        account.statistics.merge(part.statistics)
        for row in part.rejected:
            account.rejected[row.reason] += 1
            rejected.add(row)
    return account


def _csv_line(*fields: object) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode("utf-8", "surrogateescape")
