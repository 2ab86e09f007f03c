"""What a packing job would do: its shards, and how long and how large it would be, told from a few of its
rows.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np

from pipeline.sharding.job import Job
from pipeline.sharding.packing import sample_members
from pipeline.sharding.rows import Rejected
from pipeline.wording import counted
from shards.tar import pack_sample

ROWS_TRIED = 200


def describe_plan(job: Job, workers: int) -> str:
    """The plan in a few lines: rows and shards of each data set, bytes, time and disk."""
    tried = np.linspace(0, len(job.table) - 1, min(ROWS_TRIED, len(job.table))).astype(np.int64)
    written, rejected, begin = 0, 0, time.perf_counter()
    for row in job.table.rows(tried):
        try:
            image = job.images.locate(row.image).read()
            members = sample_members(row, image, job.treatment, [])
            written += len(pack_sample("0" * 9, members))
        except Rejected:
            rejected += 1
    seconds = (time.perf_counter() - begin) / len(tried)
    bytes_per_row = written / len(tried)
    lines = [f"the plan for {job.folder.root.address}; nothing was written"]
    for split, folder in enumerate(job.folder.data_sets):
        shards = [shard for shard in job.plan.shards if shard.split == split]
        rows = sum(len(shard.slots) for shard in shards)
        first, last = (job.folder.shard_name(split, shards[n].number) for n in (0, -1))
        names = first if len(shards) == 1 else f"{first} to {last}"
        lines.append(
            f"  {folder.address}: {counted(rows, 'row')}, {counted(len(shards), 'shard')} ({names}), "
            f"about {rows * bytes_per_row / 1e6:,.1f} MB"
        )
    own = sum(len(shard.slots) for n, shard in enumerate(job.plan.shards) if job.task.owns(n))
    each = f" for each of {job.task.count} tasks" if job.task.count > 1 else ""
    lines.append(f"of {counted(len(tried), 'row')} tried, {rejected:,} would be rejected")
    at_once = min(workers, len(os.sched_getaffinity(0)))
    lines.append(f"time: about {_duration(own * seconds / at_once)} with {counted(workers, 'worker')}{each}")
    needed = len(job.table) * bytes_per_row
    lines.append(f"disk: about {needed / 1e6:,.1f} MB{_free(job, needed)}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(1, seconds):.0f} s"


def _free(job: Job, needed: float) -> str:
    if job.folder.root.remote:
        return ""
    there = Path(job.folder.root.address).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return f"; {free / 1e6:,.1f} MB are free there" + (": TOO LITTLE" if free < needed else "")
