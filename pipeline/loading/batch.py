"""A batch of samples: what the loader hands on."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Batch:
    """The samples of one step on this rank. Its tensors are valid until the batch after the next is asked
    for.
    """

    positions: np.ndarray  # int64 [B], of each sample in the stream
    epochs: np.ndarray  # int64 [B]
    numbers: np.ndarray  # int64 [B], sample ids: numbers in the data set
    keys: list[str]
    captions: list[str]  # of several captions of a sample, the one drawn for it
    images: torch.Tensor  # [B, 3, S, S] uint8, channels last
    tokens: torch.Tensor | None = None  # [B, T] int64
    labels: torch.Tensor | None = None  # [B, T] int64, 0 where not scored
    columns: dict[str, list[Any]] = field(default_factory=dict)  # by name; None where a sample has none
    more_captions: dict[int, tuple[str, ...]] = field(default_factory=dict)  # by place, where none is drawn
    left_out: dict[int, str] = field(default_factory=dict)  # places without a sample, and why
    copied: "torch.cuda.Event | None" = None

    def images_on(self, device: torch.device) -> torch.Tensor:
        """The images on a device; the buffer is kept until the copy is done."""
        if device.type == "cpu":
            return self.images
        images = self.images.to(device, non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()
        return images
