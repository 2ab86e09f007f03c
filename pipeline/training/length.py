"""How long a run is and how much of it a step takes: in samples seen by all ranks together."""

import math
from dataclasses import dataclass
from typing import Self

from pipeline.checks import check_at_least
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
    """Passes over the training data (10 unless --steps is given); the learning rate falls to zero over them.
    """
    steps: int | None = None
    """Stop after this many optimiser steps; without --epochs, the learning rate falls to zero over these."""

    def check_length(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict each other."""
        check_at_least(self, batch_size=1, global_batch_size=1, epochs=1, steps=1)
        if self.batch_size and self.global_batch_size:
            raise UsageError(
                "--batch-size and --global-batch-size say the same thing twice: give one of them"
            )


@dataclass(frozen=True)
class RunLength:
    """Where a run stands and where it ends, in samples seen by all ranks together."""

    epoch: int  # samples in the data set
    start: int  # where this process begins
    stop: int  # the end of the last batch
    horizon: int  # where the learning rate reaches zero
    global_batch: int

    @classmethod
    def plan(
        cls,
        *,
        epoch: int,
        global_batch: int,
        epochs: int | None,
        steps: int | None,
        start: int = 0,
        step: int = 0,
    ) -> Self:
        """A run of `epochs` passes and at most `steps` optimiser steps, of which `step` were taken up to
        `start`.

        At least one of the two limits is given. It ends with the first batch that reaches the nearer one. The
        learning rate falls over the epochs, so stopping early by `steps` leaves it as it would have been;
        over the steps where no epochs are given.
        """
        by_epochs = math.inf if epochs is None else epochs * epoch
        by_steps = math.inf if steps is None else start + (steps - step) * global_batch
        batches = math.ceil(max(0, min(by_epochs, by_steps) - start) / global_batch)
        horizon = by_steps if epochs is None else by_epochs
        return cls(epoch, start, start + batches * global_batch, int(horizon), global_batch)

    def ends_epoch(self, samples_seen: int) -> int:
        """How many epochs are complete, if the batch that ended at `samples_seen` completed one; else 0."""
        complete = samples_seen // self.epoch
        return complete if complete > (samples_seen - self.global_batch) // self.epoch else 0
