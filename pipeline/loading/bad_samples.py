"""What a run does about samples that are damaged or cannot be decoded, and when it has had enough of them."""

from dataclasses import dataclass, field
from typing import Literal

from shards import DataError

_REMEDY = "'python -m pipeline.shard' checks every image of the shards that it writes"


@dataclass(frozen=True)
class BadSamplePolicy:
    """What becomes of bad samples: `substitute` lets another of their block stand in, `leave_out` gives their
    places in the batch up, `fail` stops the run.

    share: of the samples seen, how many may be bad before the run stops; below `least` bad samples it never
    does, unless the share is 0.
    """

    action: Literal["substitute", "leave_out", "fail"] = "substitute"
    share: float = 0.01
    least: int = 10

    def exceeded(self, bad: int, seen: int) -> bool:
        """Whether `bad` out of `seen` is too many."""
        return bad > (max(self.least, self.share * seen) if self.share else 0)


@dataclass
class BadSamples:
    """The bad samples of a run so far, in the order of the stream."""

    policy: BadSamplePolicy
    substituted: int = 0
    reasons: list[str] = field(default_factory=list)  # one line for each sample, when first met
    _numbers: set[int] = field(default_factory=set)

    def add(self, number: int, reason: str) -> None:
        """Count one that was substituted; a sample is named once, however often it comes."""
        self.substituted += 1
        if number not in self._numbers:
            self._numbers.add(number)
            self.reasons.append(reason)

    def check(self, seen: int) -> None:
        """DataError where there are too many among the `seen` samples."""
        if self.policy.exceeded(self.substituted, seen):
            raise DataError(
                f"{self.substituted:,} of {seen:,} samples are damaged or could not be decoded, more than "
                f"--max-bad-samples {100 * self.policy.share:g}% allows, the last: {self.reasons[-1]}; "
                f"{_REMEDY}"
            )


def failure(reason: str, policy: BadSamplePolicy) -> DataError:
    """The error for a bad sample that nothing stands in for."""
    if policy.action == "fail":
        return DataError(f"{reason}; --on-bad-sample substitute lets another sample stand in for it")
    return DataError(f"{reason}; no other sample can stand in for it here: {_REMEDY}")
