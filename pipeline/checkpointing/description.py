"""What describes a checkpoint in parts: a JSON file with all that is no tensor, and where the tensors are.

A tensor lies in pieces, each the bytes of a box of it, one after the other in the files of the processes that
wrote them. Every piece has a checksum, and so has the description: whatever is read is known to be what was
written, and nothing of it is unpickled.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import xxhash

from pipeline.checkpointing.sealed_file import Damaged

FORMAT_VERSION = 1
_MARK = b'{"checksum": "xxh3_128:%s",\n'


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, in row-major order."""

    offsets: list[int]
    shape: list[int]
    part: str
    """The file that has it."""
    start: int
    """Its first byte there."""
    size: int
    """Its bytes."""
    checksum: str
    """xxh3_128 of these."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in pieces that together fill it."""

    dtype: str
    shape: list[int]
    pieces: list[Piece]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of its elements."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def outline(self) -> torch.Tensor:
        """A tensor of its shape and type, without content."""
        return torch.empty(self.shape, dtype=self.torch_dtype, device="meta")


@dataclass(frozen=True)
class Description:
    """A checkpoint, but for the bytes of its tensors."""

    values: dict[str, Any]
    """What is no tensor, as JSON has it."""
    tensors: dict[str, StoredTensor]

    def to_bytes(self) -> bytes:
        """The file."""
        content = {
            "format_version": FORMAT_VERSION,
            "values": self.values,
            "tensors": {name: asdict(tensor) for name, tensor in self.tensors.items()},
        }
        rest = json.dumps(content).encode()[1:]
        return _MARK % xxhash.xxh3_128_hexdigest(rest).encode() + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """Read the file; None where it is of another format version. Damaged."""
        mark, _, rest = data.partition(b"\n")
        if mark + b"\n" != _MARK % xxhash.xxh3_128_hexdigest(rest).encode():
            raise Damaged("its content and its checksum differ")
        content = json.loads(data)
        if content["format_version"] != FORMAT_VERSION:
            return None
        tensors = {
            name: StoredTensor(
                tensor["dtype"], tensor["shape"], [Piece(**piece) for piece in tensor["pieces"]]
            )
            for name, tensor in content["tensors"].items()
        }
        return cls(content["values"], tensors)
