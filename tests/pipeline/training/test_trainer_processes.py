"""Two processes take the steps of one: plainly, in parts, and with activation checkpointing."""

from pathlib import Path

import pytest
import torch

from pipeline.topology import Topology
from tests.training_cases import PLAIN_STEPS, make_batch, make_trainer, run_together, share_of

WORLD, STEPS = 2, 2
WAYS = {"plain": {}, "parts": {"parts": 2}, "checkpointed": {"parts": 2, "grad_checkpointing": True}}


def take_steps(topology: Topology, options: dict[str, object]) -> dict[str, torch.Tensor]:
    """The weights after some steps, without dropout and with the batch norms of evaluation."""
    trainer = make_trainer(mlm=False, optimizer=PLAIN_STEPS, lr=1.0, topology=topology, **options)
    trainer.model.eval()
    for seed in range(STEPS):
        trainer.train_step(share_of(make_batch(seed, mlm=False), topology))
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def one_rank(topology: Topology, folder: Path) -> None:
    found = {way: take_steps(topology, options) for way, options in WAYS.items()}
    if topology.is_main:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("together")
    run_together(WORLD, one_rank, folder)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_the_steps_of_one(together, way):
    alone = take_steps(Topology(), {})
    torch.testing.assert_close(together[way], alone, rtol=1e-5, atol=2e-6)
