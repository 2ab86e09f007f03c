"""What a run is, said before it begins."""

from pathlib import Path

import torch

from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.length import RunLength
from pmc_clip import PMCCLIP


def summarize(
    folder: Path,
    model: PMCCLIP,
    config: TrainConfig,
    length: RunLength,
    topology: Topology,
    device: torch.device,
) -> str:
    """The run in one line, before it begins."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = (length.stop - length.start) // length.global_batch
    own_batch = length.global_batch // topology.world_size
    parts = f" in {config.accum} parts" if config.accum > 1 else ""
    return (
        f"{folder}: {parameters / 1e6:.1f} M parameters on {topology.world_size} × {device.type}; "
        f"loss {config.objective().describe(mlm=config.mlm)}; "
        f"{own_batch}{parts} × {topology.world_size} = {length.global_batch} "
        f"samples a step; "
        f"{steps:,} steps, {(length.stop - length.start) / length.epoch:.1f} epochs to go"
    )
