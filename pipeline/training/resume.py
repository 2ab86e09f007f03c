"""Going on from a checkpoint: which one, whether it fits this run, and with which batch."""

from typing import Any

from pipeline.checkpoint import Checkpoint, DataState
from pipeline.checkpointing.newest import Found, newest_whole
from pipeline.checkpointing.places import follow_latest, is_same_file, names_newest_first
from pipeline.first_rank import decided_by_first
from pipeline.run_log import say
from pipeline.topology import Topology
from pipeline.training.length import DEFAULT_BATCH, LengthFlags
from pipeline.training.saving import SavingFlags
from pmc_clip import ModelConfig
from shards import Folder, Mixture, UsageError


def find_checkpoint(flags: SavingFlags, folder: Folder, topology: Topology) -> str | None:
    """The address of the checkpoint that the flags mean, the same on every rank; None for a fresh run.

    folder: the run's checkpoints. Refuses to begin a fresh run in a folder that holds one, and to go back in
    a folder where the checkpoints of what came after would be taken next time.
    """
    resume = None if flags.resume_model_only else flags.resume
    found = decided_by_first(topology, lambda: _find_checkpoint(resume, folder))
    for reason in found.damaged:
        say(f"passed over: {reason}", main=topology.is_main)
    return found.address


def _find_checkpoint(resume: str | None, folder: Folder) -> Found:
    if resume == "auto":
        return newest_whole(folder)
    newest = next(iter(names_newest_first(folder)), None)
    if not resume and newest:
        raise UsageError(
            f"{folder.address} holds a run already (newest checkpoint {newest}): go on with --resume auto, "
            "or give the new run another --name"
        )
    if not resume:
        return Found(None)
    address = follow_latest(resume)
    if newest and not is_same_file(address, folder.locate(newest)):
        raise UsageError(
            f"--resume {resume}: {folder.address} holds {newest}, with which the next --resume auto would go "
            "on: move what is newer away, or give the run from here on another --name"
        )
    return Found(address)


def data_state(data: Mixture) -> DataState:
    """What a checkpoint keeps of the data, to check at a resume."""
    sources = []
    if len(data.datasets) > 1:
        sources = [
            {"name": dataset.name, "fingerprint": dataset.manifest.fingerprint, "lanes": lanes}
            for dataset, lanes in zip(data.datasets, data.lanes_of, strict=True)
        ]
    return DataState(data.name, data.fingerprint, data.seed, data.lanes, sources)


def check_same_run(
    checkpoint: Checkpoint,
    path: str,
    *,
    data: DataState,
    model: ModelConfig,
    tokenizer: str,
    mlm: bool,
) -> None:
    """Refuse a checkpoint of another data set, order, model or vocabulary, naming what differs."""
    _check_same_data(checkpoint.data, data, path)
    # Through the config, since an older checkpoint says nothing of newer fields.
    theirs = ModelConfig.from_dict(checkpoint.model, path)
    if theirs != model:
        differing = ", ".join(sorted(differing_fields(theirs.to_dict(), model.to_dict())))
        raise UsageError(
            f"{path} is of another model than --model gives here (they differ in {differing}): give the same "
            "--model, --loss and --mask-padding"
        )
    if checkpoint.tokenizer != tokenizer:
        raise UsageError(f"{path} was trained with another vocabulary than this model's tokeniser has")
    if checkpoint.config["mlm"] != mlm:
        raise UsageError(f"{path} was trained {'with' if not mlm else 'without'} --mlm: give the same")


def _check_same_data(theirs: DataState, ours: DataState, path: str) -> None:
    """Refuse other data sets, another seed or other lanes than those of a checkpoint."""
    before, now = _fingerprints(theirs), _fingerprints(ours)
    if before != now and sorted(before) == sorted(now):
        raise UsageError(
            f"{path} is of a run with the same data sets in another order: {theirs.name}, here {ours.name}; "
            "give them in that order"
        )
    if before != now:
        raise UsageError(
            f"{path} is of a run on another data set: {_unlike(theirs, now)}, here {_unlike(ours, before)}; "
            "give the shards it was trained on as --train-data, or start a new run with another --name"
        )
    for field in ("seed", "lanes"):
        was, is_now = getattr(theirs, field), getattr(ours, field)
        if was != is_now:
            raise UsageError(
                f"{path} is of a run on another {field}: {was}, here {is_now}; give --{field} {was}"
            )
    if theirs.fingerprint != ours.fingerprint:
        same = " ".join(f"{source['name']}={source['lanes']}" for source in theirs.sources)
        raise UsageError(
            f"{path} is of a run with other weights: of {theirs.lanes} lanes it had {_lanes(theirs)}, here "
            f"{_lanes(ours)}; give the weights it had, which {same} stand for"
        )


def _sources(state: DataState) -> list[dict[str, Any]]:
    alone = {"name": state.name, "fingerprint": state.fingerprint, "lanes": state.lanes}
    return state.sources or [alone]


def _fingerprints(state: DataState) -> list[str]:
    return [source["fingerprint"] for source in _sources(state)]


def _lanes(state: DataState) -> str:
    """`A 269, B 115`."""
    return ", ".join(f"{source['name']} {source['lanes']}" for source in _sources(state))


def _unlike(state: DataState, others: list[str]) -> str:
    """The data sets that are not among `others`, by name and fingerprint."""
    found = [
        f"{source['name']} ({source['fingerprint']})"
        for source in _sources(state)
        if source["fingerprint"] not in others
    ]
    return ", ".join(found) or "nothing else"


def differing_fields(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields, with those of nested objects as `outer.inner`, that two configs in JSON form differ in."""
    found = []
    for key in theirs.keys() | ours.keys():
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def choose_global_batch(flags: LengthFlags, checkpoint: Checkpoint | None, topology: Topology) -> int:
    """The global batch: as the flags say; a resumed run whose flags are the same keeps its own."""
    if flags.global_batch_size:
        return flags.global_batch_size
    unchanged = checkpoint and checkpoint.config["batch_size"] == flags.batch_size
    if checkpoint and unchanged:
        return checkpoint.global_batch
    return (flags.batch_size or DEFAULT_BATCH) * topology.world_size
