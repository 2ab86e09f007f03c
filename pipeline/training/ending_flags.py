"""When a run ends before it is done: the flags."""

from dataclasses import dataclass

from pipeline.checks import check_at_least
from pipeline.device import DEFAULT_TIMEOUT


@dataclass(frozen=True, kw_only=True)
class EndingFlags:
    """What a run puts up with."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds that a process waits for another one before it takes it for lost and ends."""

    def check_ending(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, timeout=1)
