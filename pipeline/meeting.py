"""How processes that torchrun starts again meet anew.

torchrun keeps one store over all its restarts, and torch (2.14) lets every restart use the same keys in it: a
process that is early reads the address that another one had before the restart, and fails. Here the processes
of a start agree on a name for it first, and keep its keys apart.
"""

import os
import time
import uuid

import torch.distributed as dist

from pipeline.topology import Topology
from shards import DataError

_POLL_SECONDS = 0.02


def has_lasting_store() -> bool:
    """Whether the launcher's store outlives this process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_this_start(store: dist.Store, topology: Topology, timeout: float) -> dist.Store:
    """A part of a store that no earlier start has written to, the same for all processes of this one.

    Each process greets with a word of its own, under a key that may hold the word of an earlier start; the
    first process answers every word it sees there with the name of this start. Only its own answer tells a
    process that the first one is of the same start. DataError where not all come within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    if topology.is_main:
        name = uuid.uuid4().hex
        _answer_all(store, topology.world_size, name, deadline)
    else:
        word = uuid.uuid4().hex
        store.set(f"greeting/{topology.rank}", word)
        _wait_for(store, f"answer/{word}", deadline)
        name = store.get(f"answer/{word}").decode()
        store.set(f"{name}/came/{topology.rank}", "")
    return dist.PrefixStore(name, store)


def _answer_all(store: dist.Store, world_size: int, name: str, deadline: float) -> None:
    answered: set[bytes] = set()
    missing = set(range(1, world_size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{name}/came/{rank}"]):
                missing.remove(rank)
            elif (
                store.check([f"greeting/{rank}"]) and (word := store.get(f"greeting/{rank}")) not in answered
            ):
                store.set(f"answer/{word.decode()}", name)
                answered.add(word)
        _pause(deadline, f"{len(missing)} of {world_size} processes")


def _wait_for(store: dist.Store, key: str, deadline: float) -> None:
    while not store.check([key]):
        _pause(deadline, "the first process")


def _pause(deadline: float, who: str) -> None:
    if time.monotonic() > deadline:
        raise DataError(f"{who} did not come within --timeout: see what the messages of the others say")
    time.sleep(_POLL_SECONDS)
