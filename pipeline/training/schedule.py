"""The learning rate: a pure function of samples seen, and its flags."""

import math
from dataclasses import dataclass

from pipeline.checks import check_at_least
from shards import UsageError


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


@dataclass(frozen=True, kw_only=True)
class ScheduleFlags:
    """How the learning rate goes."""

    lr: float = 1e-4
    """Peak learning rate."""
    warmup: int | None = None
    """Optimiser steps of linear warm-up; without it, a tenth of the run but at most 10,000."""

    def check_schedule(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, warmup=0)
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr {self.lr}: it must be above 0")

    def schedule(self, horizon: int, step_samples: int) -> CosineSchedule:
        """The schedule of a run whose learning rate reaches its end at `horizon` samples.

        step_samples: the samples of one step of --warmup.
        """
        steps = min(10_000, horizon // 10 // step_samples) if self.warmup is None else self.warmup
        return CosineSchedule(self.lr, steps * step_samples, horizon)
