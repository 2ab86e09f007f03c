"""The samples of a tar that somebody else made, found in one pass over its bytes.

A sample is a run of neighbouring members with one key, as the webdataset package groups them. What lies
before its first member and belongs to none (folders, global headers, hidden files) counts to it, so that the
lengths of all samples, added up, say where each one starts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shards.errors import DataError
from shards.tar import RECORD, header_fields, header_name, is_hidden, split_name

MAX_SAMPLE_BYTES = 2**32 - 1  # the index keeps lengths in 32 bits
_REGULAR, _LINKS, _SPARSE = b"0\x007", b"12", b"S"
_WITHOUT_DATA = b"123456"  # whatever size the header of a link, a device or a folder may give
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


class DamagedTar(DataError):
    """Bytes that are not a whole tar; the message says where."""


@dataclass(frozen=True)
class ScannedSample:
    """One sample: its tar bytes, where they start in the shard, and what kinds of members it has."""

    key: str
    start: int
    data: memoryview
    extensions: tuple[str, ...]  # of the members that are files, in order
    links: tuple[str, ...]  # of the members that are links to other files
    sparse: bool  # whether a member is stored without its holes, which only tar itself can undo


@dataclass
class TarScan:
    """The pass over one tar, given its bytes in chunks; never holds more than a chunk and a sample.

    After all samples: `end` is the byte where the archive ends, the end marker not counted; `marked` is
    whether there was an end marker.
    """

    chunks: Iterable[bytes]
    end: int = 0
    marked: bool = False

    def samples(self) -> Iterator[ScannedSample]:
        """Every sample, in order; DamagedTar, naming the byte, where the tar is damaged or cut short."""
        window = _Window(iter(self.chunks))
        sample: _OpenSample | None = None
        for entry in _entries(window):
            if entry.key is None:
                continue
            if sample is None or sample.key != entry.key:
                start = 0
                if sample:
                    yield sample.close(window)
                    start = sample.end
                    window.drop(start)
                sample = _OpenSample(entry.key, start)
            sample.add(entry)
        if sample:
            yield sample.close(window)
        self.end, self.marked = window.archive_end, window.end_marked


class _Window:
    """The part of the tar that is in memory, addressed by bytes of the tar."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._data = memoryview(b"")
        self._start = 0
        self.archive_end = 0
        self.end_marked = False

    @property
    def stop(self) -> int:
        """The byte after the last one in memory."""
        return self._start + len(self._data)

    def reach(self, end: int) -> bool:
        """Bring everything before byte `end` into memory; False where the tar is shorter."""
        if end <= self.stop:
            return True
        parts, stop = [self._data], self.stop
        while stop < end and (chunk := next(self._chunks, None)) is not None:
            parts.append(memoryview(chunk))
            stop += len(chunk)
        self._data = memoryview(b"".join(parts))
        return stop >= end

    def view(self, start: int, end: int) -> memoryview:
        """The bytes from `start` to `end`, all of them in memory."""
        return self._data[start - self._start : end - self._start]

    def drop(self, before: int) -> None:
        """Forget everything before a byte."""
        self._data, self._start = self._data[before - self._start :], before


@dataclass(frozen=True)
class _Entry:
    """One member with the headers that lengthen its name; `key` is None where it belongs to no sample."""

    key: str | None
    extension: str
    end: int
    link: bool
    sparse: bool


@dataclass
class _OpenSample:
    """A sample whose members are still being found."""

    key: str
    start: int
    end: int = 0
    extensions: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    sparse: bool = False

    def add(self, entry: _Entry) -> None:
        if entry.end - self.start > MAX_SAMPLE_BYTES:
            raise DamagedTar(f"sample {self.key!r} at byte {self.start:,} has more than 4 GiB")
        (self.links if entry.link else self.extensions).append(entry.extension)
        self.sparse |= entry.sparse
        self.end = entry.end

    def close(self, window: _Window) -> ScannedSample:
        data = window.view(self.start, self.end)
        return ScannedSample(
            self.key, self.start, data, tuple(self.extensions), tuple(self.links), self.sparse
        )


def _entries(window: _Window) -> Iterator[_Entry]:
    """Every member up to the end marker, or to the end of the tar where there is none."""
    position = 0
    name: str | None = None
    pax: dict[bytes, bytes] = {}
    while True:
        window.archive_end = position
        if not window.reach(position + RECORD):
            rest = window.view(position, window.stop) if position < window.stop else b""
            if any(rest):
                raise DamagedTar(
                    f"the tar ends at byte {window.stop:,}, inside the header at byte {position:,}: it is "
                    "cut short"
                )
            return
        header = bytes(window.view(position, position + RECORD))
        if header.count(0) == RECORD:
            window.end_marked = True
            return
        size, kind = _header_fields(header, position)
        size = _pax_size(pax, size)
        shown = _decoded(pax.get(b"GNU.sparse.name") or pax.get(b"path")) or name or header_name(header)
        data = position + RECORD
        if kind == _SPARSE:
            data = _after_sparse_map(window, header, data)
        stop = data + (0 if kind in _WITHOUT_DATA else size)
        if stop - data > MAX_SAMPLE_BYTES:
            raise DamagedTar(f"member {shown!r} at byte {position:,} has more than 4 GiB")
        if not window.reach(stop):
            raise DamagedTar(
                f"the tar ends at byte {window.stop:,}, inside the member {shown!r} that starts at byte "
                f"{position:,} and reaches to byte {stop:,}: it is cut short"
            )
        position = stop + -stop % RECORD
        if kind == _PAX:
            pax = _pax_records(bytes(window.view(data, stop)), data)
        elif kind == _LONG_NAME:
            name = _decoded(bytes(window.view(data, stop)).rstrip(b"\0"))
        elif kind not in (_PAX_GLOBAL, _LONG_LINK):
            # The last member's padding may be missing.
            end = position if window.reach(position) else stop
            yield _entry(shown, kind, end, sparse=kind == _SPARSE or any(b"GNU.sparse" in k for k in pax))
            name, pax = None, {}


def _header_fields(header: bytes, position: int) -> tuple[int, bytes]:
    try:
        return header_fields(header, position)
    except DataError as error:
        raise DamagedTar(str(error) if position else "it is not a tar") from None


def _entry(name: str, kind: bytes, end: int, *, sparse: bool) -> _Entry:
    regular = kind in _REGULAR and not name.endswith("/")  # the oldest tars mark folders so
    if is_hidden(name) or not (regular or kind in _LINKS or kind == _SPARSE):
        return _Entry(None, "", end, False, False)
    key, extension = split_name(name)
    return _Entry(key, extension, end, kind in _LINKS, sparse)


def _after_sparse_map(window: _Window, header: bytes, position: int) -> int:
    """Where a sparse member's data begins: its map may go on in records of its own."""
    more = header[482]
    while more:
        if not window.reach(position + RECORD):
            raise DamagedTar(f"the tar ends inside the sparse map at byte {position:,}: it is cut short")
        more = window.view(position, position + RECORD)[504]
        position += RECORD
    return position


def _pax_records(content: bytes, position: int) -> dict[bytes, bytes]:
    records = {}
    try:
        while content.strip(b"\0"):
            length = int(content[: content.index(b" ")])
            keyword, _, value = content[content.index(b" ") + 1 : length - 1].partition(b"=")
            records[keyword] = value
            if length <= 0:
                raise ValueError("a record without length")
            content = content[length:]
    except ValueError:
        raise DamagedTar(f"the extended header at byte {position:,} is damaged") from None
    return records


def _pax_size(pax: dict[bytes, bytes], size: int) -> int:
    return int(pax[b"size"]) if pax.get(b"size", b"").isdigit() else size


def _decoded(name: bytes | None) -> str | None:
    return None if name is None else name.decode("utf-8", "surrogateescape")
