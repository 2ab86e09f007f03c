"""Which process this is among how many: read from the environment, as torchrun sets it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from shards import UsageError


@dataclass(frozen=True)
class Topology:
    """A process's place: its rank among all processes, and among those of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.rank == 0

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Topology":
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without them, a single process."""

        def number(name: str, default: int) -> int:
            try:
                return int(environment.get(name, default))
            except ValueError:
                raise UsageError(f"{name}={environment[name]!r} in the environment is not a number") from None

        world_size = number("WORLD_SIZE", 1)
        rank = number("RANK", 0)
        if not 0 <= rank < world_size:
            raise UsageError(
                f"RANK={rank} and WORLD_SIZE={world_size} in the environment contradict each other"
            )
        return Topology(rank, world_size, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1))

    def default_workers(self) -> int:
        """Decoding threads for each process: this machine's cores, shared among its processes."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)


def launched_as_group(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (torchrun) started this process among peers that it can talk to."""
    return "MASTER_ADDR" in environment and "RANK" in environment
