"""What becomes of gradients before the optimiser uses them: their norm, and its limit."""

from collections.abc import Iterable

import torch
from torch import nn


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The norm of all gradients together, a scalar on their device. Nothing waits for a GPU."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def clip_gradients(parameters: Iterable[nn.Parameter], norm: torch.Tensor, limit: float) -> None:
    """Scale gradients of this norm down to one of `limit` where it is above. Nothing waits for a GPU."""
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
