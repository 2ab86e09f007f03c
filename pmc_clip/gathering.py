"""What the losses need from other ranks: their features, with the way back for gradients, and their ids."""

from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """The processes whose batches make up the global batch; just this one where there is no process group.

    everybody: False: just this one in any case.
    """

    def __init__(self, everybody: bool = True):
        together = everybody and dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if together else 1
        self.own = dist.get_rank() if together else 0

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """[local, …] of every rank -> [global, …] in order of rank. Every rank brings equally many.

        The way back sums over the ranks what their losses owe to a value.
        """
        return values if self.count == 1 else _GatherWithGradient.apply(values)


class _GatherWithGradient(torch.autograd.Function):
    """[local, …] -> [global, …]; the way back is a sum over the ranks of what each owes to these rows."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        gradient = gradient.contiguous()
        own = gradient.chunk(world)[rank]
        if dist.get_backend() == "nccl":
            own = torch.empty_like(own)
            dist.reduce_scatter_tensor(own, gradient)
            return own
        # gloo has no reduce_scatter on tensors of all devices.
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world)[rank]
