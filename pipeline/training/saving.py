"""Checkpoints of a run: their flags, and what goes into one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint, DataState
from pipeline.checks import check_at_least
from pipeline.run_log import say
from pipeline.training.trainer import Trainer
from pmc_clip import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SavingFlags:
    """When a run saves, and what it goes on from."""

    save_every: int | None = None
    """Optimiser steps between checkpoints; without it, one at the end of every epoch."""
    resume: str | None = None
    """`auto` (the run's newest checkpoint, or a fresh start) or the path of a checkpoint."""

    def check_saving(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, save_every=1)


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints into a folder: what the trainer holds, beside what stays the same over the run."""

    folder: Path
    data: DataState
    model: ModelConfig
    tokenizer: str
    config: dict[str, Any]

    def save(self, trainer: Trainer) -> None:
        """Save the run as it stands; on the main process only."""
        checkpoint = Checkpoint(
            **trainer.state(),
            data=self.data,
            model=self.model.to_dict(),
            tokenizer=self.tokenizer,
            config=self.config,
        )
        say(f"saved {checkpoint.save(self.folder)}")
