"""Where a training image is cropped: torchvision's RandomResizedCrop as a pure function of random numbers."""

import math
from collections.abc import Sequence

CROP_ATTEMPTS = 10
# Every attempt takes an area and a ratio; the last two place the crop.
CROP_UNIFORMS = 2 * CROP_ATTEMPTS + 2
_RATIO = (3 / 4, 4 / 3)

Crop = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""


def random_resized_crop(width: int, height: int, uniforms: Sequence[float], crop_scale: float) -> Crop:
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


def spare(crop: Crop, size: int) -> float:
    """How many times the pixels wanted, at `size` a side, a crop has, in the direction that has less."""
    return min(crop[2:]) / size


def reduction(crop: Crop, size: int) -> int:
    """By how much (1, 2, 4 or 8) an image may be reduced before its crop is resized to `size` pixels a side.

    At least twice as many pixels as wanted are left in either direction, so that how the image was reduced
    can hardly be seen in the result.
    """
    return next((factor for factor in (8, 4, 2) if 2 * factor <= spare(crop, size)), 1)


def on_reduced_pixels(crop: Crop, size: int) -> Crop:
    """The crop with its edges on whole pixels of the image as `reduction` allows to reduce it.

    Edges move by less than half a pixel of the result. Without that, the crop of a reduced image would
    begin between its pixels, and fine lines would come out elsewhere than from the whole image.
    """
    factor = reduction(crop, size)
    left, top, width, height = (edge // factor * factor for edge in crop)
    return left, top, width, height
