"""Feature rows of one rank: in memory while they are few, beyond that in a temporary file."""

import os
import tempfile
from typing import IO

import numpy as np
import torch

from shards import DataError

MEMORY = 256 * 2**20  # bytes of rows that are held in memory


class FeatureRows:
    """Rows [n, D] float32 on the CPU: first all are appended, then any of them are read.

    A million rows of 768 features are 3 GB, too much for a process that holds two kinds of them beside a
    model: what is beyond `memory` bytes lies in a file without a name in the folder for temporary files.
    """

    def __init__(self, dimensions: int, memory: int = MEMORY) -> None:
        self.dimensions = dimensions
        self._memory = memory
        self._chunks: list[torch.Tensor] = []
        self._rows = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._rows

    @staticmethod
    def of(rows: torch.Tensor) -> "FeatureRows":
        """Rows [n, D] that are in memory already."""
        held = FeatureRows(rows.shape[1], memory=4 * rows.numel())
        held.append(rows)
        return held

    def append(self, rows: torch.Tensor) -> None:
        """Add rows [m, D], from any device; DataError where the disk has no room for them."""
        rows = rows.detach().float().cpu().contiguous()
        self._chunks.append(rows)
        self._rows += len(rows)
        if self._file is None and 4 * self._rows * self.dimensions > self._memory:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (lives as long as the rows)
        if self._file:
            self._write_chunks(self._file)

    def _write_chunks(self, file: IO[bytes]) -> None:
        try:
            for chunk in self._chunks:
                data = _bytes(chunk.numpy())
                while data:
                    data = data[file.write(data) :]
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: features could not be kept here ({error.strerror}); each "
                f"image and caption needs {4 * self.dimensions:,} bytes, twice: make room, or name another "
                "folder in the environment variable TMPDIR"
            ) from error
        self._chunks = []

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The rows from `start` up to `stop` (None: all that follow)."""
        stop = self._rows if stop is None else min(stop, self._rows)
        if self._file is None:
            return self._in_memory()[start:stop]
        rows = torch.empty(max(0, stop - start), self.dimensions)
        self._read_into(rows.numpy(), start)
        return rows

    def take(self, numbers: np.ndarray) -> torch.Tensor:
        """The rows of these numbers (int64 [m]), in their order."""
        if self._file is None:
            return self._in_memory()[torch.from_numpy(numbers)]
        rows = torch.empty(len(numbers), self.dimensions)
        held = rows.numpy()
        for place, number in enumerate(numbers.tolist()):
            self._read_into(held[place], number)
        return rows

    def _in_memory(self) -> torch.Tensor:
        if len(self._chunks) != 1:
            self._chunks = [torch.cat([torch.empty(0, self.dimensions), *self._chunks])]
        return self._chunks[0]

    def _read_into(self, rows: np.ndarray, start: int) -> None:
        assert self._file
        data, place = _bytes(rows), 4 * start * self.dimensions
        while data:
            count = os.preadv(self._file.fileno(), [data], place)
            assert count, "rows are written before they are read"
            data, place = data[count:], place + count


def _bytes(rows: np.ndarray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data
