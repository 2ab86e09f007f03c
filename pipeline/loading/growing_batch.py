"""A batch in the making: what is drawn for its samples, where their pixels go, and how many are left."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.loading.batch import Batch
from shards import RawSample
from shards.hashing import Purpose, derive, uniforms


@dataclass(frozen=True)
class Drawing:
    """What is drawn for each sample of a batch, from (seed, epoch, sample) alone.

    crops: numbers for the image stage; captions: whether one of several captions is drawn (else the first is
    taken); transforms: whether a user's transform needs a seed.
    """

    seed: int
    crops: int
    captions: bool
    transforms: bool


@dataclass
class GrowingBatch:
    """A batch in the making. Decoding threads fill the places of its samples, each its own; the last to be
    done finishes it.

    buffer: uint8 [batch size, S, S, 3], to be used again; pixels: the same memory, for numpy.
    """

    batch: Batch
    samples: Sequence[RawSample]
    buffer: torch.Tensor
    pixels: np.ndarray
    crops: list[list[float]]
    captions: list[float] | None
    transforms: list[int] | None
    left: int
    is_first: bool = False  # of the stream
    # By place: the number of the sample that was replaced, and why.
    bad: dict[int, tuple[int, str]] = field(default_factory=dict)
    # By place: what stopped the work on it.
    failures: dict[int, BaseException] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, count: int) -> bool:
        """Count samples as done; whether they were the last."""
        with self._lock:
            self.left -= count
            return self.left == 0

    def failed_before(self, index: int) -> bool:
        """Whether a place before this one has failed already: then its sample is not needed any more."""
        return bool(self.failures) and min(self.failures) < index

    def first_failure(self) -> BaseException | None:
        """The failure of the first place that has one: the same one whatever thread came first."""
        return self.failures[min(self.failures)] if self.failures else None


def begin_batch(
    samples: Sequence[RawSample], buffer: torch.Tensor, drawing: Drawing, columns: Sequence[str]
) -> GrowingBatch:
    """An empty batch for these samples, with all that is drawn for them."""
    count = len(samples)
    epochs = np.array([raw.epoch for raw in samples])
    blocks = np.array([raw.block for raw in samples])
    numbers = samples[0].dataset.blocks.first_sample[blocks] + np.array([raw.slot for raw in samples])
    batch = Batch(
        positions=np.array([raw.position for raw in samples]),
        epochs=epochs,
        numbers=numbers,
        keys=[""] * count,
        captions=[""] * count,
        images=buffer[:count].permute(0, 3, 1, 2),
        columns={name: [None] * count for name in columns},
    )

    def keys(purpose: Purpose) -> np.ndarray:
        return derive(drawing.seed, epochs, numbers, purpose)

    return GrowingBatch(
        batch,
        samples,
        buffer,
        buffer.numpy(),
        crops=uniforms(keys(Purpose.CROP), drawing.crops).tolist(),
        captions=uniforms(keys(Purpose.CAPTION), 1)[:, 0].tolist() if drawing.captions else None,
        transforms=keys(Purpose.TRANSFORM).tolist() if drawing.transforms else None,
        left=count,
    )
