"""What embeddings are: the model, the data, and the form that they are stored in."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from shards import DataError

FORMAT_VERSION = 1
MANIFEST = "embeddings.json"

Part = Literal["image", "text"]
Format = Literal["npy", "parquet"]
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class EmbeddedModel:
    """The model that made the features, and what went into it."""

    checkpoint: str
    """Where it was read from: an absolute path, a tag or an address."""
    config: str | None
    """The model config that it was opened with, where weights come without: a name or an absolute path."""
    fingerprint: str
    tokenizer: str
    """Fingerprint of the vocabulary."""
    embed_dim: int
    image_size: int
    mean: list[float]
    std: list[float]
    decode: str
    """How images were decoded: exact or published."""
    average: bool = False
    """Whether the weights are the average that training kept."""


@dataclass(frozen=True)
class EmbeddedData:
    """The samples that the features are of."""

    address: str
    """Where they were read from: an absolute path or an address."""
    kind: Literal["shards", "images"]
    fingerprint: str
    samples: int


@dataclass(frozen=True)
class LeftOut:
    """A sample without a row, since it could not be read: its number, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class EmbeddingsManifest:
    """Embeddings as a whole. `rows`: of each piece; None until every piece is there."""

    model: EmbeddedModel
    data: EmbeddedData
    parts: list[Part]
    format: Format
    dtype: Dtype
    samples_per_piece: int
    rows: list[int] | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def pieces(self) -> int:
        """The number of pieces: runs of `samples_per_piece` samples, the last one shorter."""
        return -(-self.data.samples // self.samples_per_piece)

    def span(self, piece: int) -> tuple[int, int]:
        """The numbers of a piece's first sample and of the one after its last."""
        start = piece * self.samples_per_piece
        return start, min(start + self.samples_per_piece, self.data.samples)

    @property
    def fingerprint(self) -> str:
        """A hash of all that determines the features: an index over others has another."""
        return hashlib.sha256(json.dumps(self._determining(), sort_keys=True).encode()).hexdigest()[:16]

    def _determining(self) -> dict[str, Any]:
        """By the words of a message, what makes pieces those of one work; where things lie does not."""
        return {
            "model": self.model.fingerprint,
            "decoding": self.model.decode,
            "data": self.data.fingerprint[:16],
            "samples": self.data.samples,
            "parts": "+".join(self.parts),
            "format": self.format,
            "dtype": self.dtype,
            "samples per piece": self.samples_per_piece,
        }

    def differences(self, other: "EmbeddingsManifest") -> list[str]:
        """In words, what determines the features and is another in `other`."""
        mine, theirs = self._determining(), other._determining()
        return [f"{name} {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name]]

    def to_json(self) -> bytes:
        """The content of `embeddings.json`."""
        content = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, **asdict(self)}
        return (json.dumps(content, indent=1) + "\n").encode()

    @staticmethod
    def from_json(text: bytes, address: str) -> "EmbeddingsManifest":
        """Read `embeddings.json`; DataError, naming `address`, where it is damaged or of another version."""
        try:
            content = json.loads(text)
            if (version := content.pop("format_version")) != FORMAT_VERSION:
                raise DataError(
                    f"{address}: embeddings of format version {version}; this software reads "
                    f"{FORMAT_VERSION}: install the one that wrote them, or write them again with --overwrite"
                )
            fingerprint = content.pop("fingerprint")
            manifest = EmbeddingsManifest(
                **{
                    **content,
                    "model": EmbeddedModel(**content["model"]),
                    "data": EmbeddedData(**content["data"]),
                    "left_out": [LeftOut(**entry) for entry in content["left_out"]],
                }
            )
            if fingerprint != manifest.fingerprint:
                raise ValueError("its fingerprint does not fit its contents")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{address}: not the manifest of embeddings, or a damaged one ({error}); write them again "
                "with python -m pipeline.embed --overwrite"
            ) from error
        return manifest
