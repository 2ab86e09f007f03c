"""Which of a run's checkpoints stay: the newest ones, and one every so often for good."""

from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_KEEP_LAST = 3


@dataclass(frozen=True)
class Kept:
    """A checkpoint that the run wrote."""

    name: str
    step: int
    samples_seen: int
    for_good: bool = False
    """Whether it is one of those that are never deleted."""


@dataclass(frozen=True)
class Retention:
    """How many of the newest checkpoints stay, and how often one stays for good."""

    keep_last: int = DEFAULT_KEEP_LAST
    """How many of the newest ones; 0: all."""
    keep_every: int | None = None
    """Samples from one that stays for good to the next."""

    def stays_for_good(self, samples_seen: int, samples_before: int) -> bool:
        """Whether a checkpoint is the first at or after a multiple of `keep_every` samples.

        samples_before: of the checkpoint before it; 0 if it is the first.
        """
        if self.keep_every is None:
            return False
        return samples_seen // self.keep_every > samples_before // self.keep_every

    def too_many(self, checkpoints: Sequence[Kept]) -> list[Kept]:
        """Those to delete, of all in the order of their steps."""
        older = checkpoints[: -self.keep_last] if self.keep_last else ()
        return [checkpoint for checkpoint in older if not checkpoint.for_good]
