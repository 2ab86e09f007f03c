"""Where a run begins: fresh or from a checkpoint, with which batch, and how far it goes."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pipeline.checkpoint import Checkpoint
from pipeline.data import check_global_batch
from pipeline.run_log import say
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.length import RunLength
from pipeline.training.resume import check_same_run, choose_global_batch, data_state, find_checkpoint
from pmc_clip import ModelConfig, Tokenizer
from shards import Folder, Mixture

DERIVED = "run"  # in a saved config, what followed from the flags


@dataclass(frozen=True)
class Start:
    """What a run goes on from, None for a fresh one, and its length from there."""

    checkpoint: Checkpoint | None
    length: RunLength
    step_samples: int
    """The run's first global batch: what steps in flags stand for, whatever the batch is now."""

    def taken_over(self) -> Self:
        """The same without the checkpoint's tensors, which would stay in memory."""
        return replace(self, checkpoint=self.checkpoint and self.checkpoint.with_tensors({}))


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
        checkpoint = Checkpoint.load(path, outline=config.fsdp and topology.world_size > 1)
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
    step_samples = global_batch
    if checkpoint:  # from before there was such a field, the batch had always been as it was
        step_samples = checkpoint.config.get(DERIVED, {}).get("step_samples", checkpoint.global_batch)
    length = config.plan(
        epoch=len(data),
        global_batch=global_batch,
        step_samples=step_samples,
        start=checkpoint.samples_seen if checkpoint else 0,
    )
    return Start(checkpoint, length, step_samples)


def run_config(config: TrainConfig, start: Start, topology: Topology) -> dict[str, Any]:
    """What a run keeps of its flags, in its folder and in checkpoints, and what followed from them: lengths
    that flags give in steps, in samples.
    """
    length, step_samples = start.length, start.step_samples
    derived = {
        "step_samples": step_samples,
        "warmup_samples": config.warmup_samples(length.horizon, step_samples),
        "save_every_samples": config.save_periods(length.epoch, step_samples),
        "log_every_samples": config.log_every * step_samples,
        "global_batch": length.global_batch,
        "world_size": topology.world_size,
    }
    return asdict(config) | {DERIVED: derived}
