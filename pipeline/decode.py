"""From an image's bytes to its pixels at the model's size: uint8, height × width × RGB.

Training takes a random resized crop, evaluation the published resize and centre crop. How pixels are made is
chosen with `decode`:

- "fast" (training only): libjpeg-turbo and torch's uint8 kernels, `pipeline.decoding.fast`; below one level
  of "exact" on average.
- "exact": Pillow decodes all pixels, converts them to RGB as a viewer shows them, and resizes by its
  antialiased bicubic.
- "published": as PMC-CLIP's own code, which resizes in the image's own mode and converts to RGB afterwards:
  palettes by nearest neighbour, transparency dropped.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
from PIL import Image

from pipeline.decoding.crops import CROP_UNIFORMS, Crop, on_reduced_pixels, random_resized_crop
from pipeline.decoding.fast import decode_crop
from pipeline.decoding.open_image import ImageError, opened
from pmc_clip.transforms import center_crop, published_center_crop, to_rgb

__all__ = ["CROP_UNIFORMS", "EvalImages", "ImageError", "ImageStage", "TrainImages", "random_resized_crop"]

TrainDecode = Literal["fast", "exact", "published"]
EvalDecode = Literal["exact", "published"]


class ImageStage(Protocol):
    """What turns image bytes into pixels; `uniforms` random numbers in [0, 1) are drawn for each sample."""

    size: int
    uniforms: int

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Decode `data` into `out` (uint8 [size, size, 3]); raises ImageError."""


class TrainImages:
    """Random resized crop with torchvision's distribution (RandomResizedCrop), bicubic with antialiasing.

    size: pixels of the result's side; crop_scale: the smallest share of the image's area that a crop may
    have; decode: how pixels are made (see the module).
    """

    uniforms = CROP_UNIFORMS

    def __init__(self, size: int, crop_scale: float = 0.9, decode: TrainDecode = "fast") -> None:
        assert decode in get_args(TrainDecode)
        self.size = size
        self.crop_scale = crop_scale
        self.decode = decode

    def crop(self, width: int, height: int, uniforms: Sequence[float]) -> Crop:
        """The crop of an image of that size: left, top, width, height, in whole pixels as torchvision's.

        Large crops (twice `size` and more) begin and end on multiples of 2, 4 or 8 pixels, so that the fast
        path may reduce the image while decoding; "published" takes torchvision's as they are.
        """
        crop = random_resized_crop(width, height, uniforms, self.crop_scale)
        return crop if self.decode == "published" else on_reduced_pixels(crop, width, height, self.size)

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Decode `data` into `out` (uint8 [size, size, 3]); raises ImageError."""
        if self.decode == "fast":
            decode_crop(data, partial(self.crop, uniforms=uniforms), out)
            return
        with opened(data) as image:
            if self.decode == "exact":
                image = to_rgb(image)
            left, top, width, height = self.crop(*image.size, uniforms)
            crop = image.crop((left, top, left + width, top + height))
            out[:] = np.asarray(crop.resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB"))


class EvalImages:
    """The published preprocessing: shortest side resized to `size` by Pillow's bicubic, centre crop.

    decode: "exact" converts to RGB before resizing, "published" after it; for images of modes RGB and L they
    are the same, bit for bit.
    """

    uniforms = 0

    def __init__(self, size: int, decode: EvalDecode = "exact") -> None:
        assert decode in get_args(EvalDecode)
        self.size = size
        self.decode = decode

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Decode `data` into `out` (uint8 [size, size, 3]); raises ImageError."""
        crop = center_crop if self.decode == "exact" else published_center_crop
        with opened(data) as image:
            out[:] = crop(image, self.size)
