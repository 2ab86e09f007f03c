"""In what form a run writes its checkpoints: one file by the main process, or a folder by all of them."""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from pipeline.checkpoint import Checkpoint
from pipeline.checkpointing.places import BEST, BEST_PARTS, checkpoint_name, parts_name, point_at_best
from pipeline.checkpointing.spread import as_whole
from shards import Folder


class Form(Protocol):
    """What a saver must know of the form."""

    def name(self, step: int) -> str:
        """What a checkpoint is called in its folder."""

    def write(self, checkpoint: Checkpoint, folder: Folder) -> str:
        """Write one, on the CPU, and let `latest` name it; its address. DataError where storage refuses."""

    def keep_best(self, step: int, folder: Folder) -> None:
        """Let that of a step be found as the best."""


class OneFile:
    """A file `step-XXXXXXXX.pt`. The best is a second name of it, `best.pt`, and outlives the first."""

    def name(self, step: int) -> str:
        """As the class says."""
        return checkpoint_name(step)

    def write(self, checkpoint: Checkpoint, folder: Folder) -> str:
        """By this process alone."""
        return checkpoint.save(folder)

    def keep_best(self, step: int, folder: Folder) -> None:
        """Give the file its second name."""
        folder.copy(checkpoint_name(step), BEST)
        folder.delete(BEST_PARTS)


class InParts:
    """A folder `step-XXXXXXXX`, of which each process writes a part: all must save the same steps. A file
    `best` names the best of them, which stays as long as it is.

    whole_shapes: of the tensors of which each process has a part, by name in `Checkpoint.tensors`.
    """

    def __init__(self, whole_shapes: Mapping[str, torch.Size]) -> None:
        self._whole_shapes = whole_shapes
        # Beside the one that trains, for the threads that write.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)  # to which every process belongs
        self._group, self._mesh = group, DeviceMesh.from_group(group, "cpu")

    def name(self, step: int) -> str:
        """As the class says."""
        return parts_name(step)

    def write(self, checkpoint: Checkpoint, folder: Folder) -> str:
        """By all processes together; DataError for all of them where one meets it."""
        whole = {
            place: as_whole(tensor, self._whole_shapes[place], self._mesh)
            for place, tensor in checkpoint.tensors().items()
            if place in self._whole_shapes
        }
        return checkpoint.save_parts(folder, whole, self._group)

    def keep_best(self, step: int, folder: Folder) -> None:
        """Name it."""
        point_at_best(folder, step)
