"""Trainers of the tiny model, and batches for them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from pipeline.loader import Batch
from pipeline.topology import Topology
from pipeline.training.optimizer import OptimizerOptions
from pipeline.training.schedule import CosineSchedule
from pipeline.training.step_options import StepOptions
from pipeline.training.trainer import Trainer
from pmc_clip import ModelConfig, create_model, get_tokenizer, load_model_config, mask_tokens
from pmc_clip.locking import lock_tower

BATCH = 8
# An update that follows the gradient's size: Adam's own divides it away, and so makes noise of a zero large.
PLAIN_STEPS = OptimizerOptions(eps=1.0, weight_decay=0.0)


def make_trainer(
    device: str = "cpu",
    mlm: bool = True,
    config: ModelConfig | None = None,
    optimizer: OptimizerOptions | None = None,
    lr: float = 1e-3,
    topology: Topology | None = None,
    lock: str | None = None,
    **options: object,
) -> Trainer:
    torch.manual_seed(0)
    config = config or load_model_config("tiny")
    model = create_model(config, mlm=mlm)
    if lock:
        lock_tower(model, lock)
    return Trainer(
        model,
        get_tokenizer(config),
        schedule=CosineSchedule(lr, 0, 1000),
        optimizer=optimizer or OptimizerOptions(),
        topology=topology or Topology(),
        device=torch.device(device),
        seed=5,
        global_batch=BATCH,
        options=StepOptions(**options),
    )


def make_batch(seed: int, mlm: bool = True, captions: list[str] | None = None) -> Batch:
    rng = np.random.default_rng(seed)
    captions = captions or [
        f"figure {number} of article {seed}: a lesion in the liver" + number * " or elsewhere"
        for number in range(BATCH)
    ]
    tokenizer = get_tokenizer("tiny")
    tokens, labels = tokenizer(captions), None
    if mlm:
        tokens, labels = mask_tokens(tokens, rng.random((*tokens.shape, 3)), tokenizer, 0.3)
    images = torch.from_numpy(rng.integers(0, 255, (BATCH, 64, 64, 3), np.uint8)).permute(0, 3, 1, 2)
    numbers = np.arange(BATCH)
    return Batch(numbers, np.zeros(BATCH), numbers, [""] * BATCH, captions, images, tokens, labels)


def share_of(batch: Batch, topology: Topology) -> Batch:
    """What one of several processes sees of a batch."""
    own = slice(*(BATCH * rank // topology.world_size for rank in (topology.rank, topology.rank + 1)))
    return replace(
        batch,
        positions=batch.positions[own],
        epochs=batch.epochs[own],
        numbers=batch.numbers[own],
        keys=batch.keys[own],
        captions=batch.captions[own],
        images=batch.images[own],
        tokens=batch.tokens[own],
        labels=None if batch.labels is None else batch.labels[own],
    )


def run_together(
    world: int, job: Callable[..., None], folder: Path, *arguments: object, backend: str = "gloo"
) -> None:
    """Run `job(topology, folder, *arguments)` in processes of a group; it must be of a module's top."""
    # A server forks them, with everything imported already.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    multiprocessing.start_processes(
        _join, (world, job, folder, arguments, backend), nprocs=world, start_method="forkserver"
    )


def _join(
    rank: int, world: int, job: Callable[..., None], folder: Path, arguments: tuple[object, ...], backend: str
) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    meeting = f"file://{folder}/{job.__name__}-{world}"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
    job(Topology(rank, world, rank, world), folder, *arguments)
    dist.destroy_process_group()


def parameters_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
