"""A model without its tensors' content: to count what it computes, or to build another like it."""

import copy

import torch
from torch import nn

from pmc_clip import PMCCLIP


def outline_of(model: PMCCLIP) -> PMCCLIP:
    """A copy on the meta device, locked as the model is; it takes no memory to make."""
    memo: dict[int, torch.Tensor] = {
        id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()
    }
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    return copy.deepcopy(model, memo)
