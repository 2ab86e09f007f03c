"""What a checkpoint holds, written whole or not at all, and read again: one file, or a folder of parts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
import torch.distributed as dist

from pipeline.checkpointing.parts import Parts, write_parts
from pipeline.checkpointing.places import (
    LATEST,
    checkpoint_name,
    follow_latest,
    is_in_parts,
    local_file,
    parts_name,
)
from pipeline.checkpointing.sealed_file import Damaged, check_seal, write_sealed
from pmc_clip import ModelError
from pmc_clip.checkpoint import load_torch_file
from shards import DataError, Folder, UsageError

FORMAT_VERSION = 1


class DamagedCheckpoint(DataError):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class DataState:
    """What the position in the data means nothing without: fingerprint, seed and lanes; and of a mixture its
    data sets, each with `name`, `fingerprint` and `lanes`.
    """

    name: str
    fingerprint: str
    seed: int
    lanes: int
    sources: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on bit for bit.

    The randomness of a step follows from (seed, samples seen, rank), so no generator states are kept.
    """

    state_dict: dict[str, torch.Tensor]  # the model's weights, without a wrapper's prefix
    optimizer: dict[str, Any]
    step: int  # optimiser steps taken
    samples_seen: int  # by all ranks together: the position in the stream
    global_batch: int
    data: DataState
    model: dict[str, Any]  # the model's config
    tokenizer: str  # fingerprint of the vocabulary
    config: dict[str, Any]  # the run's config, as flags
    scaler: dict[str, Any] = field(default_factory=dict)  # of the loss, in a run in fp16
    average: dict[str, torch.Tensor] = field(default_factory=dict)  # of the weights, in a run with --ema
    skipped_steps: int = 0  # whose loss or gradient was not finite
    parts: Parts | None = None  # that its tensors are still in; they are on the meta device, then

    def save(self, folder: Folder) -> str:
        """Write `step-XXXXXXXX.pt` into a folder, then point `latest` at it; its address. DataError where the
        storage refuses: what was there before is untouched then.
        """
        name = checkpoint_name(self.step)
        content = {"format_version": FORMAT_VERSION, **self._content(), "data": vars(self.data)}
        try:
            folder.abort_uploads([name])
            with folder.create(name) as file:
                write_sealed(content, file.write)
            folder.write(LATEST, f"{name}\n".encode())
        except DataError as error:
            raise self._not_written(error) from error
        return folder.locate(name)

    def save_parts(self, folder: Folder, whole: Mapping[str, torch.Tensor], group: dist.ProcessGroup) -> str:
        """The same as a folder `step-XXXXXXXX` that all processes of a group write together.

        whole: by their names in `tensors()`, those of which each process has a part, as DTensors.
        """
        name = parts_name(self.step)
        values = {**self._content(), "data": asdict(self.data), "state_dict": {}, "average": {}}
        values["optimizer"] = {**self.optimizer, "state": {}}
        try:
            write_parts(folder, name, values, {**self.tensors(), **whole}, group=group, latest=LATEST)
        except DataError as error:
            raise self._not_written(error) from error
        return folder.locate(name)

    def _content(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "parts"}

    def _not_written(self, error: DataError) -> DataError:
        return DataError(f"the checkpoint of step {self.step:,} could not be written: {error}")

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of its tensors, by their places: `state_dict/NAME`, `average/NAME`, `optimizer/NUMBER/KEY`."""
        moments = {
            f"optimizer/{number}/{key}": tensor
            for number, state in self.optimizer.get("state", {}).items()
            for key, tensor in state.items()
        }
        weights = {f"state_dict/{name}": tensor for name, tensor in self.state_dict.items()}
        return weights | {f"average/{name}": tensor for name, tensor in self.average.items()} | moments

    def weights(self, *, average: bool = False) -> dict[str, torch.Tensor]:
        """The model's weights, or their average, in memory."""
        weights = self.average if average else self.state_dict
        if self.parts is None:
            return weights
        kind = "average" if average else "state_dict"
        found = {name: torch.empty_like(tensor, device="cpu") for name, tensor in weights.items()}
        self.read_parts({f"{kind}/{name}": tensor for name, tensor in found.items()})
        return found

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The same checkpoint with these in place of its own, in memory."""
        state_dict: dict[str, torch.Tensor] = {}
        average: dict[str, torch.Tensor] = {}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for place, tensor in tensors.items():
            kind, _, name = place.partition("/")
            if kind == "optimizer":
                number, _, key = name.partition("/")
                moments.setdefault(int(number), {})[key] = tensor
            else:
                (state_dict if kind == "state_dict" else average)[name] = tensor
        optimizer = {**self.optimizer, "state": moments} if self.optimizer else {}
        return replace(self, state_dict=state_dict, average=average, optimizer=optimizer, parts=None)

    @classmethod
    def load(cls, address: str, *, outline: bool = False) -> Self:
        """Read a checkpoint, or the one that a `latest` file names. Raises UsageError or DataError.

        outline: leave the tensors of one in parts where they are (`parts`).
        """
        checkpoint = cls.read(address := follow_latest(address), outline=outline)
        if checkpoint is None:
            raise UsageError(
                f"{address}: not a checkpoint of pipeline.train (format version {FORMAT_VERSION})"
            )
        return checkpoint

    @classmethod
    def read(cls, address: str, *, outline: bool = False) -> Self | None:
        """Read a file or a folder; None where it holds something else than a run's checkpoint of this format
        version.

        DamagedCheckpoint where its bytes are not those that were written.
        """
        if is_in_parts(address):
            return cls._read_parts(address, outline=outline)
        with local_file(address) as path:
            try:
                with open(path, "rb") as file:
                    check_seal(file)
                content = load_torch_file(path)
            except (Damaged, ModelError) as error:
                raise _damaged(address, str(error).removeprefix(f"{path}: ")) from error
        if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
            return None
        return cls._of(address, content)

    @classmethod
    def _read_parts(cls, address: str, *, outline: bool) -> Self | None:
        try:
            parts = Parts.open(address)
            if parts is None:
                return None
            outlined = cls._of(address, parts.values).with_tensors(parts.outlines())
            if outline:
                return replace(outlined, parts=parts)
            tensors = {
                name: torch.empty_like(tensor, device="cpu") for name, tensor in outlined.tensors().items()
            }
            parts.read(tensors)
        except Damaged as error:
            raise _damaged(address, str(error)) from error
        return outlined.with_tensors(tensors)

    @classmethod
    def _of(cls, address: str, content: dict[str, Any]) -> Self:
        try:
            return cls(**{**content, "data": DataState(**content["data"])})
        except (TypeError, KeyError) as error:
            raise UsageError(
                f"{address}: not a checkpoint of this version of pipeline.train ({error})"
            ) from error

    def read_parts(self, targets: Mapping[str, torch.Tensor]) -> None:
        """Fill tensors, by their names in `tensors()`, with what the parts hold: whole ones, or DTensors of
        which this process has a part. DamagedCheckpoint, DataError.
        """
        assert self.parts is not None
        try:
            self.parts.read(targets)
        except Damaged as error:
            raise _damaged(self.parts.folder.address, str(error)) from error


def check_whole(address: str) -> None:
    """Read a checkpoint to its end; DamagedCheckpoint where its bytes are not those that were written."""
    if not is_in_parts(address):
        Checkpoint.read(address)
    elif checkpoint := Checkpoint.read(address, outline=True):
        assert checkpoint.parts is not None
        try:
            checkpoint.parts.check()
        except Damaged as error:
            raise _damaged(address, str(error)) from error


def _damaged(address: str, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{address}: {reason}; if it is a run's, --resume auto takes the one before it")
