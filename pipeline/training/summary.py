"""What a run is, said before it begins; and once its speed is known, when it will end."""

import time
from datetime import datetime, timedelta
from pathlib import Path

import torch

from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.length import RunLength
from pipeline.wording import counted
from pmc_clip import PMCCLIP

_PARTS = {"image tower": ("visual",), "text tower": ("text_encoder", "text_projection")}


def summarize(
    folder: Path,
    model: PMCCLIP,
    config: TrainConfig,
    length: RunLength,
    topology: Topology,
    device: torch.device,
) -> str:
    """The run in a few lines: model, batch arithmetic, length, memory that is sure to be needed."""
    steps = (length.stop - length.start) // length.global_batch
    own_batch = length.global_batch // topology.world_size
    state, sharing = _state_gigabytes(model, config), topology.world_size if config.fsdp else 1
    apart = "" if sharing == 1 else f" (a part of {state:.2f} GB) and a block's whole weights"
    parts = f" in {config.accum} parts" if config.accum > 1 else ""
    return "\n".join(
        [
            f"{folder}: {describe_model(model)}; loss {config.objective().describe(mlm=config.mlm)}",
            f"{own_batch}{parts} × {topology.world_size} {device.type} = {length.global_batch} samples a "
            f"step; {counted(steps, 'step')}, {(length.stop - length.start) / length.epoch:.1f} epochs of "
            f"{counted(length.epoch, 'sample')} to go",
            f"memory of each process for weights, gradients and AdamW: {state / sharing:.2f} GB{apart}, "
            "beside activations",
        ]
    )


def describe_model(model: PMCCLIP) -> str:
    """Parameters of the whole, of its parts, and of what trains."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total, told = sum(sizes.values()), []
    for part, prefixes in _PARTS.items():
        own = sum(size for name, size in sizes.items() if name.startswith(prefixes))
        told.append(f"{part} {own / 1e6:.1f} M")
    locked = f", of which {trained / 1e6:.1f} M train" if trained < total else ""
    return f"{total / 1e6:.1f} M parameters{locked} ({', '.join(told)})"


def _state_gigabytes(model: PMCCLIP, config: TrainConfig) -> float:
    """For what has a parameter's size: weights, their average, and of what trains three times as much."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4 * (total * (2 if config.ema else 1) + 3 * trained) / 1e9


def time_left(samples_seen: int, length: RunLength, samples_per_second: float) -> timedelta:
    """How long a run will take from here at such a speed."""
    return timedelta(seconds=round((length.stop - samples_seen) / max(samples_per_second, 1e-9)))


def forecast(left: timedelta, gpu_memory_gb: float | None) -> str:
    """When the run will end, and what memory it takes, in a line."""
    end = datetime.fromtimestamp(time.time() + left.total_seconds())
    memory = "" if gpu_memory_gb is None else f"; {gpu_memory_gb:.1f} GB of GPU memory at most so far"
    return f"at this speed the run ends in {left}, at {end:%a %d %b %H:%M}{memory}"
