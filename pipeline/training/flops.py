"""Floating-point operations of a model, and what share of a GPU's peak they make.

A sample's operations are counted once, by torch's counter over a pass forward and back of the model's
outline. The peaks are the makers' data sheets' for dense products in bf16 or fp16; float32 in TF32 has half
of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pmc_clip import PMCCLIP
from pmc_clip.accumulation import Part

# By a part of the device's name, the longer ones first; TFLOP/s.
_PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "GH200": 989.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "H800": 989.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 150.0,
    "A30": 165.0,
    "A10": 125.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def count_flops(work: Callable[[], Any]) -> int:
    """The operations of a piece of work that runs eagerly."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def model_flops(outline: PMCCLIP, part: Part) -> int:
    """The operations of a pass forward and back, without those of the losses. Nothing is computed.

    outline: of the model (`pipeline.training.outline`).
    """
    on_meta = Part(part.images.to("meta"), part.tokens.to("meta"), part.layout.to(torch.device("meta")))

    def work() -> None:
        output = outline(on_meta.images, on_meta.tokens, layout=on_meta.layout)
        given = (output.image_features, output.text_features, output.mlm_loss)
        sums = [value.float().sum() for value in given if value is not None and value.requires_grad]
        trained = [parameter for parameter in outline.parameters() if parameter.requires_grad]
        torch.autograd.grad(sums, trained, allow_unused=True)

    return count_flops(work)


def peak_tflops(device_name: str, *, half: bool) -> float | None:
    """What a GPU can do at most, in TFLOP/s; None for one that is not known.

    half: in bf16 or fp16; else in TF32.
    """
    for part, peak in _PEAKS.items():
        if part in device_name:
            return peak if half else peak / 2
    return None
