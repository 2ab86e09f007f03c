"""Which reader this is: its rank among the processes, and its number among the DataLoader workers of one."""

import os
import sys

from shards.errors import UsageError


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size): as given; else those of torch.distributed, if it is initialised; else of the
    environment.

    Raises UsageError where they contradict each other.
    """
    if rank is None or world_size is None:
        found_rank, found_size = _distributed() or _environment()
        rank = found_rank if rank is None else rank
        world_size = found_size if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} of {world_size} processes: ranks count from 0 up to their number")
    return rank, world_size


def find_worker() -> tuple[int | None, int]:
    """(number of this DataLoader worker, how many there are); (None, 0) in a process that is none."""
    torch_data = sys.modules.get("torch.utils.data")  # no DataLoader without it
    info = torch_data.get_worker_info() if torch_data else None
    return (info.id, info.num_workers) if info else (None, 0)


def _distributed() -> tuple[int, int] | None:
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def _environment() -> tuple[int, int]:
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise UsageError(f"{name}={value!r} in the environment is not a number")
        found.append(int(value))
    return found[0], found[1]
