"""The learning rate: a pure function of samples seen, and its flags."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.checks import check_at_least
from shards import UsageError

DEFAULT_RESTARTS, DEFAULT_RESTART_DECAY = 4, 0.1


class Schedule(Protocol):
    """A learning rate that follows from where a run stands."""

    @property
    def peak(self) -> float:
        """The highest value."""

    def at(self, samples_seen: int) -> float:
        """The learning rate of the step that begins when `samples_seen` samples have been seen."""


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
class RestartingSchedule:
    """The same in `cycles` equal parts, each with a warm-up of its own and a peak `decay` times that before
    (Loshchilov & Hutter 2016, "SGDR"; the lowering peak is the published trainer's). Lengths in samples.
    """

    peak: float
    warmup: int
    total: int
    cycles: int
    decay: float

    def at(self, samples_seen: int) -> float:
        """The learning rate of the step that begins when `samples_seen` samples have been seen."""
        length = max(1, self.total // self.cycles)
        cycle = min(samples_seen // length, self.cycles - 1)
        one = CosineSchedule(self.peak * self.decay**cycle, self.warmup, length)
        return one.at(samples_seen - cycle * length)


@dataclass(frozen=True)
class ConstantSchedule:
    """Linear warm-up to `peak`, which stays. Lengths in samples."""

    peak: float
    warmup: int

    def at(self, samples_seen: int) -> float:
        """The learning rate of the step that begins when `samples_seen` samples have been seen."""
        return self.peak * min(1.0, (samples_seen + 1) / max(1, self.warmup))


@dataclass(frozen=True, kw_only=True)
class ScheduleFlags:
    """How the learning rate goes."""

    lr: float = 1e-4
    """Peak learning rate."""
    warmup: int | None = None
    """Optimiser steps of linear warm-up, of the run's first batch size; without it, a tenth of the run (of a
    cycle, with restarts) but at most 10,000.
    """
    scheduler: Literal["cosine", "cosine-restarts", "const"] = "cosine"
    """How the learning rate goes after the warm-up: cosine, down to zero; cosine-restarts, so several times
    over; const, not at all.
    """
    restarts: int | None = None
    """Cycles of --scheduler cosine-restarts, each with its own warm-up; without it, 4."""
    restart_decay: float | None = None
    """What the peak of each cycle of --scheduler cosine-restarts is times that of the one before; without it,
    0.1, as published.
    """

    def check_schedule(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict each other."""
        check_at_least(self, warmup=0, restarts=1)
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr {self.lr}: it must be above 0")
        if self.restart_decay is not None and not 0 < self.restart_decay <= 1:
            raise UsageError(f"--restart-decay {self.restart_decay}: it must lie above 0 and at most at 1")
        if self.scheduler != "cosine-restarts" and (self.restarts or self.restart_decay):
            raise UsageError(
                f"--restarts and --restart-decay belong to --scheduler cosine-restarts, not {self.scheduler}"
            )

    def warmup_samples(self, horizon: int, step_samples: int) -> int:
        """The length of a warm-up, where the learning rate goes its whole way in `horizon` samples and a step
        of --warmup is `step_samples` of them.
        """
        if self.warmup is not None:
            return self.warmup * step_samples
        cycles = (self.restarts or DEFAULT_RESTARTS) if self.scheduler == "cosine-restarts" else 1
        return min(10_000 * step_samples, horizon // cycles // 10)

    def schedule(self, horizon: int, warmup: int) -> Schedule:
        """The schedule that the flags stand for; lengths in samples."""
        if self.scheduler == "const":
            return ConstantSchedule(self.lr, warmup)
        if self.scheduler == "cosine":
            return CosineSchedule(self.lr, warmup, horizon)
        return RestartingSchedule(
            self.lr,
            warmup,
            horizon,
            self.restarts or DEFAULT_RESTARTS,
            self.restart_decay or DEFAULT_RESTART_DECAY,
        )
