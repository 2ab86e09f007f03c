"""A packing job: this task's missing shards are packed; once the shards of all tasks are there, whichever
task sees it first writes the manifests.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from pipeline.job_progress import JobProgress, Unit
from pipeline.sharding.account import Account, RejectedRows, gather
from pipeline.sharding.dataset_report import Section, dataset_report
from pipeline.sharding.duplicates import (
    CHUNK_ROWS,
    HashingTask,
    hash_images,
    hashes_name,
    is_among,
    read_duplicates,
    write_duplicates,
)
from pipeline.sharding.examples import read_examples
from pipeline.sharding.image_sources import ImageSource, Location
from pipeline.sharding.job_folder import DUPLICATES, REJECTED, REPORT, JobFolder
from pipeline.sharding.packing import PackedShard, PackingTask, Treatment, pack_shard, restore_shard, usable
from pipeline.sharding.plan import PackingPlan, PlannedShard
from pipeline.sharding.rows import Rejected, Row
from pipeline.sharding.spool import SpooledTable
from pipeline.sharding.statistics import Statistics
from pipeline.sharding.tasks import TaskShare
from pipeline.sharding.worker_pool import sigterm_waits
from shards import DataError, Manifest, MemberNames, write_manifest


class Engine(Protocol):
    """What runs tasks on several workers; see `worker_pool.run_in_processes`."""

    def __call__(
        self, work: Callable[[Any], Any], tasks: Iterable[Any], *, stopping: Callable[[], bool]
    ) -> Generator[Any, None, None]:
        """The results of `work` on every task, as they come; closing it ends the work."""


class Stopped(Exception):
    """SIGTERM ended the job before its end; everything that was in work was finished."""


@dataclass(frozen=True)
class FinishedDataSet:
    """What became of the rows of one data set."""

    manifest: Manifest
    statistics: Statistics
    rejected: Counter[str]  # rows by reason


@dataclass(frozen=True)
class Job:
    """A table's rows on their way into shards.

    max_rejected: the share of rows above which the job fails. member_names: how the manifest says that
    samples are read.
    """

    table: SpooledTable
    images: ImageSource
    plan: PackingPlan
    folder: JobFolder
    identity: dict[str, Any]
    treatment: Treatment
    task: TaskShare
    engine: Engine
    member_names: MemberNames
    max_rejected: float = 1.0

    def find_duplicates(self) -> bool:
        """Do this task's part of the hashing pass; False where other tasks' parts are still missing.

        Raises Stopped.
        """
        root = self.folder.root
        if DUPLICATES in root.names():
            return True
        chunks = -(-len(self.table) // CHUNK_ROWS)
        there = set(root.names())
        missing = [n for n in range(chunks) if self.task.owns(n) and hashes_name(n) not in there]
        tasks = (HashingTask(root, hashes_name(n), self._chunk_images(n)) for n in missing)
        with (
            JobProgress(CHUNK_ROWS * len(missing), 0, Unit("rows hashed")) as progress,
            closing(self._run(hash_images, tasks)) as hashed,
        ):
            for rows in hashed:
                progress.advance(rows)
        there = set(root.names())
        if not {hashes_name(n) for n in range(chunks)} <= there:
            return DUPLICATES in there  # another task was here in the meantime
        write_duplicates(root, chunks)
        return True

    def pack(self) -> None:
        """Pack this task's shards that are not there yet.

        Raises Stopped, and DataError past `max_rejected`.
        """
        finished = self._finished()
        own = [shard for number, shard in enumerate(self.plan.shards) if self.task.owns(number)]
        missing = [shard for shard in own if self._name(shard) not in finished[shard.split]]
        if missing and self.folder.manifests() is not None:
            return  # another task has ended the job since, and took the descriptions away
        for split in range(len(self.folder.data_sets)):
            names = [self._name(shard) for shard in missing if shard.split == split]
            self.folder.delete_leftovers(split, names, alone=self.task.count == 1)
        done = sum(len(shard.slots) for shard in own) - sum(len(shard.slots) for shard in missing)
        rejected = 0
        work = partial(pack_shard, treatment=self.treatment)
        with (
            JobProgress(sum(len(shard.slots) for shard in own), done) as progress,
            closing(
                self._run(work, self._tasks(missing), until=lambda: self._too_many(rejected))
            ) as outcomes,
        ):
            for outcome in outcomes:
                progress.advance(outcome.samples + outcome.rejected)
                rejected += outcome.rejected
        if self._too_many(rejected):
            with RejectedRows() as rows:
                for split, names_there in enumerate(self._finished()):
                    gather(self.folder.parts(split, sorted(names_there)), rows)
                rows.write(self.folder.root, REJECTED)
            self._refuse(rejected)

    def others_missing(self) -> int:
        """How many shards of all tasks are not there yet."""
        finished = self._finished()
        missing = sum(self._name(shard) not in finished[shard.split] for shard in self.plan.shards)
        return 0 if missing and self.folder.manifests() is not None else missing

    def finish(self) -> list[FinishedDataSet]:
        """Write rejected.csv and the manifests of all data sets. Raises DataError where too many rows were
        rejected, or all of a data set; FileNotFoundError where another task has done it.
        """
        self.folder.check_free(self.identity)  # another job may have come to the folder
        with RejectedRows() as rows:
            accounts = [gather(self._parts(split), rows) for split in range(len(self.folder.data_sets))]
            rows.write(self.folder.root, REJECTED)
        for folder, account in zip(self.folder.data_sets, accounts, strict=True):
            if not account.samples:
                reason, count = account.rejected.most_common(1)[0]
                self.folder.clean_up()  # so that the same command tries these rows again
                raise DataError(
                    f"all {account.rejected.total():,} rows for {folder.address} were rejected, {count:,} of "
                    f"them because: {reason}; images were looked for in {self.images.identity}; every row "
                    f"and its reason is in {self.folder.root.locate(REJECTED)}; mend them, and give the same "
                    "command again"
                )
        rejected = sum(account.rejected.total() for account in accounts)
        if self._too_many(rejected):
            self._refuse(rejected)
        self.folder.root.write(REPORT, self._report(accounts).encode())
        finished = [
            FinishedDataSet(
                write_manifest(folder, account.shards, self.identity, member_names=self.member_names),
                account.statistics,
                account.rejected,
            )
            for folder, account in zip(self.folder.data_sets, accounts, strict=True)
        ]
        self.folder.clean_up()
        return finished

    def _parts(self, split: int) -> Iterator[PackedShard]:
        """The descriptions of all shards of a split; DataError where another job has written one."""
        names = [self._name(shard) for shard in self.plan.shards if shard.split == split]
        for name, part in zip(names, self.folder.parts(split, names), strict=True):
            if part.job != self._hash:
                raise DataError(
                    f"{self.folder.data_sets[split].locate(name)}: another job has written into this folder, "
                    "too: see that it has ended, and pack everything again with --overwrite"
                )
            yield part

    def _report(self, accounts: Sequence[Account]) -> str:
        sections = [
            Section(
                name=folder.name,
                shards=sum(shard.record.samples > 0 for shard in account.shards),
                total_bytes=sum(shard.record.bytes for shard in account.shards),
                statistics=account.statistics,
                rejected=account.rejected,
                examples=read_examples(folder, account.shards),
            )
            for folder, account in zip(self.folder.data_sets, accounts, strict=True)
        ]
        return dataset_report(self.folder.root.name, sections)

    def restore(self, manifests: list[Manifest]) -> int:
        """Write shards again that the manifests list but that are gone or cut short; how many. Raises
        DataError where they cannot be made as they were.
        """
        planned = {(shard.split, shard.number): shard for shard in self.plan.shards}
        shards, records = [], []
        alone = self.task.count == 1
        for split, manifest in enumerate(manifests):
            sizes = self.folder.data_sets[split].sizes()
            gone = [record for record in manifest.shards if sizes.get(record.name) != record.bytes]
            # The folder, and with it the shards, may have had another name: the numbers stay.
            shards += [planned[split, _number(record.name)] for record in gone]
            records += gone
            self.folder.delete_leftovers(split, [record.name for record in gone], alone=alone)
        tasks = zip(self._tasks(shards), records, strict=True)
        for _ in self._run(partial(restore_shard, treatment=self.treatment), tasks):
            pass
        if alone or not shards:  # other tasks may be at the same work
            self.folder.clean_up()
        return len(shards)

    def _run(
        self,
        work: Callable[[Any], Any],
        tasks: Iterable[Any],
        until: Callable[[], bool] = lambda: False,
    ) -> Generator[Any, None, None]:
        """The results of the engine, which begins no more tasks after a SIGTERM or once `until()` is true.

        To be closed, which ends the work at once.
        """
        with (
            sigterm_waits() as sigterm,
            closing(self.engine(work, tasks, stopping=lambda: sigterm() or until())) as results,
        ):
            yield from results
            if sigterm():
                raise Stopped

    @cached_property
    def _hash(self) -> str:
        """What tells the descriptions of this job's shards from those of another."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def _finished(self) -> list[set[str]]:
        """The names of the whole shards of each split."""
        return [self.folder.finished(split) for split in range(len(self.folder.data_sets))]

    def _name(self, shard: PlannedShard) -> str:
        return self.folder.shard_name(shard.split, shard.number)

    def _tasks(self, shards: Iterable[PlannedShard]) -> Iterator[PackingTask]:
        duplicates = np.zeros(0, np.uint64)
        if DUPLICATES in self.folder.root.names():
            duplicates = read_duplicates(self.folder.root)
        for shard in shards:
            numbers = self.plan.rows(shard)
            repeated = is_among(numbers, duplicates)
            rows: list[tuple[Row, Location | Rejected]] = [
                (row, Rejected("duplicate") if is_repeated else self._locate(row.image))
                for row, is_repeated in zip(self.table.rows(numbers), repeated.tolist(), strict=True)
            ]
            folder = self.folder.data_sets[shard.split]
            yield PackingTask(folder, self._name(shard), shard.slots.start, rows, self._hash)

    def _chunk_images(self, chunk: int) -> list[Location | Rejected]:
        numbers = np.arange(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, len(self.table)))
        return [usable(row) or self._locate(row.image) for row in self.table.rows(numbers)]

    def _locate(self, image: str) -> Location | Rejected:
        try:
            return self.images.locate(image)
        except Rejected as reason:
            return reason

    def _too_many(self, rejected: int) -> bool:
        return rejected > self.max_rejected * len(self.table)

    def _refuse(self, rejected: int) -> None:
        raise DataError(
            f"{rejected:,} of {len(self.table):,} rows were rejected, more than --max-rejected "
            f"{100 * self.max_rejected:g}% allows; finished shards are kept: allow more, or mend the rows "
            "and pack all of them again with --overwrite"
        )


def _number(shard_name: str) -> int:
    """7 of set-000007.tar."""
    return int(shard_name.removesuffix(".tar").rpartition("-")[2])
