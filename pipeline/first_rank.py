"""Decisions that the first process makes for all of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from pipeline.topology import Topology
from shards import DataError

Result = TypeVar("Result")


def decided_by_first(topology: Topology, decide: Callable[[], Result]) -> Result:
    """What `decide` returns on the first rank, on every rank; or the DataError it raised there."""
    answer: list[Any] = [None]
    if topology.is_main:
        try:
            answer[0] = decide()
        except DataError as error:
            answer[0] = error
    if topology.world_size > 1:
        dist.broadcast_object_list(answer, 0)
    if isinstance(answer[0], DataError):
        raise answer[0]
    result: Result = answer[0]
    return result
