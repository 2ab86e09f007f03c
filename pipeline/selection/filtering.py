"""Which samples an expression and a list of ids leave, found by reading every sample's JSON in parallel."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline.job_progress import JobProgress, Unit
from pipeline.selection.exclusion import Exclusion
from pipeline.selection.where import OWN_NAMES, Where
from pipeline.sharding.worker_pool import run_in_processes
from shards import Dataset, Sample, UsageError

_COLUMNS_TO_LIST = 100


@dataclass(frozen=True)
class Criteria:
    """What a sample must meet: an expression, and not to be one of the excluded."""

    where: Where | None
    exclusion: Exclusion | None


@dataclass
class Findings:
    """What reading samples has shown."""

    excluded: int = 0
    unmet: int = 0  # the expression is false
    unknown: int = 0  # the expression is neither true nor false: a value is missing, or cannot be read so
    without_json: int = 0
    matched_ids: set[str] = field(default_factory=set)
    used_columns: set[str] = field(default_factory=set)  # those of the expression that a sample has
    columns: set[str] = field(default_factory=set)  # of all, the first so many

    def add(self, other: "Findings") -> None:
        """Count what another one found, too."""
        self.excluded += other.excluded
        self.unmet += other.unmet
        self.unknown += other.unknown
        self.without_json += other.without_json
        self.matched_ids |= other.matched_ids
        self.used_columns |= other.used_columns
        if len(self.columns) < _COLUMNS_TO_LIST:
            self.columns |= other.columns


@dataclass(frozen=True)
class _ShardTask:
    place: tuple[int, int]  # the number of its source, and in that of the shard's first sample
    shard: Dataset


def find_kept(
    sources: Sequence[Dataset], criteria: Criteria, workers: int
) -> tuple[list[np.ndarray], Findings]:
    """bool [samples] for each source: the samples that meet the criteria; and what was found on the way.

    Raises UsageError where the expression names a column that no sample has.
    """
    kept = [np.zeros(len(source), bool) for source in sources]
    findings = Findings()
    work = partial(_filter_shard, criteria=criteria)
    tasks = _shard_tasks(sources)
    shards = sum(len(source.manifest.shards) for source in sources)
    workers = min(workers, shards)
    results = run_in_processes(work, tasks, workers) if workers > 1 else map(work, tasks)
    with JobProgress(sum(len(source) for source in sources), 0, Unit("samples")) as progress:
        for (source, first), mask, found in results:
            if shards > 1 and not findings.columns:
                _warn_of_absent(criteria, found)
            kept[source][first : first + len(mask)] = mask
            findings.add(found)
            progress.advance(len(mask))
    absent = _absent_columns(criteria, findings)
    if absent:
        raise UsageError(f"--where: no sample has {absent}")
    return kept, findings


def _warn_of_absent(criteria: Criteria, findings: Findings) -> None:
    """Say early what is an error if it stays so: reading everything may take hours."""
    absent = _absent_columns(criteria, findings)
    if absent:
        print(f"--where: no sample of the first shard has {absent}", file=sys.stderr, flush=True)


def _absent_columns(criteria: Criteria, findings: Findings) -> str:
    """The expression's columns that were not found, and those there are; "" where all were found."""
    absent = sorted(criteria.where.columns - findings.used_columns) if criteria.where else []
    if not absent:
        return ""
    there = ", ".join([*OWN_NAMES, *sorted(findings.columns)[:_COLUMNS_TO_LIST]])
    return f"a column {', '.join(map(repr, absent))}; there are: {there}"


def _shard_tasks(sources: Sequence[Dataset]) -> Iterator[_ShardTask]:
    for number, source in enumerate(sources):
        first = 0
        for shard_number in range(len(source.manifest.shards)):
            shard = source.single_shard(shard_number)
            yield _ShardTask((number, first), shard)
            first += len(shard)


def _filter_shard(task: _ShardTask, criteria: Criteria) -> tuple[tuple[int, int], np.ndarray, Findings]:
    """bool [samples]: which of a shard's samples meet the criteria. Holds one block at a time."""
    mask = np.zeros(len(task.shard), bool)
    findings = Findings()
    blocks = task.shard.blocks
    for block in range(len(blocks)):
        data = task.shard.read_block(block)
        for slot in range(int(blocks.samples[block])):
            sample = task.shard.sample(block, slot, data)
            mask[int(blocks.first_sample[block]) + slot] = _meets(sample, criteria, findings)
    return task.place, mask, findings


def _meets(sample: Sample, criteria: Criteria, findings: Findings) -> bool:
    columns = parse_columns(sample.members.get("json", b""))
    if columns is None:
        findings.without_json += 1
        columns = {}
    if len(findings.columns) < _COLUMNS_TO_LIST:
        findings.columns |= columns.keys()
    if criteria.where:
        findings.used_columns |= criteria.where.columns & columns.keys()
    if criteria.exclusion:
        matching = criteria.exclusion.matching(sample.key, columns)
        findings.matched_ids |= matching
        if matching:
            findings.excluded += 1
            return False
    holds = criteria.where.holds(sample.key, sample.caption, columns) if criteria.where else True
    findings.unmet += holds is False
    findings.unknown += holds is None
    return holds is True


def parse_columns(text: "bytes | memoryview") -> dict[str, Any] | None:
    """What the JSON of a sample says by column; None where it is no JSON object in UTF-8."""
    try:
        columns = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError):
        return None
    return columns if isinstance(columns, dict) else None
