"""What a checkpoint holds, written whole or not at all, and read again."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch

from pipeline.checkpointing.places import LATEST, checkpoint_name, follow_latest, local_file
from pipeline.checkpointing.sealed_file import Damaged, check_seal, write_sealed
from pmc_clip import ModelError
from pmc_clip.checkpoint import load_torch_file
from shards import DataError, Folder, UsageError

FORMAT_VERSION = 1


class DamagedCheckpoint(DataError):
    """A checkpoint file is not what was written."""


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

    def save(self, folder: Folder) -> str:
        """Write `step-XXXXXXXX.pt` into a folder, then point `latest` at it; its address. DataError where the
        storage refuses: what was there before is untouched then.
        """
        name = checkpoint_name(self.step)
        content = {"format_version": FORMAT_VERSION, **vars(self), "data": vars(self.data)}
        try:
            folder.abort_uploads([name])
            with folder.create(name) as file:
                write_sealed(content, file.write)
            folder.write(LATEST, f"{name}\n".encode())
        except DataError as error:
            raise DataError(f"the checkpoint of step {self.step:,} could not be written: {error}") from error
        return folder.locate(name)

    @classmethod
    def load(cls, address: str) -> Self:
        """Read a checkpoint file, or the one that a `latest` file names. Raises UsageError or DataError."""
        checkpoint = cls.read(address := follow_latest(address))
        if checkpoint is None:
            raise UsageError(
                f"{address}: not a checkpoint of pipeline.train (format version {FORMAT_VERSION})"
            )
        return checkpoint

    @classmethod
    def read(cls, address: str) -> Self | None:
        """Read a file; None where it holds something else than a run's checkpoint of this format version.

        DamagedCheckpoint where its bytes are not those that were written.
        """
        with local_file(address) as path:
            try:
                with open(path, "rb") as file:
                    check_seal(file)
                content = load_torch_file(path)
            except (Damaged, ModelError) as error:
                reason = str(error).removeprefix(f"{path}: ")
                raise DamagedCheckpoint(
                    f"{address}: {reason}; if it is a run's, --resume auto takes the one before it"
                ) from error
        if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
            return None
        try:
            return cls(**{**content, "data": DataState(**content["data"])})
        except (TypeError, KeyError) as error:
            raise UsageError(
                f"{address}: not a checkpoint of this version of pipeline.train ({error})"
            ) from error
