"""What a training run would see, and how fast: the loader without a model.

    python -m pipeline.stream --data shards/train --batch-size 64
    python -m pipeline.stream --data s3://bucket/pmc/train --batches 100 --start 1_000_000
    python -m pipeline.stream --data shards/figures=0.7 shards/photos=0.3 --transform my_transforms:grey
    torchrun --nproc_per_node 4 -m pipeline.stream --data shards/train --keys order.tsv

RANK and WORLD_SIZE in the environment choose a rank's share; no process group is needed for that. Under
torchrun the first process writes the keys of all of them.
"""

import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TextIO

import torch.distributed as dist

from pipeline.checks import check_at_least, local_path
from pipeline.cli import main
from pipeline.data import (
    check_global_batch,
    describe_training,
    open_training_data,
    parse_sources,
    reading_advice,
    training_loader,
)
from pipeline.device import join_group
from pipeline.interrupts import quick_end
from pipeline.live_line import LiveLine
from pipeline.loader import Batch, Loader
from pipeline.loading_flags import LoadingFlags
from pipeline.packed_table import check_tables
from pipeline.run_log import say
from pipeline.stage_report import Snapshot, StageReport
from pipeline.topology import Topology
from shards import DEFAULT_LANES, DataError, Mixture, UsageError


@dataclass(frozen=True, kw_only=True)
class StreamConfig(LoadingFlags):
    """Flags of `pipeline.stream`."""

    data: tuple[str, ...]
    """Data sets, each a path or an address such as s3://bucket/prefix, or a table of images and captions;
    with weights, A=0.7 B=0.3.
    """
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
    keys: str | None = None
    """File to write `position<TAB>key` of every sample to, in order."""
    checksums: bool = False
    """Add a third column to --keys: the CRC-32 of the sample's pixels."""

    def check(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, batch_size=1, batches=1, start=0, seed=0, lanes=1, image_size=1)
        self.check_loading()
        check_tables(self, parse_sources(self.data)[0])
        if self.checksums and not self.keys:
            raise UsageError("--checksums adds a column to --keys FILE: give that too")
        if self.keys:
            local_path("--keys", self.keys)


def stream(config: StreamConfig) -> None:
    """Run the loader, write keys, and print rates."""
    config.check()
    topology = Topology.from_environment()
    together = topology.together
    # In a group a process may wait for others inside the library, where no handler of ours would run: there
    # SIGTERM keeps its own, immediate effect.
    with nullcontext() if together else quick_end():
        _stream(config, topology, together)


def _stream(config: StreamConfig, topology: Topology, together: bool) -> None:
    data = open_training_data(config.data, topology, lanes=config.lanes, seed=config.seed, tables=config)
    global_batch = config.batch_size * topology.world_size
    check_global_batch(global_batch, topology, data)
    batches = -(-len(data) // global_batch) if config.batches is None else config.batches
    options = config.loader_options(topology)
    stop = config.start + batches * global_batch
    talks = topology.is_main or not together
    with ExitStack() as opened:
        if options.cache:
            opened.enter_context(options.cache)
        if together:
            opened.enter_context(_process_group(topology))
        say("\n".join(describe_training(data)) + f"; {reading_advice(data, topology)}", main=talks)
        keys = opened.enter_context(_open_keys(config.keys)) if config.keys and talks else None
        loader = opened.enter_context(
            training_loader(
                data,
                topology,
                global_batch=global_batch,
                start=config.start,
                stop=stop,
                images=config.train_images(config.image_size),
                text=None,
                options=options,
            )
        )
        begin = Snapshot.start(loader)
        name = f"rank {topology.rank}: " if together else ""
        with LiveLine(loader, batches, talks=talks, name=name) as line:
            first = 0.0
            for batch in loader:
                first = first or time.perf_counter() - begin.time
                if config.keys:
                    _write_keys(batch, keys, checksums=config.checksums, together=together)
                line.advance()
        if talks:
            print(_summary(loader, begin, first))
            for told in _counts_by_source(data, config.start, stop):
                print(told)


@contextmanager
def _process_group(topology: Topology) -> Iterator[None]:
    join_group(topology, "gloo")
    yield
    dist.destroy_process_group()


def _summary(loader: Loader, begin: Snapshot, first: float) -> str:
    """Rates, stages and verdict of the whole run; `first`: seconds to the first batch."""
    report = StageReport.between(begin, Snapshot.take(loader))
    samples, seconds = report.loader.samples, report.seconds
    return (
        f"{samples:,} samples in {seconds:.2f} s: {samples / seconds:,.0f} samples/s, "
        f"{report.loader.image_bytes / 1e6 / seconds:,.1f} MB/s; first batch after {first:.2f} s\n"
        f"{report.table()}\n{report.verdict('the consumer')}"
    )


def _counts_by_source(data: Mixture, start: int, stop: int) -> list[str]:
    """What each of several data sets gave between two positions."""
    if len(data.datasets) == 1:
        return []
    before, after = data.samples_seen_by_source(start), data.samples_seen_by_source(stop)
    return [
        f"{dataset.folder.address}: {last - first:,} of the {stop - start:,} samples of all processes, "
        f"{(last - first) / len(dataset):.2f} of its epochs"
        for dataset, first, last in zip(data.datasets, before, after, strict=True)
    ]


def _open_keys(flag: str) -> TextIO:
    path = local_path("--keys", flag)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(
            f"--keys {flag}: it cannot be written ({error.strerror}); give another file"
        ) from error


def _write_keys(batch: Batch, file: TextIO | None, *, checksums: bool, together: bool) -> None:
    """Write the lines of a global batch, in order, on the process that has the file."""
    lines = _key_lines(batch, checksums)
    if together:
        lines = _gather(lines)
    if file:
        file.writelines(line for _, line in sorted(lines))
        file.flush()  # what was seen stays written, however the process ends


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
    try:
        dist.gather_object(lines, gathered)
    except RuntimeError as error:
        raise DataError(
            "another process of this job has ended, and says why in a message of its own"
        ) from error
    return [line for part in gathered or [] for line in part]


if __name__ == "__main__":
    main(stream, StreamConfig, "stream", __doc__ or "")
