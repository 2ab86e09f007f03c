"""Data sets made ready for training or evaluation: mixture, order, stream and loader, put together."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.decode import EvalImages, TrainImages
from pipeline.loader import BadSamplePolicy, Loader
from pipeline.open_data import open_data
from pipeline.table_flags import TableFlags
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.user_transform import UserTransform
from pipeline.wording import counted
from shards import (
    DEFAULT_PREFETCH_BYTES,
    Dataset,
    EvaluationPlan,
    Mixture,
    SampleStream,
    UsageError,
    nearest_batch,
)
from shards.disk_cache import DiskCache

# Evaluation reads from front to back, often beside a training stream that holds its own share of memory.
EVALUATION_PREFETCH_BYTES = 64 * 2**20
_WEIGHTED = re.compile(r"(.+)=([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True)
class LoaderOptions:
    """How a process loads; none of it changes which samples and pixels come, or their order."""

    workers: int
    prefetch_bytes: int
    pin_memory: bool = False
    cache: DiskCache | None = None  # of remote blocks
    bad_samples: BadSamplePolicy | None = None  # of training; evaluation never takes a substitute
    columns: Sequence[str] = ()  # of training samples, in their batches
    transform: UserTransform | None = None  # of training samples


def parse_sources(words: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Addresses and weights of `A=0.7 B=0.3`, or of `A B`, which leaves the weights to the sizes.

    Only `=` and a number at the very end of a word are a weight; an address that ends so itself is written
    with a slash or a weight after it (`shards/part=1/`).
    """
    if not words or not all(words):
        raise UsageError("no data set is named: give a path or an address, or several")
    matches = [_WEIGHTED.fullmatch(word) for word in words]
    weighted = [match for match in matches if match]
    if not weighted:
        return list(words), None
    if len(weighted) < len(words):
        bare = next(word for word, match in zip(words, matches, strict=True) if not match)
        raise UsageError(
            f"{weighted[0][0]} has a weight and {bare} has none: give each data set a weight "
            "(A=0.7 B=0.3), or none of them (A B), which weighs them by size"
        )
    for match in weighted:
        if float(match[2]) <= 0:
            raise UsageError(f"{match[0]}: a weight must be above 0")
    return [match[1] for match in weighted], [float(match[2]) for match in weighted]


def open_training_data(
    words: Sequence[str], topology: Topology, *, lanes: int, seed: int, tables: TableFlags | None = None
) -> Mixture:
    """The data sets that --train-data names (see `parse_sources`), as one stream.

    tables: how tables among them are read.
    Raises UsageError where there is no such data set, or where they cannot be mixed so.
    """
    addresses, weights = parse_sources(words)
    datasets = [open_data(address, topology, tables) for address in addresses]
    return Mixture.by_weight(datasets, weights, lanes=lanes, seed=seed)


def check_global_batch(global_batch: int, topology: Topology, data: Mixture) -> None:
    """Refuse a global batch that the processes cannot share equally, or that a data set cannot fill: each
    must have as many samples as the batch can hold of it.
    """
    if global_batch < 1:
        raise UsageError(f"a batch of {global_batch} samples: it needs at least one")
    if global_batch % topology.world_size:
        raise UsageError(
            f"a global batch of {global_batch} cannot be shared equally by {topology.world_size} processes; "
            f"the nearest that can is --global-batch-size {nearest_batch(global_batch, topology.world_size)}"
        )
    for dataset, most in zip(data.datasets, data.most_in_batch(global_batch), strict=True):
        if len(dataset) < most:
            part = "" if most == global_batch else f"the {most} that it has in "
            raise UsageError(
                f"{dataset.folder.address} has {counted(len(dataset), 'sample')}, fewer than {part}a global "
                f"batch of {global_batch}: a batch would hold a sample twice; use a smaller --batch-size"
                + (" or give the data set less weight" if part else "")
            )


def training_loader(
    data: Mixture,
    topology: Topology,
    *,
    global_batch: int,
    start: int,
    stop: int | None,
    images: TrainImages,
    text: TextStage | None,
    options: LoaderOptions,
) -> Loader:
    """This rank's share of the global batches from position `start` up to `stop` (None: without end)."""
    plan = data.plan(topology.rank, topology.world_size, start, stop)
    return Loader(
        SampleStream(data.dataset, plan, prefetch_bytes=options.prefetch_bytes, cache=options.cache),
        batch_size=global_batch // topology.world_size,
        images=images,
        text=text,
        workers=options.workers,
        seed=data.seed,
        pin_memory=options.pin_memory,
        columns=options.columns,
        transform=options.transform,
        bad_samples=options.bad_samples,
    )


def evaluation_loader(
    dataset: Dataset,
    topology: Topology,
    *,
    batch_size: int,
    images: EvalImages,
    text: TextStage,
    options: LoaderOptions,
    columns: Sequence[str] = (),
) -> Loader:
    """This rank's contiguous share of the data set, in manifest order, each sample once."""
    plan = EvaluationPlan(dataset.blocks.samples, topology.rank, topology.world_size)
    prefetch_bytes = min(options.prefetch_bytes, EVALUATION_PREFETCH_BYTES)
    return Loader(
        SampleStream(dataset, plan, prefetch_bytes=prefetch_bytes, cache=options.cache),
        batch_size=batch_size,
        images=images,
        text=text,
        workers=options.workers,
        pin_memory=options.pin_memory,
        columns=columns,
        draws_captions=False,
    )


def reading_advice(data: Mixture, topology: Topology) -> str:
    """What reading will cost: the window in memory and, where lanes and processes do not fit, a better
    choice.
    """
    share = data.plan(topology.rank, topology.world_size).lanes_read / data.lanes
    window = 0.0
    for dataset, lanes in zip(data.datasets, data.lanes_of, strict=True):
        block_bytes = dataset.blocks.length
        window += min(lanes * share * float(block_bytes.mean()), int(block_bytes.sum()))
    advice = f"window {window / 2**20:,.0f} MiB a process"
    factor = topology.world_size / math.gcd(data.lanes, topology.world_size)
    if factor > 1.1:
        better = max(1, round(data.lanes / topology.world_size)) * topology.world_size
        advice += (
            f"; every block is read up to {factor:.0f} times, since {topology.world_size} processes do "
            f"not divide {data.lanes} lanes: --lanes {better} (in a new run) reads each once"
        )
    return advice


def make_options(
    workers: int | None, prefetch_bytes: int | None, topology: Topology, device: torch.device | None = None
) -> LoaderOptions:
    """Loader options from flags, with the defaults that suit this machine."""
    return LoaderOptions(
        workers=workers or topology.default_workers(),
        prefetch_bytes=DEFAULT_PREFETCH_BYTES // topology.local_world_size
        if prefetch_bytes is None
        else prefetch_bytes,
        pin_memory=device is not None and device.type == "cuda",
    )


def describe(dataset: Dataset) -> str:
    """A data set in one line."""
    return (
        f"{dataset.folder.address}: {counted(len(dataset), 'sample')} in "
        f"{counted(len(dataset.manifest.shards), 'shard')}, "
        f"{int(dataset.blocks.length.sum()) / 1e6:,.1f} MB, {len(dataset.blocks):,} blocks"
    )


def describe_training(data: Mixture) -> list[str]:
    """The data sets of a run, in one line each; of several, with the share of the stream that each has."""
    if len(data.datasets) == 1:
        return [describe(data.datasets[0])]
    lines = []
    for dataset, lanes in zip(data.datasets, data.lanes_of, strict=True):
        round_trip = len(dataset) * data.lanes // lanes
        lines.append(
            f"{describe(dataset)}; {lanes} of {counted(data.lanes, 'lane')}: {lanes / data.lanes:.1%} of the "
            f"samples, an epoch of its own every {round_trip:,}"
        )
    return lines


def source_counts(data: Mixture, samples_seen: int) -> dict[str, float]:
    """What each data set of a mixture has given so far, by names for the log: its samples and its own epochs.
    Nothing for a single data set.
    """
    if len(data.datasets) == 1:
        return {}
    names = [dataset.name for dataset in data.datasets]
    values: dict[str, float] = {}
    for dataset, seen in zip(data.datasets, data.samples_seen_by_source(samples_seen), strict=True):
        name = dataset.name if names.count(dataset.name) == 1 else dataset.folder.address
        values |= {f"samples_seen/{name}": seen, f"epochs/{name}": seen / len(dataset)}
    return values
