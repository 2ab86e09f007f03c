"""Pack a table of captions and its images into WebDataset shards.

    python -m pipeline.shard --csv train.csv
    python -m pipeline.shard --csv train.csv --images images/ --out s3://bucket/pmc/train

Writes OUT/NAME-000000.tar and so on, manifest.json and the index beside them, and rejected.csv for the rows
that could not be taken. Image bytes are kept as they are. Interrupted, the same command goes on with the
shards that are missing.
"""

import csv
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from pipeline.cli import main
from pipeline.images import ImageFolder, choose_image_folder
from pipeline.packing import PackedShard, PackingPlan, RejectedRow, pack_shard, part_name, prepare_worker
from pipeline.shard_folder import REJECTED, delete_parts, prepare_folder
from pipeline.table import SpooledTable, TableFormat, spool_table
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
        if len(self.separator.replace("\\t", "\t")) != 1:
            raise UsageError(f"--separator {self.separator!r}: it must be one character")


def shard(config: ShardConfig) -> None:
    """Pack the table that the flags name."""
    config.check()
    begin = time.perf_counter()
    path = Path(config.csv)
    out = Folder(config.out or f"shards/{path.name.split('.')[0]}")
    with tempfile.TemporaryDirectory(prefix="pmc-clip-stream-") as scratch:
        separator = config.separator.replace("\\t", "\t")
        table = spool_table(path, TableFormat(config.image_key, config.caption_key, separator), Path(scratch))
        plan = PackingPlan(len(table), config.seed, config.samples_per_shard)
        identity = _identity(config, table, plan)
        if not prepare_folder(out, identity, overwrite=config.overwrite):
            print(f"{out.address}: this data set is complete; nothing to do")
            return
        first_names = [row.image for row in table.rows(np.arange(min(100, len(table))))]
        images = choose_image_folder(config.images, path, first_names)
        workers = config.workers or len(os.sched_getaffinity(0))
        packed = _pack_all(table, images, out, plan, workers)
    manifest = _finish(out, packed, identity, images)
    _summarise(out, manifest, packed, time.perf_counter() - begin)


def _identity(config: ShardConfig, table: SpooledTable, plan: PackingPlan) -> dict[str, Any]:
    """What the output follows from, so that a rerun can tell whether it is the same job."""
    with open(table.spool, "rb") as spool:
        rows_sha256 = file_digest(spool, "sha256").hexdigest()
    return {
        "tool": "pipeline.shard",
        "table": Path(config.csv).name,
        "rows": plan.rows,
        "rows_sha256": rows_sha256,
        "seed": plan.seed,
        "samples_per_shard": plan.samples_per_shard,
    }


def _pack_all(
    table: SpooledTable, images: ImageFolder, out: Folder, plan: PackingPlan, workers: int
) -> list[PackedShard]:
    """Pack every shard that is not there yet, in worker processes; all shards in order."""
    order = plan.order()
    names = [f"{out.name}-{number:06d}.tar" for number in range(plan.shards)]
    there = set(out.names())
    packed = {
        number: PackedShard.from_json(out.read(part_name(name)))
        for number, name in enumerate(names)
        if part_name(name) in there
    }
    missing = [number for number in range(plan.shards) if number not in packed]
    done = sum(len(plan.slots(number)) for number in packed)
    with (
        tqdm(total=plan.rows, initial=done, unit="row", disable=not sys.stderr.isatty()) as progress,
        _pool(min(workers, max(1, len(missing)))) as pool,
    ):
        numbers = {
            pool.submit(
                pack_shard,
                table,
                images,
                out,
                names[number],
                plan.slots(number),
                order[list(plan.slots(number))],
            ): number
            for number in missing
        }
        try:
            for future in as_completed(numbers):
                packed[numbers[future]] = future.result()
                progress.update(len(plan.slots(numbers[future])))
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, most often because memory ran out: start the same command "
                "again with fewer --workers; finished shards are kept"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # shards in work are finished, the others wait for a rerun
            raise
    return [packed[number] for number in range(plan.shards)]


def _pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes that hold nothing of this process's threads and files."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker)


def _finish(
    out: Folder, packed: list[PackedShard], identity: dict[str, Any], images: ImageFolder
) -> Manifest:
    """Write rejected.csv and the manifest, and remove what only an unfinished job needs."""
    rejected = sorted((row for shard in packed for row in shard.rejected), key=lambda row: row.row)
    out.write(REJECTED, _rejected_csv(rejected))
    if not any(shard.written.record.samples for shard in packed):
        delete_parts(out)
        reason, count = Counter(row.reason for row in rejected).most_common(1)[0]
        raise DataError(
            f"all {len(rejected):,} rows were rejected, {count:,} of them because: {reason}; images were "
            f"looked for in {images.root}; every row and its reason is in {out.locate(REJECTED)}"
        )
    manifest = write_manifest(out, [shard.written for shard in packed], identity)
    delete_parts(out)
    return manifest


def _rejected_csv(rejected: list[RejectedRow]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "image", "reason"])
    writer.writerows((row.row, row.image, row.reason) for row in rejected)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _summarise(out: Folder, manifest: Manifest, packed: list[PackedShard], seconds: float) -> None:
    reasons = Counter(row.reason for shard in packed for row in shard.rejected)
    formats = sum((Counter(shard.formats) for shard in packed), Counter())
    print(
        f"{out.address}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.total_bytes / 1e6:,.1f} MB ({', '.join(f'{n:,} {name}' for name, n in formats.items())})"
    )
    print(f"rejected rows: {sum(reasons.values()):,}" + _listed(reasons, out))
    print(f"{seconds:.1f} s, {manifest.samples / seconds:,.0f} samples/s")
    print(f"next: python -m pipeline.stream --data {out.address} --batch-size 64")


def _listed(reasons: Counter[str], out: Folder) -> str:
    """Reasons and where to read more, where there are any."""
    return "".join(_reason_lines(reasons)) + (f"\n  see {out.locate(REJECTED)}" if reasons else "")


def _reason_lines(reasons: Counter[str]) -> Iterator[str]:
    for reason, count in reasons.most_common():
        yield f"\n  {count:>8,} {reason}"


if __name__ == "__main__":
    main(shard, ShardConfig, "shard", __doc__ or "")
