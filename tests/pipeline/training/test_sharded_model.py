"""FSDP2 takes the steps of DistributedDataParallel, with a part of the model in each process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.topology import Topology
from pipeline.training.optimizer import OptimizerOptions
from pipeline.training.trainer import Trainer
from tests.training_cases import make_batch, make_trainer, run_together, share_of

STEPS = 3
# An eps that keeps Adam from making large noise of gradients that are nearly zero.
OPTIMIZER = OptimizerOptions(eps=1e-3, grad_clip=1.0, ema=0.9)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in parts, checkpointed, fp16": {"parts": 2, "grad_checkpointing": True, "precision": "fp16"},
    "locked": {"lock": "visual"},
}


def make(topology: Topology, *, fsdp: bool, **options: Any) -> Trainer:
    return make_trainer(optimizer=OPTIMIZER, topology=topology, fsdp=fsdp, **options)


def take_steps(topology: Topology, trainer: Trainer) -> dict[str, Any]:
    """What can be seen of some steps: this rank's losses, the gradients' norms, and what is validated."""
    losses, norms = [], []
    for seed in range(STEPS):
        losses.append(float(trainer.train_step(share_of(make_batch(seed), topology)).total))
        norms.append(float(trainer.gradient_norm))
    seen: dict[str, Any] = {"losses": losses, "norms": norms, "loss_scale": trainer.loss_scale}
    for name, averaged in (("average", True), ("weights", False)):
        with trainer.ready_for_evaluation(averaged=averaged) as model:
            seen[name] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return seen


def kept_bytes(trainer: Trainer) -> int:
    """What this process keeps of weights, gradients' room, moments and average, in bytes."""
    moments = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    assert trainer.average
    tensors = [*trainer.model.parameters(), *moments, *trainer.average.state().values()]
    local = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def compare(topology: Topology, folder: Path) -> None:
    found: dict[str, Any] = {}
    for way, options in WAYS.items():
        pair = [make(topology, fsdp=fsdp, **options) for fsdp in (False, True)]
        found[way] = [take_steps(topology, trainer) for trainer in pair]
        found[f"{way}, bytes"] = [kept_bytes(trainer) for trainer in pair]
    found["spoiled"] = spoil(topology, folder)
    torch.save(found, folder / f"found-{topology.rank}.pt")


def spoil(topology: Topology, folder: Path) -> dict[str, Any]:
    """What a step does in which one process's images alone are beyond numbers."""
    trainer = make(topology, fsdp=True)
    before = {name: part.clone() for name, part in trainer._held.parameters.items()}
    convolution = next(module for module in trainer.model.modules() if isinstance(module, nn.Conv2d))
    if topology.rank == 1:
        convolution.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    trainer.train_step(share_of(make_batch(0), topology))
    changed = [name for name, part in trainer._held.parameters.items() if not torch.equal(part, before[name])]
    return {"changed": changed, "skipped": trainer.non_finite.count()}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("sharded")
    run_together(2, compare, folder)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
def test_the_steps_are_those_of_ddp(found, way):
    """But for the rounding of convolutions, whose weights lie in another memory format."""
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if "fp16" in way else {"rtol": 1e-5, "atol": 1e-5}
    for of_rank in found:
        whole, sharded = of_rank[way]
        torch.testing.assert_close(sharded, whole, **tolerance, equal_nan=True)
    (_, first), (_, second) = (of_rank[way] for of_rank in found)
    for name in ("weights", "average"):
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])


@pytest.mark.parametrize("way", WAYS)
def test_each_of_two_processes_keeps_half(found, way):
    for of_rank in found:
        whole, sharded = of_rank[f"{way}, bytes"]
        assert sharded == pytest.approx(whole / 2, rel=0.01)


def test_what_is_not_finite_in_one_process_is_skipped_by_all(found):
    assert [of_rank["spoiled"] for of_rank in found] == [{"changed": [], "skipped": 1}] * 2
