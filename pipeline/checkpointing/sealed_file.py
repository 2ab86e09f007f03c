"""A file of torch.save that carries a checksum of itself, so that damage is found before it is loaded.

torch.save writes a zip archive, and a zip archive may end with a comment: the checksum stands there, and
torch.load reads the file as it reads any other. It takes the place of the archive's own checksums, which cost
most of the time that writing takes and which torch.load does not look at.
"""

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import torch
import xxhash

_END = b"PK\x05\x06"  # signature of the record that ends a zip archive, with 18 more bytes before its comment
_END_BYTES = 22
_MARK = b"xxh3_128:"
_SEAL_BYTES = len(_MARK) + 32
_CHUNK = 8 * 2**20


class Damaged(Exception):
    """The bytes of a file are not those that were written; the text says in what way."""


def write_sealed(content: Any, write: Callable[[memoryview | bytes], object]) -> None:
    """Send what torch.save makes of `content`, and its checksum, to `write`, piece by piece."""
    seal = _Seal(write)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, cast(BinaryIO, seal))
    finally:
        torch.serialization.set_crc32_options(before)
    seal.finish()


def check_seal(file: BinaryIO) -> bool:
    """Raise Damaged where a file's content and checksum differ. False: the file has no checksum."""
    end = file.seek(0, 2) - _SEAL_BYTES
    if end < _END_BYTES:
        return False
    file.seek(end)
    seal = file.read()
    if not seal.startswith(_MARK):
        return False
    file.seek(0)
    hashed, left = xxhash.xxh3_128(), end
    while left and (chunk := file.read(min(_CHUNK, left))):
        hashed.update(chunk)
        left -= len(chunk)
    if seal != _MARK + hashed.hexdigest().encode():
        raise Damaged("its content and its checksum differ")
    return True


class _Seal:
    """The file-like object that torch.save writes to."""

    def __init__(self, write: Callable[[memoryview | bytes], object]) -> None:
        self._write, self._hash, self._tail = write, xxhash.xxh3_128(), b""
        self._failure: Exception | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Pass on all but the last bytes of what came so far."""
        view = memoryview(data).cast("B")
        if len(view) >= _END_BYTES:
            self._pass_on(self._tail)
            self._pass_on(view[:-_END_BYTES])
            self._tail = bytes(view[-_END_BYTES:])
        else:
            tail = self._tail + bytes(view)
            self._pass_on(tail[:-_END_BYTES])
            self._tail = tail[-_END_BYTES:]
        return len(view)

    def flush(self) -> None:
        """Nothing: whoever is written to flushes when all is there."""

    def finish(self) -> None:
        """Add the checksum as the archive's comment; raises what writing has met."""
        if self._failure:
            raise self._failure
        if not (self._tail.startswith(_END) and self._tail.endswith(b"\0\0")):
            raise AssertionError("torch.save's output does not end as a zip archive without a comment")
        self._pass_on(self._tail[:-2] + struct.pack("<H", _SEAL_BYTES))
        self._write(_MARK + self._hash.hexdigest().encode())

    def _pass_on(self, data: bytes | memoryview) -> None:
        if len(data) and not self._failure:
            self._hash.update(data)
            try:
                self._write(data)
            except Exception as error:  # torch would raise one of its own in its place
                self._failure = error
