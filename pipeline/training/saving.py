"""Checkpoints of a run: their flags, and what goes into one."""

from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint import Checkpoint, DataState
from pipeline.checkpointing.retention import DEFAULT_KEEP_LAST, Retention
from pipeline.checkpointing.saver import CheckpointSaver
from pipeline.checks import check_at_least
from pipeline.training.trainer import Trainer
from pmc_clip import ModelConfig
from shards import UsageError


@dataclass(frozen=True, kw_only=True)
class SavingFlags:
    """When a run saves, what it keeps, and what it goes on from."""

    save_every: int | None = None
    """Optimiser steps between checkpoints, of the run's first batch size."""
    save_frequency: int | None = None
    """Epochs between checkpoints; without it, 1 unless --save-every is given."""
    keep_last: int = DEFAULT_KEEP_LAST
    """How many of the newest checkpoints are kept; 0: all of them."""
    keep_every: int | None = None
    """Epochs from one checkpoint that is kept for good to the next: the first at or after each so many."""
    save_most_recent: bool = False
    """Keep the newest checkpoint only, as --keep-last 1 does."""
    resume: str | None = None
    """`auto` (the run's newest checkpoint that is whole, or a fresh start), or the path or address of a
    checkpoint.
    """
    resume_model_only: bool = False
    """Take the weights alone from the checkpoint of --resume, and begin a new run with them, as --pretrained
    does.
    """

    def check_saving(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, save_every=1, save_frequency=1, keep_last=0, keep_every=1)
        if self.save_most_recent and self.keep_last not in (1, DEFAULT_KEEP_LAST):
            raise UsageError(f"--save-most-recent contradicts --keep-last {self.keep_last}: give one of them")

        if self.resume_model_only and self.resume in (None, "auto"):
            raise UsageError(
                "--resume-model-only needs the checkpoint whose weights it takes: give --resume PATH"
            )

    def save_periods(self, epoch: int, step_samples: int) -> list[int]:
        """Samples between checkpoints, of each kind that the flags ask for."""
        periods = [] if self.save_every is None else [self.save_every * step_samples]
        if self.save_frequency or not self.save_every:
            periods.append((self.save_frequency or 1) * epoch)
        return periods

    def retention(self, epoch: int) -> Retention:
        """Which checkpoints stay; epoch: samples of the training data."""
        every = None if self.keep_every is None else self.keep_every * epoch
        return Retention(1 if self.save_most_recent else self.keep_last, every)


@dataclass(frozen=True)
class Saver:
    """Saves what the trainer holds, beside what stays the same over the run."""

    files: CheckpointSaver
    data: DataState
    model: ModelConfig
    tokenizer: str
    config: dict[str, Any]

    def beats_best(self, metric: str, value: float) -> bool:
        """Whether no validation before gave a better value."""
        return self.files.beats_best(metric, value, higher_is_better=not metric.endswith("_rank"))

    def keep_best(self, trainer: Trainer, metric: str, value: float) -> None:
        """Keep the run as it stands as the best."""
        self.save(trainer)
        self.files.keep_best(metric, value)

    def save(self, trainer: Trainer) -> None:
        """Save the run as it stands, unless it was saved so."""
        if self.files.saved_step == trainer.step:
            return
        self.files.save(
            Checkpoint(
                **trainer.state(),
                data=self.data,
                model=self.model.to_dict(),
                tokenizer=self.tokenizer,
                config=self.config,
            )
        )
