"""What becomes of gradients before the optimiser uses them: their norm, and its limit."""

from collections.abc import Iterable

import torch
from torch import nn


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
    """Scale gradients down to a norm of `limit` where theirs, of all together, is above it; returns what it
    was, a scalar on their device. Nothing waits for a GPU.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if limit is not None:
        nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm
