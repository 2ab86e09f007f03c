"""How torch.distributed.checkpoint writes into a folder and reads from it: local or at an address.

Each process writes one file, the bytes of its tensors one after the other; when all are there, the first
process writes the description, without which none of them counts.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import torch
import xxhash
from torch.distributed.checkpoint import (
    LoadPlan,
    LoadPlanner,
    Metadata,
    ReadItem,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from pipeline.checkpointing.description import Description, Piece, StoredTensor
from pipeline.checkpointing.sealed_file import Damaged
from shards import Folder

DESCRIPTION = "checkpoint.json"
_AT_ONCE = 8  # pieces that are read side by side


def part_name(rank: int) -> str:
    """The file of a process."""
    return f"part-{rank:05d}.bin"


class PartWriter(StorageWriter):
    """Writes tensors, which must be on the CPU, and beside them what is no tensor.

    begin: called on the first process before any of them writes; finished: called there when all is written.
    """

    def __init__(
        self,
        folder: Folder,
        values: dict[str, Any],
        *,
        begin: Callable[[], None],
        finished: Callable[[], None],
    ) -> None:
        self._folder, self._values, self._begin, self._finished = folder, values, begin, finished
        self._rank = 0

    def reset(self, checkpoint_id: object = None) -> None:
        """Nothing: the folder is the writer's own."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take note of which process this is."""
        self._rank = kwargs.get("rank", torch.distributed.get_rank())

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make room, on the first process."""
        self._begin()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's file."""
        name, results, start = part_name(self._rank), [], 0
        self._folder.abort_uploads([name])
        with self._folder.create(name) as file:
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, torch.Tensor)
                assert item.index.offset is not None
                data = _bytes_of(tensor)
                file.write(data)
                checksum = xxhash.xxh3_128_hexdigest(data)
                piece = Piece([*item.index.offset], [*tensor.shape], name, start, data.nbytes, checksum)
                results.append(WriteResult(item.index, data.nbytes, piece))
                start += data.nbytes
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the description, on the first process."""
        pieces: dict[str, list[Piece]] = {}
        for result in (result for of_process in results for result in of_process):
            if result.storage_data.size:
                pieces.setdefault(result.index.fqn, []).append(result.storage_data)
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[name] = StoredTensor(dtype, [*entry.size], pieces.get(name, []))
        self._folder.write(DESCRIPTION, Description(self._values, tensors).to_bytes())
        self._finished()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Checkpoints are not told by an id here."""
        return False


class PartReader(StorageReader):
    """Reads tensors, or the parts of them that a process wants, from whichever pieces hold them."""

    def __init__(self, folder: Folder, description: Description) -> None:
        self._folder, self._description = folder, description
        self._pieces = {
            (name, *piece.offsets): piece
            for name, tensor in description.tensors.items()
            for piece in tensor.pieces
        }

    def reset(self, checkpoint_id: object = None) -> None:
        """Nothing: the folder is the reader's own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What torch.distributed.checkpoint plans by."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(tensor.torch_dtype),
                    torch.Size(tensor.shape),
                    [
                        ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.shape))
                        for piece in tensor.pieces
                    ],
                )
                for name, tensor in self._description.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read and check each piece that is wanted, once, and copy what is wanted of it. Damaged."""

        def place(item: ReadItem) -> tuple[str, int]:
            piece = self._piece(item.storage_index)
            return piece.part, piece.start

        def read(items: list[ReadItem]) -> None:
            index = items[0].storage_index
            piece, dtype = self._piece(index), self._description.tensors[index.fqn].torch_dtype
            data = bytearray(read_piece(self._folder, piece))
            found = torch.frombuffer(data, dtype=dtype).view(piece.shape)
            for item in items:
                wanted = found
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    wanted = wanted.narrow(dim, start, length)
                target = planner.resolve_tensor(item)
                target.copy_(wanted)
                planner.commit_tensor(item, target)

        by_piece = [list(items) for _, items in groupby(sorted(plan.items, key=place), key=place)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(read, by_piece))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _piece(self, index: MetadataIndex) -> Piece:
        return self._pieces[index.fqn, *(index.offset or ())]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Checkpoints are not told by an id here."""
        return False


def check_pieces(folder: Folder, pieces: Iterable[Piece]) -> None:
    """Read them all; Damaged where one is not what was written."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(lambda piece: bool(read_piece(folder, piece)), pieces):
            pass


def read_piece(folder: Folder, piece: Piece) -> memoryview:
    """The bytes of a piece; Damaged where they are not those that were written."""
    try:
        data = folder.read_range(piece.part, piece.start, piece.size)
    except FileNotFoundError:
        raise Damaged(f"{piece.part} is missing") from None
    if xxhash.xxh3_128_hexdigest(data) != piece.checksum:
        raise Damaged(f"the content of {piece.part} and its checksums differ")
    return data


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """[…] -> its bytes in row-major order."""
    flat = tensor.detach().contiguous().view(math.prod(tensor.shape))
    return flat.view(torch.uint8).numpy().data
