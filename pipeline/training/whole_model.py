"""A model that every process has whole: alone, or with its gradients averaged by DistributedDataParallel."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.checkpoint import Checkpoint
from pipeline.first_rank import broadcast_from_first
from pipeline.topology import Topology
from pmc_clip import PMCCLIP


class WholeModel:
    """What a trainer needs of a model, as `ShardedModel` has it, too.

    forward: what to call for a forward pass.
    parameters: what this process updates, by name.
    tensors: what of the model this process keeps in a checkpoint, by name.
    """

    def __init__(self, model: PMCCLIP, topology: Topology, device: torch.device) -> None:
        # Convolutions are faster where the channels of a pixel lie side by side, as they do in the batches.
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self._topology = topology
        self.parameters = dict(model.named_parameters())
        self.tensors: dict[str, torch.Tensor] = model.state_dict()
        self.forward: nn.Module = model
        if topology.world_size > 1:
            self.forward = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                static_graph=True,
            )

    def begin_step(self) -> None:
        """Before a step's first forward pass."""

    def finish_backward(self) -> None:
        """After a step's last backward pass: the gradients of `parameters` are then the average of all."""

    def gradient_norm(self) -> torch.Tensor:
        """The norm of all gradients together, a scalar on their device. Nothing waits for a GPU."""
        grads = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        return nn.utils.get_total_norm(grads)

    def spread(self, trained: list[str]) -> dict[str, torch.Size]:
        """The whole shapes of what each process has a part of, by its place in a checkpoint: nothing."""
        return {}

    def own_part(self, checkpoint: Checkpoint, trained: list[str]) -> Checkpoint:
        """What of a checkpoint this process goes on with: all of it."""
        return checkpoint

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take over weights."""
        self.model.load_state_dict(state_dict)

    @contextmanager
    def evaluated(self, weights: Mapping[str, torch.Tensor] | None) -> Iterator[PMCCLIP]:
        """The model, the same on every rank, with these weights in place of its own: for evaluation."""
        own = {name: tensor.clone() for name, tensor in self.tensors.items()} if weights else None
        if weights:
            self.model.load_state_dict(weights)
        if self._topology.world_size > 1:
            # The first one's batch-norm statistics, which the next step would give them all.
            broadcast_from_first(list(self.model.buffers()))
        try:
            yield self.model
        finally:
            if own:
                self.model.load_state_dict(own)
