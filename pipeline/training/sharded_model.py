"""FSDP2 (`--fsdp`): each process keeps a part of every parameter, and has whole ones a block at a time.

A parameter is cut along its first dimension, a part for each process, which alone updates it: weights,
gradients, AdamW's moments and the average of the weights take as many times less memory as there are
processes. What is no parameter (the statistics of batch norms) every process keeps, as under
DistributedDataParallel: the first one's count.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pipeline.checkpoint import Checkpoint
from pipeline.checkpointing.spread import as_whole
from pipeline.first_rank import broadcast_from_first
from pipeline.topology import Topology
from pipeline.training.optimizer import MOMENTS
from pmc_clip import PMCCLIP
from pmc_clip.activation_checkpointing import blocks


class ShardedModel:
    """What a trainer needs of a model, as `WholeModel` has it, too. Whatever is asked of it, all processes
    must ask it together.

    forward: what to call for a forward pass.
    parameters: this process's part of them, by name: plain tensors in the model's own memory.
    tensors: this process's part of what a checkpoint keeps of the model, by name.

    outline: of the model as it was built (`outline_of`), to build whole ones like it.
    """

    def __init__(self, model: PMCCLIP, outline: PMCCLIP, topology: Topology, device: torch.device) -> None:
        self.model, self.forward, self._outline, self._device = model, model, outline, device
        self._world_size = topology.world_size
        self._mesh = init_device_mesh(device.type, (topology.world_size,))
        # FSDP2 takes parameters that are contiguous, so those of convolutions are not channels-last here.
        _shard(model, self._mesh, device)
        found: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self._sharded: dict[str, Any] = {
            name: tensor for name, tensor in found.items() if isinstance(tensor, DTensor)
        }
        self.tensors = {name: tensor.detach() for name, tensor in found.items()}
        self.tensors |= {name: tensor.detach().to_local() for name, tensor in self._sharded.items()}
        self.parameters = {
            name: nn.Parameter(self.tensors[name], tensor.requires_grad) if name in self._sharded else tensor
            for name, tensor in found.items()
            if isinstance(tensor, nn.Parameter)
        }
        self._scalars = [part for name, part in self.parameters.items() if name not in self._sharded]

    def begin_step(self) -> None:
        """Before a step's first forward pass: let the first process's batch-norm statistics count."""
        broadcast_from_first(list(self.model.buffers()))

    def finish_backward(self) -> None:
        """After a step's last backward pass: the gradients of `parameters` are then the average of all."""
        for name, tensor in self._sharded.items():
            grad, tensor.grad = tensor.grad, None
            self.parameters[name].grad = None if grad is None else grad.to_local()
        grads = [scalar.grad for scalar in self._scalars if scalar.grad is not None]
        if grads:
            together = torch.stack(grads)
            dist.all_reduce(together)
            torch._foreach_copy_(grads, list(together / self._world_size))

    def gradient_norm(self) -> torch.Tensor:
        """The norm of all gradients together, a scalar on their device. Nothing waits for a GPU."""
        own = [self.parameters[name].grad for name in self._sharded]
        square = _square_norm(own, self._device)
        dist.all_reduce(square)
        return (square + _square_norm([scalar.grad for scalar in self._scalars], self._device)).sqrt()

    def spread(self, trained: list[str]) -> dict[str, torch.Size]:
        """The whole shapes of what each process has a part of, by its place in a checkpoint
        (`Checkpoint.tensors`).

        trained: the parameters' names in the optimiser's order.
        """
        shapes = {name: tensor.shape for name, tensor in self._sharded.items()}
        found = {f"{kind}/{name}": shapes[name] for kind in ("state_dict", "average") for name in shapes}
        for number, name in enumerate(trained):
            if name in shapes:
                found |= {f"optimizer/{number}/{moment}": shapes[name] for moment in MOMENTS}
        return found

    def own_part(self, checkpoint: Checkpoint, trained: list[str]) -> Checkpoint:
        """What of a checkpoint, of whichever kind, this process goes on with; `trained` as above."""
        shapes, own = self.spread(trained), {}
        for place, tensor in checkpoint.tensors().items():
            if place in shapes:
                tensor = distribute_tensor(tensor, self._mesh, [Shard(0)], src_data_rank=None).to_local()
            own[place] = torch.empty_like(tensor, device=self._device) if checkpoint.parts else tensor
        if checkpoint.parts:
            checkpoint.read_parts(
                {
                    place: as_whole(tensor, shapes[place], self._mesh) if place in shapes else tensor
                    for place, tensor in own.items()
                }
            )
        return checkpoint.with_tensors(own)

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take over this process's part of weights."""
        for name, tensor in self.tensors.items():
            tensor.copy_(state_dict[name])

    @contextmanager
    def evaluated(self, weights: Mapping[str, torch.Tensor] | None) -> Iterator[PMCCLIP]:
        """A copy of the model, whole and the same on every rank, with its own weights or these parts of
        others: for evaluation, whose batches the ranks need not take in step.
        """
        whole = copy.deepcopy(self._outline).to_empty(device=self._device)
        whole.to(memory_format=torch.channels_last)
        with torch.no_grad():
            # Some are not in a state dict.
            for buffer, own in zip(whole.buffers(), self.model.buffers(), strict=True):
                buffer.copy_(own)
            targets = whole.state_dict()
            for name, part in (weights or self.tensors).items():
                tensor = self._sharded.get(name)
                full = part if tensor is None else as_whole(part, tensor.shape, self._mesh).full_tensor()
                targets[name].copy_(full)
            broadcast_from_first(list(whole.buffers()))
        yield whole


def _shard(model: PMCCLIP, mesh: DeviceMesh, device: torch.device) -> None:
    """Cut the blocks one by one, so that a process has one of them whole at a time; then the rest."""
    checkpointed = {
        wrapper._checkpoint_wrapped_module: wrapper
        for wrapper in model.modules()
        if isinstance(wrapper, CheckpointWrapper)
    }
    # FSDP2 cuts no scalars, and does not move them either.
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        scalar.data = scalar.data.to(device)
    sharded = [fully_shard(checkpointed.get(block, block), mesh=mesh) for block in list(blocks(model))]
    sharded.append(fully_shard(model, mesh=mesh, ignored_params=scalars))
    # Before its first gathering torch 2.9 moves parts that are not all of a size: from here on they stay.
    for module in sharded:
        module.unshard()
        module.reshard()


def _square_norm(grads: list[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    found = [grad for grad in grads if grad is not None]
    return nn.utils.get_total_norm(found).square() if found else torch.zeros((), device=device)
