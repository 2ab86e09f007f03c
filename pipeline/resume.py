"""Going on from a checkpoint: which one, whether it fits this run, and with which batch."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.checkpoint import Checkpoint, newest
from pipeline.topology import Topology
from pipeline.train_config import DEFAULT_BATCH, TrainConfig
from shards import UsageError


def find_checkpoint(config: TrainConfig, folder: Path, topology: Topology) -> Path | None:
    """The checkpoint that the flags mean, the same on every rank; None for a fresh run.

    Refuses to begin a fresh run in a folder that holds one.
    """
    found = [newest(folder / "checkpoints")]
    if topology.world_size > 1:
        dist.broadcast_object_list(found, 0)  # the first rank's view of the folder decides
    if config.resume == "auto":
        return found[0]
    if config.resume:
        return Path(config.resume)
    if found[0]:
        raise UsageError(
            f"{folder} holds a run already (newest checkpoint {found[0].name}): go on with --resume auto, or "
            "give the new run another --name"
        )
    return None


def check_same_run(
    checkpoint: Checkpoint,
    path: Path,
    *,
    data: dict[str, Any],
    model: dict[str, Any],
    tokenizer: str,
    mlm: bool,
) -> None:
    """Refuse a checkpoint of another data set, order, model or vocabulary, naming what differs."""
    theirs = vars(checkpoint.data)
    for field, remedy in (
        (
            "fingerprint",
            "give the shards it was trained on as --train-data, or start a new run with another --name",
        ),
        ("seed", f"give --seed {theirs['seed']}"),
        ("lanes", f"give --lanes {theirs['lanes']}"),
    ):
        if theirs[field] != data[field]:
            ours, other = (
                f"{side['name']} ({side[field]})" if field == "fingerprint" else side[field]
                for side in (data, theirs)
            )
            what = "data set" if field == "fingerprint" else field
            raise UsageError(f"{path} is of a run on another {what}: {other}, here {ours}; {remedy}")
    if checkpoint.model != model:
        differing = ", ".join(sorted(_differences(checkpoint.model, model)))
        raise UsageError(
            f"{path} is of another model than --model gives (they differ in {differing}): give the same model"
        )
    if checkpoint.tokenizer != tokenizer:
        raise UsageError(f"{path} was trained with another vocabulary than this model's tokeniser has")
    if checkpoint.config["mlm"] != mlm:
        raise UsageError(f"{path} was trained {'with' if not mlm else 'without'} --mlm: give the same")


def _differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in theirs.keys() | ours.keys():
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def choose_global_batch(config: TrainConfig, checkpoint: Checkpoint | None, topology: Topology) -> int:
    """The global batch: as the flags say; a resumed run whose flags are the same keeps its own."""
    if config.global_batch_size:
        return config.global_batch_size
    unchanged = checkpoint and checkpoint.config["batch_size"] == config.batch_size
    if checkpoint and unchanged:
        return checkpoint.global_batch
    return (config.batch_size or DEFAULT_BATCH) * topology.world_size
