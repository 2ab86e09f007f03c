"""Describing one tar: its hash, the length and checksum of every sample, and what is wrong with which."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import xxhash

from pipeline.indexing.shard_files import ShardFile, refuse_compressed
from shards import DataError, MemberNames, ShardRecord, UsageError, WrittenShard
from shards.chunks import read_chunks
from shards.sample import parse_sample
from shards.tar import members, split_name
from shards.tar_scan import DamagedTar, ScannedSample, TarScan
from shards.writer import checksum

# How gzip, zstd, bzip2, xz and lz4 files begin
_COMPRESSED = re.compile(rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x04\x22\x4d\x18")
NO_IMAGE, NO_CAPTION = "no image", "no caption"
IMAGE_IS_LINK = "the image is a link to another file (pack with tar --hard-dereference)"
APART = "its members are not neighbours in the shard"
# Oddities that leave a sample in the data set
REPEATED_KEY = "keys that several samples of a shard have"
REPEATED_NAME = "samples with two members of one name, the last of which counts, as tar unpacks it"
SEVERAL_IMAGES = "samples with several images, of which the first in the order of --image-ext counts"
AFTER_END = "shards with bytes after the end marker, which readers of tars ignore"
NO_END = "shards without the end marker of a tar, which may have been cut short between two files"
NO_SAMPLES = "shards without samples"


@dataclass(frozen=True)
class UnusableSample:
    """A sample that is left out of the data set: its number in the shard, its key, and why."""

    sample: int
    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class DescribedShard:
    """One tar as the data set needs it.

    key_hashes: uint64 [samples]; unusable: the samples to leave out; unmapped: for samples without an image
    or a caption, how many have which other extensions; oddities: what is odd but kept, counted, with an
    example.
    """

    written: WrittenShard
    key_hashes: np.ndarray
    unusable: tuple[UnusableSample, ...]
    unmapped: dict[str, dict[str, int]]
    oddities: dict[str, tuple[int, str]]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "written": self.written.to_dict(),
            "key_hashes": base64.b64encode(self.key_hashes.astype("<u8").tobytes()).decode(),
            "unusable": [asdict(sample) for sample in self.unusable],
            "unmapped": self.unmapped,
            "oddities": self.oddities,
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "DescribedShard":
        """The inverse of `to_json`."""
        return DescribedShard(
            WrittenShard.from_dict(content["written"]),
            np.frombuffer(base64.b64decode(content["key_hashes"]), "<u8"),
            tuple(UnusableSample(**sample) for sample in content["unusable"]),
            content["unmapped"],
            {what: (count, example) for what, (count, example) in content["oddities"].items()},
        )


def describe_shard(file: ShardFile, names: MemberNames) -> DescribedShard:
    """Read a tar once, from its beginning to its end; its record names no folder yet.

    Raises UsageError for a compressed file, DamagedTar, naming the byte, for a damaged one, and DataError
    where storage fails.
    """
    found = _Findings(file.name, names)
    reading = _Reading(file)
    scan = TarScan(reading.chunks())
    try:
        for sample in scan.samples():
            found.add(sample)
    except DamagedTar as error:
        raise DamagedTar(f"{file.address}: {error}: fetch it again from where it came") from None
    reading.finish(scan.end)
    record = ShardRecord(file.name, len(found.lengths), file.size, reading.digest.hexdigest())
    if reading.more_after_end:
        found.odd(AFTER_END, f"{file.name} from byte {scan.end:,} on")
    if not scan.marked:
        found.odd(NO_END, file.name)
    if not found.lengths:
        found.odd(NO_SAMPLES, file.name)
    found.look_for_repeated_keys()
    return DescribedShard(
        WrittenShard(record, np.array(found.lengths, np.uint32), np.array(found.checksums, np.uint32)),
        np.array(found.key_hashes, np.uint64),
        tuple(found.unusable),
        {reason: dict(counts) for reason, counts in found.unmapped.items()},
        found.oddities,
    )


class _Reading:
    """The bytes of a tar on their way to the scan, hashed as they pass."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file
        self._read = 0
        self._last = b""
        self.digest = hashlib.sha256()
        self.more_after_end = False
        self._stream = self._hashed()

    def chunks(self) -> Iterator[bytes]:
        return self._stream

    def _hashed(self) -> Iterator[bytes]:
        for chunk in read_chunks(self._file.folder, self._file.name, self._file.size):
            if not self._read:
                self._check_kind(chunk)
            self.digest.update(chunk)
            self._read += len(chunk)
            self._last = chunk
            yield chunk
        if self._read < self._file.size:
            raise DataError(
                f"{self._file.address}: {self._read:,} bytes came of the {self._file.size:,} that were there "
                "when the job began: it was changed meanwhile; run the same command again"
            )
        if not self._read:
            raise DamagedTar("it is empty (0 bytes), not a tar")

    def _check_kind(self, beginning: bytes) -> None:
        if _COMPRESSED.match(beginning):
            raise UsageError(refuse_compressed(self._file.address))

    def finish(self, end: int) -> None:
        """Read what lies after the end of the archive, which only the hash needs."""
        after = self._last[max(0, end - (self._read - len(self._last))) :] if end < self._read else b""
        self.more_after_end = any(after)
        for chunk in self._stream:
            self.more_after_end |= any(chunk)


@dataclass
class _Findings:
    """What the samples of one tar are, gathered one by one."""

    shard: str
    names: MemberNames
    lengths: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    key_hashes: list[int] = field(default_factory=list)
    unusable: list[UnusableSample] = field(default_factory=list)
    unmapped: dict[str, Counter[str]] = field(default_factory=dict)
    oddities: dict[str, tuple[int, str]] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)
    _repeated: dict[int, str] = field(default_factory=dict)  # keys that came again, by their hash

    def add(self, sample: ScannedSample) -> None:
        number, key = len(self.lengths), key_hash(sample.key)
        self.lengths.append(len(sample.data))
        self.checksums.append(checksum(sample.data))
        self.key_hashes.append(key)
        if key in self._seen:
            self._repeated[key] = sample.key
        self._seen.add(key)
        reason = why_unusable(sample, self.names)
        if reason:
            self.unusable.append(UnusableSample(number, sample.key, reason))
        if reason in (NO_IMAGE, NO_CAPTION):
            self.unmapped.setdefault(reason, Counter()).update(_unmapped(sample, self.names))
        distinct = set(sample.extensions)
        if not reason and len(distinct.intersection(self.names.image_extensions)) > 1:
            self.odd(SEVERAL_IMAGES, f"{sample.key} in {self.shard}")
        if len(distinct) < len(sample.extensions):
            self.odd(REPEATED_NAME, f"{sample.key} in {self.shard}")

    def odd(self, what: str, example: str) -> None:
        count, first = self.oddities.get(what, (0, example))
        self.oddities[what] = (count + 1, first)

    def look_for_repeated_keys(self) -> None:
        """A key that came again: of a sample taken apart where parts are missing, else of another sample."""
        apart = {
            self.key_hashes[bad.sample]
            for bad in self.unusable
            if bad.reason in (NO_IMAGE, NO_CAPTION) and self.key_hashes[bad.sample] in self._repeated
        }
        self.unusable = [
            replace(bad, reason=APART)
            if bad.reason in (NO_IMAGE, NO_CAPTION) and self.key_hashes[bad.sample] in apart
            else bad
            for bad in self.unusable
        ]
        for key, name in self._repeated.items():
            if key not in apart:
                self.odd(REPEATED_KEY, f"{name} in {self.shard}")


def _unmapped(sample: ScannedSample, names: MemberNames) -> set[str]:
    return set(sample.extensions) - {*names.image_extensions, names.caption_extension, ""}


def key_hash(key: str) -> int:
    """64 bits that stand for a key when keys are compared."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


def why_unusable(sample: ScannedSample, names: MemberNames) -> str | None:
    """Why training could not read a sample, in the same words for the same reason; None where it can."""
    if sample.sparse:
        return "a member is stored without its holes (tar --sparse)"
    try:
        parsed = parse_sample(sample.data, names)
    except (DataError, ValueError, RecursionError):  # the last: JSON nested a thousand deep
        return _explain(sample, names)
    if not len(parsed.image):
        return "empty image"
    return None if parsed.caption.strip() else "empty caption"


def _explain(sample: ScannedSample, names: MemberNames) -> str:
    caption = names.caption_extension
    if not set(sample.extensions) & set(names.image_extensions):
        linked = set(sample.links) & set(names.image_extensions)
        return IMAGE_IS_LINK if linked else NO_IMAGE
    if caption not in sample.extensions:
        return NO_CAPTION
    try:
        found = next(content for name, content in members(sample.data) if split_name(name)[1] == caption)
    except (DataError, ValueError, StopIteration):
        return "its tar headers cannot be read"
    try:
        str(found, "utf-8")
    except UnicodeDecodeError:
        return "the caption is not UTF-8"
    if names.caption_key is None:
        return "empty caption"
    return f"no text under {names.caption_key!r} in its {caption}"
