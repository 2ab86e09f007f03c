"""What becomes of gradients before the optimiser uses them: the limit of their norm, and fp16's scale."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def clip_gradients(parameters: Iterable[nn.Parameter], norm: torch.Tensor, limit: float) -> None:
    """Scale gradients of this norm down to one of `limit` where it is above. Nothing waits for a GPU."""
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)


class AgreeingScaler(torch.amp.GradScaler):
    """A GradScaler of processes that have different parts of the gradients: what one of them finds to be too
    large is so for all.
    """

    def _unscale_grads_(self, *arguments: Any, **keywords: Any) -> dict[torch.device, torch.Tensor]:
        found = super()._unscale_grads_(*arguments, **keywords)
        for verdict in found.values():
            dist.all_reduce(verdict, dist.ReduceOp.MAX)
        return found
