"""Contrastive loss over the global batch of all ranks, without the global matrix of logits on any of them."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    sample_ids: torch.Tensor | None = None,
    *,
    gather: bool = True,
) -> torch.Tensor:
    """Symmetric cross entropy of each pair against the global batch (CLIP, Radford et al. 2021).

    image_features, text_features: [local, D], of length 1; every rank brings equally many.
    logit_scale: scalar, what cosine similarities are multiplied by.
    sample_ids: [local] integers on the same device. Pairs with equal ids (one sample twice in a global
        batch) are never each other's negatives. None: all differ.
    gather: compare with the pairs of all ranks, where torch.distributed is initialised; else with these.

    Each rank returns the mean over its own pairs (float32 scalar) and holds [local, global] logits (the local
    loss of open_clip). The mean of the ranks' losses is the loss of the global batch in one process, and the
    ranks' mean gradients, as DistributedDataParallel takes them, are its gradients, `logit_scale` included:
    what other ranks' losses owe to a local feature comes back through the gather as a sum, which that mean
    divides by the number of ranks.
    """
    local = len(image_features)
    # Half precision would round logits of up to 100 by a quarter.
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = image_features.float(), text_features.float()
        all_images, all_texts, all_ids, rank = images, texts, sample_ids, 0
        if gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            rank = dist.get_rank()
            both = _GatherWithGradient.apply(torch.cat([images, texts], dim=1))  # one collective for the two
            all_images, all_texts = both.chunk(2, dim=1)
            all_ids = None if sample_ids is None else _gather(sample_ids)
        image_logits = logit_scale.float() * images @ all_texts.T  # [local, global]
        text_logits = logit_scale.float() * texts @ all_images.T
        targets = torch.arange(local, device=images.device) + rank * local
        if sample_ids is not None and all_ids is not None:
            same = sample_ids[:, None] == all_ids[None]
            same[torch.arange(local, device=images.device), targets] = False
            image_logits = image_logits.masked_fill(same, -torch.inf)
            text_logits = text_logits.masked_fill(same, -torch.inf)
        return (F.cross_entropy(image_logits, targets) + F.cross_entropy(text_logits, targets)) / 2


class _GatherWithGradient(torch.autograd.Function):
    """[local, D] of every rank -> [global, D] in order of rank; the way back sums gradients over ranks."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        return _gather(features)

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


def _gather(values: torch.Tensor) -> torch.Tensor:
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.cat(parts)
