"""Two processes take the steps of one: plainly, in parts, and with activation checkpointing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from pipeline.loader import Batch
from pipeline.topology import Topology
from tests.training_cases import BATCH, PLAIN_STEPS, make_batch, make_trainer

WORLD, STEPS = 2, 2
WAYS = {"plain": {}, "parts": {"parts": 2}, "checkpointed": {"parts": 2, "grad_checkpointing": True}}


def share_of(batch: Batch, rank: int, world: int) -> Batch:
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    return replace(
        batch,
        positions=batch.positions[own],
        epochs=batch.epochs[own],
        numbers=batch.numbers[own],
        keys=batch.keys[own],
        captions=batch.captions[own],
        images=batch.images[own],
        tokens=batch.tokens[own],
    )


def take_steps(topology: Topology, options: dict[str, object]) -> dict[str, torch.Tensor]:
    """The weights after some steps, without dropout and with the batch norms of evaluation."""
    trainer = make_trainer(mlm=False, optimizer=PLAIN_STEPS, lr=1.0, topology=topology, **options)
    trainer.model.eval()
    for seed in range(STEPS):
        trainer.train_step(share_of(make_batch(seed, mlm=False), topology.rank, topology.world_size))
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {way: take_steps(Topology(rank, WORLD), options) for way, options in WAYS.items()}
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.start_processes(one_rank, (str(folder),), nprocs=WORLD, start_method="spawn")
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_the_steps_of_one(together, way):
    alone = take_steps(Topology(), {})
    torch.testing.assert_close(together[way], alone, rtol=1e-5, atol=2e-6)
