"""What the first process decides or has for all of them."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import torch
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


@torch.no_grad()
def broadcast_from_first(tensors: Sequence[torch.Tensor]) -> None:
    """Let these be on every rank what they are on the first; every rank must call it, with as many. They are
    sent together, since most are small.
    """

    def kind(tensor: torch.Tensor) -> str:
        return str(tensor.dtype)

    for _, group in groupby(sorted(tensors, key=kind), kind):
        alike = list(group)
        together = torch.cat([tensor.flatten() for tensor in alike])
        dist.broadcast(together, 0)
        pieces = together.split([tensor.numel() for tensor in alike])
        torch._foreach_copy_(alike, [p.view_as(t) for p, t in zip(pieces, alike, strict=True)])
