"""The part of a data set that is evaluated: the same samples whatever the processes, batches and shards."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checks import check_at_least
from pipeline.evaluation.sample_ids import checksums_of, hash_ids, make_ids, read_keys
from pipeline.topology import Topology
from pipeline.wording import counted
from shards import Dataset, UsageError
from shards.hashing import Purpose, derive


@dataclass(frozen=True, kw_only=True)
class SubsetFlags:
    """Which samples are evaluated."""

    limit: int | None = None
    """Evaluate so many samples, drawn without replacement: the same ones in whatever order they lie."""
    test_2000: bool = False
    """Evaluate 2,000 samples, as published: short for --limit 2000."""
    ids: str | None = None
    """File of the samples to evaluate, an id (a sample's key) on each line, such as the ids.txt of another
    evaluation.
    """

    @property
    def sample_limit(self) -> int | None:
        """How many samples are drawn; None: no limit."""
        return 2000 if self.test_2000 else self.limit

    def check_subset(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict one another."""
        check_at_least(self, limit=1)
        given = [
            flag
            for flag, value in (("--limit", self.limit), ("--test-2000", self.test_2000), ("--ids", self.ids))
            if value
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} each say which samples to evaluate: give one of them")

    def subset(self, fingerprint: str, seed: int) -> dict[str, Any] | None:
        """What metrics.json says of the choice from a data set with this fingerprint; None: all samples."""
        if self.sample_limit is not None:
            return {"limit": self.sample_limit, "seed": seed, "of": fingerprint}
        return None if self.ids is None else {"ids": self.ids, "of": fingerprint}


def choose_subset(keys: Sequence[str], checksums: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Which samples to take: bool [N], `limit` of them true.

    Those with the least hashes of (seed, key); where keys repeat, of their checksums (uint32 [N]) then. So
    it does not matter where or in which order samples lie, and a smaller subset is part of a larger one.
    """
    hashes = hash_ids(keys)
    order = np.lexsort((checksums, hashes, derive(seed, Purpose.SUBSET, hashes)))
    chosen = np.zeros(len(keys), bool)
    chosen[order[:limit]] = True
    return chosen


def pick_ids(ids: Sequence[str], wanted: Sequence[str], source: str) -> np.ndarray:
    """Where the wanted ids are: bool [N], as many true as are wanted. An id that stands twice means two
    samples that are equal to the byte. UsageError, naming `source`, where one is not there.
    """
    places: dict[str, deque[int]] = defaultdict(deque)
    for number, known in enumerate(ids):
        places[known].append(number)
    chosen = np.zeros(len(ids), bool)
    missing = []
    for name in wanted:
        if found := places.get(name):
            chosen[found.popleft()] = True
        else:
            missing.append(name)
    if missing:
        shown = ", ".join(repr(name) for name in missing[:3]) + ", …" * (len(missing) > 3)
        raise UsageError(
            f"--ids {source}: {len(missing):,} of {counted(len(wanted), 'id')} are not in the data (or stand "
            f"there more often): {shown}; ids look like {ids[0]!r}"
        )
    return chosen


def read_ids(path: str) -> list[str]:
    """The ids of a file, one a line; blank lines do not count. UsageError where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(f"--ids {path}: {error.strerror}") from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise UsageError(f"--ids {path}: there is no id in it; give a sample's key on each line")
    return ids


def open_subset(
    dataset: Dataset, flags: SubsetFlags, topology: Topology, seed: int
) -> tuple[Dataset, list[str] | None]:
    """The samples to evaluate, as a view, and their ids; the data set itself, and None, where all are asked
    for. Every rank calls it.
    """
    limit = flags.sample_limit
    if not len(dataset):
        raise UsageError(f"{dataset.folder.address}: there are no samples in the data")
    if limit is None and flags.ids is None:
        return dataset, None
    wanted = [] if flags.ids is None else read_ids(flags.ids)
    if limit is not None and limit > len(dataset):
        flag = "--test-2000" if flags.test_2000 else f"--limit {limit}"
        raise UsageError(f"{flag}: there are only {counted(len(dataset), 'sample')} in the data")
    keys, checksums = read_keys(dataset, topology), checksums_of(dataset)
    ids = make_ids(keys, checksums)
    if limit is not None:
        chosen = choose_subset(keys, checksums, limit, seed)
    else:
        chosen = pick_ids(ids, wanted, str(flags.ids))
    return dataset.keeping(chosen), [ids[number] for number in np.flatnonzero(chosen)]
