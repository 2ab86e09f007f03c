"""What all ranks have, put together in the order of the ranks."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.topology import Topology

Value = TypeVar("Value")


def gather(value: Value, topology: Topology) -> list[Value]:
    """The value of every rank, on every rank."""
    if topology.world_size == 1:
        return [value]
    values: list[Value | None] = [None] * topology.world_size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_rows(rows: torch.Tensor, topology: Topology) -> torch.Tensor:
    """The rows [n, …] of all ranks, on every rank."""
    return torch.cat(gather(rows, topology))


def gather_list(values: Sequence[Value], topology: Topology) -> list[Value]:
    """The items of all ranks' lists, on every rank."""
    return [value for part in gather(values, topology) for value in part]
