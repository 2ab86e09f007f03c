"""From an image's bytes to its pixels at the model's size: uint8, height × width × RGB.

Training takes a random resized crop: a full decode by libjpeg-turbo, then torch's antialiased bicubic resize
on uint8, which agrees with Pillow's to one level. Evaluation takes the published preprocessing, bit for bit.
Pillow decodes whatever is not a plain JPEG. (Decoding JPEGs at a DCT scale near the crop's size was measured
and left out: the variants were from a seventh slower to a third faster, and changed pixels by 0.9 to 2.7
levels on average, 7 to 16 at worst; see benchmarks/decode.py.)
"""

import io
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

from pmc_clip.transforms import center_crop, to_rgb

CROP_ATTEMPTS = 10
# Every attempt takes an area and a ratio; the last two place the crop.
CROP_UNIFORMS = 2 * CROP_ATTEMPTS + 2
_RATIO = (3 / 4, 4 / 3)
_PLAIN_JPEG = ("YCbCr", "Gray")


class ImageError(Exception):
    """An image cannot be decoded; the message says why."""


class ImageStage(Protocol):
    """What turns image bytes into pixels; `uniforms` random numbers in [0, 1) are drawn for each sample."""

    size: int
    uniforms: int

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Decode `data` into `out` (uint8 [size, size, 3]); raises ImageError."""


class TrainImages:
    """Random resized crop with torchvision's distribution (RandomResizedCrop), bicubic with antialiasing.

    size: pixels of the result's side; crop_scale: the smallest share of the image's area that a crop may
    have.
    """

    uniforms = CROP_UNIFORMS

    def __init__(self, size: int, crop_scale: float = 0.9) -> None:
        self.size = size
        self.crop_scale = crop_scale

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Decode `data` into `out` (uint8 [size, size, 3]); raises ImageError."""
        pixels = decode_rgb(data)
        left, top, width, height = random_resized_crop(
            pixels.shape[1], pixels.shape[0], uniforms, self.crop_scale
        )
        crop = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)[None]
        resized = F.interpolate(crop, (self.size, self.size), mode="bicubic", antialias=True)
        out[:] = resized[0].permute(1, 2, 0).numpy()


class EvalImages:
    """The published preprocessing: shortest side resized to `size` by Pillow's bicubic, centre crop."""

    uniforms = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Decode `data` into `out` (uint8 [size, size, 3]); raises ImageError."""
        out[:] = center_crop(_open_rgb(data), self.size)


def decode_rgb(data: memoryview) -> np.ndarray:
    """All pixels of an image: uint8 [height, width, 3]; raises ImageError."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in _PLAIN_JPEG:
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        pass  # not a JPEG, or an odd one: Pillow has the last word
    return np.array(_open_rgb(data))  # a copy, since torch wants arrays that it may write to


def _open_rgb(data: memoryview) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:  # its own words end in a memory address
        raise ImageError("not an image") from error
    # Pillow raises these and no others for input it cannot take (a broken PNG chunk is a SyntaxError there, a
    # palette that is missing an AssertionError).
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        AssertionError,
        Image.DecompressionBombError,
    ) as error:
        raise ImageError(str(error) or type(error).__name__) from error


def random_resized_crop(
    width: int, height: int, uniforms: Sequence[float], crop_scale: float
) -> tuple[int, int, int, int]:
    """The crop (left, top, width, height) in pixels, with the distribution of torchvision's
    RandomResizedCrop.

    uniforms: CROP_UNIFORMS numbers in [0, 1), from which alone the crop follows.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for attempt in range(CROP_ATTEMPTS):
        area = width * height * (crop_scale + (1 - crop_scale) * uniforms[2 * attempt])
        ratio = math.exp(low + (high - low) * uniforms[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int((width - crop_width + 1) * uniforms[-2])
            top = int((height - crop_height + 1) * uniforms[-1])
            return left, top, crop_width, crop_height
    crop_width, crop_height = width, height
    if width < _RATIO[0] * height:
        crop_height = round(width / _RATIO[0])
    elif width > _RATIO[1] * height:
        crop_width = round(height * _RATIO[1])
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
