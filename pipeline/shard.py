r"""Pack tables of captions and their images into WebDataset shards.

    python -m pipeline.shard --csv train.csv
    python -m pipeline.shard --csv pmc_oa.jsonl --images images.zip --out s3://bucket/pmc \
        --split train=0.9,valid=0.05,test=0.05
    python -m pipeline.shard --csv train.csv --dry-run

Writes OUT/NAME-000000.tar and so on with manifest.json and index beside them (below OUT/SPLIT for every
split), rejected.csv for the rows that could not be taken (rows are numbered from 0, through all tables,
headers not counted), and dataset_report.html. Image bytes are kept as they are unless --resize or --format
ask for something else. Interrupted, the same command goes on with the shards that are missing.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from pipeline.checks import check_at_least, output_folder, parse_bytes, parse_share
from pipeline.cli import main
from pipeline.job_progress import JobProgress, Unit
from pipeline.sharding.dask_engine import check_scheduler, run_on_dask
from pipeline.sharding.dry_run import describe_plan
from pipeline.sharding.endings import print_summary, resumable, say
from pipeline.sharding.folder_lock import locked
from pipeline.sharding.image_check import ImageRules
from pipeline.sharding.image_sources import ImageSource, open_image_source
from pipeline.sharding.job import Engine, FinishedDataSet, Job
from pipeline.sharding.job_folder import REJECTED, REPORT, JobFolder
from pipeline.sharding.packing import Treatment
from pipeline.sharding.plan import PackingPlan
from pipeline.sharding.splits import GroupCounter, Splits, parse_splits
from pipeline.sharding.spool import SpooledTable, spool_tables
from pipeline.sharding.tables import TableFormat, table_stem
from pipeline.sharding.tasks import find_task
from pipeline.sharding.transcode import Transcoding
from pipeline.sharding.worker_pool import run_in_processes, sigterm_interrupts
from pipeline.table_flags import TableFlags
from pipeline.wording import counted, next_step
from shards import DataError, MemberNames, UsageError, open_dataset


@dataclass(frozen=True, kw_only=True)
class ShardConfig(TableFlags):
    """Flags of `pipeline.shard`."""

    csv: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--table"])]
    """Tables of images and captions: CSV, TSV, JSONL or Parquet, gzip'd or not, paths or addresses."""
    table_format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """Format of the tables; without it, their names tell."""
    out: str | None = None
    """Folder for the shards: a path or an address such as s3://bucket/prefix; without it, shards/ and the
    table's name.
    """
    caption_lines: bool = False
    """Each line of a caption is a caption of its own, several of one image (as are the texts of a list)."""
    samples_per_shard: int = 1000
    """Rows in a shard."""
    max_shard_size: str | None = None
    """Most bytes of images, as they lie in the source, in a shard (500MB, 2GiB)."""
    split: str | None = None
    """Split the data by article: names and shares, such as train=0.9,valid=0.05,test=0.05."""
    group_key: str | None = None
    """Column with the group (article, patient) that must not be torn apart by --split."""
    group_pattern: str | None = None
    """Regular expression that finds the group in the image's name; without it, a PMC id."""
    verify: Literal["full", "header", "none"] = "full"
    """How much of each image is decoded to find damage."""
    min_side: int = 1
    """Pixels of the shorter side below which an image is rejected."""
    max_pixels: int = ImageRules.max_pixels
    """Pixels above which an image is rejected."""
    max_rejected: str = "100%"
    """Share of the rows above which rejections fail the job."""
    drop_duplicates: bool = False
    """Reject rows whose image has the same bytes as an earlier row's; takes a pass over all images."""
    resize: int | None = None
    """Make images smaller: pixels of the shorter side; never enlarges."""
    format: Literal["jpeg", "webp"] | None = None
    """Store all images in this format; without it, as they come."""
    quality: int = Transcoding.quality
    """Quality of images that --resize or --format encode again, 1 to 100."""
    seed: int = 0
    """Seed of the order in which rows are packed."""
    workers: int | None = None
    """Processes that read, check and pack; without it, one for each core, or two where nothing is decoded:
    they wait for the disk, too.
    """
    task: str | None = None
    """Do only task I of N (I/N, from 0); without it, SLURM's array or step tells, or all is one task."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers pack, in place of processes here."""
    dry_run: bool = False
    """Print the plan (shards, bytes, time, disk), and write nothing."""
    overwrite: bool = False
    """Replace the data set that the output folder holds."""

    def check(self) -> None:
        """Raise UsageError where values are out of range or contradict one another."""
        check_at_least(self, samples_per_shard=1, workers=1, min_side=1, max_pixels=1)
        if not self.csv:
            raise UsageError("--csv: give at least one table")
        self.check_table()
        if self.split is None and (self.group_key is not None or self.group_pattern is not None):
            raise UsageError("--group-key and --group-pattern say what --split keeps together: give that too")
        if self.dask is not None and self.workers is not None:
            raise UsageError("--workers counts processes here; with --dask, its workers do the work")
        self.transcoding.check()

    @property
    def transcoding(self) -> Transcoding:
        """What is done with the images' bytes."""
        return Transcoding(self.resize, self.format, self.quality)

    @property
    def rules(self) -> ImageRules:
        """What an image must be."""
        return ImageRules(self.verify, self.min_side, self.max_pixels)


def shard(config: ShardConfig) -> None:
    """Pack the tables that the flags name."""
    config.check()
    begin = time.perf_counter()
    task = find_task(config.task, os.environ)
    if config.overwrite and task.count > 1:
        raise UsageError(
            f"--overwrite as task {task.index} of {task.count}: each task would delete what the others "
            "wrote; delete the old data set first, or choose another --out"
        )
    splits = parse_splits(config.split, config.group_key, config.group_pattern) if config.split else None
    out = output_folder("--out", config.out or f"shards/{table_stem(config.csv[0])}")
    folder = JobFolder(out, splits.names if splits else ())
    workers = config.workers or _usual_workers(config)
    with sigterm_interrupts(), ExitStack() as opened:
        table = opened.enter_context(_read_tables(config, splits))
        tried = np.linspace(0, len(table) - 1, min(100, len(table))).astype(np.int64)
        some_names = [row.image for row in table.rows(tried)]
        images = opened.enter_context(open_image_source(config.images, config.csv, some_names))
        job = Job(
            table=table,
            images=images,
            plan=_plan(config, table, images, splits),
            folder=folder,
            identity=_identity(config, table, images),
            treatment=Treatment(config.rules, config.transcoding),
            task=task,
            engine=_engine(config, workers),
            max_rejected=parse_share("--max-rejected", config.max_rejected),
            member_names=MemberNames(caption_lines=config.caption_lines),
        )
        if config.dry_run:
            print(describe_plan(job, workers))
            return
        if config.dask is not None:
            check_scheduler(config.dask)  # before the folder is this job's
        opened.enter_context(locked(folder.root, alone=task.count == 1))
        folder.claim(job.identity, overwrite=config.overwrite)
        with resumable():
            finished = _work(config, job)
    if finished:
        _summarise(folder, finished, time.perf_counter() - begin)


def _work(config: ShardConfig, job: Job) -> list[FinishedDataSet]:
    """Do what is left to do; nothing is returned where this run is not the one that ends the job."""
    folder, task = job.folder, job.task
    manifests = folder.manifests()
    if manifests is not None:
        restored = job.restore(manifests)
        for data_set in folder.data_sets:
            open_dataset(data_set.address)  # its index may be damaged, or gone
        written = f"written again, since gone or cut short: {counted(restored, 'shard')}"
        done = written if restored else "nothing to do"
        print(f"{folder.root.address}: this data set is complete; {done}")
        return []
    if task.count > 1:
        say(f"task {task.index} of {task.count} ({task.source})")
    if config.drop_duplicates and not job.find_duplicates():
        print(
            f"{folder.root.address}: this task's images are hashed, those of other tasks are not yet; "
            "packing begins when the same tasks are started again after all of them have ended"
        )
        return []
    job.pack()
    missing = job.others_missing()
    if missing and folder.manifests() is None:
        print(
            f"{folder.root.address}: this task's shards are there, {counted(missing, 'shard')} of other "
            "tasks not yet (the task that ends last writes the manifest)"
        )
        return []
    try:
        return job.finish()
    except (DataError, FileNotFoundError):
        if folder.manifests() is None:
            raise
        print(f"{folder.root.address}: complete; another task wrote the manifest")
        return []


def _read_tables(config: ShardConfig, splits: Splits | None) -> SpooledTable:
    table_format = TableFormat(
        config.image_key, config.caption_key, config.field_separator, config.table_format
    )
    if splits is None:
        return spool_tables(config.csv, table_format)
    groups = GroupCounter(splits)
    table = spool_tables(config.csv, table_format, groups)
    groups.check()
    rows = np.bincount(table.splits, minlength=len(splits.names))
    if not rows.all():
        empty = splits.names[int(np.argmin(rows))]
        raise UsageError(
            f"--split: of {counted(len(table), 'row')}, no group falls into {empty}: give it "
            "more, or leave it out"
        )
    if groups.ungrouped:
        say(
            f"{groups.ungrouped:,} of {counted(len(table), 'row')} without a group "
            f"({splits.where_groups_are}): --split takes each of their images for a group of its own"
        )
    return table


def _plan(
    config: ShardConfig, table: SpooledTable, images: ImageSource, splits: Splits | None
) -> PackingPlan:
    sizes = limit = None
    if config.max_shard_size is not None:
        limit = parse_bytes("--max-shard-size", config.max_shard_size)
        sizes = np.zeros(len(table), np.uint32)
        with JobProgress(len(table), 0, Unit("images' sizes")) as progress:
            for start in range(0, len(table), 10_000):
                rows = table.rows(np.arange(start, min(start + 10_000, len(table))))
                found = images.sizes([row.image for row in rows])
                sizes[start : start + len(rows)] = np.minimum(found, np.iinfo(np.uint32).max)
                progress.advance(len(rows))
    split_count = len(splits.names) if splits else 1
    return PackingPlan(table.splits, split_count, config.seed, config.samples_per_shard, sizes, limit)


def _identity(config: ShardConfig, table: SpooledTable, images: ImageSource) -> dict[str, Any]:
    """What the output follows from, so that a rerun can tell whether it is the same job."""
    identity: dict[str, Any] = {
        "tool": "pipeline.shard",
        "tables": [address.rstrip("/").rpartition("/")[2] for address in config.csv],
        "rows": len(table),
        "rows_sha256": table.sha256,
        "images": images.identity,
        "seed": config.seed,
        "samples_per_shard": config.samples_per_shard,
        "verify": config.verify,
        "min_side": config.min_side,
        "max_pixels": config.max_pixels,
    }
    optional: dict[str, Any] = {
        "max_shard_size": config.max_shard_size,
        "split": config.split,
        "group_key": config.group_key,
        "group_pattern": config.group_pattern,
        "drop_duplicates": config.drop_duplicates or None,
        "caption_lines": config.caption_lines or None,
    }
    optional |= config.transcoding.identity
    return identity | {key: value for key, value in optional.items() if value is not None}


def _usual_workers(config: ShardConfig) -> int:
    decoding = config.verify != "none" or not config.transcoding.changes_nothing
    return len(os.sched_getaffinity(0)) * (1 if decoding else 2)


def _engine(config: ShardConfig, workers: int) -> Engine:
    if config.dask is not None:
        return partial(run_on_dask, config.dask)
    return partial(run_in_processes, workers=workers)


def _summarise(folder: JobFolder, finished: Sequence[FinishedDataSet], seconds: float) -> None:
    for data_set, result in zip(folder.data_sets, finished, strict=True):
        print_summary(data_set.address, result, folder.root.locate(REJECTED), "row")
    rows = sum(result.manifest.samples + result.rejected.total() for result in finished)
    print(f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s; look at {folder.root.locate(REPORT)}")
    print(next_step(folder.data_sets[0].address, finished[0].manifest.samples))


if __name__ == "__main__":
    main(shard, ShardConfig, "shard", __doc__ or "")
