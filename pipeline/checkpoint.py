"""Checkpoints of a run: written whole or not at all, found again by `latest` or by path."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from pmc_clip import ModelError
from pmc_clip.checkpoint import load_torch_file
from shards import DataError, UsageError
from shards.storage import write_atomically

FORMAT_VERSION = 1
LATEST = "latest"
_NAME = re.compile(r"step-(\d{8,})\.pt")


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

    def save(self, folder: Path) -> Path:
        """Write `step-XXXXXXXX.pt` into `folder`, then point `latest` at it; DataError where the disk
        refuses.
        """
        path = folder / f"step-{self.step:08d}.pt"
        temporary = folder / f".{path.name}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = {"format_version": FORMAT_VERSION, **vars(self), "data": vars(self.data)}
            with open(temporary, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            write_atomically(folder / LATEST, f"{path.name}\n".encode())
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            temporary.unlink(missing_ok=True)
            raise DataError(
                f"{path}: the checkpoint could not be written ({error}); earlier checkpoints are untouched: "
                "make room and start the same command with --resume auto"
            ) from error
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint file, or the one that a `latest` file names. Raises UsageError or DataError."""
        path = resolve(path)
        checkpoint = cls.read(path)
        if checkpoint is None:
            raise UsageError(f"{path}: not a checkpoint of pipeline.train (format version {FORMAT_VERSION})")
        return checkpoint

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a file; None where it holds something else than a run's checkpoint of this format version."""
        if not path.is_file():
            raise UsageError(f"{path}: no such checkpoint")
        try:
            content = load_torch_file(path)
        except ModelError as error:
            raise DataError(
                f"{error}; if it is a run's, delete it, and --resume auto takes the one before it"
            ) from error
        if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
            return None
        try:
            return cls(**{**content, "data": DataState(**content["data"])})
        except (TypeError, KeyError) as error:
            raise UsageError(
                f"{path}: not a checkpoint of this version of pipeline.train ({error})"
            ) from error


def resolve(path: Path) -> Path:
    """The checkpoint file that `path` means: itself, or what a `latest` file names."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a checkpoint file in it, or its {LATEST!r}")
    return Path(follow_latest(str(path)))


def follow_latest(name: str) -> str:
    """The checkpoint that a `latest` file, or a folder's, names; any other path, tag or address as it is."""
    path = Path(name)
    for latest in (path, path / LATEST):
        if latest.name == LATEST and latest.is_file():
            return str(latest.with_name(latest.read_text().strip()))
    return name


def newest(folder: Path) -> Path | None:
    """The newest checkpoint file of a folder, or None. A half-written one is never among them."""
    found = [entry for entry in folder.glob("step-*.pt") if _NAME.fullmatch(entry.name)]
    return max(found, key=lambda entry: int(_NAME.fullmatch(entry.name)[1]), default=None)  # type: ignore[index]
