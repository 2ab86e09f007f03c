"""A packing job: this task's missing shards are packed; once the shards of all tasks are there, whichever
task sees it first writes the manifests.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from pipeline.sharding.dataset_report import Section, dataset_report
from pipeline.sharding.duplicates import (
    CHUNK_ROWS,
    HashingTask,
    hash_images,
    hashes_name,
    read_duplicates,
    write_duplicates,
)
from pipeline.sharding.examples import read_examples
from pipeline.sharding.image_sources import ImageSource, Location
from pipeline.sharding.job_folder import DUPLICATES, REJECTED, REPORT, JobFolder
from pipeline.sharding.packing import PackedShard, PackingTask, Treatment, pack_shard
from pipeline.sharding.plan import PackingPlan, PlannedShard
from pipeline.sharding.row_progress import RowProgress
from pipeline.sharding.rows import Rejected, Row
from pipeline.sharding.spool import SpooledTable
from pipeline.sharding.statistics import Statistics
from pipeline.sharding.tasks import TaskShare
from pipeline.sharding.worker_pool import sigterm_waits
from shards import DataError, Manifest, write_manifest


class Engine(Protocol):
    """What runs tasks on several workers; see `worker_pool.run_in_processes`."""

    def __call__(
        self, work: Callable[[Any], Any], tasks: Iterable[Any], *, stopping: Callable[[], bool]
    ) -> Iterator[Any]:
        """The results of `work` on every task, as they come."""


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

    max_rejected: the share of rows above which the job fails.
    """

    table: SpooledTable
    images: ImageSource
    plan: PackingPlan
    folder: JobFolder
    identity: dict[str, Any]
    treatment: Treatment
    task: TaskShare
    engine: Engine
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
        with RowProgress(CHUNK_ROWS * len(missing), 0, "rows hashed") as progress:
            for rows in self._run(hash_images, tasks):
                progress.advance(rows)
        if not {hashes_name(n) for n in range(chunks)} <= set(root.names()) | {DUPLICATES}:
            return DUPLICATES in root.names()
        write_duplicates(root, chunks)
        return True

    def pack(self) -> None:
        """Pack this task's shards that are not there yet. Raises Stopped, and DataError past "
        "`max_rejected`."""
        finished = [self.folder.finished(split) for split in range(len(self.folder.data_sets))]
        own = [shard for number, shard in enumerate(self.plan.shards) if self.task.owns(number)]
        missing = [shard for shard in own if self._name(shard) not in finished[shard.split]]
        for split in range(len(self.folder.data_sets)):
            names = [self._name(shard) for shard in missing if shard.split == split]
            self.folder.delete_leftovers(split, names, alone=self.task.count == 1)
        done = sum(len(shard.slots) for shard in own) - sum(len(shard.slots) for shard in missing)
        rows: Counter[str] = Counter()
        work = partial(pack_shard, treatment=self.treatment)
        with RowProgress(sum(len(shard.slots) for shard in own), done) as progress:
            for outcome in self._run(
                work, self._tasks(missing), until=lambda: self._too_many(rows["rejected"])
            ):
                progress.advance(outcome.samples + outcome.rejected)
                rows["rejected"] += outcome.rejected
        if self._too_many(rows["rejected"]):
            finished = [self.folder.finished(split) for split in range(len(self.folder.data_sets))]
            parts = (self.folder.parts(split, sorted(names)) for split, names in enumerate(finished))
            self.folder.root.write(REJECTED, rejected_csv(part for split in parts for part in split))
            self._refuse(rows["rejected"])

    def others_missing(self) -> int:
        """How many shards of all tasks are not there yet."""
        finished = [self.folder.finished(split) for split in range(len(self.folder.data_sets))]
        return sum(self._name(shard) not in finished[shard.split] for shard in self.plan.shards)

    def finish(self) -> list[FinishedDataSet]:
        """Write rejected.csv and the manifests of all data sets. Raises DataError where too many rows were
        rejected, or all of a data set.
        """
        parts = [
            self.folder.parts(
                split, [self._name(shard) for shard in self.plan.shards if shard.split == split]
            )
            for split in range(len(self.folder.data_sets))
        ]
        self.folder.root.write(REJECTED, rejected_csv(part for split in parts for part in split))
        rejected = sum(len(part.rejected) for split in parts for part in split)
        for folder, split in zip(self.folder.data_sets, parts, strict=True):
            if not any(part.written.record.samples for part in split):
                reasons = Counter(row.reason for part in split for row in part.rejected)
                reason, count = reasons.most_common(1)[0]
                raise DataError(
                    f"all {reasons.total():,} rows for {folder.address} were rejected, {count:,} of them "
                    f"because: {reason}; images were looked for in {self.images.identity}; every row and its "
                    f"reason is in {self.folder.root.locate(REJECTED)}"
                )
        if self._too_many(rejected):
            self._refuse(rejected)
        accounts = [
            (
                sum((part.statistics for part in split), Statistics()),
                Counter(row.reason for part in split for row in part.rejected),
            )
            for split in parts
        ]
        self.folder.root.write(REPORT, self._report(parts, accounts).encode())
        manifests = [
            write_manifest(folder, (part.written for part in split), self.identity)
            for folder, split in zip(self.folder.data_sets, parts, strict=True)
        ]
        self.folder.delete_parts()
        return [
            FinishedDataSet(manifest, *account) for manifest, account in zip(manifests, accounts, strict=True)
        ]

    def _report(
        self, parts: Sequence[Sequence[PackedShard]], accounts: Sequence[tuple[Statistics, Counter[str]]]
    ) -> str:
        sections = [
            Section(
                name=folder.name,
                shards=sum(part.written.record.samples > 0 for part in split),
                total_bytes=sum(part.written.record.bytes for part in split),
                statistics=statistics,
                rejected=rejected,
                examples=read_examples(folder, split),
            )
            for folder, split, (statistics, rejected) in zip(
                self.folder.data_sets, parts, accounts, strict=True
            )
        ]
        return dataset_report(self.folder.root.name, sections)

    def restore(self, manifests: list[Manifest]) -> int:
        """Write shards again that the manifests list but that are gone; how many. Raises DataError where they
        cannot be made as they were.
        """
        by_name = {(shard.split, self._name(shard)): shard for shard in self.plan.shards}
        gone = [
            (split, record)
            for split, manifest in enumerate(manifests)
            for record in manifest.shards
            if record.name not in set(self.folder.data_sets[split].names())
        ]
        shards = [by_name[split, record.name] for split, record in gone]
        for _ in self._run(partial(pack_shard, treatment=self.treatment), self._tasks(shards)):
            pass
        for (split, record), shard in zip(gone, shards, strict=True):
            if self.folder.parts(split, [self._name(shard)])[0].written.record != record:
                raise DataError(
                    f"{self.folder.data_sets[split].locate(record.name)} was gone and has been written "
                    "again, but not as the manifest has it: the images changed since; pack everything again "
                    "with --overwrite"
                )
        self.folder.delete_parts()
        return len(gone)

    def _run(
        self,
        work: Callable[[Any], Any],
        tasks: Iterable[Any],
        until: Callable[[], bool] = lambda: False,
    ) -> Iterator[Any]:
        """The results of the engine, which begins no more tasks after a SIGTERM or once `until()` is true."""
        with sigterm_waits() as sigterm:
            yield from self.engine(work, tasks, stopping=lambda: sigterm() or until())
            if sigterm():
                raise Stopped

    def _name(self, shard: PlannedShard) -> str:
        return self.folder.shard_name(shard.split, shard.number)

    def _tasks(self, shards: Iterable[PlannedShard]) -> Iterator[PackingTask]:
        duplicates = np.zeros(0, np.uint64)
        if DUPLICATES in self.folder.root.names():
            duplicates = read_duplicates(self.folder.root)
        for shard in shards:
            numbers = self.plan.rows(shard)
            repeated = np.isin(numbers, duplicates, kind="sort")
            rows: list[tuple[Row, Location | Rejected]] = [
                (row, Rejected("duplicate") if is_repeated else self._locate(row.image))
                for row, is_repeated in zip(self.table.rows(numbers), repeated.tolist(), strict=True)
            ]
            folder = self.folder.data_sets[shard.split]
            yield PackingTask(folder, self._name(shard), shard.slots.start, rows)

    def _chunk_images(self, chunk: int) -> list[Location | Rejected]:
        numbers = np.arange(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, len(self.table)))
        return [self._locate(row.image) for row in self.table.rows(numbers)]

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


def rejected_csv(parts: Iterable[PackedShard]) -> bytes:
    """Every rejected row, in the order of the table."""
    rows = sorted((row for part in parts for row in part.rejected), key=lambda row: row.row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "image", "reason"])
    writer.writerows((row.row, row.image, row.reason) for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
