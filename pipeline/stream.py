"""What a training run would see, and how fast: the loader without a model.

    python -m pipeline.stream --data shards/train --batch-size 64
    python -m pipeline.stream --data s3://bucket/pmc/train --batches 100 --start 1_000_000
    torchrun --nproc_per_node 4 -m pipeline.stream --data shards/train --keys order.tsv

RANK and WORLD_SIZE in the environment choose a rank's share; no process group is needed for that. Under
torchrun the first process writes the keys of all of them.
"""

import sys
import time
import zlib
from dataclasses import dataclass
from typing import TextIO

import torch.distributed as dist
from tqdm import tqdm

from pipeline.checks import check_at_least, check_share, local_path
from pipeline.cli import main
from pipeline.data import check_global_batch, describe, make_options, reading_advice, training_loader
from pipeline.decode import TrainImages
from pipeline.loader import Batch, Loader
from pipeline.stage_report import stage_report
from pipeline.topology import Topology, launched_as_group
from shards import DEFAULT_LANES, Order, UsageError, open_dataset


@dataclass(frozen=True)
class StreamConfig:
    """Flags of `pipeline.stream`."""

    data: str
    """Folder of shards: a path or an address such as s3://bucket/prefix."""
    batch_size: int = 64
    """Samples in a batch of each process."""
    batches: int | None = None
    """Batches to read; without it, one epoch."""
    start: int = 0
    """Position to start from: samples seen by all processes together."""
    seed: int = 0
    """Seed of the order and of the crops."""
    lanes: int = DEFAULT_LANES
    """Places of the data set read side by side."""
    image_size: int = 224
    """Side of the square crops, in pixels."""
    crop_scale: float = 0.9
    """Smallest share of an image's area that a crop has."""
    workers: int | None = None
    """Decoding threads of each process; without it, the machine's cores shared among its processes."""
    prefetch_bytes: int | None = None
    """Bytes each process reads ahead of use; without it, 2 GiB shared among a machine's processes."""
    keys: str | None = None
    """File to write `position<TAB>key` of every sample to, in order."""
    checksums: bool = False
    """Add a third column to --keys: the CRC-32 of the sample's pixels."""


def stream(config: StreamConfig) -> None:
    """Run the loader, write keys, and print rates."""
    check_at_least(config, batch_size=1, batches=1, start=0, seed=0, lanes=1, image_size=1, workers=1)
    check_at_least(config, prefetch_bytes=0)
    check_share(config, "crop_scale")
    topology = Topology.from_environment()
    dataset = open_dataset(config.data)
    global_batch = config.batch_size * topology.world_size
    check_global_batch(global_batch, topology, dataset)
    if config.checksums and not config.keys:
        raise UsageError("--checksums adds a column to --keys FILE: give that too")
    batches = -(-len(dataset) // global_batch) if config.batches is None else config.batches
    order = Order(dataset.blocks.samples, config.seed, config.lanes)
    options = make_options(config.workers, config.prefetch_bytes, topology)
    together = launched_as_group() and topology.world_size > 1
    if together:
        dist.init_process_group("gloo")
    begin = time.perf_counter()
    loader = training_loader(
        dataset,
        order,
        topology,
        global_batch=global_batch,
        start=config.start,
        stop=config.start + batches * global_batch,
        images=TrainImages(config.image_size, config.crop_scale),
        text=None,
        options=options,
    )
    talks = topology.is_main or not together
    if talks:
        print(describe(dataset), reading_advice(dataset, order, topology), sep="; ", file=sys.stderr)
    with loader:
        report = _consume(loader, config, batches, together=together, talks=talks, begin=begin)
    if talks:
        print(report)
        print(stage_report(loader.stats, loader.stream_stats, time.perf_counter() - begin, options.workers))
    if together:
        dist.destroy_process_group()


def _consume(
    loader: Loader, config: StreamConfig, batches: int, *, together: bool, talks: bool, begin: float
) -> str:
    """Read all batches; the summary of rates."""
    first = 0.0
    writes = bool(config.keys) and talks
    file = _open_keys(config.keys) if writes and config.keys else None
    progress = tqdm(total=batches, unit="batch", disable=not talks or not sys.stderr.isatty())
    try:
        for batch in loader:
            first = first or time.perf_counter() - begin
            if config.keys:
                lines = _key_lines(batch, config.checksums)
                if together:
                    lines = _gather(lines)
                if file:
                    file.writelines(line for _, line in sorted(lines))
            progress.update()
    finally:
        progress.close()
        if file:
            file.close()
    stats, seconds = loader.stats, time.perf_counter() - begin
    return (
        f"{stats.samples:,} samples in {seconds:.2f} s: {stats.samples / seconds:,.0f} samples/s, "
        f"{stats.image_bytes / 1e6 / seconds:,.1f} MB/s; first batch after {first:.2f} s"
    )


def _open_keys(flag: str) -> TextIO:
    path = local_path("--keys", flag)
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "w", encoding="utf-8", errors="surrogateescape")


def _key_lines(batch: Batch, checksums: bool) -> list[tuple[int, str]]:
    """(position, line) of each sample of a batch."""
    lines = []
    for index, (position, key) in enumerate(zip(batch.positions.tolist(), batch.keys, strict=True)):
        line = f"{position}\t{key}"
        if checksums:
            pixels = batch.images[index].permute(1, 2, 0).contiguous().numpy()
            line += f"\t{zlib.crc32(pixels.tobytes()):08x}"
        lines.append((position, line + "\n"))
    return lines


def _gather(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """All ranks' lines on rank 0, nothing elsewhere."""
    gathered: list[list[tuple[int, str]]] | None = (
        [[] for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    )
    dist.gather_object(lines, gathered)
    return [line for part in gathered or [] for line in part]


if __name__ == "__main__":
    main(stream, StreamConfig, "stream", __doc__ or "")
