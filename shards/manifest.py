"""The manifest: what a data set is made of, and the fingerprint that says whether two of them give the same
order.

Beside the shards lie `manifest.json` (this), `index.bin` (uint32 little-endian: the byte length of every
sample, in order) and `checksums.bin` (uint32 little-endian: the low half of every sample's XXH3-64, so that a
changed byte is noticed when it is read, not when a model has learned from it). A view, a data set made of
some samples of shards that lie elsewhere, has `selected.bin` too: one bit for every sample of its shards, the
first in the lowest bit of the first byte.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from shards.errors import DataError

FORMAT_VERSION = 1
# Stands for the block rule, the hash and the order of samples; a change to any of them must change it.
ORDER_VERSION = 1
MANIFEST, INDEX, CHECKSUMS = "manifest.json", "index.bin", "checksums.bin"
SELECTED = "selected.bin"


@dataclass(frozen=True)
class ShardRecord:
    """One shard: its file name, samples, bytes, the sha256 of its bytes, and the folder it lies in.

    `folder` is a path relative to the manifest's own folder, an absolute path, or an address; "" is the
    manifest's own folder.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    folder: str = ""


@dataclass(frozen=True)
class MemberNames:
    """Which members of a sample are its image and its caption.

    The first of `image_extensions` that a sample has is its image. Where `caption_key` is given, the member
    with `caption_extension` is JSON, and the caption is what it holds under that key: a text, or a list of
    texts, several captions of the one image. Where `caption_lines` is true, each line of the member with
    `caption_extension` is a caption.
    """

    image_extensions: tuple[str, ...] = ("jpg", "png", "gif", "webp", "tif", "bmp")
    caption_extension: str = "txt"
    caption_key: str | None = None
    caption_lines: bool = False

    @property
    def caption_place(self) -> str:
        """Where captions stand, in words."""
        inside = f", under {self.caption_key!r}" if self.caption_key else ""
        return f"{self.caption_extension}{inside}{', each line a caption' * self.caption_lines}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values. `caption_lines` is named only where it is true: software from before it reads
        every other data set.
        """
        content = {**asdict(self), "image_extensions": list(self.image_extensions)}
        if not self.caption_lines:
            del content["caption_lines"]
        return content

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "MemberNames":
        """The inverse of `to_dict`."""
        return MemberNames(**{**content, "image_extensions": tuple(content["image_extensions"])})


@dataclass(frozen=True)
class Selection:
    """How many of the shards' samples a view has, and the sha256 of `selected.bin`, which says which."""

    samples: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; `index_sha256` ties the index to it."""

    shards: tuple[ShardRecord, ...]
    index_sha256: str
    member_names: MemberNames = MemberNames()
    selection: Selection | None = None
    made_by: dict[str, Any] = field(default_factory=dict)

    @property
    def indexed_samples(self) -> int:
        """Samples in all shards, selected or not."""
        return sum(shard.samples for shard in self.shards)

    @property
    def samples(self) -> int:
        """Samples of the data set."""
        return self.selection.samples if self.selection else self.indexed_samples

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that determines the order of samples: versions, shard names and hashes, index."""
        digest = hashlib.sha256(f"{FORMAT_VERSION} {ORDER_VERSION} {self.index_sha256}\n".encode())
        for shard in self.shards:
            digest.update(f"{shard.name} {shard.samples} {shard.sha256}\n".encode())
        if self.selection:
            digest.update(f"selected {self.selection.samples} {self.selection.sha256}\n".encode())
        return digest.hexdigest()

    def to_json(self) -> bytes:
        """The text of `manifest.json`."""
        content = {
            "format_version": FORMAT_VERSION,
            "order_version": ORDER_VERSION,
            "samples": self.samples,
            "bytes": self.total_bytes,
            "fingerprint": self.fingerprint,
            **asdict(self),
            "member_names": self.member_names.to_dict(),
            "shards": [
                {key: value for key, value in asdict(shard).items() if value != ""} for shard in self.shards
            ],
        }
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def from_json(text: bytes, address: str) -> "Manifest":
        """Read `manifest.json`; DataError, naming `address`, where it is damaged or of a version this code
        lacks.
        """
        try:
            content = json.loads(text)
            versions = content["format_version"], content["order_version"]
            if versions != (FORMAT_VERSION, ORDER_VERSION):
                raise DataError(
                    f"{address}: format and order version {versions[0]}.{versions[1]}; this software "
                    f"reads {FORMAT_VERSION}.{ORDER_VERSION}: install the version that wrote it, or "
                    "shard the data again"
                )
            manifest = Manifest(
                shards=tuple(ShardRecord(**shard) for shard in content["shards"]),
                index_sha256=content["index_sha256"],
                member_names=MemberNames.from_dict(content["member_names"]),
                selection=Selection(**content["selection"]) if content["selection"] else None,
                made_by=content["made_by"],
            )
            if manifest.fingerprint != content["fingerprint"]:
                raise DataError(
                    f"{address}: the manifest was altered (its fingerprint does not fit its contents)"
                )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{address}: not a manifest, or a damaged one ({type(error).__name__}: {error}); fetch it "
                "again from where it came, or write the data set again with --overwrite"
            ) from error
        return manifest


def pack_uint32(values: "np.ndarray | list[int]") -> bytes:
    """The bytes of `index.bin` or `checksums.bin` for one number a sample."""
    return np.asarray(values, dtype="<u4").tobytes()


def pack_selection(selected: np.ndarray) -> bytes:
    """The bytes of `selected.bin` for bool [samples]."""
    return np.packbits(selected, bitorder="little").tobytes()


def unpack_selection(content: bytes, samples: int) -> np.ndarray:
    """The inverse of `pack_selection`: bool [samples]."""
    return np.unpackbits(np.frombuffer(content, np.uint8), count=samples, bitorder="little").astype(bool)


def sha256(data: "bytes | memoryview") -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
