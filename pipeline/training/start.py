"""Where a run begins: fresh or from a checkpoint, with which batch, and how far it goes."""

from dataclasses import dataclass

from pipeline.checkpoint import Checkpoint
from pipeline.data import check_global_batch
from pipeline.run_log import say
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.length import DEFAULT_EPOCHS, RunLength
from pipeline.training.resume import check_same_run, choose_global_batch, data_state, find_checkpoint
from pmc_clip import ModelConfig, Tokenizer
from shards import Folder, Mixture


@dataclass(frozen=True)
class Start:
    """What a run goes on from, None for a fresh one, and its length from there."""

    checkpoint: Checkpoint | None
    length: RunLength


def find_start(
    config: TrainConfig,
    checkpoints: Folder,
    data: Mixture,
    model: ModelConfig,
    tokenizer: Tokenizer,
    topology: Topology,
) -> Start:
    """Where the run with these checkpoints stands, the same on every rank; UsageError where it cannot go
    on so.
    """
    checkpoint = None
    if path := find_checkpoint(config, checkpoints, topology):
        checkpoint = Checkpoint.load(path)
        check_same_run(
            checkpoint,
            path,
            data=data_state(data),
            model=model,
            tokenizer=tokenizer.fingerprint(),
            mlm=config.mlm,
        )
        say(f"going on from {path}: step {checkpoint.step:,}", main=topology.is_main)
    global_batch = choose_global_batch(config, checkpoint, topology)
    check_global_batch(global_batch, topology, data)
    config.check_parts(global_batch // topology.world_size)
    length = RunLength.plan(
        epoch=len(data),
        global_batch=global_batch,
        epochs=config.epochs or (None if config.steps else DEFAULT_EPOCHS),
        steps=config.steps,
        start=checkpoint.samples_seen if checkpoint else 0,
        step=checkpoint.step if checkpoint else 0,
    )
    return Start(checkpoint, length)
