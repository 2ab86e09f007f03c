"""A data set made ready for training or evaluation: order, stream and loader, put together."""

import math
from dataclasses import dataclass

import torch

from pipeline.decode import EvalImages, TrainImages
from pipeline.loader import Loader
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.wording import counted
from shards import (
    DEFAULT_PREFETCH_BYTES,
    Dataset,
    EvaluationPlan,
    Order,
    SampleStream,
    TrainingPlan,
    UsageError,
    nearest_batch,
)


@dataclass(frozen=True)
class LoaderOptions:
    """How a process loads; none of it changes which samples and pixels come, or their order."""

    workers: int
    prefetch_bytes: int
    pin_memory: bool = False


def check_global_batch(global_batch: int, topology: Topology, dataset: Dataset) -> None:
    """Refuse a global batch that the processes cannot share equally, or that the data set cannot fill."""
    if global_batch < 1:
        raise UsageError(f"a batch of {global_batch} samples: it needs at least one")
    if global_batch % topology.world_size:
        raise UsageError(
            f"a global batch of {global_batch} cannot be shared equally by {topology.world_size} processes; "
            f"the nearest that can is --global-batch-size {nearest_batch(global_batch, topology.world_size)}"
        )
    if len(dataset) < global_batch:
        raise UsageError(
            f"{dataset.folder.address} has {len(dataset)} samples, fewer than the global batch of "
            f"{global_batch}: a batch would hold a sample twice; use a smaller --batch-size"
        )


def training_loader(
    dataset: Dataset,
    order: Order,
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
    plan = TrainingPlan(order, topology.rank, topology.world_size, start, stop)
    return Loader(
        SampleStream(dataset, plan, prefetch_bytes=options.prefetch_bytes),
        batch_size=global_batch // topology.world_size,
        images=images,
        text=text,
        workers=options.workers,
        seed=order.seed,
        pin_memory=options.pin_memory,
    )


def evaluation_loader(
    dataset: Dataset,
    topology: Topology,
    *,
    batch_size: int,
    images: EvalImages,
    text: TextStage,
    options: LoaderOptions,
) -> Loader:
    """This rank's contiguous share of the data set, in manifest order, each sample once."""
    plan = EvaluationPlan(dataset.blocks.samples, topology.rank, topology.world_size)
    return Loader(
        SampleStream(dataset, plan, prefetch_bytes=options.prefetch_bytes),
        batch_size=batch_size,
        images=images,
        text=text,
        workers=options.workers,
        pin_memory=options.pin_memory,
    )


def reading_advice(dataset: Dataset, order: Order, topology: Topology) -> str:
    """What reading will cost: the window in memory and, where lanes and processes do not fit, a better
    choice.
    """
    lanes = TrainingPlan(order, topology.rank, topology.world_size).lanes_read
    block_bytes = dataset.blocks.length
    window = min(lanes * float(block_bytes.mean()), int(block_bytes.sum()))
    advice = f"window {window / 2**20:,.0f} MiB a process"
    factor = topology.world_size / math.gcd(order.lanes, topology.world_size)
    if factor > 1.1:
        better = max(1, round(order.lanes / topology.world_size)) * topology.world_size
        advice += (
            f"; every block is read up to {factor:.0f} times, since {topology.world_size} processes do "
            f"not divide {order.lanes} lanes: --lanes {better} (in a new run) reads each once"
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
