"""Verifying all shards of a data set in parallel."""

import os
from collections.abc import Iterator

import numpy as np

from pipeline.indexing.job import TOOL as INDEX_TOOL
from pipeline.inspecting.verify_shard import Expected, Verified, verify_shard
from pipeline.job_progress import MEGABYTES, JobProgress
from pipeline.sharding.worker_pool import run_in_processes
from shards import Dataset
from shards.references import resolve_reference

_PACKING_TOOL = "pipeline.shard"


def verify_shards(dataset: Dataset, workers: int | None) -> list[Verified]:
    """The shards of which something is wrong, in manifest order."""
    expected = list(_expected(dataset))
    count = max(1, min(workers or len(os.sched_getaffinity(0)), len(expected)))
    bad: dict[str, Verified] = {}
    results = run_in_processes(verify_shard, expected, count) if count > 1 else map(verify_shard, expected)
    with JobProgress(dataset.manifest.total_bytes, unit=MEGABYTES) as progress:
        for verified in results:
            progress.advance(verified.bytes)
            if verified.problems:
                bad[verified.address] = verified
    addresses = (each.folder.locate(each.record.name) for each in expected)
    return [bad[address] for address in addresses if address in bad]


def unlisted_tars(dataset: Dataset) -> list[str]:
    """Tars beside the manifest that it does not list; none where the shards were there before it."""
    if dataset.manifest.made_by.get("tool") == INDEX_TOOL:
        return []
    own = {record.name for record in dataset.manifest.shards if not record.folder}
    if not own:
        return []
    names = dataset.folder.names()
    return [dataset.folder.locate(name) for name in names if name.endswith(".tar") and name not in own]


def remedy(dataset: Dataset) -> str:
    """What to do about bad shards."""
    copy = "copy them again from where they are whole"
    tool = dataset.manifest.made_by.get("tool")
    if tool == INDEX_TOOL:
        return f"{copy}, or, if they were changed on purpose, run 'python -m {tool}' with --overwrite"
    if tool == _PACKING_TOOL and dataset.manifest.selection is None:
        return f"{copy}, or delete them and run 'python -m {tool}' again as before: it writes what is gone"
    return f"{copy}, or write the data set again with --overwrite"


def _expected(dataset: Dataset) -> Iterator[Expected]:
    first = 0
    for record in dataset.manifest.shards:
        rows = slice(first, first := first + record.samples)
        folder = resolve_reference(dataset.folder, record.folder)
        yield Expected(folder, record, np.array(dataset.lengths[rows]), np.array(dataset.checksums[rows]))
