"""How long a run is and what its learning rate is: pure functions of samples seen."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up to `peak`, then half a cosine down to zero. Lengths in samples."""

    peak: float
    warmup: int
    total: int

    def at(self, samples_seen: int) -> float:
        """The learning rate of the step that begins when `samples_seen` samples have been seen."""
        if samples_seen < self.warmup:
            return self.peak * (samples_seen + 1) / self.warmup
        done = (samples_seen - self.warmup) / max(1, self.total - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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
