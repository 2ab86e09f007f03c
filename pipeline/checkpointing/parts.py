"""Checkpoints in parts, a folder each: written by all processes together, read by any number of them.

    step-00001500/
        part-00000.bin      what the first process holds of weights and moments
        part-00001.bin      …
        checkpoint.json     everything else, and where each tensor is; written last

They are written and read by torch.distributed.checkpoint, which finds the pieces that a process wants on
however many processes they were written.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from pipeline.checkpointing.description import Description
from pipeline.checkpointing.part_storage import DESCRIPTION, PartReader, PartWriter, check_pieces
from shards import DataError, Folder

_OWN = re.compile(r"part-\d{5}\.bin|\.(part-\d{5}\.bin|checkpoint\.json)\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True)
class Parts:
    """A whole checkpoint in parts: what it holds is known, its tensors are still where they are."""

    folder: Folder
    description: Description

    @classmethod
    def open(cls, address: str) -> Self | None:
        """Of a folder at a path or an address; None where there is none of this format version. Damaged."""
        folder = Folder(address)
        try:
            data = folder.read(DESCRIPTION)
        except (FileNotFoundError, NotADirectoryError):
            return None
        description = Description.from_bytes(data)
        return cls(folder, description) if description else None

    @property
    def values(self) -> dict[str, Any]:
        """What of the checkpoint is no tensor."""
        return self.description.values

    def outlines(self) -> dict[str, torch.Tensor]:
        """Tensors of the shapes and types of those that it holds, on the meta device."""
        return {name: tensor.outline() for name, tensor in self.description.tensors.items()}

    def check(self) -> None:
        """Read all of it; Damaged where it is not what was written."""
        check_pieces(
            self.folder, (piece for tensor in self.description.tensors.values() for piece in tensor.pieces)
        )

    def read(self, targets: Mapping[str, torch.Tensor]) -> None:
        """Fill tensors by their names: whole ones, or DTensors with this process's part. No other process is
        waited for. Damaged, DataError.
        """
        with warnings.catch_warnings(), _raised_plainly():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            distributed_checkpoint.load(
                dict(targets),
                storage_reader=PartReader(self.folder, self.description),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                no_dist=True,
            )


def write_parts(
    folder: Folder,
    name: str,
    values: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    group: dist.ProcessGroup,
    latest: str,
) -> None:
    """Write a checkpoint into a folder of this name, then point a file `latest` at it, all processes of a
    group together.

    tensors: on the CPU. DTensors of which each process has a part, or plain ones, of which the first
        process's is written.
    DataError on every process where one of them meets one; the folder is as it was before, then, but for
    what had that name.
    """
    own = Folder(folder.locate(name))
    writer = PartWriter(
        own,
        values,
        begin=lambda: delete_parts(folder, name),
        finished=lambda: folder.write(latest, f"{name}\n".encode()),
    )
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )
    try:
        with _raised_plainly():
            distributed_checkpoint.save(
                dict(tensors), storage_writer=writer, planner=planner, process_group=group
            )
    except DataError:
        if dist.get_rank(group) == 0:
            delete_parts(folder, name)
        raise


def delete_parts(folder: Folder, name: str) -> None:
    """Delete a checkpoint in parts, or what was left of one: nothing of it counts from the beginning on."""
    own = Folder(folder.locate(name))
    own.delete(DESCRIPTION)
    for file in own.names():
        if _OWN.fullmatch(file):
            own.delete(file)
    own.remove_if_empty()


@contextmanager
def _raised_plainly() -> Iterator[None]:
    """Within, what a process met in a job of torch.distributed.checkpoint is raised as it was."""
    try:
        yield
    except CheckpointException as error:
        met = [failure for failure, _ in error.failures.values()]
        raise next((one for one in met if not isinstance(one, DataError)), met[0]) from error
