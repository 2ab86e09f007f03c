"""How long a run is and how much of it a step takes: in samples seen by all ranks together."""

import math
from dataclasses import dataclass
from typing import Self

from pipeline.checks import check_at_least, parse_count
from shards import UsageError

DEFAULT_BATCH, DEFAULT_EPOCHS = 64, 10


@dataclass(frozen=True, kw_only=True)
class LengthFlags:
    """How long a run is, and how large its batches are."""

    batch_size: int | None = None
    """Samples in a batch of each process (64 unless --global-batch-size is given)."""
    global_batch_size: int | None = None
    """Samples in a batch of all processes together, in place of --batch-size."""
    epochs: int | None = None
    """Passes over the training data (10 unless --samples or --steps is given); the learning rate goes its
    whole way over them.
    """
    samples: str | None = None
    """Samples to see in place of --epochs, such as 100M; the learning rate goes its whole way over them."""
    steps: int | None = None
    """Stop after this many optimiser steps, of the run's first batch size; without --epochs and --samples,
    the learning rate goes its whole way over these.
    """

    def check_length(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict each other."""
        check_at_least(self, batch_size=1, global_batch_size=1, epochs=1, steps=1)
        if self.batch_size and self.global_batch_size:
            raise UsageError(
                "--batch-size and --global-batch-size say the same thing twice: give one of them"
            )
        if self.samples is not None:
            parse_count("--samples", self.samples)
            if self.epochs:
                raise UsageError("--epochs and --samples say the same thing twice: give one of them")

    def plan(self, *, epoch: int, global_batch: int, step_samples: int, start: int) -> "RunLength":
        """The length that the flags stand for.

        epoch: samples of the data set. step_samples: samples of a step of --steps. start: where this process
        begins.
        """
        full = None
        if self.samples is not None:
            full = parse_count("--samples", self.samples)
        elif self.epochs or not self.steps:
            full = (self.epochs or DEFAULT_EPOCHS) * epoch
        return RunLength.plan(
            epoch=epoch,
            global_batch=global_batch,
            full=full,
            most=None if self.steps is None else self.steps * step_samples,
            start=start,
        )


@dataclass(frozen=True)
class RunLength:
    """Where a run stands and where it ends, in samples seen by all ranks together."""

    epoch: int  # samples in the data set
    start: int  # where this process begins
    stop: int  # the end of the last batch
    horizon: int  # where the learning rate has gone its whole way
    global_batch: int

    @classmethod
    def plan(
        cls, *, epoch: int, global_batch: int, full: int | None, most: int | None, start: int = 0
    ) -> Self:
        """A run of `full` samples that stops after `most` of them; one of the two may be None.

        It ends with the first batch that reaches the nearer one. The learning rate goes its way over the
        full length, so stopping early leaves it as it would have been; over `most` where no other is given.
        """
        end = min(length for length in (full, most) if length is not None)
        batches = math.ceil(max(0, end - start) / global_batch)
        horizon = full if full is not None else end
        return cls(epoch, start, start + batches * global_batch, horizon, global_batch)

    def passes(self, samples_seen: int, period: int) -> int:
        """How many periods of so many samples are complete, if the batch that ended at `samples_seen`
        completed one; else 0.
        """
        complete = samples_seen // period
        return complete if complete > (samples_seen - self.global_batch) // period else 0

    def ends_epoch(self, samples_seen: int) -> int:
        """How many epochs are complete, if the batch that ended at `samples_seen` completed one; else 0."""
        return self.passes(samples_seen, self.epoch)
