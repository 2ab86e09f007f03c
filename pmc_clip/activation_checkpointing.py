"""Activation checkpointing: blocks keep their input alone, and are computed again on the way back.

    checkpoint_activations(model)       # before DistributedDataParallel

Gradients are those of a model without it, dropout included (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost"). Names of parameters stay as they are.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.modules.batchnorm import _BatchNorm

from pmc_clip.fusion import ResidualAttentionBlock
from pmc_clip.model import PMCCLIP
from pmc_clip.resnet_tower import Bottleneck
from pmc_clip.text_tower import BertLayer


def checkpoint_activations(model: PMCCLIP) -> int:
    """Wrap the blocks of both towers and of the fusion transformer; returns how many there are."""
    found = set(blocks(model))
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=_wrap, check_fn=lambda module: module in found
    )
    return len(found)


def blocks(model: PMCCLIP) -> Iterator[nn.Module]:
    """The blocks of both towers and of the fusion transformer: most of a model, in pieces of like size."""
    for module in model.modules():
        if isinstance(module, Bottleneck | BertLayer | ResidualAttentionBlock):
            yield module
    if trunk := getattr(model.visual, "trunk", None):
        yield from _outermost_members(trunk)


def _outermost_members(trunk: nn.Module) -> Iterator[nn.Module]:
    """The members of a timm model's sequences: a transformer's blocks, a convolutional network's stages."""
    for child in trunk.children():
        if isinstance(child, nn.Sequential):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from _outermost_members(child)


def _wrap(block: nn.Module) -> nn.Module:
    if not any(isinstance(module, _BatchNorm) for module in block.modules()):
        return checkpoint_wrapper(block, CheckpointImpl.NO_REENTRANT)
    return checkpoint_wrapper(block, CheckpointImpl.NO_REENTRANT, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The first pass, and the second."""
    return nullcontext(), _statistics_stay(block)


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Within, batch norms keep for the way back what they kept in the first pass, but move no statistics."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
