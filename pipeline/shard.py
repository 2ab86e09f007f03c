"""Pack a table of captions and its images into WebDataset shards.

    python -m pipeline.shard --csv train.csv
    python -m pipeline.shard --csv train.csv --images images/ --out s3://bucket/pmc/train

Writes OUT/NAME-000000.tar and so on, manifest.json and the index beside them, and rejected.csv for the rows
that could not be taken (rows are numbered from 0, the header not counted). Image bytes are kept as they are.
Interrupted, the same command goes on with the shards that are missing.
"""

import csv
import io
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from pipeline.cli import main
from pipeline.sharding.image_check import ImageRules
from pipeline.sharding.image_sources import ImageSource, Location, open_image_source
from pipeline.sharding.job_folder import REJECTED, TOOL, delete_parts, prepare_folder, read_parts
from pipeline.sharding.packing import PackedShard, PackingPlan, PackingTask, pack_shard
from pipeline.sharding.row_progress import RowProgress
from pipeline.sharding.rows import Rejected, RejectedRow, Row
from pipeline.sharding.spool import SpooledTable, spool_tables
from pipeline.sharding.tables import TableFormat
from pipeline.sharding.worker_pool import run_in_processes, sigterm_interrupts
from shards import DataError, Folder, Manifest, UsageError, write_manifest


@dataclass(frozen=True)
class ShardConfig:
    """Flags of `pipeline.shard`."""

    csv: Annotated[str, tyro.conf.arg(aliases=["--table"])]
    """Table of images and captions (CSV, UTF-8, with a header line)."""
    images: Annotated[str | None, tyro.conf.arg(aliases=["--image-dir"])] = None
    """Folder of the images; without it, the table's own folder or the `images` beside it."""
    out: str | None = None
    """Folder for the shards: a path or an address such as s3://bucket/prefix; without it, shards/ and the
    table's name.
    """
    image_key: Annotated[str, tyro.conf.arg(aliases=["--csv-img-key"])] = "image"
    """Column with the image's name, relative to the folder of images."""
    caption_key: Annotated[str, tyro.conf.arg(aliases=["--csv-caption-key"])] = "caption"
    """Column with the caption."""
    separator: Annotated[str, tyro.conf.arg(aliases=["--csv-separator"])] = ","
    """What separates the table's fields, one character."""
    samples_per_shard: int = 1000
    """Rows in a shard."""
    seed: int = 0
    """Seed of the order in which rows are packed."""
    workers: int | None = None
    """Processes that read, check and pack; without it, one for each core."""
    overwrite: bool = False
    """Replace the data set that the output folder holds."""

    def check(self) -> None:
        """Raise UsageError where values are out of range."""
        for name, value in (("--samples-per-shard", self.samples_per_shard), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: it must be at least 1")
        if len(self.field_separator) != 1 or self.field_separator in '"\r\n':
            raise UsageError(
                f"--separator {self.separator!r}: it must be one character, no quote and no end of line"
            )

    @property
    def field_separator(self) -> str:
        """The separator, where a shell's `\\t` means a tab."""
        return self.separator.replace("\\t", "\t")


def shard(config: ShardConfig) -> None:
    """Pack the table that the flags name."""
    config.check()
    begin = time.perf_counter()
    path = Path(config.csv)
    out = Folder(config.out or f"shards/{path.stem}")
    table_format = TableFormat(config.image_key, config.caption_key, config.field_separator)
    with sigterm_interrupts(), spool_tables([config.csv], table_format) as table:
        plan = PackingPlan(len(table), config.seed, config.samples_per_shard)
        first_names = [row.image for row in table.rows(np.arange(min(100, len(table))))]
        images = open_image_source([config.images] if config.images else [], [config.csv], first_names)
        identity = _identity(path, table, images, plan)
        if not prepare_folder(out, identity, overwrite=config.overwrite):
            print(f"{out.address}: this data set is complete; nothing to do")
            return
        workers = config.workers or len(os.sched_getaffinity(0))
        try:
            packed = _pack_all(table, images, out, plan, workers)
        except KeyboardInterrupt:
            print("finished shards are kept; the same command goes on with the others", file=sys.stderr)
            raise
    manifest = _finish(out, packed, identity, images)
    _summarise(out, manifest, packed, time.perf_counter() - begin)


def _identity(path: Path, table: SpooledTable, images: ImageSource, plan: PackingPlan) -> dict[str, Any]:
    """What the output follows from, so that a rerun can tell whether it is the same job."""
    return {
        "tool": TOOL,
        "table": path.name,
        "rows": plan.rows,
        "rows_sha256": table.sha256,
        "images": images.identity,
        "seed": plan.seed,
        "samples_per_shard": plan.samples_per_shard,
    }


def _pack_all(
    table: SpooledTable, images: ImageSource, out: Folder, plan: PackingPlan, workers: int
) -> list[PackedShard]:
    """Pack every shard that is not there yet, in worker processes; all shards in order."""
    names = [f"{out.name}-{number:06d}.tar" for number in range(plan.shards)]
    packed = read_parts(out, names)
    order = plan.order()
    missing = [(name, plan.slots(n)) for n, name in enumerate(names) if name not in packed]
    tasks = (
        PackingTask(name, slots.start, _located(table.rows(order[slots.start : slots.stop]), images))
        for name, slots in missing
    )
    pack = partial(pack_shard, rules=ImageRules(), out=out)
    with RowProgress(plan.rows, sum(shard.rows for shard in packed.values())) as progress:
        for shard in run_in_processes(pack, tasks, max(1, min(workers, len(missing)))):
            packed[shard.written.record.name] = shard
            progress.advance(shard.rows)
    return [packed[name] for name in names]


def _located(rows: list[Row], images: ImageSource) -> list[tuple[Row, Location | Rejected]]:
    located: list[tuple[Row, Location | Rejected]] = []
    for row in rows:
        try:
            located.append((row, images.locate(row.image)))
        except Rejected as reason:
            located.append((row, reason))
    return located


def _finish(
    out: Folder, packed: list[PackedShard], identity: dict[str, Any], images: ImageSource
) -> Manifest:
    """Write rejected.csv and the manifest, and remove what only an unfinished job needs."""
    rejected = sorted((row for shard in packed for row in shard.rejected), key=lambda row: row.row)
    out.write(REJECTED, _rejected_csv(rejected))
    if not any(shard.written.record.samples for shard in packed):
        delete_parts(out)
        reason, count = Counter(row.reason for row in rejected).most_common(1)[0]
        raise DataError(
            f"all {len(rejected):,} rows were rejected, {count:,} of them because: {reason}; images were "
            f"looked for in {images.identity}; every row and its reason is in {out.locate(REJECTED)}"
        )
    manifest = write_manifest(out, [shard.written for shard in packed], identity)
    delete_parts(out)
    return manifest


def _rejected_csv(rejected: list[RejectedRow]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "image", "reason"])
    writer.writerows((row.row, row.image, row.reason) for row in rejected)
    return text.getvalue().encode()


def _summarise(out: Folder, manifest: Manifest, packed: list[PackedShard], seconds: float) -> None:
    reasons = Counter(row.reason for shard in packed for row in shard.rejected)
    formats = sum((Counter(shard.formats) for shard in packed), Counter())
    print(
        f"{out.address}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.total_bytes / 1e6:,.1f} MB ({', '.join(f'{n:,} {name}' for name, n in formats.items())})"
    )
    print(f"rejected rows: {sum(reasons.values()):,}" + (f", see {out.locate(REJECTED)}" if reasons else ""))
    for reason, count in reasons.most_common():
        print(f"  {count:>8,} {reason}")
    print(f"{seconds:.1f} s, {manifest.samples / seconds:,.0f} samples/s")
    print(f"next: python -m pipeline.stream --data {out.address} --batch-size 64")


if __name__ == "__main__":
    main(shard, ShardConfig, "shard", __doc__ or "")
